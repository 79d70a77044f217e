//! One client's connection: perhaps decrypted, served request by request, ended in time.
//!
//! In: an accepted connection. Out: its protocol's server. Promise: a client that is slow
//! with its headers, rests too long or does not take its answer is cut, and the cut counted.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use outrigger_identity::{PeerPolicy, peer_id, tls_error_reason, tls_error_text};
use outrigger_wire::h1::Limits;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::buffer::Buffer;
use crate::listener::LocalListener;
use crate::snapshot::ListenerSnapshot;
use crate::tls::{self, Peer};
use crate::transport::{Replay, Transport};
use crate::watch::{Order, Phase, Watched};
use crate::{h1, h2};

/// What the requests of one connection know of it.
pub(crate) struct Downstream {
    pub(crate) local: Rc<LocalListener>,
    pub(crate) remote: SocketAddr,
    pub(crate) peer: Option<Peer>,
    pub(crate) peer_number: u64,
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
        None => http(local, snapshot, watched, stream.into(), remote, None, false).await,
        Some(policy) => match watched.unless_cut(local.handshake(snapshot, policy, stream, remote)).await {
            Ok(Some((stream, peer))) => {
                let http2 = tls::is_http2(stream.get_ref().1.alpn_protocol());
                http(local, snapshot, watched, stream.into(), remote, Some(peer), http2).await;
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
        let config = match cache.get(&identity, |identity| identity.server_config(policy, tls::SERVER)) {
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

async fn http(
    local: &Rc<LocalListener>,
    snapshot: &ListenerSnapshot,
    watched: &Rc<Watched>,
    io: Transport,
    remote: SocketAddr,
    peer: Option<Peer>,
    http2: bool,
) {
    let peer_number = peer.as_ref().map_or(0, |peer| local.worker.peer_number(&peer.id));
    let downstream = Rc::new(Downstream { local: Rc::clone(local), remote, peer, peer_number });
    if http2 {
        let io = Replay { io, ahead: Buffer::default() };
        until_cut(local, watched, h2::server::serve(downstream, watched, snapshot, io)).await;
        return;
    }
    let limits = Limits {
        max_bytes: snapshot.limits.max_header_bytes.as_usize(),
        max_fields: snapshot.limits.max_headers as usize,
    };
    let connection = h1::server::Connection {
        downstream,
        watched: Rc::clone(watched),
        io,
        input: Buffer::default(),
        limits,
        seen: 0,
    };
    until_cut(local, watched, connection.serve(snapshot)).await;
}

/// Serves a connection until its end, or until it is cut.
pub(crate) async fn until_cut(local: &LocalListener, watched: &Watched, serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    let outcome = poll_fn(|cx| {
        if let Order::Cut(reason) = watched.order() {
            return Poll::Ready(Err(reason));
        }
        watched.keep_waker(cx.waker());
        serving.as_mut().poll(cx).map(Ok)
    })
    .await;
    match outcome {
        Ok(()) => {}
        // Between requests nothing is lost by a cut at the stop's end.
        Err("drain") if watched.phase() == Phase::Idle => {}
        Err("header_timeout") if watched.draining_soon.get() => {}
        Err(reason) => local.metrics.cut(reason),
    }
}
