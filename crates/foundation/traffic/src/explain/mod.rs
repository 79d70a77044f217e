//! What becomes of a request, told step by step: which listener takes it, what its path is after
//! normalisation, which route takes it and why no nearer one does, what filters make of it, and
//! where it goes.
//!
//! In: a config and a question. Out: the answer as data, for people and machines. Promise: the
//! answer comes from the same table and the same filters that requests meet.

mod told;
mod verdict;
mod words;

pub use told::*;
pub use verdict::{Difference, judge_test};
pub use words::{call as call_in_words, filter as filter_in_words, one_match as match_in_words};

use std::net::{IpAddr, SocketAddr};

use outrigger_config::{
    BackendRef, Config, Direction, DotSegments, EscapedSlashes, HostPort, Listener, ListenerProtocol, ListenerTlsMode,
    PathNormalization, Proxy, Route, SpiffePattern, UnknownDestinations,
};
use outrigger_wire::h1::{is_field_name, is_field_value};
use outrigger_wire::head::Head;
use outrigger_wire::path::{self, PathPolicy};
use serde::{Deserialize, Serialize};

use crate::descriptor::{Subject, descriptor_in_words, descriptors};
use crate::filter::{Answer, Cors, Filters};
use crate::route::{Request, RouteTable, candidates, split_target, without_port};

/// Routes that are told although they are not for the request's path.
const MOST_FAR: usize = 10;
/// Routes that are told in all.
const MOST_NEARER: usize = 100;

/// A request that somebody wants to know about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Question {
    /// The method.
    pub method: String,
    /// `http://HOST[:PORT]/PATH?QUERY`, or the path alone beside a field `Host`.
    pub url: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The SPIFFE ID of who sends it.
    pub peer: Option<String>,
    /// The listener's name; may be left out when there is one only that speaks HTTP.
    pub listener: Option<String>,
    /// Where it wanted to go before it was redirected to the listener.
    pub destination: Option<SocketAddr>,
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each means")]
pub enum Unanswerable {
    #[error("the config has no listener, so no request comes in")]
    NoListener,
    #[error("there is no listener `{0}`; known are {1}")]
    UnknownListener(String, String),
    #[error("say which listener takes the request: {0}")]
    WhichListener(String),
    #[error("`{0}` is no URL such as `http://shop.example/items?page=2`, and no path")]
    BadUrl(String),
    #[error("`{0}` is no method")]
    BadMethod(String),
    #[error("CONNECT is routed by `connectRoutes`, which are not explained")]
    Connect,
    #[error("`{0}` is no header field that can be sent")]
    BadHeader(String),
    #[error("`{0}` is no SPIFFE ID")]
    BadPeer(String),
}

/// How a listener makes paths the same.
pub fn path_policy(config: &PathNormalization) -> PathPolicy {
    PathPolicy {
        dot_segments: match config.dot_segments {
            DotSegments::Resolve => path::DotSegments::Resolve,
            DotSegments::Refuse => path::DotSegments::Refuse,
            DotSegments::Keep => path::DotSegments::Keep,
        },
        merge_slashes: config.merge_slashes,
        escaped_slashes: match config.escaped_slashes {
            EscapedSlashes::Keep => path::EscapedSlashes::Keep,
            EscapedSlashes::Unescape => path::EscapedSlashes::Unescape,
            EscapedSlashes::Refuse => path::EscapedSlashes::Refuse,
        },
    }
}

/// What becomes of a request.
///
/// # Errors
/// When the question is not one about a request that could come in.
pub fn explain(config: &Config, question: &Question) -> Result<Explanation, Unanswerable> {
    let proxy = config.proxy.as_ref().ok_or(Unanswerable::NoListener)?;
    let listener = find_listener(proxy, question)?;
    let mut asked = Asked::of(question)?;
    let mut told = Explanation {
        listener: ListenerTold::of(listener),
        request: RequestTold::of(&asked.head),
        ..Explanation::default()
    };
    told.notes = notes(listener, question);
    if matches!(listener.protocol, ListenerProtocol::Tcp | ListenerProtocol::Tls) {
        carried(proxy, listener, &asked, &mut told);
        return Ok(told);
    }
    let mut normal = String::new();
    match path::normalise(&path_policy(&listener.path), asked.head.target(), &mut normal) {
        Ok(false) => {}
        Ok(true) => {
            asked.head.set_target(&normal);
            told.normalised = Some(normal);
        }
        Err(error) => {
            told.refused = Some(Refused { status: 400, reason: error.to_string() });
            return Ok(told);
        }
    }
    let mutual = listener.tls.as_ref().is_some_and(|tls| tls.mode != ListenerTlsMode::Simple);
    let request = Request::of(&asked.head, question.peer.as_deref().filter(|_| mutual));
    let found = RouteTable::new(&listener.routes, &listener.grpc_routes).find(&request);
    let all = candidates(&listener.routes, &listener.grpc_routes, &request);
    nearer(listener, &all, &mut told);
    match found {
        Some(found) => {
            let (route, grpc) = route_of(listener, found.route);
            let taken = all.iter().find(|one| one.mismatch.is_none());
            told.route = Some(RouteTold {
                name: route.name.to_string(),
                kind: if grpc { RouteKind::Grpc } else { RouteKind::Http },
                number: taken.map(|one| one.number),
                host: taken.map(|one| words::host(&one.host)).unwrap_or_default(),
                path: taken.map(|one| one.path.clone()).unwrap_or_default(),
            });
            let peer = question.peer.as_deref().filter(|_| mutual);
            asked_of_service(proxy, listener, &route, &asked.head, peer, &mut told);
            told.session = words::session(&route, &asked.head);
            filtered(&route, &mut asked.head, found.matched, listener, &mut told);
            told.backends = backends(proxy, &route.backend_refs);
        }
        None => unmatched(proxy, listener, &asked, &mut told),
    }
    Ok(told)
}

fn find_listener<'p>(proxy: &'p Proxy, question: &Question) -> Result<&'p Listener, Unanswerable> {
    let names = |listeners: &[&Listener]| {
        let names: Vec<_> = listeners.iter().map(|listener| format!("`{}`", listener.name)).collect();
        names.join(", ")
    };
    let all: Vec<_> = proxy.listeners.iter().collect();
    if let Some(name) = &question.listener {
        let found = all.iter().find(|listener| listener.name.as_str() == name).copied();
        return found.ok_or_else(|| Unanswerable::UnknownListener(name.clone(), names(&all)));
    }
    let http = |listener: &&Listener| matches!(listener.protocol, ListenerProtocol::Http | ListenerProtocol::Auto);
    let mut able: Vec<_> = all.iter().copied().filter(http).collect();
    // Only what is redirected has wanted to go somewhere else.
    if question.destination.is_some() && able.iter().any(|listener| listener.redirected) {
        able.retain(|listener| listener.redirected);
    }
    match able.as_slice() {
        [only] => Ok(only),
        [] if all.len() == 1 => Ok(all[0]),
        [] if all.is_empty() => Err(Unanswerable::NoListener),
        [] => Err(Unanswerable::WhichListener(names(&all))),
        several => Err(Unanswerable::WhichListener(names(several))),
    }
}

/// A question as the request that it is about.
struct Asked {
    head: Head,
    destination: Option<SocketAddr>,
}

impl Asked {
    fn of(question: &Question) -> Result<Self, Unanswerable> {
        let method = if question.method.is_empty() { "GET" } else { &question.method };
        if !is_field_name(method.as_bytes()) {
            return Err(Unanswerable::BadMethod(method.to_owned()));
        }
        if method == "CONNECT" {
            return Err(Unanswerable::Connect);
        }
        let bad = || Unanswerable::BadUrl(question.url.clone());
        let url = question.url.split('#').next().unwrap_or_default();
        let (authority, target) = match url.split_once("://") {
            _ if url.starts_with('/') || url == "*" => ("", url.to_owned()),
            Some(("http" | "https" | "grpc", rest)) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                let (authority, target) = rest.split_at(end);
                (authority, if target.starts_with('/') { target.to_owned() } else { format!("/{target}") })
            }
            _ => return Err(bad()),
        };
        let graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !graphic(authority) || !graphic(&target) || authority.contains('@') {
            return Err(bad());
        }
        if let Some(peer) = question.peer.as_ref().filter(|peer| peer.parse::<outrigger_config::SpiffeId>().is_err()) {
            return Err(Unanswerable::BadPeer(peer.clone()));
        }
        let mut head = Head::default();
        head.set_method(method);
        head.set_target(&target);
        if !authority.is_empty() {
            head.push("host", authority.as_bytes());
        }
        for (name, value) in &question.headers {
            if !is_field_name(name.as_bytes()) || !is_field_value(value.as_bytes()) {
                return Err(Unanswerable::BadHeader(format!("{name}: {value}")));
            }
            if name.eq_ignore_ascii_case("host") {
                head.set("host", value.as_bytes())
            } else {
                head.push(name, value.as_bytes())
            }
        }
        // An address in the URL is where a redirected connection wanted to go.
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80);
        let literal = without_port(authority).trim_matches(['[', ']']).parse::<IpAddr>().ok();
        let destination = question.destination.or(literal.map(|address| SocketAddr::new(address, port)));
        Ok(Self { head, destination })
    }
}

/// What is worth knowing of whether the request gets as far as the routes.
fn notes(listener: &Listener, question: &Question) -> Vec<String> {
    let mut notes = Vec::new();
    let mutual = listener.tls.as_ref().filter(|tls| tls.mode != ListenerTlsMode::Simple);
    match (&question.peer, mutual) {
        (Some(_), None) => notes.push("the peer is not looked at: the listener has no mTLS".to_owned()),
        (None, Some(tls)) if tls.mode == ListenerTlsMode::Strict => {
            notes.push(
                "the listener asks for a client certificate (`tls.mode: strict`): without a peer the handshake fails"
                    .to_owned(),
            );
        }
        (Some(peer), Some(tls)) => {
            let allowed = |pattern: &SpiffePattern| pattern.stands_for(peer);
            if !tls.allowed_peers.is_empty() && !tls.allowed_peers.iter().any(allowed) {
                notes.push(format!("the handshake fails: `{peer}` is none of the listener's `allowedPeers`"));
            }
        }
        (None, _) => {}
    }
    notes
}

/// The route of this number, gRPC routes behind HTTP routes.
fn route_of(listener: &Listener, number: u32) -> (Route, bool) {
    let number = number as usize;
    match listener.routes.get(number) {
        Some(route) => (route.clone(), false),
        None => (listener.grpc_routes[number - listener.routes.len()].as_route(), true),
    }
}

fn name_of(listener: &Listener, number: u32) -> String {
    let number = number as usize;
    let http = listener.routes.get(number).map(|route| route.name.to_string());
    http.or_else(|| listener.grpc_routes.get(number - listener.routes.len()).map(|route| route.name.to_string()))
        .unwrap_or_default()
}

/// The routes that count more than the one that takes the request, and what keeps them from it.
fn nearer(listener: &Listener, all: &[crate::route::Candidate], told: &mut Explanation) {
    let before = all.iter().take_while(|one| one.mismatch.is_some());
    let mut far = 0;
    for one in before {
        let Some(mismatch) = &one.mismatch else { continue };
        let is_far = matches!(mismatch.kind(), "host" | "path");
        far += usize::from(is_far);
        if (is_far && far > MOST_FAR) || told.nearer.len() >= MOST_NEARER {
            told.more += 1;
            continue;
        }
        told.nearer.push(NearerTold {
            route: name_of(listener, one.route),
            number: one.number,
            host: words::host(&one.host),
            path: one.path.clone(),
            mismatch: mismatch.kind().to_owned(),
            reason: mismatch.text().to_owned(),
        });
    }
}

/// What a rate limit service is asked about the request.
fn asked_of_service(
    proxy: &Proxy,
    listener: &Listener,
    route: &Route,
    head: &Head,
    peer: Option<&str>,
    told: &mut Explanation,
) {
    let limits = || listener.global_rate_limits.iter().chain(&route.global_rate_limits);
    let Some(service) = proxy.rate_limit_service.as_ref().filter(|_| limits().next().is_some()) else { return };
    let cluster = match route.backend_refs.as_slice() {
        [] => None,
        [only] => Some(only.name.as_str()),
        _ => Some("<the cluster chosen>"),
    };
    let subject = Subject { request: head, client: None, peer, route: &route.name, cluster };
    let descriptors = descriptors(limits(), &subject);
    if descriptors.is_empty() {
        told.global_rate_limits
            .push("the service is not asked: the request lacks what every descriptor needs".to_owned());
    }
    let (domain, cluster) = (&service.domain, &service.backend_ref.name);
    told.global_rate_limits.extend(
        descriptors.iter().map(|one| format!("{} in the domain `{domain}` at {cluster}", descriptor_in_words(one))),
    );
}

/// What the route's filters make of the request, and which answer they give themselves.
fn filtered(route: &Route, head: &mut Head, matched: u32, listener: &Listener, told: &mut Explanation) {
    told.filters = route.filters.iter().map(words::filter).collect();
    told.timeout = (!route.timeouts.request.is_zero()).then(|| route.timeouts.request.to_string());
    let Some(filters) = Filters::of(&route.filters) else {
        told.forwarded = Some(RequestTold::of(head));
        return;
    };
    let mut response = Head::default();
    if let Some(cors) = filters.cors.as_ref().filter(|_| Cors::is_preflight(head)) {
        let allowed = cors.answer_preflight(head, &mut response);
        response.set_status(if allowed { 204 } else { 403 });
        told.response = Some(ResponseTold::of(&response, ""));
        return;
    }
    if let Some(abort) = filters.fault.as_ref().and_then(|fault| fault.certainly(head)) {
        response.set_status(abort.status);
        told.response = Some(ResponseTold::of(&response, "fault filter abort\n"));
        return;
    }
    let body = match &filters.answer {
        Some(Answer::Redirect(redirect)) => {
            response.set_status(redirect.status);
            let secure = listener.tls.is_some();
            response.push("location", redirect.location(head, matched, secure).as_bytes());
            Some("")
        }
        Some(Answer::Direct(direct)) => {
            response.set_status(direct.status_code);
            direct.headers.iter().for_each(|header| response.push(&header.name, header.value.as_bytes()));
            Some(direct.body.as_str())
        }
        None => None,
    };
    if let Some(body) = body {
        filters.change_response(&mut response);
        if let Some(cors) = &filters.cors {
            cors.change_response(head, &mut response);
        }
        told.response = Some(ResponseTold::of(&response, body));
        return;
    }
    filters.change_request(head, matched);
    told.forwarded = Some(RequestTold::of(head));
}

/// Clusters with a weight, and their share of the traffic.
fn backends(proxy: &Proxy, backend_refs: &[BackendRef]) -> Vec<BackendTold> {
    let total: u64 = backend_refs.iter().map(|backend| u64::from(backend.weight)).sum();
    let used = backend_refs.iter().filter(|backend| backend.weight > 0);
    used.map(|backend| {
        let share = f64::from(backend.weight) * 100.0 / total.max(1) as f64;
        let filters = backend.filters.iter().map(words::filter).collect();
        BackendTold { weight: backend.weight, share, filters, ..cluster(proxy, &backend.name) }
    })
    .collect()
}

fn cluster(proxy: &Proxy, name: &str) -> BackendTold {
    let config = proxy.clusters.iter().find(|cluster| cluster.name.as_str() == name);
    let endpoints = config.into_iter().flat_map(|config| config.endpoints.iter());
    let srv = config.and_then(|config| config.srv.as_ref());
    let srv = srv.map(|name| EndpointTold { address: format!("SRV {name}"), weight: 1, ..EndpointTold::default() });
    let service = config.and_then(|config| config.discovery.as_ref()).map(|discovery| EndpointTold {
        address: format!("service {}", discovery.service),
        weight: 1,
        ..EndpointTold::default()
    });
    BackendTold {
        cluster: name.to_owned(),
        weight: 1,
        share: 100.0,
        tls: config.map(words::tls).unwrap_or_default(),
        filters: Vec::new(),
        original_destination: config.is_some_and(|config| config.original_destination),
        endpoints: endpoints
            .map(|endpoint| EndpointTold {
                address: endpoint.address.to_string(),
                weight: endpoint.weight,
                priority: endpoint.priority,
                zone: endpoint.zone.as_ref().map(ToString::to_string),
                state: None,
            })
            .chain(srv)
            .chain(service)
            .collect(),
    }
}

/// A request that no route takes.
fn unmatched(proxy: &Proxy, listener: &Listener, asked: &Asked, told: &mut Explanation) {
    if !listener.redirected {
        told.refused = Some(Refused { status: 404, reason: "no route matches this request".to_owned() });
        return;
    }
    by_destination(proxy, listener, asked.destination, told);
    if told.refused.is_none() {
        told.forwarded = Some(RequestTold::of(&asked.head));
    }
}

/// What is redirected goes by where it wanted to go, when nothing else says so.
fn by_destination(proxy: &Proxy, listener: &Listener, destination: Option<SocketAddr>, told: &mut Explanation) {
    let Some(address) = destination else {
        told.notes.push("where it wanted to go is not said (`--destination`), so it counts as unknown".to_owned());
        return unknown(listener, None, told);
    };
    let route = |name: &str, kind| RouteTold { name: name.to_owned(), kind, ..RouteTold::default() };
    let virtually = proxy.clusters.iter().find(|cluster| cluster.virtual_addresses.contains(&address));
    if let Some(found) = virtually {
        told.route = Some(route(&found.name, RouteKind::VirtualAddress));
        told.backends = vec![cluster(proxy, &found.name)];
        return;
    }
    let is = |endpoint: &HostPort| {
        endpoint.port == address.port() && endpoint.host.parse::<IpAddr>().is_ok_and(|ip| ip == address.ip())
    };
    let named = |name: &str| listener.backend_refs().any(|backend| backend.name.as_str() == name);
    let direct = proxy
        .clusters
        .iter()
        .find(|cluster| named(&cluster.name) && cluster.endpoints.iter().any(|endpoint| is(&endpoint.address)));
    if let Some(found) = direct.filter(|_| listener.direction == Direction::Outbound) {
        told.route = Some(route(&found.name, RouteKind::Endpoint));
        let mut only = cluster(proxy, &found.name);
        only.endpoints.retain(|endpoint| endpoint.address == address.to_string());
        told.backends = vec![only];
        return;
    }
    unknown(listener, Some(address), told);
}

fn unknown(listener: &Listener, address: Option<SocketAddr>, told: &mut Explanation) {
    if listener.unknown_destinations == UnknownDestinations::Deny {
        let reason =
            "no route or cluster is for this destination, and unknown ones are refused (`unknownDestinations: deny`)";
        told.refused = Some(Refused { status: 502, reason: reason.to_owned() });
        return;
    }
    told.route =
        Some(RouteTold { name: "passthrough".to_owned(), kind: RouteKind::UnknownDestination, ..RouteTold::default() });
    let address = address.map_or_else(|| "where it wanted to go".to_owned(), |address| address.to_string());
    told.backends = vec![BackendTold {
        cluster: "passthrough".to_owned(),
        weight: 1,
        share: 100.0,
        tls: "as it comes".to_owned(),
        original_destination: true,
        endpoints: vec![EndpointTold { address, weight: 1, ..EndpointTold::default() }],
        ..BackendTold::default()
    }];
}

/// A connection whose bytes are carried as they come.
fn carried(proxy: &Proxy, listener: &Listener, asked: &Asked, told: &mut Explanation) {
    let name = without_port(Request::of(&asked.head, None).host).to_ascii_lowercase();
    let by_name = || {
        let suits = |host: &String| match host.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => name == *host,
        };
        let rank = |host: &String| (host.starts_with('*'), std::cmp::Reverse(host.len()));
        let exact = listener.tls_routes.iter().filter_map(|route| {
            let best = route.hostnames.iter().filter(|host| suits(host)).map(rank).min()?;
            Some((best, route))
        });
        let best = exact.min_by_key(|(rank, _)| *rank).map(|(_, route)| route);
        best.or_else(|| listener.tls_routes.iter().find(|route| route.hostnames.is_empty()))
    };
    let route = |name: &str, kind| RouteTold { name: name.to_owned(), kind, ..RouteTold::default() };
    if let Some(found) = by_name().filter(|_| listener.protocol == ListenerProtocol::Tls) {
        told.route = Some(route(&found.name, RouteKind::Tls));
        told.backends = backends(proxy, &found.backend_refs);
    } else if let Some(found) = &listener.tcp_route {
        told.route = Some(route(&found.name, RouteKind::Tcp));
        told.backends = backends(proxy, &found.backend_refs);
    } else if listener.redirected {
        by_destination(proxy, listener, asked.destination, told);
    } else {
        told.refused = Some(Refused { status: 0, reason: "no route takes the connection, so it is closed".to_owned() });
    }
}

/// The path and query of a request as it is told.
fn target(head: &Head) -> String {
    let (path, query) = split_target(head.target());
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

#[cfg(test)]
mod tests;
