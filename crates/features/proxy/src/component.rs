//! The data plane as components of the runtime: one per direction.
//!
//! In: the `proxy` section. Out: bound listeners on the workers. Promise: a reload swaps
//! routes, clusters and limits under bound sockets; a socket is touched only when its
//! address changed; inbound drains first, outbound stays until the application is gone.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use outrigger_config::{
    Cluster as ClusterConfig, Config, Direction, Listener as ListenerConfig, ListenerTlsMode, Logs, Proxy, ProxyLimits,
    RateLimitService, Route as RouteConfig, Secret,
};
use outrigger_http::Resolver;
use outrigger_identity::{Identities, PeerPolicy, server_config_with_certificates};
use outrigger_runtime::{
    AdminRoute, BoxError, BoxFuture, Component, Context, FileWatcher, LineQueue, SocketError, StopPhase,
};
use outrigger_telemetry::trace::SpanQueue;
use outrigger_traffic::directory::{Directory, FoundService};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::access_log::{AccessLog, AccessLogs};
use crate::ask;
use crate::cluster::{Cluster, Clusters};
use crate::coded::CodedBodies;
use crate::connections;
use crate::global_limit::GlobalLimit;
use crate::listener;
use crate::metrics::Families;
use crate::on_demand::{OnDemand, with_found};
use crate::resilience::{Limiters, TELL_EVERY};
use crate::route::RouteTable;
use crate::session::SessionKeys;
use crate::snapshot::{Listener, ListenerSnapshot, Places, Tracing};
use crate::tap::{self, Taps};
use crate::worker::Worker;
use crate::{state, tls};

/// How long the start waits for the first answer of DNS.
const FIRST_RESOLUTION: Duration = Duration::from_secs(2);
/// Left of a stop's time when connections are cut, so that their end is noted and flushed.
const CUT_AHEAD: Duration = Duration::from_millis(250);
/// How often an outbound listener is looked at while it waits for the application's last connection.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// At a hand-over, so long of a stop's time, or half of it, is left for those who were accepted last.
const FOR_THE_LAST: Duration = Duration::from_secs(2);
/// How long a reload waits for the workers to close a socket that stands in another's way.
const RELEASE: Duration = Duration::from_secs(1);
/// What a reload could not do is tried again, but not in haste.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

/// The data plane's components: `proxy-inbound` and `proxy-outbound`. Spans of requests go to `spans`, lines of the access log to
/// `lines` where a source of logs takes them. `directory` knows services, if anybody does.
pub fn components(
    identities: Identities,
    resolver: Resolver,
    spans: SpanQueue,
    lines: LineQueue,
    directory: Option<Arc<dyn Directory>>,
) -> Vec<Box<dyn Component>> {
    let shared = Arc::new(Shared {
        identities,
        resolver,
        directory,
        clusters: Arc::default(),
        state_route: Mutex::default(),
        access_logs: AccessLogs::new(lines),
        limiters: Limiters::default(),
        places: Arc::new(Places::new(ProxyLimits::default().max_connections)),
        generation: AtomicU64::new(0),
        spans,
        taps: Taps::new(),
        coded: CodedBodies::new(ProxyLimits::default().max_coded_bodies),
        own_session_keys: OnceLock::new(),
        live_routes: Mutex::default(),
        ask_routes: Mutex::default(),
        listeners: Arc::default(),
        has_left: AtomicBool::new(false),
    });
    let component = |direction| -> Box<dyn Component> {
        let (shared, passthrough) = (Arc::clone(&shared), Cluster::passthrough(direction));
        Box::new(DirectionComponent { direction, shared, passthrough })
    };
    vec![component(Direction::Inbound), component(Direction::Outbound)]
}

/// What both directions have in common.
struct Shared {
    identities: Identities,
    resolver: Resolver,
    directory: Option<Arc<dyn Directory>>,
    clusters: Arc<Clusters>,
    /// Answers `/clusters`.
    state_route: Mutex<Weak<AdminRoute>>,
    access_logs: AccessLogs,
    limiters: Limiters,
    /// Connections of both directions.
    places: Arc<Places>,
    generation: AtomicU64,
    spans: SpanQueue,
    taps: Arc<Taps>,
    coded: Arc<CodedBodies>,
    /// What seals sessions when the config has no keys for that; made when it is first needed.
    own_session_keys: OnceLock<Option<Arc<SessionKeys>>>,
    /// Keeps what tells of traffic as it goes, as long as either direction runs.
    live_routes: Mutex<Weak<Vec<AdminRoute>>>,
    /// The same for what is asked of the data plane as it is.
    ask_routes: Mutex<Weak<Vec<AdminRoute>>>,
    /// All that were opened, by both directions.
    listeners: Arc<Mutex<Vec<Weak<Listener>>>>,
    /// What was there when the sockets were handed over has left, or has had its time.
    has_left: AtomicBool,
}

impl Shared {
    /// Adds `GET /clusters`, unless the other direction has.
    fn state_route(&self, ctx: &Context) -> Arc<AdminRoute> {
        let mut kept = self.state_route.lock().unwrap_or_else(PoisonError::into_inner);
        kept.upgrade().unwrap_or_else(|| {
            let route = Arc::new(state::register(&ctx.admin, &self.clusters, &ctx.workers));
            *kept = Arc::downgrade(&route);
            route
        })
    }

    /// Adds `GET /explain`, `/listeners` and `/routes`, unless the other direction has.
    fn ask_routes(&self, ctx: &Context) -> Arc<Vec<AdminRoute>> {
        let mut kept = self.ask_routes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.upgrade().unwrap_or_else(|| {
            let (clusters, listeners) = (Arc::clone(&self.clusters), Arc::clone(&self.listeners));
            let known = move || listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let routes = Arc::new(ask::register(ctx, move || Arc::clone(&clusters), known));
            *kept = Arc::downgrade(&routes);
            routes
        })
    }

    /// What seals the sessions of listeners' routes, where any has them.
    fn session_keys(&self, secrets: &[Secret], listeners: &[&ListenerConfig]) -> Option<Arc<SessionKeys>> {
        let has_any = |listener: &&ListenerConfig| {
            listener.routes.iter().any(|route| route.session_persistence.is_some())
                || listener.grpc_routes.iter().any(|route| route.session_persistence.is_some())
        };
        match secrets {
            _ if !listeners.iter().any(has_any) => None,
            [] => self.own_session_keys.get_or_init(SessionKeys::random).clone(),
            secrets => SessionKeys::of(secrets),
        }
    }

    /// Notes a listener, for operators who ask.
    fn note_listener(&self, listener: &Arc<Listener>) {
        let mut known = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|listener| listener.strong_count() > 0);
        known.push(Arc::downgrade(listener));
    }

    /// Adds `GET /tap` and `/connections`, unless the other direction has.
    fn live_routes(&self, ctx: &Context, families: &Families) -> Arc<Vec<AdminRoute>> {
        let mut kept = self.live_routes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.upgrade().unwrap_or_else(|| {
            let handler = tap::handler(Arc::clone(&self.taps), families.clone());
            let about =
                "requests as they end, one JSON object a line; ?status=5xx&path=/api&headers, see `outrigger tap`";
            let tap = ctx.admin.register("/tap", about, handler);
            let about = "open connections, the oldest first, as JSON; ?listener=NAME&limit=N";
            let open = ctx.admin.register("/connections", about, connections::handler(ctx.workers.clone()));
            let routes = Arc::new(vec![tap, open]);
            *kept = Arc::downgrade(&routes);
            routes
        })
    }
}

/// Tells the state of limits from time to time, until dropped.
async fn tell_limits(shared: Arc<Shared>, families: Families) {
    loop {
        shared.limiters.tell(&families);
        for cluster in shared.clusters.limited() {
            if let Some(limit) = &cluster.adaptive {
                families.concurrency(&cluster.name, limit.state());
            }
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

struct DirectionComponent {
    direction: Direction,
    shared: Arc<Shared>,
    /// Where redirected connections go that nobody told us of.
    passthrough: Arc<Cluster>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot open the access log{path}: {source}; make its folder, or change proxy.accessLog.path")]
    AccessLog { path: String, source: std::io::Error },
    #[error("listener `{0}`: {1}")]
    Certificate(String, String),
    #[error("{0}")]
    Several(String),
    #[error("the listener `{0}` stopped on a worker: {1}")]
    Listener(String, String),
}

impl Component for DirectionComponent {
    fn name(&self) -> &'static str {
        match self.direction {
            Direction::Inbound => "proxy-inbound",
            Direction::Outbound => "proxy-outbound",
        }
    }

    fn needs(&self) -> &'static [&'static str] {
        &["identity"]
    }

    fn stop_phase(&self) -> StopPhase {
        match self.direction {
            Direction::Inbound => StopPhase::Inbound,
            Direction::Outbound => StopPhase::Outbound,
        }
    }

    fn enabled(&self, config: &Config) -> bool {
        config.proxy.as_ref().is_some_and(|proxy| proxy.listeners.iter().any(|one| one.direction == self.direction))
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(Running::new(self, ctx).run().await?) })
    }
}

/// A direction that runs.
struct Running<'a> {
    component: &'a DirectionComponent,
    ctx: Context,
    families: Families,
    listeners: HashMap<String, Arc<Listener>>,
    /// One task per listener and worker; each ends when its listener has drained.
    serving: JoinSet<Result<(), Error>>,
    resolving: JoinSet<()>,
    resolved: Vec<Arc<Cluster>>,
    /// Clusters that a task looks after.
    cared_for: Vec<Weak<Cluster>>,
    /// Clusters whose files for TLS cannot be used, and why.
    untrusted: Vec<String>,
    tracing: Option<Arc<Tracing>>,
    session_keys: Option<Arc<SessionKeys>>,
    /// A source of logs takes the access log.
    forwards: bool,
    /// Services that were found by address, and their number.
    found: (u64, Arc<[FoundService]>),
    /// The number of those that routes know of.
    applied: watch::Sender<u64>,
    _live_routes: Arc<Vec<AdminRoute>>,
    _state_route: Arc<AdminRoute>,
    _ask_routes: Arc<Vec<AdminRoute>>,
}

impl<'a> Running<'a> {
    fn new(component: &'a DirectionComponent, ctx: Context) -> Self {
        let families = Families::new(&ctx.registry);
        let live_routes = component.shared.live_routes(&ctx, &families);
        let state_route = component.shared.state_route(&ctx);
        let ask_routes = component.shared.ask_routes(&ctx);
        Self {
            component,
            ctx,
            families,
            listeners: HashMap::new(),
            serving: JoinSet::new(),
            resolving: JoinSet::new(),
            resolved: Vec::new(),
            cared_for: Vec::new(),
            untrusted: Vec::new(),
            tracing: None,
            session_keys: None,
            forwards: false,
            found: Default::default(),
            applied: watch::channel(0).0,
            _live_routes: live_routes,
            _state_route: state_route,
            _ask_routes: ask_routes,
        }
    }

    async fn run(mut self) -> Result<(), Error> {
        let mut config = self.ctx.config.clone();
        let seen = |config: &Config| {
            let takes = |logs: &Logs| logs.sources.iter().any(|source| source.access_log.is_some());
            (config.proxy.clone(), config.telemetry.tracing.clone(), config.logs.as_ref().is_some_and(takes))
        };
        let (mut proxy, mut tracing, forwards) = seen(&config.borrow_and_update());
        self.forwards = forwards;
        self.trace(tracing.as_ref());
        self.resolving.spawn(tell_limits(Arc::clone(&self.component.shared), self.families.clone()));
        let mut failures = self.apply(proxy.as_ref()).await;
        if failures.len() > 1 {
            let all: Vec<String> = failures.iter().map(ToString::to_string).collect();
            return Err(Error::Several(all.join("; ")));
        }
        if let Some(failure) = failures.pop() {
            return Err(failure);
        }
        let mut problems = Vec::new();
        let mut certificates = watch_certificates(proxy.as_ref(), self.component.direction);
        let mut retry = self.ctx.backoff.start();
        let mut retry_at = Instant::now();
        loop {
            self.report(&problems);
            for listener in self.listeners.values() {
                listener.current.load().routes.find_destinations();
            }
            tokio::select! {
                () = self.ctx.stop.requested() => break,
                changed = config.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let (new, traced, forwards) = seen(&config.borrow_and_update());
                    if new != proxy || traced != tracing || forwards != self.forwards {
                        (proxy, tracing, self.forwards) = (new, traced, forwards);
                        self.trace(tracing.as_ref());
                        certificates = watch_certificates(proxy.as_ref(), self.component.direction);
                        problems = self.apply(proxy.as_ref()).await;
                        retry.reset();
                        retry_at = Instant::now() + retry.next().max(SHORTEST_RETRY);
                    }
                }
                () = tokio::time::sleep_until(retry_at), if !problems.is_empty() => {
                    // The address may be free by now, or the folder there.
                    problems = self.apply(proxy.as_ref()).await;
                    retry_at = Instant::now() + retry.next().max(SHORTEST_RETRY);
                }
                () = certificates_changed(&mut certificates) => {
                    problems = self.apply(proxy.as_ref()).await;
                    retry.reset();
                    retry_at = Instant::now() + retry.next().max(SHORTEST_RETRY);
                }
                () = resolution_changed(&self.resolved) => {}
                () = more_found(self.asking(proxy.as_ref()), self.found.0) => {
                    let found = self.asking(proxy.as_ref()).map(|directory| directory.found()).unwrap_or_default();
                    let before = std::mem::replace(&mut self.found, found);
                    if before.1 != self.found.1 {
                        problems = self.apply(proxy.as_ref()).await;
                        retry.reset();
                        retry_at = Instant::now() + retry.next().max(SHORTEST_RETRY);
                    }
                    self.applied.send_replace(self.found.0);
                }
                Some(ended) = self.serving.join_next() => {
                    // A listener taken out by a reload ends in its own time; anything else is a failure.
                    match ended {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return Err(error),
                        Err(error) => return Err(Error::Listener(String::new(), error.to_string())),
                    }
                }
            }
        }
        self.drain().await;
        self.component.shared.access_logs.flushed().await;
        Ok(())
    }

    /// Requests are traced so from the next snapshots on.
    fn trace(&mut self, config: Option<&outrigger_config::Tracing>) {
        let (spans, workers) = (&self.component.shared.spans, self.ctx.workers.count());
        self.tracing = config.map(|config| Tracing::new(config, spans.clone(), workers));
    }

    /// Who knows what is at addresses that no cluster has, where such are to be asked for.
    fn asking(&self, proxy: Option<&Proxy>) -> Option<&Arc<dyn Directory>> {
        let wanted = self.component.direction == Direction::Outbound
            && proxy.and_then(|proxy| proxy.discovery.as_ref()).is_some_and(|discovery| discovery.on_demand.is_some());
        self.component.shared.directory.as_ref().filter(|_| wanted)
    }

    /// Makes the listeners those of the config, and of services that were found.
    async fn apply(&mut self, proxy: Option<&Proxy>) -> Vec<Error> {
        let with_found = match (proxy, self.asking(proxy)) {
            (Some(proxy), Some(_)) if !self.found.1.is_empty() => Some(with_found(proxy, &self.found.1)),
            _ => None,
        };
        self.make(with_found.as_ref().or(proxy)).await
    }

    /// Makes the listeners those of the config. What cannot be done is told, and the old state of it stays.
    async fn make(&mut self, proxy: Option<&Proxy>) -> Vec<Error> {
        let mut problems = Vec::new();
        let none = Vec::new();
        let configs: Vec<&ListenerConfig> = proxy
            .map_or(&none, |proxy| &proxy.listeners)
            .iter()
            .filter(|listener| listener.direction == self.component.direction)
            .collect();
        let access_log = proxy.and_then(|proxy| {
            self.access_log(proxy).unwrap_or_else(|error| {
                problems.push(error);
                // Lines go on to where they went.
                self.listeners.values().next().and_then(|listener| listener.current.load().access_log.clone())
            })
        });
        self.component.shared.taps.mask(proxy.map_or(&[][..], |proxy| &proxy.mask_headers));
        let limits = proxy.map(|proxy| proxy.limits.clone()).unwrap_or_default();
        self.component.shared.places.set_most(limits.max_connections);
        self.component.shared.coded.set_most(limits.max_coded_bodies);
        self.families.limit_buffers(limits.max_buffer_bytes.as_usize());
        let buffer_share = limits.max_buffer_bytes.as_usize() / self.ctx.workers.count().max(1);
        let zone = proxy.and_then(|proxy| proxy.zone.as_ref());
        self.component.shared.clusters.set_zone(zone.map(|zone| zone.as_str()));
        let secrets = proxy.map_or(&[][..], |proxy| &proxy.session_keys);
        self.session_keys = self.component.shared.session_keys(secrets, &configs);
        let clusters = self.clusters(proxy, &configs);
        self.read_origination(&clusters);
        self.care_for(&clusters);
        self.keep_resolved(&clusters).await;

        // Gone from the config: their addresses may be wanted by others.
        self.close(|name, _| !configs.iter().any(|config| config.name.as_str() == name)).await;
        let mut moved = Vec::new();
        let service = proxy.and_then(|proxy| proxy.rate_limit_service.as_ref());
        let on_demand = self.on_demand(proxy);
        for config in configs {
            let all = proxy.map_or(&[][..], |proxy| &proxy.clusters);
            let snapshot = match self.snapshot(config, all, service, &clusters, access_log.clone(), buffer_share) {
                Ok(snapshot) => ListenerSnapshot {
                    on_demand: on_demand
                        .clone()
                        .filter(|_| config.redirected && config.direction == Direction::Outbound),
                    ..snapshot
                },
                Err(error) => {
                    // A listener that runs goes on as it is.
                    problems.push(error);
                    continue;
                }
            };
            match self.listeners.get(config.name.as_str()) {
                Some(listener) if listener.address == config.address => listener.update(snapshot),
                Some(_) => moved.push((config, snapshot)),
                None => problems.extend(self.open(config, snapshot).err()),
            }
        }
        // One that moves is closed only when its new place is sure, unless it stands in the way itself.
        for (config, snapshot) in moved {
            let name = config.name.as_str();
            let old = self.listeners.remove(name);
            let opened = match &old {
                Some(old) if overlap(old.address, config.address) => {
                    old.drain.cancel();
                    self.released(old).await;
                    self.open(config, snapshot)
                }
                _ => self.open(config, snapshot),
            };
            match (opened, old) {
                (Ok(()), Some(old)) => {
                    tracing::info!(component = "proxy", listener = name, from = %old.address, "listener moved");
                    old.drain.cancel();
                }
                (Ok(()), None) => {}
                (Err(error), old) => {
                    problems.push(error);
                    if let Some(old) = old.filter(|old| !old.drain.is_cancelled()) {
                        self.listeners.insert(name.to_owned(), old);
                    }
                }
            }
        }
        problems
    }

    /// How connections to unknown addresses ask what is there.
    fn on_demand(&self, proxy: Option<&Proxy>) -> Option<Arc<OnDemand>> {
        let directory = Arc::clone(self.asking(proxy)?);
        let wait = proxy?.discovery.as_ref()?.on_demand.as_ref()?.wait;
        Some(Arc::new(OnDemand::new(directory, wait.into(), self.applied.subscribe())))
    }

    /// Drains listeners, and waits until their addresses are free.
    async fn close(&mut self, which: impl Fn(&str, &Listener) -> bool) {
        let closed: Vec<Arc<Listener>> =
            self.listeners.extract_if(|name, listener| which(name, listener)).map(|(_, listener)| listener).collect();
        for listener in &closed {
            tracing::info!(component = "proxy", listener = listener.name, "listener removed");
            listener.drain.cancel();
        }
        for listener in &closed {
            self.released(listener).await;
        }
    }

    /// Waits, a little, until all workers have closed a listener's sockets.
    async fn released(&self, listener: &Listener) {
        let _ = tokio::time::timeout(RELEASE, listener.released()).await;
    }

    fn access_log(&self, proxy: &Proxy) -> Result<Option<Arc<AccessLog>>, Error> {
        let Some(config) = &proxy.access_log else { return Ok(None) };
        self.component.shared.access_logs.obtain(config, self.forwards, &self.ctx.registry).map(Some).map_err(
            |source| {
                let path = config.path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default();
                Error::AccessLog { path, source }
            },
        )
    }

    /// The clusters that these listeners may send to.
    fn clusters(&self, proxy: Option<&Proxy>, listeners: &[&ListenerConfig]) -> HashMap<String, Arc<Cluster>> {
        let Some(proxy) = proxy else { return HashMap::new() };
        let sends = |cluster: &ClusterConfig| listeners.iter().any(|one| proxy.may_send(one, cluster));
        let asks = |cluster: &ClusterConfig| listeners.iter().any(|one| proxy.may_ask(one, cluster));
        let wanted = proxy.clusters.iter().filter(|cluster| sends(cluster) || asks(cluster));
        wanted
            .map(|config| {
                let cluster = self.component.shared.clusters.obtain(config);
                if self.component.direction == Direction::Inbound && sends(config) {
                    cluster.take_inbound();
                }
                (config.name.to_string(), cluster)
            })
            .collect()
    }

    /// Reads the files that clusters with ordinary TLS need; those that were read before keep what they have.
    fn read_origination(&mut self, clusters: &HashMap<String, Arc<Cluster>>) {
        self.untrusted.clear();
        for cluster in clusters.values() {
            if let Some(tls) = cluster.config.tls.as_ref().filter(|tls| tls.server_name.is_some())
                && let Err(error) = cluster.origination.read(tls)
            {
                tracing::warn!(component = "proxy", cluster = cluster.name, %error, "TLS files of a cluster not taken");
                self.untrusted.push(format!("cluster `{}`: {error}", cluster.name));
            }
        }
    }

    /// Looks after clusters that need it and are new here.
    fn care_for(&mut self, clusters: &HashMap<String, Arc<Cluster>>) {
        self.cared_for.retain(|cluster| cluster.strong_count() > 0);
        for cluster in clusters.values().filter(|cluster| cluster.needs_care()) {
            let weak = Arc::downgrade(cluster);
            if !self.cared_for.iter().any(|known| known.ptr_eq(&weak)) {
                self.resolving.spawn(Cluster::care_for(weak.clone(), self.families.clone()));
                let identities = self.component.shared.identities.clone();
                self.resolving.spawn(Cluster::check_health(weak.clone(), identities, self.families.clone()));
                self.cared_for.push(weak);
            }
        }
    }

    /// Resolves the names of clusters that are new here, and waits a little for the first answers.
    async fn keep_resolved(&mut self, clusters: &HashMap<String, Arc<Cluster>>) {
        let known = std::mem::take(&mut self.resolved);
        for cluster in clusters.values().filter(|cluster| cluster.has_names()) {
            if !known.iter().any(|one| Arc::ptr_eq(one, cluster)) {
                let (resolver, directory) =
                    (self.component.shared.resolver.clone(), self.component.shared.directory.clone());
                self.resolving.spawn(Cluster::keep_resolved(Arc::downgrade(cluster), resolver, directory));
            }
            self.resolved.push(Arc::clone(cluster));
        }
        while self.resolving.try_join_next().is_some() {}
        let until = Instant::now() + FIRST_RESOLUTION;
        for cluster in &self.resolved {
            let _ = tokio::time::timeout_at(until, cluster.resolved()).await;
        }
    }

    fn snapshot(
        &self,
        config: &ListenerConfig,
        all: &[ClusterConfig],
        service: Option<&RateLimitService>,
        clusters: &HashMap<String, Arc<Cluster>>,
        access_log: Option<Arc<AccessLog>>,
        buffer_share: usize,
    ) -> Result<ListenerSnapshot, Error> {
        let mutual = config.tls.as_ref().filter(|tls| tls.mode != ListenerTlsMode::Simple);
        let simple = config.tls.as_ref().filter(|tls| tls.mode == ListenerTlsMode::Simple);
        let simple_tls = simple.map(|tls| {
            let pairs: Vec<_> = tls.certificates.iter().map(|pair| (&pair.certificate, &pair.key)).collect();
            server_config_with_certificates(&pairs, tls::PUBLIC, tls.min_version)
        });
        let simple_tls =
            simple_tls.transpose().map_err(|error| Error::Certificate(config.name.to_string(), error.to_string()))?;
        let (mut simple_tls, simple_digest) = simple_tls.unzip();
        if let Some(before) = self.listeners.get(config.name.as_str()).map(|listener| listener.current.load())
            && before.simple_digest == simple_digest
        {
            // The same one, so that its clients' tickets stay good.
            simple_tls.clone_from(&before.simple_tls);
        }
        let mut routes = RouteTable::of(config, all, &self.component.passthrough, |name| clusters.get(name).cloned());
        let limiters = &self.component.shared.limiters;
        let limits = |route: &str, limits: &[_]| limiters.obtain(&config.name, route, limits, &self.families);
        let global = |name: &str, route: Option<&RouteConfig>| {
            let mut limits = config.global_rate_limits.clone();
            limits.extend(route.iter().flat_map(|route| &route.global_rate_limits).cloned());
            let service = service.filter(|_| !limits.is_empty())?;
            let cluster = Arc::clone(clusters.get(service.backend_ref.name.as_str())?);
            Some(GlobalLimit::new(service, cluster, &config.name, name, limits, &self.families))
        };
        routes.guard(config, limits, global, |name| clusters.get(name).cloned());
        Ok(ListenerSnapshot {
            generation: self.component.shared.generation.fetch_add(1, Relaxed),
            protocol: config.protocol,
            detect_timeout: config.detect_timeout.into(),
            proxy_protocol: config.proxy_protocol,
            redirected: config.redirected,
            path: outrigger_traffic::explain::path_policy(&config.path),
            forwarded: config.forwarded.clone(),
            tcp_keepalive: config.tcp_keepalive.into(),
            routes,
            tls: mutual.map(|tls| PeerPolicy::allowing(&tls.allowed_peers)),
            simple_tls,
            simple_digest,
            least_tls: config.tls.as_ref().map(|tls| tls.min_version).unwrap_or_default(),
            permissive: config.tls.as_ref().is_some_and(|tls| tls.mode == ListenerTlsMode::Permissive),
            limits: config.limits.clone(),
            sheds: config.limits.shed_overload && config.direction == Direction::Inbound,
            buffer_share,
            is_told: access_log.is_some() || self.tracing.is_some(),
            access_log,
            tracing: self.tracing.clone(),
            taps: Arc::clone(&self.component.shared.taps),
            coded: Arc::clone(&self.component.shared.coded),
            session_keys: self.session_keys.clone(),
            on_demand: None,
        })
    }

    /// Binds a listener and serves it on every worker.
    fn open(&mut self, config: &ListenerConfig, snapshot: ListenerSnapshot) -> Result<(), Error> {
        let owner = format!("listener `{}`", config.name);
        let sockets = self.ctx.sockets.listen_tcp_shared(&owner, config.address, self.ctx.workers.count())?;
        let listener = Listener::new(config, snapshot, &self.component.shared.places, sockets.len());
        self.component.shared.note_listener(&listener);
        let workers = self.ctx.workers.count();
        // There may be more than workers, when a process before us had more: each has clients in its backlog.
        for (index, socket) in sockets.into_iter().enumerate() {
            let (families, identities) = (self.families.clone(), self.component.shared.identities.clone());
            let served = Arc::clone(&listener);
            let sockets = self.ctx.sockets.clone();
            let task = self.ctx.workers.spawn(index % workers, move || async move {
                let worker = Worker::current(&families, &identities);
                listener::serve(served, socket, worker, sockets).await
            });
            let name = listener.name.clone();
            self.serving.spawn(async move {
                match task.await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(Error::Listener(name, error.to_string())),
                    Err(panic) => Err(Error::Listener(name, panic.to_string())),
                }
            });
        }
        tracing::info!(component = "proxy", listener = listener.name, address = %listener.address, "listening");
        self.listeners.insert(listener.name.clone(), listener);
        Ok(())
    }

    /// Says how things are: what a reload could not do, and names that DNS does not know.
    fn report(&self, problems: &[Error]) {
        let mut texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        texts.extend_from_slice(&self.untrusted);
        for cluster in &self.resolved {
            if let Some(Err(error)) = &*cluster.resolution().borrow() {
                texts.push(format!("cluster `{}`: {error}", cluster.name));
            }
        }
        if texts.is_empty() {
            self.ctx.status.ready();
        } else {
            self.ctx.status.degraded(texts.join("; "));
        }
    }

    /// Ends all connections within the stop's time.
    async fn drain(&mut self) {
        let cut_at = self.ctx.stop.deadline().checked_sub(CUT_AHEAD).unwrap_or_else(Instant::now);
        if self.ctx.sockets.handed_over() {
            self.leave(cut_at).await;
        } else if self.component.direction == Direction::Outbound {
            // The application may still be there and need us: serve until its last connection has gone.
            while self.connections() > 0 && Instant::now() < cut_at {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        for listener in self.listeners.values() {
            listener.drain.cancel();
        }
        let ended = async { while self.serving.join_next().await.is_some() {} };
        if tokio::time::timeout_at(cut_at, ended).await.is_err() {
            for listener in self.listeners.values() {
                tracing::warn!(
                    component = "proxy",
                    listener = listener.name,
                    connections = listener.open(),
                    "cutting connections at the end of the shutdown budget"
                );
                listener.cut.cancel();
            }
            while self.serving.join_next().await.is_some() {}
        }
    }

    /// Goes on accepting while what was there at the hand-over leaves, in both directions: whoever comes when nobody accepts
    /// any more waits for the next process, so that time must be short. What is still there then is cut.
    async fn leave(&self, cut_at: Instant) {
        let shared = &self.component.shared;
        if shared.has_left.load(Relaxed) {
            return;
        }
        let time = cut_at.saturating_duration_since(Instant::now());
        let until = cut_at - FOR_THE_LAST.min(time / 2);
        let listeners = shared.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners.iter().filter_map(Weak::upgrade) {
            tokio::select! {
                () = listener.left() => {}
                // Taken out by a reload, or its direction has failed: it takes nobody in.
                () = listener.released() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
        shared.has_left.store(true, Relaxed);
        tracing::info!(component = "proxy", "accepting no more; new connections wait for the next process");
    }

    fn connections(&self) -> usize {
        self.listeners.values().map(|listener| listener.open()).sum()
    }
}

/// Watches the files of listeners' certificates and of clusters with ordinary TLS, if there are any.
fn watch_certificates(proxy: Option<&Proxy>, direction: Direction) -> Option<FileWatcher> {
    let listeners = proxy.into_iter().flat_map(|proxy| &proxy.listeners).filter(|one| one.direction == direction);
    let pairs = listeners.filter_map(|listener| listener.tls.as_ref()).flat_map(|tls| &tls.certificates);
    let clusters = proxy.into_iter().flat_map(|proxy| &proxy.clusters).filter_map(|cluster| cluster.tls.as_ref());
    let pairs = pairs.chain(clusters.clone().filter_map(|tls| tls.client_certificate.as_ref()));
    let files = pairs.flat_map(|pair| [pair.certificate.clone(), pair.key.clone()]);
    let files: Vec<_> = files.chain(clusters.filter_map(|tls| tls.ca.clone())).collect();
    if files.is_empty() {
        return None;
    }
    FileWatcher::new(files)
        .inspect_err(|error| tracing::warn!(component = "proxy", %error, "certificates are not watched for changes"))
        .ok()
}

/// Waits until one of them changed. Cancel-safe.
async fn certificates_changed(watcher: &mut Option<FileWatcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether one socket at each would be one too many.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// Waits until there is more known of addresses; for ever where none are asked for. Cancel-safe.
fn more_found(directory: Option<&Arc<dyn Directory>>, since: u64) -> impl Future<Output = ()> + use<> {
    let directory = directory.cloned();
    async move {
        match directory {
            Some(directory) => directory.changed(since).await,
            None => std::future::pending().await,
        }
    }
}

/// Waits until a cluster's names were found, or lost, or have other addresses.
async fn resolution_changed(clusters: &[Arc<Cluster>]) {
    let mut changes: Vec<_> = clusters.iter().map(|cluster| cluster.resolution()).collect();
    let mut waits: Vec<_> = changes.iter_mut().map(|change| Box::pin(change.changed())).collect();
    poll_fn(|cx| {
        if waits.iter_mut().any(|wait| matches!(wait.as_mut().poll(cx), Poll::Ready(Ok(())))) {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}
