//! Why a request takes its route: every rule, looked at one by one.
//!
//! In: routes and a request. Out: the rules in the order in which they count, and what keeps
//! each from taking the request. Promise: it shares nothing with the table but the rules and
//! their order, so that each is a check on the other; the first that has no mismatch is what
//! the table finds.

use std::cmp::Reverse;

use outrigger_config::{GrpcRoute, Route};

use super::Request;
use super::condition::Unmet;
use super::host::LONGEST_NAME;
use super::rule::{PathRule, Rule, rules};

/// One match of a route, and whether it takes the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The route's number: HTTP routes in the order of the file, then gRPC routes.
    pub route: u32,
    /// Which of its matches, in the order of the file.
    pub number: usize,
    /// The host it is for: a name, `*.suffix`, or empty for all.
    pub host: String,
    /// The path it is for, as a person reads it.
    pub path: String,
    /// What keeps it from taking the request; `None` when it would take it.
    pub mismatch: Option<Mismatch>,
}

/// What does not match, the first in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it, and the text what is expected")]
pub enum Mismatch {
    Host(String),
    Path(String),
    Method(String),
    Header(String),
    QueryParam(String),
    Peer(String),
}

impl Mismatch {
    /// What it is that does not match, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Host(_) => "host",
            Self::Path(_) => "path",
            Self::Method(_) => "method",
            Self::Header(_) => "header",
            Self::QueryParam(_) => "queryParam",
            Self::Peer(_) => "peer",
        }
    }

    /// What was expected, and what was there.
    pub fn text(&self) -> &str {
        match self {
            Self::Host(text)
            | Self::Path(text)
            | Self::Method(text)
            | Self::Header(text)
            | Self::QueryParam(text)
            | Self::Peer(text) => text,
        }
    }
}

/// All matches of all routes, those that count most first, with what keeps each from taking the request.
pub fn candidates(routes: &[Route], grpc_routes: &[GrpcRoute], request: &Request<'_>) -> Vec<Candidate> {
    let mut rules = rules(routes, grpc_routes);
    rules.sort_by(|a, b| host_rank(&a.host).cmp(&host_rank(&b.host)).then(a.rank.cmp(&b.rank)));
    rules.iter().map(|rule| candidate(rule, request)).collect()
}

/// Names before suffixes, longer ones first, before all.
fn host_rank(host: &str) -> (u8, Reverse<usize>, &str) {
    match host {
        "" => (2, Reverse(0), host),
        _ if host.starts_with('*') => (1, Reverse(host.len()), host),
        _ => (0, Reverse(host.len()), host),
    }
}

fn candidate(rule: &Rule, request: &Request<'_>) -> Candidate {
    let path = match &rule.path {
        PathRule::Exact(path) => path.clone(),
        PathRule::Prefix(prefix) => format!("{prefix}/*"),
        PathRule::Pattern(pattern) => format!("~ {}", pattern.as_str()),
    };
    Candidate {
        route: rule.route,
        number: rule.number,
        host: rule.host.clone(),
        path,
        mismatch: mismatch(rule, request),
    }
}

fn mismatch(rule: &Rule, request: &Request<'_>) -> Option<Mismatch> {
    let host = request.host.strip_suffix('.').unwrap_or(request.host).to_ascii_lowercase();
    let right_host = match rule.host.strip_prefix('*') {
        _ if rule.host.is_empty() => true,
        _ if host.len() > LONGEST_NAME => false,
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => host == rule.host,
    };
    if !right_host {
        return Some(Mismatch::Host(format!("host is `{host}`, not `{}`", rule.host)));
    }
    let path = request.path;
    let (right_path, how) = match &rule.path {
        PathRule::Exact(expected) => (path == expected, format!("not `{expected}`")),
        PathRule::Prefix(prefix) => {
            let mut segments = path.split('/');
            let leads = prefix.is_empty() || prefix.split('/').all(|expected| segments.next() == Some(expected));
            (leads, format!("not `{prefix}` or below"))
        }
        PathRule::Pattern(pattern) => {
            let fits = path.starts_with('/') && pattern.is_match(path.bytes());
            (fits, format!("not like `{}`", pattern.as_str()))
        }
    };
    if !right_path {
        return Some(Mismatch::Path(format!("path is `{path}`, {how}")));
    }
    rule.conditions.unmet(request).map(|unmet| told(&unmet, rule, request))
}

fn told(unmet: &Unmet<'_>, rule: &Rule, request: &Request<'_>) -> Mismatch {
    match unmet {
        Unmet::Method(method) => {
            Mismatch::Method(format!("method is `{}`, not `{method}`", request.head.method_text()))
        }
        Unmet::Grpc => {
            Mismatch::Header("it is no gRPC call: `content-type` does not begin with `application/grpc`".to_owned())
        }
        Unmet::GrpcMethod(method) => {
            Mismatch::Path(format!("path is `{}`, not the gRPC method `{method}`", request.path))
        }
        Unmet::Field(field) => {
            let values: Vec<_> = request.head.get_all_named(&field.name).map(String::from_utf8_lossy).collect();
            let there =
                if values.is_empty() { "is not there".to_owned() } else { format!("is `{}`", values.join(",")) };
            Mismatch::Header(format!("header `{}` {there}, not {}", field.name, field.expected))
        }
        Unmet::Parameter(parameter) => {
            Mismatch::QueryParam(format!("query parameter `{}` is not {}", parameter.name, parameter.expected))
        }
        Unmet::Peer => {
            let wanted: Vec<_> = rule.conditions.peers.iter().map(|peer| format!("`{peer}`")).collect();
            let wanted = wanted.join(" or ");
            Mismatch::Peer(match request.peer {
                Some(peer) => format!("peer is `{peer}`, not {wanted}"),
                None => format!("the peer is not known, and must be {wanted}"),
            })
        }
    }
}

/// Routes and a request made of a fuzzer's text, looked up in the table and one by one.
pub(super) fn fuzz(text: &str) {
    use outrigger_config::{HeaderMatch, PathMatch, PathMatchType, QueryParamMatch, RouteMatch, ValueMatchType};
    use outrigger_wire::head::Head;

    let mut lines = text.lines();
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ');
    let mut head = Head::default();
    head.set_method(words.next().unwrap_or_default());
    let host = words.next().unwrap_or_default();
    let (path, query) = super::split_target(words.next().unwrap_or_default());
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if name.is_ascii() {
            head.push(name, value.as_bytes());
        }
    }
    let mut routes = Vec::new();
    for line in lines.take(64) {
        let mut words = line.split(' ');
        // A star stands for whole labels.
        let host = words.next().unwrap_or_default().trim_start_matches('*');
        let host = if host.starts_with('.') { format!("*{host}") } else { host.to_owned() };
        let value = words.next().unwrap_or("/").to_owned();
        let kind = match value.as_bytes().first() {
            Some(b'=') => PathMatchType::Exact,
            Some(b'~') => PathMatchType::RegularExpression,
            _ => PathMatchType::PathPrefix,
        };
        let value = value.trim_start_matches(['=', '~']).to_owned();
        let mut one = RouteMatch { path: PathMatch { kind, value }, ..RouteMatch::default() };
        for word in words {
            let kind = if word.contains('~') { ValueMatchType::RegularExpression } else { ValueMatchType::Exact };
            match word.split_once(['=', '~']) {
                Some((name, value)) if name.starts_with('?') => {
                    let (name, value) = (name[1..].to_owned(), value.to_owned());
                    one.query_params.push(QueryParamMatch { kind, name, value });
                }
                Some((name, value)) => {
                    let (name, value) = (name.to_owned(), value.to_owned());
                    one.headers.push(HeaderMatch { kind, name, value });
                }
                None => one.method = Some(word.to_owned()),
            }
        }
        let mut route = Route::new("r".parse().expect("a letter is a name"));
        route.hostnames = if host.is_empty() { Vec::new() } else { vec![host] };
        route.matches = vec![one];
        routes.push(route);
    }
    let request = Request { host, path, query, head: &head, peer: None };
    let found = super::RouteTable::new(&routes, &[]).find(&request).map(|found| found.route);
    let slow = candidates(&routes, &[], &request).into_iter().find(|one| one.mismatch.is_none());
    assert_eq!(found, slow.map(|one| one.route), "the table and the list agree");
}
