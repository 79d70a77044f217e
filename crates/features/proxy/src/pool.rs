//! Connections to a cluster's endpoints, per worker.
//!
//! In: a wish to send a request. Out: a connection, kept or new, to an endpoint the
//! balancer chose. Promise: nothing here is shared between workers; the number of
//! connections is bounded; an endpoint that refuses is left alone for a while; a
//! connection made with an older certificate is not used for a new request.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use outrigger_identity::{Identities, Snapshot};
use outrigger_traffic::outlier::grpc_as_http;
use outrigger_traffic::{Shedding, retry_after};
use outrigger_wire::head::{FieldId, Head};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::balance::{Endpoint, Local};
use crate::breakers::{Breaker, Held};
use crate::cluster::Cluster;
use crate::dial::{Dialled, Ends};
use crate::error::Reason;
use crate::members::Measure;
use crate::metrics::ClusterMetrics;
use crate::shared::Place;
use crate::state::Seen;
use crate::tls::PerGeneration;
use crate::transport::Transport;
use crate::upstream::{Link, Speech};

/// Endpoints tried for one request when none of them can be reached.
pub(crate) const MOST_TRIES: usize = 3;

/// Times that the balancer is asked for an endpoint that was not tried yet.
const MOST_CHOICES: usize = 3;

/// One cluster's connections on one worker.
pub(crate) struct Pool {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) metrics: ClusterMetrics,
    pub(crate) tls: PerGeneration<ClientConfig>,
    pub(crate) tls_http2: PerGeneration<ClientConfig>,
    pub(crate) tls_tcp: PerGeneration<ClientConfig>,
    identity: RefCell<Identity>,
    local: RefCell<Local>,
    /// Connections there are, idle or busy.
    open: Cell<u32>,
    /// Whether clients give up waiting for its answers, and what is done about it.
    pub(crate) shedding: RefCell<Shedding>,
    /// The limit as the metric knows it.
    pub(crate) told_limit: Cell<u32>,
    /// Drives HTTP/2 connections; dropping the pool ends them.
    pub(crate) drivers: RefCell<JoinSet<()>>,
}

/// A connection that waits for the next request.
pub(crate) struct Idle {
    connection: Connection,
    since: Instant,
}

/// What a request wants of its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) way: Way,
    /// A new one, after a kept one turned out stale.
    pub(crate) fresh: bool,
    /// It cannot be sent again, so a kept one is looked at more closely.
    pub(crate) certain: bool,
    /// Whose request it is.
    pub(crate) ends: Ends,
    /// Where it was tried before: passed by while there is another.
    pub(crate) tried: &'a [SocketAddr],
    /// What the policy goes by, if it goes by anything.
    pub(crate) key: Option<u64>,
    /// The endpoint that it belongs to: taken before all others, while nothing speaks against that.
    pub(crate) prefer: Option<SocketAddr>,
}

/// How a request may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// On a connection of its own.
    Own,
    /// On one that others use too: HTTP/2.
    Shared,
    /// On one of its own; between Outriggers, when there are many, on a shared one.
    Either,
    /// As extended CONNECT on a shared one, or, where the endpoint does not take it, on one of its own.
    Upgrade,
}

/// A connection to an endpoint.
pub(crate) struct Connection {
    pub(crate) link: Link,
    /// Which certificate of ours it was made with; 0 for plain text.
    pub(crate) generation: u64,
    /// Whom the endpoint's certificate names.
    pub(crate) peer: Option<Rc<str>>,
}

impl Connection {
    /// Whether it can carry another request.
    fn is_good(&self, surely: bool) -> bool {
        match &self.link {
            Link::H1(connection) => connection.is_good(surely),
            Link::H2(..) => true,
        }
    }
}

impl Pool {
    pub(crate) fn new(cluster: Arc<Cluster>, metrics: ClusterMetrics, identities: &Identities, seed: u64) -> Rc<Self> {
        cluster.pools.fetch_add(1, Relaxed);
        Rc::new(Self {
            cluster,
            metrics,
            tls: PerGeneration::default(),
            tls_http2: PerGeneration::default(),
            tls_tcp: PerGeneration::default(),
            identity: RefCell::new(Identity::new(identities)),
            local: RefCell::new(Local::new(seed)),
            open: Cell::new(0),
            shedding: RefCell::new(Shedding::new(Instant::now())),
            told_limit: Cell::new(0),
            drivers: RefCell::default(),
        })
    }

    /// A connection for one request. Cancel-safe: what was counted is given back.
    pub(crate) async fn checkout(self: &Rc<Self>, wish: Wish<'_>) -> Result<Lease, Reason> {
        let generation = self.generation()?;
        let place = self.hold(Breaker::Requests)?;
        let mut failed = 0;
        loop {
            let preferred = wish.prefer.filter(|_| failed == 0).and_then(|address| self.prefer(address, wish.tried));
            let (endpoint, began) = match preferred {
                Some(preferred) => preferred,
                None => self.choose_beside(wish.key, wish.tried)?,
            };
            let mut ticket = Ticket::take(self, endpoint);
            match self.obtain(&mut ticket, generation, wish).await {
                Ok((connection, reused)) => {
                    // A new connection's time is not the answer's.
                    let began = began.map(|began| if reused { began } else { Instant::now() });
                    return Ok(Lease { ticket, connection, reused, keep: true, began, _place: place });
                }
                // It is not the endpoint's fault, or none that it should be avoided for.
                Err(reason @ (Reason::Overflow(_) | Reason::NoDescriptor | Reason::Unseen)) => return Err(reason),
                Err(reason) => {
                    self.failed(&ticket.endpoint);
                    failed += 1;
                    // As many endpoints as there are may be tried, within one connect timeout each.
                    if failed >= self.local.borrow().len().min(MOST_TRIES) {
                        return Err(reason);
                    }
                }
            }
        }
    }

    /// A connection of a client's own, for bytes as they come. Cancel-safe.
    pub(crate) async fn tunnel(self: &Rc<Self>, ends: Ends) -> Result<Tunnel, Reason> {
        let mut failed = 0;
        let key = self.key(None, ends.client.ip());
        loop {
            let mut ticket = Ticket::take(self, self.choose(key)?.0);
            let reach = async |stream, address| self.reach(stream, address, Speech::Tcp, Some(ends)).await;
            match self.connect(&mut ticket, reach).await {
                Ok(Dialled { io, peer, .. }) => {
                    if self.measure().outlier.is_some() {
                        ticket.endpoint.peer.tally.reached();
                    }
                    return Ok(Tunnel { address: ticket.endpoint.address, io, peer, _ticket: ticket });
                }
                // It is not the endpoint's fault.
                Err(reason @ (Reason::Overflow(_) | Reason::NoDescriptor)) => return Err(reason),
                Err(reason) => {
                    self.failed(&ticket.endpoint);
                    failed += 1;
                    if failed >= self.local.borrow().len().min(MOST_TRIES) {
                        return Err(reason);
                    }
                }
            }
        }
    }

    /// Closes connections that have been idle for too long, or were made with an older certificate.
    pub(crate) fn sweep(&self, now: Instant) {
        let timeout = Duration::from(self.cluster.config.pool.idle_timeout);
        let generation = self.generation().ok();
        let mut closed = 0;
        for endpoint in self.local.borrow().used() {
            endpoint.shared.sweep(now, generation, &self.cluster.config.pool);
            let mut gone = 0;
            endpoint.forget_need();
            let mut too_many = endpoint.idle.borrow().len().saturating_sub(self.most_idle(endpoint));
            // The first ones have rested longest.
            endpoint.idle.borrow_mut().retain(|idle| {
                let keep = idle.connection.is_good(false)
                    && now.saturating_duration_since(idle.since) < timeout
                    && Some(idle.connection.generation) == generation
                    && too_many == 0;
                too_many = too_many.saturating_sub(1);
                gone += u32::from(!keep);
                keep
            });
            endpoint.closed(gone);
            closed += gone;
        }
        self.closed(closed);
        while self.drivers.borrow_mut().try_join_next().is_some() {}
        self.tell_limit(self.shedding.borrow().limit());
    }

    /// How many connections to an endpoint may rest now.
    fn most_idle(&self, endpoint: &Endpoint) -> usize {
        match self.cluster.config.pool.max_idle as usize {
            0 => 0,
            most => most.max(endpoint.needed()),
        }
    }

    /// Whether a request or a connection uses it.
    pub(crate) fn is_in_use(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) > 1 || self.open.get() > 0
    }

    /// Whether no route leads here any more and no request uses it: only pools hold the cluster.
    pub(crate) fn is_abandoned(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 1 && Arc::strong_count(&self.cluster) <= self.cluster.pools.load(Relaxed)
    }

    /// The identity to connect with; `None` before there is one.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.identity.borrow_mut().newest().clone()
    }

    /// The newest certificates' generation, or 0 when the cluster is plain.
    pub(crate) fn generation(&self) -> Result<u64, Reason> {
        match &self.cluster.config.tls {
            None => return Ok(0),
            Some(tls) if tls.server_name.is_some() => return Ok(self.cluster.origination.generation()),
            Some(_) => {}
        }
        let mut identity = self.identity.borrow_mut();
        identity.newest().as_ref().map(|snapshot| snapshot.generation).ok_or(Reason::TlsFailure)
    }

    /// Takes on the cluster's endpoints as they are now.
    pub(crate) fn renew(&self) {
        let mut local = self.local.borrow_mut();
        if !self.cluster.members_are(local.members()) {
            for gone in local.renew(self.cluster.members()) {
                gone.retired.set(true);
                gone.shared.clear();
                let closed = gone.idle.take().len() as u32;
                gone.closed(closed);
                self.closed(closed);
            }
        }
    }

    /// What the policy goes by, of a request from this client.
    pub(crate) fn key(&self, request: Option<&Head>, client: IpAddr) -> Option<u64> {
        self.renew();
        self.local.borrow().members().key(request, client)
    }

    /// An endpoint, and what time it is, if that is of interest.
    fn choose(&self, key: Option<u64>) -> Result<(Rc<Endpoint>, Option<Instant>), Reason> {
        self.renew();
        let mut local = self.local.borrow_mut();
        let (chosen, now) = local.choose(key).ok_or(Reason::NoEndpoint)?;
        Ok((chosen, now.filter(|_| local.members().measure.latency)))
    }

    /// The endpoint at an address, if it is one of the cluster's, may be used and was not tried yet.
    fn prefer(&self, address: SocketAddr, tried: &[SocketAddr]) -> Option<(Rc<Endpoint>, Option<Instant>)> {
        self.renew();
        let now = Instant::now();
        let mut local = self.local.borrow_mut();
        let found = local.at(address, now).filter(|_| !tried.contains(&address))?;
        Some((found, Some(now).filter(|_| local.members().measure.latency)))
    }

    /// An endpoint that was not tried yet, if there is one that is not avoided.
    fn choose_beside(&self, key: Option<u64>, tried: &[SocketAddr]) -> Result<(Rc<Endpoint>, Option<Instant>), Reason> {
        let (mut chosen, now) = self.choose(key)?;
        if tried.is_empty() {
            return Ok((chosen, now));
        }
        for _ in 0..MOST_CHOICES {
            if !tried.contains(&chosen.address) {
                return Ok((chosen, now));
            }
            // What goes by a key would be sent to where it failed.
            chosen = self.choose(None)?.0;
        }
        // The balancer likes those best; any other one is better for a request that failed there.
        let other = self.local.borrow_mut().untried(tried, Instant::now());
        Ok((other.unwrap_or(chosen), now))
    }

    /// A connection to the ticket's endpoint, and whether it carried a request before.
    async fn obtain(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        generation: u64,
        wish: Wish<'_>,
    ) -> Result<(Connection, bool), Reason> {
        let Wish { way, fresh, certain, ends, .. } = wish;
        // One that tells a client's address is that client's alone.
        let private = self.cluster.config.proxy_protocol.is_some();
        match way {
            Way::Shared => return Ok(shared(self.place(ticket, generation, fresh).await?, generation)),
            Way::Upgrade => {
                let place = self.place(ticket, generation, fresh).await?;
                if place.takes_upgrades(&ticket.endpoint).await? {
                    return Ok(shared(place, generation));
                }
            }
            Way::Own | Way::Either => {
                if !private
                    && !fresh
                    && let Some(connection) = ticket.idle(generation, certain)
                {
                    return Ok((connection, true));
                }
                if way == Way::Either && !private && self.shares(&ticket.endpoint, generation) {
                    match self.place(ticket, generation, fresh).await {
                        // It is an Outrigger no longer.
                        Err(Reason::TlsFailure) => ticket.endpoint.kin.set(false),
                        place => return Ok(shared(place?, generation)),
                    }
                }
            }
        }
        let reach = async |stream, address| self.reach(stream, address, Speech::Http1, Some(ends)).await;
        // On the heap, so that a request that finds a connection does not hold room for making one.
        let dialled = Box::pin(self.connect(ticket, reach)).await?;
        ticket.endpoint.kin.set(dialled.kin);
        Ok((dialled.into(), false))
    }

    /// Whether a request that found no kept connection shares one instead of getting its own.
    fn shares(&self, endpoint: &Endpoint, generation: u64) -> bool {
        let limits = &self.cluster.config.pool;
        endpoint.kin.get()
            && (endpoint.under_way.get() > limits.multiplex_above || endpoint.shared.have_room(generation, limits))
    }

    /// Connects to the ticket's endpoint, or to one that is there when that one lets us wait; the ticket is for that one
    /// then. `reach` makes of it what is wanted, within the same time.
    pub(crate) async fn connect<C>(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        reach: impl AsyncFnOnce(TcpStream, SocketAddr) -> Result<C, Reason>,
    ) -> Result<C, Reason> {
        // One that other workers left no room has its first all the same, or it could never serve anybody.
        if self.open.get() > 0 && !self.has_room() && !self.make_room() {
            self.metrics.overflow.inc();
            self.metrics.refused("connections");
            return Err(Reason::Overflow("too many connections to the cluster"));
        }
        let _pending = self.hold(Breaker::Pending)?;
        ticket.open();
        let timeout = Duration::from(self.cluster.config.connect_timeout);
        ticket.endpoint.try_again(timeout);
        let dial = async {
            let stream = self.race(ticket).await?;
            reach(stream, ticket.endpoint.address).await
        };
        let outcome = tokio::time::timeout(timeout, dial).await;
        let outcome = outcome.unwrap_or(Err(Reason::ConnectTimeout));
        if outcome.is_ok() {
            self.metrics.connected.inc();
            ticket.endpoint.connected();
        } else {
            self.metrics.failed.inc();
            ticket.close();
        }
        outcome
    }

    /// What of an endpoint's answers is of interest.
    fn measure(&self) -> Measure {
        self.local.borrow().members().measure
    }

    /// How many there may be of something that a breaker limits.
    pub(crate) fn most(&self, breaker: Breaker) -> Option<u32> {
        let local = self.local.borrow();
        let breakers = &local.members().breakers;
        match breaker {
            Breaker::Pending => breakers.max_pending_requests,
            Breaker::Requests => breakers.max_requests,
            Breaker::Retries => breakers.max_retries,
        }
    }

    /// No connection could be made to an endpoint.
    pub(crate) fn failed(&self, endpoint: &Endpoint) {
        endpoint.failed(Instant::now());
        if let Some(thresholds) = self.measure().outlier
            && endpoint.peer.tally.unanswered(&thresholds)
        {
            self.cluster.alarm.notify_one();
        }
    }

    /// What is seen of the endpoints that had requests.
    pub(crate) fn sight(&self, now: Instant) -> Vec<(SocketAddr, Seen)> {
        let local = self.local.borrow();
        let decay = local.members().measure.decay;
        let seen = |endpoint: &Rc<Endpoint>| {
            let seen = Seen {
                under_way: endpoint.under_way.get(),
                open: endpoint.open.get(),
                answers: endpoint.answers.get(),
                failed: endpoint.failed_answers.get(),
                latency: endpoint.latency.latency(now, decay),
                avoided: endpoint.is_avoided(now),
            };
            (endpoint.address, seen)
        };
        local.used().map(seen).collect()
    }

    /// Connections there are, and how many of them wait for a request.
    pub(crate) fn open_and_idle(&self) -> (u32, u32) {
        let idle: usize = self.local.borrow().used().map(|endpoint| endpoint.idle.borrow().len()).sum();
        (self.open.get(), u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// How many endpoints there are.
    pub(crate) fn endpoints(&self) -> usize {
        self.local.borrow().len()
    }

    /// Every endpoint.
    pub(crate) fn all_endpoints(&self) -> Vec<Rc<Endpoint>> {
        let mut local = self.local.borrow_mut();
        (0..local.len()).map(|index| local.endpoint(index)).collect()
    }

    /// Whom to try beside those that let us wait.
    pub(crate) fn beside(&self, tried: &[Rc<Endpoint>], now: Instant) -> Option<Rc<Endpoint>> {
        self.local.borrow_mut().beside(tried, now)
    }

    /// Whether a further connection may be open.
    pub(crate) fn has_room(&self) -> bool {
        self.cluster.breakers.connections.load(Relaxed) < self.local.borrow().members().breakers.max_connections
    }

    /// Closes a connection that another endpoint does not need just now.
    fn make_room(&self) -> bool {
        let local = self.local.borrow();
        let idle = local.used().find_map(|endpoint| {
            let idle = endpoint.idle.borrow_mut().pop();
            endpoint.closed(u32::from(idle.is_some()));
            idle
        });
        self.closed(u32::from(idle.is_some()));
        // A shared one counts until it has said goodbye, which is a moment later.
        idle.is_some() || local.used().any(|endpoint| endpoint.shared.close_one())
    }

    pub(crate) fn closed(&self, count: u32) {
        if count > 0 {
            self.open.set(self.open.get() - count);
            self.cluster.breakers.connections.fetch_sub(count, Relaxed);
            self.metrics.open.add(-f64::from(count));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.closed(self.open.get());
        self.tell_limit(None);
        self.cluster.pools.fetch_sub(1, Relaxed);
    }
}

/// The worker's view of our identity: looked up under a lock only when it has changed.
struct Identity {
    changes: watch::Receiver<Option<Arc<Snapshot>>>,
    newest: Option<Arc<Snapshot>>,
}

impl Identity {
    fn new(identities: &Identities) -> Self {
        let mut changes = identities.subscribe();
        let newest = changes.borrow_and_update().clone();
        Self { changes, newest }
    }

    fn newest(&mut self) -> &Option<Arc<Snapshot>> {
        if self.changes.has_changed().unwrap_or(false) {
            self.newest = self.changes.borrow_and_update().clone();
        }
        &self.newest
    }
}

/// A shared connection as one for a request.
fn shared(place: Place, generation: u64) -> (Connection, bool) {
    let (peer, reused) = (place.peer(), place.reused);
    (Connection { link: Link::H2(place.sender, place.stream), generation, peer }, reused)
}

/// A place in the pool's counts, given back when dropped.
pub(crate) struct Ticket {
    pool: Weak<Pool>,
    pub(crate) endpoint: Rc<Endpoint>,
    /// Whether a connection is counted with it.
    pub(crate) open: bool,
}

impl Ticket {
    pub(crate) fn take(pool: &Rc<Pool>, endpoint: Rc<Endpoint>) -> Self {
        endpoint.begin();
        Self { pool: Rc::downgrade(pool), endpoint, open: false }
    }

    /// Keeps a connection for a request to come; the count goes with it.
    pub(crate) fn keep(mut self, connection: Connection) {
        self.open = false;
        self.endpoint.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
    }

    /// Takes over a kept connection, with its place in the count. The one used last is the least likely to have
    /// been closed by the endpoint.
    fn idle(&mut self, generation: u64, surely: bool) -> Option<Connection> {
        loop {
            let idle = self.endpoint.idle.borrow_mut().pop()?;
            self.open = true;
            // What the endpoint closed meanwhile is noticed here, not by the request.
            if idle.connection.generation == generation && idle.connection.is_good(surely) {
                return Some(idle.connection);
            }
            self.close();
        }
    }

    /// Goes over to another endpoint.
    pub(crate) fn move_to(&mut self, endpoint: Rc<Endpoint>) {
        endpoint.begin();
        self.endpoint.end();
        if self.open {
            endpoint.opened();
            self.endpoint.closed(1);
        }
        self.endpoint = endpoint;
    }

    pub(crate) fn open(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get() + 1);
            pool.cluster.breakers.connections.fetch_add(1, Relaxed);
            pool.metrics.open.inc();
            self.endpoint.opened();
            self.open = true;
        }
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.endpoint.closed(1);
            if let Some(pool) = self.pool.upgrade() {
                pool.closed(1);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.endpoint.end();
        self.close();
    }
}

/// A connection for bytes as they come, counted until dropped.
pub(crate) struct Tunnel {
    pub(crate) address: SocketAddr,
    pub(crate) io: Transport,
    pub(crate) peer: Option<Rc<str>>,
    _ticket: Ticket,
}

/// A connection for one request. Dropped, it is closed; settled, it is kept.
pub(crate) struct Lease {
    ticket: Ticket,
    connection: Connection,
    /// It carried a request before, so the endpoint may have closed it unnoticed.
    pub(crate) reused: bool,
    /// It may carry another request.
    keep: bool,
    /// When the request began, if that is of interest.
    began: Option<Instant>,
    /// Its place under `maxRequests`.
    _place: Option<Held>,
}

impl Lease {
    /// The endpoint.
    pub(crate) fn address(&self) -> SocketAddr {
        self.ticket.endpoint.address
    }

    /// Whom the endpoint's certificate names.
    pub(crate) fn peer(&self) -> Option<Rc<str>> {
        self.connection.peer.clone()
    }

    /// Where to tell how the endpoint did.
    pub(crate) fn report(&self) -> Report {
        let pool = self.ticket.pool.upgrade();
        let measure = pool.as_ref().map(|pool| pool.measure()).unwrap_or_default();
        let alarm = pool.filter(|_| measure.outlier.is_some());
        let endpoint = Rc::clone(&self.ticket.endpoint);
        Report { endpoint, began: self.began, measure, alarm, awaits_status: Cell::new(false) }
    }

    /// Whether the endpoint is an Outrigger too.
    pub(crate) fn is_kin(&self) -> bool {
        match &self.connection.link {
            Link::H1(connection) => connection.kin,
            Link::H2(_, place) => place.is_kin(),
        }
    }

    /// Whether it is TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.ticket.pool.upgrade().is_some_and(|pool| pool.cluster.config.tls.is_some())
    }

    /// What to send with, and whether the connection may carry another request afterwards.
    pub(crate) fn parts(&mut self) -> (&mut Link, &mut bool) {
        (&mut self.connection.link, &mut self.keep)
    }

    /// Keeps the connection for the next request, when there is room and it is still good.
    pub(crate) fn settle(mut self, now: Instant) {
        let Some(pool) = self.ticket.pool.upgrade() else { return };
        if !self.keep || self.ticket.endpoint.retired.get() {
            return;
        }
        let Link::H1(connection) = &mut self.connection.link else { return };
        let limits = &pool.cluster.config.pool;
        let own = pool.cluster.config.proxy_protocol.is_some();
        let worn = limits.max_requests > 0 && connection.carried >= limits.max_requests;
        let age = Duration::from(limits.max_age);
        let old = !age.is_zero() && now.saturating_duration_since(connection.born) >= age;
        if own || worn || old || !connection.input.is_empty() {
            return;
        }
        connection.rest();
        let endpoint = Rc::clone(&self.ticket.endpoint);
        let mut idle = endpoint.idle.borrow_mut();
        if idle.len() < pool.most_idle(&endpoint) {
            idle.push(Idle { connection: self.connection, since: now });
            self.ticket.open = false;
        }
    }
}

/// Takes down how an endpoint did with a request.
pub(crate) struct Report {
    endpoint: Rc<Endpoint>,
    began: Option<Instant>,
    measure: Measure,
    /// Where somebody looks after endpoints that fail.
    alarm: Option<Rc<Pool>>,
    /// It is gRPC, whose status comes at the end.
    awaits_status: Cell<bool>,
}

impl Report {
    /// It began to answer; with gRPC, how it went may be told only at the end.
    pub(crate) fn answered(&self, response: &Head, grpc: bool) {
        let status = match (grpc, response.get(FieldId::GrpcStatus)) {
            (false, _) => response.status(),
            (true, Some(status)) => as_http(str::from_utf8(status).ok().and_then(|status| status.parse().ok())),
            (true, None) => {
                self.awaits_status.set(true);
                return self.took(false);
            }
        };
        self.took(status >= 500);
        let rest = || retry_after(response.get_named("retry-after")?, SystemTime::now())?.wait();
        let rest = if self.alarm.is_some() && matches!(status, 429 | 503) { rest() } else { None };
        self.count(status, rest);
    }

    /// The answer is whole; `grpc` is the status at its end.
    pub(crate) fn ended(&self, grpc: Option<u8>) {
        if self.awaits_status.take() {
            self.count(as_http(grpc), None);
        }
    }

    /// It did not answer, or not to the end, for this reason.
    pub(crate) fn failed(&self, reason: Reason) {
        if !matches!(reason, Reason::Reset | Reason::Protocol(_) | Reason::Timeout | Reason::Refused | Reason::Unseen) {
            return;
        }
        let endpoint = &self.endpoint;
        endpoint.answers.set(endpoint.answers.get() + 1);
        endpoint.failed_answers.set(endpoint.failed_answers.get() + 1);
        self.took(true);
        if let (Some(pool), Some(thresholds)) = (&self.alarm, &self.measure.outlier)
            && endpoint.peer.tally.unanswered(thresholds)
        {
            pool.cluster.alarm.notify_one();
        }
    }

    fn count(&self, status: u16, rest: Option<Duration>) {
        let endpoint = &self.endpoint;
        endpoint.answers.set(endpoint.answers.get() + 1);
        endpoint.failed_answers.set(endpoint.failed_answers.get() + u64::from(status >= 500));
        if let (Some(pool), Some(thresholds)) = (&self.alarm, &self.measure.outlier)
            && endpoint.peer.tally.answered(status, rest, thresholds)
        {
            pool.cluster.alarm.notify_one();
        }
    }

    fn took(&self, failed: bool) {
        if let Some(began) = self.began {
            let now = Instant::now();
            let took = now - began;
            // One that fails fast is not a fast one.
            let took = if failed { took.max(self.measure.penalty) } else { took };
            self.endpoint.latency.observe(took, now, self.measure.decay);
        }
    }
}

/// The HTTP status that a gRPC status counts as; a call without one has failed.
fn as_http(status: Option<u8>) -> u16 {
    status.map_or(500, grpc_as_http)
}
