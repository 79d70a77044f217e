//! Brings the trust bundle to pods: a ConfigMap in each namespace that wants it.
//!
//! In: namespaces, pods that ask for a sidecar by themselves, the ConfigMaps that are there, the bundle. Out: ConfigMaps written and
//! removed. Promise: a namespace has the bundle of now moments after it asked for it, whoever changes or removes it; it is taken
//! away only where nobody asks for it and no pod with a sidecar is left, for the kubelet would not start such a pod's
//! containers again; ConfigMaps of that name that are not ours are not removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_kubernetes::names::{APPLICATION, INJECT_LABEL, STATUS_ANNOTATION, SYSTEM_NAMESPACES};
use outrigger_kubernetes::resources::{CONFIG_MAPS, NAMESPACES, PODS};
use outrigger_kubernetes::{ApiError, Client, Duty, Leader, Patch, Selection, Store, Write, informer};
use outrigger_runtime::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::own::Serving;

/// The bundle is compared so often; what the API server tells is acted on at once.
const LOOK: Duration = Duration::from_secs(2);
/// Whether sidecars are left where nobody asks for the bundle any more is looked at so often.
const LEFT: Duration = Duration::from_secs(60);
/// The key of the ConfigMap.
const KEY: &str = "ca.crt";
/// Who made it.
const MADE_BY: &str = "app.kubernetes.io/managed-by";

/// The duty.
pub(crate) struct TrustBundles {
    serving: watch::Receiver<Option<Serving>>,
    problem: Mutex<Option<String>>,
}

impl TrustBundles {
    pub(crate) fn new(serving: watch::Receiver<Option<Serving>>) -> Self {
        Self { serving, problem: Mutex::default() }
    }

    /// The ConfigMap's name and what belongs into it, once that is known.
    async fn wanted(&self) -> Option<(String, Arc<str>)> {
        let serving = self.serving.borrow().clone()?;
        let name = serving.trust_bundles.as_ref()?.config_map.to_string();
        let signing = serving.service.source.signing(SystemTime::now()).await.ok()?;
        Some((name, signing.bundle_pem))
    }

    async fn keep(&self, leader: &Leader, name: &str) {
        let client = &leader.client;
        let (namespaces, asking) = informer(client.clone(), NAMESPACES.all(), Selection::default(), opted_in);
        let by_label = Selection::labels(format!("{INJECT_LABEL} in (enabled,true)"));
        let (pods, single) = informer(client.clone(), PODS.all(), by_label, |_| Some(()));
        let of_name = Selection::fields(format!("metadata.name={name}"));
        let (maps, there) = informer(client.clone(), CONFIG_MAPS.all(), of_name, Found::of);
        let work = async {
            tokio::join!(asking.synced(), single.synced(), there.synced());
            let mut state =
                Keeping { leader, name, asking: &asking, single: &single, there: &there, left: BTreeMap::new() };
            let (mut asks, mut singles, mut found) = (asking.changes(), single.changes(), there.changes());
            loop {
                // A namespace's deletion, or another name for the ConfigMap, begins anew.
                let problem = match self.wanted().await {
                    Some((now, bundle)) if now == name => state.step(&bundle).await,
                    Some(_) => return,
                    None => None,
                };
                let stale = || asking.problem().or_else(|| single.problem()).or_else(|| there.problem());
                *self.problem.lock() = problem.or_else(stale);
                tokio::select! {
                    _ = asks.next() => {}
                    _ = singles.next() => {}
                    _ = found.next() => {}
                    () = sleep(LOOK) => {}
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = namespaces.run() => {}
            () = pods.run() => {}
            () = maps.run() => {}
        }
    }
}

impl Duty for TrustBundles {
    fn name(&self) -> &'static str {
        "trust bundles"
    }

    fn run<'a>(&'a self, leader: &'a Leader) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            loop {
                if let Some((name, _)) = self.wanted().await {
                    self.keep(leader, &name).await;
                }
                *self.problem.lock() = None;
                sleep(LOOK).await;
            }
        })
    }

    fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }
}

/// A ConfigMap that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    bundle: String,
    ours: bool,
}

impl Found {
    fn of(object: &Value) -> Option<Self> {
        let bundle = object["data"][KEY].as_str().unwrap_or_default().to_owned();
        Some(Self { bundle, ours: object["metadata"]["labels"][MADE_BY] == APPLICATION })
    }
}

/// Whether a namespace is to have the bundle. One that is about to go takes nothing new.
fn opted_in(namespace: &Value) -> Option<()> {
    let metadata = &namespace["metadata"];
    let word = metadata["labels"][INJECT_LABEL].as_str();
    let system = metadata["name"].as_str().is_some_and(|name| SYSTEM_NAMESPACES.contains(&name));
    (matches!(word, Some("enabled" | "true")) && !system && metadata["deletionTimestamp"].is_null()).then_some(())
}

/// What is to be done in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Write,
    /// If no pod with a sidecar is left there.
    Remove,
}

/// What is due, by namespace.
fn due(asking: &BTreeSet<String>, there: &BTreeMap<String, Arc<Found>>, bundle: &str) -> BTreeMap<String, Step> {
    let right = |found: &Found| found.ours && found.bundle == bundle;
    let mut steps = BTreeMap::new();
    for name in asking.iter().filter(|name| !there.get(*name).is_some_and(|found| right(found))) {
        steps.insert(name.clone(), Step::Write);
    }
    for (name, _) in there.iter().filter(|(name, found)| found.ours && !asking.contains(*name)) {
        steps.insert(name.clone(), Step::Remove);
    }
    steps
}

struct Keeping<'a> {
    leader: &'a Leader,
    name: &'a str,
    asking: &'a Store<()>,
    single: &'a Store<()>,
    there: &'a Store<Found>,
    /// Where sidecars were left, and when that was looked at.
    left: BTreeMap<String, Instant>,
}

impl Keeping<'_> {
    /// Does what is due; gives what is wrong.
    async fn step(&mut self, bundle: &str) -> Option<String> {
        let mut asking: BTreeSet<String> = self.asking.all().into_iter().map(|(key, _)| key.name).collect();
        asking.extend(self.single.all().into_iter().map(|(key, _)| key.namespace));
        let there: BTreeMap<_, _> = self.there.all().into_iter().map(|(key, found)| (key.namespace, found)).collect();
        let steps = due(&asking, &there, bundle);
        self.left.retain(|name, _| steps.contains_key(name));
        let mut problem = None;
        for (namespace, step) in steps {
            if !self.leader.leadership.leads() {
                break;
            }
            let done = match step {
                Step::Write => self.write(&namespace, bundle).await,
                Step::Remove => self.remove(&namespace, &there, bundle).await,
            };
            match done {
                // It has gone, or is about to: nobody needs it there.
                Err(error) if error.is_not_found() || is_ending(&error) => {}
                Err(error) => problem = Some(error.to_string()),
                Ok(()) => {}
            }
        }
        problem
    }

    /// By server-side apply: it takes the right to make ConfigMaps of this name alone, where `create` would take that for all.
    async fn write(&self, namespace: &str, bundle: &str) -> Result<(), ApiError> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self.name,
                "namespace": namespace,
                "labels": { MADE_BY: APPLICATION, "app.kubernetes.io/name": APPLICATION },
            },
            "data": { KEY: bundle },
        });
        let path = CONFIG_MAPS.named(namespace, self.name);
        self.client().patch(path, Patch::ForceApply, &map, Write::Real).await?;
        tracing::info!(component = "authority", namespace, config_map = self.name, "trust bundle written");
        Ok(())
    }

    /// Removes it, or keeps it right for the sidecars that are left.
    async fn remove(
        &mut self,
        namespace: &str,
        there: &BTreeMap<String, Arc<Found>>,
        bundle: &str,
    ) -> Result<(), ApiError> {
        if self.left.get(namespace).is_some_and(|looked| looked.elapsed() < LEFT) {
            return match there.get(namespace) {
                Some(found) if found.bundle != bundle => self.write(namespace, bundle).await,
                _ => Ok(()),
            };
        }
        let pods = self.client().list(PODS.within(namespace), &Selection::default()).await?;
        if pods.iter().any(|pod| pod["metadata"]["annotations"][STATUS_ANNOTATION].is_string()) {
            self.left.insert(namespace.to_owned(), Instant::now());
            return Ok(());
        }
        self.client().delete(CONFIG_MAPS.named(namespace, self.name), None, Write::Real).await?;
        tracing::info!(component = "authority", namespace, config_map = self.name, "trust bundle removed");
        Ok(())
    }

    fn client(&self) -> &Client {
        &self.leader.client
    }
}

/// Whether the namespace is being removed, so that nothing new may be made in it.
fn is_ending(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { status, .. } if status.message.contains("because it is being terminated"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn namespaces_that_ask() {
        let namespace = |name: &str, word: Option<&str>, ends: bool| {
            let mut namespace = json!({ "metadata": { "name": name, "labels": {} } });
            if let Some(word) = word {
                namespace["metadata"]["labels"][INJECT_LABEL] = json!(word);
            }
            if ends {
                namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            opted_in(&namespace).is_some()
        };
        assert!(namespace("shop", Some("enabled"), false) && namespace("shop", Some("true"), false));
        assert!(!namespace("shop", Some("disabled"), false) && !namespace("shop", None, false));
        assert!(!namespace("shop", Some("enabled"), true), "it is about to go");
        assert!(!namespace("kube-system", Some("enabled"), false));
    }

    fn names() -> impl Strategy<Value = BTreeSet<String>> {
        proptest::collection::btree_set("[a-f]", 0..6)
    }

    proptest! {
        /// Done once, all is right, and what is not ours is where it was.
        #[test]
        fn what_is_due_makes_it_right(
            asking in names(),
            there in proptest::collection::btree_map("[a-f]", ("[xy]", any::<bool>()), 0..6),
        ) {
            let found = |(bundle, ours): (String, bool)| Arc::new(Found { bundle, ours });
            let before: BTreeMap<String, Arc<Found>> = there.into_iter().map(|(name, one)| (name, found(one))).collect();
            let mut after = before.clone();
            for (name, step) in due(&asking, &before, "x") {
                match step {
                    Step::Write => drop(after.insert(name, found(("x".to_owned(), true)))),
                    Step::Remove => drop(after.remove(&name)),
                }
            }
            prop_assert!(due(&asking, &after, "x").is_empty());
            for name in &asking {
                prop_assert_eq!(&after[name].bundle, "x");
            }
            for (name, found) in before.iter().filter(|(name, found)| !found.ours && !asking.contains(*name)) {
                prop_assert_eq!(after.get(name), Some(found));
            }
        }
    }
}
