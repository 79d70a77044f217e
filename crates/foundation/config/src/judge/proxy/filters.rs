//! Rules of filters.

use std::collections::HashSet;

use outrigger_wire::h1::is_field_value;
use outrigger_wire::path::{PathPolicy, normalise};

use super::matches::header_rules;
use crate::check::http_path;
use crate::diagnostic::Problem;
use crate::judge::Judge;
use crate::{
    ByteSize, ConfigPath, ContentCoding, Cors, DirectResponse, FaultInjection, Filter, FilterType, GrpcRoute,
    HeaderModifier, HeaderValue, PathMatchType, PathModifier, PathModifierType, RequestRedirect, Route,
};

/// Fields that no filter may touch, and why.
const UNTOUCHED: [(&str, &str); 13] = [
    ("host", "the host is changed by `URLRewrite`"),
    ("content-length", "it says where the body ends"),
    ("transfer-encoding", "it says where the body ends"),
    ("connection", "it belongs to one connection"),
    ("keep-alive", "it belongs to one connection"),
    ("proxy-connection", "it belongs to one connection"),
    ("upgrade", "it belongs to one connection"),
    ("http2-settings", "it belongs to one connection"),
    ("te", "it belongs to one connection"),
    ("trailer", "it says what stands behind the body"),
    ("expect", "it asks the next hop before the body is sent"),
    ("grpc-status", "it is the outcome of a call"),
    ("x-forwarded-client-cert", "it tells who called, as the handshake proved; see `forwarded.clientCert`"),
];

/// Whether a field of a message frames it, belongs to one connection or tells who called, so that nobody else may set it.
pub fn is_untouched_field(name: &str) -> bool {
    UNTOUCHED.iter().any(|(untouched, _)| untouched.eq_ignore_ascii_case(name))
}

/// The largest body of an answer that the config holds.
const LARGEST_BODY: ByteSize = ByteSize::kib(64);

pub(super) fn route_filters(route: &Route, at: &ConfigPath, judge: &mut Judge<'_>) {
    let filters = at.key("filters");
    filter_rules(&route.filters, &filters, judge);
    let answers = |filter: &Filter| filter.request_redirect.is_some() || filter.direct_response.is_some();
    let answering = route.filters.iter().position(answers);
    let backends = at.key("backendRefs");
    match (answering, route.backend_refs.is_empty()) {
        (None, true) if !judge.checked.is_blurred_within(&backends) && !judge.checked.is_blurred_within(&filters) => {
            let message = "the route has no `backendRefs`, so nobody answers its requests";
            let problem = Problem::error("missing", judge.key_span(at), backends, message);
            judge.report(problem.help("name a cluster, or answer by a filter: `RequestRedirect` or `DirectResponse`"));
        }
        (Some(answering), false) => {
            let kind = route.filters[answering].kind.as_str();
            let message = format!("`backendRefs` are never used: the filter `{kind}` answers all requests");
            judge.error("conflict", &backends, message, "remove one of both");
        }
        _ => {}
    }
    let all_prefixes = route.matches.iter().all(|one| one.path.kind == PathMatchType::PathPrefix);
    for (index, filter) in route.filters.iter().enumerate() {
        let at = filters.index(index);
        for (key, path) in [
            ("urlRewrite", filter.url_rewrite.as_ref().and_then(|one| one.path.as_ref())),
            ("requestRedirect", filter.request_redirect.as_ref().and_then(|one| one.path.as_ref())),
        ] {
            if path.is_some_and(|path| path.kind == PathModifierType::ReplacePrefixMatch) && !all_prefixes {
                let message = "`ReplacePrefixMatch` needs a prefix, and not all of the route's matches are one";
                let at = at.key(key).key("path").key("type");
                judge.error("conflict", &at, message, "use `ReplaceFullPath`, or only matches of type `PathPrefix`");
            }
        }
        if let Some(redirect) = &filter.request_redirect {
            redirect_goes_elsewhere(route, redirect, &at.key("requestRedirect"), judge);
        }
    }
}

/// Only what is meant for calls.
pub(super) fn grpc_route_filters(route: &GrpcRoute, at: &ConfigPath, judge: &mut Judge<'_>) {
    let at = at.key("filters");
    filter_rules(&route.filters, &at, judge);
    use FilterType::{Fault, RequestHeaderModifier, ResponseHeaderModifier};
    only(&route.filters, &[RequestHeaderModifier, ResponseHeaderModifier, Fault], "a gRPC route", &at, judge);
}

pub(super) fn backend_filters(filters: &[Filter], at: &ConfigPath, judge: &mut Judge<'_>) {
    filter_rules(filters, at, judge);
    use FilterType::{RequestHeaderModifier, ResponseHeaderModifier};
    only(filters, &[RequestHeaderModifier, ResponseHeaderModifier], "a backend", at, judge);
}

fn only(filters: &[Filter], allowed: &[FilterType], whose: &str, at: &ConfigPath, judge: &mut Judge<'_>) {
    for (index, filter) in filters.iter().enumerate().filter(|(_, filter)| !allowed.contains(&filter.kind)) {
        let names: Vec<_> = allowed.iter().map(|kind| format!("`{}`", kind.as_str())).collect();
        let message = format!("{whose} has no filter `{}`", filter.kind.as_str());
        judge.error("value", &at.index(index).key("type"), message, format!("allowed are {}", names.join(", ")));
    }
}

fn filter_rules(filters: &[Filter], at: &ConfigPath, judge: &mut Judge<'_>) {
    let kinds = filters.iter().enumerate().map(|(index, filter)| (at.index(index).key("type"), filter.kind));
    judge.unique("filter", "a route has each kind once; join both into one", kinds);
    let position = |kind| filters.iter().position(|filter| filter.kind == kind);
    for (one, other) in [
        (FilterType::UrlRewrite, FilterType::RequestRedirect),
        (FilterType::UrlRewrite, FilterType::DirectResponse),
        (FilterType::RequestRedirect, FilterType::DirectResponse),
    ] {
        if let (Some(first), Some(second)) = (position(one), position(other)) {
            let message = format!("`{}` and `{}` exclude each other", one.as_str(), other.as_str());
            let (first, second) = (at.index(first).key("type"), at.index(second).key("type"));
            let problem = Problem::error("conflict", judge.span(&second), second, message);
            judge.report(problem.related(judge.span(&first), "also given").help("keep one of them"));
        }
    }
    for (index, filter) in filters.iter().enumerate() {
        one_filter(filter, &at.index(index), judge);
    }
}

fn one_filter(filter: &Filter, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (kind, own) = (filter.kind.as_str(), filter.kind.key());
    if judge.checked.is_blurred(&at.key("type")) {
        return;
    }
    for (key, given) in filter.members() {
        let place = at.key(key);
        if key == own && !given && !judge.checked.is_blurred_within(&place) {
            let problem = Problem::error(
                "missing",
                judge.key_span(&at.key("type")),
                place,
                format!("`type: {kind}` needs `{key}`"),
            );
            judge.report(problem.help(format!("add `{key}:` beside it")));
        } else if key != own && given {
            let message = format!("`{key}` is never used with `type: {kind}`");
            judge.error("conflict", &place, message, "remove it, or make it a filter of its own");
        }
    }
    if let Some(changes) = &filter.request_header_modifier {
        modifier_rules(changes, &at.key("requestHeaderModifier"), judge);
    }
    if let Some(changes) = &filter.response_header_modifier {
        modifier_rules(changes, &at.key("responseHeaderModifier"), judge);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        let at = at.key("urlRewrite");
        if rewrite.hostname.is_none() && rewrite.path.is_none() && !judge.checked.is_blurred_within(&at) {
            judge.error("missing", &at, "the rewrite changes nothing", "give it a `hostname` or a `path`");
        }
        no_wildcard(rewrite.hostname.as_deref(), &at.key("hostname"), judge);
        if let Some(path) = &rewrite.path {
            path_modifier_rules(path, &at.key("path"), judge);
        }
    }
    if let Some(redirect) = &filter.request_redirect {
        redirect_rules(redirect, &at.key("requestRedirect"), judge);
    }
    if let Some(cors) = &filter.cors {
        cors_rules(cors, &at.key("cors"), judge);
    }
    if let Some(direct) = &filter.direct_response {
        direct_rules(direct, &at.key("directResponse"), judge);
    }
    if let Some(fault) = &filter.fault {
        fault_rules(fault, &at.key("fault"), judge);
    }
    if let Some(compressor) = &filter.compressor {
        let at = at.key("compressor");
        algorithms(&compressor.algorithms, &at, judge);
        content_types(&compressor.content_types, &at.key("contentTypes"), judge);
    }
    if let Some(decompressor) = &filter.decompressor {
        let at = at.key("decompressor");
        algorithms(&decompressor.algorithms, &at, judge);
        if !decompressor.requests && !decompressor.responses && !judge.checked.is_blurred_within(&at) {
            let message = "nothing is decompressed: `requests` and `responses` are both off";
            judge.error("value", &at, message, "turn one of them on, or remove the filter");
        }
    }
}

fn modifier_rules(changes: &HeaderModifier, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (set, add, remove) = (at.key("set"), at.key("add"), at.key("remove"));
    if changes.set.is_empty() && changes.add.is_empty() && changes.remove.is_empty() {
        if !judge.checked.is_blurred_within(at) {
            judge.error("missing", at, "nothing is changed", "give it `set`, `add` or `remove`");
        }
        return;
    }
    let named = |at: &ConfigPath, values: &[HeaderValue]| -> Vec<(ConfigPath, String)> {
        let named = values.iter().enumerate();
        named.map(|(index, one)| (at.index(index).key("name"), one.name.to_ascii_lowercase())).collect()
    };
    let removed =
        changes.remove.iter().enumerate().map(|(index, name)| (remove.index(index), name.to_ascii_lowercase()));
    let mut all = named(&set, &changes.set);
    // A field may get several values.
    let mut added = HashSet::new();
    all.extend(named(&add, &changes.add).into_iter().filter(|(_, name)| added.insert(name.clone())));
    all.extend(removed);
    judge.unique("header", "change each field in one way", all.iter().map(|(at, name)| (at.clone(), name.clone())));
    for (at, name) in &all {
        untouched(name, at, judge);
    }
    values(&changes.set, &set, judge);
    values(&changes.add, &add, judge);
}

/// Whether a field of a message is not for the config to use.
pub(super) fn is_untouched(name: &str) -> bool {
    let own = ["cookie", "set-cookie", "content-type", "content-encoding", "authorization"];
    UNTOUCHED.iter().map(|(known, _)| *known).chain(own).any(|known| name.eq_ignore_ascii_case(known))
}

fn untouched(name: &str, at: &ConfigPath, judge: &mut Judge<'_>) {
    if let Some((_, why)) = UNTOUCHED.iter().find(|(known, _)| *known == name) {
        let message = format!("no filter may change `{}`: {why}", judge.shown(at, &name));
        judge.error("value", at, message, "remove it");
    }
}

fn values(headers: &[HeaderValue], at: &ConfigPath, judge: &mut Judge<'_>) {
    for (index, header) in headers.iter().enumerate() {
        if !is_field_value(header.value.as_bytes()) {
            let message = "no header field can hold this value";
            let at = at.index(index).key("value");
            judge.error("value", &at, message, "remove line breaks and control characters");
        }
    }
}

fn no_wildcard(host: Option<&str>, at: &ConfigPath, judge: &mut Judge<'_>) {
    if let Some(host) = host.filter(|host| host.contains('*')) {
        let message = format!("`{}` is no host that can be asked for", judge.shown(at, &host));
        judge.error("value", at, message, "write one name, without `*`");
    }
}

fn path_modifier_rules(path: &PathModifier, at: &ConfigPath, judge: &mut Judge<'_>) {
    let members = [
        (PathModifierType::ReplaceFullPath, "replaceFullPath", &path.replace_full_path),
        (PathModifierType::ReplacePrefixMatch, "replacePrefixMatch", &path.replace_prefix_match),
    ];
    if judge.checked.is_blurred(&at.key("type")) {
        return;
    }
    for (kind, key, value) in members {
        let place = at.key(key);
        match value {
            None if kind == path.kind && !judge.checked.is_blurred_within(&place) => {
                let message = format!("`type: {kind:?}` needs `{key}`");
                let problem = Problem::error("missing", judge.key_span(&at.key("type")), place, message);
                judge.report(problem.help(format!("add `{key}:` beside it")));
            }
            Some(_) if kind != path.kind => {
                let message = format!("`{key}` is never used with `type: {:?}`", path.kind);
                judge.error("conflict", &place, message, "remove it, or change `type`");
            }
            Some(value) if !(kind == PathModifierType::ReplacePrefixMatch && value.is_empty()) => {
                new_path(value, &place, judge);
            }
            _ => {}
        }
    }
}

/// What takes a path's place must be a path as it is after normalisation.
fn new_path(path: &str, at: &ConfigPath, judge: &mut Judge<'_>) {
    if judge.checked.is_blurred(at) {
        return;
    }
    if let Err(refusal) = http_path(path) {
        let message = format!("`{}` {}", judge.shown(at, &path), refusal.problem);
        return judge.error("value", at, message, refusal.help);
    }
    let mut normal = String::new();
    match normalise(&PathPolicy::default(), path, &mut normal) {
        Ok(false) => {}
        Ok(true) => {
            let message = format!("`{}` is not as it is after normalisation", judge.shown(at, &path));
            judge.error("value", at, message, format!("write `{normal}`"));
        }
        Err(error) => {
            let message = format!("`{}` is no path that can be asked for: {error}", judge.shown(at, &path));
            judge.error("value", at, message, "write a path such as `/items`");
        }
    }
}

fn redirect_rules(redirect: &RequestRedirect, at: &ConfigPath, judge: &mut Judge<'_>) {
    let status = at.key("statusCode");
    if !matches!(redirect.status_code, 301 | 302 | 303 | 307 | 308) {
        let message = format!("{} is no status that sends a client elsewhere", redirect.status_code);
        judge.error("value", &status, message, "write 301, 302, 303, 307 or 308");
    }
    no_wildcard(redirect.hostname.as_deref(), &at.key("hostname"), judge);
    if let Some(path) = &redirect.path {
        path_modifier_rules(path, &at.key("path"), judge);
    }
    let elsewhere =
        redirect.scheme.is_some() || redirect.hostname.is_some() || redirect.port.is_some() || redirect.path.is_some();
    if !elsewhere && !judge.checked.is_blurred_within(at) {
        let message = "the client is sent where it came from, and so for ever";
        judge.error("value", at, message, "give it a `scheme`, `hostname`, `port` or `path`");
    }
}

/// A client must not be sent to the same route again and again.
fn redirect_goes_elsewhere(route: &Route, redirect: &RequestRedirect, at: &ConfigPath, judge: &mut Judge<'_>) {
    let same_place = redirect.scheme.is_none() && redirect.hostname.is_none() && redirect.port.is_none();
    let plain = |one: &crate::RouteMatch| {
        one.method.is_none() && one.headers.is_empty() && one.query_params.is_empty() && one.peers.is_empty()
    };
    let Some(path) = redirect.path.as_ref().filter(|_| same_place) else { return };
    let every = [crate::RouteMatch::default()];
    let matches = if route.matches.is_empty() { every.as_slice() } else { route.matches.as_slice() };
    let below = |prefix: &str, path: &str| {
        let prefix = prefix.trim_end_matches('/');
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let again = |one: &crate::RouteMatch| {
        let target = path.replace_full_path.as_deref().or(path.replace_prefix_match.as_deref()).unwrap_or_default();
        match one.path.kind {
            PathMatchType::Exact => one.path.value == target,
            PathMatchType::PathPrefix => below(&one.path.value, if target.is_empty() { "/" } else { target }),
            PathMatchType::RegularExpression => false,
        }
    };
    if matches.iter().any(|one| plain(one) && again(one)) && !judge.checked.is_blurred_within(at) {
        let message = "the client is sent to a path that this very route matches, and so for ever";
        let help = "unless another route matches that path more closely, send it elsewhere";
        judge.warning("conflict", &at.key("path"), message, help);
    }
}

fn cors_rules(cors: &Cors, at: &ConfigPath, judge: &mut Judge<'_>) {
    let origins = at.key("allowOrigins");
    let listed = cors.allow_origins.iter().enumerate();
    judge.unique("origin", "keep one of them", listed.map(|(index, one)| (origins.index(index), one.clone())));
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        let at = origins.index(index);
        if !is_origin(origin) {
            let message = format!("`{}` is no origin", judge.shown(&at, origin));
            let help =
                "write `https://shop.example`, with a port if it is not the usual one, `https://*.shop.example` or `*`";
            judge.error("value", &at, message, help);
        }
    }
    for (key, words) in [
        ("allowMethods", &cors.allow_methods),
        ("allowHeaders", &cors.allow_headers),
        ("exposeHeaders", &cors.expose_headers),
    ] {
        for (index, word) in words.iter().enumerate() {
            let at = at.key(key).index(index);
            if !outrigger_wire::h1::is_field_name(word.as_bytes()) {
                let message = format!("`{}` is no name", judge.shown(&at, word));
                judge.error("value", &at, message, "write one name per item, or `*`");
            } else if word == "*" && words.len() > 1 {
                judge.warning("unused", &at, "beside `*` nothing else counts", "remove it, or the others");
            }
        }
    }
}

fn is_origin(origin: &str) -> bool {
    if origin == "*" {
        return true;
    }
    let Some(rest) = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")) else { return false };
    let rest = rest.strip_prefix("*.").unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    crate::units::is_host(host)
        && !host.ends_with('.')
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|n| n > 0))
}

fn direct_rules(direct: &DirectResponse, at: &ConfigPath, judge: &mut Judge<'_>) {
    if matches!(direct.status_code, 204 | 205 | 304) && !direct.body.is_empty() {
        let message = format!("an answer with status {} has no body", direct.status_code);
        judge.error("conflict", &at.key("body"), message, "remove it, or use another status");
    }
    if direct.body.len() > LARGEST_BODY.as_usize() {
        let message = format!("the body is larger than {LARGEST_BODY}");
        judge.error("value", &at.key("body"), message, "let a server of files answer");
    }
    let headers = at.key("headers");
    values(&direct.headers, &headers, judge);
    for (index, header) in direct.headers.iter().enumerate() {
        untouched(&header.name.to_ascii_lowercase(), &headers.index(index).key("name"), judge);
    }
}

fn algorithms(algorithms: &[ContentCoding], at: &ConfigPath, judge: &mut Judge<'_>) {
    let at = at.key("algorithms");
    let listed = algorithms.iter().enumerate();
    judge.unique("algorithm", "keep one of them", listed.map(|(index, one)| (at.index(index), *one)));
}

fn content_types(types: &[String], at: &ConfigPath, judge: &mut Judge<'_>) {
    for (index, one) in types.iter().enumerate() {
        let at = at.index(index);
        let part = |part: &str| !part.is_empty() && outrigger_wire::h1::is_field_name(part.as_bytes());
        if !one.split_once('/').is_some_and(|(kind, rest)| part(kind) && part(rest)) {
            let message = format!("`{}` is no media type", judge.shown(&at, one));
            judge.error(
                "value",
                &at,
                message,
                "write one such as `application/json`, `text/*` or `application/*+json`",
            );
        } else if one.to_ascii_lowercase().starts_with("application/grpc") {
            let message = "gRPC is never compressed here: it compresses its messages itself";
            judge.warning("unused", &at, message, "remove it");
        }
    }
}

fn fault_rules(fault: &FaultInjection, at: &ConfigPath, judge: &mut Judge<'_>) {
    if fault.delay.is_none() && fault.abort.is_none() && !judge.checked.is_blurred_within(at) {
        judge.error("missing", at, "the fault does nothing", "give it a `delay`, an `abort` or both");
    }
    if let Some(delay) = &fault.delay {
        judge.not_zero(&at.key("delay").key("duration"), delay.duration);
        percentage(delay.percentage, &at.key("delay").key("percentage"), judge);
    }
    if let Some(abort) = &fault.abort {
        let at = at.key("abort");
        judge.exactly_one(
            &at,
            &[("httpStatus", abort.http_status.is_some()), ("grpcStatus", abort.grpc_status.is_some())],
        );
        percentage(abort.percentage, &at.key("percentage"), judge);
    }
    header_rules(&fault.headers, &at.key("headers"), judge);
}

fn percentage(value: f64, at: &ConfigPath, judge: &mut Judge<'_>) {
    if !(0.0..=100.0).contains(&value) {
        judge.error("value", at, format!("{value} is no share in percent"), "write a number from 0 to 100");
    }
}
