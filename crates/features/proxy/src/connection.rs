//! One client's connection: perhaps decrypted, served request by request, ended in time.
//!
//! In: an accepted connection. Out: its protocol's server, found by what the listener's config,
//! ALPN or the first bytes say. Promise: a client that is slow
//! with its headers, rests too long or does not take its answer is cut, and the cut counted.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::ListenerProtocol;
use outrigger_identity::{PeerPolicy, tls_error_reason, tls_error_text};
use outrigger_wire::h1::Limits;
use outrigger_wire::preamble::{self, Origin, Parsed};
use outrigger_wire::sniff::{Sniff, sniff};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::buffer::Buffer;
use crate::dial::Ends;
use crate::listener::LocalListener;
use crate::permissive::Beginning;
use crate::snapshot::ListenerSnapshot;
use crate::socket;
use crate::tls::{self, Agreed, Peer};
use crate::transport::{Replay, Transport};
use crate::upstream::Speech;
use crate::watch::{Order, Phase, Watched};
use crate::{h1, h2, tcp};

/// The longest TLS ClientHello; those with several key shares and a ticket take about 2 KiB.
const MOST_HELLO: usize = 16 * 1024;

/// What the requests of one connection know of it.
pub(crate) struct Downstream {
    pub(crate) local: Rc<LocalListener>,
    pub(crate) remote: SocketAddr,
    /// Who called, and which address of ours.
    pub(crate) ends: Ends,
    /// It is encrypted.
    pub(crate) secure: bool,
    /// The client is an Outrigger, which it proved, and speaks HTTP/2.
    pub(crate) kin: bool,
    /// The client is an Outrigger, whatever it speaks.
    pub(crate) outrigger: bool,
    /// Where the client wanted to go before it was redirected here.
    pub(crate) original: Option<SocketAddr>,
    pub(crate) peer: Option<Peer>,
    pub(crate) peer_number: u64,
}

/// A connection whose protocol is known.
struct Front {
    io: Transport,
    /// What was read to find out.
    input: Buffer,
    ends: Ends,
    peer: Option<Peer>,
    speech: Speech,
    /// The client is an Outrigger that speaks HTTP/2.
    kin: bool,
    /// The client is an Outrigger.
    outrigger: bool,
    /// The route of a connection that is carried as it comes.
    route: Option<u32>,
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
    socket::prepare(&stream, snapshot.tcp_keepalive, Duration::ZERO);
    let original = if snapshot.redirected { socket::original_destination(&stream) } else { None };
    if snapshot.redirected && original.is_none() {
        // From outside, anybody could go through us to anywhere; and where it should go nobody knows.
        local.metrics.cut("not_redirected");
        let listener = &local.shared.name;
        tracing::warn!(component = "proxy", listener, %remote, "refused a connection that was not redirected (`redirected: true`)");
        return;
    }
    let mut newer = None;
    if let (Some(on_demand), Some(address)) = (&snapshot.on_demand, original)
        && !snapshot.routes.knows(address)
    {
        // On the heap, for it is seldom wanted.
        let asking = Box::pin(on_demand.wait(address, local));
        if let Err(reason) = watched.unless_cut(asking).await {
            return local.cut(reason, remote, "");
        }
        newer = Some(local.snapshot());
    }
    let snapshot: &ListenerSnapshot = newer.as_ref().map_or(snapshot, |newer| newer);
    let is_simple = snapshot.tls.is_none()
        && snapshot.simple_tls.is_none()
        && snapshot.protocol == ListenerProtocol::Http
        && !snapshot.proxy_protocol;
    let front = if is_simple {
        // Nothing to find out: the HTTP server sees by itself which version it is.
        let ends = Ends { client: remote, local: local.shared.address };
        let (io, input) = (stream.into(), Buffer::default());
        Front { io, input, ends, peer: None, speech: Speech::Http1, kin: false, outrigger: false, route: None }
    } else {
        // On the heap, so that the connection does not hold room for it afterwards.
        match watched.unless_cut(Box::pin(local.find_out(snapshot, stream, remote, original))).await {
            Ok(Some(front)) => front,
            Ok(None) => return,
            Err(reason) => {
                if reason == "header_timeout" && (snapshot.tls.is_some() || snapshot.simple_tls.is_some()) {
                    local.metrics.handshake("timeout");
                }
                local.cut(reason, remote, "");
                return;
            }
        }
    };
    let Front { io, input, ends, peer, speech, kin, outrigger, route } = front;
    let (client, name) = (ends.client, peer.as_ref().map(|peer| peer.id.clone()).unwrap_or_default());
    let secure = peer.is_some() || snapshot.simple_tls.is_some();
    let peer_number = peer.as_ref().map_or(0, |peer| local.worker.peer_number(&peer.id));
    let remote = ends.client;
    let local_ = Rc::clone(local);
    let downstream =
        Rc::new(Downstream { local: local_, remote, ends, secure, kin, outrigger, original, peer, peer_number });
    if let Some(about) = watched.about() {
        let speaks = match speech {
            Speech::Http1 => "HTTP/1",
            Speech::Http2 => "HTTP/2",
            Speech::Tcp => "TCP",
        };
        about.knows(&downstream, speaks);
    }
    match speech {
        Speech::Http1 => {
            let limits = Limits {
                max_bytes: snapshot.limits.max_header_bytes.as_usize(),
                max_fields: snapshot.limits.max_headers as usize,
            };
            let watched_ = Rc::clone(watched);
            let connection = h1::server::Connection { downstream, watched: watched_, io, input, limits, seen: 0 };
            until_cut(local, watched, client, &name, pin!(connection.serve(snapshot))).await;
        }
        Speech::Http2 => {
            let io = Replay { io, ahead: input };
            let mut serving = Box::pin(h2::server::serve(downstream, watched, snapshot, io));
            until_cut(local, watched, client, &name, serving.as_mut()).await;
        }
        Speech::Tcp => {
            let learns = snapshot.protocol == ListenerProtocol::Auto;
            let mut relay = Box::pin(tcp::relay(downstream, watched, io, input, route, learns));
            until_cut(local, watched, client, &name, relay.as_mut()).await;
        }
    }
}

impl LocalListener {
    /// Reads what tells the protocol. Nothing when the connection is not to be served; that was noted.
    async fn find_out(
        &self,
        snapshot: &ListenerSnapshot,
        stream: TcpStream,
        remote: SocketAddr,
        original: Option<SocketAddr>,
    ) -> Option<Front> {
        let local = original.or_else(|| stream.local_addr().ok()).unwrap_or(self.shared.address);
        let mut ends = Ends { client: remote, local };
        let mut io = Transport::from(stream);
        let mut input = Buffer::default();
        if snapshot.proxy_protocol {
            ends = self.read_preamble(&io, &mut input, ends).await?;
        }
        let mut peer = None;
        let mut agreed = Agreed::Nothing;
        let beginning = match &snapshot.tls {
            Some(_) if snapshot.permissive => self.beginning(snapshot, &io, &mut input).await?,
            _ => Beginning::Mesh,
        };
        let (mut kin, mut outrigger) = (false, false);
        if let Some(policy) = &snapshot.tls
            && beginning == Beginning::Mesh
        {
            let stream = self.handshake(snapshot, policy, Replay { io, ahead: input }, ends.client).await?;
            let protocol = stream.0.get_ref().1.alpn_protocol();
            agreed = Agreed::of(protocol);
            outrigger = tls::is_outriggers(protocol);
            kin = agreed == Agreed::Http2 && outrigger;
            peer = Some(stream.1);
            io = stream.0.into();
            input = Buffer::default();
        }
        if let Some(config) = &snapshot.simple_tls {
            let accepting = TlsAcceptor::from(Arc::clone(config)).accept(Replay { io, ahead: input });
            match accepting.await {
                Ok(stream) => {
                    self.metrics.shook_hands(stream.get_ref().1.handshake_kind());
                    agreed = Agreed::of(stream.get_ref().1.alpn_protocol());
                    io = stream.into();
                    input = Buffer::default();
                }
                Err(error) => {
                    self.metrics.handshake(tls_error_reason(&error));
                    let (listener, reason) = (&self.shared.name, tls_error_text(&error));
                    let remote = ends.client;
                    tracing::debug!(component = "proxy", listener, %remote, reason, "TLS handshake with a client failed");
                    return None;
                }
            }
        }
        let routes = &snapshot.routes;
        let (speech, route) = match (snapshot.protocol, agreed) {
            _ if matches!(beginning, Beginning::Foreign | Beginning::Silent) => (Speech::Tcp, routes.tcp(original)),
            (ListenerProtocol::Http, Agreed::Http2) | (ListenerProtocol::Auto, Agreed::Http2) => (Speech::Http2, None),
            (ListenerProtocol::Http, _) | (ListenerProtocol::Auto, Agreed::Http1) => (Speech::Http1, None),
            (ListenerProtocol::Tcp, _) | (ListenerProtocol::Auto, Agreed::Tcp) => (Speech::Tcp, routes.tcp(original)),
            (ListenerProtocol::Tls, _) => {
                let name = self.name_asked_for(&io, &mut input, ends.client).await?;
                (Speech::Tcp, routes.tls(name.as_deref(), original))
            }
            (ListenerProtocol::Auto, Agreed::Nothing) => {
                let speech = self.detect(snapshot, &io, &mut input, original).await?;
                (speech, routes.tcp(original))
            }
        };
        Some(Front { io, input, ends, peer, speech, kin, outrigger, route })
    }

    /// Reads more; `None` is the end.
    pub(crate) async fn read_more(&self, io: &Transport, input: &mut Buffer) -> Option<()> {
        match poll_fn(|cx| io.poll_fill(cx, input)).await {
            Ok(count) if count > 0 => Some(()),
            _ => None,
        }
    }

    async fn read_preamble(&self, io: &Transport, input: &mut Buffer, ends: Ends) -> Option<Ends> {
        loop {
            self.read_more(io, input).await?;
            match preamble::parse(input.filled()) {
                Ok(Parsed::Partial) => {}
                Ok(Parsed::Complete(preamble)) => {
                    let told = match preamble.origin {
                        Origin::Proxied { source, destination } => Ends { client: source, local: destination },
                        Origin::Local | Origin::Unknown => ends,
                    };
                    let consumed = preamble.consumed;
                    input.consume(consumed);
                    return Some(told);
                }
                Err(error) => {
                    let listener = &self.shared.name;
                    self.metrics.cut("proxy_protocol");
                    tracing::warn!(component = "proxy", listener, remote = %ends.client, %error, "connection refused");
                    return None;
                }
            }
        }
    }

    /// Finds out what a client speaks that was not told by ALPN.
    async fn detect(
        &self,
        snapshot: &ListenerSnapshot,
        io: &Transport,
        input: &mut Buffer,
        original: Option<SocketAddr>,
    ) -> Option<Speech> {
        let now = Instant::now();
        if input.is_empty() && self.speak_first.knows(original, now) {
            return Some(Speech::Tcp);
        }
        let deadline = now + snapshot.detect_timeout;
        loop {
            match sniff(input.filled()) {
                Sniff::Http1 => return Some(Speech::Http1),
                Sniff::Http2Preface => return Some(Speech::Http2),
                Sniff::Tls | Sniff::ProxyV1 | Sniff::ProxyV2 | Sniff::Unknown => return Some(Speech::Tcp),
                Sniff::Undecided => {}
            }
            match tokio::time::timeout_at(deadline.into(), self.read_more(io, input)).await {
                Ok(more) => more?,
                Err(_) => return Some(Speech::Tcp),
            }
        }
    }

    /// The name that a TLS client asks for, if any; what it sent stays in `input`.
    async fn name_asked_for(&self, io: &Transport, input: &mut Buffer, remote: SocketAddr) -> Option<Option<String>> {
        let listener = &self.shared.name;
        loop {
            if input.len() > MOST_HELLO {
                self.metrics.cut("tls_hello");
                tracing::debug!(component = "proxy", listener, %remote, "TLS ClientHello too long");
                return None;
            }
            self.read_more(io, input).await?;
            match tls::server_name(input.filled()) {
                Ok(None) => {}
                Ok(Some(name)) => return Some(name),
                Err(error) => {
                    self.metrics.cut("tls_hello");
                    tracing::debug!(component = "proxy", listener, %remote, %error, "no TLS ClientHello");
                    return None;
                }
            }
        }
    }

    async fn handshake(
        &self,
        snapshot: &ListenerSnapshot,
        policy: &PeerPolicy,
        stream: Replay,
        remote: SocketAddr,
    ) -> Option<(TlsStream<Replay>, Peer)> {
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
        let config = match cache
            .get(&identity, |identity| identity.server_config_since(snapshot.least_tls, policy, tls::SERVER))
        {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(component = "proxy", listener, %error, "cannot make a TLS config");
                self.metrics.handshake("config");
                return None;
            }
        };
        match TlsAcceptor::from(config).accept(stream).await {
            Ok(stream) => {
                let connection = stream.get_ref().1;
                let peer = Peer::of(connection, identity.spiffe_id.as_str())?;
                self.metrics.shook_hands(connection.handshake_kind());
                Some((stream, peer))
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

/// Serves a connection until its end, or until it is cut.
pub(crate) async fn until_cut<F: Future>(
    local: &LocalListener,
    watched: &Watched,
    remote: SocketAddr,
    peer: &str,
    mut serving: Pin<&mut F>,
) {
    let outcome = poll_fn(|cx| {
        if let Order::Cut(reason) = watched.order() {
            return Poll::Ready(Err(reason));
        }
        watched.keep_waker(cx.waker());
        serving.as_mut().poll(cx).map(|_| Ok(()))
    })
    .await;
    match outcome {
        Ok(()) => {}
        // Between requests nothing is lost by a cut at the stop's end.
        Err("drain") if watched.phase() == Phase::Idle => {}
        Err("header_timeout") if watched.draining_soon.get() => {}
        Err(reason) => local.cut(reason, remote, peer),
    }
}
