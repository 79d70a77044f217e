//! Pods that run without the sidecar although their namespace asks for it: made while the webhook was away, or before the
//! namespace was labelled.
//!
//! In: the pods of all namespaces, of which only those without the sidecar are kept, in few bytes. Out: a metric, Events on
//! their owners, and evictions where these are asked for. Promise: only the leader acts; only pods that somebody makes anew
//! are evicted, within their disruption budgets, one at a time, and none while the webhook would miss the next one, too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_config::{Repair, RepairAction};
use outrigger_kubernetes::names::STATUS_ANNOTATION;
use outrigger_kubernetes::resources::PODS;
use outrigger_kubernetes::{ApiError, Client, Informer, Key, Leadership, Selection, Store, Write, informer};
use outrigger_telemetry::{Counter, CounterFamily, Gauge, Registry};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::time::Instant;

use crate::injector::{Injector, Verdict};
use crate::namespaces::Namespaces;
use crate::owner::{Owners, Told, controller_of};
use crate::profiles::KnownProfiles;
use crate::webhook::SYSTEM;

/// Pods are looked over so often.
const LOOK: Duration = Duration::from_secs(2);
/// A pod is told of again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(900);
/// An owner whose pods come back without the sidecar so often in a row is left alone.
const IN_VAIN: u32 = 3;
/// Owners that are remembered.
const OWNERS: usize = 1024;

/// What is kept of a pod without the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missed {
    uid: String,
    /// Seconds since the epoch.
    created: u64,
}

/// Looks after them, for as long as it is run.
pub(crate) struct Repairs {
    pub(crate) client: Client,
    pub(crate) config: Repair,
    pub(crate) namespaces: Namespaces,
    pub(crate) injector: Arc<RwLock<Arc<dyn Injector>>>,
    pub(crate) profiles: KnownProfiles,
    pub(crate) never: Vec<String>,
    pub(crate) leadership: Leadership,
    pub(crate) owners: Owners,
    pub(crate) metrics: RepairMetrics,
    /// Whether the webhook is well: else a pod that is evicted comes back as it was.
    pub(crate) webhook_problem: Arc<Mutex<Option<String>>>,
    /// What is wrong, for the status.
    pub(crate) problem: Arc<Mutex<Option<String>>>,
}

/// What is counted.
#[derive(Clone)]
pub(crate) struct RepairMetrics {
    missed: Gauge,
    evicted: Counter,
    evictions: CounterFamily,
}

impl RepairMetrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let evictions = registry.counter(
            "outrigger_repair_evictions_total",
            "Pods without the sidecar that were evicted, or for which that failed: for a disruption budget, or an error.",
            &["result"],
        );
        let missed = registry.gauge(
            "outrigger_repair_missed_pods",
            "Pods that run without the sidecar although their namespace asks for it; 0 where another replica leads.",
            &[],
        );
        Self { missed: missed.with(&[]), evicted: evictions.with(&["evicted"]), evictions }
    }
}

/// What was done about pods so far.
#[derive(Default)]
struct Past {
    /// By pod's UID.
    told: HashMap<String, Instant>,
    /// By owner's UID.
    owners: HashMap<String, Evicted>,
    evicted_at: Option<Instant>,
}

/// What evictions of an owner's pods brought.
#[derive(Debug, Default, PartialEq, Eq)]
struct Evicted {
    /// How many of the evicted had been made after an eviction: they came back as they were.
    in_vain: u32,
    /// The last one, in seconds since the epoch.
    at: u64,
}

impl Evicted {
    fn note(&mut self, created: u64, now: u64) {
        self.in_vain += u32::from(self.at > 0 && created >= self.at);
        self.at = now;
    }
}

impl Repairs {
    /// Runs until it is dropped. Cancel-safe.
    pub(crate) async fn run(self) {
        if self.config.action == RepairAction::Off {
            return std::future::pending().await;
        }
        loop {
            self.metrics.missed.set(0.0);
            *self.problem.lock() = None;
            self.leadership.gained().await;
            let (following, pods) = self.pods();
            tokio::select! {
                () = following.run() => {}
                () = self.lead(&pods) => {}
                () = self.leadership.lost() => {}
            }
        }
    }

    fn pods(&self) -> (Informer<Missed>, Store<Missed>) {
        let never: Vec<String> = SYSTEM.iter().map(|name| (*name).to_owned()).chain(self.never.clone()).collect();
        // Pods that have ended need no sidecar any more.
        let running = Selection::fields("status.phase!=Succeeded,status.phase!=Failed");
        informer(self.client.clone(), PODS.all(), running, move |pod| missed(pod, &never))
    }

    async fn lead(&self, pods: &Store<Missed>) {
        let mut past = Past::default();
        loop {
            tokio::time::sleep(LOOK).await;
            *self.problem.lock() = pods.problem();
            if pods.is_synced() && self.namespaces.store().is_synced() && self.leadership.leads() {
                self.look_over(pods, &mut past).await;
            }
        }
    }

    async fn look_over(&self, pods: &Store<Missed>, past: &mut Past) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let patience = Duration::from(self.config.after);
        let due = |missed: &Missed| now.saturating_sub(Duration::from_secs(missed.created)) >= patience;
        let all = pods.all();
        let here: Vec<_> =
            all.iter().filter(|(key, missed)| self.namespaces.asks(&key.namespace) && due(missed)).collect();
        past.told.retain(|uid, _| here.iter().any(|(_, missed)| missed.uid == *uid));
        let mut count = 0;
        for (key, missed) in here {
            // One that was judged a while ago need not be fetched again, unless it is to go.
            let told = past.told.get(&missed.uid).is_some_and(|at| at.elapsed() < TELL_AGAIN);
            let go = self.config.action == RepairAction::Evict && self.may_evict(past);
            if told && !go {
                count += 1;
                continue;
            }
            match self.wanting(key, missed).await {
                Ok(Some(pod)) => {
                    count += 1;
                    if !told {
                        self.tell(key, &pod);
                        past.told.insert(missed.uid.clone(), Instant::now());
                    }
                    if go {
                        self.evict(key, missed, &pod, past).await;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    *self.problem.lock() = Some(error.to_string());
                    return;
                }
            }
        }
        self.metrics.missed.set(f64::from(count));
    }

    /// The pod, if it is that very one and would be injected were it made now.
    async fn wanting(&self, key: &Key, missed: &Missed) -> Result<Option<Value>, ApiError> {
        let Some(pod) = self.client.find(PODS.named(&key.namespace, &key.name)).await? else { return Ok(None) };
        if pod["metadata"]["uid"] != missed.uid.as_str() {
            return Ok(None);
        }
        let facts = self.namespaces.facts(&key.namespace).await;
        let injector = Arc::clone(&*self.injector.read());
        // While they are not known nobody is called missed: no pod could be made.
        let Ok(profiles) = self.profiles.of(&key.namespace).await else { return Ok(None) };
        let wants = matches!(injector.judge(&pod, &facts, &profiles), Verdict::Changed { .. });
        Ok(wants.then_some(pod))
    }

    fn tell(&self, key: &Key, pod: &Value) {
        tracing::warn!(namespace = %key.namespace, pod = %key.name, "a pod runs without the sidecar");
        let note = format!(
            "the pod `{}` runs without the sidecar, which its namespace asks for: it was made while the webhook was away, or before; make it anew",
            key.name
        );
        let metadata = pod["metadata"].clone();
        self.owners.tell(Told {
            namespace: key.namespace.clone(),
            metadata,
            reason: "InjectionMissed",
            action: "Inject",
            note,
        });
    }

    fn may_evict(&self, past: &Past) -> bool {
        let paced = past.evicted_at.is_none_or(|at| at.elapsed() >= Duration::from(self.config.pace));
        paced && self.webhook_problem.lock().is_none() && self.leadership.leads()
    }

    async fn evict(&self, key: &Key, missed: &Missed, pod: &Value, past: &mut Past) {
        // Nobody makes one anew that belongs to nobody; a Job's counts as a failure of it.
        let Some(owner) = controller_of(&pod["metadata"], &key.namespace).filter(|owner| owner.kind != "Job") else {
            return;
        };
        if past.owners.len() >= OWNERS && !past.owners.contains_key(&owner.uid) {
            past.owners.clear();
        }
        let evicted = past.owners.entry(owner.uid).or_default();
        if evicted.in_vain >= IN_VAIN {
            return;
        }
        past.evicted_at = Some(Instant::now());
        let result = match self.client.evict(&key.namespace, &key.name, Some(&missed.uid), Write::Real).await {
            Ok(()) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                evicted.note(missed.created, now.as_secs());
                self.metrics.evicted.inc();
                tracing::info!(namespace = %key.namespace, pod = %key.name, "evicted a pod without the sidecar");
                return;
            }
            Err(error) if error.is_not_found() || error.is_conflict() => return,
            Err(error) if error.is_too_many() => {
                tracing::info!(namespace = %key.namespace, pod = %key.name, "a disruption budget does not let a pod go yet");
                "budget"
            }
            Err(error) => {
                *self.problem.lock() = Some(error.to_string());
                "error"
            }
        };
        self.metrics.evictions.with(&[result]).inc();
    }
}

/// What is kept of a pod: nothing, if it has the sidecar, or needs none.
fn missed(pod: &Value, never: &[String]) -> Option<Missed> {
    let metadata = &pod["metadata"];
    let namespace = metadata["namespace"].as_str()?;
    let injected = metadata["annotations"][STATUS_ANNOTATION].is_string();
    let leaving = metadata["deletionTimestamp"].is_string();
    if injected || leaving || pod["spec"]["hostNetwork"] == true || never.iter().any(|name| name == namespace) {
        return None;
    }
    let created = seconds(metadata["creationTimestamp"].as_str()?)?;
    Some(Missed { uid: metadata["uid"].as_str()?.to_owned(), created })
}

/// A time as Kubernetes writes it (`2026-01-31T12:00:00Z`), in seconds since the epoch.
fn seconds(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut clock = rest.strip_suffix('Z')?.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    // Days from civil, by Howard Hinnant: years begin with March, so that leap days come last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let year_of_era = year - era * 400;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2023-11-14T22:13:20Z", Some(1_700_000_000)),
            ("2024-02-29T12:00:00Z", Some(1_709_208_000)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("2024-02-29", None),
            ("yesterday", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn only_pods_that_came_back_as_they_were_count_against_their_owner() {
        let mut evicted = Evicted::default();
        // All of a large Deployment, which were there before.
        for now in 100..120 {
            evicted.note(50, now);
        }
        assert_eq!(evicted.in_vain, 0);
        for (created, now) in [(119, 150), (151, 180), (200, 210)] {
            evicted.note(created, now);
        }
        assert_eq!(evicted, Evicted { in_vain: 3, at: 210 });
    }

    #[test]
    fn of_pods_that_need_nothing_nothing_is_kept() {
        let never = ["kube-system".to_owned()];
        let pod = |changes: Value| {
            let mut pod = json!({
                "metadata": { "namespace": "shop", "name": "a", "uid": "u", "creationTimestamp": "1970-01-01T00:00:10Z" },
                "spec": {},
            });
            for (key, value) in changes.as_object().unwrap() {
                pod["metadata"][key] = value.clone();
            }
            pod
        };
        assert_eq!(missed(&pod(json!({})), &never), Some(Missed { uid: "u".to_owned(), created: 10 }));
        for (name, changes) in [
            ("injected", json!({ "annotations": { STATUS_ANNOTATION: "{}" } })),
            ("leaving", json!({ "deletionTimestamp": "1970-01-01T00:00:20Z" })),
            ("of the system", json!({ "namespace": "kube-system" })),
        ] {
            assert_eq!(missed(&pod(changes), &never), None, "{name}");
        }
        let mut node = pod(json!({}));
        node["spec"]["hostNetwork"] = json!(true);
        assert_eq!(missed(&node, &never), None);
    }
}
