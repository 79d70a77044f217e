//! Rules of what routes match.

use outrigger_wire::h1::is_field_value;
use outrigger_wire::path::{PathPolicy, normalise};
use outrigger_wire::pattern::{Pattern, PatternError};

use super::trusted;
use crate::check::http_path;
use crate::judge::Judge;
use crate::{
    Config, ConfigPath, GrpcRouteMatch, HeaderMatch, Listener, ListenerTlsMode, PathMatch, PathMatchType,
    QueryParamMatch, RouteMatch, SpiffePattern, ValueMatchType,
};

pub(super) fn match_rules(
    config: &Config,
    listener: &Listener,
    one: &RouteMatch,
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    path_rules(&one.path, &at.key("path").key("value"), judge);
    header_rules(&one.headers, &at.key("headers"), judge);
    query_rules(&one.query_params, &at.key("queryParams"), judge);
    peer_rules(config, listener, &one.peers, &at.key("peers"), judge);
    if one.method.as_deref() == Some("CONNECT") {
        let message = "`routes` never see CONNECT";
        judge.error("value", &at.key("method"), message, "write it as one of the listener's `connectRoutes`");
    }
}

pub(super) fn grpc_match_rules(
    config: &Config,
    listener: &Listener,
    one: &GrpcRouteMatch,
    at: &ConfigPath,
    judge: &mut Judge<'_>,
) {
    header_rules(&one.headers, &at.key("headers"), judge);
    peer_rules(config, listener, &one.peers, &at.key("peers"), judge);
    let Some(method) = &one.method else { return };
    let at = at.key("method");
    if method.service.is_none() && method.method.is_none() && !judge.checked.is_blurred_within(&at) {
        let message = "a match on what is called needs `service`, `method` or both";
        judge.error("missing", &at, message, "name one of them; leave `method` out to match every call");
    }
    for (key, value) in [("service", &method.service), ("method", &method.method)] {
        let Some(value) = value else { continue };
        let at = at.key(key);
        if method.kind == ValueMatchType::RegularExpression {
            pattern_rules(value, &at, judge);
        } else if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
            let message = format!("`{}` is no name of a gRPC {key}", judge.shown(&at, value));
            judge.error("value", &at, message, "write it as in the `.proto` file, without slashes");
        }
    }
    let both = [&method.service, &method.method].into_iter().flatten();
    if method.kind == ValueMatchType::RegularExpression && both.clone().all(|part| Pattern::new(part).is_ok()) {
        // Together they may need more than each alone.
        if let Err(error) = Pattern::new(&method.pattern()) {
            let message = format!("`service` and `method` cannot be used as one regular expression: {error}");
            judge.error("value", &at, message, "make them simpler, or split them into several matches");
        }
    }
}

fn path_rules(path: &PathMatch, at: &ConfigPath, judge: &mut Judge<'_>) {
    if judge.checked.is_blurred_within(at) {
        return;
    }
    if path.kind == PathMatchType::RegularExpression {
        return pattern_rules(&path.value, at, judge);
    }
    if let Err(refusal) = http_path(&path.value) {
        let message = format!("`{}` {}", judge.shown(at, &path.value), refusal.problem);
        return judge.error("value", at, message, refusal.help);
    }
    let mut normal = String::new();
    match normalise(&PathPolicy::default(), &path.value, &mut normal) {
        Ok(true) => {
            let message = format!("no path is `{}` after normalisation", judge.shown(at, &path.value));
            judge.error("value", at, message, format!("write `{normal}`"));
        }
        Ok(false) => {}
        Err(error) => {
            let message = format!("no request has the path `{}`: {error}", judge.shown(at, &path.value));
            judge.error("value", at, message, "write the path as it is after normalisation");
        }
    }
}

/// A regular expression must compile, and into little.
pub(super) fn pattern_rules(text: &str, at: &ConfigPath, judge: &mut Judge<'_>) {
    let Err(error) = Pattern::new(text) else { return };
    let message = format!("`{}` cannot be used as a regular expression: {error}", judge.shown(at, &text));
    let help = match error {
        PatternError::TooLarge => {
            "it needs too much memory to match in one pass: make its counted repetitions smaller, or use `*` and `+`"
        }
        PatternError::TooLong => "write a shorter one, or split it into several matches",
        PatternError::Syntax(_) => "it is written as RE2 and Rust write it: no look-around, no backreferences",
    };
    judge.error("value", at, message, help);
}

pub(super) fn header_rules(headers: &[HeaderMatch], at: &ConfigPath, judge: &mut Judge<'_>) {
    let named = headers.iter().enumerate();
    judge.unique(
        "header",
        "a field is compared once; join both into one value or expression",
        named.map(|(i, header)| (at.index(i).key("name"), header.name.to_ascii_lowercase())),
    );
    for (index, header) in headers.iter().enumerate() {
        let at = at.index(index).key("value");
        match header.kind {
            ValueMatchType::RegularExpression => pattern_rules(&header.value, &at, judge),
            ValueMatchType::Exact if !is_field_value(header.value.as_bytes()) => {
                let message = "no header field can hold this value";
                judge.error("value", &at, message, "remove line breaks and control characters");
            }
            ValueMatchType::Exact => {}
        }
    }
}

fn query_rules(parameters: &[QueryParamMatch], at: &ConfigPath, judge: &mut Judge<'_>) {
    let named = parameters.iter().enumerate();
    judge.unique(
        "query parameter",
        "a parameter is compared once",
        named.map(|(i, parameter)| (at.index(i).key("name"), parameter.name.clone())),
    );
    for (index, parameter) in parameters.iter().enumerate() {
        if parameter.kind == ValueMatchType::RegularExpression {
            pattern_rules(&parameter.value, &at.index(index).key("value"), judge);
        }
    }
}

/// Who a peer is, only mTLS tells.
fn peer_rules(config: &Config, listener: &Listener, peers: &[SpiffePattern], at: &ConfigPath, judge: &mut Judge<'_>) {
    if peers.is_empty() {
        return;
    }
    trusted(config, at, peers, judge);
    if listener.tls.as_ref().is_none_or(|tls| tls.mode == ListenerTlsMode::Simple) {
        let message = "`peers` never match: without mTLS on the listener nobody knows who a client is";
        judge.error("conflict", at, message, "give the listener `tls: {}`, or remove `peers`");
    }
}
