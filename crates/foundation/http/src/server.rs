//! Serves gRPC calls ([gRPC over HTTP/2]) over TLS: one message comes and one goes back, or streams of them.
//!
//! In: a listening socket, TLS that may change with each connection, a service. Out: calls, each
//! with its metadata and where it came from. Promise: connections, calls and bytes are bounded, and
//! so is the time of each step; a client that stalls or floods costs its own connection; a
//! stop lets calls under way end.
//!
//! [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use outrigger_identity::peer_id;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::connection::{Caller, serve_connection};
use crate::grpc::{GRPC_MESSAGE, GRPC_STATUS};
use crate::stream::{GrpcAnswers, GrpcOpened};

/// Waits after `accept` failed, for what is short then (descriptors, memory) does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Handshakes at once. When all clients come again at the same time, the others wait in the backlog: all at once would
/// take so long that none is done in its time.
const HANDSHAKES: usize = 128;

/// What bounds a server.
#[derive(Debug, Clone)]
pub struct GrpcServerOptions {
    /// Connections at once; more of them wait in the kernel's backlog.
    pub max_connections: usize,
    /// Calls at once on one connection.
    pub max_calls: u32,
    /// Bytes of a message.
    pub max_request: usize,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time for a call, from its headers to the answer.
    pub timeout: Duration,
    /// A connection in which nothing was called for so long is closed.
    pub idle_timeout: Duration,
    /// A connection that is older gets no more calls, and its streams end, so that clients spread over servers again; up to
    /// a quarter of it earlier, so that not all come at once.
    pub max_age: Duration,
}

impl Default for GrpcServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_calls: 100,
            max_request: 64 << 10,
            handshake_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            max_age: Duration::from_secs(1800),
        }
    }
}

/// A call that came.
#[derive(Debug)]
pub struct GrpcCall {
    /// The method, such as `/package.Service/Method`.
    pub method: String,
    /// What the client sent beside the message.
    pub metadata: HeaderMap,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The message.
    pub message: Bytes,
}

/// Why a call has no answer: a [status code] and what is said of it.
///
/// [status code]: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcStatus {
    /// Which.
    pub code: GrpcCode,
    /// For the client's eyes.
    pub message: String,
}

/// The codes that services of the house answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrpcCode {
    /// The request is no good, whoever asks.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// Not for this caller.
    PermissionDenied = 7,
    /// Too often, or too much.
    ResourceExhausted = 8,
    /// There is no such method.
    Unimplemented = 12,
    /// A fault of ours.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
    /// Nobody knows who the caller is.
    Unauthenticated = 16,
}

impl GrpcStatus {
    /// A status.
    pub fn new(code: GrpcCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// An answer on its way.
pub type GrpcAnswer<'a> = Pin<Box<dyn Future<Output = Result<Bytes, GrpcStatus>> + Send + 'a>>;

/// Answers calls.
pub trait GrpcService: Send + Sync + 'static {
    /// Answers one call. It is dropped when the client has gone, or the time is up.
    fn call(&self, call: GrpcCall) -> GrpcAnswer<'_>;

    /// Whether a method is one of streams.
    fn streams(&self, _method: &str) -> bool {
        false
    }

    /// Opens a stream. What it gives is dropped when the client has gone.
    ///
    /// # Errors
    /// Why it is not opened.
    fn open(&self, _opened: GrpcOpened) -> Result<Box<dyn GrpcAnswers>, GrpcStatus> {
        Err(GrpcStatus::new(GrpcCode::Unimplemented, "there are no streams here"))
    }
}

/// Gives the TLS config that new connections are to have.
pub type TlsSource = Arc<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Serves until `stop` resolves, and then the calls under way. Connections for which `tls` has no config are closed.
pub async fn serve_grpc(
    listener: TcpListener,
    tls: TlsSource,
    service: Arc<dyn GrpcService>,
    options: GrpcServerOptions,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(options.max_connections.max(1)));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let options = Arc::new(options);
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            // Never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            let turn = Arc::clone(&handshakes).acquire_owned().await.ok();
            ((place, turn), listener.accept().await)
        };
        tokio::select! {
            () = &mut stop => break,
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    let (service, options) = (Arc::clone(&service), Arc::clone(&options));
                    let caller = Caller { peer, identity: None, service, options };
                    connections.spawn(serve(stream, tls(), caller, closed.clone(), place));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    closing.send_replace(true);
    while connections.join_next().await.is_some() {}
}

/// Serves a client from its TLS handshake on.
async fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    mut caller: Caller,
    closed: watch::Receiver<bool>,
    (_place, turn): (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
) {
    let Some(tls) = tls else { return };
    // Answers are written whole; waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    // On the heap, so that what a handshake needs is not kept for as long as the connection lasts.
    let handshake = Box::pin(timeout(caller.options.handshake_timeout, TlsAcceptor::from(tls).accept(stream)));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(peer = %caller.peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(peer = %caller.peer, "TLS handshake took too long"),
    };
    drop(turn);
    let peer = caller.peer;
    caller.identity = peer_id(stream.get_ref().1.peer_certificates());
    if let Err(error) = serve_connection(stream, caller, closed).await {
        tracing::debug!(%peer, %error, "connection broke");
    }
}

/// Writes a status into headers or trailers.
pub(crate) fn put_status(status: &GrpcStatus, headers: &mut HeaderMap) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&status.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// A text as `grpc-message` carries it: what is not printable ASCII, and `%` itself, by its bytes.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_status_fits_into_a_header() {
        assert_eq!(percent_encoded("plain text, 5"), "plain text, 5");
        assert_eq!(percent_encoded("5% of €\n"), "5%25 of %E2%82%AC%0A");
    }
}
