//! Rules of `proxy.clusters`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::{balancing, needs_identity, resilience, trusted};
use crate::diagnostic::Problem;
use crate::judge::Judge;
use crate::{Cluster, ClusterTls, Config, ConfigPath, Direction, HealthCheckType, HostPort, Listener, Proxy};

pub(super) fn cluster_rules(config: &Config, cluster: &Cluster, at: &ConfigPath, judge: &mut Judge<'_>) {
    if let Some(tls) = &cluster.tls {
        let at = at.key("tls");
        cluster_tls_rules(config, tls, &at, judge);
        trusted(config, &at.key("spiffeIds"), &tls.spiffe_ids, judge);
    }
    judge.not_zero(&at.key("connectTimeout"), cluster.connect_timeout);
    resilience::cluster_rules(cluster, at, judge);
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
    if cluster.pool.max_idle > cluster.circuit_breakers.max_connections && judge.is_given(&max_idle) {
        let message = "`maxIdle` is more than `circuitBreakers.maxConnections`, so it is never reached";
        judge.warning("conflict", &max_idle, message, "lower `maxIdle`, or raise `maxConnections`");
    }
    health_checks(cluster, &at.key("healthChecks"), judge);
    if let Some(outliers) = &cluster.outlier_detection {
        let at = at.key("outlierDetection");
        judge.not_zero(&at.key("interval"), outliers.interval);
        judge.not_zero(&at.key("baseEjectionTime"), outliers.base_ejection_time);
        if outliers.max_ejection_time < outliers.base_ejection_time {
            let message = "`maxEjectionTime` is shorter than `baseEjectionTime`";
            let (longest, base) = (at.key("maxEjectionTime"), at.key("baseEjectionTime"));
            let at = judge.given_of([&longest, &base]).clone();
            judge.error("conflict", &at, message, "raise `maxEjectionTime`, or lower `baseEjectionTime`");
        }
    }
    let endpoints = at.key("endpoints");
    if !judge.checked.is_blurred_within(&endpoints) {
        let (srv, discovery) = (cluster.srv.is_some(), cluster.discovery.is_some());
        match (cluster.endpoints.is_empty() && !srv && !discovery, cluster.original_destination) {
            (true, false) => {
                let message = "the cluster has neither `endpoints` nor `srv` nor `discovery` nor `originalDestination`";
                let problem = Problem::error("missing", judge.key_span(at), endpoints.clone(), message);
                judge.report(problem.help("list its `endpoints`, as HOST:PORT"));
            }
            (false, true) => {
                let other = if srv {
                    "srv"
                } else if discovery {
                    "discovery"
                } else {
                    "endpoints"
                };
                let message = format!("the cluster has both `{other}` and `originalDestination`");
                judge.error("conflict", &at.key("originalDestination"), message, "keep one of them");
            }
            _ if srv && !cluster.endpoints.is_empty() => {
                let message = "the cluster has both `endpoints` and `srv`";
                judge.error("conflict", &at.key("srv"), message, "keep one of them");
            }
            _ if discovery && (srv || !cluster.endpoints.is_empty()) => {
                let message =
                    format!("the cluster has both `{}` and `discovery`", if srv { "srv" } else { "endpoints" });
                judge.error("conflict", &at.key("discovery"), message, "keep one of them");
            }
            _ => {}
        }
    }
    let home = ConfigPath::from("proxy.discovery");
    let served = config.proxy.as_ref().is_some_and(|proxy| proxy.discovery.is_some());
    if cluster.discovery.is_some() && !served && !judge.checked.is_blurred(&home) {
        let message = "there is nobody to ask for the service's endpoints";
        judge.error(
            "missing",
            &at.key("discovery"),
            message,
            "add `proxy.discovery` with the `servers` that know them",
        );
    }
    let virtual_addresses = at.key("virtualAddresses");
    let listed = cluster.virtual_addresses.iter().enumerate();
    judge.unique("virtual address", "keep one of them", listed.map(|(i, one)| (virtual_addresses.index(i), *one)));
    // There may be thousands, and hardly ever one twice: only then it is asked where each stands.
    if may_repeat(cluster) {
        let listed = cluster.endpoints.iter().enumerate().map(|(index, endpoint)| {
            let at = endpoints.index(index);
            let address = at.key("address");
            (if judge.is_given(&address) { address } else { at }, &endpoint.address)
        });
        let listed: Vec<_> = listed.collect();
        judge.unique("endpoint", "keep one of them", listed);
    }
    balancing::rules(config, cluster, at, judge);
}

/// Whether an endpoint may be listed twice. Digests are sorted, which takes a fifth of what a set takes; two that are equal by
/// chance only make whoever asks look closer.
fn may_repeat(cluster: &Cluster) -> bool {
    let digest = |address: &HostPort| {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        step(
            step(address.host.bytes().fold(0xcbf2_9ce4_8422_2325, step), (address.port >> 8) as u8),
            address.port as u8,
        )
    };
    let mut digests: Vec<u64> = cluster.endpoints.iter().map(|endpoint| digest(&endpoint.address)).collect();
    digests.sort_unstable();
    digests.windows(2).any(|pair| pair[0] == pair[1])
}

fn health_checks(cluster: &Cluster, at: &ConfigPath, judge: &mut Judge<'_>) {
    if cluster.original_destination && !cluster.health_checks.is_empty() {
        let message = "`healthChecks` have no effect: nobody knows the endpoints of this cluster beforehand";
        judge.warning("unused", at, message, "remove them, or list `endpoints`");
    }
    if cluster.health_checks.len() > 8 {
        judge.error("value", at, "a cluster has at most 8 health checks", "remove some");
    }
    for (index, check) in cluster.health_checks.iter().enumerate() {
        let at = at.index(index);
        for (key, time) in
            [("interval", check.interval), ("timeout", check.timeout), ("noTrafficInterval", check.no_traffic_interval)]
        {
            judge.not_zero(&at.key(key), time);
        }
        for (key, kind, given) in [
            ("http", HealthCheckType::Http, check.http.is_some()),
            ("grpc", HealthCheckType::Grpc, check.grpc.is_some()),
            ("tcp", HealthCheckType::Tcp, check.tcp.is_some()),
        ] {
            if given && check.kind != kind && !judge.checked.is_blurred(&at.key("type")) {
                let message = format!("`{key}` does not belong to this `type`");
                judge.error("conflict", &at.key(key), message, "remove it, or change the `type`");
            }
        }
        if let Some(http) = &check.http {
            let at = at.key("http");
            if !http.path.starts_with('/') || !http.path.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!("`{}` is not a path", judge.shown(&at.key("path"), &http.path));
                judge.error("value", &at.key("path"), message, "begin it with `/`, and write a space as `%20`");
            }
            if http.hostname.as_ref().is_some_and(|host| !host.bytes().all(|byte| byte.is_ascii_graphic())) {
                judge.error(
                    "value",
                    &at.key("hostname"),
                    "`hostname` is not a host",
                    "write a name such as `shop.example`",
                );
            }
            let wrong = |status: &u16| !(200..600).contains(status);
            if http.expected_statuses.is_empty() || http.expected_statuses.iter().any(wrong) {
                let message = "`expectedStatuses` must be statuses from 200 to 599";
                judge.error("value", &at.key("expectedStatuses"), message, "write `[200]`");
            }
        }
    }
}

pub(super) fn cluster_tls_rules(config: &Config, tls: &ClusterTls, at: &ConfigPath, judge: &mut Judge<'_>) {
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

pub(super) fn unused_clusters(proxy: &Proxy, judge: &mut Judge<'_>) {
    if judge.checked.is_blurred_within(&ConfigPath::from("proxy.listeners")) {
        return;
    }
    let mut used = proxy.listeners.iter().flat_map(Listener::backend_refs).map(|backend| &backend.name);
    if used.any(|name| !proxy.clusters.iter().any(|cluster| cluster.name == *name)) {
        return; // A mistyped reference, reported already, may have meant any of them.
    }
    let unused = |cluster: &Cluster| {
        let wanted = |one| proxy.may_send(one, cluster) || proxy.may_ask(one, cluster);
        cluster.virtual_addresses.is_empty() && !proxy.listeners.iter().any(wanted)
    };
    for (index, cluster) in proxy.clusters.iter().enumerate().filter(|(_, cluster)| unused(cluster)) {
        let at = ConfigPath::from("proxy.clusters").index(index).key("name");
        let message = format!("no route uses the cluster `{}`", judge.shown(&at, &cluster.name));
        judge.warning("unused", &at, message, "name it in a route's `backendRefs`, or remove it");
    }
}

/// A redirected connection to an endpoint's own address goes by the rules of one cluster, so they should agree.
pub(super) fn shared_endpoints(proxy: &Proxy, judge: &mut Judge<'_>) {
    if !proxy.listeners.iter().any(|one| one.redirected && one.direction == Direction::Outbound) {
        return;
    }
    let mut first: HashMap<SocketAddr, &Cluster> = HashMap::new();
    for (index, cluster) in proxy.clusters.iter().enumerate().filter(|(_, cluster)| proxy.is_elsewhere(cluster)) {
        let endpoints = ConfigPath::from("proxy.clusters").index(index).key("endpoints");
        for (index, endpoint) in cluster.endpoints.iter().enumerate() {
            let Ok(ip) = endpoint.address.host.parse::<IpAddr>() else { continue };
            let known = *first.entry(SocketAddr::new(ip, endpoint.address.port)).or_insert(cluster);
            let agree = known.tls == cluster.tls
                && (known.protocol, known.proxy_protocol) == (cluster.protocol, cluster.proxy_protocol);
            if !agree {
                let at = endpoints.index(index);
                let message = format!(
                    "`{}` is an endpoint of the cluster `{}`, too, by whose rules redirected calls to this very address go",
                    endpoint.address, known.name
                );
                judge.warning(
                    "conflict",
                    &at,
                    message,
                    "put the cluster whose rules are right first, or have them agree",
                );
            }
        }
    }
}
