//! Serves gRPC calls ([gRPC over HTTP/2]) over TLS: one message comes and one goes back, or streams of them.
//!
//! In: a listening socket, TLS that may change with each connection, a service. Out: calls, each
//! with its metadata and where it came from. Promise: connections, calls and bytes are bounded, and
//! so is the time of each step; a client that stalls or floods costs its own connection; a
//! stop lets calls under way end.
//!
//! [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_config::SpiffeId;
use outrigger_identity::peer_id;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::grpc::{GRPC_MESSAGE, GRPC_STATUS, PREFIX};
use crate::stream::{Answering, Ending, GrpcAnswers, GrpcMessages, GrpcOpened};

/// Bytes of a call's headers; a token has 2 KiB at most.
const MAX_HEAD: u32 = 32 << 10;
/// Waits after `accept` failed, for what is short then (descriptors, memory) does not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Handshakes at once. When all clients come again at the same time, the others wait in the backlog: all at once would
/// take so long that none is done in its time.
const HANDSHAKES: usize = 128;
/// Bytes of a stream, and of all streams of a connection, that may come before they are asked for.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;

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
                    let one = Connection { peer, identity: None, service, options, ending: watch::channel(false).0.into() };
                    connections.spawn(one.serve(stream, tls(), closed.clone(), place));
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

/// One client's connection.
#[derive(Clone)]
struct Connection {
    peer: SocketAddr,
    identity: Option<SpiffeId>,
    service: Arc<dyn GrpcService>,
    options: Arc<GrpcServerOptions>,
    /// Its streams are to end.
    ending: Arc<watch::Sender<bool>>,
}

impl Connection {
    async fn serve(
        mut self,
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        mut closed: watch::Receiver<bool>,
        (_place, turn): (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
    ) {
        let Some(tls) = tls else { return };
        // Answers are written whole; waiting for more to send only delays them.
        let _ = stream.set_nodelay(true);
        let handshake = TlsAcceptor::from(tls).accept(stream);
        let stream = match timeout(self.options.handshake_timeout, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(peer = %self.peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
        };
        drop(turn);
        self.identity = peer_id(stream.get_ref().1.peer_certificates());
        let calls = Calls::default();
        let activity = Arc::clone(&calls.activity);
        let one = self.clone();
        let service = service_fn(move |request| {
            let (one, busy) = (one.clone(), activity.begin());
            async move { Ok::<_, Infallible>(one.answer(request, busy).await) }
        });
        let connection = http2::Builder::new(calls.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.options.max_calls)
            .max_header_list_size(MAX_HEAD)
            .max_pending_accept_reset_streams(64)
            .max_send_buf_size(64 << 10)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // A client that vanished is found out.
            .keep_alive_interval(self.options.idle_timeout / 2)
            .keep_alive_timeout(self.options.handshake_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let over = async {
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => {}
                () = tokio::time::sleep(earlier(self.options.max_age)) => {}
                () = calls.activity.idle_for(self.options.idle_timeout) => {}
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return self.told(ended),
            () = over => connection.as_mut().graceful_shutdown(),
        }
        self.ending.send_replace(true);
        // What is under way has a time limit of its own; a client that does not read the answer has none.
        match timeout(self.options.timeout * 2, connection).await {
            Ok(ended) => self.told(ended),
            Err(_) => tracing::debug!(peer = %self.peer, "connection did not end in time"),
        }
    }

    fn told(&self, ended: Result<(), hyper::Error>) {
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, %error, "connection broke");
        }
    }

    async fn answer(&self, request: Request<Incoming>, busy: Busy) -> Response<Answered> {
        if self.service.streams(request.uri().path()) {
            return self.open(request, busy);
        }
        self.answer_one(request).await.map(Either::Left)
    }

    /// Opens a stream, which lasts beyond this call.
    fn open(&self, request: Request<Incoming>, busy: Busy) -> Response<Answered> {
        let (head, body) = request.into_parts();
        if let Err(refused) = is_grpc(&head) {
            return refused.map(Either::Left);
        }
        let messages = GrpcMessages::new(body, self.options.max_request);
        let (method, identity) = (head.uri.path().to_owned(), self.identity.clone());
        let opened = GrpcOpened { method, metadata: head.headers, peer: self.peer, identity, messages };
        match self.service.open(opened) {
            Ok(answers) => {
                let mut ending = self.ending.subscribe();
                let ending: Ending = Box::pin(async move {
                    let _ = ending.wait_for(|ending| *ending).await;
                });
                grpc(Either::Right(Answering::new(answers, ending, busy)))
            }
            Err(status) => Answer::status(&status).map(Either::Left),
        }
    }

    async fn answer_one(&self, request: Request<Incoming>) -> Response<Answer> {
        let limit = self.options.timeout;
        let answered = match timeout(limit, self.exchange(request)).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(refused)) => return refused,
            Err(_) => Err(GrpcStatus::new(GrpcCode::DeadlineExceeded, format!("not answered within {limit:?}"))),
        };
        match answered {
            Ok(message) => Answer::message(&message),
            Err(status) => Answer::status(&status),
        }
    }

    /// The service's answer; an HTTP response where the call is none of gRPC's.
    async fn exchange(&self, request: Request<Incoming>) -> Result<Result<Bytes, GrpcStatus>, Response<Answer>> {
        let (head, body) = request.into_parts();
        is_grpc(&head)?;
        let body = match Limited::new(body, self.options.max_request + PREFIX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let message = format!("the message is larger than {} bytes", self.options.max_request);
                return Ok(Err(GrpcStatus::new(GrpcCode::ResourceExhausted, message)));
            }
            // The client has gone, so nobody reads this.
            Err(_) => return Ok(Err(GrpcStatus::new(GrpcCode::Unavailable, "the message broke off"))),
        };
        let message = match unframed(body) {
            Ok(message) => message,
            Err(status) => return Ok(Err(status)),
        };
        let call = GrpcCall { method: head.uri.path().to_owned(), metadata: head.headers, peer: self.peer, message };
        Ok(self.service.call(call).await)
    }
}

/// An HTTP response where a call is none of gRPC's.
#[expect(clippy::result_large_err, reason = "it is answered right away")]
fn is_grpc(head: &http::request::Parts) -> Result<(), Response<Answer>> {
    if head.method != Method::POST {
        return Err(Answer::http(StatusCode::METHOD_NOT_ALLOWED));
    }
    let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !kind.starts_with(b"application/grpc") {
        return Err(Answer::http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    Ok(())
}

/// A little earlier.
fn earlier(age: Duration) -> Duration {
    let chance = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    age.mul_f64(1.0 - chance / 4.0)
}

/// The one message of a call.
fn unframed(mut body: Bytes) -> Result<Bytes, GrpcStatus> {
    let bad = |message: &str| GrpcStatus::new(GrpcCode::InvalidArgument, message);
    if body.len() < PREFIX {
        return Err(bad("the call holds no message"));
    }
    if body.get_u8() != 0 {
        return Err(GrpcStatus::new(GrpcCode::Unimplemented, "compressed messages are not taken"));
    }
    if body.get_u32() as usize != body.len() {
        return Err(bad("the call is not one whole message"));
    }
    Ok(body)
}

/// What a call is answered with.
type Answered = Either<Answer, Answering>;

fn grpc<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Writes a status into headers or trailers.
pub(crate) fn put_status(status: &GrpcStatus, headers: &mut HeaderMap) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&status.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// A response's body: perhaps a message, and the status behind it.
pub(crate) struct Answer {
    message: Full<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn message(message: &[u8]) -> Response<Self> {
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put_slice(message);
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        grpc(Self { message: Full::new(framed.freeze()), trailers: Some(trailers) })
    }

    fn status(status: &GrpcStatus) -> Response<Self> {
        let mut response = grpc(Self { message: Full::default(), trailers: None });
        put_status(status, response.headers_mut());
        response
    }

    fn http(status: StatusCode) -> Response<Self> {
        let mut response = Response::new(Self { message: Full::default(), trailers: None });
        *response.status_mut() = status;
        response
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match Pin::new(&mut self.message).poll_frame(context) {
            std::task::Poll::Ready(None) => {
                std::task::Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none() && self.message.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.message.size_hint()
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

/// Runs the calls of one connection, and ends them with it.
#[derive(Clone, Default)]
struct Calls {
    tasks: Arc<parking_lot::Mutex<JoinSet<()>>>,
    activity: Arc<Activity>,
}

impl<F> Executor<F> for Calls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// Knows how long nothing has been called.
pub(crate) struct Activity {
    calls: watch::Sender<usize>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { calls: watch::channel(0).0 }
    }
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Busy {
        self.calls.send_modify(|calls| *calls += 1);
        Busy(Arc::clone(self))
    }

    /// Resolves when there has been no call for `span`.
    async fn idle_for(&self, span: Duration) {
        let mut calls = self.calls.subscribe();
        loop {
            // The sender is here.
            let _ = calls.wait_for(|calls| *calls == 0).await;
            if timeout(span, calls.changed()).await.is_err() {
                return;
            }
        }
    }
}

/// A call under way.
pub(crate) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_status_fits_into_a_header() {
        assert_eq!(percent_encoded("plain text, 5"), "plain text, 5");
        assert_eq!(percent_encoded("5% of €\n"), "5%25 of %E2%82%AC%0A");
    }

    #[test]
    fn a_call_is_one_whole_message() {
        let framed = |bytes: &'static [u8]| unframed(Bytes::from_static(bytes));
        assert_eq!(framed(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), Bytes::from_static(&[7, 8]));
        for (name, bytes, code) in [
            ("none", &[][..], GrpcCode::InvalidArgument),
            ("cut", &[0, 0, 0, 0, 2, 7], GrpcCode::InvalidArgument),
            ("compressed", &[1, 0, 0, 0, 1, 7], GrpcCode::Unimplemented),
            ("two", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], GrpcCode::InvalidArgument),
        ] {
            assert_eq!(unframed(Bytes::copy_from_slice(bytes)).unwrap_err().code, code, "{name}");
        }
    }
}
