//! The HTTP/1.1 servers of the admin API and of the health port.
//!
//! In: bound sockets. Out: answered requests. Promise: bounded in connections, in bytes
//! of head and body, and in time; clients that are slow or silent keep nobody else out,
//! for when there are too many connections the oldest goes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::ListenAddress;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::api::Api;
use super::guard;
use super::routes::{AdminBody, AdminResponse, AdminRoutes, AdminStream};
use crate::sockets::{SocketError, Sockets};

/// Connections at a time on each port.
const MOST_CONNECTIONS: usize = 64;
/// Answers at a time that go on until their client leaves.
const MOST_STREAMS: usize = 8;
/// Bytes of a request's head; hyper takes no less.
const MOST_HEAD: usize = 8192 * 2;
const MOST_HEADERS: usize = 64;
/// Bytes of a request's body; only a log level is ever sent.
const MOST_BODY: usize = 1024;
/// Time for a request's head, also for the next one on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure to accept (no file descriptors left) we wait a moment instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a request that is on its way when the process ends may take to come.
const FIRST_REQUEST: Duration = Duration::from_millis(20);
/// How long the last requests may take when the process ends.
const LAST_REQUESTS: Duration = Duration::from_millis(250);

/// Why an endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("admin.listen: {0} can be reached from outside; the admin API listens on loopback or on `unix:/path` only")]
    NotLoopback(SocketAddr),
    #[error("{0}: {1}")]
    Register(&'static str, io::Error),
}

/// Which of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Admin,
    Health,
}

/// Running servers; they end when this is dropped.
pub(crate) struct Servers {
    tasks: JoinSet<()>,
    stop: Closing,
    /// Socket files to remove at the end.
    files: Vec<PathBuf>,
}

/// What all connections know of the end, and of one another.
#[derive(Clone)]
struct Closing {
    token: CancellationToken,
    /// Room for answers that go on.
    streams: Arc<Semaphore>,
}

impl Default for Servers {
    fn default() -> Self {
        let stop = Closing { token: CancellationToken::new(), streams: Arc::new(Semaphore::new(MOST_STREAMS)) };
        Self { tasks: JoinSet::new(), stop, files: Vec::new() }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Cancel-safe.
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

impl Servers {
    /// Opens one endpoint, and serves it.
    pub(crate) fn open(
        &mut self,
        endpoint: Endpoint,
        address: &ListenAddress,
        sockets: &Sockets,
        api: &Arc<Api>,
    ) -> Result<(), BindError> {
        let owner = match endpoint {
            Endpoint::Admin => "admin.listen",
            Endpoint::Health => "admin.health",
        };
        let register = |error| BindError::Register(owner, error);
        let listener = match address {
            ListenAddress::Ip(ip) if endpoint == Endpoint::Admin && !ip.ip().to_canonical().is_loopback() => {
                return Err(BindError::NotLoopback(*ip));
            }
            ListenAddress::Ip(ip) => {
                Listener::Tcp(TcpListener::from_std(sockets.listen_tcp(owner, *ip)?).map_err(register)?)
            }
            ListenAddress::Unix(path) => {
                let socket = sockets.listen_unix(owner, path, 0o600)?;
                self.files.push(path.clone());
                Listener::Unix(UnixListener::from_std(socket).map_err(register)?)
            }
        };
        if let Listener::Tcp(listener) = &listener
            && let Ok(address) = listener.local_addr()
        {
            tracing::debug!(component = "admin", endpoint = owner, %address, "listening");
        }
        self.tasks.spawn(serve(listener, endpoint, Arc::clone(api), self.stop.clone()));
        Ok(())
    }

    /// Accepts no more, and lets requests under way be answered. Files of sockets that the next process has stay.
    pub(crate) async fn close(mut self, handed_over: bool) {
        if handed_over {
            self.files.clear();
        }
        self.stop.token.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Those that take longer are cut off.
        let _ = tokio::time::timeout(LAST_REQUESTS, all).await;
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for file in &self.files {
            // It may be gone already.
            let _ = std::fs::remove_file(file);
        }
    }
}

async fn serve(listener: Listener, endpoint: Endpoint, api: Arc<Api>, closing: Closing) {
    let mut connections = JoinSet::new();
    // By age. The health port is open to the pod's network: were new connections to wait, a few
    // dozen silent ones could keep the kubelet out, and have the application killed.
    let mut handles: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.token.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let accepted = accepted.map(|accepted| {
            let (api, closing) = (Arc::clone(&api), closing.clone());
            match accepted {
                Accepted::Tcp(stream) => {
                    // Only a matter of speed.
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(TokioIo::new(stream), endpoint, true, api, closing))
                }
                Accepted::Unix(stream) => {
                    connections.spawn(connection(TokioIo::new(stream), endpoint, false, api, closing))
                }
            }
        });
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(handle) => {
                handles.retain(|handle| !handle.is_finished());
                handles.push_back(handle);
                if handles.len() > MOST_CONNECTIONS
                    && let Some(oldest) = handles.pop_front()
                {
                    oldest.abort();
                }
            }
            Err(error) => {
                tracing::warn!(component = "admin", %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection; `named` says that it came over TCP, where a host name can lead.
async fn connection<S>(stream: TokioIo<S>, endpoint: Endpoint, named: bool, api: Arc<Api>, closing: Closing)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| {
        let (api, closing) = (Arc::clone(&api), closing.clone());
        async move { Ok::<_, Infallible>(answer(request, endpoint, named, &api, &closing).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MOST_HEAD)
        .max_headers(MOST_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = closing.token.cancelled() => {
            // The first request of a connection that was accepted just now may be on its way.
            match tokio::time::timeout(FIRST_REQUEST, connection.as_mut()).await {
                Ok(served) => served,
                Err(_) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(component = "admin", %error, "connection ended");
    }
}

async fn answer(
    request: Request<Incoming>,
    endpoint: Endpoint,
    named: bool,
    api: &Api,
    closing: &Closing,
) -> Response<Sent> {
    let (head, body) = request.into_parts();
    let foreign = guard::refuse_stream(&head.headers);
    let response = match endpoint {
        Endpoint::Health => api.answer_probe(head).await,
        Endpoint::Admin => match guard::refuse(&head, named) {
            Some((status, why)) => AdminRoutes::text(status, why),
            None => match read_body(&head.method, body).await {
                Ok(body) => api.answer(head, body).await,
                Err(refusal) => refusal,
            },
        },
    };
    finish(response, foreign, closing)
}

async fn read_body(method: &Method, body: Incoming) -> Result<Bytes, AdminResponse> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(Bytes::new());
    }
    let whole = Limited::new(body, MOST_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(_)) => Err(AdminRoutes::text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or broken\n")),
        Err(_) => Err(AdminRoutes::text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n")),
    }
}

fn finish(response: AdminResponse, foreign: bool, closing: &Closing) -> Response<Sent> {
    let (mut head, body) = response.into_parts();
    let body = match body {
        AdminBody::Whole(bytes) => Sent::Whole(bytes),
        AdminBody::Stream(_) if foreign => {
            return finish(AdminRoutes::text(StatusCode::FORBIDDEN, "not for pages of other sites\n"), false, closing);
        }
        AdminBody::Stream(stream) => match Arc::clone(&closing.streams).try_acquire_owned() {
            Ok(place) => {
                Sent::Stream { stream, closed: Box::pin(closing.token.clone().cancelled_owned()), _place: place }
            }
            Err(_) => {
                let text = format!("{MOST_STREAMS} clients are being told things already; end one of them\n");
                return finish(AdminRoutes::text(StatusCode::SERVICE_UNAVAILABLE, text), false, closing);
            }
        },
    };
    head.headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    head.headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Response::from_parts(head, body)
}

/// An answer's body as it is sent; one that goes on ends in order when the process stops.
enum Sent {
    Whole(Bytes),
    Stream { stream: AdminStream, closed: Pin<Box<WaitForCancellationFutureOwned>>, _place: OwnedSemaphorePermit },
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { stream, closed, .. } => match closed.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => stream(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_that_go_on_are_few_and_end_with_the_process() {
        let servers = Servers::default();
        let open = |foreign| finish(AdminRoutes::stream("text/plain", |_| Poll::Pending), foreign, &servers.stop);
        assert_eq!(open(true).status(), StatusCode::FORBIDDEN);
        let mut all: Vec<_> = (0..MOST_STREAMS).map(|_| open(false)).collect();
        assert!(all.iter().all(|one| one.status() == StatusCode::OK));
        assert_eq!(open(false).status(), StatusCode::SERVICE_UNAVAILABLE);
        let mut last = all.pop().unwrap();
        assert_eq!(open(false).status(), StatusCode::SERVICE_UNAVAILABLE, "it is still being told things");
        all.pop();
        assert_eq!(open(false).status(), StatusCode::OK, "one has left");
        servers.stop.token.cancel();
        assert!(last.body_mut().frame().await.is_none(), "in order, when the process stops");
    }
}
