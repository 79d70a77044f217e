//! What a route's matches say, and which of two is asked first.
//!
//! Each match of each route for each of its hosts is one rule. The table and the explanation
//! are both made of rules, and of the one order that is written down here.

use std::cmp::Reverse;

use outrigger_config::{
    GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, HeaderMatch, PathMatch, PathMatchType, Route, RouteMatch,
    ValueMatchType,
};
use outrigger_wire::pattern::{Pattern, PatternError};

use super::condition::{Conditions, FieldCondition, ParameterCondition};

/// One match of a route, for one host.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) route: u32,
    /// Which of the route's matches, in the order of the file.
    pub(crate) number: usize,
    /// A name, `*.suffix`, or empty for all.
    pub(crate) host: String,
    pub(crate) path: PathRule,
    pub(crate) conditions: Conditions,
    pub(crate) rank: Rank,
}

/// What the path must be.
#[derive(Debug)]
pub(crate) enum PathRule {
    Exact(String),
    /// Without a slash at its end, so `/` is the empty one.
    Prefix(String),
    Pattern(Box<Pattern>),
}

/// Where a rule stands among those of its host: the smaller is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Exact before patterns before prefixes.
    kind: u8,
    length: Reverse<usize>,
    /// A gRPC method without its service says more than none.
    grpc_method: Reverse<usize>,
    /// A call is by POST, so a gRPC route says no less than one with a method.
    method: Reverse<u8>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    peers: Reverse<bool>,
    /// The order of the file: HTTP routes, then gRPC routes.
    route: u32,
    number: usize,
}

/// All rules of a listener's routes. What validation refuses is left out.
pub(crate) fn rules(routes: &[Route], grpc_routes: &[GrpcRoute]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let hosts = |hosts: &[String]| if hosts.is_empty() { vec![String::new()] } else { hosts.to_vec() };
    for (route, config) in (0..).zip(routes) {
        let matches = if config.matches.is_empty() { &[RouteMatch::default()] } else { config.matches.as_slice() };
        for host in hosts(&config.hostnames) {
            for (number, one) in matches.iter().enumerate() {
                if let Ok((path, conditions)) = http(one) {
                    rules.push(rule(route, number, &host, path, conditions));
                }
            }
        }
    }
    for (route, config) in (routes.len() as u32..).zip(grpc_routes) {
        let matches = if config.matches.is_empty() { &[GrpcRouteMatch::default()] } else { config.matches.as_slice() };
        for host in hosts(&config.hostnames) {
            for (number, one) in matches.iter().enumerate() {
                if let Ok((path, conditions)) = grpc(one) {
                    rules.push(rule(route, number, &host, path, conditions));
                }
            }
        }
    }
    rules
}

fn rule(route: u32, number: usize, host: &str, path: PathRule, conditions: Conditions) -> Rule {
    let (kind, length) = match &path {
        PathRule::Exact(path) => (0, path.len()),
        PathRule::Pattern(pattern) => (1, pattern.as_str().len()),
        PathRule::Prefix(prefix) => (2, prefix.len()),
    };
    let rank = Rank {
        kind,
        length: Reverse(length),
        grpc_method: Reverse(conditions.grpc_method.as_ref().map_or(0, |method| method.len())),
        method: Reverse(u8::from(conditions.method.is_some() || conditions.grpc) + u8::from(conditions.grpc)),
        headers: Reverse(conditions.headers.len()),
        query: Reverse(conditions.query.len()),
        peers: Reverse(!conditions.peers.is_empty()),
        route,
        number,
    };
    Rule { route, number, host: host.to_ascii_lowercase(), path, conditions, rank }
}

fn http(one: &RouteMatch) -> Result<(PathRule, Conditions), PatternError> {
    let conditions = Conditions {
        method: one.method.as_deref().map(Into::into),
        headers: fields(&one.headers)?,
        query: one.query_params.iter().map(ParameterCondition::new).collect::<Result<_, _>>()?,
        peers: one.peers.clone().into(),
        ..Conditions::default()
    };
    Ok((path(&one.path)?, conditions))
}

fn path(path: &PathMatch) -> Result<PathRule, PatternError> {
    Ok(match path.kind {
        PathMatchType::Exact => PathRule::Exact(path.value.clone()),
        PathMatchType::PathPrefix => PathRule::Prefix(path.value.trim_end_matches('/').to_owned()),
        PathMatchType::RegularExpression => PathRule::Pattern(Box::new(Pattern::new(&path.value)?)),
    })
}

fn grpc(one: &GrpcRouteMatch) -> Result<(PathRule, Conditions), PatternError> {
    let (path, grpc_method) = one.method.as_ref().map_or(Ok((PathRule::Prefix(String::new()), None)), call)?;
    let conditions = Conditions {
        grpc: true,
        grpc_method,
        headers: fields(&one.headers)?,
        peers: one.peers.clone().into(),
        ..Conditions::default()
    };
    Ok((path, conditions))
}

/// A call's path is `/SERVICE/METHOD`.
fn call(called: &GrpcMethodMatch) -> Result<(PathRule, Option<Box<str>>), PatternError> {
    Ok(match (called.kind, called.service.as_deref(), called.method.as_deref()) {
        (_, None, None) => (PathRule::Prefix(String::new()), None),
        (ValueMatchType::Exact, Some(service), Some(method)) => (PathRule::Exact(format!("/{service}/{method}")), None),
        (ValueMatchType::Exact, Some(service), None) => (PathRule::Prefix(format!("/{service}")), None),
        (ValueMatchType::Exact, None, Some(method)) => (PathRule::Prefix(String::new()), Some(method.into())),
        (ValueMatchType::RegularExpression, ..) => {
            (PathRule::Pattern(Box::new(Pattern::new(&called.pattern())?)), None)
        }
    })
}

fn fields(headers: &[HeaderMatch]) -> Result<Box<[FieldCondition]>, PatternError> {
    headers.iter().map(FieldCondition::new).collect()
}
