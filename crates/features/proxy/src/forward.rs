//! One request: judged, routed, sent on, answered, noted.
//!
//! In: a request from a client. Out: the endpoint's response, or one of ours that says
//! why not. Promise: what is forwarded is what was judged; a request is sent a second time
//! only when the endpoint cannot have acted on the first; every request is counted once.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;

use crate::access_log::Entry;
use crate::body::{RequestBody, ResponseBody};
use crate::connection::Downstream;
use crate::error::{Fault, Reason};
use crate::headers;
use crate::metrics::{RequestKey, RequestNames};
use crate::pool::{Lease, Pool};
use crate::route::{self, Route};
use crate::snapshot::LocalSnapshot;
use crate::watch::{Order, Phase, Watched};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers a request.
pub(crate) async fn handle(
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let now = Instant::now();
    downstream.local.metrics.in_flight.inc();
    let mut exchange = Box::new(Exchange::new(downstream, now, &request));
    Ok(match exchange.forward(request).await {
        Ok((response, lease)) => exchange.respond(response, lease),
        Err(reason) => exchange.refuse(reason),
    })
}

/// A request and what came of it.
pub(crate) struct Exchange {
    downstream: Rc<Downstream>,
    /// The config this request is judged by, whatever a reload brings meanwhile.
    snapshot: Rc<LocalSnapshot>,
    started: Instant,
    /// The route's number in the snapshot.
    route: Option<u32>,
    pool: Option<Rc<Pool>>,
    endpoint: Option<SocketAddr>,
    /// Whom the endpoint's certificate names, for traffic that leaves the application.
    endpoint_peer: Option<Rc<str>>,
    /// Held until the response's end, for then the connection is free again.
    lease: Option<Lease>,
    code: u16,
    reason: Option<Reason>,
    /// Bytes of the response's body given to the client so far.
    pub(crate) sent: u64,
    upstream: Option<Duration>,
    retried: bool,
    version: Version,
    /// The framing was ambiguous, so nothing behind it can be trusted.
    last: bool,
    noted: Option<Box<Noted>>,
    finished: bool,
}

/// What the access log says of a request; taken only when there is one.
struct Noted {
    at: SystemTime,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
}

impl Exchange {
    fn new(downstream: Rc<Downstream>, started: Instant, request: &Request<Incoming>) -> Self {
        let snapshot = downstream.local.snapshot();
        let noted = snapshot.access_log.is_some().then(|| Box::new(Noted::of(request)));
        downstream.watched.begin(started, request.body().is_end_stream());
        Self {
            downstream,
            snapshot,
            started,
            route: None,
            pool: None,
            endpoint: None,
            endpoint_peer: None,
            lease: None,
            code: 0,
            reason: None,
            sent: 0,
            upstream: None,
            retried: false,
            version: request.version(),
            last: false,
            noted,
            finished: false,
        }
    }

    async fn forward(&mut self, mut request: Request<Incoming>) -> Result<(Response<Incoming>, Lease), Reason> {
        self.heed_verdict()?;
        let (route, timeout, pool) = self.find_route(&request)?;
        self.route = Some(route);
        let pool = pool?;
        self.pool = Some(Rc::clone(&pool));
        self.downstream.watched.set_deadline(timeout.and_then(|timeout| self.started.checked_add(timeout)));

        to_origin_form(&mut request)?;
        if !request.headers().contains_key(HOST) {
            // HTTP/1.0 knows requests without a host, 1.1 does not.
            request.headers_mut().insert(HOST, pool.cluster.host());
        }
        headers::strip_hop_by_hop(request.headers_mut());
        headers::tell_peer(request.headers_mut(), self.downstream.peer.as_ref().and_then(|peer| peer.header.as_ref()));
        *request.version_mut() = Version::HTTP_11;

        let watched = Rc::clone(&self.downstream.watched);
        let mut sending = pin!(self.send(&pool, request));
        let outcome = poll_fn(|cx| {
            if watched.has_timed_out() {
                // Whose turn was it?
                let client = watched.is_read_awaited();
                return Poll::Ready(Err(if client { Reason::ClientSlow } else { Reason::Timeout }));
            }
            sending.as_mut().poll(cx)
        })
        .await;
        watched.set_deadline(None);
        outcome
    }

    /// Refuses a head that the judge of the connection's bytes found bad.
    fn heed_verdict(&mut self) -> Result<(), Reason> {
        let watched = &self.downstream.watched;
        let number = watched.handled.replace(watched.handled.get() + 1);
        match watched.verdict.get() {
            Some(verdict) if verdict.head <= number => {
                self.last = true;
                Err(Reason::BadRequest(verdict.why))
            }
            _ => Ok(()),
        }
    }

    /// The route's number, its timeout, and the pool to send with, or why there is none.
    #[expect(clippy::type_complexity, reason = "the route is wanted even when its backend is not there")]
    fn find_route(
        &self,
        request: &Request<Incoming>,
    ) -> Result<(u32, Option<Duration>, Result<Rc<Pool>, Reason>), Reason> {
        if request.method() == Method::CONNECT || headers::asks_for_upgrade(request.headers()) {
            return Err(Reason::Unsupported);
        }
        let host = host(request)?;
        let path = request.uri().path();
        // `*` is what OPTIONS may ask for; only a route for every path takes it.
        if !(path.starts_with('/') || (path == "*" && request.method() == Method::OPTIONS)) {
            return Err(Reason::BadRequest("the target is neither a path nor a URI"));
        }
        if !route::is_unambiguous(path) {
            return Err(Reason::BadRequest("ambiguous path"));
        }
        let routes = &self.snapshot.routes;
        let number = routes.find(host, path).ok_or(Reason::NoRoute)?;
        let route = routes.route(number).ok_or(Reason::NoRoute)?;
        let worker = &self.downstream.local.worker;
        let pool = route.backend(worker.random()).map(|cluster| worker.pool(cluster)).ok_or(Reason::NoEndpoint);
        Ok((number, route.timeout, pool))
    }

    /// Sends the request, and once more on a fresh connection when a kept one had gone stale.
    async fn send(
        &mut self,
        pool: &Rc<Pool>,
        request: Request<Incoming>,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let watched = Rc::clone(&self.downstream.watched);
        let empty = request.body().is_end_stream();
        let mut request = request.map(|body| RequestBody::new(body, Rc::clone(&watched)));
        let mut fresh = false;
        loop {
            let mut lease = pool.checkout(fresh).await?;
            self.endpoint = Some(lease.address());
            self.endpoint_peer = lease.peer();
            // Should the endpoint close the kept connection just now, a request without a body that may be
            // repeated ([RFC 9110], 9.2.2) is sent again; it has to be kept for that.
            let copy = (lease.reused && empty && request.method().is_idempotent()).then(|| copy_of(&request, &watched));
            // Only the access log tells it, and asking for the time costs.
            let began = self.noted.is_some().then(Instant::now);
            let sender = lease.sender().ok_or(Reason::Reset)?;
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => {
                    self.upstream = began.map(|began| began.elapsed());
                    return Ok((response, lease));
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            let stale = lease.reused;
            let cause = error.into_error();
            request = match (unsent, copy) {
                (Some(unsent), _) if stale => unsent,
                (None, Some(copy)) if cause.is_incomplete_message() || cause.is_canceled() || is_io(&cause) => copy,
                _ => return Err(watched.body_broken.get().unwrap_or_else(|| failure(&cause))),
            };
            pool.metrics.retries.inc();
            self.retried = true;
            fresh = true;
        }
    }

    fn respond(mut self: Box<Self>, response: Response<Incoming>, lease: Lease) -> Response<ResponseBody> {
        let (mut parts, body) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            // We took `Upgrade` out, so nobody asked for this.
            return self.refuse(Reason::Protocol("it switched protocols unasked"));
        }
        match headers::settle_framing(&mut parts.headers) {
            Ok(true) => self.lease = Some(lease),
            // What follows on such a connection is not to be trusted.
            Ok(false) => self.lease = Some(lease.for_the_last_time()),
            Err(why) => return self.refuse(Reason::Protocol(why)),
        }
        self.code = parts.status.as_u16();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        Response::from_parts(parts, ResponseBody::upstream(body, self))
    }

    fn refuse(mut self: Box<Self>, reason: Reason) -> Response<ResponseBody> {
        let status = reason.status();
        self.code = status.as_u16();
        self.reason = Some(reason);
        if reason.fault() != Fault::Downstream {
            let (route, cluster) = (self.route_name(), self.cluster_name());
            let endpoint = self.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
            let retry_safe = reason.safe_to_retry();
            tracing::debug!(component = "proxy", route, cluster, endpoint, retry_safe, %reason, "request failed");
        }
        let text = format!("{reason}\n");
        let last = self.last;
        if !self.downstream.watched.body_ended.get() {
            self.downstream.watched.answered_early.set(true);
        }
        let mut response = Response::new(ResponseBody::own(text, self));
        *response.status_mut() = status;
        if last {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    /// Notes the end. `reason` tells of a body that did not come or go whole.
    pub(crate) fn finish(mut self: Box<Self>, reason: Option<Reason>) {
        let now = Instant::now();
        let watched = &self.downstream.watched;
        if !watched.body_ended.get() {
            watched.answered_early.set(true);
        } else if reason.is_none()
            && let Some(lease) = self.lease.take()
        {
            // With the request's body still on its way the connection would not be free.
            lease.give_back(now);
        }
        if reason.is_some() && self.version == Version::HTTP_10 {
            // To such a client the connection's end is the response's; only a reset tells it otherwise.
            watched.reset.set(true);
        }
        self.note(reason, now);
    }

    fn note(&mut self, reason: Option<Reason>, now: Instant) {
        self.finished = true;
        self.reason = self.reason.or(match (reason, self.downstream.watched.order()) {
            // It did not go by itself.
            (Some(Reason::ClientGone), Order::Cut("drain")) => Some(Reason::Stopped),
            (Some(Reason::ClientGone), Order::Cut(_)) => Some(Reason::ClientSlow),
            (reason, _) => reason,
        });
        let local = &self.downstream.local;
        local.metrics.in_flight.dec();
        self.downstream.watched.enter(Phase::Idle, now);
        let duration = now - self.started;
        // A client that went away before the response's headers has seen no code: 0.
        let code = self.code;
        let key = RequestKey {
            route: self.route().map_or(u64::MAX, |route| route.id),
            cluster: self.pool.as_ref().map_or(u64::MAX, |pool| pool.cluster.id),
            code,
            peer: self.peer_number(),
        };
        let names = RequestNames { route: self.route_name(), cluster: self.cluster_name(), peer: self.peer_name() };
        local.metrics.request(key, &names, duration);
        if let (Some(log), Some(noted)) = (&self.snapshot.access_log, &self.noted) {
            let entry = Entry {
                started: noted.at,
                duration,
                upstream: self.upstream,
                direction: local.shared.direction,
                listener: &local.shared.name,
                method: noted.method.as_str(),
                host: noted.host.as_ref().map_or(b"", HeaderValue::as_bytes),
                // Without the query: tokens and names are found there.
                path: noted.uri.path(),
                protocol: if self.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" },
                code,
                reason: self.reason,
                bytes_received: self.downstream.watched.received.get(),
                bytes_sent: self.sent,
                route: self.route_name(),
                cluster: self.cluster_name(),
                endpoint: self.endpoint,
                peer: self.peer_name(),
                downstream: self.downstream.remote,
                request_id: noted.request_id.as_ref().map_or(b"", HeaderValue::as_bytes),
                user_agent: noted.user_agent.as_ref().map_or(b"", HeaderValue::as_bytes),
                retried: self.retried,
            };
            local.worker.log(log, &entry);
        }
    }

    fn route(&self) -> Option<&Route> {
        self.snapshot.routes.route(self.route?)
    }
    fn route_name(&self) -> &str {
        self.route().map_or("", |route| route.name.as_str())
    }
    fn cluster_name(&self) -> &str {
        self.pool.as_ref().map_or("", |pool| pool.cluster.name.as_str())
    }
    /// The other side: who calls the application, or whom it calls.
    fn peer_name(&self) -> &str {
        match (&self.downstream.peer, &self.endpoint_peer) {
            (Some(peer), _) => &peer.id,
            (None, Some(peer)) => peer,
            (None, None) => "",
        }
    }
    fn peer_number(&self) -> u64 {
        match (&self.downstream.peer, &self.endpoint_peer) {
            (Some(_), _) | (None, None) => self.downstream.peer_number,
            (None, Some(peer)) => self.downstream.local.worker.peer_number(peer),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Reached unfinished when the client goes away while the endpoint is still asked.
        if !self.finished {
            self.note(Some(Reason::ClientGone), Instant::now());
        }
    }
}

impl Noted {
    fn of(request: &Request<Incoming>) -> Self {
        let header = |name: HeaderName| request.headers().get(name).cloned();
        Self {
            at: SystemTime::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: header(HOST),
            request_id: header(REQUEST_ID),
            user_agent: header(USER_AGENT),
        }
    }
}

/// The host a request is for, without its port: the target's authority before the `Host` field ([RFC 9112], 3.2.2).
fn host(request: &Request<Incoming>) -> Result<&str, Reason> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() || (first.is_none() && request.version() == Version::HTTP_11) {
        return Err(Reason::BadRequest("none or more than one Host"));
    }
    if let Some(host) = request.uri().host() {
        return Ok(host);
    }
    let host = first.map_or(Ok(""), |host| host.to_str().map_err(|_| Reason::BadRequest("invalid Host")))?;
    if host.bytes().any(|byte| matches!(byte, b'/' | b'@' | b'?' | b'#' | b' ' | b',')) {
        return Err(Reason::BadRequest("invalid Host"));
    }
    Ok(without_port(host))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // A bracket behind the colon means that the colon is part of an IPv6 address.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// Makes an absolute target an origin one, and its authority the `Host` ([RFC 9112], 3.2.2).
fn to_origin_form(request: &mut Request<Incoming>) -> Result<(), Reason> {
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::BadRequest("invalid authority"))?;
    if authority.as_str().contains('@') {
        return Err(Reason::BadRequest("invalid authority"));
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = Uri::from(path);
    Ok(())
}

fn copy_of(request: &Request<RequestBody>, watched: &Rc<Watched>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty(Rc::clone(watched)));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = HeaderMap::clone(request.headers());
    // The case of header names travels in the extensions.
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

fn failure(error: &hyper::Error) -> Reason {
    if error.is_parse_too_large() {
        Reason::Protocol("its head is too large")
    } else if error.is_parse() {
        Reason::Protocol("not HTTP/1.1")
    } else if error.is_user() || error.is_body_write_aborted() {
        // The body came from the client, so it is the client that broke it off.
        Reason::ClientGone
    } else {
        Reason::Reset
    }
}

/// Whether the connection broke, by reset for example.
fn is_io(error: &hyper::Error) -> bool {
    error.source().is_some_and(|source| source.is::<std::io::Error>())
}
