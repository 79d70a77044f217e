//! Tells running sidecars what changed profiles say, and profiles how many pods have it, as long as we lead.
//!
//! In: profiles, the installation's own, pods with a sidecar. Out: the annotation that a sidecar's config comes from, and those that
//! others go by, changed; conditions in the profiles' status. Promise: a pod is written only when its config differs, over what was read, a few at a
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
use tokio::time::{Instant, sleep};

use crate::conditions::{Tally, now, status};
use crate::injector::{Delivered, Injector, ParsedProfile, Telling, When};
use crate::namespaces::Namespaces;
use crate::profiles::{Entry, KnownProfiles, Snapshot};
use crate::webhook::SYSTEM;

/// What a sidecar's config comes from, as the path of a JSON Patch.
const CONFIG: &str = "/metadata/annotations/outrigger.dev~1effective-config";
/// Whether the installation's profile changed is looked at so often.
const LOOK: Duration = Duration::from_millis(250);
/// A pod that was being made meanwhile, by a replica that knew less, is seen then. By then others have heard of a pod's change, too.
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
/// Why a pod has not all of a change yet that others must hear of in between.
const IN_STEPS: &str = "its `mtls` changes in steps, so that nobody is cut off; the next one follows";

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

/// What is known while we lead.
struct Known {
    /// Since then.
    since: Instant,
    /// Pods of which others have to hear something, and since when.
    announced: BTreeMap<Key, Instant>,
    /// What became of each pod with a sidecar.
    pods: BTreeMap<Key, Brought>,
    /// What each profile was told, and of which generation.
    told: BTreeMap<(bool, Key), (i64, Tally)>,
}

impl Delivery {
    async fn lead(&self, leader: &Leader) {
        self.namespaces.store().synced().await;
        let client = &leader.client;
        let since = Instant::now();
        let mut known = Known { since, announced: BTreeMap::new(), pods: BTreeMap::new(), told: BTreeMap::new() };
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
                known.announced.retain(|_, told| *told + AGAIN > now);
                if !scope.is_empty() || !known.announced.is_empty() {
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
            for key in more {
                let told = known.announced.get(&key).copied().unwrap_or(known.since);
                under_way.push(self.bring(client, key, snapshot, injector, told.elapsed() >= AGAIN));
            }
            let Some(outcome) = under_way.next().await else { return Ok(()) };
            match outcome? {
                (key, Some(brought)) => {
                    if brought.announced {
                        known.announced.insert(key.clone(), Instant::now());
                    }
                    known.pods.insert(key, brought);
                }
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

    /// Brings one pod in line, or a step nearer. `heard` says whether others know it as it is.
    async fn bring(
        &self,
        client: &Client,
        key: Key,
        snapshot: &Snapshot,
        injector: &Arc<dyn Injector>,
        heard: bool,
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
        let mut announced = false;
        let (why, waits) = match delivered.what {
            Delivered::Current => self.ask(&pod, has(&pod, CONFIG)).await,
            Delivered::Tell(telling) => match self.held(&pod, &telling, heard).await {
                Some(held) => held,
                None => match self.write(client, path, &pod, &telling).await? {
                    None if telling.last => self.ask(&pod, &telling.config).await,
                    None => {
                        announced = telling.when == When::Taken;
                        (Some(IN_STEPS.to_owned()), true)
                    }
                    Some(why) => (Some(why), false),
                },
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
        Ok((key, Some(Brought { meant, why, waits, announced })))
    }

    /// Why a step has to wait, if it has, and whether it may be taken in a moment.
    async fn held(&self, pod: &Value, telling: &Telling, heard: bool) -> Option<(Option<String>, bool)> {
        match telling.when {
            When::Now => None,
            When::Heard => (!heard).then(|| (Some(IN_STEPS.to_owned()), true)),
            When::Taken => Some(self.ask(pod, has(pod, CONFIG)).await).filter(|(why, _)| why.is_some()),
        }
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

    /// Writes what a pod is told over what was read; why not, if it was refused.
    async fn write(
        &self,
        client: &Client,
        path: Path<'_>,
        pod: &Value,
        telling: &Telling,
    ) -> Result<Option<String>, ApiError> {
        let patch = patch(pod, &telling.annotations);
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
    /// Others have to hear of what was changed now.
    announced: bool,
}

/// An annotation, by its path.
fn has<'a>(pod: &'a Value, path: &str) -> &'a str {
    pod.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// What changes annotations, if the pod still is the one that was read and they are still what they were.
fn patch(pod: &Value, annotations: &[(&'static str, Option<String>)]) -> Value {
    let mut operations = vec![json!({ "op": "test", "path": "/metadata/uid", "value": pod["metadata"]["uid"] })];
    for (key, value) in annotations {
        let path = format!("/metadata/annotations/{}", key.replace('~', "~0").replace('/', "~1"));
        let before = pod.pointer(&path);
        operations.extend(before.map(|before| json!({ "op": "test", "path": path, "value": before })));
        match value {
            Some(value) => operations.push(json!({ "op": "add", "path": path, "value": value })),
            None if before.is_some() => operations.push(json!({ "op": "remove", "path": path })),
            None => {}
        }
    }
    Value::Array(operations)
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
    fn annotations_change_over_what_was_read() {
        let pod = json!({ "metadata": { "uid": "u", "annotations": { "a/x": "1", "a/gone": "1" } } });
        let told =
            [("a/x", Some("2".to_owned())), ("a/gone", None), ("a/never", None), ("a/new", Some("3".to_owned()))];
        let path = |key: &str| format!("/metadata/annotations/a~1{key}");
        assert_eq!(
            patch(&pod, &told),
            json!([
                { "op": "test", "path": "/metadata/uid", "value": "u" },
                { "op": "test", "path": path("x"), "value": "1" },
                { "op": "add", "path": path("x"), "value": "2" },
                { "op": "test", "path": path("gone"), "value": "1" },
                { "op": "remove", "path": path("gone") },
                { "op": "add", "path": path("new"), "value": "3" },
            ])
        );
    }
}
