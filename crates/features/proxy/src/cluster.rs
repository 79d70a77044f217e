//! Clusters: named sets of endpoints.
//!
//! In: configured endpoints, by address or by name. Out: the addresses to balance over.
//! Promise: a cluster whose config did not change over a reload stays the same object, so
//! its connections stay too; when DNS is down the last good addresses are kept.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_config::{Cluster as ClusterConfig, Direction};
use outrigger_http::Resolver;
use outrigger_runtime::Backoff;
use outrigger_traffic::RetryBudget;
use tokio::sync::watch;

use crate::origination::Origination;

/// A name whose record lives for ever is still asked for again.
const LONGEST_TTL: Duration = Duration::from_secs(300);
const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// Route and cluster, as metrics and logs call them, of connections to destinations that nobody told us of.
pub(crate) const PASSTHROUGH: &str = "passthrough";

/// A named set of endpoints.
pub(crate) struct Cluster {
    /// Unique in the process, for per-worker pools.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) config: ClusterConfig,
    /// For ordinary TLS to its endpoints.
    pub(crate) origination: Arc<Origination>,
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// How many requests may be sent again.
    pub(crate) retry_budget: RetryBudget,
    /// Pools of workers that hold this cluster.
    pub(crate) pools: AtomicUsize,
    /// Why the names could not be resolved last time, or nothing; `None` before the first try.
    resolution: watch::Sender<Option<Result<(), String>>>,
    /// Inbound listeners send to it.
    inbound: AtomicBool,
}

impl Cluster {
    fn new(config: &ClusterConfig) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let cluster = Self {
            id: IDS.fetch_add(1, Relaxed),
            name: config.name.to_string(),
            config: config.clone(),
            origination: Arc::default(),
            addresses: ArcSwap::default(),
            retry_budget: RetryBudget::new(&config.retry_constraint, Instant::now()),
            pools: AtomicUsize::new(0),
            resolution: watch::channel(None).0,
            inbound: AtomicBool::new(false),
        };
        let literal: Option<Vec<SocketAddr>> = config
            .endpoints
            .iter()
            .map(|endpoint| Some(SocketAddr::new(endpoint.host.parse::<IpAddr>().ok()?, endpoint.port)))
            .collect();
        if let Some(addresses) = literal {
            cluster.addresses.store(Arc::new(addresses));
            cluster.resolution.send_replace(Some(Ok(())));
        }
        cluster
    }

    /// The same cluster with `address` as its only endpoint.
    pub(crate) fn toward(&self, address: SocketAddr) -> Self {
        let cluster = Self::new(&self.config);
        cluster.addresses.store(Arc::new(vec![address]));
        cluster.inbound.store(self.inbound.load(Relaxed), Relaxed);
        Self { id: self.id, origination: Arc::clone(&self.origination), ..cluster }
    }

    /// The cluster of connections that go to where they wanted to go, because nobody knows better.
    pub(crate) fn passthrough(direction: Direction) -> Arc<Self> {
        let mut config = ClusterConfig::new(PASSTHROUGH.parse().expect("a plain word is a name"), Vec::new());
        config.original_destination = true;
        // Where it goes may be far away; without us, the application would wait for minutes.
        config.connect_timeout = outrigger_config::Duration::from_secs(10);
        let cluster = Self::new(&config);
        cluster.inbound.store(direction == Direction::Inbound, Relaxed);
        Arc::new(cluster)
    }

    /// Inbound listeners send to it, too.
    pub(crate) fn take_inbound(&self) {
        self.inbound.store(true, Relaxed);
    }

    /// Whether it is the application itself, as far as can be told: what inbound listeners send plain text to.
    pub(crate) fn is_beside_us(&self) -> bool {
        self.inbound.load(Relaxed) && self.config.tls.is_none()
    }

    /// Where requests may go now.
    pub(crate) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// Whether `addresses` are still those: one look, and no count that workers share.
    pub(crate) fn addresses_are(&self, addresses: &Arc<Vec<SocketAddr>>) -> bool {
        Arc::ptr_eq(&self.addresses.load(), addresses)
    }

    /// The `Host` for requests that came without one: an endpoint's, as the config names it, or where they wanted to go.
    pub(crate) fn host(&self) -> String {
        let named = self.config.endpoints.first().map(ToString::to_string);
        named.or_else(|| self.addresses.load().first().map(ToString::to_string)).unwrap_or_default()
    }

    /// Waits for the first try to resolve all names; says how the last one went.
    pub(crate) async fn resolved(&self) -> Result<(), String> {
        let mut resolution = self.resolution.subscribe();
        match resolution.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// How the last try to resolve went; `None` before the first.
    pub(crate) fn resolution(&self) -> watch::Receiver<Option<Result<(), String>>> {
        self.resolution.subscribe()
    }

    /// Whether there are names to resolve.
    pub(crate) fn has_names(&self) -> bool {
        self.config.endpoints.iter().any(|endpoint| endpoint.host.parse::<IpAddr>().is_err())
    }

    /// Keeps the addresses of names fresh until dropped. Cancel-safe.
    pub(crate) async fn keep_resolved(cluster: Weak<Self>, resolver: Resolver) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            let Some(this) = cluster.upgrade() else { return };
            let wait = match this.resolve(&resolver).await {
                Ok(valid_until) => {
                    backoff.reset();
                    this.resolution.send_if_modified(|known| known.replace(Ok(())) != Some(Ok(())));
                    valid_until.saturating_duration_since(Instant::now()).clamp(SHORTEST_TTL, LONGEST_TTL)
                }
                Err(error) => {
                    let known = this.addresses().len();
                    tracing::warn!(component = "proxy", cluster = this.name, %error, known, "cannot resolve endpoints");
                    this.resolution.send_if_modified(|known| {
                        let changed = *known != Some(Err(error.clone()));
                        *known = Some(Err(error));
                        changed
                    });
                    backoff.next()
                }
            };
            drop(this);
            tokio::time::sleep(wait).await;
        }
    }

    async fn resolve(&self, resolver: &Resolver) -> Result<Instant, String> {
        let mut addresses = Vec::new();
        let mut valid_until = Instant::now() + LONGEST_TTL;
        for endpoint in &self.config.endpoints {
            let resolved = resolver.resolve(&endpoint.host).await.map_err(|error| error.to_string())?;
            valid_until = valid_until.min(resolved.valid_until);
            addresses.extend(resolved.addresses.iter().map(|address| SocketAddr::new(*address, endpoint.port)));
        }
        addresses.sort_unstable();
        addresses.dedup();
        // Unchanged addresses keep their object, so that workers see at a glance that nothing changed.
        if **self.addresses.load() != addresses {
            tracing::info!(component = "proxy", cluster = self.name, endpoints = addresses.len(), "endpoints resolved");
            self.addresses.store(Arc::new(addresses));
        }
        Ok(valid_until)
    }
}

/// All clusters that are in use, by both directions.
#[derive(Default)]
pub(crate) struct Clusters(Mutex<HashMap<String, Weak<Cluster>>>);

impl Clusters {
    /// The cluster of a config: the one in use when nothing changed, a new one otherwise.
    pub(crate) fn obtain(&self, config: &ClusterConfig) -> Arc<Cluster> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = known.get(config.name.as_str()).and_then(Weak::upgrade)
            && cluster.config == *config
        {
            return cluster;
        }
        let cluster = Arc::new(Cluster::new(config));
        known.retain(|_, cluster| cluster.strong_count() > 0);
        known.insert(config.name.to_string(), Arc::downgrade(&cluster));
        cluster
    }
}
