//! gRPC calls ([gRPC over HTTP/2]): one message there, one back, or streams of them both ways.
//!
//! In: a server's URL or its unix socket, a method's path, encoded messages. Out: encoded answers, or the
//! status with what the server said of it. Promise: as the client's: every wait ends, an
//! answer has a bound, no error shows metadata. Calls share one connection, which is made
//! when the first one needs it.
//!
//! [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connect;
use crate::error::{Failure, HttpError, Stage};
use crate::open::{GrpcReceiver, GrpcSender, Outgoing};
use crate::resolver::Resolver;
use crate::target::{self, Target};

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Bytes of an answer's headers, and so of what a server says of a failure.
const MAX_HEAD: u32 = 16 << 10;
/// Bytes before each message: whether it is compressed, and its length.
pub(crate) const PREFIX: usize = 5;

/// What bounds calls.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// TLS for `https` URLs; `None` means the public authorities.
    pub tls: Option<Arc<ClientConfig>>,
    /// Time to connect, TLS handshake included.
    pub connect_timeout: Duration,
    /// Time for the whole call. The server is told (`grpc-timeout`).
    pub timeout: Duration,
    /// Bytes of an answer.
    pub max_response: usize,
    /// A connection on which nothing came for so long is asked whether it still is one; streams need that.
    pub keep_alive: Option<Duration>,
}

impl Default for GrpcOptions {
    fn default() -> Self {
        Self {
            tls: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            max_response: 4 << 20,
            keep_alive: None,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GrpcError {
    /// There was no answer, or it was not gRPC's.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server answered with a status other than OK.
    #[error("{method}: gRPC status {}{}", status_name(*code), told(message))]
    Status {
        /// The method that was called.
        method: String,
        /// The [status code].
        ///
        /// [status code]: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
        code: u32,
        /// What the server said of it, without control characters; whole, so that it can be masked before it is cut.
        message: String,
    },
}

impl GrpcError {
    /// Whether the same call may succeed at another time.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Http(error) => error.retryable(),
            // CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
            Self::Status { code, .. } => matches!(code, 1 | 4 | 8 | 10 | 11 | 14 | 15),
        }
    }
}

fn told(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// A status code's name.
fn status_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code)
        .ok()
        .and_then(|code| NAMES.get(code))
        .map_or_else(|| code.to_string(), |&name| name.to_owned())
}

/// A client of one server. Costs nothing before the first call.
pub struct GrpcClient {
    options: GrpcOptions,
    server: Server,
    connection: tokio::sync::Mutex<Option<SendRequest<Sent>>>,
    /// Drives the connection and what hyper starts for it; dropped with the client.
    drivers: Drivers,
}

/// Where a server is.
enum Server {
    Url(Uri, Resolver),
    Socket(PathBuf),
}

impl GrpcClient {
    /// A client of the server at an absolute URL, whose path is not used.
    pub fn new(server: Uri, options: GrpcOptions, resolver: Resolver) -> Self {
        Self::of(Server::Url(server, resolver), options)
    }

    /// A client of the server at a unix socket of this machine, without TLS.
    pub fn on_socket(path: PathBuf, options: GrpcOptions) -> Self {
        Self::of(Server::Socket(path), options)
    }

    fn of(server: Server, options: GrpcOptions) -> Self {
        Self { options, server, connection: tokio::sync::Mutex::default(), drivers: Drivers::default() }
    }

    /// Calls a method, such as `/package.Service/Method`. Cancel-safe: the server may have seen the call or not.
    ///
    /// # Errors
    /// See [`GrpcError`].
    pub async fn call(&self, method: &str, metadata: &HeaderMap, message: &[u8]) -> Result<Bytes, GrpcError> {
        let failed = |failure: Failure| HttpError::new(&Method::POST, &format!("{}{method}", self.shown()), failure);
        let limit = self.options.timeout;
        let response = match timeout(limit, self.exchange(method, metadata, message)).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => {
                // It may be the connection's fault, as when its other end has vanished.
                *self.connection.lock().await = None;
                let detail = format!("not finished within {limit:?}");
                return Err(failed(Failure { stage: Stage::Timeout, detail, retryable: true, sent: true }).into());
            }
        };
        let Answer { code, said, body } = response;
        if code != 0 {
            return Err(GrpcError::Status { method: method.to_owned(), code, message: said });
        }
        Ok(unframed(body).map_err(failed)?)
    }

    /// Opens a stream of messages in both directions, and connects for it when there is no connection. Whether the server takes
    /// the stream is told where its messages are. Cancel-safe.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn open(&self, method: &str, metadata: &HeaderMap) -> Result<(GrpcSender, GrpcReceiver), GrpcError> {
        let failed = |failure: Failure| HttpError::new(&Method::POST, &format!("{}{method}", self.shown()), failure);
        let opening = async {
            let (sender, body) = GrpcSender::new();
            let request = self.request(method, metadata, Either::Right(body))?;
            let mut connection = self.connected().await?;
            let url = format!("{}{method}", self.shown());
            // The request goes now; nobody has to wait for the answer for that.
            let sending = connection.send_request(request);
            let response = Box::pin(async move { sending.await.map_err(|error| lost(&error)) });
            Ok((sender, GrpcReceiver::new(method, url, response, self.options.max_response)))
        };
        Ok(opening.await.map_err(failed)?)
    }

    fn shown(&self) -> String {
        match &self.server {
            Server::Url(url, _) => target::shown(url).trim_end_matches('/').to_owned(),
            Server::Socket(path) => format!("unix://{}:", path.display()),
        }
    }

    async fn exchange(&self, method: &str, metadata: &HeaderMap, message: &[u8]) -> Result<Answer, Failure> {
        let mut request = self.request(method, metadata, Either::Left(Full::new(framed(message)?)))?;
        // At most eight digits.
        let millis = self.options.timeout.as_millis().clamp(1, 99_999_999);
        if let Ok(told) = HeaderValue::try_from(format!("{millis}m")) {
            request.headers_mut().insert(HeaderName::from_static("grpc-timeout"), told);
        }
        let mut sender = self.connected().await?;
        let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
        let (head, body) = response.into_parts();
        // A refusal without a body has its status among the headers.
        if let Some(code) = status(&head.headers) {
            return Ok(Answer { code, said: said(&head.headers), body: Bytes::new() });
        }
        if head.status != StatusCode::OK {
            let detail = format!("the server answered {} without a gRPC status", head.status);
            return Err(Failure::after_sending(Stage::Receive, detail, of_http(head.status)));
        }
        if !head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return Err(Failure::after_sending(Stage::Receive, "the server does not speak gRPC", false));
        }
        let whole = Limited::new(body, self.options.max_response + PREFIX).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let detail = format!("the answer is larger than {} bytes", self.options.max_response);
                return Failure::after_sending(Stage::Receive, detail, false);
            }
            Failure::after_sending(Stage::Receive, error.to_string(), true)
        })?;
        let trailers = whole.trailers().cloned().unwrap_or_default();
        let code = status(&trailers)
            .ok_or_else(|| Failure::after_sending(Stage::Receive, "the answer ended without a gRPC status", true))?;
        Ok(Answer { code, said: said(&trailers), body: whole.to_bytes() })
    }

    fn request(&self, method: &str, metadata: &HeaderMap, body: Sent) -> Result<Request<Sent>, Failure> {
        let bad = |detail: &str| Failure::for_good(Stage::Request, detail);
        let mut uri = http::uri::Parts::default();
        match &self.server {
            Server::Url(url, _) => {
                uri.scheme = Some(if Target::of(url)?.tls { Scheme::HTTPS } else { Scheme::HTTP });
                uri.authority = Some(url.authority().cloned().ok_or_else(|| bad("the URL names no host"))?);
            }
            // As gRPC's own clients call servers at sockets.
            Server::Socket(_) => {
                uri.scheme = Some(Scheme::HTTP);
                uri.authority = Some(Authority::from_static("localhost"));
            }
        }
        uri.path_and_query =
            Some(PathAndQuery::try_from(method).map_err(|_| bad("the method is not the path of one"))?);
        let uri = Uri::from_parts(uri).map_err(|error| bad(&error.to_string()))?;
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.extend(metadata.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("outrigger/", env!("CARGO_PKG_VERSION"))));
        Ok(request)
    }

    /// The connection, made when there is none.
    async fn connected(&self) -> Result<SendRequest<Sent>, Failure> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.as_mut()
            && sender.ready().await.is_ok()
        {
            return Ok(sender.clone());
        }
        let limit = self.options.connect_timeout;
        let made = timeout(limit, self.connect()).await;
        let sender = made.unwrap_or_else(|_| {
            let detail = format!("no connection within {limit:?}");
            Err(Failure::before_sending(Stage::Connect, detail))
        })?;
        *connection = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Sent>, Failure> {
        let (url, resolver) = match &self.server {
            Server::Url(url, resolver) => (url, resolver),
            Server::Socket(path) => return self.start(connect::unix(path).await?).await,
        };
        let target = Target::of(url)?;
        let resolved = resolver.resolve(&target.host).await;
        let resolved = resolved.map_err(|error| Failure {
            stage: Stage::Resolve,
            detail: error.to_string(),
            retryable: error.retryable(),
            sent: false,
        })?;
        let stream = connect::tcp(&resolved.addresses, target.port).await?;
        if !target.tls {
            return self.start(stream).await;
        }
        let config = match &self.options.tls {
            Some(config) => Arc::clone(config),
            None => outrigger_identity::public_client_config()
                .map_err(|error| Failure::for_good(Stage::Tls, error.to_string()))?,
        };
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = connect::tls(stream, &target, Arc::new(config)).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(Failure::for_good(Stage::Tls, "the server does not speak HTTP/2, which gRPC needs"));
        }
        self.start(stream).await
    }

    async fn start<S>(&self, stream: S) -> Result<SendRequest<Sent>, Failure>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http2::Builder::new(self.drivers.clone());
        builder
            .max_header_list_size(MAX_HEAD)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(256 << 10);
        if let Some(every) = self.options.keep_alive {
            let answer = self.options.connect_timeout;
            builder.timer(TokioTimer::new()).keep_alive_interval(every).keep_alive_timeout(answer);
        }
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::before_sending(Stage::Connect, error.to_string()))?;
        self.drivers.own(async move {
            // What goes wrong is told to the calls that it hits.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// A request's body: one message, or many.
pub(crate) type Sent = Either<Full<Bytes>, Outgoing>;

/// A message with its prefix.
pub(crate) fn framed(message: &[u8]) -> Result<Bytes, Failure> {
    let length = u32::try_from(message.len())
        .map_err(|_| Failure::for_good(Stage::Request, "the message is larger than 4 GiB"))?;
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    Ok(framed.freeze())
}

/// What a server answered.
struct Answer {
    code: u32,
    said: String,
    body: Bytes,
}

/// The one message of an answer.
fn unframed(mut body: Bytes) -> Result<Bytes, Failure> {
    let bad = |detail: &str| Failure::after_sending(Stage::Receive, detail, false);
    if body.len() < PREFIX {
        return Err(bad("the answer holds no message"));
    }
    if body.get_u8() != 0 {
        return Err(bad("the answer is compressed, which was not offered"));
    }
    if body.get_u32() as usize != body.len() {
        return Err(bad("the answer is not one whole message"));
    }
    Ok(body)
}

pub(crate) fn status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// What a server says of a status: percent-encoded UTF-8, which may hold anything.
pub(crate) fn said(headers: &HeaderMap) -> String {
    let raw = headers.get(GRPC_MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let mut decoded = Vec::new();
    let mut rest = raw;
    while let Some((byte, after)) = rest.split_first() {
        let escape = (*byte == b'%').then(|| after.get(..2)).flatten();
        let value = escape.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        match value {
            Some(value) => {
                decoded.push(value);
                rest = &after[2..];
            }
            None => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    let text = String::from_utf8_lossy(&decoded);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether a server that answers so may answer otherwise later.
pub(crate) fn of_http(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn lost(error: &hyper::Error) -> Failure {
    let detail = match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    Failure::after_sending(Stage::Receive, detail, true)
}

/// Owns the tasks of a connection.
#[derive(Clone, Default)]
struct Drivers(Arc<Mutex<JoinSet<()>>>);

impl Drivers {
    fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

impl<F> hyper::rt::Executor<F> for Drivers
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.own(task);
    }
}

impl Drop for GrpcClient {
    fn drop(&mut self) {
        // Tasks hold their owner, which they must not keep alive.
        self.drivers.0.lock().abort_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_decoded_and_made_fit_to_be_shown() {
        let say = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_MESSAGE, HeaderValue::from_static(text));
            said(&headers)
        };
        assert_eq!(say("plain"), "plain");
        assert_eq!(say("%E2%82%AC 5%, 100%"), "€ 5%, 100%");
        assert_eq!(say("a%0A%1bb"), "a  b");
        assert_eq!(said(&HeaderMap::new()), "");
    }

    #[test]
    fn an_answer_is_one_whole_message() {
        let framed = |bytes: &'static [u8]| unframed(Bytes::from_static(bytes));
        assert_eq!(framed(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), Bytes::from_static(&[7, 8]));
        assert_eq!(framed(&[0, 0, 0, 0, 0]).unwrap(), Bytes::new());
        for (name, bytes) in [
            ("none", &[][..]),
            ("cut", &[0, 0, 0, 0, 2, 7]),
            ("compressed", &[1, 0, 0, 0, 1, 7]),
            ("two", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert!(unframed(Bytes::copy_from_slice(bytes)).is_err(), "{name}");
        }
    }
}
