//! One request: judged, routed, sent on, answered, noted.
//!
//! In: a request of a client, over whatever protocol. Out: the endpoint's response, or one
//! of ours that says why not. Promise: what is forwarded is what was judged; a request is
//! sent a second time only when the endpoint cannot have acted on the first; every request
//! is counted once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use outrigger_config::ClusterProtocol;
use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Head, Method, Version};

use crate::access_log::Entry;
use crate::body::{Broken, Sink, Source, Waiting, poll_pump};
use crate::connection::Downstream;
use crate::error::{Fault, Reason};
use crate::metrics::{RequestKey, RequestNames};
use crate::pool::{Lease, Pool, Way, Wish};
use crate::respond::Responder;
use crate::route::Route;
use crate::snapshot::LocalSnapshot;
use crate::upstream::{Ask, Got, Receiver, Up};
use crate::watch::{Order, Phase, Watched};
use crate::{buffer, headers, judge, limits, upgrade};

mod connect;

/// A request as it came, and whom to answer.
pub(crate) struct Incoming<'a> {
    pub(crate) request: &'a mut Head,
    /// How its body is framed for HTTP/1.
    pub(crate) framing: Framing,
    pub(crate) source: Source<'a>,
    pub(crate) responder: Responder<'a>,
    /// The protocol that the client wants to change to.
    pub(crate) upgrade: Option<String>,
}

/// What becomes of an HTTP/1 connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// The next request may come.
    Go,
    /// It is closed; what was sent was whole.
    Close,
    /// It is closed after the client had time to read the answer, for it is still sending.
    Linger,
    /// It is closed so that the client cannot take the end for the response's.
    Reset,
    /// It was a tunnel, and the other side broke off.
    BreakOff,
}

/// A request and what came of it.
pub(crate) struct Exchange {
    downstream: Rc<Downstream>,
    watched: Rc<Watched>,
    /// The config this request is judged by, whatever a reload brings meanwhile.
    snapshot: Rc<LocalSnapshot>,
    started: Instant,
    at: Option<SystemTime>,
    /// The route's number in the snapshot.
    route: Option<u32>,
    pool: Option<Rc<Pool>>,
    endpoint: Option<SocketAddr>,
    /// Whom the endpoint's certificate names, for traffic that leaves the application.
    endpoint_peer: Option<Rc<str>>,
    code: u16,
    grpc_status: Option<u8>,
    reason: Option<Reason>,
    received: u64,
    sent: u64,
    upstream: Option<Duration>,
    retried: bool,
    /// Its place under `maxRequests`.
    place: Option<limits::Place>,
    /// Some bytes of the response's head have gone to the client.
    answered: bool,
    noted: bool,
    /// What the access log tells if the request is dropped under way.
    line: Option<Box<Line>>,
}

/// What the access log says of a request's head; kept only when there is a log, and used again by the next request.
#[derive(Default)]
struct Line {
    method: String,
    path: String,
    host: Vec<u8>,
    request_id: Vec<u8>,
    user_agent: Vec<u8>,
    version: Version,
}

/// How one try ended.
enum Try {
    Done(After),
    /// The kept connection had gone stale before the endpoint can have seen the request.
    Stale(Reason),
    /// The endpoint ended its connection and said that it had not looked at the request.
    Unseen,
}

/// Times that a request is sent again because endpoints ended connections without looking at it. Where a connection
/// carries more requests at once than the endpoint takes on it, as nginx's `keepalive_requests` bounds, one may meet
/// that several times.
const MOST_UNSEEN: u32 = 5;

impl Exchange {
    pub(crate) fn new(downstream: &Rc<Downstream>, watched: &Rc<Watched>, started: Instant) -> Self {
        downstream.local.metrics.in_flight.inc();
        Self {
            snapshot: downstream.local.snapshot(),
            downstream: Rc::clone(downstream),
            watched: Rc::clone(watched),
            started,
            at: None,
            route: None,
            pool: None,
            endpoint: None,
            endpoint_peer: None,
            code: 0,
            grpc_status: None,
            reason: None,
            received: 0,
            sent: 0,
            upstream: None,
            retried: false,
            place: None,
            answered: false,
            noted: false,
            line: None,
        }
    }

    /// Answers the request. `response` is room for the response's head.
    pub(crate) async fn run(mut self, mut incoming: Incoming<'_>, response: &mut Head) -> After {
        self.watched.begin(self.started);
        if self.snapshot.access_log.is_some() {
            self.at = Some(SystemTime::now());
            self.line = Some(Line::of(incoming.request));
        }
        let after = match self.forward(&mut incoming, response).await {
            Ok(after) => after,
            Err(reason) if self.answered => {
                self.reason = self.reason.or(Some(reason));
                After::Reset
            }
            Err(reason) => self.refuse(reason, &mut incoming, response).await,
        };
        self.watched.set_deadline(None);
        self.note(Instant::now());
        after
    }

    async fn forward(&mut self, incoming: &mut Incoming<'_>, response: &mut Head) -> Result<After, Reason> {
        self.admit()?;
        let request = &mut *incoming.request;
        if request.target().len() > self.snapshot.limits.max_uri_bytes.as_usize() {
            return Err(Reason::UriTooLong);
        }
        if request.version() == Version::Http2 && limits::is_beyond(request, &self.snapshot.limits) {
            return Err(Reason::HeadersTooLarge);
        }
        if matches!(incoming.framing, Framing::Length(length) if self.is_too_large(length)) {
            return Err(Reason::BodyTooLarge);
        }
        if request.method() == Method::Connect {
            return Box::pin(self.connect(incoming, response)).await;
        }
        judge::target(request, &self.snapshot.path)?;
        headers::max_forwards(request)?;
        let (number, timeout, pool) = self.find_route(request)?;
        self.route = Some(number);
        let pool = pool?;
        self.pool = Some(Rc::clone(&pool));
        self.watched.set_deadline(timeout.and_then(|timeout| self.started.checked_add(timeout)));

        // A request that has a body of its own is not followed by another protocol.
        let upgrade = incoming.upgrade.take().filter(|_| matches!(incoming.framing, Framing::Empty));
        headers::strip_hop_by_hop(request);
        let policy = self.snapshot.forwarded.client_cert;
        headers::tell_peer(request, policy, self.downstream.peer.as_ref().map(|peer| peer.header.as_str()));
        let secure = self.downstream.secure;
        headers::forwarded(request, &self.snapshot.forwarded, self.downstream.remote.ip(), secure);
        headers::via(request, &self.snapshot.forwarded, request.version());
        if !request.contains(FieldId::Host) {
            // HTTP/1.0 knows requests without a host, 1.1 does not.
            request.push("Host", pool.cluster.host().as_bytes());
        }
        if request.version() == Version::Http10 {
            // It may be asked for by 1.1 only, and nobody waits for the answer ([RFC 9110], 10.1.1).
            request.remove(FieldId::Expect);
        }
        if request.contains(FieldId::Te) {
            // It is for the next one only, which this tells ([RFC 9110], 10.1.4).
            request.push("Connection", b"TE");
        }
        if let Some(protocol) = &upgrade {
            request.push("Connection", b"Upgrade");
            request.push("Upgrade", protocol.as_bytes());
        }
        let framing = match incoming.framing {
            Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        if matches!(framing, Framing::Chunked) {
            request.push("Transfer-Encoding", b"chunked");
        }
        let ask = if upgrade.is_some() { Ask::Upgrade } else { Ask::Answer };
        // A client that goes where it wanted to go has chosen HTTP/2 for this very server; between sidecars we did.
        let chosen = pool.cluster.config.original_destination && self.downstream.peer.is_none();
        let way = match (pool.cluster.config.protocol, ask) {
            (ClusterProtocol::Http2, Ask::Upgrade) => Way::Upgrade,
            (ClusterProtocol::Http2, _) => Way::Shared,
            (ClusterProtocol::Auto, Ask::Answer)
                if request.version() == Version::Http2 && (chosen || is_grpc(request)) =>
            {
                Way::Shared
            }
            (ClusterProtocol::Auto, Ask::Answer) => Way::Either,
            _ => Way::Own,
        };
        request.set_version(Version::Http11);
        self.send(&pool, way, incoming, framing, ask, response).await
    }

    /// Sends the request, a second time if the first was in vain and that is safe.
    async fn send(
        &mut self,
        pool: &Rc<Pool>,
        way: Way,
        incoming: &mut Incoming<'_>,
        framing: Framing,
        ask: Ask,
        response: &mut Head,
    ) -> Result<After, Reason> {
        // A tunnel uses its connection up and cannot be asked for twice, so a kept one would gain little and may be stale.
        let mut fresh = ask == Ask::Connect && way == Way::Own;
        let mut unseen = 0;
        loop {
            let certain = !incoming.request.method().is_idempotent();
            let wish = Wish { way, fresh, certain, ends: self.downstream.ends };
            let mut lease = self.in_time(pin!(pool.checkout(wish))).await??;
            self.endpoint = Some(lease.address());
            self.endpoint_peer = lease.peer();
            match self.attempt(&mut lease, incoming, framing, ask, response).await? {
                Try::Done(after) => {
                    lease.settle(Instant::now());
                    return Ok(after);
                }
                Try::Stale(reason) if fresh => return Err(reason),
                Try::Unseen if unseen == MOST_UNSEEN => return Err(Reason::Unseen),
                Try::Stale(_) => fresh = true,
                // Others find by themselves that the connection takes no more requests.
                Try::Unseen => unseen += 1,
            }
            pool.metrics.retries.inc();
            self.retried = true;
        }
    }

    /// Whether there is room for another request.
    fn admit(&mut self) -> Result<(), Reason> {
        if buffer::is_short() {
            return Err(Reason::MemoryShort);
        }
        let most = self.snapshot.limits.max_requests;
        if most > 0 {
            self.place = Some(limits::Place::take(&self.downstream.local.shared, most).ok_or(Reason::Overloaded)?);
        }
        Ok(())
    }

    fn is_too_large(&self, body: u64) -> bool {
        let most = self.snapshot.limits.max_body_bytes.as_usize() as u64;
        most > 0 && body > most
    }

    /// The route's number, its timeout, and the pool to send with, or why there is none.
    #[expect(clippy::type_complexity, reason = "the route is wanted even when its backend is not there")]
    fn find_route(&self, request: &Head) -> Result<(u32, Option<Duration>, Result<Rc<Pool>, Reason>), Reason> {
        let (host, path) = (judge::host(request), judge::path(request));
        let routes = &self.snapshot.routes;
        let number = routes.find(host, path);
        let number = match number {
            // What is redirected may be for an address that we know, or for one that anything may go to.
            None if self.snapshot.redirected => {
                Some(routes.tcp(self.downstream.original).ok_or(Reason::UnknownDestination)?)
            }
            number => number,
        };
        let number = number.ok_or(Reason::NoRoute)?;
        let route = routes.route(number).ok_or(Reason::NoRoute)?;
        let worker = &self.downstream.local.worker;
        let pool = route.backend(worker.random()).ok_or(Reason::NoEndpoint);
        let pool = pool.and_then(|cluster| worker.pool_for(cluster, &self.downstream));
        Ok((number, route.timeout, pool))
    }

    /// Waits for something within the request's time.
    async fn in_time<F: Future>(&self, mut work: Pin<&mut F>) -> Result<F::Output, Reason> {
        poll_fn(|cx| {
            if self.watched.has_timed_out() {
                return Poll::Ready(Err(Reason::Timeout));
            }
            self.watched.keep_waker(cx.waker());
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Sends the request on one connection and gives the client what comes back.
    async fn attempt(
        &mut self,
        lease: &mut Lease,
        incoming: &mut Incoming<'_>,
        framing: Framing,
        ask: Ask,
        response: &mut Head,
    ) -> Result<Try, Reason> {
        let reused = lease.reused;
        // Only the access log tells it, and asking for the time costs.
        let began = self.at.map(|_| Instant::now());
        let secure = lease.is_secure();
        let (link, keep) = lease.parts();
        *keep = false;
        let Up { mut sink, mut receiver } = match link.open(incoming.request, framing, secure, ask) {
            // The connection ended just now, so nothing of the request went out.
            Err(Reason::Reset) => return Ok(Try::Unseen),
            up => up?,
        };
        let over_http2 = matches!(receiver, Receiver::H2 { .. });
        if !matches!(framing, Framing::Empty) && (over_http2 || (reused && may_be_repeated(incoming.request))) {
            incoming.source.keep();
        }
        // What a client sends before its upgrade was agreed to must not reach the endpoint as a request.
        let mut sending = if ask == Ask::Answer { Sending::On } else { Sending::Held };
        let head = poll_fn(|cx| self.poll_answer(cx, incoming, &mut sink, &mut receiver, &mut sending, response)).await;
        let (body, mut reusable) = match head {
            Ok(head) => head,
            // Should the endpoint close a kept connection just now, a request that may be repeated ([RFC 9110], 9.2.2)
            // is sent again, as long as its body is in hand. One that was refused was surely not acted on.
            Err(reason @ (Reason::Reset | Reason::Refused))
                if (reason == Reason::Refused || (reused && may_be_repeated(incoming.request)))
                    && (self.received == 0 || incoming.source.rewind()) =>
            {
                self.received = 0;
                return Ok(Try::Stale(reason));
            }
            Err(Reason::Unseen) if self.received == 0 || incoming.source.rewind() => {
                self.received = 0;
                return Ok(Try::Unseen);
            }
            Err(reason) => return Err(reason),
        };
        self.upstream = began.map(|began| began.elapsed());
        self.watched.begin_answer();
        self.code = response.status();

        if ask != Ask::Answer && upgrade::is_agreed(ask, over_http2, response.status()) {
            upgrade::translate(incoming.request, ask, over_http2, incoming.responder.is_http2(), response);
            return self.tunnel(sink, receiver, incoming, response).await;
        }
        if response.status() == 101 {
            return Err(Reason::Protocol("it switched protocols unasked"));
        }
        // What must be upgraded to is what 426 tells ([RFC 9110], 15.5.22); upgrades pass us, so it is true.
        let needed = if response.status() == 426 { response.get(FieldId::Upgrade).map(<[u8]>::to_vec) } else { None };
        headers::strip_hop_by_hop(response);
        if let Some(needed) = needed {
            response.push("Connection", b"Upgrade");
            response.push("Upgrade", &needed);
        }
        headers::via(response, &self.snapshot.forwarded, response.version());
        self.answered = true;
        // A drained connection ends with this response, and so does one on which bytes of a tunnel may have been sent.
        let mut keep_client = self.watched.order() == Order::None && ask != Ask::Connect;
        let mut down = incoming.responder.respond(response, body, &mut keep_client).map_err(|_| Reason::ClientGone)?;
        let mut source = receiver.into_source();
        let outcome = poll_fn(|cx| {
            let mut waiting = None;
            let outcome = poll_pump(cx, &mut source, &mut down, |count| self.sent += count as u64, &mut waiting);
            self.watched.answer_waits(waiting.filter(|_| outcome.is_pending()), self.received + self.sent);
            match outcome {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(Broken::Gone)) => return Poll::Ready(Err(Reason::Reset)),
                Poll::Ready(Err(Broken::Invalid(why))) => return Poll::Ready(Err(Reason::Protocol(why))),
                Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::ClientGone)),
                Poll::Pending => {}
            }
            if down.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientGone));
            }
            if sending == Sending::Done {
                return incoming.source.poll_gone(cx).map(|()| Err(Reason::ClientGone));
            }
            if sending == Sending::On
                && let Poll::Ready(Err(reason)) = self.poll_send(cx, incoming, &mut sink, &mut sending)
            {
                return Poll::Ready(Err(reason));
            }
            Poll::Pending
        })
        .await;
        self.watched.answer_waits(None, self.received + self.sent);
        if let Err(reason) = outcome {
            down.abort(h2::Reason::INTERNAL_ERROR);
            self.reason = Some(reason);
            if let Sink::H1(_) = down {
                // What came is given to the client, but no end.
                let _ = self.in_time(pin!(poll_fn(|cx| down.poll_flush(cx)))).await;
            }
            return Err(reason);
        }
        self.grpc_status = grpc_status(response, &source);
        let whole = sending == Sending::Done || (sending == Sending::Held && incoming.source.is_ended());
        reusable &= whole;
        drop((source, sink));
        *lease.parts().1 = reusable;
        Ok(Try::Done(match (whole, keep_client) {
            (false, _) => After::Linger,
            (true, true) => After::Go,
            (true, false) => After::Close,
        }))
    }

    /// Sends the request and waits for the response's head.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming<'_>,
        sink: &mut Sink<'_>,
        receiver: &mut Receiver<'_>,
        sending: &mut Sending,
        response: &mut Head,
    ) -> Poll<Result<(Framing, bool), Reason>> {
        if self.watched.has_timed_out() {
            // Whose turn was it?
            let client = self.watched.is_request_awaited();
            return Poll::Ready(Err(if client { Reason::ClientSlow } else { Reason::Timeout }));
        }
        self.watched.keep_waker(cx.waker());
        if *sending == Sending::Held {
            let _ = sink.poll_flush(cx);
        }
        if *sending == Sending::On
            && let Poll::Ready(Err(reason)) = self.poll_send(cx, incoming, sink, sending)
        {
            return Poll::Ready(Err(reason));
        }
        loop {
            match receiver.poll_head(cx, response) {
                Poll::Ready(Ok(Got::Response(framing, keep))) => return Poll::Ready(Ok((framing, keep))),
                Poll::Ready(Ok(Got::Informational)) => {
                    headers::strip_hop_by_hop(response);
                    incoming.responder.inform(response);
                }
                Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                Poll::Pending => break,
            }
        }
        let _ = incoming.responder.poll_flush(cx);
        if incoming.responder.poll_reset(cx).is_ready()
            || (*sending == Sending::Done && incoming.source.poll_gone(cx).is_ready())
        {
            return Poll::Ready(Err(Reason::ClientGone));
        }
        Poll::Pending
    }

    /// Sends what there is of the request's body.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming<'_>,
        sink: &mut Sink<'_>,
        sending: &mut Sending,
    ) -> Poll<Result<(), Reason>> {
        let mut waiting = None;
        let moved = |count| self.received += count as u64;
        let outcome = poll_pump(cx, &mut incoming.source, sink, moved, &mut waiting);
        self.watched.request_waits(waiting.filter(|_| outcome.is_pending()), self.received + self.sent);
        if self.is_too_large(self.received) {
            return Poll::Ready(Err(Reason::BodyTooLarge));
        }
        match outcome {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                *sending = Sending::Done;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Broken::Gone)) => Poll::Ready(Err(Reason::ClientGone)),
            Poll::Ready(Err(Broken::Invalid(why))) => Poll::Ready(Err(Reason::BadRequest(why))),
            Poll::Ready(Err(Broken::Refused)) => {
                // The endpoint takes no more, but may have answered; reading tells.
                *sending = Sending::Refused;
                Poll::Pending
            }
        }
    }

    /// Makes the exchange a tunnel.
    async fn tunnel(
        &mut self,
        sink: Sink<'_>,
        receiver: Receiver<'_>,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<Try, Reason> {
        let after = self.carry(sink.into_tunnel(), receiver.into_tunnel(), incoming, response).await?;
        Ok(Try::Done(after))
    }

    /// Tells the client that it has a tunnel, and carries bytes both ways until both ends have ended their direction.
    /// What breaks off on one side is broken off on the other.
    async fn carry(
        &mut self,
        mut up: Sink<'_>,
        mut from_endpoint: Source<'_>,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<After, Reason> {
        self.answered = true;
        let mut down = incoming.responder.tunnel(response).map_err(|_| Reason::ClientGone)?;
        self.code = response.status();
        incoming.source.become_tunnel();
        let (mut there, mut back) = (false, false);
        self.watched.be_patient();
        let outcome = poll_fn(|cx| {
            let (mut on_endpoint, mut on_client) = (None, None);
            if !there {
                let moved = |count| {
                    self.received += count as u64;
                    self.watched.be_patient();
                };
                match poll_pump(cx, &mut incoming.source, &mut up, moved, &mut on_endpoint) {
                    Poll::Ready(Ok(())) => there = true,
                    Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::Reset)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Pending => {}
                }
            }
            if !back {
                let moved = |count| {
                    self.sent += count as u64;
                    self.watched.be_patient();
                };
                match poll_pump(cx, &mut from_endpoint, &mut down, moved, &mut on_client) {
                    Poll::Ready(Ok(())) => back = true,
                    Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::Reset)),
                    Poll::Pending => {}
                }
            }
            self.watched.hold([on_endpoint, on_client].contains(&Some(Waiting::ForSink)));
            if there && back { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await;
        let Err(reason) = outcome else { return Ok(After::Close) };
        self.reason = Some(reason);
        up.break_off();
        down.break_off();
        Ok(After::BreakOff)
    }

    /// Answers that the request was not forwarded, and why.
    async fn refuse(&mut self, reason: Reason, incoming: &mut Incoming<'_>, response: &mut Head) -> After {
        let status = reason.status();
        self.code = status.as_u16();
        self.reason = Some(reason);
        if reason.fault() != Fault::Downstream {
            let (route, cluster) = (self.route_name(), self.cluster_name());
            let endpoint = self.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
            let retry_safe = reason.safe_to_retry();
            tracing::debug!(component = "proxy", route, cluster, endpoint, retry_safe, %reason, "request failed");
        }
        if reason == Reason::ClientGone {
            return After::Reset;
        }
        if reason == Reason::ClientSlow {
            let peer = self.downstream.peer.as_ref().map_or("", |peer| peer.id.as_str());
            self.downstream.local.cut("body_timeout", self.downstream.remote, peer);
        }
        if incoming.responder.is_http2() && is_grpc(incoming.request) {
            return self.refuse_grpc(reason, incoming, response);
        }
        let text = format!("{reason}\n");
        // Where the body's end is not known, the next request's beginning is not either.
        let mut keep = !matches!(reason, Reason::BadRequest(_) | Reason::ClientSlow)
            && incoming.request.method() != Method::Connect
            && incoming.source.is_ended()
            && self.watched.order() == Order::None;
        let whole = incoming.source.is_ended();
        own_response(response, status, &text);
        if reason.is_overload() {
            response.push("X-Envoy-Overloaded", b"true");
        }
        let framing = Framing::Length(text.len() as u64);
        let Ok(mut sink) = incoming.responder.respond(response, framing, &mut keep) else { return After::Reset };
        let bytes = if incoming.request.method() == Method::Head { "" } else { text.as_str() };
        let mut source = Source::Own(bytes.as_bytes());
        self.watched.begin(Instant::now());
        self.watched.answer_waits(Some(Waiting::ForSink), 0);
        let sent = poll_fn(|cx| poll_pump(cx, &mut source, &mut sink, |count| self.sent += count as u64, &mut None));
        let sent = sent.await;
        self.watched.answer_waits(None, 0);
        match (sent, whole, keep) {
            (Err(_), ..) => After::Reset,
            // Whom we have waited for long enough we do not wait for any longer.
            (Ok(()), false, _) if reason == Reason::ClientSlow => After::Close,
            (Ok(()), false, _) => After::Linger,
            (Ok(()), true, true) => After::Go,
            (Ok(()), true, false) => After::Close,
        }
    }

    /// Answers in gRPC's own terms: a status in a head that is also the end ([gRPC over HTTP/2], `Trailers-Only`).
    ///
    /// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
    fn refuse_grpc(&mut self, reason: Reason, incoming: &mut Incoming<'_>, response: &mut Head) -> After {
        let status = reason.grpc_status();
        self.code = http::StatusCode::OK.as_u16();
        self.grpc_status = Some(status);
        response.clear();
        response.set_version(Version::Http2);
        response.set_status(self.code);
        response.push("content-type", b"application/grpc");
        response.push("grpc-status", itoa::Buffer::new().format(status).as_bytes());
        // All reasons are plain ASCII without `%`, which the field would need escaped.
        response.push("grpc-message", reason.to_string().as_bytes());
        match incoming.responder.respond(response, Framing::Empty, &mut true) {
            Ok(_) => After::Go,
            Err(_) => After::Reset,
        }
    }

    fn note(&mut self, now: Instant) {
        self.noted = true;
        self.reason = match (self.reason, self.watched.order()) {
            // It did not go by itself.
            (Some(Reason::ClientGone), Order::Cut("drain")) => Some(Reason::Stopped),
            (Some(Reason::ClientGone), Order::Cut("memory")) => Some(Reason::MemoryShort),
            (Some(Reason::ClientGone), Order::Cut(_)) => Some(Reason::ClientSlow),
            (reason, _) => reason,
        };
        let local = &self.downstream.local;
        local.metrics.in_flight.dec();
        self.place = None;
        self.watched.enter(Phase::Idle, now);
        let duration = now - self.started;
        // A client that went away before the response's headers has seen no code: 0.
        let code = if self.reason == Some(Reason::ClientGone) && !self.answered { 0 } else { self.code };
        let key = RequestKey {
            route: self.route().map_or(u64::MAX, |route| route.id),
            cluster: self.pool.as_ref().map_or(u64::MAX, |pool| pool.cluster.id),
            code,
            peer: self.peer_number(),
        };
        let names = RequestNames { route: self.route_name(), cluster: self.cluster_name(), peer: self.peer_name() };
        local.metrics.request(key, &names, duration);
        if let Some(status) = self.grpc_status {
            local.metrics.grpc(key, &names, status);
        }
        if let (Some(log), Some(line), Some(at)) = (&self.snapshot.access_log, &self.line, self.at) {
            let entry = Entry {
                started: at,
                duration,
                upstream: self.upstream,
                direction: local.shared.direction,
                listener: &local.shared.name,
                method: &line.method,
                host: &line.host,
                // Without the query: tokens and names are found there.
                path: &line.path,
                protocol: line.version.as_str(),
                code,
                reason: self.reason,
                bytes_received: self.received,
                bytes_sent: self.sent,
                route: self.route_name(),
                cluster: self.cluster_name(),
                endpoint: self.endpoint,
                peer: self.peer_name(),
                downstream: self.downstream.remote,
                request_id: &line.request_id,
                user_agent: &line.user_agent,
                retried: self.retried,
            };
            local.worker.log(log, &entry);
        }
        if let Some(line) = self.line.take() {
            Line::take_back(line);
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
        // Reached unnoted when the connection is cut, or its client goes away, while the endpoint is still asked.
        if !self.noted {
            self.reason = self.reason.or(Some(Reason::ClientGone));
            self.note(Instant::now());
        }
    }
}

/// How far the request's sending is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    On,
    Done,
    /// It waits for the endpoint's consent.
    Held,
    /// The endpoint takes no more.
    Refused,
}

/// Lines a worker keeps for the next request.
const MOST_LINES: usize = 64;

thread_local! {
    #[expect(clippy::vec_box, reason = "lines are handed out and taken back without being moved")]
    static LINES: RefCell<Vec<Box<Line>>> = const { RefCell::new(Vec::new()) };
}

impl Line {
    fn of(request: &Head) -> Box<Self> {
        let mut line = LINES.with_borrow_mut(Vec::pop).unwrap_or_default();
        line.method.clear();
        line.method.push_str(request.method_text());
        line.path.clear();
        line.path.push_str(judge::path(request));
        for (kept, id) in [
            (&mut line.host, FieldId::Host),
            (&mut line.request_id, FieldId::XRequestId),
            (&mut line.user_agent, FieldId::UserAgent),
        ] {
            kept.clear();
            kept.extend_from_slice(request.get(id).unwrap_or_default());
        }
        line.version = request.version();
        line
    }

    fn take_back(line: Box<Self>) {
        // While the thread ends there is nobody to keep it for.
        let _ = LINES.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < MOST_LINES {
                kept.push(line);
            }
        });
    }
}

/// A response of our own: plain text.
pub(crate) fn own_response(head: &mut Head, status: http::StatusCode, text: &str) {
    head.clear();
    head.set_version(Version::Http11);
    head.set_status(status.as_u16());
    head.set_reason(status.canonical_reason().unwrap_or_default().as_bytes());
    head.push("Content-Type", b"text/plain; charset=utf-8");
    head.push("Content-Length", itoa::Buffer::new().format(text.len()).as_bytes());
}

/// Whether sending a request twice does what sending it once does: by its method, or because its sender says that the
/// receiver will know it again.
fn may_be_repeated(request: &Head) -> bool {
    request.method().is_idempotent()
        || request.get_named("idempotency-key").is_some()
        || request.get_named("x-idempotency-key").is_some()
}

/// The status of a gRPC call, in the trailers or, when there is no message, in the head.
fn grpc_status(response: &Head, source: &Source<'_>) -> Option<u8> {
    if !is_grpc(response) {
        return None;
    }
    let status = source.trailers().and_then(|trailers| trailers.get(FieldId::GrpcStatus));
    let status = status.or_else(|| response.get(FieldId::GrpcStatus))?;
    str::from_utf8(status).ok()?.parse().ok()
}

/// Whether a message is gRPC's, which needs HTTP/2 all the way; gRPC-Web is made to do without.
fn is_grpc(head: &Head) -> bool {
    let kind = head.get(FieldId::ContentType).unwrap_or_default();
    kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web")
}
