//! Which route takes a request.
//!
//! In: a listener's HTTP and gRPC routes, and what a request looks like. Out: a route's number.
//! Promise: the answer is the Gateway API's: the most specific host, then an exact path, a
//! regular expression, the longest prefix; then a method, the most header fields, the most
//! query parameters, a peer; then the order of the file. When the best does not match in
//! all, the next is asked, over less specific hosts too. What a lookup costs grows with the
//! length of host and path, not with the number of routes; it allocates nothing.

mod condition;
mod explain;
mod host;
mod rule;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use condition::FieldCondition;
pub use explain::{Candidate, Mismatch, candidates};

use outrigger_config::{GrpcRoute, Route};
use outrigger_wire::head::{FieldId, Head};
use outrigger_wire::pattern::Pattern;

use host::Hosts;
use rule::{PathRule, Rule};
use tree::{Tree, Walk};

/// A request, as far as routes look at it. What they do not look at costs nothing.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The host that is asked for, without its port, in any case.
    pub host: &'a str,
    /// The path, normalised, without the query.
    pub path: &'a str,
    /// The query, without its question mark.
    pub query: &'a str,
    /// Method and fields.
    pub head: &'a Head,
    /// The SPIFFE ID of who sent it, which the handshake proved.
    pub peer: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// A request whose target is judged: in origin form, and normalised.
    pub fn of(head: &'a Head, peer: Option<&'a str>) -> Self {
        let (path, query) = split_target(head.target());
        let host = head.get(FieldId::Host).and_then(|host| str::from_utf8(host).ok()).unwrap_or_default();
        Self { host: without_port(host), path, query, head, peer }
    }
}

/// A target's path and query.
pub fn split_target(target: &str) -> (&str, &str) {
    match memchr::memchr(b'?', target.as_bytes()) {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, ""),
    }
}

/// A host without its port.
pub fn without_port(host: &str) -> &str {
    let digits = host.bytes().rev().take_while(u8::is_ascii_digit).count();
    match host[..host.len() - digits].strip_suffix(':') {
        // Another colon before it means that both are part of an IPv6 address without brackets.
        Some(name) if !name.ends_with(':') => name,
        _ => host,
    }
}

/// The route that takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number: HTTP routes in the order of the file, then gRPC routes.
    pub route: u32,
    /// So many bytes of the path were matched: a prefix, without its last slash, or all of it.
    pub matched: u32,
}

/// A listener's HTTP and gRPC routes.
#[derive(Debug, Default)]
pub struct RouteTable {
    hosts: Hosts<PathTable>,
}

/// The routes of one host.
#[derive(Debug, Default)]
struct PathTable {
    tree: Tree<Entry>,
    /// In the order in which they are tried.
    patterns: Vec<(Box<Pattern>, Entry)>,
}

/// One match of a route.
#[derive(Debug)]
struct Entry {
    route: u32,
    /// What must hold beside host and path; mostly nothing.
    conditions: Option<Box<condition::Conditions>>,
}

impl Entry {
    fn takes(&self, request: &Request<'_>) -> bool {
        self.conditions.as_ref().is_none_or(|conditions| conditions.unmet(request).is_none())
    }
}

impl RouteTable {
    /// Compiles routes, which validation has looked at: what it would refuse is left out.
    pub fn new(routes: &[Route], grpc_routes: &[GrpcRoute]) -> Self {
        let mut rules = rule::rules(routes, grpc_routes);
        // All places in a table are filled in the order in which they are tried.
        rules.sort_by_key(|rule| rule.rank);
        let mut hosts: Hosts<Parts> = Hosts::default();
        for rule in rules {
            let Rule { host, path, conditions, route, .. } = rule;
            let parts = hosts.entry(&host);
            let entry = Entry { route, conditions: (!conditions.is_empty()).then(|| Box::new(conditions)) };
            match path {
                PathRule::Exact(path) => parts.exact.push((path, entry)),
                PathRule::Prefix(prefix) => parts.prefixes.push((prefix, entry)),
                PathRule::Pattern(pattern) => parts.patterns.push((pattern, entry)),
            }
        }
        Self {
            hosts: hosts
                .map(|parts| PathTable { tree: Tree::new(parts.exact, parts.prefixes), patterns: parts.patterns }),
        }
    }

    /// The route that takes a request.
    pub fn find(&self, request: &Request<'_>) -> Option<Found> {
        self.hosts.find(request.host, |paths| paths.find(request))
    }
}

/// What a host's table is made of.
#[derive(Default)]
struct Parts {
    exact: Vec<(String, Entry)>,
    prefixes: Vec<(String, Entry)>,
    patterns: Vec<(Box<Pattern>, Entry)>,
}

impl PathTable {
    fn find(&self, request: &Request<'_>) -> Option<Found> {
        let path = request.path;
        let walk = self.tree.walk(path);
        let whole = || path.len() as u32;
        if let Some(entry) = walk.exact().iter().find(|entry| entry.takes(request)) {
            return Some(Found { route: entry.route, matched: whole() });
        }
        // `*` is no path: only a route for every path takes it.
        if !self.patterns.is_empty() && path.starts_with('/') {
            let fits =
                |(pattern, entry): &&(Box<Pattern>, Entry)| pattern.is_match(path.bytes()) && entry.takes(request);
            if let Some((_, entry)) = self.patterns.iter().find(fits) {
                return Some(Found { route: entry.route, matched: whole() });
            }
        }
        self.longest(walk, request)
    }

    fn longest(&self, mut walk: Walk<'_, Entry>, request: &Request<'_>) -> Option<Found> {
        while let Some((length, entries)) = walk.next_prefix() {
            if let Some(entry) = entries.iter().find(|entry| entry.takes(request)) {
                return Some(Found { route: entry.route, matched: length });
            }
        }
        None
    }
}

/// Entry for the fuzzer: routes and a request made of text, looked up in the table and the slow way.
#[doc(hidden)]
pub fn fuzz(text: &str) {
    explain::fuzz(text);
}
