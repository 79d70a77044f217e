//! A listener: its socket's life, and the config that may be swapped under it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use outrigger_config::{Direction, Listener as ListenerConfig, ListenerLimits};
use outrigger_identity::PeerPolicy;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::route::RouteTable;

/// A listener that is bound, shared by all workers.
pub(crate) struct Listener {
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
}

/// What a reload may change under a bound socket.
pub(crate) struct ListenerSnapshot {
    pub(crate) generation: u64,
    pub(crate) routes: RouteTable,
    pub(crate) tls: Option<PeerPolicy>,
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
    pub(crate) fn new(config: &ListenerConfig, snapshot: ListenerSnapshot) -> Arc<Self> {
        Arc::new(Self {
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
        })
    }

    /// Waits for room under `maxConnections`. Cancel-safe.
    pub(crate) async fn room(self: &Arc<Self>) -> OpenConnection {
        loop {
            let closed = self.closed.notified();
            let most = self.current.load().limits.max_connections as usize;
            if self.open.fetch_add(1, Relaxed) < most {
                return OpenConnection(Arc::clone(self));
            }
            self.open.fetch_sub(1, Relaxed);
            closed.await;
        }
    }

    /// Connections that are open, or about to be accepted by a worker.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }
}

/// A place under `maxConnections`, free again when dropped.
pub(crate) struct OpenConnection(Arc<Listener>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.closed.notify_one();
    }
}
