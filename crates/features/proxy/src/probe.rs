//! One check of one endpoint, on a connection of its own.
//!
//! In: an address, and what is to be asked there. Out: whether the answer means health, else what was wrong. Promise: the
//! connection is made as those for requests are (TLS, identity, PROXY protocol); of an answer no more is read than tells.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;

use bytes::Bytes;
use outrigger_config::{
    ClusterProtocol, HealthCheck, HealthCheckMethod, HealthCheckType, HttpHealthCheck, ProxyProtocol,
};
use outrigger_identity::Identities;
use outrigger_wire::h1::{Limits, Parsed, parse_response};
use outrigger_wire::head::Head;
use outrigger_wire::preamble::{self, Extras};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::Cluster;
use crate::upstream::Speech;
use crate::{socket, tls};

/// Bytes of an answer that are read.
const MOST_ANSWER: usize = 16 * 1024;
/// Bytes of a TCP answer in which the text is looked for.
const MOST_TEXT: usize = 4096;
const MOST_FIELDS: usize = 200;
const AGENT: &str = "outrigger-health-check";

/// A byte stream, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Cluster {
    /// Checks an endpoint once. Cancel-safe: the connection ends.
    pub(crate) async fn probe(
        &self,
        address: SocketAddr,
        check: &HealthCheck,
        identities: &Identities,
    ) -> Result<(), String> {
        let http = check.http.clone().unwrap_or_default();
        let host = http.hostname.clone().unwrap_or_else(|| address.to_string());
        let http2 = self.config.protocol == ClusterProtocol::Http2;
        match check.kind {
            HealthCheckType::Tcp => {
                let mut stream = self.reach_for_check(address, Speech::Tcp, identities).await?;
                let tcp = check.tcp.clone().unwrap_or_default();
                converse(&mut stream, tcp.send.as_deref(), tcp.receive.as_deref()).await
            }
            HealthCheckType::Http if http2 => {
                let stream = self.reach_for_check(address, Speech::Http2, identities).await?;
                let request = self.request(method(http.method), &host, &http.path);
                let answer = ask_http2(stream, request, Bytes::new()).await?;
                expected(&http, answer.status)
            }
            HealthCheckType::Http => {
                let stream = self.reach_for_check(address, Speech::Http1, identities).await?;
                expected(&http, ask_http1(stream, &http, &host).await?)
            }
            HealthCheckType::Grpc => {
                let stream = self.reach_for_check(address, Speech::Http2, identities).await?;
                let service = check.grpc.as_ref().map(|grpc| grpc.service.as_str()).unwrap_or_default();
                let request = self
                    .request("POST", &host, "/grpc.health.v1.Health/Check")
                    .header("content-type", "application/grpc")
                    .header("te", "trailers");
                serving(&ask_http2(stream, request, health_request(service)).await?)
            }
        }
    }

    fn request(&self, method: &str, host: &str, path: &str) -> http::request::Builder {
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        let uri = format!("{scheme}://{host}{path}");
        http::Request::builder().method(method).uri(uri).version(http::Version::HTTP_2).header("user-agent", AGENT)
    }

    /// A connection as requests have it.
    async fn reach_for_check(
        &self,
        address: SocketAddr,
        speech: Speech,
        identities: &Identities,
    ) -> Result<Box<dyn Stream>, String> {
        let connected = match self.is_beside_us() {
            true => socket::connect_to_application(address).await,
            false => TcpStream::connect(address).await,
        };
        let mut stream = connected.map_err(|error| format!("cannot connect: {error}"))?;
        socket::prepare(&stream, self.config.tcp_keepalive.into(), self.config.tcp_user_timeout.into());
        if let (Some(version), Ok(local)) = (self.config.proxy_protocol, stream.local_addr()) {
            let mut header = Vec::new();
            match version {
                ProxyProtocol::V1 => preamble::encode_v1(local, address, &mut header),
                // Without extras nothing can be too long.
                ProxyProtocol::V2 => drop(preamble::encode_v2(local, address, Extras::default(), &mut header)),
            }
            stream.write_all(&header).await.map_err(broken)?;
        }
        let Some(terms) = &self.config.tls else { return Ok(Box::new(stream)) };
        let failed = |error: &dyn std::fmt::Display| format!("TLS: {error}");
        let (name, config) = match &terms.server_name {
            Some(name) => {
                let config = self.origination.config(speech).ok_or("its `ca` or `clientCertificate` cannot be read")?;
                (ServerName::try_from(name.clone()).map_err(|error| failed(&error))?, config)
            }
            None => {
                let snapshot = identities.current().ok_or("there is no identity yet")?;
                let alpn = match speech {
                    Speech::Http1 => tls::HTTP1,
                    Speech::Http2 => tls::HTTP2,
                    Speech::Tcp => tls::TCP,
                };
                let config = snapshot.client_config_since(terms.min_version, &terms.spiffe_ids, alpn);
                (ServerName::from(address.ip()), config.map_err(|error| failed(&error))?)
            }
        };
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| failed(&error))?;
        Ok(Box::new(stream))
    }
}

fn broken(error: std::io::Error) -> String {
    format!("the connection broke: {error}")
}

fn method(method: HealthCheckMethod) -> &'static str {
    match method {
        HealthCheckMethod::Get => "GET",
        HealthCheckMethod::Head => "HEAD",
        HealthCheckMethod::Options => "OPTIONS",
    }
}

fn expected(check: &HttpHealthCheck, status: u16) -> Result<(), String> {
    match check.expected_statuses.contains(&status) {
        true => Ok(()),
        false => Err(format!("it answered {status}")),
    }
}

/// Sends a text, and waits until another one came.
async fn converse(stream: &mut impl Stream, send: Option<&str>, receive: Option<&str>) -> Result<(), String> {
    if let Some(text) = send {
        stream.write_all(text.as_bytes()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
    }
    let Some(wanted) = receive.map(str::as_bytes).filter(|wanted| !wanted.is_empty()) else { return Ok(()) };
    let mut came = Vec::new();
    while came.len() < MOST_TEXT {
        let mut piece = [0; 1024];
        match stream.read(&mut piece).await.map_err(broken)? {
            0 => break,
            count => came.extend_from_slice(&piece[..count]),
        }
        if came.windows(wanted.len()).any(|text| text == wanted) {
            return Ok(());
        }
    }
    Err("it did not answer as expected".to_owned())
}

/// The status of an answer over HTTP/1.
async fn ask_http1(mut stream: impl Stream, check: &HttpHealthCheck, host: &str) -> Result<u16, String> {
    let (method, path) = (method(check.method), &check.path);
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let limits = Limits { max_bytes: MOST_ANSWER, max_fields: MOST_FIELDS };
    let (mut came, mut seen, mut head) = (Vec::new(), 0, Head::default());
    loop {
        match parse_response(&came, seen, limits, &mut head) {
            // What is only informational is followed by the answer.
            Ok(Parsed::Complete(length)) if head.status() < 200 && head.status() != 101 => {
                came.drain(..length);
                seen = 0;
            }
            Ok(Parsed::Complete(_)) => return Ok(head.status()),
            Ok(Parsed::Partial) => {
                seen = came.len();
                let mut piece = [0; 2048];
                match stream.read(&mut piece).await.map_err(broken)? {
                    0 => return Err("it closed the connection without an answer".to_owned()),
                    count => came.extend_from_slice(&piece[..count]),
                }
            }
            Err(error) => return Err(format!("its answer is not HTTP: {}", error.as_str())),
        }
    }
}

/// An answer over HTTP/2.
struct Answer {
    status: u16,
    body: Vec<u8>,
    grpc_status: Option<String>,
}

async fn ask_http2(stream: Box<dyn Stream>, request: http::request::Builder, body: Bytes) -> Result<Answer, String> {
    let failed = |error: h2::Error| format!("HTTP/2: {error}");
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let asking = async {
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
        let request = request.body(()).map_err(|error| error.to_string())?;
        let (answer, mut sending) = sender.send_request(request, body.is_empty()).map_err(failed)?;
        if !body.is_empty() {
            sending.send_data(body, true).map_err(failed)?;
        }
        let (head, mut rest) = answer.await.map_err(failed)?.into_parts();
        let grpc = |fields: &http::HeaderMap| Some(fields.get("grpc-status")?.to_str().ok()?.to_owned());
        let mut answer = Answer { status: head.status.as_u16(), body: Vec::new(), grpc_status: grpc(&head.headers) };
        while let Some(data) = rest.data().await {
            let data = data.map_err(failed)?;
            let _ = rest.flow_control().release_capacity(data.len());
            answer.body.extend_from_slice(&data);
            if answer.body.len() > MOST_ANSWER {
                return Ok(answer);
            }
        }
        if let Some(trailers) = rest.trailers().await.map_err(failed)? {
            answer.grpc_status = grpc(&trailers).or(answer.grpc_status);
        }
        Ok(answer)
    };
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        answer = asking => answer,
        ended = &mut connection => Err(ended.map_or_else(failed, |()| "it closed the connection without an answer".to_owned())),
    }
}

/// `HealthCheckRequest { string service = 1; }` behind gRPC's prefix ([health checking protocol]).
///
/// [health checking protocol]: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Whether the answer is `HealthCheckResponse { ServingStatus status = 1; }` with `SERVING`, which is 1.
fn serving(answer: &Answer) -> Result<(), String> {
    match answer.grpc_status.as_deref() {
        _ if answer.status != 200 => return Err(format!("it answered {}", answer.status)),
        Some("0") => {}
        Some("5") => return Err("it does not know the service".to_owned()),
        Some("12") => return Err("it has no health service".to_owned()),
        other => return Err(format!("gRPC status {}", other.unwrap_or("is missing"))),
    }
    let message = answer.body.get(5..).unwrap_or_default();
    match message {
        [0x08, 1, ..] => Ok(()),
        [0x08, 2, ..] => Err("it says that it is not serving".to_owned()),
        [0x08, 3, ..] => Err("it does not know the service".to_owned()),
        _ => Err("it does not say how it is".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_health_is_asked_and_read() {
        assert_eq!(health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(health_request(&"x".repeat(200))[5..8], [0x0a, 0xc8, 1]);
        let answer = |status, body: &[u8], grpc: Option<&str>| {
            serving(&Answer { status, body: body.to_vec(), grpc_status: grpc.map(str::to_owned) })
        };
        assert_eq!(answer(200, &[0, 0, 0, 0, 2, 8, 1], Some("0")), Ok(()));
        for (status, body, grpc) in [
            (200, &[0, 0, 0, 0, 2, 8, 2][..], Some("0")),
            (200, &[0, 0, 0, 0, 0], Some("0")),
            (200, &[], Some("0")),
            (200, &[], Some("5")),
            (200, &[0, 0, 0, 0, 2, 8, 1], None),
            (503, &[0, 0, 0, 0, 2, 8, 1], Some("0")),
        ] {
            assert!(answer(status, body, grpc).is_err(), "{status} {body:?} {grpc:?}");
        }
    }
}
