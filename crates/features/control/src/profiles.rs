//! Profiles that are objects of the cluster, kept at hand for the webhook and for who tells running sidecars.
//!
//! In: the API server's profiles of both kinds. Out: those that may mean a pod of a namespace. Promise: nobody is answered by half
//! of what there is: until all are listed a review waits, and is then turned away; each is read once per change, not per pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use outrigger_kubernetes::resources::{CLUSTER_SIDECAR_PROFILES, SIDECAR_PROFILES};
use outrigger_kubernetes::{Client, Informer, Key, Selection, Store, informer};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::delivery::Scope;
use crate::injector::{ParsedProfile, Profiles};

/// A review has to be answered soon.
const PATIENCE: Duration = Duration::from_millis(1500);
const NOT_LISTED: &str = "the profiles (SidecarProfile, ClusterSidecarProfile) are not listed yet";

/// A profile, as it is kept.
struct Kept {
    uid: String,
    /// While it is the same, so is the spec.
    generation: i64,
    parsed: ParsedProfile,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        (&self.uid, self.generation) == (&other.uid, other.generation)
    }
}

/// A profile, and which it is.
#[derive(Clone)]
pub(crate) struct Entry {
    /// Whether it is a cluster's, and its name.
    pub(crate) key: (bool, Key),
    pub(crate) generation: i64,
    pub(crate) parsed: ParsedProfile,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.parsed, &other.parsed)
    }
}

/// What there is, by where it counts.
#[derive(Default)]
pub(crate) struct Snapshot {
    everywhere: Vec<Entry>,
    by_namespace: BTreeMap<String, Vec<Entry>>,
}

impl Snapshot {
    /// Those that may mean a pod of a namespace.
    pub(crate) fn of(&self, namespace: &str) -> impl Iterator<Item = &Entry> {
        self.everywhere.iter().chain(self.by_namespace.get(namespace).into_iter().flatten())
    }

    /// All of them.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.everywhere.iter().chain(self.by_namespace.values().flatten())
    }

    /// Which pods the way from this one to the next concerns.
    pub(crate) fn changed(&self, next: &Self) -> Scope {
        if self.everywhere != next.everywhere {
            return Scope::All;
        }
        let names: BTreeSet<&String> = self.by_namespace.keys().chain(next.by_namespace.keys()).collect();
        let differ = |name: &&String| self.by_namespace.get(*name) != next.by_namespace.get(*name);
        Scope::Namespaces(names.into_iter().filter(differ).cloned().collect())
    }
}

/// What is known of profiles. Cheap to clone.
#[derive(Clone)]
pub(crate) struct KnownProfiles {
    /// `None` where nobody looks for any.
    known: Option<Known>,
}

#[derive(Clone)]
struct Known {
    cluster: Store<Kept>,
    namespaced: Store<Kept>,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
}

/// Keeps them, for as long as it is run.
pub(crate) struct FollowProfiles {
    informers: [Informer<Kept>; 2],
    known: Known,
    sender: watch::Sender<Option<Arc<Snapshot>>>,
}

impl KnownProfiles {
    /// None at all.
    pub(crate) fn off() -> Self {
        Self { known: None }
    }

    /// And what has to be run for them to be known.
    pub(crate) fn new(client: &Client, profiles: &Arc<dyn Profiles>) -> (Self, FollowProfiles) {
        let keep = |is_cluster: bool| {
            let profiles = Arc::clone(profiles);
            move |object: &Value| {
                let metadata = &object["metadata"];
                let uid = metadata["uid"].as_str()?.to_owned();
                let generation = metadata["generation"].as_i64().unwrap_or_default();
                Some(Kept { uid, generation, parsed: profiles.parse(is_cluster, object) })
            }
        };
        let all = Selection::default;
        let (of_cluster, cluster) = informer(client.clone(), CLUSTER_SIDECAR_PROFILES.all(), all(), keep(true));
        let (of_namespaces, namespaced) = informer(client.clone(), SIDECAR_PROFILES.all(), all(), keep(false));
        let (sender, snapshot) = watch::channel(None);
        let known = Known { cluster, namespaced, snapshot };
        let follow = FollowProfiles { informers: [of_cluster, of_namespaces], known: known.clone(), sender };
        (Self { known: Some(known) }, follow)
    }

    /// Those that may mean a pod of a namespace.
    ///
    /// # Errors
    /// Why they are not known.
    pub(crate) async fn of(&self, namespace: &str) -> Result<Vec<ParsedProfile>, String> {
        if self.known.is_none() {
            return Ok(Vec::new());
        }
        let Ok(now) = timeout(PATIENCE, self.snapshot()).await else {
            return Err(self.problem().unwrap_or_else(|| NOT_LISTED.to_owned()));
        };
        Ok(now.of(namespace).map(|entry| Arc::clone(&entry.parsed)).collect())
    }

    /// All of them, once they are listed. Cancel-safe.
    pub(crate) async fn snapshot(&self) -> Arc<Snapshot> {
        if let Some(known) = &self.known {
            let mut snapshot = known.snapshot.clone();
            if let Ok(Some(now)) = snapshot.wait_for(Option::is_some).await.map(|now| now.clone()) {
                return now;
            }
        }
        std::future::pending().await
    }

    /// Waits until others hold than a moment ago. Cancel-safe.
    pub(crate) async fn changed(&self) {
        let Some(known) = &self.known else { return std::future::pending().await };
        let mut snapshot = known.snapshot.clone();
        snapshot.mark_unchanged();
        if snapshot.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why what is known may be older than it should be, or is not known at all.
    pub(crate) fn problem(&self) -> Option<String> {
        let known = self.known.as_ref()?;
        known.cluster.problem().or_else(|| known.namespaced.problem())
    }

    /// What reviews wait for, if anything.
    pub(crate) fn missing(&self) -> Option<String> {
        let waits = self.known.as_ref().is_some_and(|known| known.snapshot.borrow().is_none());
        waits.then(|| self.problem().unwrap_or_else(|| NOT_LISTED.to_owned()))
    }
}

impl FollowProfiles {
    /// Runs until it is dropped. Cancel-safe.
    pub(crate) async fn run(self) {
        let [of_cluster, of_namespaces] = &self.informers;
        tokio::join!(of_cluster.run(), of_namespaces.run(), self.gather());
    }

    async fn gather(&self) {
        let Known { cluster, namespaced, .. } = &self.known;
        tokio::join!(cluster.synced(), namespaced.synced());
        let (mut of_cluster, mut of_namespaces) = (cluster.changes(), namespaced.changes());
        loop {
            let entry = |is_cluster: bool, key: Key, kept: &Kept| Entry {
                key: (is_cluster, key),
                generation: kept.generation,
                parsed: Arc::clone(&kept.parsed),
            };
            let mut snapshot = Snapshot::default();
            snapshot.everywhere.extend(cluster.all().into_iter().map(|(key, kept)| entry(true, key, &kept)));
            for (key, kept) in namespaced.all() {
                snapshot.by_namespace.entry(key.namespace.clone()).or_default().push(entry(false, key, &kept));
            }
            self.sender.send_replace(Some(Arc::new(snapshot)));
            tokio::select! {
                _ = of_cluster.next() => {}
                _ = of_namespaces.next() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(is_cluster: bool, namespace: &str, parsed: &ParsedProfile) -> Entry {
        Entry { key: (is_cluster, Key::new(namespace, "a")), generation: 1, parsed: Arc::clone(parsed) }
    }

    #[test]
    fn a_change_concerns_the_pods_it_may_mean() {
        let (one, two): (ParsedProfile, ParsedProfile) = (Arc::new(1), Arc::new(2));
        let of = |everywhere: &ParsedProfile, shop: &ParsedProfile| Snapshot {
            everywhere: vec![entry(true, "", everywhere)],
            by_namespace: [("shop".to_owned(), vec![entry(false, "shop", shop)])].into(),
        };
        let before = of(&one, &one);
        let named = |names: &[&str]| Scope::Namespaces(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(before.changed(&of(&one, &one)), named(&[]));
        assert_eq!(before.changed(&of(&one, &two)), named(&["shop"]));
        assert_eq!(before.changed(&of(&two, &one)), Scope::All);
        let gone = Snapshot { everywhere: vec![entry(true, "", &one)], by_namespace: BTreeMap::new() };
        assert_eq!(before.changed(&gone), named(&["shop"]), "one that has gone");
        assert_eq!((before.of("shop").count(), before.of("other").count(), before.entries().count()), (2, 1, 2));
    }
}
