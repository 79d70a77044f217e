//! A listener: its socket's life, and the config that may be swapped under it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_config::{
    Direction, ForwardedHeaders, Listener as ListenerConfig, ListenerLimits, ListenerProtocol, TlsVersion,
};
use outrigger_identity::{ConfigDigest, PeerPolicy};
use outrigger_wire::path::PathPolicy;
use rustls::ServerConfig;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::route::RouteTable;

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
    open: AtomicUsize,
    closed: Notify,
    /// How many sockets it has, and how many of them are closed.
    sockets: usize,
    released: watch::Sender<usize>,
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
    pub(crate) access_log: Option<Arc<AccessLog>>,
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
    pub(crate) fn new(config: &ListenerConfig, snapshot: ListenerSnapshot, sockets: usize) -> Arc<Self> {
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
            open: AtomicUsize::new(0),
            closed: Notify::new(),
            sockets,
            released: watch::channel(0).0,
        })
    }

    /// Swaps the config under the bound socket.
    pub(crate) fn update(&self, snapshot: ListenerSnapshot) {
        self.current.store(Arc::new(snapshot));
        // There may be room now.
        self.closed.notify_waiters();
    }

    /// Waits until there is room under `maxConnections`; another may take it first. Cancel-safe.
    pub(crate) async fn room(&self) {
        loop {
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            if self.open.load(SeqCst) < self.most() {
                return;
            }
            closed.await;
        }
    }

    /// Waits for a place under `maxConnections`. Cancel-safe.
    pub(crate) async fn place(self: &Arc<Self>) -> OpenConnection {
        loop {
            let mut closed = pin!(self.closed.notified());
            closed.as_mut().enable();
            if self.open.fetch_add(1, SeqCst) < self.most() {
                return OpenConnection(Arc::clone(self));
            }
            self.open.fetch_sub(1, SeqCst);
            self.closed.notify_waiters();
            closed.await;
        }
    }

    /// A worker has closed its socket.
    pub(crate) fn release(&self) {
        self.released.send_modify(|count| *count += 1);
    }

    /// Waits until all its sockets are closed. Cancel-safe.
    pub(crate) async fn released(&self) {
        let _ = self.released.subscribe().wait_for(|count| *count >= self.sockets).await;
    }

    /// Connections that are served.
    pub(crate) fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    fn most(&self) -> usize {
        self.current.load().limits.max_connections as usize
    }
}

/// A place under `maxConnections`, free again when dropped.
pub(crate) struct OpenConnection(Arc<Listener>);

impl OpenConnection {
    /// Takes a place whether there is room or not.
    pub(crate) fn take(listener: &Arc<Listener>) -> Self {
        listener.open.fetch_add(1, SeqCst);
        Self(Arc::clone(listener))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
        self.0.closed.notify_waiters();
    }
}
