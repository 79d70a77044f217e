//! Rules of `proxy.listeners`.

use super::routes::{carrying_rules, conflicting_routes, connect_rules, grpc_route_rules, route_rules};
use super::{global_limits, needs_identity, resilience, trusted};
use crate::diagnostic::Problem;
use crate::judge::Judge;
use crate::{ByteSize, Config, ConfigPath, Listener, ListenerProtocol, ListenerTlsMode, Proxy};

pub(super) fn listener_rules(
    config: &Config,
    proxy: &Proxy,
    listener: &Listener,
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
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
    resilience::rate_limit_rules(&listener.rate_limits, &at.key("rateLimits"), judge);
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
    let (routes, grpc) = (at.key("routes"), at.key("grpcRoutes"));
    let named = listener.routes.iter().enumerate().map(|(i, route)| (routes.index(i).key("name"), route.name.clone()));
    let calls = listener.grpc_routes.iter().enumerate();
    let calls = calls.map(|(i, route)| (grpc.index(i).key("name"), route.name.clone()));
    judge.unique("route name", "give each a name of its own", named.chain(calls));
    for (index, route) in listener.routes.iter().enumerate() {
        route_rules(config, proxy, listener, route, &routes.index(index), judge);
    }
    for (index, route) in listener.grpc_routes.iter().enumerate() {
        grpc_route_rules(config, proxy, listener, route, &grpc.index(index), judge);
    }
    global_limits::limit_rules(proxy, listener, &listener.global_rate_limits, &at.key("globalRateLimits"), judge);
    conflicting_routes(listener, at, judge);
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
        ("grpcRoutes", !listener.grpc_routes.is_empty(), matches!(listener.protocol, Http | Auto)),
        ("tcpRoute", listener.tcp_route.is_some(), matches!(listener.protocol, Tcp | Auto)),
        ("tlsRoutes", !listener.tls_routes.is_empty(), listener.protocol == Tls),
    ] {
        let place = at.key(key);
        if judge.checked.is_blurred_within(&place) || judge.checked.is_blurred(&at.key("protocol")) {
            continue;
        }
        // What is redirected may all go by virtual addresses.
        let other = listener.redirected
            || key == "grpcRoutes"
            || (key == "routes" && !(listener.connect_routes.is_empty() && listener.grpc_routes.is_empty()));
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
        carrying_rules(proxy, listener, &route.backend_refs, &at.key("tcpRoute"), judge);
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
        carrying_rules(proxy, listener, &route.backend_refs, &routes.index(index), judge);
    }
}
