//! One request: judged, routed, sent on, answered, noted.
//!
//! In: a request of a client, over whatever protocol. Out: the endpoint's response, or one
//! of ours that says why not. Promise: what is forwarded is what was judged; a request is
//! sent a second time only when the endpoint cannot have acted on the first; every request
//! is counted once.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use outrigger_config::ClusterProtocol;
use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Head, Method, Version};

use crate::body::Source;
use crate::connection::Downstream;
use crate::error::Reason;
use crate::h2::linger::linger;
use crate::pool::{Pool, Way, Wish};
use crate::respond::Responder;
use crate::snapshot::LocalSnapshot;
use crate::upstream::Ask;
use crate::watch::Watched;
use crate::{buffer, headers, judge, limits};

mod attempt;
mod coding;
mod connect;
mod filters;
mod global;
pub(crate) mod hedge;
mod note;
mod protect;
mod refuse;
mod retry;
mod session;
mod shed;
mod trace;

pub(crate) use note::is_grpc;
pub(crate) use refuse::own_response;

use filters::Filtered;
use note::Line;
use retry::Tries;
use session::Sticky;
use trace::Traced;

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
    /// When the answer had gone whole: asked for once, for all who want to know.
    ended: Option<Instant>,
    at: Option<SystemTime>,
    /// The route's number in the snapshot.
    route: Option<u32>,
    filtered: Filtered,
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
    /// What its route asks for beyond sending it once.
    tries: Option<Box<Tries>>,
    /// Whom its client belongs to, where the route keeps to that.
    session: Option<Box<Sticky>>,
    /// It is counted among those that wait for the application.
    awaits: bool,
    /// Its place under `maxRequests`.
    place: Option<limits::Place>,
    /// Some bytes of the response's head have gone to the client.
    answered: bool,
    noted: bool,
    /// The client spoke HTTP/2 to the server that it wanted to reach.
    chose_http2: bool,
    /// What the access log and spans tell at the end, also if the request is dropped under way.
    line: Option<Box<Line>>,
    trace: Option<Traced>,
}

/// How one try ended.
enum Try {
    Done(After),
    /// The kept connection had gone stale before the endpoint can have seen the request.
    Stale(Reason),
    /// The endpoint ended its connection and said that it had not looked at the request.
    Unseen,
    /// The answer is one after which the request is sent again.
    Asked,
}

/// What came of sending a request.
enum Sent {
    Done(After),
    /// An answer after which it is to be sent again; only where the route says so.
    Asked,
}

impl Sent {
    /// What becomes of the connection, for requests that are not sent again.
    fn after(self) -> After {
        match self {
            Self::Done(after) => after,
            Self::Asked => After::Reset,
        }
    }
}

/// Times that a request is sent again because endpoints ended connections without looking at it. Where a connection
/// carries more requests at once than the endpoint takes on it, as nginx's `keepalive_requests` bounds, one may meet
/// that several times, and where others come before it each time, many times.
const MOST_UNSEEN: u32 = 16;
/// After so many it waits a moment before it goes again, each time longer, so that the crowd has passed.
const UNSEEN_AT_ONCE: u32 = 5;
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long a request waits that was not looked at so many times: from half of it to all, as chance wants.
fn pause(unseen: u32, chance: u32) -> Option<Duration> {
    let doublings = unseen.checked_sub(UNSEEN_AT_ONCE + 1)?;
    let longest = SHORTEST_PAUSE.saturating_mul(1 << doublings.min(10)).min(LONGEST_PAUSE);
    Some(longest.mul_f64(0.5 + f64::from(chance) / f64::from(u32::MAX) / 2.0))
}

impl Exchange {
    pub(crate) fn new(downstream: &Rc<Downstream>, watched: &Rc<Watched>, started: Instant) -> Self {
        downstream.local.metrics.in_flight.inc();
        Self {
            snapshot: downstream.local.snapshot(),
            downstream: Rc::clone(downstream),
            watched: Rc::clone(watched),
            started,
            ended: None,
            at: None,
            route: None,
            filtered: Filtered::default(),
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
            tries: None,
            session: None,
            awaits: false,
            place: None,
            answered: false,
            noted: false,
            chose_http2: false,
            line: None,
            trace: None,
        }
    }

    /// Answers the request. `response` is room for the response's head.
    pub(crate) async fn run(mut self, mut incoming: Incoming<'_>, response: &mut Head) -> After {
        self.watched.begin(self.started);
        let tapped = self.snapshot.taps.are_on();
        if self.snapshot.is_told || tapped {
            self.at = Some(SystemTime::now());
            let (secure, log) = (self.downstream.secure, self.snapshot.access_log.as_deref());
            let line = self.line.insert(Line::of(incoming.request, secure, log));
            line.heads = if tapped { self.snapshot.taps.keep(incoming.request) } else { None };
            self.begin_trace(incoming.request);
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
        if let Some(line) = &mut self.line {
            line.keep_response(response, self.code);
        }
        self.note(self.ended.unwrap_or_else(Instant::now));
        drop(self);
        if after == After::Linger {
            // On the heap: few are answered before they have sent all.
            Box::pin(linger(&mut incoming.source)).await;
        }
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
        let (timeout, pool) = self.find_route(request)?;
        let end = timeout.and_then(|timeout| self.started.checked_add(timeout));
        self.watched.set_deadline(end);
        if self.filtered.any
            && let Some(after) = Box::pin(self.answer_by_filter(incoming, response)).await?
        {
            return Ok(after);
        }
        let request = &mut *incoming.request;
        let pool = pool?;
        self.pool = Some(Rc::clone(&pool));
        let route = self.route.and_then(|number| self.snapshot.routes.route(number));
        if route.is_some_and(|route| route.resilience.is_some())
            && let snapshot = Rc::clone(&self.snapshot)
            && let Some(resilience) = retry::resilience(&snapshot, self.route)
        {
            self.tries = Some(self.protect(resilience, end, request)?);
            if let Some(global) = &resilience.global {
                // On the heap: most requests ask nobody.
                Box::pin(self.ask_service(global, Some(&pool.cluster.name), request)).await?;
            }
            self.enter(resilience, &pool, request)?;
        }
        if self.snapshot.sheds {
            self.join_crowd(&pool, request)?;
        }

        // A request that has a body of its own is not followed by another protocol.
        let upgrade = incoming.upgrade.take().filter(|_| matches!(incoming.framing, Framing::Empty));
        headers::strip_hop_by_hop(request);
        let policy = self.snapshot.forwarded.client_cert;
        headers::tell_peer(request, policy, self.downstream.peer.as_ref().map(|peer| peer.header.as_str()));
        let secure = self.downstream.secure;
        headers::forwarded(request, &self.snapshot.forwarded, self.downstream.remote.ip(), secure);
        headers::via(request, &self.snapshot.forwarded, request.version());
        if self.filtered.any {
            self.change_request(request)?;
            self.decompress_request(incoming)?;
        }
        if let Some(heads) = self.line.as_mut().and_then(|line| line.heads.as_mut())
            && !matches!(incoming.framing, Framing::Empty)
        {
            incoming.source = heads.tap_request(std::mem::replace(&mut incoming.source, Source::Empty));
        }
        let request = &mut *incoming.request;
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
        // A client that goes where it wanted to go has chosen HTTP/2 for this very server. Between sidecars we did, and
        // what the client did is told beside.
        let told = headers::take_protocol(request) && self.downstream.outrigger;
        let chose = if self.downstream.peer.is_some() { told } else { request.version() == Version::Http2 };
        self.chose_http2 = chose && self.downstream.original.is_some();
        let chosen = pool.cluster.config.original_destination && chose;
        let way = match (pool.cluster.config.protocol, ask) {
            (ClusterProtocol::Http2, Ask::Upgrade) => Way::Upgrade,
            (ClusterProtocol::Http2, _) => Way::Shared,
            (ClusterProtocol::Auto, Ask::Answer)
                if chosen || (request.version() == Version::Http2 && is_grpc(request)) =>
            {
                Way::Shared
            }
            (ClusterProtocol::Auto, Ask::Answer) => Way::Either,
            _ => Way::Own,
        };
        request.set_version(Version::Http11);
        if self.tries.is_some() {
            return Box::pin(self.send_again(&pool, way, incoming, framing, ask, response)).await;
        }
        Ok(self.send(&pool, way, incoming, framing, ask, response).await?.after())
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
    ) -> Result<Sent, Reason> {
        // A tunnel uses its connection up and cannot be asked for twice, so a kept one would gain little and may be stale.
        let mut fresh = ask == Ask::Connect && way == Way::Own;
        let mut unseen = 0;
        let key = pool.key(Some(incoming.request), self.downstream.remote.ip());
        loop {
            let certain = !incoming.request.method().is_idempotent();
            let tried = self.tries.as_ref().map_or(&[][..], |tries| &tries.tried);
            let wish = Wish { way, fresh, certain, ends: self.downstream.ends, tried, key, prefer: self.belongs_to() };
            let lease = self.in_time(pin!(pool.checkout(wish))).await?;
            // The one that was being made has ended before anybody could use it.
            if matches!(lease, Err(Reason::Unseen)) && unseen < MOST_UNSEEN {
                self.go_again(pool, &mut unseen).await?;
                continue;
            }
            let mut lease = lease?;
            self.endpoint = Some(lease.address());
            self.endpoint_peer = lease.peer();
            match self.attempt(&mut lease, incoming, framing, ask, response).await? {
                Try::Done(after) => {
                    lease.settle(*self.ended.get_or_insert_with(Instant::now));
                    return Ok(Sent::Done(after));
                }
                Try::Asked => {
                    lease.settle(Instant::now());
                    return Ok(Sent::Asked);
                }
                Try::Stale(reason) if fresh => return Err(reason),
                Try::Unseen if unseen == MOST_UNSEEN => return Err(Reason::Unseen),
                Try::Stale(_) => {
                    fresh = true;
                    pool.metrics.retries.inc();
                    self.retried = true;
                }
                // Others find by themselves that the connection takes no more requests.
                Try::Unseen => {
                    drop(lease);
                    self.go_again(pool, &mut unseen).await?;
                }
            }
        }
    }

    /// Notes that a request goes again because nobody looked at it, after a pause when that happens often.
    async fn go_again(&mut self, pool: &Pool, unseen: &mut u32) -> Result<(), Reason> {
        *unseen += 1;
        pool.metrics.retries.inc();
        self.retried = true;
        if let Some(pause) = pause(*unseen, self.downstream.local.worker.random()) {
            // On the heap: few requests come here.
            self.in_time(Box::pin(tokio::time::sleep(pause)).as_mut()).await?;
        }
        Ok(())
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

    /// Finds the route: its timeout, and the pool to send with, or why there is none.
    #[expect(clippy::type_complexity, reason = "the route is wanted even when its backend is not there")]
    fn find_route(&mut self, request: &Head) -> Result<(Option<Duration>, Result<Rc<Pool>, Reason>), Reason> {
        let peer = self.downstream.peer.as_ref().map(|peer| peer.id.as_str());
        let routes = &self.snapshot.routes;
        let found = routes.find(&outrigger_traffic::route::Request::of(request, peer));
        let number = match found.map(|found| found.route) {
            // What is redirected may be for an address that we know, or for one that anything may go to.
            None if self.snapshot.redirected => {
                Some(routes.tcp(self.downstream.original).ok_or(Reason::UnknownDestination)?)
            }
            number => number,
        };
        let number = number.ok_or(Reason::NoRoute)?;
        let route = routes.route(number).ok_or(Reason::NoRoute)?;
        let worker = &self.downstream.local.worker;
        let session = if route.session.is_some() { self.read_session(route, request) } else { None };
        let kept = session.as_ref().and_then(|session| session.backend(route));
        let backend = kept.or_else(|| route.choose(worker.random()));
        let pool = backend.and_then(|backend| route.cluster_of(backend)).ok_or(Reason::NoEndpoint);
        let pool = pool.and_then(|cluster| worker.pool_for(cluster, route.direct, &self.downstream));
        let any = route.filters.is_some() || backend.is_some_and(|backend| route.backend_filters(backend).is_some());
        let timeout = route.timeout;
        self.filtered = Filtered { backend, matched: found.map_or(0, |found| found.matched), any };
        self.route = Some(number);
        self.session = session;
        Ok((timeout, pool))
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_looked_at_again_and_again_waits_longer_each_time() {
        let millis = |unseen, chance| pause(unseen, chance).map(|pause| pause.as_millis());
        assert_eq!(millis(UNSEEN_AT_ONCE, u32::MAX), None);
        assert_eq!((6..=8).map(|unseen| millis(unseen, u32::MAX)).collect::<Vec<_>>(), [Some(5), Some(10), Some(20)]);
        assert_eq!(millis(8, 0), Some(10), "half of it at least");
        assert_eq!(millis(MOST_UNSEEN, u32::MAX), Some(100));
    }
}
