//! Rules of `proxy.rateLimitService`, and of routes that ask it.

use crate::diagnostic::Problem;
use crate::judge::Judge;
use crate::{ConfigPath, GlobalRateLimit, Listener, ListenerTlsMode, Proxy, RateLimitActionType};

pub(super) fn service_rules(proxy: &Proxy, judge: &mut Judge<'_>) {
    let Some(service) = &proxy.rate_limit_service else { return };
    let at = ConfigPath::from("proxy.rateLimitService");
    judge.not_zero(&at.key("timeout"), service.timeout);
    let home = ConfigPath::from("proxy.clusters");
    let clusters = proxy.clusters.iter().enumerate();
    let known: Vec<_> = clusters.map(|(i, cluster)| (home.index(i).key("name"), cluster.name.as_str())).collect();
    let name = at.key("backendRef").key("name");
    if judge.known("cluster", &name, &service.backend_ref.name, &known, &home)
        && proxy.clusters.iter().any(|one| one.name == service.backend_ref.name && one.original_destination)
    {
        let message = format!("the cluster `{}` has no endpoints that could answer", service.backend_ref.name);
        judge.error("conflict", &name, message, "name a cluster with `endpoints`");
    }
    let blurred = judge.checked.is_blurred_within(&ConfigPath::from("proxy.listeners"));
    if !blurred && !proxy.listeners.iter().any(Listener::asks_rate_limit_service) {
        let message = "nobody asks the rate limit service";
        judge.warning("unused", &at, message, "give a listener or a route `globalRateLimits`, or remove it");
    }
}

/// Of the `globalRateLimits` of a listener or a route.
pub(super) fn limit_rules(
    proxy: &Proxy,
    listener: &Listener,
    limits: &[GlobalRateLimit],
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    let blurred = judge.checked.is_blurred_within(&ConfigPath::from("proxy.rateLimitService"));
    if !limits.is_empty() && proxy.rate_limit_service.is_none() && !blurred {
        let problem =
            Problem::error("missing", judge.key_span(at), at.clone(), "there is no service to ask for these limits");
        judge.report(problem.help("add `proxy.rateLimitService` with a `backendRef` and a `domain`"));
    }
    let mutual = listener.tls.as_ref().is_some_and(|tls| tls.mode != ListenerTlsMode::Simple);
    for (index, limit) in limits.iter().enumerate() {
        let actions = at.index(index).key("actions");
        for (index, action) in limit.actions.iter().enumerate() {
            let at = actions.index(index);
            use RateLimitActionType::{GenericKey, MaskedRemoteAddress, PeerIdentity, RequestHeaders};
            for (key, kind, given, needed) in [
                ("genericKey", GenericKey, action.generic_key.is_some(), true),
                ("requestHeaders", RequestHeaders, action.request_headers.is_some(), true),
                ("maskedRemoteAddress", MaskedRemoteAddress, action.masked_remote_address.is_some(), false),
                ("peerIdentity", PeerIdentity, action.peer_identity.is_some(), false),
            ] {
                if judge.checked.is_blurred_within(&at) {
                    break;
                }
                if given && action.kind != kind {
                    let message = format!("`{key}` is for `type: {}`", kind.as_str());
                    judge.error("conflict", &at.key(key), message, "remove it, or change `type`");
                }
                if !given && needed && action.kind == kind {
                    let message = format!("`type: {}` needs `{key}`", kind.as_str());
                    judge.error("missing", &at, message, format!("add `{key}: {{ … }}`"));
                }
            }
            if action.kind == PeerIdentity && !mutual {
                let message = "no peer has an identity here: the listener has no mTLS";
                judge.warning("unused", &at.key("type"), message, "give the listener `tls`, or remove the action");
            }
        }
    }
}
