//! Serves HTTP/1.1 over TLS: one whole request comes, one whole answer goes back.
//!
//! In: a listening socket, TLS that may change with each connection, a service. Out: requests with their bodies. Promise:
//! connections, requests at once and bytes are bounded, and so is the time of each step; a body that is too large is
//! refused before it is read; what waits for its turn waits unread; a stop lets requests under way end.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::server::TlsSource;

/// Room for the head of a request.
const MAX_HEAD: usize = 32 << 10;
/// Waits after `accept` failed, for what is short then (descriptors, memory) does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What bounds a server.
#[derive(Debug, Clone)]
pub struct HttpsOptions {
    /// Connections at once; more of them wait in the kernel's backlog.
    pub max_connections: usize,
    /// Requests at once; the bodies of others are not read yet.
    pub max_requests: usize,
    /// Bytes of a body.
    pub max_body: usize,
    /// Time for the TLS handshake, and for the head of a request.
    pub handshake_timeout: Duration,
    /// Time for a request, from its head to the answer, its turn included.
    pub timeout: Duration,
}

/// An answer on its way.
pub type HttpAnswer<'a> = Pin<Box<dyn Future<Output = Response<Bytes>> + Send + 'a>>;

/// Answers requests.
pub trait HttpService: Send + Sync + 'static {
    /// Answers one request. It is dropped when the client has gone, or the time is up.
    fn call(&self, request: Request<Bytes>, peer: SocketAddr) -> HttpAnswer<'_>;

    /// One was refused before it came here, with this status.
    fn refused(&self, status: StatusCode) {
        let _ = status;
    }
}

/// Serves until `stop` resolves, and then the requests under way. Connections for which `tls` has no config are closed.
pub async fn serve_https(
    listener: TcpListener,
    tls: TlsSource,
    service: Arc<dyn HttpService>,
    options: HttpsOptions,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(options.max_connections.max(1)));
    let server =
        Server { service, turns: Arc::new(Semaphore::new(options.max_requests.max(1))), options: options.into() };
    let (closing, closed) = tokio::sync::watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            // Never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut stop => break,
            (place, accepted) = next => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(server.clone().serve(stream, peer, tls(), closed.clone(), place));
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

#[derive(Clone)]
struct Server {
    service: Arc<dyn HttpService>,
    turns: Arc<Semaphore>,
    options: Arc<HttpsOptions>,
}

impl Server {
    async fn serve(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        mut closed: tokio::sync::watch::Receiver<bool>,
        _place: Option<OwnedSemaphorePermit>,
    ) {
        let Some(tls) = tls else { return };
        // Answers are written whole; waiting for more to send only delays them.
        let _ = stream.set_nodelay(true);
        let stream = match timeout(self.options.handshake_timeout, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
        };
        let limit = self.options.timeout;
        let handshake_timeout = self.options.handshake_timeout;
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(request, peer).await.map(Full::new)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Also how long a connection may rest; the clients here make a new one without a fault.
            .header_read_timeout(handshake_timeout.max(Duration::from_secs(60)))
            .max_buf_size(MAX_HEAD.max(8192))
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let over = async {
            let _ = closed.wait_for(|closed| *closed).await;
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = over => {
                connection.as_mut().graceful_shutdown();
                match timeout(limit * 2, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return tracing::debug!(%peer, "connection did not end in time"),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Bytes> {
        let limit = self.options.timeout;
        match timeout(limit, self.exchange(request, peer)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err((status, text))) => self.refuse(status, text),
            Err(_) => self.refuse(StatusCode::SERVICE_UNAVAILABLE, format!("not answered within {limit:?}")),
        }
    }

    async fn exchange(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Bytes>, (StatusCode, String)> {
        let most = self.options.max_body;
        let too_large = || (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most} bytes"));
        if request.body().size_hint().lower() > most as u64 {
            return Err(too_large());
        }
        // Never closed.
        let _turn = self.turns.acquire().await.ok();
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, most).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            // The client has gone, so nobody reads this.
            Err(_) => return Err((StatusCode::BAD_REQUEST, "the body broke off".to_owned())),
        };
        Ok(self.service.call(Request::from_parts(head, body), peer).await)
    }

    fn refuse(&self, status: StatusCode, text: String) -> Response<Bytes> {
        self.service.refused(status);
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
