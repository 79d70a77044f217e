//! The feed of a Kubernetes cluster: its Services, EndpointSlices and pods, followed at the API server.
//!
//! In: the section `discovery.kubernetes`, the API server. Out: changes of services. Promise: nobody is told of a cluster half
//! known: the first changes come when all three collections are listed; what was told holds while the API server is away.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use outrigger_config::DiscoveryKubernetes;
use outrigger_http::Resolver;
use outrigger_kubernetes::{
    Access, AccessError, Changes, Client, Key, Options, Resource, Selection, Store, informer, resources,
};
use outrigger_telemetry::Registry;
use serde_json::Value;
use tokio::task::JoinSet;

use super::index::{Index, ObjectName};
use super::projection::{KeptPod, KeptService, KeptSlice};
use crate::feed::{Change, Feed, NextChange};

/// How often it is looked whether the API server can be followed.
const LOOK: Duration = Duration::from_secs(1);

/// What a cluster's API server tells.
pub(crate) struct ClusterFeed {
    index: Index,
    services: Changes<KeptService>,
    slices: Changes<KeptSlice>,
    pods: Changes<KeptPod>,
    waiting: VecDeque<Change>,
    complete: bool,
    /// What was told of the API server.
    problem: Option<String>,
    /// Keeps the collections; ends with us.
    _following: JoinSet<()>,
}

impl ClusterFeed {
    /// Begins to follow.
    ///
    /// # Errors
    /// When there is no way to an API server.
    pub(crate) fn start(
        section: &DiscoveryKubernetes,
        trust_domain: &str,
        resolver: Resolver,
        registry: &Registry,
    ) -> Result<Self, AccessError> {
        let access = match &section.kubeconfig {
            Some(file) => Access::find(Some(file), section.context.as_deref())?,
            None => Access::in_cluster()?,
        };
        let options = Options { timeout: section.timeout.into(), manager: "outrigger-discovery", ..Options::default() };
        let client = Client::counted(access, resolver, options, registry);
        let mut following = JoinSet::new();
        Ok(Self {
            index: Index::new(section.domain.as_str(), trust_domain),
            services: follow(&client, resources::SERVICES, KeptService::of, &mut following),
            slices: follow(&client, resources::ENDPOINT_SLICES, KeptSlice::of, &mut following),
            pods: follow(&client, resources::PODS, KeptPod::of, &mut following),
            waiting: VecDeque::new(),
            complete: false,
            problem: None,
            _following: following,
        })
    }

    /// Takes what has changed up to now, without waiting.
    fn take(&mut self) {
        while let Some(keys) = self.services.next().now_or_never() {
            each(&self.services, keys, |name, now| self.index.service(name, now));
        }
        while let Some(keys) = self.slices.next().now_or_never() {
            each(&self.slices, keys, |name, now| self.index.slice(name, now));
        }
        self.index.expire(Instant::now());
        while let Some(keys) = self.pods.next().now_or_never() {
            each(&self.pods, keys, |name, now| self.index.pod(name, now, Instant::now()));
        }
    }

    /// Waits for a change of any of them.
    async fn changed(&mut self) {
        tokio::select! {
            keys = self.services.next() => each(&self.services, keys, |name, now| self.index.service(name, now)),
            keys = self.slices.next() => each(&self.slices, keys, |name, now| self.index.slice(name, now)),
            keys = self.pods.next() => each(&self.pods, keys, |name, now| self.index.pod(name, now, Instant::now())),
            () = tokio::time::sleep(LOOK) => {}
        }
    }

    fn is_synced(&self) -> bool {
        self.services.store().is_synced() && self.slices.store().is_synced() && self.pods.store().is_synced()
    }

    /// What is new about our way to the API server.
    fn news(&mut self) -> Option<Result<Change, String>> {
        let problems = [self.services.store().problem(), self.slices.store().problem(), self.pods.store().problem()];
        let now = problems.into_iter().flatten().next();
        if now == self.problem {
            return None;
        }
        self.problem.clone_from(&now);
        match now {
            Some(problem) => Some(Err(problem)),
            // Said again, it changes nothing but that all is well.
            None => self.complete.then_some(Ok(Change::Complete)),
        }
    }
}

impl Feed for ClusterFeed {
    fn next(&mut self) -> NextChange<'_> {
        Box::pin(async {
            loop {
                if let Some(change) = self.waiting.pop_front() {
                    return Ok(change);
                }
                // Asked before the changes are taken: what is listed by now is taken below.
                let synced = self.complete || self.is_synced();
                self.take();
                if synced {
                    self.waiting.extend(self.index.changes());
                    if !std::mem::replace(&mut self.complete, true) {
                        self.waiting.push_back(Change::Complete);
                    }
                }
                if self.waiting.is_empty() {
                    if let Some(news) = self.news() {
                        return news;
                    }
                    self.changed().await;
                }
            }
        })
    }
}

fn follow<T: PartialEq + Send + Sync + 'static>(
    client: &Client,
    resource: Resource,
    keep: fn(&Value) -> Option<T>,
    following: &mut JoinSet<()>,
) -> Changes<T> {
    let (informer, store): (_, Store<T>) = informer(client.clone(), resource.all(), Selection::default(), keep);
    following.spawn(async move { informer.run().await });
    store.changes()
}

/// Looks up each object that changed.
fn each<T>(changes: &Changes<T>, keys: BTreeSet<Key>, mut take: impl FnMut(&ObjectName, Option<Arc<T>>)) {
    for key in keys {
        let now = changes.store().get(&key);
        take(&(key.namespace, key.name), now);
    }
}
