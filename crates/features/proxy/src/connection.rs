//! Connections of clients: accepted, perhaps decrypted, served, and ended in time.
//!
//! In: a bound socket per worker. Out: requests for `forward`. Promise: a client that is
//! slow with its headers or rests too long is cut by one coarse sweep, so that requests
//! need no timers of their own; on drain a connection ends after the request under way.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_identity::{PeerPolicy, peer_id, tls_error_reason, tls_error_text};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::forward;
use crate::metrics::{ListenerMetrics, RequestKey, RequestNames};
use crate::snapshot::{Listener, ListenerSnapshot, LocalSnapshot, OpenConnection};
use crate::tls::{ALPN, Peer, PerGeneration};
use crate::worker::Worker;

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener on one worker.
pub(crate) struct LocalListener {
    pub(crate) shared: Arc<Listener>,
    pub(crate) worker: Rc<Worker>,
    pub(crate) metrics: Rc<ListenerMetrics>,
    tls: RefCell<(u64, Rc<PerGeneration<ServerConfig>>)>,
    /// The listener's config as this worker saw it last.
    snapshot: RefCell<Rc<LocalSnapshot>>,
}

/// Serves a listener on this worker until it is drained and every connection has ended.
pub(crate) async fn serve(shared: Arc<Listener>, socket: std::net::TcpListener, worker: Rc<Worker>) -> io::Result<()> {
    let metrics = ListenerMetrics::new(&worker.families, shared.direction, &shared.name);
    let snapshot = RefCell::new(Rc::new(LocalSnapshot(shared.current.load_full())));
    let local =
        Rc::new(LocalListener { shared, worker, metrics, tls: RefCell::new((u64::MAX, Rc::default())), snapshot });
    let socket = TcpListener::from_std(socket)?;
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            biased;
            () = local.shared.drain.cancelled() => break,
            place = local.shared.room() => place,
        };
        let accepted = loop {
            tokio::select! {
                biased;
                () = local.shared.drain.cancelled() => break None,
                accepted = socket.accept() => break Some(accepted),
                Some(_) = connections.join_next() => {}
            }
        };
        match accepted {
            None => break,
            Some(Ok((stream, remote))) => {
                connections.spawn_local(connection(Rc::clone(&local), stream, remote, place));
            }
            Some(Err(error)) => {
                tracing::warn!(component = "proxy", listener = local.shared.name, %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // New connections are refused, or reach another process on the same port, from here on.
    drop(socket);
    while connections.join_next().await.is_some() {}
    if let Some(log) = &local.shared.current.load().access_log {
        local.worker.flush(log);
    }
    Ok(())
}

async fn connection(local: Rc<LocalListener>, stream: TcpStream, remote: SocketAddr, place: OpenConnection) {
    let _place = place;
    local.metrics.connections.inc();
    local.metrics.connections_total.inc();
    let _ = stream.set_nodelay(true);
    let snapshot = local.snapshot();
    match &snapshot.tls {
        None => http(&local, &snapshot, TokioIo::new(stream), remote, None).await,
        Some(policy) => {
            let limit = Duration::from(snapshot.limits.header_timeout);
            let handshake = tokio::time::timeout(limit, local.handshake(&snapshot, policy, stream));
            let outcome = tokio::select! {
                biased;
                () = local.shared.cut.cancelled() => None,
                outcome = handshake => outcome.unwrap_or_else(|_| {
                    local.metrics.handshake("timeout");
                    None
                }),
            };
            if let Some((stream, peer)) = outcome {
                http(&local, &snapshot, TokioIo::new(stream), remote, Some(peer)).await;
            }
        }
    }
    local.metrics.connections.dec();
}

impl LocalListener {
    /// The listener's config now. Requests share one handle per worker: counting references to the
    /// shared one would make the workers take turns on its cache line.
    pub(crate) fn snapshot(&self) -> Rc<LocalSnapshot> {
        let now = self.shared.current.load();
        let mut cached = self.snapshot.borrow_mut();
        if !Arc::ptr_eq(&now, &cached.0) {
            *cached = Rc::new(LocalSnapshot(Arc::clone(&now)));
        }
        Rc::clone(&cached)
    }

    async fn handshake(
        &self,
        snapshot: &ListenerSnapshot,
        policy: &PeerPolicy,
        stream: TcpStream,
    ) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Peer)> {
        let Some(identity) = self.worker.identities.current() else {
            self.metrics.handshake("no_identity");
            return None;
        };
        let cache = {
            let mut cache = self.tls.borrow_mut();
            if cache.0 != snapshot.generation {
                *cache = (snapshot.generation, Rc::default());
            }
            Rc::clone(&cache.1)
        };
        let listener = &self.shared.name;
        let config = match cache.get(&identity, |identity| identity.server_config(policy, ALPN)) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(component = "proxy", listener, %error, "cannot make a TLS config");
                self.metrics.handshake("config");
                return None;
            }
        };
        match TlsAcceptor::from(config).accept(stream).await {
            Ok(stream) => {
                // The verifier has accepted exactly one SPIFFE ID; without it there would be no connection.
                let peer = peer_id(stream.get_ref().1.peer_certificates())?;
                self.metrics.handshake("ok");
                Some((stream, Peer::new(peer.as_str())))
            }
            Err(error) => {
                self.metrics.handshake(tls_error_reason(&error));
                let reason = tls_error_text(&error);
                tracing::warn!(component = "proxy", listener, reason, "TLS handshake with a client failed");
                None
            }
        }
    }
}

/// What the requests of one connection know of it.
pub(crate) struct Downstream {
    pub(crate) local: Rc<LocalListener>,
    pub(crate) remote: SocketAddr,
    pub(crate) peer: Option<Peer>,
    pub(crate) peer_number: u64,
    pub(crate) watched: Rc<Watched>,
}

async fn http<I>(local: &Rc<LocalListener>, snapshot: &ListenerSnapshot, io: I, remote: SocketAddr, peer: Option<Peer>)
where
    I: Read + Write + Unpin + 'static,
{
    let limits = &snapshot.limits;
    let watched = Rc::new(Watched::new(limits.header_timeout.into(), limits.idle_timeout.into()));
    local.worker.watch(&watched);
    let peer_number = peer.as_ref().map_or(0, |peer| local.worker.peer_number(&peer.id));
    let downstream =
        Rc::new(Downstream { local: Rc::clone(local), remote, peer, peer_number, watched: Rc::clone(&watched) });

    let mut builder = http1::Builder::new();
    let header_bytes = limits.max_header_bytes.as_usize();
    builder.preserve_header_case(true).max_header_size(header_bytes).max_buf_size(header_bytes.max(8192));
    if limits.max_headers != 100 {
        // Any other number makes hyper keep the fields on the heap.
        builder.max_headers(limits.max_headers as usize);
    }
    let serving = Rc::clone(&downstream);
    let service = service_fn(move |request| forward::handle(Rc::clone(&serving), request));
    let io = WatchedIo { io, watched: Rc::clone(&watched), lingered: None };
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut drained = pin!(local.shared.drain.cancelled());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            outcome = connection.as_mut() => {
                if let Err(error) = outcome {
                    refused(&downstream, &error);
                }
                return;
            }
            () = watched.overdue.notified() => {
                local.metrics.cut(watched.why());
                return;
            }
            () = local.shared.cut.cancelled() => {
                if watched.phase.get() == Phase::Busy {
                    local.metrics.cut("drain");
                }
                return;
            }
            () = drained.as_mut(), if !draining => {
                connection.as_mut().graceful_shutdown();
                draining = true;
            }
        }
    }
}

/// Counts a request that was refused before it became one.
fn refused(downstream: &Downstream, error: &hyper::Error) {
    let code = if error.is_parse_too_large() {
        431
    } else if error.is_parse() {
        400
    } else {
        return;
    };
    let names =
        RequestNames { route: "", cluster: "", peer: downstream.peer.as_ref().map_or("", |peer| peer.id.as_str()) };
    let key = RequestKey { route: u64::MAX, cluster: u64::MAX, code, peer: downstream.peer_number };
    downstream.local.metrics.request(key, &names, Duration::ZERO);
    let listener = &downstream.local.shared.name;
    tracing::debug!(component = "proxy", listener, remote = %downstream.remote, %error, "request refused by the parser");
}

/// Where a connection is between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No byte of the next request has come.
    Idle,
    /// A request's headers are coming.
    Head,
    /// A request is being answered.
    Busy,
}

/// A connection's clock, read by the worker's sweep.
pub(crate) struct Watched {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    header_timeout: Duration,
    idle_timeout: Duration,
    overdue: Notify,
    /// A request was answered before all of it had come.
    answered_early: Cell<bool>,
}

impl Watched {
    fn new(header_timeout: Duration, idle_timeout: Duration) -> Self {
        Self {
            // A client that connects and says nothing is held to the header timeout.
            phase: Cell::new(Phase::Head),
            since: Cell::new(Instant::now()),
            header_timeout,
            idle_timeout,
            overdue: Notify::new(),
            answered_early: Cell::new(false),
        }
    }

    pub(crate) fn enter(&self, phase: Phase, now: Instant) {
        self.phase.set(phase);
        self.since.set(now);
    }

    /// Says that a request was answered before all of it had come.
    pub(crate) fn answer_early(&self) {
        self.answered_early.set(true);
    }

    /// Ends the connection when it is overdue.
    pub(crate) fn judge(&self, now: Instant) {
        let limit = match self.phase.get() {
            Phase::Idle => self.idle_timeout,
            Phase::Head => self.header_timeout,
            Phase::Busy => return,
        };
        if !limit.is_zero() && now.saturating_duration_since(self.since.get()) > limit {
            self.overdue.notify_one();
        }
    }

    fn why(&self) -> &'static str {
        if self.phase.get() == Phase::Idle { "idle_timeout" } else { "header_timeout" }
    }
}

/// Notices the first byte of a request.
struct WatchedIo<I> {
    io: I,
    watched: Rc<Watched>,
    /// Bytes thrown away since our side was closed; `None` before that.
    lingered: Option<usize>,
}

/// A client is listened to for so many bytes after it was refused.
const MOST_LINGERED: usize = 1024 * 1024;

impl<I: Read + Write + Unpin> WatchedIo<I> {
    /// Reads what a refused client still sends. Closing before that would reset the connection, and the reset
    /// may overtake the answer ([RFC 9112], 9.6). The header timeout bounds it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waste = [std::mem::MaybeUninit::uninit(); 4096];
        loop {
            let mut buffer = hyper::rt::ReadBuf::uninit(&mut waste);
            let outcome = ready!(Pin::new(&mut self.io).poll_read(cx, buffer.unfilled()));
            let read = buffer.filled().len();
            let lingered = self.lingered.get_or_insert(0);
            *lingered += read;
            if outcome.is_err() || read == 0 || *lingered > MOST_LINGERED {
                return Poll::Ready(());
            }
        }
    }
}

impl<I: Read + Unpin> Read for WatchedIo<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let outcome = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if self.watched.phase.get() == Phase::Idle {
            self.watched.enter(Phase::Head, Instant::now());
        }
        Poll::Ready(outcome)
    }
}

impl<I: Read + Write + Unpin> Write for WatchedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingered.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            let unread = self.watched.phase.get() == Phase::Head || self.watched.answered_early.get();
            if !unread {
                return Poll::Ready(Ok(()));
            }
            self.watched.enter(Phase::Head, Instant::now());
            self.lingered = Some(0);
        }
        self.poll_linger(cx).map(Ok)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
