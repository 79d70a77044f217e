//! A listener: its socket's life, and the config that may be swapped under it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_config::{
    Direction, ForwardedHeaders, Listener as ListenerConfig, ListenerLimits, ListenerProtocol, Propagator, TlsVersion,
};
use outrigger_identity::{ConfigDigest, PeerPolicy};
use outrigger_telemetry::trace::{Sampler, SpanQueue};
use outrigger_wire::path::PathPolicy;
use rustls::ServerConfig;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::coded::CodedBodies;
use crate::on_demand::OnDemand;
use crate::route::RouteTable;
use crate::session::SessionKeys;
use crate::tap::Taps;

/// A listener that is bound, shared by all workers.
pub(crate) struct Listener {
    /// Unique in the process.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) direction: &'static str,
    /// What a new request or connection sees; swapped whole.
    pub(crate) current: ArcSwap<ListenerSnapshot>,
    /// No new connections, and an end after the request under way.
    pub(crate) drain: CancellationToken,
    /// The end at once.
    pub(crate) cut: CancellationToken,
    places: Places,
    /// Places that all listeners share.
    all: Arc<Places>,
    /// Requests under way, counted where there is a limit.
    pub(crate) requests: AtomicU32,
    /// How many sockets it has, and how many of them are closed.
    sockets: usize,
    released: watch::Sender<usize>,
    /// Of how many of them the connections have left.
    left: watch::Sender<usize>,
}

/// What a reload may change under a bound socket.
pub(crate) struct ListenerSnapshot {
    pub(crate) generation: u64,
    pub(crate) protocol: ListenerProtocol,
    pub(crate) detect_timeout: Duration,
    pub(crate) proxy_protocol: bool,
    /// Connections have an original destination.
    pub(crate) redirected: bool,
    pub(crate) path: PathPolicy,
    pub(crate) forwarded: ForwardedHeaders,
    pub(crate) tcp_keepalive: Duration,
    pub(crate) routes: RouteTable,
    pub(crate) tls: Option<PeerPolicy>,
    /// Ordinary TLS, for clients that present nothing.
    pub(crate) simple_tls: Option<Arc<ServerConfig>>,
    /// What it was made of.
    pub(crate) simple_digest: Option<ConfigDigest>,
    /// The oldest version of mTLS.
    pub(crate) least_tls: TlsVersion,
    /// Plain text is taken beside TLS.
    pub(crate) permissive: bool,
    pub(crate) limits: ListenerLimits,
    /// Requests may be refused when clients give up waiting.
    pub(crate) sheds: bool,
    /// Bytes that connections of one worker may hold, over all listeners.
    pub(crate) buffer_share: usize,
    pub(crate) access_log: Option<Arc<AccessLog>>,
    pub(crate) tracing: Option<Arc<Tracing>>,
    /// Who watches.
    pub(crate) taps: Arc<Taps>,
    /// Bodies that are compressed or decompressed.
    pub(crate) coded: Arc<CodedBodies>,
    /// What seals sessions, where a route has any.
    pub(crate) session_keys: Option<Arc<SessionKeys>>,
    /// There is an access log, or tracing.
    pub(crate) is_told: bool,
    /// Who may know what is at an address that no route knows.
    pub(crate) on_demand: Option<Arc<OnDemand>>,
}

/// How requests are traced.
pub(crate) struct Tracing {
    pub(crate) sampler: Sampler,
    pub(crate) propagators: Vec<Propagator>,
    /// Failed and slow requests are kept in any case.
    pub(crate) errors: bool,
    pub(crate) slow: Duration,
    /// Where spans go.
    pub(crate) queue: SpanQueue,
}

impl Tracing {
    pub(crate) fn new(config: &outrigger_config::Tracing, queue: SpanQueue, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            sampler: Sampler::new(&config.sampling, workers),
            propagators: config.propagators.clone(),
            errors: config.sampling.errors,
            slow: config.sampling.slow.into(),
            queue,
        })
    }
}

/// One worker's handle on a snapshot, counted without touching the other workers' cache lines.
pub(crate) struct LocalSnapshot(pub(crate) Arc<ListenerSnapshot>);

impl std::ops::Deref for LocalSnapshot {
    type Target = ListenerSnapshot;
    fn deref(&self) -> &ListenerSnapshot {
        &self.0
    }
}

impl Listener {
    pub(crate) fn new(
        config: &ListenerConfig,
        snapshot: ListenerSnapshot,
        all: &Arc<Places>,
        sockets: usize,
    ) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: IDS.fetch_add(1, SeqCst),
            name: config.name.to_string(),
            address: config.address,
            direction: match config.direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            },
            current: ArcSwap::from_pointee(snapshot),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
            places: Places::new(config.limits.max_connections),
            all: Arc::clone(all),
            requests: AtomicU32::new(0),
            sockets,
            released: watch::channel(0).0,
            left: watch::channel(0).0,
        })
    }

    /// Swaps the config under the bound socket.
    pub(crate) fn update(&self, snapshot: ListenerSnapshot) {
        self.places.set_most(snapshot.limits.max_connections);
        self.current.store(Arc::new(snapshot));
    }

    /// Waits until there is room for a connection, here and in all; another may take it first. Cancel-safe.
    pub(crate) async fn room(&self) {
        self.all.room().await;
        self.places.room().await;
    }

    /// Waits for a place under both limits. Cancel-safe.
    pub(crate) async fn place(self: &Arc<Self>) -> OpenConnection {
        let all = Place::wait(&self.all).await;
        self.places.wait().await;
        OpenConnection { listener: Arc::clone(self), _all: all }
    }

    /// A worker has closed its socket.
    pub(crate) fn release(&self) {
        self.released.send_modify(|count| *count += 1);
    }

    /// What came by one of its sockets before they were handed over has left.
    pub(crate) fn leave(&self) {
        self.left.send_modify(|count| *count += 1);
    }

    /// Waits until all has left that came before its sockets were handed over. Cancel-safe.
    pub(crate) async fn left(&self) {
        let _ = self.left.subscribe().wait_for(|count| *count >= self.sockets).await;
    }

    /// Waits until all its sockets are closed. Cancel-safe.
    pub(crate) async fn released(&self) {
        let _ = self.released.subscribe().wait_for(|count| *count >= self.sockets).await;
    }

    /// Connections that are served.
    pub(crate) fn open(&self) -> usize {
        self.places.open.load(SeqCst)
    }
}

/// Room for so many connections.
pub(crate) struct Places {
    open: AtomicUsize,
    most: AtomicUsize,
    closed: Notify,
}

impl Places {
    pub(crate) fn new(most: u32) -> Self {
        Self { open: AtomicUsize::new(0), most: AtomicUsize::new(most as usize), closed: Notify::new() }
    }

    /// Changes how many there are.
    pub(crate) fn set_most(&self, most: u32) {
        self.most.store(most as usize, SeqCst);
        // There may be room now.
        self.closed.notify_waiters();
    }

    fn has_room(&self) -> bool {
        self.open.load(SeqCst) < self.most.load(SeqCst)
    }

    async fn room(&self) {
        loop {
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            if self.has_room() {
                return;
            }
            closed.await;
        }
    }

    /// Takes a place, when there is one.
    async fn wait(&self) {
        loop {
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            // Never counted in vain: giving back what was too much would wake those who wait, ourselves too.
            let most = self.most.load(SeqCst);
            let take = |open| (open < most).then_some(open + 1);
            if self.open.fetch_update(SeqCst, SeqCst, take).is_ok() {
                return;
            }
            closed.await;
        }
    }

    fn leave(&self) {
        self.open.fetch_sub(1, SeqCst);
        self.closed.notify_waiters();
    }
}

/// A place among all connections, free again when dropped.
struct Place(Arc<Places>);

impl Place {
    async fn wait(places: &Arc<Places>) -> Self {
        places.wait().await;
        Self(Arc::clone(places))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A connection's places, free again when dropped.
pub(crate) struct OpenConnection {
    listener: Arc<Listener>,
    _all: Place,
}

impl OpenConnection {
    /// Takes places whether there is room or not.
    pub(crate) fn take(listener: &Arc<Listener>) -> Self {
        listener.places.open.fetch_add(1, SeqCst);
        listener.all.open.fetch_add(1, SeqCst);
        Self { listener: Arc::clone(listener), _all: Place(Arc::clone(&listener.all)) }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.listener.places.leave();
    }
}
