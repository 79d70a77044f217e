//! Connections to endpoints that many requests share: HTTP/2.
//!
//! In: a request that may share, and the endpoint it goes to. Out: a place on a connection.
//! Promise: an endpoint gets no more requests at once on a connection than it allows and the
//! pool's config wants; another connection is made only when all are full, by one request while
//! the others that need it wait, and its failure is theirs too. One that is worn, old, of an
//! older certificate or told to go carries no new request and ends with its last one.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Ping;
use h2::client::{Connection, SendRequest};
use outrigger_config::Pool as Limits;
use outrigger_telemetry::Gauge;
use tokio::sync::Notify;

use crate::balance::Endpoint;
use crate::error::Reason;
use crate::h2::guard::{Guard, Guarded};
use crate::h2::wire::Wire;
use crate::pool::{Pool, Ticket};

/// Times that a request waits for a further connection because the one it waited for ended before it was known what
/// the endpoint allows on it, as those do that reach a server which is about to go.
const MOST_EARLY: u32 = 5;

/// A connection that many requests share.
pub(crate) struct Shared {
    sender: SendRequest<Bytes>,
    /// What the endpoint may send.
    guard: Rc<Guard>,
    generation: u64,
    /// Whom the endpoint's certificate names.
    pub(crate) peer: Option<Rc<str>>,
    /// The endpoint is an Outrigger too.
    kin: bool,
    born: Instant,
    /// Requests under way on it, and all it has carried.
    streams: Cell<u32>,
    carried: Cell<u64>,
    under_way: Gauge,
    /// Since when a sweep has found it without requests.
    resting: Cell<Option<Instant>>,
    /// What the endpoint allows is known, or was waited for in vain.
    settled: Cell<bool>,
    /// It carries no new request.
    ended: Cell<bool>,
}

/// A connection, and what is beneath it.
pub(crate) struct Http2 {
    pub(crate) connection: Connection<Guarded, Bytes>,
    pub(crate) wire: Rc<Wire>,
    /// What the endpoint may send.
    pub(crate) guard: Rc<Guard>,
}

/// A connection just made, and what has to be driven for it.
pub(crate) struct Begun {
    pub(crate) sender: SendRequest<Bytes>,
    pub(crate) connection: Http2,
    pub(crate) generation: u64,
    pub(crate) peer: Option<Rc<str>>,
    pub(crate) kin: bool,
}

impl Shared {
    fn new(begun: Begun, under_way: Gauge) -> (Rc<Self>, Http2) {
        let Begun { sender, connection, generation, peer, kin } = begun;
        let shared = Self {
            sender,
            guard: Rc::clone(&connection.guard),
            generation,
            peer,
            kin,
            born: Instant::now(),
            streams: Cell::new(0),
            carried: Cell::new(0),
            under_way,
            resting: Cell::new(None),
            settled: Cell::new(false),
            ended: Cell::new(false),
        };
        (Rc::new(shared), connection)
    }

    /// Whether it takes another request made with this certificate.
    fn has_room(&self, generation: u64, limits: &Limits) -> bool {
        let most = self.sender.current_max_send_streams().min(limits.max_streams as usize);
        let worn = limits.max_requests > 0 && self.carried.get() >= limits.max_requests;
        self.settled.get()
            && !self.ended.get()
            && self.generation == generation
            && (self.streams.get() as usize) < most
            && !worn
    }

    /// Whether it is kept for further requests. Called about once a second, so times are met to the second.
    fn is_worth_keeping(&self, now: Instant, generation: Option<u64>, limits: &Limits) -> bool {
        let age = Duration::from(limits.max_age);
        let old = !age.is_zero() && now.saturating_duration_since(self.born) >= age;
        let worn = limits.max_requests > 0 && self.carried.get() >= limits.max_requests;
        if old || worn {
            self.ended.set(true);
        }
        if self.streams.get() > 0 {
            self.resting.set(None);
            return !self.ended.get();
        }
        let since = self.resting.get().unwrap_or(now);
        self.resting.set(Some(since));
        let rested = now.saturating_duration_since(since) >= Duration::from(limits.idle_timeout);
        !self.ended.get() && !rested && generation == Some(self.generation)
    }
}

/// A request's place on a shared connection, given back when dropped.
pub(crate) struct OpenStream(Rc<Shared>);

impl OpenStream {
    fn take(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        shared.under_way.inc();
        shared.resting.set(None);
        Self(Rc::clone(shared))
    }

    /// The connection failed: nobody else is to try it.
    pub(crate) fn give_up(&self) {
        self.0.ended.set(true);
    }

    /// What the endpoint may send.
    pub(crate) fn guard(&self) -> &Rc<Guard> {
        &self.0.guard
    }

    /// Whether the endpoint is an Outrigger too.
    pub(crate) fn is_kin(&self) -> bool {
        self.0.kin
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.under_way.dec();
    }
}

/// What there is to an endpoint of shared connections.
#[derive(Default)]
pub(crate) struct SharedConnections {
    open: RefCell<Vec<Rc<Shared>>>,
    /// One is being made.
    making: Cell<bool>,
    made: Notify,
    /// Tries that failed, and why the last one did.
    failures: Cell<u64>,
    reason: Cell<Option<Reason>>,
}

impl SharedConnections {
    /// Whether a request would find a place at once.
    pub(crate) fn have_room(&self, generation: u64, limits: &Limits) -> bool {
        self.open.borrow().iter().any(|shared| shared.has_room(generation, limits))
    }

    /// Whether one is there, or being made, that a request could use.
    pub(crate) fn are_ready(&self, generation: u64) -> bool {
        let usable = |shared: &Rc<Shared>| !shared.ended.get() && shared.generation == generation;
        self.making.get() || self.open.borrow().iter().any(usable)
    }

    /// Lets go of those that no new request should use.
    pub(crate) fn sweep(&self, now: Instant, generation: Option<u64>, limits: &Limits) {
        self.open.borrow_mut().retain(|shared| shared.is_worth_keeping(now, generation, limits));
    }

    /// Lets go of all; they end with the requests on them.
    pub(crate) fn clear(&self) {
        self.open.take();
    }

    /// Lets go of one without requests, if there is one.
    pub(crate) fn close_one(&self) -> bool {
        let mut open = self.open.borrow_mut();
        let idle = open.iter().position(|shared| shared.streams.get() == 0);
        idle.map(|index| open.swap_remove(index)).is_some()
    }

    fn place(&self, generation: u64, limits: &Limits) -> Option<OpenStream> {
        let mut open = self.open.borrow_mut();
        open.retain(|shared| !shared.ended.get());
        open.iter().find(|shared| shared.has_room(generation, limits)).map(OpenStream::take)
    }

    /// Waits until the connection that is being made is there.
    async fn until_made(&self) -> Result<(), Reason> {
        let before = self.failures.get();
        while self.making.get() {
            self.made.notified().await;
            if self.failures.get() > before {
                return Err(self.reason.get().unwrap_or(Reason::ConnectFailure));
            }
        }
        Ok(())
    }
}

/// Nobody else makes a shared connection to the endpoint meanwhile; all who wait hear of it when this is dropped.
struct Making(Rc<Endpoint>);

impl Making {
    fn begin(endpoint: &Rc<Endpoint>) -> Self {
        endpoint.shared.making.set(true);
        Self(Rc::clone(endpoint))
    }

    fn failed(&self, reason: Reason) {
        let shared = &self.0.shared;
        shared.failures.set(shared.failures.get() + 1);
        shared.reason.set(Some(reason));
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.shared.making.set(false);
        self.0.shared.made.notify_waiters();
    }
}

/// A place, what to send with, and whether the connection carried requests before.
pub(crate) struct Place {
    pub(crate) sender: SendRequest<Bytes>,
    pub(crate) stream: OpenStream,
    pub(crate) reused: bool,
}

impl Place {
    fn on(stream: OpenStream, sender: SendRequest<Bytes>) -> Self {
        let carried = stream.0.carried.get();
        stream.0.carried.set(carried + 1);
        Self { sender, stream, reused: carried > 0 }
    }

    /// Whom the endpoint's certificate names.
    pub(crate) fn peer(&self) -> Option<Rc<str>> {
        self.stream.0.peer.clone()
    }

    /// Whether the endpoint takes upgrades as extended CONNECT; known once it has said what it allows.
    pub(crate) async fn takes_upgrades(&self, endpoint: &Endpoint) -> Result<bool, Reason> {
        if !self.stream.0.settled.get() {
            endpoint.shared.until_made().await?;
        }
        Ok(self.sender.is_extended_connect_protocol_enabled())
    }
}

impl Pool {
    /// A place on a shared connection; `fresh` asks for a new one. Cancel-safe.
    pub(crate) async fn place(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        generation: u64,
        fresh: bool,
    ) -> Result<Place, Reason> {
        let endpoint = Rc::clone(&ticket.endpoint);
        let limits = &self.cluster.config.pool;
        let mut fresh = fresh;
        let mut early = 0;
        loop {
            if !fresh && let Some(stream) = endpoint.shared.place(generation, limits) {
                let mut sender = stream.0.sender.clone();
                if poll_fn(|cx| sender.poll_ready(cx)).await.is_ok() {
                    return Ok(Place::on(stream, sender));
                }
                stream.give_up();
                continue;
            }
            fresh = false;
            if endpoint.shared.making.get() {
                match endpoint.shared.until_made().await {
                    Err(Reason::Unseen) if early < MOST_EARLY => early += 1,
                    outcome => outcome?,
                }
                continue;
            }
            let mut making = Making::begin(&endpoint);
            let begin = async |stream, address| self.begin_http2(stream, address).await;
            // On the heap: few requests make a connection.
            let begun = Box::pin(self.connect(ticket, begin)).await;
            let begun = begun.inspect_err(|reason| making.failed(*reason))?;
            let endpoint = Rc::clone(&ticket.endpoint);
            if !Rc::ptr_eq(&endpoint, &making.0) {
                // Another one was there first; who waits for this one should look for another, too.
                making.failed(Reason::ConnectTimeout);
                making = Making::begin(&endpoint);
            }
            // From here on the connection's driver counts it.
            ticket.open = false;
            let (shared, connection) = Shared::new(begun, self.metrics.streams.clone());
            let stream = OpenStream::take(&shared);
            endpoint.shared.open.borrow_mut().push(Rc::clone(&shared));
            let counted = Counted::new(&self.metrics.http2);
            let driving = drive(connection, Rc::downgrade(&shared), Rc::downgrade(self), making, counted, endpoint);
            self.drivers.borrow_mut().spawn_local(driving);
            let sender = shared.sender.clone();
            return Ok(Place::on(stream, sender));
        }
    }
}

/// Drives a connection until it has ended: with its last request when nobody can send another, or by the endpoint.
/// The requests on it hear of an error themselves.
async fn drive(
    mut http2: Http2,
    shared: Weak<Shared>,
    pool: Weak<Pool>,
    making: Making,
    _counted: Counted,
    endpoint: Rc<Endpoint>,
) {
    let patience = pool.upgrade().map(|pool| Duration::from(pool.cluster.config.connect_timeout)).unwrap_or_default();
    http2.wire.begin_driving();
    let pings = http2.connection.ping_pong();
    // The endpoint's answer to a ping comes behind its SETTINGS, so what it allows is known then.
    let settled = async {
        if let Some(mut pings) = pings {
            let _ = tokio::time::timeout(patience, pings.ping(Ping::opaque())).await;
        }
    };
    let mut ended = tokio::select! {
        ending = http2.ended() => Some(ending),
        () = settled => None,
    };
    if ended.is_some() {
        making.failed(Reason::Unseen);
    } else if let Some(shared) = shared.upgrade() {
        shared.settled.set(true);
    }
    drop(making);
    let ending = match ended.take() {
        Some(ending) => ending,
        None => http2.ended().await,
    };
    if let Ending::Cut(reason, why) = ending {
        let cluster = pool.upgrade().map(|pool| {
            pool.metrics.cut(reason);
            pool.cluster.name.clone()
        });
        let (cluster, address) = (cluster.unwrap_or_default(), endpoint.address);
        tracing::warn!(component = "proxy", cluster, %address, reason, why, "endpoint's HTTP/2 connection is cut off");
        endpoint.failed(Instant::now());
    }
    if let Some(shared) = shared.upgrade() {
        shared.ended.set(true);
    }
    endpoint.closed(1);
    if let Some(pool) = pool.upgrade() {
        pool.closed(1);
    }
}

/// How a connection to an endpoint ended.
enum Ending {
    /// As connections end.
    Closed,
    /// For what the endpoint did: why in a word, and as the library or the guard says it.
    Cut(&'static str, String),
}

impl Http2 {
    /// Drives the connection to its end, or until the endpoint floods it; it is dropped then, which ends the requests on
    /// it. Cancel-safe.
    async fn ended(&mut self) -> Ending {
        poll_fn(|cx| {
            loop {
                match (Pin::new(&mut self.connection).poll(cx), self.guard.flood()) {
                    (Poll::Ready(Err(error)), _) if error.is_library() && error.reason().is_some() => {
                        let flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
                        let reason = if flood { "http2_flood" } else { "http2_protocol" };
                        return Poll::Ready(Ending::Cut(reason, error.to_string()));
                    }
                    (Poll::Ready(_), _) => return Poll::Ready(Ending::Closed),
                    (Poll::Pending, Some(kind)) => {
                        let why = format!("too many frames, the last one {}", kind.as_str());
                        return Poll::Ready(Ending::Cut("http2_flood", why));
                    }
                    (Poll::Pending, None) if self.wire.poll_settle(cx) => return Poll::Pending,
                    (Poll::Pending, None) => {}
                }
            }
        })
        .await
    }
}

/// One more in a gauge, until dropped.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
