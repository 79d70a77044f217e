//! Asks the application, as the kubelet would.
//!
//! In: a probe, the pod's address. Out: a status for the kubelet: the application's own where it
//! gave one. Promise: no longer than the probe's time; no more than the head of an answer is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_http::{GrpcClient, GrpcOptions, Resolver};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::plan::{Probe, Question};

/// Kubernetes' health protocol for gRPC.
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// `SERVING` in its answer: field 1, a varint, 1.
const SERVING: &[u8] = &[0x08, 0x01];
/// What applications know the kubelet by, when it does not say itself.
const AGENT: HeaderValue = HeaderValue::from_static("kube-probe/outrigger");

/// Whom we ask, and how.
pub(crate) struct Asker {
    pub(crate) address: IpAddr,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) resolver: Resolver,
}

/// Why there is no answer to pass on.
#[derive(Debug)]
pub(crate) struct Unanswered(String);

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Asker {
    /// The application's answer; `agent` is who asks us. Cancel-safe.
    pub(crate) async fn ask(&self, probe: &Probe, agent: Option<&HeaderValue>) -> Result<StatusCode, Unanswered> {
        let asked = async {
            match &probe.question {
                Question::Http { tls, port, path, headers } => self.http(*tls, *port, path, headers, agent).await,
                Question::Tcp { port } => self.connect(*port).await.map(|_| StatusCode::OK),
                Question::Grpc { port, service } => self.grpc(*port, service, probe.timeout).await,
            }
        };
        match tokio::time::timeout(probe.timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(Unanswered(format!("no answer within {:?}", probe.timeout))),
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, Unanswered> {
        let address = SocketAddr::new(self.address, port);
        let failed = |error| Unanswered(format!("cannot connect to {address}: {error}"));
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(failed)?;
        // From a loopback address: our calls to the pod's own address are redirected otherwise, as those to its Service are.
        socket.bind(SocketAddr::new(self.loopback(), 0)).map_err(failed)?;
        let stream = socket.connect(address).await.map_err(failed)?;
        // Only a matter of speed.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    fn loopback(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        }
    }

    async fn http(
        &self,
        tls: bool,
        port: u16,
        path: &Uri,
        headers: &[(http::HeaderName, HeaderValue)],
        agent: Option<&HeaderValue>,
    ) -> Result<StatusCode, Unanswered> {
        let stream = self.connect(port).await?;
        let mut all = HeaderMap::new();
        headers.iter().for_each(|(name, value)| {
            all.append(name, value.clone());
        });
        let host = HeaderValue::try_from(SocketAddr::new(self.address, port).to_string());
        all.entry(HOST).or_insert(host.map_err(|error| Unanswered(error.to_string()))?);
        all.entry(USER_AGENT).or_insert(agent.cloned().unwrap_or(AGENT));
        all.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        all.insert(CONNECTION, HeaderValue::from_static("close"));
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path.clone();
        *request.headers_mut() = all;
        if !tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::IpAddress(self.address.into());
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await;
        exchange(stream.map_err(|error| Unanswered(format!("TLS with port {port}: {error}")))?, request).await
    }

    async fn grpc(&self, port: u16, service: &str, timeout: Duration) -> Result<StatusCode, Unanswered> {
        // The client chooses its source address by where it goes: to loopback, from loopback.
        let server = Uri::builder().scheme("http").authority(SocketAddr::new(self.loopback(), port).to_string());
        let server = server.path_and_query("/").build().map_err(|error| Unanswered(error.to_string()))?;
        let options = GrpcOptions { connect_timeout: timeout, timeout, max_response: 1024, ..GrpcOptions::default() };
        let client = GrpcClient::new(server, options, self.resolver.clone());
        let agent = HeaderMap::from_iter([(USER_AGENT, AGENT)]);
        let answer = client.call(CHECK, &agent, &check(service)).await;
        let answer = answer.map_err(|error| Unanswered(error.to_string()))?;
        if answer.starts_with(SERVING) {
            Ok(StatusCode::OK)
        } else {
            Err(Unanswered(format!("the gRPC service `{service}` of port {port} is not SERVING")))
        }
    }
}

/// `HealthCheckRequest { service }`.
fn check(service: &str) -> Vec<u8> {
    if service.is_empty() {
        return Vec::new();
    }
    let mut message = vec![0x0a];
    let mut length = service.len();
    while length >= 0x80 {
        message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).unwrap_or_default());
    message.extend_from_slice(service.as_bytes());
    message
}

/// One request, and the head of its answer.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<StatusCode, Unanswered>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let failed = |error: hyper::Error| Unanswered(format!("no answer of HTTP: {error}"));
    let handshake = http1::Builder::new().max_buf_size(64 << 10).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection is driven until the head is there, and dropped with the body.
    let head = tokio::select! {
        head = answer.as_mut() => head,
        ended = connection.as_mut() => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    Ok(head.map_err(failed)?.status())
}
