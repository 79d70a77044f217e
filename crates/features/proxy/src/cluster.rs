//! Clusters: named sets of endpoints.
//!
//! In: configured endpoints by address, and what sources tell of others. Out: the endpoints to balance over.
//! Promise: a cluster stays the same object over a reload while its endpoints are reached as
//! before, so its connections stay too, whatever becomes of the list of endpoints, their weights
//! and how they are balanced; when DNS is down the last good addresses are kept.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_config::{
    CircuitBreakers, Cluster as ClusterConfig, Direction, Endpoints, HealthCheck, LoadBalancing, OutlierDetection,
    SrvName,
};
use outrigger_http::Resolver;
use outrigger_traffic::directory::Directory;
use outrigger_traffic::endpoints::{Endpoint, EndpointSource, Listing, Update};
use outrigger_traffic::{AdaptiveLimit, RetryBudget};
use tokio::sync::{Notify, watch};

use crate::breakers::Breakers;
use crate::care::Care;
use crate::members::{Members, Peer};
use crate::origination::Origination;
use crate::resilience;
use crate::sources::{Dns, Nobody};

/// Route and cluster, as metrics and logs call them, of connections to destinations that nobody told us of.
pub(crate) const PASSTHROUGH: &str = "passthrough";

/// A named set of endpoints.
pub(crate) struct Cluster {
    /// Unique in the process, for per-worker pools.
    pub(crate) id: u64,
    pub(crate) name: String,
    /// How its endpoints are reached; what may change under its connections is not in it.
    pub(crate) config: ClusterConfig,
    /// For ordinary TLS to its endpoints.
    pub(crate) origination: Arc<Origination>,
    /// How many requests may be sent again.
    pub(crate) retry_budget: RetryBudget,
    /// How many requests may wait for it at once.
    pub(crate) adaptive: Option<AdaptiveLimit>,
    terms: ArcSwap<Terms>,
    /// The terms have names or services to resolve. Not asked of them again: that would parse thousands of addresses.
    named: AtomicBool,
    current: ArcSwap<Members>,
    /// Held while `current` is made anew.
    renewing: Mutex<()>,
    /// Pools of workers that hold this cluster.
    pub(crate) pools: AtomicUsize,
    /// Why the names could not be resolved last time, or nothing; `None` before the first try.
    resolution: watch::Sender<Option<Result<(), String>>>,
    /// There are new terms.
    changed: Arc<Notify>,
    /// Held by the one task that looks after it.
    pub(crate) care: Arc<tokio::sync::Mutex<Care>>,
    /// Wakes that task.
    pub(crate) alarm: Arc<Notify>,
    /// Something was found out that asks for a new plan.
    stale: AtomicBool,
    /// Counts changes of terms and endpoints.
    version: watch::Sender<u64>,
    /// Held by the one task that checks endpoints' health.
    pub(crate) checking: Arc<tokio::sync::Mutex<()>>,
    /// What its endpoints have at once.
    pub(crate) breakers: Breakers,
    /// Inbound listeners send to it.
    inbound: AtomicBool,
    /// It stands for one address that redirected connections wanted to go to.
    pub(crate) toward: bool,
}

/// What may change under a cluster's connections.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Terms {
    endpoints: Endpoints,
    srv: Option<SrvName>,
    /// The service that the directory knows.
    pub(crate) service: Option<String>,
    pub(crate) balancing: LoadBalancing,
    pub(crate) outliers: Option<OutlierDetection>,
    pub(crate) checks: Arc<[HealthCheck]>,
    pub(crate) breakers: CircuitBreakers,
    pub(crate) zone: Option<String>,
}

impl Terms {
    /// Takes them out of a config.
    fn split(config: &ClusterConfig, zone: Option<&str>) -> (Self, ClusterConfig) {
        let mut fixed = config.clone();
        let endpoints = std::mem::take(&mut fixed.endpoints);
        let terms = Self {
            endpoints,
            srv: fixed.srv.take(),
            service: fixed.discovery.take().map(|discovery| discovery.service.to_string()),
            balancing: std::mem::take(&mut fixed.load_balancing),
            outliers: fixed.outlier_detection.take(),
            checks: std::mem::take(&mut fixed.health_checks).into(),
            breakers: std::mem::take(&mut fixed.circuit_breakers),
            zone: zone.map(str::to_owned),
        };
        (terms, fixed)
    }

    /// The endpoints that need no resolving; `None` when there are others.
    fn literal(&self) -> Option<Vec<Endpoint>> {
        if self.srv.is_some() || self.service.is_some() {
            return None;
        }
        let mut listed = Vec::with_capacity(self.endpoints.len());
        for endpoint in self.selected() {
            let address: IpAddr = endpoint.address.host.parse().ok()?;
            listed.push(Endpoint::of(endpoint, address));
        }
        Some(listed)
    }

    /// What is listed otherwise than before, by its place, when all that is different of two lists of addresses is what is
    /// said of some of them.
    fn revised(&self, before: &Self) -> Option<Vec<(usize, &outrigger_config::Endpoint)>> {
        let is_list = |one: &Self| one.srv.is_none() && one.service.is_none() && one.balancing.subset.is_empty();
        if !is_list(self) || !is_list(before) || self.endpoints.len() != before.endpoints.len() {
            return None;
        }
        let mut revised = Vec::new();
        for (place, (new, old)) in self.endpoints.iter().zip(before.endpoints.iter()).enumerate() {
            if !new.is_same(old) {
                if new.address != old.address {
                    return None;
                }
                revised.push((place, new));
            }
        }
        Some(revised)
    }

    /// The endpoints that have the labels asked for.
    fn selected(&self) -> impl Iterator<Item = &outrigger_config::Endpoint> {
        let subset = &self.balancing.subset;
        self.endpoints.iter().filter(|one| subset.iter().all(|(name, value)| one.labels.get(name) == Some(value)))
    }
}

impl Cluster {
    fn new(terms: Terms, fixed: ClusterConfig) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let retry_budget = RetryBudget::new(&fixed.retry_constraint, Instant::now());
        let adaptive = fixed.adaptive_concurrency.as_ref().map(resilience::adaptive);
        let cluster = Self {
            id: IDS.fetch_add(1, Relaxed),
            name: fixed.name.to_string(),
            config: fixed,
            origination: Arc::default(),
            retry_budget,
            adaptive,
            terms: ArcSwap::default(),
            named: AtomicBool::new(false),
            current: ArcSwap::default(),
            renewing: Mutex::default(),
            pools: AtomicUsize::new(0),
            resolution: watch::channel(None).0,
            changed: Arc::default(),
            care: Arc::default(),
            alarm: Arc::default(),
            stale: AtomicBool::new(false),
            version: watch::channel(0).0,
            checking: Arc::default(),
            breakers: Breakers::default(),
            inbound: AtomicBool::new(false),
            toward: false,
        };
        cluster.take_on(terms);
        cluster
    }

    /// Takes on new terms, under the connections there are.
    fn take_on(&self, terms: Terms) {
        let before = self.terms.load_full();
        let is_resolved = self.resolution.borrow().is_some();
        if *before == terms && is_resolved {
            return;
        }
        if is_resolved && !self.has_names() && self.revise(&before, &terms) {
            self.terms.store(Arc::new(terms));
            self.plan();
            self.tell();
            return;
        }
        let literal = terms.literal();
        self.named.store(literal.is_none(), Relaxed);
        self.terms.store(Arc::new(terms));
        match literal {
            Some(list) => {
                self.list(list);
                self.resolution.send_if_modified(|known| known.replace(Ok(())) != Some(Ok(())));
            }
            None => self.plan(),
        }
        self.tell();
    }

    /// Takes on what is said otherwise of the endpoints that there are; false when others are listed.
    fn revise(&self, before: &Terms, terms: &Terms) -> bool {
        let _renewing = self.renewing();
        let peers = Arc::clone(&self.current.load().peers);
        // As many as are listed: none was left out, so each has the place that it has in the list.
        let Some(revised) = terms.revised(before).filter(|_| peers.len() == terms.endpoints.len()) else {
            return false;
        };
        for (place, endpoint) in revised {
            peers[place].take(Endpoint::of(endpoint, peers[place].address.ip()));
        }
        true
    }

    /// Tells of new terms.
    fn tell(&self) {
        self.changed.notify_waiters();
        self.changed.notify_one();
        self.alarm.notify_one();
        self.version.send_modify(|version| *version += 1);
    }

    /// Takes on a list of endpoints.
    fn list(&self, list: Vec<Endpoint>) -> bool {
        let _renewing = self.renewing();
        let now = Instant::now();
        let peers = self.current.load().listed(list, now);
        let changed = peers.is_some();
        let peers = peers.unwrap_or_else(|| Arc::clone(&self.current.load().peers));
        self.store(peers, now);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
        changed
    }

    /// Shares requests anew among the endpoints there are.
    pub(crate) fn plan(&self) {
        let _renewing = self.renewing();
        self.store(Arc::clone(&self.current.load().peers), Instant::now());
    }

    fn store(&self, peers: Arc<[Arc<Peer>]>, now: Instant) {
        self.current.store(Arc::new(Members::plan(peers, &self.terms.load(), now)));
    }

    /// Asks for a new plan, for something was found out.
    pub(crate) fn look_again(&self) {
        self.stale.store(true, Relaxed);
        self.alarm.notify_one();
    }

    /// Whether somebody asked for a new plan.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.swap(false, Relaxed)
    }

    /// Tells of changes of terms and endpoints.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn terms(&self) -> Arc<Terms> {
        self.terms.load_full()
    }

    fn renewing(&self) -> MutexGuard<'_, ()> {
        self.renewing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same cluster with `address` as its only endpoint.
    pub(crate) fn toward(&self, address: SocketAddr) -> Self {
        let cluster = Self::new(Terms::default(), self.config.clone());
        cluster.list(vec![Endpoint::new(address)]);
        cluster.inbound.store(self.inbound.load(Relaxed), Relaxed);
        Self { id: self.id, origination: Arc::clone(&self.origination), toward: true, ..cluster }
    }

    /// The cluster of connections that go to where they wanted to go, because nobody knows better.
    pub(crate) fn passthrough(direction: Direction) -> Arc<Self> {
        let mut config = ClusterConfig::new(PASSTHROUGH.parse().expect("a plain word is a name"), Vec::new());
        config.original_destination = true;
        // Where it goes may be far away; without us, the application would wait for minutes.
        config.connect_timeout = outrigger_config::Duration::from_secs(10);
        let cluster = Self::new(Terms::default(), config);
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
    pub(crate) fn members(&self) -> Arc<Members> {
        self.current.load_full()
    }

    /// Whether `members` are still those: one look, and no count that workers share.
    pub(crate) fn members_are(&self, members: &Arc<Members>) -> bool {
        Arc::ptr_eq(&self.current.load(), members)
    }

    /// The `Host` for requests that came without one: an endpoint's, as the config names it, or where they wanted to go.
    pub(crate) fn host(&self) -> String {
        let named = self.terms.load().endpoints.first().map(|endpoint| endpoint.address.to_string());
        let known = || self.current.load().peers.first().map(|peer| peer.address.to_string());
        named.or_else(known).unwrap_or_default()
    }

    /// Waits for the first try to resolve all names; says how the last one went.
    pub(crate) async fn resolved(&self) -> Result<(), String> {
        let mut resolution = self.resolution.subscribe();
        match resolution.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// How the last try to resolve went; `None` before the first. It changes with the addresses, too.
    pub(crate) fn resolution(&self) -> watch::Receiver<Option<Result<(), String>>> {
        self.resolution.subscribe()
    }

    /// Whether there are names to resolve.
    pub(crate) fn has_names(&self) -> bool {
        self.named.load(Relaxed)
    }

    /// Whether more is to be done for it, as time goes on, than a request does.
    pub(crate) fn needs_care(&self) -> bool {
        let terms = self.terms.load();
        terms.balancing.slow_start.is_some() || terms.outliers.is_some() || !terms.checks.is_empty()
    }

    /// Keeps the addresses of names and services fresh until dropped, or until there are none any more. Cancel-safe.
    pub(crate) async fn keep_resolved(cluster: Weak<Self>, resolver: Resolver, directory: Option<Arc<dyn Directory>>) {
        loop {
            let Some(this) = cluster.upgrade().filter(|this| this.has_names()) else { return };
            let (terms, changed) = (this.terms.load_full(), Arc::clone(&this.changed));
            let mut source: Box<dyn EndpointSource> = match (&terms.service, &directory) {
                (Some(service), Some(directory)) => directory.follow(service),
                (Some(_), None) => Box::new(Nobody::default()),
                (None, _) => {
                    let hosts = terms.selected().cloned().collect();
                    Box::new(Dns::new(&this.name, hosts, terms.srv.clone(), &resolver))
                }
            };
            drop(this);
            Self::follow(&cluster, &mut *source, &terms, &changed).await;
        }
    }

    /// Takes on what a source tells, until the cluster is gone or has other terms. Cancel-safe.
    async fn follow(cluster: &Weak<Self>, source: &mut dyn EndpointSource, terms: &Arc<Terms>, changed: &Notify) {
        let mut listing = Listing::default();
        loop {
            let update = tokio::select! {
                update = source.next() => update,
                () = changed.notified() => Ok(Update::Changed { set: Vec::new(), removed: Vec::new() }),
            };
            let Some(this) = cluster.upgrade().filter(|this| Arc::ptr_eq(terms, &this.terms.load())) else { return };
            match update {
                Ok(Update::Changed { set, removed }) if set.is_empty() && removed.is_empty() => {}
                Ok(update) => this.told(&mut listing, update, terms),
                Err(error) => this.untold(error),
            }
        }
    }

    /// A source told of endpoints.
    fn told(&self, listing: &mut Listing, update: Update, terms: &Terms) {
        let beyond = listing.take(update);
        let subset = &terms.balancing.subset;
        let selected = |one: &&Endpoint| subset.iter().all(|(name, value)| one.labels.get(name) == Some(value));
        let list: Vec<Endpoint> = listing.endpoints().iter().filter(selected).cloned().collect();
        let endpoints = list.len();
        if self.list(list) {
            if beyond > 0 {
                tracing::warn!(component = "proxy", cluster = self.name, beyond, "more endpoints than are taken");
            }
            tracing::info!(component = "proxy", cluster = self.name, endpoints, "endpoints resolved");
            self.resolution.send_modify(|known| *known = Some(Ok(())));
            self.alarm.notify_one();
        }
        self.resolution.send_if_modified(|known| known.replace(Ok(())) != Some(Ok(())));
    }

    /// A source failed, so what it told before holds on.
    fn untold(&self, error: String) {
        let known = self.members().peers.len();
        tracing::warn!(component = "proxy", cluster = self.name, %error, known, "cannot resolve endpoints");
        self.resolution.send_if_modified(|known| {
            let changed = *known != Some(Err(error.clone()));
            *known = Some(Err(error));
            changed
        });
    }
}

/// All clusters that are in use, by both directions.
#[derive(Default)]
pub(crate) struct Clusters(Mutex<Known>);

#[derive(Default)]
struct Known {
    clusters: HashMap<String, Weak<Cluster>>,
    zone: Option<String>,
}

impl Clusters {
    /// Says where we are, for clusters obtained from now on.
    pub(crate) fn set_zone(&self, zone: Option<&str>) {
        self.known().zone = zone.map(str::to_owned);
    }

    /// The cluster of a config: the one in use when its endpoints are reached as before, a new one otherwise.
    pub(crate) fn obtain(&self, config: &ClusterConfig) -> Arc<Cluster> {
        let mut known = self.known();
        let (terms, fixed) = Terms::split(config, known.zone.as_deref());
        if let Some(cluster) = known.clusters.get(config.name.as_str()).and_then(Weak::upgrade)
            && cluster.config == fixed
        {
            cluster.take_on(terms);
            return cluster;
        }
        let cluster = Arc::new(Cluster::new(terms, fixed));
        known.clusters.retain(|_, cluster| cluster.strong_count() > 0);
        known.clusters.insert(config.name.to_string(), Arc::downgrade(&cluster));
        cluster
    }

    /// The cluster of this name that is in use.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Cluster>> {
        self.known().clusters.get(name).and_then(Weak::upgrade)
    }

    /// Clusters that limit requests at once.
    pub(crate) fn limited(&self) -> Vec<Arc<Cluster>> {
        let known = self.known();
        known.clusters.values().filter_map(Weak::upgrade).filter(|cluster| cluster.adaptive.is_some()).collect()
    }

    /// All that are in use.
    pub(crate) fn all(&self) -> Vec<Arc<Cluster>> {
        self.known().clusters.values().filter_map(Weak::upgrade).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use outrigger_traffic::endpoints::NextUpdate;
    use proptest::strategy::Strategy;

    use super::*;

    /// Tells one thing after the other, then nothing.
    struct Scripted(VecDeque<Result<Update, String>>);

    impl EndpointSource for Scripted {
        fn next(&mut self) -> NextUpdate<'_> {
            Box::pin(async {
                match self.0.pop_front() {
                    Some(update) => update,
                    None => std::future::pending().await,
                }
            })
        }
    }

    fn told(cluster: &Cluster) -> Vec<(u16, u32, bool)> {
        let members = cluster.members();
        members.peers.iter().map(|peer| (peer.address.port(), peer.weight(), peer.is_usable())).collect()
    }

    proptest::proptest! {
        #[test]
        fn a_config_taken_on_is_as_one_begun_with(lists in proptest::collection::vec(lists(), 1..5)) {
            let (clusters, mut kept) = (Clusters::default(), Vec::new());
            for (endpoints, subset) in lists {
                let mut config = ClusterConfig::new("listed".parse().unwrap(), vec![]);
                config.endpoints = endpoints.into_iter().collect();
                config.load_balancing.subset = subset.then(|| ("a".to_owned(), "b".to_owned())).into_iter().collect();
                kept.push(clusters.obtain(&config));
                let fresh = Clusters::default().obtain(&config);
                let all = |cluster: &Cluster| -> Vec<_> {
                    let members = cluster.members();
                    members.peers.iter().map(|peer| (peer.address, peer.weight(), peer.priority(), peer.zone())).collect()
                };
                let kept = &kept[kept.len() - 1];
                proptest::prop_assert_eq!(all(kept), all(&fresh));
                proptest::prop_assert_eq!(kept.has_names(), fresh.has_names());
            }
        }
    }

    /// Few addresses, so that lists have many in common; and whether a subset is asked for.
    fn lists() -> impl Strategy<Value = (Vec<outrigger_config::Endpoint>, bool)> {
        let endpoint = (1..5_u16, 1..3_u32, 0..2_u32, proptest::option::of("[ab]"), proptest::bool::ANY);
        let endpoint = endpoint.prop_map(|(port, weight, priority, zone, labelled)| outrigger_config::Endpoint {
            weight,
            priority,
            zone: zone.map(|zone| zone.parse().unwrap()),
            labels: labelled.then(|| ("a".to_owned(), "b".to_owned())).into_iter().collect(),
            ..format!("127.0.0.1:{port}").parse::<outrigger_config::HostPort>().unwrap().into()
        });
        (proptest::collection::vec(endpoint, 0..5), proptest::bool::weighted(0.2))
    }

    #[tokio::test]
    async fn what_a_source_tells_is_taken_on_and_holds_over_its_failures() {
        let endpoint = |port: u16| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)));
        let v2 = |port: u16| Endpoint { labels: [("version".to_owned(), "2".to_owned())].into(), ..endpoint(port) };
        let changed = |set: Vec<Endpoint>, removed: Vec<SocketAddr>| Ok(Update::Changed { set, removed });
        for (name, subset, script, expected) in [
            ("a list", "{}", vec![Ok(Update::All(vec![endpoint(1), endpoint(2)]))], vec![(1, 1, true), (2, 1, true)]),
            (
                "a change",
                "{}",
                vec![
                    Ok(Update::All(vec![endpoint(1), endpoint(2)])),
                    changed(vec![Endpoint { weight: 5, ..endpoint(2) }, endpoint(3)], vec![endpoint(1).address]),
                ],
                vec![(2, 5, true), (3, 1, true)],
            ),
            (
                "one that is ill, and well again",
                "{}",
                vec![
                    Ok(Update::All(vec![Endpoint { healthy: false, ..endpoint(1) }, endpoint(2)])),
                    changed(vec![endpoint(1), Endpoint { healthy: false, ..endpoint(2) }], vec![]),
                ],
                vec![(1, 1, true), (2, 1, false)],
            ),
            (
                "a failure",
                "{}",
                vec![Ok(Update::All(vec![endpoint(1)])), Err("it is down".to_owned())],
                vec![(1, 1, true)],
            ),
            ("a subset", "{\"version\":\"2\"}", vec![Ok(Update::All(vec![endpoint(1), v2(2)]))], vec![(2, 1, true)]),
        ] {
            let failed = script.iter().any(Result::is_err);
            let mut config = ClusterConfig::new("told".parse().unwrap(), vec!["name.test:1".parse().unwrap()]);
            config.load_balancing.subset = serde_json::from_str(subset).unwrap();
            let cluster = Clusters::default().obtain(&config);
            let (terms, changed) = (cluster.terms.load_full(), Arc::clone(&cluster.changed));
            let (weak, mut source) = (Arc::downgrade(&cluster), Scripted(script.into()));
            let following = Cluster::follow(&weak, &mut source, &terms, &changed);
            assert!(tokio::time::timeout(std::time::Duration::from_millis(50), following).await.is_err(), "{name}");
            assert_eq!(told(&cluster), expected, "{name}");
            assert_eq!(cluster.resolution().borrow().clone().unwrap().is_err(), failed, "{name}");
        }
    }
}
