//! Tells running sidecars what changed profiles say, and profiles how many pods have it, as long as we lead.
//!
//! In: profiles, the installation's own, pods with a sidecar. Out: the annotation that a sidecar's config comes from, changed;
//! conditions in the profiles' status. Promise: a pod is written only when its config differs, over what was read, a few at a
//! time; a pod that cannot have it without being made anew is left as it is, and named; a status that says the same is not written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use outrigger_http::{ClientOptions, Resolver};
use outrigger_kubernetes::names::STATUS_ANNOTATION;
use outrigger_kubernetes::resources::{CLUSTER_SIDECAR_PROFILES, PODS, SIDECAR_PROFILES};
use outrigger_kubernetes::{ApiError, Client, Duty, Key, Leader, Patch, Path, Selection, Write};
use outrigger_runtime::{BoxFuture, CONFIG_MARK, config_mark};
use outrigger_telemetry::{Counter, Registry};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use crate::injector::{Delivered, Injector, ParsedProfile};
use crate::namespaces::Namespaces;
use crate::profiles::{Entry, KnownProfiles, Snapshot};
use crate::webhook::SYSTEM;

/// What a sidecar's config comes from, as the path of a JSON Patch.
const CONFIG: &str = "/metadata/annotations/outrigger.dev~1effective-config";
/// Whether the installation's profile changed is looked at so often.
const LOOK: Duration = Duration::from_millis(250);
/// A pod that was being made meanwhile, by a replica that knew less, is seen then.
const AGAIN: Duration = Duration::from_secs(5);
/// All pods are looked at so often, whatever changed: their labels, and those of namespaces, count, too.
const ROUND: Duration = Duration::from_secs(300);
/// Who was told is asked so often whether it took that over.
const QUESTION: Duration = Duration::from_secs(1);
/// And for so long.
const QUESTIONS: Duration = Duration::from_secs(90);
/// Where sidecars answer the kubelet.
const HEALTH: u16 = 15021;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(3);
/// Pods at once.
const AT_ONCE: usize = 8;
/// Pods that a status names.
const MOST_NAMED: usize = 3;

/// What is counted.
#[derive(Clone)]
pub(crate) struct DeliveryMetrics {
    told: Counter,
    anew: Counter,
    refused: Counter,
}

impl DeliveryMetrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let all = registry.counter(
            "outrigger_profile_deliveries_total",
            "Running pods whose config should be another one, by what became of it: told, takes a pod made anew, or refused.",
            &["result"],
        );
        Self { told: all.with(&["told"]), anew: all.with(&["anew"]), refused: all.with(&["refused"]) }
    }
}

/// Tells them.
pub(crate) struct Delivery {
    pub(crate) profiles: KnownProfiles,
    pub(crate) injector: Arc<RwLock<Arc<dyn Injector>>>,
    pub(crate) namespaces: Namespaces,
    pub(crate) never: Vec<String>,
    pub(crate) metrics: DeliveryMetrics,
    /// Asks sidecars.
    pub(crate) http: outrigger_http::Client,
    pub(crate) problem: Arc<Mutex<Option<String>>>,
}

/// Which pods are to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Namespaces(BTreeSet<String>),
}

/// A client that asks sidecars, and waits for none of them long.
pub(crate) fn asking(resolver: Resolver) -> outrigger_http::Client {
    let patience = Duration::from_secs(1);
    let options = ClientOptions {
        connect_timeout: patience,
        timeout: patience,
        max_response: 64 << 10,
        max_idle: 0,
        ..ClientOptions::default()
    };
    outrigger_http::Client::new(options, resolver)
}

impl Scope {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Namespaces(names) if names.is_empty())
    }
}

/// What a profile's pods have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tally {
    pods: u32,
    programmed: u32,
    /// Why others do not, each with its name.
    others: Vec<String>,
}

impl Tally {
    fn add(&mut self, pod: &Key, why: Option<&str>) {
        self.pods += 1;
        match why {
            None => self.programmed += 1,
            Some(why) => self.others.push(format!("{}/{}: {why}", pod.namespace, pod.name)),
        }
    }
}

/// What is known while we lead.
#[derive(Default)]
struct Known {
    /// What became of each pod with a sidecar.
    pods: BTreeMap<Key, Brought>,
    /// What each profile was told, and of which generation.
    told: BTreeMap<(bool, Key), (i64, Tally)>,
}

impl Delivery {
    async fn lead(&self, leader: &Leader) {
        self.namespaces.store().synced().await;
        let client = &leader.client;
        let mut known = Known::default();
        // What the pods were last brought in line with.
        let mut done: Option<(Arc<Snapshot>, Arc<dyn Injector>)> = None;
        let (mut again, mut round): (Option<(Instant, Scope)>, Instant) = (None, Instant::now() + ROUND);
        let (mut next_question, mut last_question) = (Instant::now(), Instant::now());
        loop {
            let snapshot = self.profiles.snapshot().await;
            let injector = Arc::clone(&*self.injector.read());
            let now = Instant::now();
            let mut scope = match &done {
                Some((before, with)) if Arc::ptr_eq(with, &injector) => before.changed(&snapshot),
                _ => Scope::All,
            };
            let fresh = !scope.is_empty();
            if now >= round {
                scope = Scope::All;
            } else if let Some((_, missed)) = again.take_if(|(due, _)| scope.is_empty() && now >= *due) {
                scope = missed;
            }
            let unanswered = known.pods.values().any(|pod| pod.waits) && now >= next_question && now < last_question;
            if leader.leadership.leads() && (unanswered || !scope.is_empty()) {
                let result = async {
                    match scope.is_empty() {
                        true => self.ask_again(client, &snapshot, &injector, &mut known).await?,
                        false => self.pass(client, &scope, &snapshot, &injector, &mut known).await?,
                    }
                    self.tell_all(client, &snapshot, &injector, &mut known).await
                };
                let result = result.await;
                *self.problem.lock() = result.as_ref().err().map(ToString::to_string);
                if result.is_err() {
                    sleep(PAUSE).await;
                    continue;
                }
                let now = Instant::now();
                next_question = now + QUESTION;
                if scope == Scope::All {
                    round = now + ROUND;
                }
                if !scope.is_empty() {
                    last_question = now + QUESTIONS;
                }
                if fresh {
                    again = Some((now + AGAIN, scope));
                }
                done = Some((snapshot, injector));
            }
            tokio::select! {
                () = self.profiles.changed() => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Brings pods in line.
    async fn pass(
        &self,
        client: &Client,
        scope: &Scope,
        snapshot: &Snapshot,
        injector: &Arc<dyn Injector>,
        known: &mut Known,
    ) -> Result<(), ApiError> {
        let places: Vec<Path<'_>> = match scope {
            Scope::All => vec![PODS.all()],
            Scope::Namespaces(names) => names.iter().map(|name| PODS.within(name)).collect(),
        };
        let mut keys = BTreeSet::new();
        for place in places {
            // Pods with large objects are many: of each, its name is kept.
            let keep = |pod: Value| keys.extend(self.concerned(&pod));
            client.each(place, &Selection::default(), || {}, keep).await?;
        }
        match scope {
            Scope::All => known.pods.clear(),
            Scope::Namespaces(names) => known.pods.retain(|pod, _| !names.contains(&pod.namespace)),
        }
        self.bring_all(client, keys, snapshot, injector, known).await
    }

    /// Asks those that had not taken over what they were told.
    async fn ask_again(
        &self,
        client: &Client,
        snapshot: &Snapshot,
        injector: &Arc<dyn Injector>,
        known: &mut Known,
    ) -> Result<(), ApiError> {
        let keys = known.pods.iter().filter(|(_, pod)| pod.waits).map(|(key, _)| key.clone()).collect();
        self.bring_all(client, keys, snapshot, injector, known).await
    }

    async fn bring_all(
        &self,
        client: &Client,
        keys: BTreeSet<Key>,
        snapshot: &Snapshot,
        injector: &Arc<dyn Injector>,
        known: &mut Known,
    ) -> Result<(), ApiError> {
        let (mut waiting, mut under_way) = (keys.into_iter(), FuturesUnordered::new());
        loop {
            let more = waiting.by_ref().take(AT_ONCE - under_way.len());
            more.for_each(|key| under_way.push(self.bring(client, key, snapshot, injector)));
            let Some(outcome) = under_way.next().await else { return Ok(()) };
            match outcome? {
                (key, Some(brought)) => drop(known.pods.insert(key, brought)),
                (key, None) => drop(known.pods.remove(&key)),
            }
        }
    }

    /// Tells the profiles of their pods, as far as that is new.
    async fn tell_all(
        &self,
        client: &Client,
        snapshot: &Snapshot,
        injector: &Arc<dyn Injector>,
        known: &mut Known,
    ) -> Result<(), ApiError> {
        let mut tallies: BTreeMap<&(bool, Key), Tally> = BTreeMap::new();
        for (pod, brought) in &known.pods {
            for profile in &brought.meant {
                tallies.entry(profile).or_default().add(pod, brought.why.as_deref());
            }
        }
        let mut told = BTreeMap::new();
        for entry in snapshot.entries() {
            let now = (entry.generation, tallies.get(&entry.key).cloned().unwrap_or_default());
            if known.told.get(&entry.key) != Some(&now) {
                self.tell(client, entry, &now.1, injector).await?;
            }
            told.insert(entry.key.clone(), now);
        }
        known.told = told;
        Ok(())
    }

    fn concerned(&self, pod: &Value) -> Option<Key> {
        let metadata = &pod["metadata"];
        let namespace = metadata["namespace"].as_str()?;
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let ours = !metadata["annotations"][STATUS_ANNOTATION].is_null() && metadata["deletionTimestamp"].is_null();
        let never = SYSTEM.contains(&namespace) || self.never.iter().any(|never| never == namespace);
        (ours && !ended && !never).then(|| Key::new(namespace, metadata["name"].as_str().unwrap_or_default()))
    }

    /// Brings one pod in line.
    async fn bring(
        &self,
        client: &Client,
        key: Key,
        snapshot: &Snapshot,
        injector: &Arc<dyn Injector>,
    ) -> Result<(Key, Option<Brought>), ApiError> {
        let path = PODS.named(&key.namespace, &key.name);
        let Some(pod) = client.find(path).await? else { return Ok((key, None)) };
        let facts = self.namespaces.known(&key.namespace);
        let entries: Vec<Entry> = snapshot.of(&key.namespace).cloned().collect();
        let parsed: Vec<ParsedProfile> = entries.iter().map(|entry| Arc::clone(&entry.parsed)).collect();
        let judge = Arc::clone(injector);
        // Up to a millisecond each, beside the thread that answers reviews.
        let work = tokio::task::spawn_blocking(move || (judge.deliver(&pod, &facts, &parsed), pod));
        let Ok((Some(delivered), pod)) = work.await else { return Ok((key, None)) };
        let meant = delivered.meant.iter().filter_map(|at| entries.get(*at)).map(|entry| entry.key.clone()).collect();
        let (why, waits) = match delivered.what {
            Delivered::Current => {
                let config = pod.pointer(CONFIG).and_then(Value::as_str).unwrap_or_default();
                self.ask(&pod, config).await
            }
            Delivered::Config(config) => match self.write(client, path, &pod, &config).await? {
                None => self.ask(&pod, &config).await,
                Some(why) => (Some(why), false),
            },
            Delivered::Anew(why) => {
                self.metrics.anew.inc();
                (Some(format!("it has to be made anew: {why}")), false)
            }
            Delivered::Refused(why) => {
                self.metrics.refused.inc();
                (Some(why), false)
            }
        };
        Ok((key, Some(Brought { meant, why, waits })))
    }

    /// Why a sidecar has not taken over what it was told, and whether it may yet.
    async fn ask(&self, pod: &Value, config: &str) -> (Option<String>, bool) {
        // One that is yet to start begins with it.
        let (Some("Running"), Some(ip)) = (pod["status"]["phase"].as_str(), pod["status"]["podIP"].as_str()) else {
            return (None, false);
        };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let url = format!("http://{host}:{HEALTH}/readyz");
        let Ok(request) = http::Request::get(url).body(Bytes::new()) else { return (None, false) };
        match self.http.send(request).await {
            Ok(answer) => said(answer.headers().get(CONFIG_MARK).and_then(|mark| mark.to_str().ok()), config),
            Err(_) => (Some(format!("it was told, and its sidecar does not answer us at port {HEALTH}")), true),
        }
    }

    /// Writes a pod's config over that which was read; why not, if it was refused.
    async fn write(
        &self,
        client: &Client,
        path: Path<'_>,
        pod: &Value,
        config: &str,
    ) -> Result<Option<String>, ApiError> {
        let before = pod.pointer(CONFIG).cloned().unwrap_or_default();
        let patch = json!([
            { "op": "test", "path": "/metadata/uid", "value": pod["metadata"]["uid"] },
            { "op": "test", "path": CONFIG, "value": before },
            { "op": "replace", "path": CONFIG, "value": config },
        ]);
        match client.patch(path, Patch::Json, &patch, Write::Real).await {
            Ok(_) => {
                self.metrics.told.inc();
                tracing::info!(
                    namespace = path.namespace,
                    pod = path.name,
                    "a running sidecar was told of changed profiles"
                );
                Ok(None)
            }
            Err(error) if error.is_not_found() => Ok(Some("it has gone".to_owned())),
            // Another admission's word, or it has changed: it is looked at again.
            Err(error) if error.status().is_some_and(|status| matches!(status.code, 409 | 422)) => {
                Ok(Some(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a profile's conditions, if they say something new.
    async fn tell(
        &self,
        client: &Client,
        entry: &Entry,
        tally: &Tally,
        injector: &Arc<dyn Injector>,
    ) -> Result<(), ApiError> {
        let (of_cluster, Key { namespace, name }) = &entry.key;
        let path =
            if *of_cluster { CLUSTER_SIDECAR_PROFILES.global(name) } else { SIDECAR_PROFILES.named(namespace, name) };
        let Some(object) = client.find(path).await? else { return Ok(()) };
        // It has changed meanwhile: the next pass tells of that.
        if object["metadata"]["generation"].as_i64() != Some(entry.generation) {
            return Ok(());
        }
        let problems = injector.judge_parsed(&entry.parsed).problems;
        let next = status(&object["status"], entry.generation, &problems, tally, &now());
        if next == object["status"] {
            return Ok(());
        }
        let patch = json!({ "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] }, "status": next });
        match client.patch(path.part("status"), Patch::Merge, &patch, Write::Real).await {
            Err(error) if !error.is_conflict() && !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// What became of a pod.
struct Brought {
    /// The profiles that mean it.
    meant: Vec<(bool, Key)>,
    /// Why it has not what they say.
    why: Option<String>,
    /// It was told, and may have it in a moment.
    waits: bool,
}

/// What a sidecar says of its config, by the mark of what it should be; one of a version before this says nothing.
fn said(mark: Option<&str>, config: &str) -> (Option<String>, bool) {
    let wanted = config_mark(config.as_bytes());
    match mark.map(|mark| mark.split_once("; refused=").unwrap_or((mark, ""))) {
        None => (None, false),
        Some((applied, _)) if applied == wanted => (None, false),
        Some((_, refused)) if refused == wanted => {
            (Some("its sidecar refused it, and says why in its log".to_owned()), false)
        }
        Some(_) => (Some("it was told, and has not taken it over yet".to_owned()), true),
    }
}

fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// A profile's status; conditions that say the same keep their time.
fn status(before: &Value, generation: i64, problems: &[String], tally: &Tally, now: &str) -> Value {
    let accepted = match problems {
        [] => ("True", "Valid", "it counts for the pods that it means".to_owned()),
        problems => ("False", "Invalid", problems.join("; ")),
    };
    let Tally { pods, programmed, others } = tally;
    let programmed_condition = match (pods, pods - programmed) {
        (0, _) => ("True", "NoPods", "no running pod is meant".to_owned()),
        (pods, 0) => ("True", "AllPods", format!("{pods} of {pods} pods")),
        (pods, missing) => {
            let mut named = others.clone();
            named.sort();
            let more = named.len().saturating_sub(MOST_NAMED);
            named.truncate(MOST_NAMED);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let told = format!("{programmed} of {pods} pods, {missing} not: {}{more}", named.join("; "));
            ("False", "PodsMissing", told)
        }
    };
    let known = before["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let condition = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let same = known.iter().find(|one| one["type"] == kind && one["status"] == status);
        let since = same.map_or_else(|| json!(now), |one| one["lastTransitionTime"].clone());
        // As much as the API's conventions allow.
        let message: String = message.chars().take(4000).collect();
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since, "observedGeneration": generation,
        })
    };
    json!({
        "observedGeneration": generation,
        "pods": pods,
        "programmed": programmed,
        "conditions": [condition("Accepted", accepted), condition("Programmed", programmed_condition)],
    })
}

impl Duty for Delivery {
    fn name(&self) -> &'static str {
        "profiles"
    }

    fn run<'a>(&'a self, leader: &'a Leader) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // Who does not lead has no problem with it.
            let _calm = Calm(&self.problem);
            self.lead(leader).await;
        })
    }

    fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }
}

/// Forgets the problem at its end.
struct Calm<'a>(&'a Mutex<Option<String>>);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_says_which_config_it_has() {
        let wanted = config_mark(b"metrics: {}");
        for (mark, why, waits) in [
            (None, None, false),
            (Some(wanted.clone()), None, false),
            (Some(format!("{wanted}; refused=1")), None, false),
            (Some(format!("0123; refused={wanted}")), Some("refused it"), false),
            (Some("0123".to_owned()), Some("not taken it over yet"), true),
        ] {
            let (told, may) = said(mark.as_deref(), "metrics: {}");
            assert_eq!((told.is_some(), may), (why.is_some(), waits), "{mark:?}");
            assert!(told.unwrap_or_default().contains(why.unwrap_or_default()), "{mark:?}");
        }
    }

    #[test]
    fn conditions_keep_their_time_and_say_who_is_missing() {
        let all = Tally { pods: 2, programmed: 2, others: Vec::new() };
        let first = status(&Value::Null, 1, &[], &all, "t1");
        assert_eq!(first["conditions"][1]["message"], "2 of 2 pods");
        let same = status(&first, 1, &[], &all, "t2");
        assert_eq!(same, first, "what says the same is not written");
        let mut some = Tally::default();
        some.add(&Key::new("shop", "b"), None);
        for pod in ["d", "a", "c", "e"] {
            some.add(&Key::new("shop", pod), Some("it has to be made anew: x"));
        }
        let next = status(&first, 2, &["spec.config.a: unknown".to_owned()], &some, "t3");
        let message = next["conditions"][1]["message"].as_str().unwrap();
        assert!(
            message.starts_with("1 of 5 pods, 4 not: shop/a: it has") && message.ends_with("; and 1 more"),
            "{message}"
        );
        assert_eq!(
            (&next["conditions"][0]["status"], &next["conditions"][0]["lastTransitionTime"]),
            (&json!("False"), &json!("t3"))
        );
        assert_eq!(status(&first, 2, &[], &Tally::default(), "t4")["conditions"][1]["reason"], "NoPods");
    }
}
