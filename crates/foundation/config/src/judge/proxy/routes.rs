//! Rules of routes of all kinds.

use std::collections::HashMap;
use std::net::IpAddr;

use super::filters::{backend_filters, grpc_route_filters, is_untouched, route_filters};
use super::global_limits;
use super::matches::{grpc_match_rules, match_rules};
use super::resilience;
use crate::diagnostic::Problem;
use crate::judge::Judge;
use crate::{
    BackendRef, Config, ConfigPath, ConnectMode, CookieLifetime, GrpcRoute, HeaderMatch, HostPort, Listener,
    ListenerProtocol, Name, PathMatchType, Proxy, Route, RouteMatch, SessionPersistenceType,
};

pub(super) fn route_rules(
    config: &Config,
    proxy: &Proxy,
    listener: &Listener,
    route: &Route,
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    backend_rules(proxy, listener, &route.backend_refs, at, judge);
    route_filters(route, at, judge);
    filters_of_backends(&route.backend_refs, at, judge);
    resilience::route_rules(route, at, judge);
    global_limits::limit_rules(proxy, listener, &route.global_rate_limits, &at.key("globalRateLimits"), judge);
    session_rules(proxy, route, at, judge);
    mirror_rules(proxy, listener, route, at, judge);
    let matches = at.key("matches");
    for (index, one) in route.matches.iter().enumerate() {
        match_rules(config, listener, one, &matches.index(index), judge);
    }
}

pub(super) fn grpc_route_rules(
    config: &Config,
    proxy: &Proxy,
    listener: &Listener,
    route: &GrpcRoute,
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    backend_rules(proxy, listener, &route.backend_refs, at, judge);
    let matches = at.key("matches");
    grpc_route_filters(route, at, judge);
    filters_of_backends(&route.backend_refs, at, judge);
    resilience::route_rules(&route.as_route(), at, judge);
    global_limits::limit_rules(proxy, listener, &route.global_rate_limits, &at.key("globalRateLimits"), judge);
    session_rules(proxy, &route.as_route(), at, judge);
    for (index, one) in route.matches.iter().enumerate() {
        grpc_match_rules(config, listener, one, &matches.index(index), judge);
    }
}

fn filters_of_backends(backend_refs: &[BackendRef], at: &ConfigPath, judge: &mut Judge<'_>) {
    for (index, backend) in backend_refs.iter().enumerate() {
        backend_filters(&backend.filters, &at.key("backendRefs").index(index).key("filters"), judge);
    }
}

/// Bytes have no head that a filter could change.
fn no_filters(backend_refs: &[BackendRef], at: &ConfigPath, judge: &mut Judge<'_>) {
    for (index, _) in backend_refs.iter().enumerate().filter(|(_, backend)| !backend.filters.is_empty()) {
        let at = at.key("backendRefs").index(index).key("filters");
        judge.error("conflict", &at, "filters are for `routes` and `grpcRoutes` only", "remove them");
    }
}

pub(super) fn carrying_rules(
    proxy: &Proxy,
    listener: &Listener,
    backend_refs: &[BackendRef],
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    backend_rules(proxy, listener, backend_refs, at, judge);
    no_filters(backend_refs, at, judge);
}

fn session_rules(proxy: &Proxy, route: &Route, at: &ConfigPath, judge: &mut Judge<'_>) {
    let Some(session) = &route.session_persistence else { return };
    let at = at.key("sessionPersistence");
    if judge.checked.is_blurred_within(&at) {
        return;
    }
    if route.backend_refs.is_empty() {
        let message = "`sessionPersistence` is never used: a filter answers all requests";
        judge.error("conflict", &at, message, "remove one of both");
    }
    for (key, timeout) in [("absoluteTimeout", session.absolute_timeout), ("idleTimeout", session.idle_timeout)] {
        if timeout.is_some_and(|timeout| timeout < crate::Duration::from_secs(1)) {
            judge.error("value", &at.key(key), "a session is at least a second long", "write `1s` or more");
        }
    }
    if let (Some(absolute), Some(idle)) = (session.absolute_timeout, session.idle_timeout)
        && idle > absolute
    {
        let message = "`idleTimeout` is longer than `absoluteTimeout`, which ends the session before";
        judge.error("conflict", &at.key("idleTimeout"), message, "make it shorter, or remove it");
    }
    let cookie = at.key("cookieConfig");
    match (session.kind, &session.cookie_config) {
        (SessionPersistenceType::Header, Some(_)) => {
            let message = "`cookieConfig` is never used with `type: Header`";
            judge.error("conflict", &cookie, message, "remove it, or change `type`");
        }
        (SessionPersistenceType::Cookie, Some(config))
            if config.lifetime_type == CookieLifetime::Permanent && session.absolute_timeout.is_none() =>
        {
            let message = "a permanent cookie needs to know until when";
            judge.error(
                "missing",
                &cookie.key("lifetimeType"),
                message,
                "add `absoluteTimeout:` beside `cookieConfig`",
            );
        }
        _ => {}
    }
    if session.kind == SessionPersistenceType::Header
        && let Some(name) = &session.session_name
        && is_untouched(name)
    {
        let name_at = at.key("sessionName");
        let message = format!("`{}` has a meaning of its own", judge.shown(&name_at, name));
        judge.error("value", &name_at, message, "use a name such as `x-session`");
    }
    if proxy.session_keys.is_empty() {
        let message = "sessions end when this process is replaced, and other replicas do not know them";
        judge.warning("missing", &at, message, "give all replicas the same secret in `proxy.sessionKeys`");
    }
}

fn mirror_rules(proxy: &Proxy, listener: &Listener, route: &Route, at: &ConfigPath, judge: &mut Judge<'_>) {
    let home = ConfigPath::from("proxy.clusters");
    let clusters = proxy.clusters.iter().enumerate();
    let known: Vec<_> = clusters.map(|(i, cluster)| (home.index(i).key("name"), cluster.name.as_str())).collect();
    for (index, filter) in route.filters.iter().enumerate() {
        let Some(mirror) = &filter.request_mirror else { continue };
        let at = at.key("filters").index(index).key("requestMirror");
        let name = at.key("backendRef").key("name");
        if judge.known("cluster", &name, &mirror.backend_ref.name, &known, &home) {
            sends_to_itself(proxy, listener, &mirror.backend_ref.name, &name, judge);
        }
        if let Some(fraction) = &mirror.fraction {
            let at = at.key("fraction");
            if mirror.percent.is_some() {
                judge.error(
                    "conflict",
                    &at,
                    "`percent` and `fraction` both say how many are copied",
                    "keep one of them",
                );
            }
            if fraction.numerator > fraction.denominator {
                let message = "more requests than there are cannot be copied";
                judge.error("value", &at.key("numerator"), message, "make it at most `denominator`");
            }
        }
    }
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
        if endpoint.port != here.port() {
            return false;
        }
        let ip = match endpoint.host.as_str() {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            host => host.parse().ok(),
        };
        ip.is_some_and(|ip: IpAddr| ip == here.ip() || here.ip().is_unspecified() && ip.is_loopback())
    };
    let index = proxy.clusters.iter().position(|candidate| candidate.name.as_str() == cluster);
    let Some((index, cluster)) = index.map(|index| (index, &proxy.clusters[index])) else { return };
    let endpoint = cluster.endpoints.iter().position(|endpoint| meets(&endpoint.address));
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
        carrying_rules(proxy, listener, &route.backend_refs, &at, judge);
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

/// Of two routes that match the very same requests the second would never be taken: a mistake, for one of both is not meant so.
pub(super) fn conflicting_routes(listener: &Listener, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (routes, grpc) = (at.key("routes"), at.key("grpcRoutes"));
    let http = listener.routes.iter().enumerate().map(|(index, route)| {
        let matches: Vec<_> = route.matches.iter().map(same_requests).collect();
        (routes.index(index), &route.name, &route.hostnames, matches)
    });
    let http: Vec<_> = http.collect();
    let grpc = listener.grpc_routes.iter().enumerate().map(|(index, route)| {
        let told = |one| serde_json::to_string(one).unwrap_or_default();
        (grpc.index(index), &route.name, &route.hostnames, route.matches.iter().map(told).collect())
    });
    conflicts(http, judge);
    conflicts(grpc.collect(), judge);
}

/// Where a route stands, its name, its hosts, and each of its matches in one way of writing.
type Told<'r> = (ConfigPath, &'r Name, &'r Vec<String>, Vec<String>);

fn conflicts(routes: Vec<Told<'_>>, judge: &mut Judge<'_>) {
    let mut seen: HashMap<(&str, String), usize> = HashMap::new();
    for (index, (path, name, hostnames, matches)) in routes.iter().enumerate() {
        if judge.checked.is_blurred_within(&path.key("matches"))
            || judge.checked.is_blurred_within(&path.key("hostnames"))
        {
            continue;
        }
        let every = [same_requests(&RouteMatch::default())];
        let matches = if matches.is_empty() { every.as_slice() } else { matches.as_slice() };
        let mut hosts: Vec<&str> = hostnames.iter().map(String::as_str).collect();
        if hosts.is_empty() {
            hosts.push("*");
        }
        // By match, for each host: the route that takes its requests before.
        let before: Vec<Vec<_>> = matches
            .iter()
            .map(|one| hosts.iter().map(|host| seen.get(&(*host, one.clone())).copied()).collect())
            .collect();
        if before.iter().flatten().all(Option::is_some) {
            let (here, other) = (path.key("name"), before.iter().flatten().find_map(|first| *first).unwrap_or(index));
            let message = format!("the route `{}` is never taken", judge.shown(&here, name));
            let problem = Problem::error("conflict", judge.span(&here), here, message);
            report_first(problem, &routes[other], "make its hostnames or matches more specific, or remove it", judge);
        } else {
            for (number, hosts) in before.iter().enumerate().filter(|(_, hosts)| hosts.iter().all(Option::is_some)) {
                let (here, other) = (path.key("matches").index(number), hosts.iter().find_map(|first| *first));
                let message = "this match is never taken".to_owned();
                let problem = Problem::error("unused", judge.span(&here), here, message).warning();
                report_first(problem, &routes[other.unwrap_or(index)], "make it more specific, or remove it", judge);
            }
        }
        let keys: Vec<_> = hosts.iter().flat_map(|host| matches.iter().map(|one| (*host, one.clone()))).collect();
        for key in keys {
            seen.entry(key).or_insert(index);
        }
    }
}

/// Reports a conflict with both places.
fn report_first(problem: Problem, (first, name, ..): &Told<'_>, help: &str, judge: &mut Judge<'_>) {
    let place = first.key("name");
    let label = format!("`{}` matches the same requests and comes first", judge.shown(&place, name));
    judge.report(problem.help(help).related(judge.span(&place), label));
}

/// A match in one way of writing, so that those of the same requests are the same.
fn same_requests(one: &RouteMatch) -> String {
    let mut one = one.clone();
    if one.path.kind == PathMatchType::PathPrefix {
        one.path.value = one.path.value.trim_end_matches('/').to_owned();
    }
    one.headers.iter_mut().for_each(|HeaderMatch { name, .. }| name.make_ascii_lowercase());
    one.headers.sort_by(|a, b| a.name.cmp(&b.name));
    one.query_params.sort_by(|a, b| a.name.cmp(&b.name));
    one.peers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    serde_json::to_string(&one).unwrap_or_default()
}
