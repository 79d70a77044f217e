//! Makes connections to endpoints: TCP, then perhaps mTLS.
//!
//! Promise: an endpoint is spoken to only when its certificate names an identity that the
//! cluster's config expects; sessions are resumed per worker, for the TLS config is kept.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::ProxyProtocol;
use outrigger_identity::{Snapshot, peer_id, tls_error_reason, tls_error_text};
use outrigger_wire::preamble::{self, Extras};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::buffer::Buffer;
use crate::error::Reason;
use crate::h2::guard::{Guard, Guarded};
use crate::h2::wire::Wire;
use crate::metrics::Stage;
use crate::pool::{Connection, Pool};
use crate::shared::{Begun, Http2};
use crate::socket::OwnCall;
use crate::transport::Transport;
use crate::upstream::{H1Connection, Link, Speech};
use crate::{socket, tls};

/// Bytes of a stream, and of all streams, that may come before the client takes them.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes for a stream that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// Header bytes an endpoint may send with a response.
const MOST_HEADER_BYTES: u32 = 256 * 1024;

/// Who called whom, for a PROXY protocol header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) client: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// A byte stream to an endpoint.
pub(crate) struct Dialled {
    pub(crate) io: Transport,
    /// Which certificate of ours it was made with; 0 for plain text.
    generation: u64,
    /// Whom the endpoint's certificate names.
    pub(crate) peer: Option<Rc<str>>,
    /// The endpoint is an Outrigger too, by the protocol that was agreed on.
    pub(crate) kin: bool,
}

impl From<Dialled> for Connection {
    fn from(Dialled { io, generation, peer, kin }: Dialled) -> Self {
        Self { link: Link::H1(H1Connection::new(io, kin)), generation, peer }
    }
}

impl Pool {
    /// Begins HTTP/2 on a connection to an endpoint. Cancel-safe.
    pub(crate) async fn begin_http2(&self, stream: TcpStream, address: SocketAddr) -> Result<Begun, Reason> {
        let Dialled { io, generation, peer, kin } = self.reach(stream, address, Speech::Http2, None).await?;
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(MOST_HEADER_BYTES);
        let guard = Guard::of_endpoint();
        let wire = Rc::new(Wire::new(io));
        let io = Guarded::new(Rc::clone(&wire), Buffer::default(), Rc::clone(&guard));
        let (sender, connection) = builder.handshake(io).await.map_err(|error| {
            tracing::debug!(component = "proxy", cluster = self.cluster.name, %error, "HTTP/2 not begun");
            Reason::ConnectFailure
        })?;
        let connection = Http2 { connection, wire, guard };
        Ok(Begun { sender, connection, generation, peer, kin })
    }

    /// A TCP connection to an address. Cancel-safe.
    pub(crate) async fn tcp(&self, address: SocketAddr) -> Result<TcpStream, Reason> {
        let cluster = &self.cluster.name;
        let connecting = async {
            match self.cluster.is_beside_us() {
                true => socket::connect_to_application(address).await,
                false => TcpStream::connect(address).await,
            }
        };
        let began = Instant::now();
        let connected = connecting.await.inspect(|_| self.metrics.connecting(Stage::Tcp, began.elapsed()));
        connected.map_err(|error| {
            if socket::lacks_descriptors(&error) {
                tracing::warn!(component = "proxy", cluster, %address, %error, "no file descriptor is left to connect with");
                return Reason::NoDescriptor;
            }
            tracing::debug!(component = "proxy", cluster, %address, %error, "cannot connect");
            Reason::ConnectFailure
        })
    }

    /// Makes a TCP connection what the cluster's config wants: told who calls, and encrypted.
    pub(crate) async fn reach(
        &self,
        mut stream: TcpStream,
        address: SocketAddr,
        speech: Speech,
        ends: Option<Ends>,
    ) -> Result<Dialled, Reason> {
        let cluster = &self.cluster.name;
        let config = &self.cluster.config;
        let call =
            (self.cluster.toward && !self.cluster.is_beside_us()).then(|| OwnCall::note(&stream, address)).flatten();
        socket::prepare(&stream, config.tcp_keepalive.into(), config.tcp_user_timeout.into());
        if let (Some(version), Some(ends)) = (self.cluster.config.proxy_protocol, ends) {
            let mut header = Vec::new();
            match version {
                ProxyProtocol::V1 => preamble::encode_v1(ends.client, ends.local, &mut header),
                ProxyProtocol::V2 => {
                    // Without extras nothing can be too long.
                    let _ = preamble::encode_v2(ends.client, ends.local, Extras::default(), &mut header);
                }
            }
            stream.write_all(&header).await.map_err(|_| Reason::ConnectFailure)?;
        }
        if self.cluster.config.tls.is_none() {
            return Ok(Dialled { io: Transport::from(stream).known_as(call), generation: 0, peer: None, kin: false });
        }
        if let Some(tls) = &self.cluster.config.tls
            && let Some(name) = &tls.server_name
        {
            let dialled = self.reach_server(address, stream, name, speech).await?;
            return Ok(Dialled { io: dialled.io.known_as(call), ..dialled });
        }
        let snapshot = self.snapshot().ok_or(Reason::TlsFailure)?;
        let config = self.tls_config(&snapshot, speech)?;
        // The identity is in the URI SAN; an address as the name keeps SNI out of the handshake.
        let name = ServerName::from(address.ip());
        let began = Instant::now();
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => {
                self.metrics.shook_hands(stream.get_ref().1.handshake_kind(), began.elapsed());
                let session = stream.get_ref().1;
                let peer = peer_id(session.peer_certificates()).map(|id| Rc::from(id.as_str()));
                let kin = tls::is_outriggers(session.alpn_protocol());
                let io = Transport::from(stream).known_as(call);
                Ok(Dialled { io, generation: snapshot.generation, peer, kin })
            }
            Err(error) => {
                self.metrics.handshake(tls_error_reason(&error));
                let reason = tls_error_text(&error);
                tracing::warn!(component = "proxy", cluster, %address, reason, "mTLS handshake with the endpoint failed");
                Err(Reason::TlsFailure)
            }
        }
    }

    /// Ordinary TLS: the server's name must be in its certificate.
    async fn reach_server(
        &self,
        address: SocketAddr,
        stream: TcpStream,
        name: &str,
        speech: Speech,
    ) -> Result<Dialled, Reason> {
        let cluster = &self.cluster.name;
        let refused = |reason: &str| {
            tracing::warn!(component = "proxy", cluster, %address, reason, "TLS handshake with the endpoint failed");
            Reason::TlsFailure
        };
        let server = ServerName::try_from(name.to_owned()).map_err(|error| refused(&error.to_string()))?;
        // In this order: a connection may count as older than it is, never as newer.
        let generation = self.cluster.origination.generation();
        let config = self.cluster.origination.config(speech);
        let config = config.ok_or_else(|| refused("its `ca` or `clientCertificate` cannot be read"))?;
        let began = Instant::now();
        match TlsConnector::from(config).connect(server, stream).await {
            Ok(stream) if speech == Speech::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") => {
                self.metrics.handshake("alpn");
                Err(refused("it does not speak HTTP/2"))
            }
            Ok(stream) => {
                self.metrics.shook_hands(stream.get_ref().1.handshake_kind(), began.elapsed());
                Ok(Dialled { io: stream.into(), generation, peer: None, kin: false })
            }
            Err(error) => {
                self.metrics.handshake(tls_error_reason(&error));
                Err(refused(&tls_error_text(&error).to_string()))
            }
        }
    }

    fn tls_config(&self, snapshot: &Snapshot, speech: Speech) -> Result<Arc<ClientConfig>, Reason> {
        let cluster = &self.cluster.name;
        let tls = self.cluster.config.tls.as_ref().ok_or(Reason::TlsFailure)?;
        let (configs, alpn) = match speech {
            Speech::Http1 => (&self.tls, tls::HTTP1),
            Speech::Http2 => (&self.tls_http2, tls::HTTP2),
            Speech::Tcp => (&self.tls_tcp, tls::TCP),
        };
        configs.get(snapshot, |snapshot| snapshot.client_config_since(tls.min_version, &tls.spiffe_ids, alpn)).map_err(
            |error| {
                tracing::error!(component = "proxy", cluster, %error, "cannot make a TLS config");
                Reason::TlsFailure
            },
        )
    }
}
