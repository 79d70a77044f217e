//! One request: judged, routed, sent on, answered, noted.
//!
//! In: a request from a client. Out: the endpoint's response, or one of ours that says
//! why not. Promise: what is forwarded is what was judged; a request is sent a second time
//! only when the endpoint cannot have acted on the first; every request is counted once.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, UPGRADE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;

use crate::access_log::Entry;
use crate::body::{RequestBody, ResponseBody};
use crate::cluster::Cluster;
use crate::connection::{Downstream, Phase};
use crate::error::{Fault, Reason};
use crate::headers;
use crate::metrics::{RequestKey, RequestNames};
use crate::pool::{Lease, Pool};
use crate::route::{self, Route};
use crate::snapshot::LocalSnapshot;

const REQUEST_ID: &str = "x-request-id";

/// Answers a request.
pub(crate) async fn handle(
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let now = Instant::now();
    downstream.watched.enter(Phase::Busy, now);
    downstream.local.metrics.in_flight.inc();
    let snapshot = downstream.local.snapshot();
    let has_body = !request.body().is_end_stream();
    let watched = Rc::clone(&downstream.watched);
    let mut exchange = Box::new(Exchange::new(downstream, snapshot, now, &request));
    Ok(match exchange.forward(request).await {
        Ok((response, lease)) => exchange.respond(response, lease),
        Err(reason) => {
            if has_body {
                watched.answer_early();
            }
            exchange.refuse(reason)
        }
    })
}

/// A request and what came of it.
pub(crate) struct Exchange {
    downstream: Rc<Downstream>,
    snapshot: Rc<LocalSnapshot>,
    started: Instant,
    route: Option<Arc<Route>>,
    cluster: Option<Arc<Cluster>>,
    endpoint: Option<SocketAddr>,
    /// Whom the endpoint's certificate names, for traffic that leaves the application.
    endpoint_peer: Option<Rc<str>>,
    /// Held until the response's end, for then the connection is free again.
    lease: Option<Lease>,
    code: u16,
    reason: Option<Reason>,
    received: Rc<Cell<u64>>,
    /// Bytes of the response's body given to the client so far.
    pub(crate) sent: u64,
    upstream: Option<Duration>,
    retried: bool,
    noted: Option<Box<Noted>>,
    finished: bool,
}

/// What the access log says of a request; taken only when there is one.
struct Noted {
    at: SystemTime,
    method: Method,
    host: String,
    path: String,
    version: Version,
    request_id: String,
    user_agent: String,
}

impl Exchange {
    fn new(
        downstream: Rc<Downstream>,
        snapshot: Rc<LocalSnapshot>,
        started: Instant,
        request: &Request<Incoming>,
    ) -> Self {
        let noted = snapshot.access_log.is_some().then(|| Box::new(Noted::of(request)));
        Self {
            downstream,
            snapshot,
            started,
            route: None,
            cluster: None,
            endpoint: None,
            endpoint_peer: None,
            lease: None,
            code: 0,
            reason: None,
            received: Rc::default(),
            sent: 0,
            upstream: None,
            retried: false,
            noted,
            finished: false,
        }
    }

    async fn forward(&mut self, mut request: Request<Incoming>) -> Result<(Response<Incoming>, Lease), Reason> {
        if request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE) {
            return Err(Reason::Unsupported);
        }
        let route = {
            let host = host(&request)?;
            let path = request.uri().path();
            // `*` is what OPTIONS may ask for; it is no path and takes part in no prefix.
            if !(path.starts_with('/') || path == "*") || !route::is_unambiguous(path) {
                return Err(Reason::BadRequest);
            }
            self.snapshot.routes.find(host, path).map(Arc::clone).ok_or(Reason::NoRoute)?
        };
        let worker = Rc::clone(&self.downstream.local.worker);
        let cluster = route.backend(worker.random()).map(Arc::clone);
        let timeout = route.timeout;
        self.route = Some(route);
        let cluster = cluster.ok_or(Reason::NoEndpoint)?;
        let pool = worker.pool(&cluster);
        self.cluster = Some(cluster);

        to_origin_form(&mut request)?;
        headers::strip_hop_by_hop(request.headers_mut());
        headers::tell_peer(request.headers_mut(), self.downstream.peer.as_ref().and_then(|peer| peer.header.as_ref()));
        *request.version_mut() = Version::HTTP_11;

        let sending = self.send(&pool, request);
        match timeout {
            Some(limit) => tokio::time::timeout(limit, sending).await.unwrap_or(Err(Reason::Timeout)),
            None => sending.await,
        }
    }

    /// Sends the request, and once more on a fresh connection when a kept one had gone stale.
    async fn send(
        &mut self,
        pool: &Rc<Pool>,
        request: Request<Incoming>,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let received = Rc::clone(&self.received);
        let empty = request.body().is_end_stream();
        let mut request = request.map(|body| {
            if empty { RequestBody::empty(Rc::clone(&received)) } else { RequestBody::new(body, Rc::clone(&received)) }
        });
        let mut fresh = false;
        loop {
            let mut lease = pool.checkout(fresh).await?;
            self.endpoint = Some(lease.address());
            self.endpoint_peer = lease.peer();
            // Should the endpoint close the kept connection just now, a request without a body that may be
            // repeated ([RFC 9110], 9.2.2) is sent again; it has to be kept for that.
            let copy =
                (lease.reused && empty && request.method().is_idempotent()).then(|| copy_of(&request, &received));
            let began = Instant::now();
            let sender = lease.sender().ok_or(Reason::Reset)?;
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => {
                    self.upstream = Some(began.elapsed());
                    return Ok((response, lease));
                }
                Err(error) => error,
            };
            let unsent = error.take_message();
            let stale = lease.reused;
            let cause = error.into_error();
            request = match (unsent, copy) {
                (Some(unsent), _) if stale => unsent,
                (None, Some(copy)) if cause.is_incomplete_message() || cause.is_canceled() => copy,
                _ => return Err(failure(&cause)),
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
            drop(body);
            return self.refuse(Reason::Protocol);
        }
        self.code = parts.status.as_u16();
        self.lease = Some(lease);
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
        let mut response = Response::new(ResponseBody::own(text, self));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    /// Notes the end. `reason` tells of a body that did not come or go whole.
    pub(crate) fn finish(mut self: Box<Self>, reason: Option<Reason>) {
        let now = Instant::now();
        if reason.is_none()
            && let Some(lease) = self.lease.take()
        {
            // Should the request's body not have been read to its end, hyper closes the connection by itself.
            lease.give_back(now);
        }
        self.note(reason, now);
    }

    fn note(&mut self, reason: Option<Reason>, now: Instant) {
        self.finished = true;
        self.reason = self.reason.or(reason);
        let local = &self.downstream.local;
        local.metrics.in_flight.dec();
        self.downstream.watched.enter(Phase::Idle, now);
        let duration = now - self.started;
        // A client that went away before the response's headers has seen no code: 0.
        let code = self.code;
        let key = RequestKey {
            route: self.route.as_ref().map_or(u64::MAX, |route| route.id),
            cluster: self.cluster.as_ref().map_or(u64::MAX, |cluster| cluster.id),
            code,
            peer: self.peer_number(),
        };
        let names = RequestNames { route: self.route_name(), cluster: self.cluster_name(), peer: self.peer_name() };
        local.metrics.request(key, &names, duration);
        if let (Some(log), Some(noted)) = (&self.snapshot.access_log, &self.noted) {
            let entry = Entry {
                started: noted.at,
                duration_ms: duration.as_secs_f64() * 1e3,
                upstream_ms: self.upstream.map(|upstream| upstream.as_secs_f64() * 1e3),
                direction: local.shared.direction,
                listener: &local.shared.name,
                method: noted.method.as_str(),
                host: &noted.host,
                path: &noted.path,
                protocol: if noted.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" },
                code,
                flag: self.reason.map(Reason::flag),
                reason: self.reason.map(|reason| reason.to_string()),
                bytes_received: self.received.get(),
                bytes_sent: self.sent,
                route: self.route_name(),
                cluster: self.cluster_name(),
                endpoint: self.endpoint,
                peer: self.peer_name(),
                downstream: self.downstream.remote,
                request_id: &noted.request_id,
                user_agent: &noted.user_agent,
                retried: self.retried,
            };
            local.worker.log(log, &entry);
        }
    }

    fn route_name(&self) -> &str {
        self.route.as_ref().map_or("", |route| route.name.as_str())
    }
    fn cluster_name(&self) -> &str {
        self.cluster.as_ref().map_or("", |cluster| cluster.name.as_str())
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
        let header = |name: &str| {
            request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            at: SystemTime::now(),
            method: request.method().clone(),
            host: header(HOST.as_str()).unwrap_or_default(),
            // Without the query: tokens and names are found there.
            path: request.uri().path().to_owned(),
            version: request.version(),
            request_id: header(REQUEST_ID).unwrap_or_default(),
            user_agent: header(USER_AGENT.as_str()).unwrap_or_default(),
        }
    }
}

/// The host a request is for, without its port: the target's authority before the `Host` field ([RFC 9112], 3.2.2).
fn host(request: &Request<Incoming>) -> Result<&str, Reason> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() || (first.is_none() && request.version() == Version::HTTP_11) {
        return Err(Reason::BadRequest);
    }
    if let Some(host) = request.uri().host() {
        return Ok(host);
    }
    let host = first.map_or(Ok(""), |host| host.to_str().map_err(|_| Reason::BadRequest))?;
    if host.bytes().any(|byte| matches!(byte, b'/' | b'@' | b'?' | b'#' | b' ' | b',')) {
        return Err(Reason::BadRequest);
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
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::BadRequest)?;
    if authority.as_str().contains('@') {
        return Err(Reason::BadRequest);
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    request.headers_mut().insert(HOST, host);
    *request.uri_mut() = Uri::from(path);
    Ok(())
}

fn copy_of(request: &Request<RequestBody>, received: &Rc<Cell<u64>>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty(Rc::clone(received)));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = HeaderMap::clone(request.headers());
    // The case of header names travels in the extensions.
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

fn failure(error: &hyper::Error) -> Reason {
    if error.is_parse() || error.is_parse_too_large() {
        Reason::Protocol
    } else if error.is_user() || error.is_body_write_aborted() {
        // The body came from the client, so it is the client that broke it off.
        Reason::ClientGone
    } else {
        Reason::Reset
    }
}
