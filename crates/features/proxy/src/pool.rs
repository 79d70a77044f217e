//! Connections to a cluster's endpoints, per worker.
//!
//! In: a wish to send a request. Out: a connection, kept or new, to an endpoint the
//! balancer chose. Promise: nothing here is shared between workers; the number of
//! connections is bounded; an endpoint that refuses is left alone for a while; a
//! connection made with an older certificate is not used for a new request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use outrigger_identity::{Identities, Snapshot, peer_id, tls_error_reason, tls_error_text};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::body::RequestBody;
use crate::cluster::Cluster;
use crate::error::Reason;
use crate::metrics::ClusterMetrics;
use crate::tls::{ALPN, PerGeneration};

/// An endpoint that failed is avoided for so long, doubling up to [`LONGEST_AVOIDANCE`].
const AVOIDANCE: Duration = Duration::from_millis(200);
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(10);

/// How an endpoint is chosen.
pub(crate) trait Balancer {
    /// The index of one of the candidates, given how many requests each has under way.
    fn choose(&mut self, under_way: &[u32]) -> usize;
}

/// Power of two choices: of two random endpoints the less busy one.
pub(crate) struct LeastRequest(u64);

impl LeastRequest {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// xorshift64*: chance enough for balancing.
    pub(crate) fn random(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

impl Balancer for LeastRequest {
    fn choose(&mut self, under_way: &[u32]) -> usize {
        let count = under_way.len();
        if count < 2 {
            return 0;
        }
        let first = self.random() as usize % count;
        let second = (first + 1 + self.random() as usize % (count - 1)) % count;
        if under_way[second] < under_way[first] { second } else { first }
    }
}

/// One cluster's connections on one worker.
pub(crate) struct Pool {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) metrics: ClusterMetrics,
    identities: Identities,
    tls: PerGeneration<ClientConfig>,
    state: RefCell<State>,
    /// Drives the connections; dropping the pool ends them.
    drivers: RefCell<JoinSet<()>>,
}

struct State {
    /// The addresses the endpoints below were made from.
    addresses: Arc<Vec<SocketAddr>>,
    endpoints: HashMap<SocketAddr, Endpoint>,
    connections: u32,
    balancer: LeastRequest,
}

#[derive(Default)]
struct Endpoint {
    idle: Vec<Idle>,
    under_way: u32,
    failures: u32,
    avoid_until: Option<Instant>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to an endpoint.
struct Connection {
    sender: SendRequest<RequestBody>,
    /// Which certificate of ours it was made with.
    generation: u64,
    /// Whom the endpoint's certificate names.
    peer: Option<Rc<str>>,
}

impl Pool {
    pub(crate) fn new(cluster: Arc<Cluster>, metrics: ClusterMetrics, identities: Identities, seed: u64) -> Rc<Self> {
        cluster.pools.fetch_add(1, Relaxed);
        Rc::new(Self {
            cluster,
            metrics,
            identities,
            tls: PerGeneration::default(),
            state: RefCell::new(State {
                addresses: Arc::default(),
                endpoints: HashMap::new(),
                connections: 0,
                balancer: LeastRequest::new(seed),
            }),
            drivers: RefCell::default(),
        })
    }

    /// A connection for one request. `fresh` asks for a new one, after a kept one turned out stale.
    /// Cancel-safe: what was counted is given back.
    pub(crate) async fn checkout(self: &Rc<Self>, fresh: bool) -> Result<Lease, Reason> {
        let snapshot = if self.cluster.config.tls.is_some() {
            Some(self.identities.current().ok_or(Reason::TlsFailure)?)
        } else {
            None
        };
        let generation = snapshot.as_ref().map_or(0, |snapshot| snapshot.generation);
        // As many endpoints as there are may be tried, within one connect timeout each.
        let mut tries = self.cluster.addresses().len().clamp(1, 3);
        loop {
            let address = self.choose()?;
            let mut ticket = Ticket::take(self, address);
            if !fresh {
                while let Some(mut connection) = self.idle(address, generation) {
                    // What the endpoint closed meanwhile is noticed here, not by the request.
                    if connection.sender.ready().await.is_ok() {
                        ticket.open = true;
                        return Ok(Lease { ticket, connection: Some(connection), reused: true });
                    }
                    self.closed();
                }
            }
            match self.connect(&mut ticket, snapshot.as_deref()).await {
                Ok(connection) => return Ok(Lease { ticket, connection: Some(connection), reused: false }),
                Err(Reason::Overflow) => return Err(Reason::Overflow),
                Err(reason) => {
                    self.failed(address);
                    tries -= 1;
                    if tries == 0 {
                        return Err(reason);
                    }
                }
            }
        }
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        let timeout = Duration::from(self.cluster.config.pool.idle_timeout);
        let mut state = self.state.borrow_mut();
        let mut closed = 0;
        for endpoint in state.endpoints.values_mut() {
            endpoint.idle.retain(|idle| {
                let keep = !idle.connection.sender.is_closed() && now.saturating_duration_since(idle.since) < timeout;
                closed += u32::from(!keep);
                keep
            });
        }
        state.connections -= closed;
        self.metrics.open.add(-f64::from(closed));
        drop(state);
        while self.drivers.borrow_mut().try_join_next().is_some() {}
    }

    /// Whether no route leads here any more: only pools hold the cluster.
    pub(crate) fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.cluster) <= self.cluster.pools.load(Relaxed)
    }

    fn choose(&self) -> Result<SocketAddr, Reason> {
        let addresses = self.cluster.addresses();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if !Arc::ptr_eq(&addresses, &state.addresses) {
            let mut closed = 0;
            state.endpoints.retain(|address, endpoint| {
                let keep = addresses.contains(address) || endpoint.under_way > 0;
                if !addresses.contains(address) {
                    closed += endpoint.idle.drain(..).count() as u32;
                }
                keep
            });
            state.connections -= closed;
            self.metrics.open.add(-f64::from(closed));
            state.addresses = Arc::clone(&addresses);
        }
        match addresses.as_slice() {
            [] => Err(Reason::NoEndpoint),
            [only] => Ok(*only),
            several => {
                let now = Instant::now();
                let avoided = |endpoint: &Endpoint| endpoint.avoid_until.is_some_and(|until| until > now);
                let usable: Vec<SocketAddr> = several
                    .iter()
                    .filter(|address| !state.endpoints.get(*address).is_some_and(avoided))
                    .copied()
                    .collect();
                // When all have failed lately, all are worth a try again.
                let candidates = if usable.is_empty() { several } else { usable.as_slice() };
                let under_way: Vec<u32> = candidates
                    .iter()
                    .map(|address| state.endpoints.get(address).map_or(0, |endpoint| endpoint.under_way))
                    .collect();
                Ok(candidates[state.balancer.choose(&under_way)])
            }
        }
    }

    fn idle(&self, address: SocketAddr, generation: u64) -> Option<Connection> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let endpoint = state.endpoints.get_mut(&address)?;
        // The one used last is the least likely to have been closed.
        while let Some(idle) = endpoint.idle.pop() {
            if idle.connection.generation == generation && !idle.connection.sender.is_closed() {
                return Some(idle.connection);
            }
            state.connections -= 1;
            self.metrics.open.dec();
        }
        None
    }

    async fn connect(self: &Rc<Self>, ticket: &mut Ticket, snapshot: Option<&Snapshot>) -> Result<Connection, Reason> {
        if self.state.borrow().connections >= self.cluster.config.pool.max_connections {
            self.metrics.overflow.inc();
            return Err(Reason::Overflow);
        }
        self.state.borrow_mut().connections += 1;
        self.metrics.open.inc();
        ticket.open = true;
        let timeout = Duration::from(self.cluster.config.connect_timeout);
        let outcome = tokio::time::timeout(timeout, self.dial(ticket.address, snapshot)).await;
        let outcome = outcome.unwrap_or(Err(Reason::ConnectFailure));
        if outcome.is_ok() {
            self.metrics.connected.inc();
            if let Some(endpoint) = self.state.borrow_mut().endpoints.get_mut(&ticket.address) {
                endpoint.failures = 0;
                endpoint.avoid_until = None;
            }
        } else {
            self.metrics.failed.inc();
            self.closed();
            ticket.open = false;
        }
        outcome
    }

    async fn dial(&self, address: SocketAddr, snapshot: Option<&Snapshot>) -> Result<Connection, Reason> {
        let cluster = &self.cluster.name;
        let stream = TcpStream::connect(address).await.map_err(|error| {
            tracing::debug!(component = "proxy", cluster, %address, %error, "cannot connect");
            Reason::ConnectFailure
        })?;
        let _ = stream.set_nodelay(true);
        let Some(snapshot) = snapshot else {
            let sender = self.handshake(TokioIo::new(stream)).await?;
            return Ok(Connection { sender, generation: 0, peer: None });
        };

        let expected = self.cluster.config.tls.as_ref().map(|tls| tls.spiffe_ids.as_slice()).unwrap_or_default();
        let config = self.tls.get(snapshot, |snapshot| snapshot.client_config(expected, ALPN));
        let config = config.map_err(|_| Reason::TlsFailure)?;
        // The identity is in the URI SAN; an address as the name keeps SNI out of the handshake.
        let name = ServerName::from(address.ip());
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => {
                self.metrics.handshake("ok");
                let peer = peer_id(stream.get_ref().1.peer_certificates()).map(|id| Rc::from(id.as_str()));
                let sender = self.handshake(TokioIo::new(stream)).await?;
                Ok(Connection { sender, generation: snapshot.generation, peer })
            }
            Err(error) => {
                self.metrics.handshake(tls_error_reason(&error));
                let reason = tls_error_text(&error);
                tracing::warn!(component = "proxy", cluster, %address, reason, "mTLS handshake with the endpoint failed");
                Err(Reason::TlsFailure)
            }
        }
    }

    async fn handshake<I>(&self, io: I) -> Result<SendRequest<RequestBody>, Reason>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    {
        let (sender, connection) =
            Builder::new().preserve_header_case(true).handshake(io).await.map_err(|_| Reason::ConnectFailure)?;
        self.drivers.borrow_mut().spawn_local(async move {
            // The request that was under way hears of an error itself.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn failed(&self, address: SocketAddr) {
        let mut state = self.state.borrow_mut();
        let endpoint = state.endpoints.entry(address).or_default();
        let wait = AVOIDANCE.saturating_mul(1 << endpoint.failures.min(6)).min(LONGEST_AVOIDANCE);
        endpoint.failures += 1;
        endpoint.avoid_until = Some(Instant::now() + wait);
    }

    fn closed(&self) {
        self.state.borrow_mut().connections -= 1;
        self.metrics.open.dec();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.metrics.open.add(-f64::from(self.state.borrow().connections));
        self.cluster.pools.fetch_sub(1, Relaxed);
    }
}

/// A place in the pool's counts, given back when dropped.
struct Ticket {
    pool: Weak<Pool>,
    address: SocketAddr,
    /// Whether a connection is counted with it.
    open: bool,
}

impl Ticket {
    fn take(pool: &Rc<Pool>, address: SocketAddr) -> Self {
        pool.state.borrow_mut().endpoints.entry(address).or_default().under_way += 1;
        Self { pool: Rc::downgrade(pool), address, open: false }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if let Some(endpoint) = pool.state.borrow_mut().endpoints.get_mut(&self.address) {
            endpoint.under_way = endpoint.under_way.saturating_sub(1);
        }
        if self.open {
            pool.closed();
        }
    }
}

/// A connection for one request. Dropped, it is closed; given back, it is kept.
pub(crate) struct Lease {
    ticket: Ticket,
    connection: Option<Connection>,
    /// It carried a request before, so the endpoint may have closed it unnoticed.
    pub(crate) reused: bool,
}

impl Lease {
    /// The endpoint.
    pub(crate) fn address(&self) -> SocketAddr {
        self.ticket.address
    }

    /// Whom the endpoint's certificate names.
    pub(crate) fn peer(&self) -> Option<Rc<str>> {
        self.connection.as_ref()?.peer.clone()
    }

    /// To send the request with.
    pub(crate) fn sender(&mut self) -> Option<&mut SendRequest<RequestBody>> {
        self.connection.as_mut().map(|connection| &mut connection.sender)
    }

    /// Keeps the connection for the next request, when there is room and it is still good.
    pub(crate) fn give_back(mut self, now: Instant) {
        let (Some(pool), Some(connection)) = (self.ticket.pool.upgrade(), self.connection.take()) else { return };
        if connection.sender.is_closed() {
            return;
        }
        let mut state = pool.state.borrow_mut();
        let Some(endpoint) = state.endpoints.get_mut(&self.ticket.address) else { return };
        if endpoint.idle.len() < pool.cluster.config.pool.max_idle as usize {
            endpoint.idle.push(Idle { connection, since: now });
            self.ticket.open = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_the_less_busy_is_chosen_and_all_get_some() {
        let mut balancer = LeastRequest::new(7);
        let mut chosen = [0_u32; 4];
        for _ in 0..4000 {
            chosen[balancer.choose(&[5, 0, 0, 0])] += 1;
        }
        assert_eq!(chosen[0], 0, "the busiest of every pair");
        assert!(chosen[1..].iter().all(|count| *count > 800), "{chosen:?}");
        assert_eq!(balancer.choose(&[9]), 0);
    }
}
