//! What parts of the config do, in words.

use outrigger_config::{
    Cluster, ContentCoding, DirectResponse, FaultInjection, Filter, GrpcRouteMatch, HeaderMatch, HeaderModifier,
    PathMatchType, PathModifier, RequestRedirect, Route, RouteMatch, SpiffePattern, UrlRewrite, ValueMatchType,
};

use outrigger_wire::head::Head;

use super::SessionTold;
use crate::filter::coding;
use crate::session::Persistence;

pub(super) fn host(host: &str) -> String {
    if host.is_empty() { "*".to_owned() } else { host.to_owned() }
}

/// How a cluster's endpoints are spoken to.
pub(super) fn tls(cluster: &Cluster) -> String {
    match &cluster.tls {
        None => "plain text".to_owned(),
        Some(tls) => match &tls.server_name {
            Some(name) => format!("TLS as `{name}`"),
            None => {
                let ids: Vec<_> = tls.spiffe_ids.iter().map(ToString::to_string).collect();
                format!("mTLS with {}", ids.join(" or "))
            }
        },
    }
}

/// What a filter does.
pub fn filter(filter: &Filter) -> String {
    let kind = filter.kind.as_str();
    let what =
        if let Some(changes) = filter.request_header_modifier.as_ref().or(filter.response_header_modifier.as_ref()) {
            modifier(changes)
        } else if let Some(rewrite) = &filter.url_rewrite {
            url_rewrite(rewrite)
        } else if let Some(redirect) = &filter.request_redirect {
            request_redirect(redirect)
        } else if let Some(cors) = &filter.cors {
            format!("origins {}", cors.allow_origins.join(", "))
        } else if let Some(DirectResponse { status_code, body, .. }) = &filter.direct_response {
            format!("{status_code}, {} bytes", body.len())
        } else if let Some(injected) = &filter.fault {
            fault(injected)
        } else if let Some(mirror) = &filter.request_mirror {
            format!("copies for `{}`", mirror.backend_ref.name)
        } else if let Some(compressor) = &filter.compressor {
            format!("answers from {} on by {}", compressor.min_content_length, codings(&compressor.algorithms))
        } else if let Some(decompressor) = &filter.decompressor {
            let whose: Vec<_> = [(decompressor.requests, "requests"), (decompressor.responses, "answers")]
                .into_iter()
                .filter_map(|(on, name)| on.then_some(name))
                .collect();
            format!("{} of {}", whose.join(" and "), codings(&decompressor.algorithms))
        } else {
            String::new()
        };
    format!("{kind}: {what}")
}

/// How a route's clients stay with an endpoint.
pub(super) fn session(route: &Route, request: &Head) -> Option<SessionTold> {
    let (config, persistence) = (route.session_persistence.as_ref()?, Persistence::of(route)?);
    let absolute = config.absolute_timeout.map(|time| format!("{time} after it began"));
    let idle = config.idle_timeout.map(|time| format!("after {time} of silence"));
    let ends: Vec<_> = absolute.into_iter().chain(idle).collect();
    Some(SessionTold {
        kind: format!("{:?}", config.kind),
        name: config.name_for(route.name.as_str()),
        brought: persistence.brought(request).is_some(),
        ends: if ends.is_empty() { "with its client".to_owned() } else { ends.join(" or ") },
        endpoint: None,
    })
}

fn codings(codings: &[ContentCoding]) -> String {
    codings.iter().map(|one| coding(*one).as_str()).collect::<Vec<_>>().join(", ")
}

fn modifier(changes: &HeaderModifier) -> String {
    let set = changes.set.iter().map(|one| format!("set `{}: {}`", one.name, one.value));
    let add = changes.add.iter().map(|one| format!("add `{}: {}`", one.name, one.value));
    let remove = changes.remove.iter().map(|name| format!("remove `{name}`"));
    set.chain(add).chain(remove).collect::<Vec<_>>().join(", ")
}

fn url_rewrite(rewrite: &UrlRewrite) -> String {
    let host = rewrite.hostname.as_ref().map(|host| format!("host `{host}`"));
    let path = rewrite.path.as_ref().map(path);
    host.into_iter().chain(path).collect::<Vec<_>>().join(", ")
}

fn path(path: &PathModifier) -> String {
    match (&path.replace_full_path, &path.replace_prefix_match) {
        (Some(full), _) => format!("path `{full}`"),
        (_, Some(prefix)) => format!("matched prefix becomes `{prefix}`"),
        _ => String::new(),
    }
}

fn request_redirect(redirect: &RequestRedirect) -> String {
    let mut parts = vec![redirect.status_code.to_string()];
    parts.extend(redirect.scheme.map(|scheme| format!("scheme `{}`", scheme.as_str())));
    parts.extend(redirect.hostname.as_ref().map(|host| format!("host `{host}`")));
    parts.extend(redirect.port.map(|port| format!("port {port}")));
    parts.extend(redirect.path.as_ref().map(path));
    parts.join(", ")
}

fn fault(fault: &FaultInjection) -> String {
    let mut parts = Vec::new();
    parts.extend(fault.delay.as_ref().map(|delay| format!("wait {} for {} %", delay.duration, delay.percentage)));
    parts.extend(fault.abort.as_ref().map(|abort| {
        let status = abort.http_status.map(|status| status.to_string());
        let status = status.or_else(|| abort.grpc_status.map(|status| format!("gRPC status {status}")));
        format!("fail with {} for {} %", status.unwrap_or_default(), abort.percentage)
    }));
    if !fault.headers.is_empty() {
        let names: Vec<_> = fault.headers.iter().map(|header| format!("`{}`", header.name)).collect();
        parts.push(format!("only with {}", names.join(" and ")));
    }
    parts.join(", ")
}

/// What a match of a route looks for.
pub fn one_match(one: &RouteMatch) -> String {
    let value = &one.path.value;
    let mut parts = vec![match one.path.kind {
        PathMatchType::Exact => value.clone(),
        PathMatchType::PathPrefix => format!("{}/*", value.trim_end_matches('/')),
        PathMatchType::RegularExpression => format!("~ {value}"),
    }];
    parts.extend(one.method.clone());
    parts.extend(one.headers.iter().map(header));
    parts.extend(one.query_params.iter().map(|one| format!("?{}{}{}", one.name, sign(one.kind), one.value)));
    parts.extend(peers(&one.peers));
    parts.join(" ")
}

/// What a match of a gRPC route looks for.
pub fn call(one: &GrpcRouteMatch) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
    let path = one.method.as_ref().map_or_else(
        || "/*".to_owned(),
        |called| {
            let sign = if called.kind == ValueMatchType::RegularExpression { "~ " } else { "" };
            format!("{sign}/{}/{}", part(&called.service), part(&called.method))
        },
    );
    let headers = one.headers.iter().map(header);
    std::iter::once(path).chain(headers).chain(peers(&one.peers)).collect::<Vec<_>>().join(" ")
}

fn header(one: &HeaderMatch) -> String {
    format!("{}{}{}", one.name, sign(one.kind), one.value)
}

fn sign(kind: ValueMatchType) -> char {
    if kind == ValueMatchType::RegularExpression { '~' } else { '=' }
}

fn peers(peers: &[SpiffePattern]) -> Option<String> {
    let names: Vec<_> = peers.iter().map(|peer| peer.as_str()).collect();
    (!names.is_empty()).then(|| format!("from {}", names.join("|")))
}
