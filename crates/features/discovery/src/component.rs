//! The component `discovery-server`: gathers what feeds tell, and serves it.
//!
//! In: section `discovery`, feeds, our identity. Out: the port where proxies ask. Promise: a change after a calm is told at
//! once, a flood of them in lots; it is ready when all feeds have told what there is, and serves on while they fail; a
//! reload changes services under the streams that are open.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use outrigger_config::{Config, Discovery, DiscoveryKubernetes, TrustDomain};
use outrigger_http::{GrpcServerOptions, Resolver, TlsSource, serve_grpc};
use outrigger_identity::{Identities, PeerPolicy};
use outrigger_runtime::{BoxError, BoxFuture, Component, Context, StopPhase};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::catalogue::{Catalogue, Kind};
use crate::feed::{Change, Feed, Service};
use crate::kubernetes::ClusterFeed;
use crate::metrics::Metrics;
use crate::service::DiscoveryService;

/// Streams of one connection; a proxy has one.
const MOST_STREAMS: u32 = 4;
/// A stream ends after so long, so that proxies spread over replicas again.
const MAX_AGE: Duration = Duration::from_secs(1800);
/// Changes that are gathered before they are told, whatever the wait.
const MOST_GATHERED: usize = 10_000;

/// The component `discovery-server`.
pub struct DiscoveryComponent {
    identities: Identities,
    resolver: Resolver,
    catalogue: Catalogue,
    /// Lent to the run.
    feeds: Mutex<Vec<Fed>>,
}

/// A feed, and how it is.
struct Fed {
    feed: Box<dyn Feed>,
    /// It has told of all that there was at the start.
    complete: bool,
    /// Why it tells nothing now.
    problem: Option<String>,
    /// Whose services it tells, when the config asks for it.
    cluster: Option<Cluster>,
    /// Names of what it told.
    told: HashSet<String>,
}

/// A Kubernetes cluster whose services are told, and the trust domain of its workloads.
type Cluster = (DiscoveryKubernetes, TrustDomain);

impl Fed {
    fn new(feed: Box<dyn Feed>, cluster: Option<Cluster>) -> Self {
        Self { feed, complete: false, problem: None, cluster, told: HashSet::new() }
    }
}

impl DiscoveryComponent {
    /// Serves with our identity what the config, the cluster that it names, and `feeds` tell.
    pub fn new(identities: Identities, resolver: Resolver, feeds: Vec<Box<dyn Feed>>) -> Self {
        let feeds = feeds.into_iter().map(|feed| Fed::new(feed, None)).collect();
        Self { identities, resolver, catalogue: Catalogue::default(), feeds: Mutex::new(feeds) }
    }

    /// What is told.
    pub fn catalogue(&self) -> Catalogue {
        self.catalogue.clone()
    }
}

impl Component for DiscoveryComponent {
    fn name(&self) -> &'static str {
        "discovery-server"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["identity"]
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Inbound
    }

    fn enabled(&self, config: &Config) -> bool {
        config.discovery.is_some()
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            // What they told holds over a failure of ours.
            let mut gathering = Gathering::new(self, std::mem::take(&mut *self.feeds.lock()), &ctx);
            let result = run(self, &ctx, &mut gathering).await;
            *self.feeds.lock() = std::mem::take(&mut gathering.feeds);
            result
        })
    }
}

async fn run(component: &DiscoveryComponent, ctx: &Context, gathering: &mut Gathering) -> Result<(), BoxError> {
    let mut config = ctx.config.clone();
    loop {
        let cluster = cluster(&config.borrow());
        let section = config.borrow_and_update().discovery.clone();
        let Some(section) = section else {
            // Turned off: the runtime is about to stop us.
            ctx.stop.requested().await;
            return Ok(());
        };
        gathering.follow(cluster, &component.resolver, ctx)?;
        serve(component, ctx, section, &mut config, gathering).await?;
        if ctx.stop.is_requested() {
            return Ok(());
        }
    }
}

/// Serves as one section says, until what cannot change under open streams does, or the stop.
async fn serve(
    component: &DiscoveryComponent,
    ctx: &Context,
    mut section: Discovery,
    config: &mut watch::Receiver<Arc<Config>>,
    gathering: &mut Gathering,
) -> Result<(), BoxError> {
    let service = Arc::new(DiscoveryService {
        catalogue: component.catalogue.clone(),
        metrics: Arc::clone(&gathering.metrics),
        most_names: section.limits.max_subscriptions as usize,
    });
    let options = GrpcServerOptions {
        max_connections: section.limits.max_connections as usize,
        max_calls: MOST_STREAMS,
        max_request: section.limits.max_request_bytes.as_usize(),
        max_age: MAX_AGE,
        ..GrpcServerOptions::default()
    };
    let peers = PeerPolicy::allowing(&section.allowed_peers);
    let identities = component.identities.clone();
    let tls: TlsSource = Arc::new(move || {
        let made = identities.current()?.server_config(&peers, &[b"h2"]);
        made.inspect_err(|error| tracing::error!(component = "discovery", %error, "cannot make a TLS config")).ok()
    });
    gathering.take_config(&section);
    // Nobody is told of half of what there is.
    loop {
        tokio::select! {
            () = ctx.stop.requested() => return Ok(()),
            () = gathering.gather(section.debounce.into()) => {}
        }
        gathering.report(ctx);
        if gathering.is_complete() {
            break;
        }
    }
    let listener = TcpListener::from_std(ctx.sockets.listen_tcp("discovery", section.listen)?)?;
    let (done, over) = tokio::sync::oneshot::channel::<()>();
    let over = async move {
        let _ = over.await;
    };
    let mut serving = std::pin::pin!(serve_grpc(listener, tls, service, options, over));
    loop {
        gathering.report(ctx);
        tokio::select! {
            () = ctx.stop.requested() => break,
            () = serving.as_mut() => return Err("the discovery server's port is gone".into()),
            () = gathering.gather(section.debounce.into()) => {}
            changed = config.changed() => {
                if cluster(&config.borrow()).as_ref() != gathering.cluster() {
                    break;
                }
                let new = config.borrow_and_update().discovery.clone();
                let Some(new) = new.filter(|_| changed.is_ok()) else { break };
                if (&new.listen, &new.allowed_peers, &new.limits) != (&section.listen, &section.allowed_peers, &section.limits) {
                    break;
                }
                section = new;
                gathering.take_config(&section);
            }
        }
    }
    drop(done);
    tokio::select! {
        () = serving => {}
        () = ctx.stop.overdue(), if ctx.stop.is_requested() => {}
    }
    Ok(())
}

/// The cluster that a config names.
fn cluster(config: &Config) -> Option<Cluster> {
    let kubernetes = config.discovery.as_ref()?.kubernetes.clone()?;
    Some((kubernetes, config.identity.as_ref()?.trust_domain.clone()))
}

/// Gathers changes, and has them told.
struct Gathering {
    feeds: Vec<Fed>,
    catalogue: Catalogue,
    metrics: Arc<Metrics>,
    /// By name: as it is now, or gone.
    waiting: BTreeMap<String, Option<Service>>,
    /// Names that stand in the config.
    configured: HashSet<String>,
    /// When what waits is to be told.
    due: Option<Instant>,
    told_at: Option<Instant>,
}

impl Gathering {
    fn new(component: &DiscoveryComponent, feeds: Vec<Fed>, ctx: &Context) -> Self {
        Self {
            feeds,
            catalogue: component.catalogue.clone(),
            metrics: Metrics::new(&ctx.registry),
            waiting: BTreeMap::new(),
            configured: HashSet::new(),
            due: None,
            told_at: None,
        }
    }

    /// The cluster that is followed.
    fn cluster(&self) -> Option<&Cluster> {
        self.feeds.iter().find_map(|fed| fed.cluster.as_ref())
    }

    /// Follows this cluster and no other; what another told is gone.
    fn follow(&mut self, cluster: Option<Cluster>, resolver: &Resolver, ctx: &Context) -> Result<(), BoxError> {
        if self.cluster() == cluster.as_ref() {
            return Ok(());
        }
        for before in self.feeds.extract_if(.., |fed| fed.cluster.is_some()) {
            self.waiting.extend(before.told.into_iter().map(|name| (name, None)));
        }
        if let Some((section, trust_domain)) = cluster {
            let feed = ClusterFeed::start(&section, trust_domain.as_str(), resolver.clone(), &ctx.registry)?;
            self.feeds.push(Fed::new(Box::new(feed), Some((section, trust_domain))));
        }
        Ok(())
    }

    /// Takes on the services of the config.
    fn take_config(&mut self, section: &Discovery) {
        let now: HashSet<String> = section.services.iter().map(|service| service.name.to_string()).collect();
        for gone in self.configured.difference(&now) {
            self.waiting.insert(gone.clone(), None);
        }
        self.waiting.extend(section.services.iter().map(|one| (one.name.to_string(), Some(one.into()))));
        self.configured = now;
        self.due = Some(Instant::now());
    }

    /// Waits for the next change, or for the time to tell of those that wait. Cancel-safe.
    async fn gather(&mut self, debounce: Duration) {
        let due = self.due;
        let telling = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let next = async {
            if self.feeds.is_empty() {
                std::future::pending::<()>().await;
            }
            let (change, index, _) = select_all(self.feeds.iter_mut().map(|fed| fed.feed.next())).await;
            (change, index)
        };
        tokio::select! {
            biased;
            () = telling => self.tell(),
            (change, index) = next => self.take(change, index, debounce),
        }
    }

    fn take(&mut self, change: Result<Change, String>, index: usize, debounce: Duration) {
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                if self.feeds[index].problem.as_ref() != Some(&error) {
                    tracing::warn!(component = "discovery", %error, "a source of services fails; what it told holds on");
                }
                self.feeds[index].problem = Some(error);
                return;
            }
        };
        let fed = &mut self.feeds[index];
        fed.problem = None;
        match &change {
            Change::Set(service) if !fed.told.contains(&service.name) => drop(fed.told.insert(service.name.clone())),
            Change::Removed(name) => drop(fed.told.remove(name)),
            _ => {}
        }
        match change {
            Change::Set(service) if !self.configured.contains(&service.name) => {
                self.waiting.insert(service.name.clone(), Some(service));
            }
            Change::Removed(name) if !self.configured.contains(&name) => {
                self.waiting.insert(name, None);
            }
            Change::Set(_) | Change::Removed(_) => return,
            Change::Complete => self.feeds[index].complete = true,
        }
        let now = Instant::now();
        let calm = self.told_at.is_none_or(|told| now.duration_since(told) >= debounce);
        let at = if calm && self.is_complete() { now } else { now + debounce };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
        if self.waiting.len() >= MOST_GATHERED {
            self.tell();
        }
    }

    /// Has what waits told.
    fn tell(&mut self) {
        self.due = None;
        self.told_at = Some(Instant::now());
        let waiting = std::mem::take(&mut self.waiting);
        self.metrics.changes.add(waiting.len() as u64);
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        for (name, service) in waiting {
            match service {
                Some(service) => set.push(service),
                None => removed.push(name),
            }
        }
        self.catalogue.apply(&set, &removed);
        for kind in Kind::ALL {
            self.metrics.resources[kind as usize].set(self.catalogue.len(kind) as f64);
        }
    }

    /// Whether all has been told that there is.
    fn is_complete(&self) -> bool {
        self.feeds.iter().all(|fed| fed.complete)
    }

    fn report(&self, ctx: &Context) {
        let problems: Vec<&str> = self.feeds.iter().filter_map(|fed| fed.problem.as_deref()).collect();
        match (self.is_complete(), problems.is_empty()) {
            (true, true) => ctx.status.ready(),
            (true, false) => ctx.status.degraded(format!("serving what is known: {}", problems.join("; "))),
            (false, true) => ctx.status.waiting("services are not known yet"),
            (false, false) => ctx.status.waiting(format!("services are not known yet: {}", problems.join("; "))),
        }
    }
}
