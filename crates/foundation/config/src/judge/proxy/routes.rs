//! Rules of routes of all kinds.

use std::collections::HashMap;
use std::net::IpAddr;

use super::resilience;
use crate::diagnostic::Problem;
use crate::judge::Judge;
use crate::{BackendRef, ConfigPath, ConnectMode, HostPort, Listener, ListenerProtocol, PathMatchType, Proxy, Route};

pub(super) fn route_rules(proxy: &Proxy, listener: &Listener, route: &Route, at: &ConfigPath, judge: &mut Judge<'_>) {
    backend_rules(proxy, listener, &route.backend_refs, at, judge);
    resilience::route_rules(route, at, judge);
}

pub(super) fn backend_rules(
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

pub(super) fn connect_rules(proxy: &Proxy, listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
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

/// Of two routes that match the very same requests, the second is never taken.
pub(super) fn shadowed_routes(listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
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
