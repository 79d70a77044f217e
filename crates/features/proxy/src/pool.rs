//! Connections to a cluster's endpoints, per worker.
//!
//! In: a wish to send a request. Out: a connection, kept or new, to an endpoint the
//! balancer chose. Promise: nothing here is shared between workers; the number of
//! connections is bounded; an endpoint that refuses is left alone for a while; a
//! connection made with an older certificate is not used for a new request.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use outrigger_identity::{Identities, Snapshot};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::balance::{Balancer, Endpoint, LeastRequest, Random};
use crate::cluster::Cluster;
use crate::dial::{Dialled, Ends};
use crate::error::Reason;
use crate::metrics::ClusterMetrics;
use crate::tls::PerGeneration;
use crate::transport::Transport;
use crate::upstream::{Link, Speech};

/// Requests at once on one HTTP/2 connection, whatever the endpoint allows.
const MOST_STREAMS: usize = 1000;
/// Endpoints tried for one request when none of them can be reached.
const MOST_TRIES: usize = 3;

/// One cluster's connections on one worker.
pub(crate) struct Pool {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) metrics: ClusterMetrics,
    pub(crate) tls: PerGeneration<ClientConfig>,
    pub(crate) tls_http2: PerGeneration<ClientConfig>,
    pub(crate) tls_tcp: PerGeneration<ClientConfig>,
    identity: RefCell<Identity>,
    state: RefCell<State>,
    /// Connections there are, idle or busy.
    open: Cell<u32>,
    /// Drives HTTP/2 connections; dropping the pool ends them.
    pub(crate) drivers: RefCell<JoinSet<()>>,
}

struct State {
    /// The addresses the endpoints were made from.
    addresses: Arc<Vec<SocketAddr>>,
    endpoints: Vec<Rc<Endpoint>>,
    balancer: Box<dyn Balancer>,
}

/// A connection that waits for the next request.
pub(crate) struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to an endpoint that carries many requests at once.
pub(crate) struct Shared {
    pub(crate) sender: SendRequest<Bytes>,
    pub(crate) generation: u64,
    pub(crate) peer: Option<Rc<str>>,
    /// Requests under way on it.
    streams: Cell<u32>,
    /// It carries no new request.
    ended: Cell<bool>,
}

impl Shared {
    pub(crate) fn new(sender: SendRequest<Bytes>, generation: u64, peer: Option<Rc<str>>) -> Rc<Self> {
        Rc::new(Self { sender, generation, peer, streams: Cell::new(0), ended: Cell::new(false) })
    }

    /// It carries no new request.
    pub(crate) fn end(&self) {
        self.ended.set(true);
    }

    /// Whether it takes another request made with this certificate.
    fn has_room(&self, generation: u64) -> bool {
        let most = self.sender.current_max_send_streams().min(MOST_STREAMS);
        !self.ended.get() && self.generation == generation && (self.streams.get() as usize) < most
    }
}

/// A request's place on a shared connection, given back when dropped.
pub(crate) struct OpenStream(Rc<Shared>);

impl OpenStream {
    fn take(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self(Rc::clone(shared))
    }

    /// The connection failed: nobody else is to try it.
    pub(crate) fn give_up(&self) {
        self.0.end();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
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
    fn is_good(&self) -> bool {
        match &self.link {
            Link::H1(connection) => connection.is_good(),
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
            state: RefCell::new(State {
                addresses: Arc::default(),
                endpoints: Vec::new(),
                balancer: Box::new(LeastRequest(Random::new(seed))),
            }),
            open: Cell::new(0),
            drivers: RefCell::default(),
        })
    }

    /// A connection for one request. `fresh` asks for a new one, after a kept one turned out stale.
    /// Cancel-safe: what was counted is given back.
    pub(crate) async fn checkout(self: &Rc<Self>, fresh: bool, speech: Speech, ends: Ends) -> Result<Lease, Reason> {
        let generation = self.generation()?;
        let mut failed = 0;
        loop {
            let mut ticket = Ticket::take(self, self.choose()?);
            let outcome = match speech {
                Speech::Http2 => self.one_with_others(&mut ticket, generation, fresh).await,
                Speech::Http1 | Speech::Tcp => self.one_for_itself(&mut ticket, generation, fresh, ends).await,
            };
            match outcome {
                Ok((connection, reused)) => return Ok(Lease { ticket, connection, reused, keep: true }),
                Err(Reason::Overflow) => return Err(Reason::Overflow),
                Err(reason) => {
                    ticket.endpoint.failed(Instant::now());
                    failed += 1;
                    // As many endpoints as there are may be tried, within one connect timeout each.
                    if failed >= self.state.borrow().endpoints.len().min(MOST_TRIES) {
                        return Err(reason);
                    }
                }
            }
        }
    }

    /// A connection of a client's own, for bytes as they come. Cancel-safe.
    pub(crate) async fn tunnel(self: &Rc<Self>, ends: Ends) -> Result<Tunnel, Reason> {
        let mut failed = 0;
        loop {
            let mut ticket = Ticket::take(self, self.choose()?);
            let reach = self.reach(ticket.endpoint.address, Speech::Tcp, Some(ends));
            match self.connect(&mut ticket, reach).await {
                Ok(Dialled { io, peer, .. }) => {
                    return Ok(Tunnel { address: ticket.endpoint.address, io, peer, _ticket: ticket });
                }
                Err(Reason::Overflow) => return Err(Reason::Overflow),
                Err(reason) => {
                    ticket.endpoint.failed(Instant::now());
                    failed += 1;
                    if failed >= self.state.borrow().endpoints.len().min(MOST_TRIES) {
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
        for endpoint in &self.state.borrow().endpoints {
            endpoint.shared.borrow_mut().retain(|shared| {
                // One without requests is closed by letting go of its last sender.
                let rests = shared.streams.get() == 0;
                !shared.ended.get() && (!rests || Some(shared.generation) == generation)
            });
            endpoint.idle.borrow_mut().retain(|idle| {
                let keep = idle.connection.is_good()
                    && now.saturating_duration_since(idle.since) < timeout
                    && Some(idle.connection.generation) == generation;
                closed += u32::from(!keep);
                keep
            });
        }
        self.closed(closed);
        while self.drivers.borrow_mut().try_join_next().is_some() {}
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
    fn generation(&self) -> Result<u64, Reason> {
        match &self.cluster.config.tls {
            None => return Ok(0),
            Some(tls) if tls.server_name.is_some() => return Ok(self.cluster.origination.generation()),
            Some(_) => {}
        }
        let mut identity = self.identity.borrow_mut();
        identity.newest().as_ref().map(|snapshot| snapshot.generation).ok_or(Reason::TlsFailure)
    }

    fn choose(&self) -> Result<Rc<Endpoint>, Reason> {
        let mut state = self.state.borrow_mut();
        if !self.cluster.addresses_are(&state.addresses) {
            let closed = state.renew(self.cluster.addresses());
            self.closed(closed);
        }
        let State { endpoints, balancer, .. } = &mut *state;
        let index = match endpoints.as_slice() {
            [] => return Err(Reason::NoEndpoint),
            [_] => 0,
            several => balancer.choose(several, Instant::now()),
        };
        Ok(Rc::clone(&endpoints[index]))
    }

    /// An HTTP/1 connection, and whether it carried a request before.
    async fn one_for_itself(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        generation: u64,
        fresh: bool,
        ends: Ends,
    ) -> Result<(Connection, bool), Reason> {
        // One that tells a client's address is that client's alone.
        let shared = self.cluster.config.proxy_protocol.is_none();
        if shared
            && !fresh
            && let Some(connection) = ticket.idle(generation)
        {
            return Ok((connection, true));
        }
        let connection = self.connect(ticket, self.dial(ticket.endpoint.address, Some(ends))).await?;
        Ok((connection, false))
    }

    /// A place on an HTTP/2 connection. Requests that come while one is made wait for it.
    async fn one_with_others(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        generation: u64,
        fresh: bool,
    ) -> Result<(Connection, bool), Reason> {
        let endpoint = Rc::clone(&ticket.endpoint);
        let mut fresh = fresh;
        loop {
            let found = {
                let mut shared = endpoint.shared.borrow_mut();
                shared.retain(|one| !one.ended.get());
                shared.iter().find(|one| !fresh && one.has_room(generation)).map(OpenStream::take)
            };
            if let Some(stream) = found {
                let mut sender = stream.0.sender.clone();
                let reused = stream.0.streams.get() > 0;
                if std::future::poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
                    stream.give_up();
                    continue;
                }
                let peer = stream.0.peer.clone();
                return Ok((Connection { link: Link::H2(sender, stream), generation, peer }, reused));
            }
            if endpoint.connecting.replace(true) {
                // Another request makes one just now.
                endpoint.connected_now.notified().await;
                fresh = false;
                continue;
            }
            let guard = Connecting(&endpoint);
            let made = self.connect(ticket, self.dial_http2(&endpoint)).await;
            drop(guard);
            let shared = made?;
            // From here on the connection's driver counts it.
            ticket.open = false;
            endpoint.shared.borrow_mut().push(shared);
            fresh = false;
        }
    }

    async fn connect<C>(
        self: &Rc<Self>,
        ticket: &mut Ticket,
        dial: impl Future<Output = Result<C, Reason>>,
    ) -> Result<C, Reason> {
        if self.open.get() >= self.cluster.config.pool.max_connections && !self.make_room() {
            self.metrics.overflow.inc();
            return Err(Reason::Overflow);
        }
        ticket.open();
        let timeout = Duration::from(self.cluster.config.connect_timeout);
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

    /// Closes a connection that another endpoint does not need just now.
    fn make_room(&self) -> bool {
        let state = self.state.borrow();
        let idle = state.endpoints.iter().find_map(|endpoint| endpoint.idle.borrow_mut().pop());
        self.closed(u32::from(idle.is_some()));
        idle.is_some()
    }

    pub(crate) fn closed(&self, count: u32) {
        if count > 0 {
            self.open.set(self.open.get() - count);
            self.metrics.open.add(-f64::from(count));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.closed(self.open.get());
        self.cluster.pools.fetch_sub(1, Relaxed);
    }
}

impl State {
    /// Takes on new addresses; known endpoints keep their connections. Returns how many of others were closed.
    fn renew(&mut self, addresses: Arc<Vec<SocketAddr>>) -> u32 {
        let mut known = std::mem::take(&mut self.endpoints);
        self.endpoints = addresses
            .iter()
            .map(|address| match known.iter().position(|endpoint| endpoint.address == *address) {
                Some(index) => known.swap_remove(index),
                None => Endpoint::new(*address),
            })
            .collect();
        self.addresses = addresses;
        known
            .iter()
            .map(|gone| {
                gone.retired.set(true);
                gone.shared.take();
                gone.idle.take().len() as u32
            })
            .sum()
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

/// A place in the pool's counts, given back when dropped.
struct Ticket {
    pool: Weak<Pool>,
    endpoint: Rc<Endpoint>,
    /// Whether a connection is counted with it.
    open: bool,
}

impl Ticket {
    fn take(pool: &Rc<Pool>, endpoint: Rc<Endpoint>) -> Self {
        endpoint.under_way.set(endpoint.under_way.get() + 1);
        Self { pool: Rc::downgrade(pool), endpoint, open: false }
    }

    /// Takes over a kept connection, with its place in the count. The one used last is the least likely to have
    /// been closed by the endpoint.
    fn idle(&mut self, generation: u64) -> Option<Connection> {
        loop {
            let idle = self.endpoint.idle.borrow_mut().pop()?;
            self.open = true;
            // What the endpoint closed meanwhile is noticed here, not by the request.
            if idle.connection.generation == generation && idle.connection.is_good() {
                return Some(idle.connection);
            }
            self.close();
        }
    }

    fn open(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get() + 1);
            pool.metrics.open.inc();
            self.open = true;
        }
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open)
            && let Some(pool) = self.pool.upgrade()
        {
            pool.closed(1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.endpoint.under_way.set(self.endpoint.under_way.get() - 1);
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

/// Nobody else makes an HTTP/2 connection to the endpoint meanwhile.
struct Connecting<'a>(&'a Endpoint);

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.connected_now.notify_waiters();
    }
}

/// A connection for one request. Dropped, it is closed; settled, it is kept.
pub(crate) struct Lease {
    ticket: Ticket,
    connection: Connection,
    /// It carried a request before, so the endpoint may have closed it unnoticed.
    pub(crate) reused: bool,
    /// It may carry another request.
    keep: bool,
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
        if idle.len() < pool.cluster.config.pool.max_idle as usize {
            idle.push(Idle { connection: self.connection, since: now });
            self.ticket.open = false;
        }
    }
}
