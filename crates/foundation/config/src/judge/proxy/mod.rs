//! Rules of the section `proxy`.

mod balancing;
mod clusters;
mod discovery;
mod filters;
mod global_limits;
mod listeners;
mod matches;
mod resilience;
mod routes;

pub use filters::is_untouched_field;

use super::Judge;
use crate::diagnostic::Problem;
use crate::{AccessLog, ByteSize, Config, ConfigPath, SpiffePattern};

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
        listeners::listener_rules(config, proxy, listener, &listeners.index(index), judge);
    }
    for (index, cluster) in proxy.clusters.iter().enumerate() {
        clusters::cluster_rules(config, cluster, &clusters.index(index), judge);
    }
    global_limits::service_rules(proxy, judge);
    discovery::rules(config, proxy, judge);
    clusters::unused_clusters(proxy, judge);
    clusters::shared_endpoints(proxy, judge);
    if proxy.limits.max_buffer_bytes < ByteSize::mib(1) {
        let message = "`maxBufferBytes` is too small to carry traffic";
        judge.error("value", &at.key("limits").key("maxBufferBytes"), message, "allow at least `1MiB`");
    }
    for (index, pattern) in proxy.mask_headers.iter().enumerate() {
        let is_name = |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*');
        if pattern.is_empty() || pattern.len() > 128 || !pattern.bytes().all(is_name) {
            let message = format!("`{pattern}` is not the name of a header field");
            let help = "write a name of letters, digits, `-`, `_`, `.`, and `*` for any text: `x-tenant-*`";
            judge.error("value", &at.key("maskHeaders").index(index), message, help);
        }
    }
    for (index, key) in proxy.session_keys.iter().enumerate().filter(|(_, key)| key.expose().len() < 16) {
        let at = at.key("sessionKeys").index(index);
        if !judge.checked.is_blurred(&at) {
            let message = format!("{} characters are too few for a secret", key.expose().len());
            judge.error("value", &at, message, "write 16 or more, as `openssl rand -base64 24` makes them");
        }
    }
    if let Some(log) = &proxy.access_log {
        access_log_rules(log, &at.key("accessLog"), judge);
    }
}

fn access_log_rules(log: &AccessLog, at: &ConfigPath, judge: &mut Judge<'_>) {
    if log.buffer < ByteSize::kib(4) {
        let message = "`buffer` is too small to hold a line";
        judge.error("value", &at.key("buffer"), message, "allow at least `4KiB`");
    }
    if log.text.is_some() && !log.json.is_empty() {
        let message = "a line is either `text` or `json`";
        judge.error("conflict", &at.key("json"), message, "keep one of them");
    }
}

pub(super) fn needs_identity(config: &Config, at: &ConfigPath, judge: &mut Judge<'_>) {
    if config.identity.is_none() && !judge.checked.is_blurred(&ConfigPath::from("identity")) {
        let problem =
            Problem::error("missing", judge.key_span(at), at.clone(), "TLS needs an identity, and the config has none");
        judge.report(problem.help("add the section `identity`, with `files` or `development`"));
    }
}

/// Peers must be of the one trust domain that we accept.
pub(super) fn trusted(config: &Config, at: &ConfigPath, ids: &[SpiffePattern], judge: &mut Judge<'_>) {
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
