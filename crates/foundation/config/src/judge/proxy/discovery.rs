//! Rules of `proxy.discovery`.

use std::net::IpAddr;

use super::clusters::cluster_tls_rules;
use super::trusted;
use crate::judge::Judge;
use crate::{ByteSize, Config, ConfigPath, Direction, Proxy};

pub(super) fn rules(config: &Config, proxy: &Proxy, judge: &mut Judge<'_>) {
    let Some(discovery) = &proxy.discovery else { return };
    let at = ConfigPath::from("proxy.discovery");
    let servers = at.key("servers");
    if discovery.servers.is_empty() || discovery.servers.len() > 8 {
        judge.error("value", &servers, "between 1 and 8 servers are asked", "write `HOST:PORT` of each");
    }
    let listed = discovery.servers.iter().enumerate();
    judge.unique("server", "keep one of them", listed.map(|(index, one)| (servers.index(index), one)));
    match &discovery.tls {
        Some(tls) => {
            let at = at.key("tls");
            cluster_tls_rules(config, tls, &at, judge);
            trusted(config, &at.key("spiffeIds"), &tls.spiffe_ids, judge);
        }
        None => {
            let beside = |host: &str| host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
            for (index, server) in discovery.servers.iter().enumerate().filter(|(_, one)| !beside(&one.host)) {
                let at = servers.index(index);
                let message = format!(
                    "`{}` is asked in plain text, and whoever is between can send traffic anywhere",
                    judge.shown(&at, server)
                );
                judge.warning("insecure", &at, message, "add `tls` with the server's `spiffeIds`");
            }
        }
    }
    judge.not_zero(&at.key("connectTimeout"), discovery.connect_timeout);
    judge.not_zero(&at.key("maxBackoff"), discovery.max_backoff);
    if discovery.max_bytes < ByteSize::kib(64) {
        let message = "`maxBytes` is too small for the endpoints of a service";
        judge.error("value", &at.key("maxBytes"), message, "allow at least `64KiB`");
    }
    if let Some(on_demand) = &discovery.on_demand {
        let at = at.key("onDemand");
        judge.not_zero(&at.key("unknownTtl"), on_demand.unknown_ttl);
        let redirected = |one: &crate::Listener| one.redirected && one.direction == Direction::Outbound;
        if !proxy.listeners.iter().any(redirected) {
            let message = "`onDemand` has no effect: no outbound listener has `redirected: true`";
            judge.warning("unused", &at, message, "remove it");
        }
    }
}
