//! A listener on one worker: accepts, serves, drains.
//!
//! In: a bound socket. Out: one task per connection. Promise: no more connections are
//! served than `maxConnections`, over all workers; want of descriptors pauses accepting and
//! is counted, and never spins; what waited in the backlog when the listener was drained
//! is still served. Once a keeper has the sockets, connections leave while others are still accepted,
//! so that nobody waits for the next process but at the very end.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_runtime::Sockets;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

use crate::buffer;
use crate::connection::connection;
use crate::metrics::ListenerMetrics;
use crate::snapshot::{Listener, LocalSnapshot, OpenConnection};
use crate::speaks_first::SpeakFirst;
use crate::tls::PerGeneration;
use crate::watch::{Mark, Order};
use crate::worker::Worker;

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked at what has left, and which tunnels rest.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// It is told again after so long, if it lasts.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// A listener on one worker.
pub(crate) struct LocalListener {
    pub(crate) shared: Arc<Listener>,
    pub(crate) worker: Rc<Worker>,
    pub(crate) metrics: Rc<ListenerMetrics>,
    /// TLS configs for the listener's config with this generation.
    pub(crate) tls: RefCell<(u64, Rc<PerGeneration<ServerConfig>>)>,
    /// Behind it, whose servers speak first.
    pub(crate) speak_first: SpeakFirst,
    /// When it was told last that connections cannot be accepted.
    accept_told: Cell<Option<Instant>>,
    /// The sockets were handed over: which connections there were then.
    leaving: Cell<Option<Mark>>,
    /// The listener's config as this worker saw it last.
    snapshot: RefCell<Rc<LocalSnapshot>>,
}

/// Serves a listener on this worker until it is drained and every connection has ended.
pub(crate) async fn serve(
    shared: Arc<Listener>,
    socket: std::net::TcpListener,
    worker: Rc<Worker>,
    sockets: Sockets,
) -> io::Result<()> {
    let metrics = ListenerMetrics::new(&worker.families, shared.direction, &shared.name);
    let snapshot = RefCell::new(Rc::new(LocalSnapshot(shared.current.load_full())));
    buffer::set_most(snapshot.borrow().buffer_share);
    let tls = RefCell::new((u64::MAX, Rc::default()));
    let (speak_first, accept_told, leaving) = (SpeakFirst::default(), Cell::new(None), Cell::new(None));
    let local = Rc::new(LocalListener { shared, worker, metrics, tls, speak_first, accept_told, leaving, snapshot });
    local.worker.keep_ahead_for(&local);
    let socket = TcpListener::from_std(socket)?;
    let mut connections = JoinSet::new();
    local.accept_until_drained(&socket, &sockets, &mut connections).await;
    // New connections are refused, or reach another process on the same port, from here on.
    drop(socket);
    local.shared.release();
    local.drain(&mut connections).await;
    if let Some(log) = &local.shared.current.load().access_log {
        local.worker.flush(log);
    }
    Ok(())
}

impl LocalListener {
    async fn accept_until_drained(
        self: &Rc<Self>,
        socket: &TcpListener,
        sockets: &Sockets,
        connections: &mut JoinSet<()>,
    ) {
        let mut handed_over = pin!(sockets.until_handed_over());
        let (mut looks, mut has_left) = (looks(), false);
        loop {
            // While there is no room, further clients wait in the kernel's backlog.
            let accepted = tokio::select! {
                biased;
                () = self.shared.drain.cancelled() => break,
                () = &mut handed_over, if self.leaving.get().is_none() => {
                    self.leaving.set(Some(self.worker.clock.leave(self.shared.id)));
                    continue;
                }
                _ = looks.tick(), if self.leaving.get().is_some() && !has_left => {
                    has_left = self.has_left();
                    continue;
                }
                Some(ended) = connections.join_next() => {
                    self.ended(ended);
                    continue;
                }
                accepted = async { self.shared.room().await; socket.accept().await } => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    // Another worker may have taken the last place meanwhile.
                    let place = tokio::select! {
                        biased;
                        () = self.shared.drain.cancelled() => OpenConnection::take(&self.shared),
                        place = self.shared.place() => place,
                    };
                    self.spawn(connections, stream, remote, place);
                }
                Err(error) => self.accept_failed(&error).await,
            }
        }
        if sockets.handed_over() {
            // Who waits in the backlog is served by the next process.
            return;
        }
        let backlog = std::future::poll_fn(|cx| {
            while let std::task::Poll::Ready(Ok((stream, remote))) = socket.poll_accept(cx) {
                self.spawn(connections, stream, remote, OpenConnection::take(&self.shared));
            }
            std::task::Poll::Ready(())
        });
        backlog.await;
    }

    fn spawn(
        self: &Rc<Self>,
        connections: &mut JoinSet<()>,
        stream: TcpStream,
        remote: SocketAddr,
        place: OpenConnection,
    ) {
        let snapshot = self.snapshot();
        let registered = self.worker.clock.register(self.shared.id, &snapshot.limits, Instant::now());
        registered.watched.accepted(remote);
        if self.leaving.get().is_some() {
            registered.watched.give(Order::Last);
        }
        let local = Rc::clone(self);
        connections.spawn_local(async move {
            let _place = place;
            connection(&local, &snapshot, &registered.watched, stream, remote).await;
        });
    }

    async fn accept_failed(&self, error: &io::Error) {
        let listener = &self.shared.name;
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            // The client was gone before it was accepted; the next one may be there.
            self.metrics.accept_failed("aborted");
            return;
        }
        self.metrics.accept_failed("resources");
        if self.accept_told.get().is_none_or(|told| told.elapsed() > TELL_AGAIN) {
            self.accept_told.set(Some(Instant::now()));
            tracing::warn!(component = "proxy", listener, %error, "cannot accept connections; they wait in the backlog");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    async fn drain(&self, connections: &mut JoinSet<()>) {
        match self.leaving.get() {
            Some(mark) => self.worker.clock.leave_at_last(self.shared.id, mark),
            None => self.worker.clock.order(self.shared.id, Order::Drain),
        }
        let (mut looks, mut cut) = (looks(), false);
        loop {
            tokio::select! {
                biased;
                () = self.shared.cut.cancelled(), if !cut => {
                    self.worker.clock.order(self.shared.id, Order::Cut("drain"));
                    cut = true;
                }
                _ = looks.tick(), if self.leaving.get().is_some() && !cut => {
                    self.worker.clock.cut_resting_tunnels(self.shared.id);
                }
                ended = connections.join_next() => match ended {
                    Some(ended) => self.ended(ended),
                    None => return,
                },
            }
        }
    }

    /// Whether all has left that was there when the sockets were handed over; tells it.
    fn has_left(&self) -> bool {
        let Some(mark) = self.leaving.get() else { return false };
        let has_left = self.worker.clock.has_left(self.shared.id, mark, Instant::now());
        if has_left {
            self.shared.leave();
        }
        has_left
    }

    fn ended(&self, outcome: Result<(), JoinError>) {
        if let Err(error) = outcome
            && error.is_panic()
        {
            let listener = &self.shared.name;
            tracing::error!(component = "proxy", listener, %error, "a connection's task panicked; the others go on");
        }
    }

    /// Counts and tells that a connection, or a request on it, is cut.
    pub(crate) fn cut(&self, reason: &str, remote: SocketAddr, peer: &str) {
        self.metrics.cut(reason);
        let listener = &self.shared.name;
        if matches!(reason, "idle_timeout" | "drain") {
            tracing::debug!(component = "proxy", listener, %remote, peer, reason, "client is let go");
        } else {
            tracing::info!(component = "proxy", listener, %remote, peer, reason, "client is cut off");
        }
    }

    /// The listener's config now. Requests share one handle per worker: counting references to the
    /// shared one would make the workers take turns on its cache line.
    pub(crate) fn snapshot(&self) -> Rc<LocalSnapshot> {
        let now = self.shared.current.load();
        let mut cached = self.snapshot.borrow_mut();
        if !Arc::ptr_eq(&now, &cached.0) {
            *cached = Rc::new(LocalSnapshot(Arc::clone(&now)));
            buffer::set_most(now.buffer_share);
        }
        Rc::clone(&cached)
    }
}

/// When to look at what leaves.
fn looks() -> tokio::time::Interval {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    looks
}
