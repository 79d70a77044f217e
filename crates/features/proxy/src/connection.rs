//! One client's connection: perhaps decrypted, served request by request, ended in time.
//!
//! In: an accepted connection. Out: requests for `forward`. Promise: a client that is slow
//! with its headers, rests too long or does not take its answer is cut; on drain the
//! connection ends after the request under way; what the HTTP library refuses by itself is
//! counted and logged like every other request.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_identity::{PeerPolicy, peer_id, tls_error_reason, tls_error_text};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::access_log::Entry;
use crate::error::Reason;
use crate::forward;
use crate::io::{ClientIo, Transport};
use crate::listener::LocalListener;
use crate::metrics::{RequestKey, RequestNames};
use crate::snapshot::ListenerSnapshot;
use crate::tls::{ALPN, Peer};
use crate::watch::{Order, Phase, Watched};

/// The HTTP library's smallest buffer.
const SMALLEST_BUFFER: usize = 8192;
/// Its number of header fields unless told otherwise; any other number costs it an allocation per request.
const USUAL_HEADERS: u32 = 100;

/// A drained connection that has had no request yet is given so long for one.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Draining {
    No,
    /// After the first request.
    Soon,
    Yes,
}

/// What the requests of one connection know of it.
pub(crate) struct Downstream {
    pub(crate) local: Rc<LocalListener>,
    pub(crate) remote: SocketAddr,
    pub(crate) peer: Option<Peer>,
    pub(crate) peer_number: u64,
    pub(crate) watched: Rc<Watched>,
}

/// Serves a connection to its end.
pub(crate) async fn connection(
    local: &Rc<LocalListener>,
    snapshot: &ListenerSnapshot,
    watched: &Rc<Watched>,
    stream: TcpStream,
    remote: SocketAddr,
) {
    let _open = local.metrics.connection();
    let _ = stream.set_nodelay(true);
    match &snapshot.tls {
        None => http(local, snapshot, watched, TokioIo::new(stream), remote, None).await,
        Some(policy) => match watched.unless_cut(local.handshake(snapshot, policy, stream, remote)).await {
            Ok(Some((stream, peer))) => {
                http(local, snapshot, watched, TokioIo::new(stream), remote, Some(peer)).await;
            }
            Ok(None) => {}
            Err("header_timeout") => {
                local.metrics.handshake("timeout");
                tracing::debug!(component = "proxy", listener = local.shared.name, %remote, "TLS handshake took too long");
            }
            Err(_) => {}
        },
    }
}

impl LocalListener {
    async fn handshake(
        &self,
        snapshot: &ListenerSnapshot,
        policy: &PeerPolicy,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, Peer)> {
        let listener = &self.shared.name;
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
                tracing::warn!(component = "proxy", listener, %remote, reason, "TLS handshake with a client failed");
                None
            }
        }
    }
}

async fn http<I: Transport>(
    local: &Rc<LocalListener>,
    snapshot: &ListenerSnapshot,
    watched: &Rc<Watched>,
    io: I,
    remote: SocketAddr,
    peer: Option<Peer>,
) {
    let peer_number = peer.as_ref().map_or(0, |peer| local.worker.peer_number(&peer.id));
    let downstream =
        Rc::new(Downstream { local: Rc::clone(local), remote, peer, peer_number, watched: Rc::clone(watched) });

    let limits = &snapshot.limits;
    let most_bytes = limits.max_header_bytes.as_usize();
    let mut builder = http1::Builder::new();
    builder
        .preserve_header_case(true)
        .half_close(false)
        .max_header_size(most_bytes)
        .max_buf_size(most_bytes.max(SMALLEST_BUFFER));
    if limits.max_headers != USUAL_HEADERS {
        builder.max_headers(limits.max_headers as usize);
    }
    let serving = Rc::clone(&downstream);
    let service = service_fn(move |request| forward::handle(Rc::clone(&serving), request));
    let io = ClientIo::new(io, Rc::clone(watched), most_bytes);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut drain = Draining::No;
    let outcome = poll_fn(|cx| {
        loop {
            if let Order::Cut(reason) = watched.order() {
                return Poll::Ready(Err(reason));
            }
            watched.keep_waker(cx.waker());
            // What has already come is read before an order to drain closes the connection.
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                return Poll::Ready(Ok(outcome));
            }
            match (watched.order(), drain) {
                (Order::Drain, Draining::No | Draining::Soon) if watched.handled.get() > 0 => {
                    connection.as_mut().graceful_shutdown();
                    drain = Draining::Yes;
                }
                (Order::Drain, Draining::No) => {
                    // It has waited for us to accept it; its request may come any moment.
                    watched.set_deadline(Instant::now().checked_add(FIRST_REQUEST));
                    drain = Draining::Soon;
                    return Poll::Pending;
                }
                _ => return Poll::Pending,
            }
        }
    })
    .await;
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => refused(&downstream, snapshot, &error),
        // Between requests nothing is lost by a cut at the stop's end.
        Err("drain") if watched.phase() == Phase::Idle => {}
        Err("header_timeout") if drain == Draining::Soon => {}
        Err(reason) => local.metrics.cut(reason),
    }
}

/// Notes a request that the HTTP library refused before it became one.
fn refused(downstream: &Downstream, snapshot: &ListenerSnapshot, error: &hyper::Error) {
    let reason = if error.is_parse_too_large() {
        Reason::HeadersTooLarge
    } else if error.is_parse() {
        Reason::BadRequest("not HTTP/1.1")
    } else {
        return;
    };
    let local = &downstream.local;
    let (listener, remote) = (&local.shared.name, downstream.remote);
    tracing::debug!(component = "proxy", listener, %remote, %error, "request refused by the parser");
    let peer = downstream.peer.as_ref().map_or("", |peer| peer.id.as_str());
    let code = reason.status().as_u16();
    let key = RequestKey { route: u64::MAX, cluster: u64::MAX, code, peer: downstream.peer_number };
    local.metrics.request(key, &RequestNames { route: "", cluster: "", peer }, Duration::ZERO);
    if let Some(log) = &snapshot.access_log {
        let entry = Entry {
            started: SystemTime::now(),
            code,
            reason: Some(reason),
            direction: local.shared.direction,
            listener,
            peer,
            ..Entry::of(remote)
        };
        local.worker.log(log, &entry);
    }
}
