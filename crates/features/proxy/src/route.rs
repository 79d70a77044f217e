//! The routes of a listener, of all kinds, and the clusters they send to.
//!
//! In: a request, or where a connection wants to go. Out: a route by its number. Promise: which
//! HTTP route it is decides `outrigger_traffic::route` alone; here stand the clusters.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_config::{
    BackendRef, Cluster as ClusterConfig, ConnectMode, Direction, GrpcRoute, Listener, RateLimit, Route as RouteConfig,
    UnknownDestinations,
};
use outrigger_traffic::filter::Filters;
use outrigger_traffic::route::{self, Found, Request};
use outrigger_traffic::session::Persistence;

use crate::cluster::{Cluster, PASSTHROUGH};
use crate::global_limit::GlobalLimit;
use crate::members::Peer;
use crate::mirror::Mirror;
use crate::resilience::{Limiter, Resilience};

/// A compiled route.
pub(crate) struct Route {
    /// Unique in the process, for per-worker caches.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) timeout: Option<Duration>,
    /// To the very endpoint that a redirected connection wanted to go to.
    pub(crate) direct: bool,
    /// What it does beyond sending a request once.
    pub(crate) resilience: Option<Box<Resilience>>,
    /// Its clients stay with an endpoint.
    pub(crate) session: Option<Box<Persistence>>,
    /// What is done with its requests and answers.
    pub(crate) filters: Option<Box<Filters>>,
    backends: Vec<Backend>,
    total_weight: u64,
}

/// A cluster and its share of a route's traffic.
struct Backend {
    cluster: Arc<Cluster>,
    weight: u32,
    filters: Option<Box<Filters>>,
}

impl Route {
    /// Compiles a route; `cluster` finds what it names, which validation has assured.
    fn compile(config: &RouteConfig, cluster: impl Fn(&str) -> Option<Arc<Cluster>>) -> Self {
        let timeout = Duration::from(config.timeouts.request);
        let timeout = (!timeout.is_zero()).then_some(timeout);
        let filters = Filters::of(&config.filters);
        let session = Persistence::of(config);
        Self { timeout, filters, session, ..Self::to(&config.name, &config.backend_refs, cluster) }
    }

    /// A route without conditions.
    fn to(name: &str, backend_refs: &[BackendRef], cluster: impl Fn(&str) -> Option<Arc<Cluster>>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let backends: Vec<_> = backend_refs
            .iter()
            .filter(|backend| backend.weight > 0)
            .filter_map(|backend| {
                let filters = Filters::of(&backend.filters);
                Some(Backend { cluster: cluster(&backend.name)?, weight: backend.weight, filters })
            })
            .collect();
        Self {
            id: IDS.fetch_add(1, Relaxed),
            name: name.to_owned(),
            timeout: None,
            direct: false,
            resilience: None,
            session: None,
            filters: None,
            total_weight: backends.iter().map(|backend| u64::from(backend.weight)).sum(),
            backends,
        }
    }

    /// Chooses a backend by weight; `random` is any number. `None` when all weights are 0.
    pub(crate) fn backend(&self, random: u32) -> Option<&Arc<Cluster>> {
        self.cluster_of(self.choose(random)?)
    }

    /// The number of a backend, chosen by weight.
    pub(crate) fn choose(&self, random: u32) -> Option<u32> {
        if self.backends.len() == 1 {
            return Some(0);
        }
        // Scales the random number to the weights' sum, which needs no division and favours nobody.
        let mut point = ((u128::from(random) * u128::from(self.total_weight)) >> 32) as u64;
        let found = self.backends.iter().position(|backend| {
            let hit = point < u64::from(backend.weight);
            point = point.saturating_sub(u64::from(backend.weight));
            hit
        });
        found.map(|number| number as u32)
    }

    /// The cluster of a backend.
    pub(crate) fn cluster_of(&self, backend: u32) -> Option<&Arc<Cluster>> {
        self.backends.get(backend as usize).map(|backend| &backend.cluster)
    }

    /// The filters of a backend.
    pub(crate) fn backend_filters(&self, backend: u32) -> Option<&Filters> {
        self.backends.get(backend as usize)?.filters.as_deref()
    }
}

/// All routes of a listener. They are told by their number, so that a request can remember its
/// route without counting references that all workers share.
#[derive(Default)]
pub(crate) struct RouteTable {
    routes: Vec<Route>,
    /// Which of the first ones takes a request.
    table: route::RouteTable,
    /// So many of the first ones take requests.
    http: usize,
    /// The route of connections that are carried as they come.
    tcp: Option<u32>,
    /// Routes of undecrypted TLS: names asked for, suffixes, and that of all others.
    sni: HashMap<String, u32>,
    sni_wildcards: Vec<(String, u32)>,
    sni_any: Option<u32>,
    /// Routes of CONNECT, the most specific first.
    connects: Vec<Connect>,
    /// Routes of redirected connections, by the virtual address they wanted to go to.
    virtuals: HashMap<SocketAddr, u32>,
    /// Clusters that may be called by the addresses of their endpoints, and their routes for that, in the file's order.
    direct: Vec<(Arc<Cluster>, u32)>,
    /// Routes of redirected connections by where they wanted to go, as the clusters' endpoints are now.
    destinations: ArcSwap<Destinations>,
    /// The route of redirected connections that no other one takes; `None` refuses them.
    unknown: Option<u32>,
}

/// Routes by destination.
#[derive(Default)]
struct Destinations {
    known: HashMap<SocketAddr, u32>,
    /// The endpoints that were looked at, by cluster: while they stay there is nothing to be found anew.
    of: Option<Vec<Arc<[Arc<Peer>]>>>,
}

/// A route of CONNECT.
struct Connect {
    host: HostPattern,
    /// Empty means all.
    ports: Vec<u16>,
    forward: bool,
    route: u32,
}

enum HostPattern {
    Exact(String),
    /// With its dot.
    Suffix(String),
    Any,
}

impl HostPattern {
    /// Lower is more specific.
    fn rank(&self) -> (u8, std::cmp::Reverse<usize>) {
        match self {
            Self::Exact(_) => (0, std::cmp::Reverse(0)),
            Self::Suffix(suffix) => (1, std::cmp::Reverse(suffix.len())),
            Self::Any => (2, std::cmp::Reverse(0)),
        }
    }
}

/// Where a CONNECT goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectTo {
    pub(crate) route: u32,
    /// To the endpoint as it is, not only its bytes.
    pub(crate) forward: bool,
    /// The route says this very host.
    pub(crate) named: bool,
}

impl RouteTable {
    /// Compiles a listener's routes of all kinds. `passthrough` is the cluster of destinations that nobody told us of.
    pub(crate) fn of(
        listener: &Listener,
        clusters: &[ClusterConfig],
        passthrough: &Arc<Cluster>,
        cluster: impl Fn(&str) -> Option<Arc<Cluster>>,
    ) -> Self {
        let mut table =
            Self { table: route::RouteTable::new(&listener.routes, &listener.grpc_routes), ..Self::default() };
        for config in &listener.routes {
            table.add(Route::compile(config, &cluster));
        }
        for config in &listener.grpc_routes {
            table.add(Route::compile(&config.as_route(), &cluster));
        }
        if listener.redirected {
            for config in clusters.iter().filter(|config| !config.virtual_addresses.is_empty()) {
                let only = BackendRef::new(config.name.clone());
                let number = table.add(Route::to(&config.name, &[only], &cluster));
                table.virtuals.extend(config.virtual_addresses.iter().map(|address| (*address, number)));
            }
            if listener.direction == Direction::Outbound {
                for found in clusters.iter().filter_map(|config| cluster(&config.name)) {
                    let only = BackendRef::new(found.config.name.clone());
                    let route = Route::to(&found.config.name, &[only], |_| Some(Arc::clone(&found)));
                    let number = table.add(Route { direct: true, ..route });
                    table.direct.push((found, number));
                }
            }
            table.find_destinations();
            if listener.unknown_destinations == UnknownDestinations::Allow {
                let only = BackendRef::new(passthrough.config.name.clone());
                let route = Route::to(PASSTHROUGH, &[only], |_| Some(Arc::clone(passthrough)));
                table.unknown = Some(table.add(route));
            }
        }
        table.http = table.routes.len();
        if let Some(route) = &listener.tcp_route {
            table.tcp = Some(table.add(Route::to(&route.name, &route.backend_refs, &cluster)));
        }
        for route in &listener.tls_routes {
            let number = table.add(Route::to(&route.name, &route.backend_refs, &cluster));
            if route.hostnames.is_empty() {
                table.sni_any.get_or_insert(number);
            }
            for host in &route.hostnames {
                let host = host.to_ascii_lowercase();
                match host.strip_prefix('*') {
                    Some(suffix) => table.sni_wildcards.push((suffix.to_owned(), number)),
                    None => drop(table.sni.entry(host).or_insert(number)),
                }
            }
        }
        for config in &listener.connect_routes {
            let timeout = Duration::from(config.timeouts.request);
            let timeout = (!timeout.is_zero()).then_some(timeout);
            let route = table.add(Route { timeout, ..Route::to(&config.name, &config.backend_refs, &cluster) });
            let hosts = config.hostnames.iter().map(|host| {
                let host = host.to_ascii_lowercase();
                match host.strip_prefix('*') {
                    Some(suffix) => HostPattern::Suffix(suffix.to_owned()),
                    None => HostPattern::Exact(host),
                }
            });
            let mut hosts: Vec<_> = hosts.collect();
            if hosts.is_empty() {
                hosts.push(HostPattern::Any);
            }
            let forward = config.mode == ConnectMode::Forward;
            let ports = &config.ports;
            table.connects.extend(hosts.into_iter().map(|host| Connect { host, ports: ports.clone(), forward, route }));
        }
        table.connects.sort_by_key(|one| (one.host.rank(), one.ports.is_empty()));
        table.sni_wildcards.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        table
    }

    /// Clusters that requests may go to, and that want connections made ahead.
    pub(crate) fn wanting_connections(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        let routes = self.routes[..self.http].iter().filter(|route| !route.direct);
        let clusters = routes.flat_map(|route| &route.backends).map(|one| &one.cluster);
        clusters.filter(|cluster| {
            let config = &cluster.config;
            config.pool.min_idle > 0 && config.proxy_protocol.is_none() && !config.original_destination
        })
    }

    /// Gives the routes of requests what they do beyond sending each once. `limits` finds the rate limits of a route of
    /// this name, or of the listener itself (`""`).
    pub(crate) fn guard(
        &mut self,
        listener: &Listener,
        limits: impl Fn(&str, &[RateLimit]) -> Vec<Arc<Limiter>>,
        global: impl Fn(&str, Option<&RouteConfig>) -> Option<GlobalLimit>,
        cluster: impl Fn(&str) -> Option<Arc<Cluster>>,
    ) {
        let calls: Vec<RouteConfig> = listener.grpc_routes.iter().map(GrpcRoute::as_route).collect();
        let configs: HashMap<&str, &RouteConfig> =
            listener.routes.iter().chain(&calls).map(|route| (route.name.as_str(), route)).collect();
        let of_listener = limits("", &listener.rate_limits);
        for route in &mut self.routes[..self.http] {
            let config = configs.get(route.name.as_str()).copied();
            let mut rate_limits = of_listener.clone();
            rate_limits.extend(config.into_iter().flat_map(|config| limits(&config.name, &config.rate_limits)));
            let limited = route.backends.iter().any(|one| one.cluster.adaptive.is_some());
            let mirror =
                config.and_then(|config| config.filters.iter().find_map(|filter| filter.request_mirror.as_ref()));
            let mirror = mirror.and_then(|mirror| Some(Mirror::of(mirror, cluster(&mirror.backend_ref.name)?)));
            let global = global(&route.name, config);
            route.resilience = Resilience::of(config, rate_limits, global, limited, mirror);
        }
    }

    fn add(&mut self, route: Route) -> u32 {
        self.routes.push(route);
        (self.routes.len() - 1) as u32
    }

    /// The number of the route of connections that are carried as they come, and wanted to go to `destination`.
    pub(crate) fn tcp(&self, destination: Option<SocketAddr>) -> Option<u32> {
        self.known(destination).or(self.tcp).or(self.unknown)
    }

    /// The number of the route of a virtual address, or of an endpoint's.
    fn known(&self, destination: Option<SocketAddr>) -> Option<u32> {
        self.destinations.load().known.get(&destination?).copied()
    }

    /// Whether redirected connections to an address have a route of its own.
    pub(crate) fn knows(&self, address: SocketAddr) -> bool {
        self.destinations.load().known.contains_key(&address)
    }

    /// Takes on the clusters' endpoints as they are now.
    pub(crate) fn find_destinations(&self) {
        let of: Vec<Arc<[Arc<Peer>]>> =
            self.direct.iter().map(|(cluster, _)| Arc::clone(&cluster.members().peers)).collect();
        let is_known =
            |before: &Vec<Arc<[Arc<Peer>]>>| before.iter().zip(&of).all(|(one, other)| Arc::ptr_eq(one, other));
        if self.destinations.load().of.as_ref().is_some_and(is_known) {
            return;
        }
        let mut known = HashMap::with_capacity(of.iter().map(|peers| peers.len()).sum());
        for (peers, (_, number)) in of.iter().zip(&self.direct) {
            for peer in peers.iter() {
                known.entry(peer.address).or_insert(*number);
            }
        }
        // What a config says in so many words comes first.
        known.extend(&self.virtuals);
        self.destinations.store(Arc::new(Destinations { known, of: Some(of) }));
    }

    /// Whether any CONNECT is taken.
    pub(crate) fn takes_connect(&self) -> bool {
        !self.connects.is_empty()
    }

    /// Where a CONNECT to this host, without brackets, and port goes.
    pub(crate) fn connect(&self, host: &str, port: u16) -> Option<ConnectTo> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let found = self.connects.iter().find(|one| {
            let fits = match &one.host {
                HostPattern::Exact(name) => *name == host,
                HostPattern::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
                HostPattern::Any => true,
            };
            fits && (one.ports.is_empty() || one.ports.contains(&port))
        })?;
        let named = matches!(found.host, HostPattern::Exact(_));
        Some(ConnectTo { route: found.route, forward: found.forward, named })
    }

    /// The number of the route of a TLS connection whose client asks for `name`, and wanted to go to `destination`.
    pub(crate) fn tls(&self, name: Option<&str>, destination: Option<SocketAddr>) -> Option<u32> {
        self.sni(name).or_else(|| self.tcp(destination))
    }

    fn sni(&self, name: Option<&str>) -> Option<u32> {
        let Some(name) = name else { return self.sni_any };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let wild = || {
            let mut suffixes = self.sni_wildcards.iter();
            suffixes.find(|(suffix, _)| name.len() > suffix.len() && name.ends_with(suffix)).map(|(_, number)| *number)
        };
        self.sni.get(&name).copied().or_else(wild).or(self.sni_any)
    }

    /// A route by its number.
    pub(crate) fn route(&self, number: u32) -> Option<&Route> {
        self.routes.get(number as usize)
    }

    /// The route of a request.
    pub(crate) fn find(&self, request: &Request<'_>) -> Option<Found> {
        self.table.find(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_goes_by_host_and_port() {
        let listener: Listener = serde_json::from_value(serde_json::json!({
            "name": "in", "direction": "outbound", "address": "127.0.0.1:1",
            "connectRoutes": [
                { "name": "any", "backendRefs": [{ "name": "c" }], "ports": [443] },
                { "name": "wild", "hostnames": ["*.example"], "backendRefs": [{ "name": "c" }], "mode": "forward" },
                { "name": "exact", "hostnames": ["db.example", "10.0.0.1"], "backendRefs": [{ "name": "c" }] },
                { "name": "port", "hostnames": ["db.example"], "ports": [5432], "backendRefs": [{ "name": "c" }] },
            ],
        }))
        .unwrap();
        let passthrough = Cluster::passthrough(outrigger_config::Direction::Outbound);
        let table = RouteTable::of(&listener, &[], &passthrough, |_| None);
        for (host, port, expected) in [
            ("db.example", 5432, Some(("port", false, true))),
            ("DB.example.", 80, Some(("exact", false, true))),
            ("10.0.0.1", 80, Some(("exact", false, true))),
            ("x.example", 80, Some(("wild", true, false))),
            ("example", 443, Some(("any", false, false))),
            ("::1", 443, Some(("any", false, false))),
            ("example", 80, None),
        ] {
            let found = table.connect(host, port);
            let found = found.map(|to| (table.route(to.route).unwrap().name.as_str(), to.forward, to.named));
            assert_eq!(found, expected, "{host}:{port}");
        }
    }

    #[test]
    fn redirected_connections_go_by_their_destination() {
        let listener = |more: &str| {
            let text = format!(
                "proxy:\n  listeners:\n  - {{ name: out, direction: outbound, address: \"[::]:15001\", protocol: auto, \
                 redirected: true{more} }}\n  clusters:\n  - {{ name: orders, endpoints: [\"10.0.0.7:80\"], \
                 virtualAddresses: [\"10.96.0.1:80\", \"[fd00::1]:80\"] }}\n  - {{ name: other, endpoints: [\"10.0.0.8:80\", \
                 \"10.0.0.7:80\", \"10.96.0.1:80\"] }}\n"
            );
            outrigger_config::parse("test.yaml", &text, &|_| None).unwrap_or_else(|error| panic!("{error}")).config
        };
        let found = |more: &str, destination: &str| {
            let proxy = listener(more).proxy.unwrap();
            let clusters = crate::cluster::Clusters::default();
            let passthrough = Cluster::passthrough(outrigger_config::Direction::Outbound);
            let table = RouteTable::of(&proxy.listeners[0], &proxy.clusters, &passthrough, |name| {
                proxy.clusters.iter().find(|one| one.name.as_str() == name).map(|one| clusters.obtain(one))
            });
            let number = table.tcp(Some(destination.parse().unwrap()))?;
            let cluster = table.route(number).unwrap().backend(0).unwrap().name.clone();
            Some((table.route(number).unwrap().name.clone(), cluster))
        };
        let all = ", tcpRoute: { name: bytes, backendRefs: [{ name: other }] }";
        let deny = ", unknownDestinations: deny";
        for (more, destination, expected) in [
            ("", "10.96.0.1:80", Some(("orders", "orders"))),
            ("", "[fd00::1]:80", Some(("orders", "orders"))),
            ("", "10.96.0.1:81", Some(("passthrough", "passthrough"))),
            // An endpoint itself: of the first cluster that has it.
            ("", "10.0.0.7:80", Some(("orders", "orders"))),
            ("", "10.0.0.8:80", Some(("other", "other"))),
            (deny, "10.0.0.8:80", Some(("other", "other"))),
            (all, "10.0.0.7:80", Some(("orders", "orders"))),
            ("", "10.0.0.8:81", Some(("passthrough", "passthrough"))),
            (deny, "10.96.0.1:80", Some(("orders", "orders"))),
            (deny, "10.96.0.1:81", None),
            (all, "10.96.0.1:80", Some(("orders", "orders"))),
            (all, "10.96.0.1:81", Some(("bytes", "other"))),
        ] {
            let expected = expected.map(|(route, cluster)| (route.to_owned(), cluster.to_owned()));
            assert_eq!(found(more, destination), expected, "{destination} with {more:?}");
        }
    }

    #[test]
    fn endpoints_that_come_and_go_are_found_and_forgotten() {
        let listener: Listener = serde_json::from_value(serde_json::json!({
            "name": "out", "direction": "outbound", "address": "[::]:15001", "redirected": true, "protocol": "auto",
        }))
        .unwrap();
        let config = |endpoints: [&str; 2]| {
            let endpoints = endpoints.map(|one| one.parse().unwrap()).into();
            outrigger_config::Cluster::new("orders".parse().unwrap(), endpoints)
        };
        let before = config(["10.0.0.7:80", "10.0.0.8:80"]);
        let clusters = crate::cluster::Clusters::default();
        let orders = clusters.obtain(&before);
        let passthrough = Cluster::passthrough(Direction::Outbound);
        let table = RouteTable::of(&listener, &[before], &passthrough, |_| Some(Arc::clone(&orders)));
        let found = |address: &str| {
            let route = table.route(table.tcp(Some(address.parse().unwrap())).unwrap()).unwrap();
            (route.name.as_str(), route.direct)
        };
        assert_eq!([found("10.0.0.7:80"), found("10.0.0.9:80")], [("orders", true), ("passthrough", false)]);
        // As when DNS answers anew.
        assert!(Arc::ptr_eq(&clusters.obtain(&config(["10.0.0.8:80", "10.0.0.9:80"])), &orders));
        table.find_destinations();
        assert_eq!([found("10.0.0.7:80"), found("10.0.0.9:80")], [("passthrough", false), ("orders", true)]);
        assert_eq!(found("10.0.0.8:80"), ("orders", true));
    }

    #[test]
    fn weights_share_the_traffic() {
        let cluster = |name: &str| {
            let config = outrigger_config::Cluster::new(name.parse().unwrap(), vec!["127.0.0.1:1".parse().unwrap()]);
            Some(crate::cluster::Clusters::default().obtain(&config))
        };
        let share = |weights: &[(&str, u32)], random: u32| {
            let mut config = RouteConfig::new("r".parse().unwrap());
            config.backend_refs = weights
                .iter()
                .map(|(name, weight)| BackendRef { weight: *weight, ..BackendRef::new(name.parse().unwrap()) })
                .collect();
            Route::compile(&config, cluster).backend(random).map(|cluster| cluster.name.clone())
        };
        for (weights, random, expected) in [
            (&[("a", 1), ("b", 3)][..], 0, Some("a")),
            (&[("a", 1), ("b", 3)], u32::MAX / 4, Some("a")),
            (&[("a", 1), ("b", 3)], u32::MAX / 4 + 2, Some("b")),
            (&[("a", 1), ("b", 3)], u32::MAX, Some("b")),
            (&[("a", 0), ("b", 1)], 0, Some("b")),
            (&[("a", 0)], 7, None),
            (&[("a", 0), ("b", 0)], 7, None),
            (&[("a", u32::MAX), ("b", u32::MAX)], u32::MAX, Some("b")),
        ] {
            assert_eq!(share(weights, random).as_deref(), expected, "{weights:?} {random}");
        }
    }
}
