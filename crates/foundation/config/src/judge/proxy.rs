//! Rules of the section `proxy`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::Judge;
use crate::diagnostic::Problem;
use crate::{
    BackendRef, ByteSize, Cluster, Config, ConfigPath, ConnectMode, HostPort, Listener, ListenerProtocol,
    PathMatchType, Proxy, Route, SpiffePattern,
};
use crate::{ClusterTls, ListenerTlsMode};

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let Some(proxy) = &config.proxy else { return };
    let at = ConfigPath::from("proxy");
    let (listeners, clusters) = (at.key("listeners"), at.key("clusters"));
    let named = proxy.listeners.iter().enumerate();
    judge.unique(
        "listener name",
        "give each a name of its own",
        named.map(|(i, listener)| (listeners.index(i).key("name"), listener.name.clone())),
    );
    let named = proxy.clusters.iter().enumerate();
    judge.unique(
        "cluster name",
        "give each a name of its own",
        named.map(|(i, cluster)| (clusters.index(i).key("name"), cluster.name.clone())),
    );
    for (index, listener) in proxy.listeners.iter().enumerate() {
        listener_rules(config, proxy, listener, &listeners.index(index), judge);
    }
    for (index, cluster) in proxy.clusters.iter().enumerate() {
        cluster_rules(config, cluster, &clusters.index(index), judge);
    }
    unused_clusters(proxy, judge);
    if proxy.limits.max_buffer_bytes < ByteSize::mib(1) {
        let message = "`maxBufferBytes` is too small to carry traffic";
        judge.error("value", &at.key("limits").key("maxBufferBytes"), message, "allow at least `1MiB`");
    }
    if let Some(log) = &proxy.access_log
        && log.buffer < ByteSize::kib(4)
    {
        judge.error(
            "value",
            &at.key("accessLog").key("buffer"),
            "`buffer` is too small to hold a line",
            "allow at least `4KiB`",
        );
    }
}

fn listener_rules(config: &Config, proxy: &Proxy, listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
    let wants_original =
        |name: &str| proxy.clusters.iter().any(|cluster| cluster.name.as_str() == name && cluster.original_destination);
    if !listener.redirected
        && let Some(backend) = listener.carrying_backend_refs().find(|backend| wants_original(&backend.name))
    {
        let message =
            format!("the cluster `{}` needs an original destination, and this listener has none", backend.name);
        judge.error(
            "conflict",
            &at.key("name"),
            message,
            "set `redirected: true` on the listener, or list `endpoints`",
        );
    }
    if let Some(tls) = &listener.tls {
        let at = at.key("tls");
        let (certificates, simple) = (at.key("certificates"), tls.mode == ListenerTlsMode::Simple);
        if !judge.checked.is_blurred_within(&certificates) && !judge.checked.is_blurred(&at.key("mode")) {
            if simple && tls.certificates.is_empty() {
                let message = "TLS with `mode: simple` needs `certificates`";
                let problem = Problem::error("missing", judge.key_span(&at), certificates, message);
                judge.report(problem.help("add one with `certificate` and `key`, each the path of a PEM file"));
            } else if !simple && !tls.certificates.is_empty() {
                let message = "`certificates` are never shown: mTLS shows the workload's identity";
                judge.warning("unused", &certificates, message, "remove them, or use `mode: simple`");
            }
        }
        if simple && !tls.allowed_peers.is_empty() {
            let message = "with `mode: simple` nobody knows who a client is, so `allowedPeers` cannot be held";
            judge.error("conflict", &at.key("allowedPeers"), message, "use `mode: strict`, or remove `allowedPeers`");
        }
        if !simple {
            needs_identity(config, &at, judge);
        }
        trusted(config, &at.key("allowedPeers"), &tls.allowed_peers, judge);
    }
    let limits = at.key("limits");
    judge.not_zero(&limits.key("headerTimeout"), listener.limits.header_timeout);
    judge.not_zero(&limits.key("bodyTimeout"), listener.limits.body_timeout);
    judge.not_zero(&limits.key("idleTimeout"), listener.limits.idle_timeout);
    if listener.limits.max_uri_bytes < ByteSize::kib(1) {
        let message = "`maxUriBytes` is too small for ordinary requests";
        judge.error("value", &limits.key("maxUriBytes"), message, "allow at least `1KiB`; `8KiB` is common");
    }
    let header_bytes = listener.limits.max_header_bytes;
    if header_bytes < ByteSize::kib(1) || header_bytes > ByteSize::mib(1) {
        let message = "`maxHeaderBytes` is out of range";
        judge.error("value", &limits.key("maxHeaderBytes"), message, "it must be between `1KiB` and `1MiB`");
    }
    judge.not_zero(&at.key("detectTimeout"), listener.detect_timeout);
    redirection_rules(listener, at, judge);
    protocol_rules(proxy, listener, at, judge);
    let routes = at.key("routes");
    let named = listener.routes.iter().enumerate();
    judge.unique(
        "route name",
        "give each a name of its own",
        named.map(|(i, route)| (routes.index(i).key("name"), route.name.clone())),
    );
    for (index, route) in listener.routes.iter().enumerate() {
        route_rules(proxy, listener, route, &routes.index(index), judge);
    }
    shadowed_routes(listener, &routes, judge);
}

/// What is redirected is whatever the application speaks.
fn redirection_rules(listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (unknown, protocol) = (at.key("unknownDestinations"), at.key("protocol"));
    if judge.checked.is_blurred(&at.key("redirected")) {
        return;
    }
    if !listener.redirected && judge.is_given(&unknown) {
        let message = "`unknownDestinations` is never used: this listener has no redirected connections";
        judge.warning("unused", &unknown, message, "remove it, or set `redirected: true`");
    }
    if listener.redirected && !judge.is_given(&protocol) {
        let message = "all the application's connections are redirected here, and those that are not HTTP are refused";
        let problem = Problem::error("missing", judge.key_span(&at.key("redirected")), protocol, message).warning();
        judge.report(problem.help("add `protocol: auto`, or `protocol: http` if that is what you want"));
    }
}

/// A listener's protocol needs the routes of its kind, and no others.
fn protocol_rules(proxy: &Proxy, listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
    use ListenerProtocol::{Auto, Http, Tcp, Tls};
    let word = match listener.protocol {
        Http => "http",
        Auto => "auto",
        Tcp => "tcp",
        Tls => "tls",
    };
    for (key, given, wanted) in [
        ("routes", !listener.routes.is_empty(), matches!(listener.protocol, Http | Auto)),
        ("tcpRoute", listener.tcp_route.is_some(), matches!(listener.protocol, Tcp | Auto)),
        ("tlsRoutes", !listener.tls_routes.is_empty(), listener.protocol == Tls),
    ] {
        let place = at.key(key);
        if judge.checked.is_blurred_within(&place) || judge.checked.is_blurred(&at.key("protocol")) {
            continue;
        }
        // What is redirected may all go by virtual addresses.
        let other = listener.redirected || (key == "routes" && !listener.connect_routes.is_empty());
        if wanted && !given && !other {
            let message = format!("a listener with `protocol: {word}` needs `{key}`");
            let span = judge.key_span(at);
            let problem = Problem::error("missing", span, place, message);
            judge.report(problem.help(format!("add `{key}` that name clusters in `backendRefs`")));
        } else if given && !wanted {
            let message = format!("`{key}` is never used with `protocol: {word}`");
            judge.warning("unused", &place, message, "remove it, or change the listener's `protocol`");
        }
    }
    if listener.protocol == Tls && listener.tls.is_some() {
        let message = "`protocol: tls` carries TLS undecrypted, so the listener has no TLS of its own";
        judge.error("conflict", &at.key("tls"), message, "remove `tls`, or use `protocol: tcp` to decrypt");
    }
    if let Some(route) = &listener.tcp_route {
        backend_rules(proxy, listener, &route.backend_refs, &at.key("tcpRoute"), judge);
    }
    connect_rules(proxy, listener, at, judge);
    let routes = at.key("tlsRoutes");
    let named = listener.tls_routes.iter().enumerate();
    judge.unique(
        "route name",
        "give each a name of its own",
        named.map(|(i, route)| (routes.index(i).key("name"), route.name.clone())),
    );
    for (index, route) in listener.tls_routes.iter().enumerate() {
        backend_rules(proxy, listener, &route.backend_refs, &routes.index(index), judge);
    }
}

fn connect_rules(proxy: &Proxy, listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
    let routes = at.key("connectRoutes");
    if matches!(listener.protocol, ListenerProtocol::Tcp | ListenerProtocol::Tls) && !listener.connect_routes.is_empty()
    {
        let message = "`connectRoutes` are never used: the listener does not speak HTTP";
        judge.warning("unused", &routes, message, "remove them, or change the listener's `protocol`");
    }
    let named = listener.connect_routes.iter().enumerate();
    judge.unique(
        "route name",
        "give each a name of its own",
        named.map(|(i, route)| (routes.index(i).key("name"), route.name.clone())),
    );
    for (index, route) in listener.connect_routes.iter().enumerate() {
        let at = routes.index(index);
        backend_rules(proxy, listener, &route.backend_refs, &at, judge);
        let original = |name: &str| {
            proxy.clusters.iter().any(|cluster| cluster.name.as_str() == name && cluster.original_destination)
        };
        if route.mode == ConnectMode::Forward
            && let Some(backend) = route.backend_refs.iter().find(|backend| original(&backend.name))
        {
            let message = format!("the cluster `{}` has no endpoint that could be a proxy", backend.name);
            judge.error("conflict", &at.key("mode"), message, "use `mode: terminate`, or a cluster with `endpoints`");
        }
        if let Some(zero) = route.ports.iter().position(|port| *port == 0) {
            let message = "no connection goes to port 0";
            judge.error("value", &at.key("ports").index(zero), message, "write a port from 1 to 65535");
        }
    }
}

fn route_rules(proxy: &Proxy, listener: &Listener, route: &Route, at: &ConfigPath, judge: &mut Judge<'_>) {
    backend_rules(proxy, listener, &route.backend_refs, at, judge);
}

fn backend_rules(
    proxy: &Proxy,
    listener: &Listener,
    backend_refs: &[BackendRef],
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    let home = ConfigPath::from("proxy.clusters");
    let clusters = proxy.clusters.iter().enumerate();
    let known: Vec<_> = clusters.map(|(i, cluster)| (home.index(i).key("name"), cluster.name.as_str())).collect();
    let backends = at.key("backendRefs");
    for (index, backend) in backend_refs.iter().enumerate() {
        let at = backends.index(index).key("name");
        if judge.known("cluster", &at, &backend.name, &known, &home) {
            sends_to_itself(proxy, listener, &backend.name, &at, judge);
        }
    }
    let named = backend_refs.iter().enumerate();
    judge.unique(
        "backend",
        "add up their weights in one",
        named.map(|(i, backend)| (backends.index(i).key("name"), backend.name.clone())),
    );
    if !backend_refs.is_empty() && backend_refs.iter().all(|backend| backend.weight == 0) {
        let first = backends.index(0).key("weight");
        if !judge.checked.is_blurred_within(&backends) {
            judge.error(
                "value",
                &first,
                "all weights of the route are 0, so no cluster takes its traffic",
                "give at least one backend a weight of 1 or more",
            );
        }
    }
}

/// A listener whose cluster is the listener itself would call itself for ever.
fn sends_to_itself(proxy: &Proxy, listener: &Listener, cluster: &str, at: &ConfigPath, judge: &mut Judge<'_>) {
    let here = listener.address;
    let meets = |endpoint: &HostPort| {
        let ip = match endpoint.host.as_str() {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            host => host.parse().ok(),
        };
        endpoint.port == here.port()
            && ip.is_some_and(|ip: IpAddr| ip == here.ip() || here.ip().is_unspecified() && ip.is_loopback())
    };
    let index = proxy.clusters.iter().position(|candidate| candidate.name.as_str() == cluster);
    let Some((index, cluster)) = index.map(|index| (index, &proxy.clusters[index])) else { return };
    let endpoint = cluster.endpoints.iter().position(meets);
    if let Some(endpoint) = endpoint {
        let endpoint = ConfigPath::from("proxy.clusters").index(index).key("endpoints").index(endpoint);
        if judge.checked.is_blurred(&endpoint) {
            return;
        }
        let message = format!("the cluster `{}` leads back to this listener", judge.shown(at, &cluster.name));
        let problem = Problem::error("conflict", judge.span(at), at.clone(), message);
        let problem = problem.related(judge.span(&endpoint), "this endpoint is the listener's own address");
        judge.report(problem.help("point the endpoint at the application or the peer"));
    }
}

/// Of two routes that match the very same requests, the second is never taken.
fn shadowed_routes(listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
    let mut seen: HashMap<(&str, PathMatchKey), (usize, &Route)> = HashMap::new();
    for (index, route) in listener.routes.iter().enumerate() {
        let path = at.index(index);
        if judge.checked.is_blurred_within(&path.key("matches"))
            || judge.checked.is_blurred_within(&path.key("hostnames"))
        {
            continue;
        }
        let keys: Vec<_> = requests_of(route).collect();
        let first = keys.first().and_then(|key| seen.get(key)).copied();
        if let Some((first, shadow)) = first
            && keys.iter().all(|key| seen.contains_key(key))
        {
            let (name, other) = (path.key("name"), at.index(first).key("name"));
            let message = format!("the route `{}` is never taken", judge.shown(&name, &route.name));
            let problem = Problem::error("unused", judge.span(&name), name, message).warning();
            let label = format!("`{}` matches the same requests and comes first", judge.shown(&other, &shadow.name));
            judge.report(
                problem
                    .help("make its hostnames or matches more specific, or remove it")
                    .related(judge.span(&other), label),
            );
        }
        for key in keys {
            seen.entry(key).or_insert((index, route));
        }
    }
}

type PathMatchKey = (bool, String);

/// Host and path of each kind of request that a route matches.
fn requests_of(route: &Route) -> impl Iterator<Item = (&str, PathMatchKey)> {
    let hosts: Vec<&str> =
        if route.hostnames.is_empty() { vec!["*"] } else { route.hostnames.iter().map(String::as_str).collect() };
    let paths: Vec<PathMatchKey> = if route.matches.is_empty() {
        vec![(false, String::new())]
    } else {
        let key = |kind: PathMatchType, value: &str| match kind {
            PathMatchType::Exact => (true, value.to_owned()),
            PathMatchType::PathPrefix => (false, value.trim_end_matches('/').to_owned()),
        };
        route.matches.iter().map(|found| key(found.path.kind, &found.path.value)).collect()
    };
    hosts.into_iter().flat_map(move |host| paths.clone().into_iter().map(move |path| (host, path)))
}

fn cluster_rules(config: &Config, cluster: &Cluster, at: &ConfigPath, judge: &mut Judge<'_>) {
    if let Some(tls) = &cluster.tls {
        let at = at.key("tls");
        cluster_tls_rules(config, tls, &at, judge);
        trusted(config, &at.key("spiffeIds"), &tls.spiffe_ids, judge);
    }
    judge.not_zero(&at.key("connectTimeout"), cluster.connect_timeout);
    let pool = at.key("pool");
    judge.not_zero(&pool.key("idleTimeout"), cluster.pool.idle_timeout);
    let min_idle = pool.key("minIdle");
    if cluster.pool.min_idle > cluster.pool.max_idle {
        let message = "`minIdle` is more than `maxIdle`, so those made ahead would not be kept";
        judge.error("conflict", &min_idle, message, "lower `minIdle`, or raise `maxIdle`");
    }
    if cluster.pool.min_idle > 0 && (cluster.proxy_protocol.is_some() || cluster.original_destination) {
        let message = "`minIdle` has no effect: connections to this cluster are made for each client";
        judge.warning("unused", &min_idle, message, "remove it");
    }
    let max_idle = pool.key("maxIdle");
    if cluster.pool.max_idle > cluster.pool.max_connections && judge.is_given(&max_idle) {
        let message = "`maxIdle` is more than `maxConnections`, so it is never reached";
        judge.warning("conflict", &max_idle, message, "lower `maxIdle`, or raise `maxConnections`");
    }
    let endpoints = at.key("endpoints");
    if !judge.checked.is_blurred_within(&endpoints) {
        match (cluster.endpoints.is_empty(), cluster.original_destination) {
            (true, false) => {
                let message = "the cluster has neither `endpoints` nor `originalDestination`";
                let problem = Problem::error("missing", judge.key_span(at), endpoints.clone(), message);
                judge.report(problem.help("list its `endpoints`, as HOST:PORT"));
            }
            (false, true) => {
                let message = "the cluster has both `endpoints` and `originalDestination`";
                judge.error("conflict", &at.key("originalDestination"), message, "keep one of them");
            }
            _ => {}
        }
    }
    let virtual_addresses = at.key("virtualAddresses");
    let listed = cluster.virtual_addresses.iter().enumerate();
    judge.unique("virtual address", "keep one of them", listed.map(|(i, one)| (virtual_addresses.index(i), *one)));
    let listed = cluster.endpoints.iter().enumerate();
    judge.unique("endpoint", "keep one of them", listed.map(|(i, endpoint)| (endpoints.index(i), endpoint.clone())));
}

fn cluster_tls_rules(config: &Config, tls: &ClusterTls, at: &ConfigPath, judge: &mut Judge<'_>) {
    if judge.checked.is_blurred_within(at) {
        return;
    }
    let ordinary = tls.server_name.is_some();
    if !ordinary {
        needs_identity(config, at, judge);
    }
    match (ordinary, tls.spiffe_ids.is_empty()) {
        (false, true) => {
            let message = "TLS to a cluster needs `spiffeIds` or `serverName`, to know whom to expect";
            let problem = Problem::error("missing", judge.key_span(at), at.key("spiffeIds"), message);
            judge.report(problem.help("name the SPIFFE IDs its endpoints may have, or the server's DNS name"));
        }
        (true, false) => {
            let message = "`spiffeIds` is for mTLS and `serverName` for ordinary TLS; both cannot hold";
            judge.error("conflict", &at.key("serverName"), message, "keep one of them");
        }
        _ => {}
    }
    if !ordinary && tls.ca.is_some() {
        let message = "`ca` is never used: mTLS trusts the identity's own bundle";
        judge.warning("unused", &at.key("ca"), message, "remove it, or give a `serverName`");
    }
    if !ordinary && tls.client_certificate.is_some() {
        let message = "`clientCertificate` is never shown: mTLS shows the workload's identity";
        judge.warning("unused", &at.key("clientCertificate"), message, "remove it, or give a `serverName`");
    }
}

fn needs_identity(config: &Config, at: &ConfigPath, judge: &mut Judge<'_>) {
    if config.identity.is_none() && !judge.checked.is_blurred(&ConfigPath::from("identity")) {
        let problem =
            Problem::error("missing", judge.key_span(at), at.clone(), "TLS needs an identity, and the config has none");
        judge.report(problem.help("add the section `identity`, with `files` or `development`"));
    }
}

/// Peers must be of the one trust domain that we accept.
fn trusted(config: &Config, at: &ConfigPath, ids: &[SpiffePattern], judge: &mut Judge<'_>) {
    let ids = || ids.iter().enumerate().map(|(index, id)| (at.index(index), id));
    judge.unique("SPIFFE ID", "keep one of them", ids());
    let home = ConfigPath::from("identity.trustDomain");
    let Some(identity) = config.identity.as_ref().filter(|_| !judge.checked.is_blurred(&home)) else { return };
    for (at, id) in ids() {
        if id.trust_domain() != identity.trust_domain.as_str() {
            let (shown, domain) = (judge.shown(&at, id), judge.shown(&home, &identity.trust_domain));
            let message = format!("`{shown}` is not of the trust domain `{domain}`");
            let problem = Problem::error("conflict", judge.span(&at), at, message);
            let problem = problem.related(judge.span(&home), "the only trust domain accepted");
            judge.report(
                problem.help("peers of other trust domains are not accepted; correct the ID or the trust domain"),
            );
        } else if id.as_str().len() == "spiffe://".len() + id.trust_domain().len() {
            let message =
                format!("`{}` names a trust domain, not a workload, and matches no peer", judge.shown(&at, id));
            let help = format!(
                "add the workload's path, such as `spiffe://{}/ns/NAMESPACE/sa/SERVICE-ACCOUNT`",
                judge.shown(&home, &identity.trust_domain)
            );
            judge.error("value", &at, message, help);
        }
    }
}

fn unused_clusters(proxy: &Proxy, judge: &mut Judge<'_>) {
    if judge.checked.is_blurred_within(&ConfigPath::from("proxy.listeners")) {
        return;
    }
    let used: HashSet<_> =
        proxy.listeners.iter().flat_map(Listener::backend_refs).map(|backend| &backend.name).collect();
    if used.iter().any(|name| !proxy.clusters.iter().any(|cluster| cluster.name == **name)) {
        return; // A mistyped reference, reported already, may have meant any of them.
    }
    let unused = |cluster: &Cluster| !used.contains(&cluster.name) && cluster.virtual_addresses.is_empty();
    for (index, cluster) in proxy.clusters.iter().enumerate().filter(|(_, cluster)| unused(cluster)) {
        let at = ConfigPath::from("proxy.clusters").index(index).key("name");
        let message = format!("no route uses the cluster `{}`", judge.shown(&at, &cluster.name));
        judge.warning("unused", &at, message, "name it in a route's `backendRefs`, or remove it");
    }
}
