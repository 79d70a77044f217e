//! The client: one request, one response, whatever happens in between.
//!
//! In: a request with an absolute URI and its whole body. Out: the response with its whole
//! body, or as it comes in; any status; redirects are not followed. Promise: it ends within its time, holds no
//! more than its limit, and sends a request a second time only if the first cannot have
//! been seen, or may be seen twice.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::connect;
use crate::error::{Failure, HttpError, Stage};
use crate::pool::{Connection, Pool};
use crate::resolver::Resolver;
use crate::target::{self, Target};

/// Room for the head of a response.
const MAX_HEAD: usize = 64 << 10;
/// How long a connection may take to become ready again after a response; it normally is at once.
const SETTLE: Duration = Duration::from_millis(100);

/// What bounds a client.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// TLS for `https` URLs; `None` means the public authorities.
    pub tls: Option<Arc<ClientConfig>>,
    /// Time to connect, TLS handshake included.
    pub connect_timeout: Duration,
    /// Time for the whole request, from the name's resolution to the body's last byte.
    pub timeout: Duration,
    /// Bytes of a response's body; beyond it the request fails.
    pub max_response: usize,
    /// Connections that may rest per server; 0 closes each after its response.
    pub max_idle: usize,
    /// How long a connection may rest. Shorter than most servers' own patience, so that we are the ones to close.
    pub idle_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            tls: None,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            max_response: 16 << 20,
            max_idle: 2,
            idle_timeout: Duration::from_secs(50),
        }
    }
}

/// An HTTP/1.1 client. Cheap to clone; clones share connections. Costs nothing before the first request.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    options: ClientOptions,
    resolver: Resolver,
    pool: Pool,
    public_tls: OnceLock<Arc<ClientConfig>>,
}

impl Client {
    /// A client within these bounds.
    pub fn new(options: ClientOptions, resolver: Resolver) -> Self {
        let pool = Pool::new(options.max_idle, options.idle_timeout);
        Self(Arc::new(Inner { options, resolver, pool, public_tls: OnceLock::new() }))
    }

    /// Sends a request with an absolute URI and returns the response with its whole body, whatever its status.
    ///
    /// Sets `Host`, `User-Agent` and `Content-Length`. Cancel-safe: the request may have been seen by the server or not.
    ///
    /// # Errors
    /// See [`HttpError`]; a status is never an error.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let method = request.method().clone();
        let url = target::shown(request.uri());
        let progress = Progress::default();
        let limit = self.0.options.timeout;
        let result = match timeout(limit, self.0.exchange(request, &progress)).await {
            Ok(result) => result,
            Err(_) => Err(progress.overtime(limit)),
        };
        result.map_err(|failure| HttpError::new(&method, &url, failure))
    }

    /// Sends a request on a connection of its own and returns as soon as the response's head is there; the body comes in
    /// pieces, for as long as the server likes. Cancel-safe as [`Client::send`] is.
    ///
    /// # Errors
    /// See [`HttpError`]; a status is never an error.
    pub async fn open(&self, request: Request<Bytes>) -> Result<Streamed, HttpError> {
        let method = request.method().clone();
        let url = target::shown(request.uri());
        let progress = Progress::default();
        let limit = self.0.options.timeout;
        let result = match timeout(limit, self.0.opened(request, &progress)).await {
            Ok(result) => result,
            Err(_) => Err(progress.overtime(limit)),
        };
        let (head, connection) = result.map_err(|failure| HttpError::new(&method, &url, failure))?;
        Ok(Streamed { head, _connection: connection, client: self.clone(), method, url })
    }
}

/// A response whose body is read as it comes. Its connection ends with it.
pub struct Streamed {
    head: Response<Incoming>,
    _connection: Connection,
    client: Client,
    method: Method,
    url: String,
}

impl Streamed {
    /// Its status.
    pub fn status(&self) -> http::StatusCode {
        self.head.status()
    }

    /// Its header fields.
    pub fn headers(&self) -> &http::HeaderMap {
        self.head.headers()
    }

    /// The next piece; `None` at the end. There is no limit of time. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, HttpError> {
        while let Some(frame) = self.head.body_mut().frame().await {
            let frame = frame.map_err(|error| HttpError::new(&self.method, &self.url, broken(&error)))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The whole body, within the client's limits.
    ///
    /// # Errors
    /// When it does not end in time, is too large, or breaks off.
    pub async fn whole(self) -> Result<Bytes, HttpError> {
        let limit = self.client.0.options.timeout;
        let whole = match timeout(limit, self.client.0.collect(self.head.into_body())).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("the response's body was not whole within {limit:?}");
                Err(Failure { stage: Stage::Timeout, detail, retryable: true, sent: true })
            }
        };
        whole.map_err(|failure| HttpError::new(&self.method, &self.url, failure))
    }
}

impl Inner {
    async fn opened(
        &self,
        request: Request<Bytes>,
        progress: &Progress,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let target = Target::of(request.uri())?;
        let request = target::prepare(request, &target)?;
        let mut connection = self.connect(&target, progress).await?;
        progress.enter(Stage::Receive);
        let head = connection.sender.send_request(request).await.map_err(|error| Lost::on_request(error).failure)?;
        Ok((head, connection))
    }

    async fn exchange(&self, request: Request<Bytes>, progress: &Progress) -> Result<Response<Bytes>, Failure> {
        let target = Target::of(request.uri())?;
        let request = target::prepare(request, &target)?;
        if let Some(connection) = self.pool.take(&target) {
            match self.round_trip(&target, connection, request.clone(), progress).await {
                Err(lost) if lost.repeatable(request.method()) => {}
                result => return result.map_err(|lost| lost.failure),
            }
        }
        let connection = self.connect(&target, progress).await?;
        self.round_trip(&target, connection, request, progress).await.map_err(|lost| lost.failure)
    }

    async fn connect(&self, target: &Target, progress: &Progress) -> Result<Connection, Failure> {
        progress.enter(Stage::Resolve);
        let resolved = self.resolver.resolve(&target.host).await;
        let resolved = resolved.map_err(|error| Failure {
            stage: Stage::Resolve,
            detail: error.to_string(),
            retryable: error.retryable(),
            sent: false,
        })?;
        progress.enter(Stage::Connect);
        let limit = self.options.connect_timeout;
        let opening = async {
            let stream = connect::tcp(&resolved.addresses, target.port).await?;
            if !target.tls {
                return self.start(stream).await;
            }
            progress.enter(Stage::Tls);
            let stream = connect::tls(stream, target, self.tls()?).await?;
            self.start(stream).await
        };
        match timeout(limit, opening).await {
            Ok(connection) => connection,
            Err(_) if progress.stage() == Stage::Tls => {
                Err(Failure::before_sending(Stage::Tls, format!("no TLS handshake within {limit:?}")))
            }
            Err(_) => {
                let addresses = &resolved.addresses;
                let first = addresses.first().map(|address| format!(" by {address}")).unwrap_or_default();
                let others = if addresses.len() > 1 { " or its other addresses" } else { "" };
                let detail = format!("no connection accepted{first}{others} within {limit:?}");
                Err(Failure::before_sending(Stage::Connect, detail))
            }
        }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, Failure> {
        if let Some(config) = self.options.tls.as_ref().or(self.public_tls.get()) {
            return Ok(config.clone());
        }
        let config = outrigger_identity::public_client_config();
        let config = config.map_err(|error| Failure::for_good(Stage::Tls, error.to_string()))?;
        Ok(self.public_tls.get_or_init(|| config).clone())
    }

    async fn start<S>(&self, stream: S) -> Result<Connection, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http1::Builder::new();
        let handshake = builder.max_buf_size(MAX_HEAD).max_header_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|error| Failure::before_sending(Stage::Connect, error.to_string()))?;
        Ok(self.pool.drive(sender, connection))
    }

    async fn round_trip(
        &self,
        target: &Target,
        mut connection: Connection,
        request: Request<Full<Bytes>>,
        progress: &Progress,
    ) -> Result<Response<Bytes>, Lost> {
        progress.enter(Stage::Receive);
        let response = connection.sender.send_request(request).await.map_err(Lost::on_request)?;
        let (head, body) = response.into_parts();
        let body = self.collect(body).await.map_err(Lost::for_good)?;
        // So that the next request finds it, not a connection that is about to be ready.
        if let Ok(Ok(())) = timeout(SETTLE, connection.sender.ready()).await {
            self.pool.put(target, connection);
        }
        Ok(Response::from_parts(head, body))
    }

    async fn collect(&self, mut body: Incoming) -> Result<Bytes, Failure> {
        let limit = self.options.max_response;
        let too_large = || {
            let detail = format!("the response's body is larger than {limit} bytes");
            Failure::after_sending(Stage::Receive, detail, false)
        };
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut collected = Collected::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            if collected.len() + data.len() > limit {
                return Err(too_large());
            }
            collected.push(data);
        }
        Ok(collected.into_bytes())
    }
}

/// A body as it comes in; a body of one piece is never copied.
#[derive(Default)]
struct Collected {
    first: Bytes,
    all: BytesMut,
}

impl Collected {
    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn push(&mut self, data: Bytes) {
        if self.len() == 0 {
            self.first = data;
        } else {
            let first = std::mem::take(&mut self.first);
            self.all.extend_from_slice(&first);
            self.all.extend_from_slice(&data);
        }
    }

    fn into_bytes(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}

/// A request that a connection did not answer.
struct Lost {
    failure: Failure,
    /// What a connection that the server has closed while it rested looks like.
    closed: bool,
}

impl Lost {
    fn on_request(error: hyper::Error) -> Self {
        let unsent = error.is_canceled() || error.is_closed();
        let closed = unsent || error.is_incomplete_message() || is_reset(&error);
        let failure = if unsent {
            Failure::before_sending(Stage::Send, "the connection was closed before the request was sent")
        } else if error.is_user() {
            Failure::for_good(Stage::Request, text(&error))
        } else {
            broken(&error)
        };
        Self { failure, closed }
    }

    fn for_good(failure: Failure) -> Self {
        Self { failure, closed: false }
    }

    /// Whether the request may go out again on another connection.
    fn repeatable(&self, method: &Method) -> bool {
        self.closed && (!self.failure.sent || target::is_idempotent(method))
    }
}

fn io_kind(error: &hyper::Error) -> Option<std::io::ErrorKind> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

fn is_reset(error: &hyper::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(
        io_kind(error),
        Some(K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted | K::NotConnected | K::UnexpectedEof)
    )
}

fn broken(error: &hyper::Error) -> Failure {
    if error.is_parse_too_large() {
        let detail = format!("the response's head is larger than {MAX_HEAD} bytes or has too many headers");
        return Failure::after_sending(Stage::Receive, detail, false);
    }
    if error.is_parse() {
        return Failure::after_sending(Stage::Receive, "the response is not HTTP/1.1", false);
    }
    if error.is_incomplete_message() || io_kind(error) == Some(std::io::ErrorKind::UnexpectedEof) {
        let detail = "the server closed the connection before its response was whole";
        return Failure::after_sending(Stage::Receive, detail, true);
    }
    let stage = if error.is_body_write_aborted() { Stage::Send } else { Stage::Receive };
    Failure::after_sending(stage, text(error), true)
}

/// An error of hyper with its cause. Neither repeats a byte that was sent or received.
fn text(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// How far a request has come, for the words of a timeout.
#[derive(Default)]
struct Progress(AtomicU8);

impl Progress {
    fn enter(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }

    fn stage(&self) -> Stage {
        let stages = [Stage::Request, Stage::Resolve, Stage::Connect, Stage::Tls, Stage::Send, Stage::Receive];
        stages.into_iter().find(|stage| *stage as u8 == self.0.load(Ordering::Relaxed)).unwrap_or(Stage::Request)
    }

    fn overtime(&self, limit: Duration) -> Failure {
        let (doing, sent) = match self.stage() {
            Stage::Resolve => ("while its name was being resolved", false),
            Stage::Connect => ("while connecting", false),
            Stage::Tls => ("during the TLS handshake", false),
            _ => ("while waiting for the response", true),
        };
        let detail = format!("not finished within {limit:?}: time ran out {doing}");
        Failure { stage: Stage::Timeout, detail, retryable: true, sent }
    }
}
