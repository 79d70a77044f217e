//! The gRPC server, asked by our own client and by clients that do not keep to the rules.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderMap;
use http::header::HeaderValue;
use outrigger_http::{
    GrpcAnswer, GrpcAnswers, GrpcCall, GrpcClient, GrpcCode, GrpcError, GrpcMessages, GrpcOpened, GrpcOptions,
    GrpcServerOptions, GrpcService, GrpcStatus, Resolver, serve_grpc,
};
use outrigger_identity::{client_config_with_roots, server_config_with_key, write_pem};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Repeats what it gets, and does as the method says.
#[derive(Default)]
struct Echo {
    begun: AtomicUsize,
    under_way: Arc<AtomicUsize>,
    go: Notify,
}

/// Counts a call for as long as there is something of it.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream of what comes, until the client says that it is over.
struct Repeated {
    messages: GrpcMessages,
    _counted: Counted,
}

impl GrpcAnswers for Repeated {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<Bytes>, GrpcStatus>>> {
        Poll::Ready(ready!(self.messages.poll_next(cx)).map(|message| match message? {
            panics if panics == "panic" => panic!("as was asked for"),
            over if over == "over" => Err(GrpcStatus::new(GrpcCode::PermissionDenied, "as was said")),
            message => Ok(vec![message]),
        }))
    }
}

impl GrpcService for Echo {
    fn call(&self, call: GrpcCall) -> GrpcAnswer<'_> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::Relaxed);
            match call.method.as_str() {
                "/test/Echo" => Ok(call.message),
                "/test/Who" => {
                    let said = call.metadata.get("x-who").map(|who| who.as_bytes().to_vec()).unwrap_or_default();
                    Ok([call.peer.ip().to_string().into_bytes(), said].concat().into())
                }
                "/test/Panic" => panic!("as was asked for"),
                "/test/Wait" => {
                    let _counted = Counted::new(&self.under_way);
                    self.go.notified().await;
                    Ok(Bytes::from_static(b"waited"))
                }
                _ => Err(GrpcStatus::new(GrpcCode::Unimplemented, "no € of it,\n100% sure")),
            }
        })
    }

    fn streams(&self, method: &str) -> bool {
        ["/test/Repeat", "/test/Never", "/test/PanicAtOnce"].contains(&method)
    }

    fn open(&self, opened: GrpcOpened) -> Result<Box<dyn GrpcAnswers>, GrpcStatus> {
        match opened.method.as_str() {
            "/test/Repeat" => {
                Ok(Box::new(Repeated { messages: opened.messages, _counted: Counted::new(&self.under_way) }))
            }
            "/test/PanicAtOnce" => panic!("as was asked for"),
            _ => Err(GrpcStatus::new(GrpcCode::PermissionDenied, "never")),
        }
    }
}

struct Server {
    port: u16,
    service: Arc<Echo>,
    trust: Arc<ClientConfig>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

fn tls() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let server = server_config_with_key(vec![leaf.der().clone()], key.serialized_der(), &[b"h2"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, write_pem("CERTIFICATE", ca.der())).unwrap();
    (server, client_config_with_roots(Some(&path)).unwrap())
}

impl Server {
    async fn start(change: impl FnOnce(&mut GrpcServerOptions)) -> Self {
        let (config, trust) = tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = Arc::new(Echo::default());
        let mut options = GrpcServerOptions::default();
        change(&mut options);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move {
            let _ = stopped.await;
        };
        #[expect(clippy::disallowed_methods, reason = "a test's own server, awaited or ended with the runtime")]
        let task = tokio::spawn(serve_grpc(
            listener,
            Arc::new(move || Some(config.clone())),
            service.clone(),
            options,
            stopped,
        ));
        Self { port, service, trust, stop: Some(stop), task }
    }

    fn client(&self) -> GrpcClient {
        let options = GrpcOptions { tls: Some(self.trust.clone()), ..GrpcOptions::default() };
        let url = format!("https://127.0.0.1:{}", self.port).parse().unwrap();
        GrpcClient::new(url, options, Resolver::from_system())
    }

    /// A client that does as the test says, and its connection, which goes on only while it is polled.
    async fn client_by_hand(&self) -> (SendRequest<Bytes>, impl Future<Output = Result<(), h2::Error>> + Send + use<>) {
        let mut config = (*self.trust).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        h2::client::handshake(stream).await.unwrap()
    }

    fn request(&self, method: &str) -> http::Request<()> {
        let request = http::Request::post(format!("https://127.0.0.1:{}{method}", self.port));
        request.header("content-type", "application/grpc").body(()).unwrap()
    }

    /// Waits until so many calls are under way.
    async fn until_under_way(&self, count: usize) {
        let holds = async {
            while self.service.under_way.load(Ordering::Relaxed) != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(
            timeout(PATIENCE, holds).await.is_ok(),
            "{} are under way",
            self.service.under_way.load(Ordering::Relaxed)
        );
    }
}

fn framed(message: &[u8]) -> Bytes {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat().into()
}

async fn call(client: &GrpcClient, method: &str, message: &[u8]) -> Result<Bytes, GrpcError> {
    client.call(method, &HeaderMap::new(), message).await
}

fn code(result: Result<Bytes, GrpcError>) -> (u32, String) {
    match result.unwrap_err() {
        GrpcError::Status { code, message, .. } => (code, message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn calls_are_answered_with_messages_and_statuses() {
    let server = Server::start(|options| options.max_request = 1000).await;
    let client = server.client();
    for length in [0, 1, 1000] {
        assert_eq!(call(&client, "/test/Echo", &vec![7; length]).await.unwrap(), vec![7; length]);
    }
    let metadata = HeaderMap::from_iter([("x-who".parse().unwrap(), HeaderValue::from_static("me"))]);
    assert_eq!(client.call("/test/Who", &metadata, b"").await.unwrap(), "127.0.0.1me");
    let (number, text) = code(call(&client, "/test/None", b"").await);
    assert_eq!((number, text.as_str()), (12, "no € of it, 100% sure"));
    let (number, text) = code(call(&client, "/test/Echo", &vec![7; 1001]).await);
    assert!(number == 8 && text.contains("1000 bytes"), "{number} {text}");
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_told_so_and_a_stop_waits_for_the_others() {
    let server = Server::start(|options| options.timeout = Duration::from_millis(200)).await;
    let (number, text) = code(call(&server.client(), "/test/Wait", b"").await);
    assert!(number == 4 && text.contains("200ms"), "{number} {text}");

    server.task.abort();
    let mut server = Server::start(|_| {}).await;
    let (client, service) = (server.client(), server.service.clone());
    let waiting = call(&client, "/test/Wait", b"");
    let stopping = async {
        while service.begun.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.stop.take().unwrap().send(()).unwrap();
        // Nobody is let in any more, and nobody is thrown out.
        while TcpStream::connect(("127.0.0.1", server.port)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        service.go.notify_one();
    };
    let (answer, ()) = tokio::join!(waiting, stopping);
    assert_eq!(answer.unwrap(), "waited");
    tokio::time::timeout(Duration::from_secs(20), server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn clients_that_say_nothing_cost_only_themselves() {
    let server = Server::start(|options| {
        options.handshake_timeout = Duration::from_millis(100);
        options.idle_timeout = Duration::from_millis(300);
        options.max_connections = 3;
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(("127.0.0.1", server.port)).await.unwrap());
    }
    // All places are taken by the silent, but not for long.
    assert_eq!(call(&server.client(), "/test/Echo", b"x").await.unwrap(), "x");
    for stream in &mut silent {
        let mut byte = [0];
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut byte)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}

#[tokio::test]
async fn what_is_not_grpc_gets_an_answer_of_http() {
    use http_body_util::{BodyExt, Empty};
    let server = Server::start(|_| {}).await;
    let mut config = (*server.trust).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    let driver = tokio::spawn(connection);
    for (method, status) in [("GET", 405), ("POST", 415)] {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1:{}/test/Echo", server.port))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{method}");
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(server.service.begun.load(Ordering::Relaxed), 0);
    driver.abort();
}

#[tokio::test]
async fn streams_go_both_ways_and_end_as_the_service_says() {
    let server = Server::start(|options| options.max_request = 200_000).await;
    let client = server.client();
    for (last, status) in [(None, None), (Some("over"), Some(7))] {
        let (sender, mut receiver) = client.open("/test/Repeat", &HeaderMap::new()).await.unwrap();
        // Larger than a frame, than a stream's window, and than a connection's.
        for length in [0, 1, 20_000, 100_000, 200_000] {
            sender.send(&vec![7; length]).await.unwrap();
            assert_eq!(timeout(PATIENCE, receiver.next()).await.unwrap().unwrap().unwrap(), vec![7; length]);
        }
        if let Some(last) = last {
            sender.send(last.as_bytes()).await.unwrap();
        } else {
            drop(sender);
        }
        match (timeout(PATIENCE, receiver.next()).await.unwrap(), status) {
            (Ok(None), None) => {}
            (Err(GrpcError::Status { code, .. }), Some(status)) => assert_eq!(code, status),
            (other, _) => panic!("{other:?}"),
        }
    }
    server.until_under_way(0).await;
}

#[tokio::test]
async fn calls_answered_before_they_were_read_leave_their_connection_whole() {
    let server = Server::start(|options| options.max_request = 1000).await;
    let (mut sender, connection) = server.client_by_hand().await;
    let calls = async {
        // Together many times what a connection may send before it is asked for.
        for round in 0..20 {
            for (method, status) in [("/test/Never", "7"), ("/test/Echo", "8")] {
                sender = sender.ready().await.unwrap();
                let (response, mut body) = sender.send_request(server.request(method), false).unwrap();
                body.send_data(framed(&[7; 100_000]), true).unwrap();
                let response = timeout(PATIENCE, response).await.unwrap().unwrap();
                assert_eq!(response.headers()["grpc-status"], status, "{method} {round}");
            }
        }
        let (response, mut body) = sender.send_request(server.request("/test/Echo"), false).unwrap();
        body.send_data(framed(b"whole"), true).unwrap();
        let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), framed(b"whole"));
    };
    tokio::select! {
        () = calls => {}
        ended = connection => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn calls_that_panic_fail_alone() {
    let server = Server::start(|_| {}).await;
    let (mut sender, connection) = server.client_by_hand().await;
    let calls = async {
        let open =
            |sender: &mut SendRequest<Bytes>| sender.send_request(server.request("/test/Repeat"), false).unwrap();
        let repeated = async |out: &mut h2::SendStream<Bytes>, back: &mut h2::RecvStream, message: &[u8]| {
            out.send_data(framed(message), false).unwrap();
            let seen = timeout(PATIENCE, back.data()).await.unwrap().map(Result::unwrap);
            seen.inspect(|data| back.flow_control().release_capacity(data.len()).unwrap())
        };
        // Two streams that are there before, and go on.
        let (response, mut out) = open(&mut sender);
        let mut back = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        let (response, mut faulty) = open(&mut sender);
        let mut broken = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        assert_eq!(repeated(&mut faulty, &mut broken, b"well").await.unwrap(), framed(b"well"));
        for method in ["/test/Panic", "/test/PanicAtOnce"] {
            sender = sender.ready().await.unwrap();
            let (response, mut body) = sender.send_request(server.request(method), false).unwrap();
            body.send_data(framed(b""), true).unwrap();
            let response = timeout(PATIENCE, response).await.unwrap().unwrap();
            assert_eq!(response.headers()["grpc-status"], "13", "{method}");
            assert_eq!(repeated(&mut out, &mut back, b"on it goes").await.unwrap(), framed(b"on it goes"), "{method}");
        }
        assert_eq!(repeated(&mut faulty, &mut broken, b"panic").await, None, "its end");
        let trailers = timeout(PATIENCE, broken.trailers()).await.unwrap().unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "13");
        assert_eq!(repeated(&mut out, &mut back, b"to the end").await.unwrap(), framed(b"to the end"));
    };
    tokio::select! {
        () = calls => {}
        ended = connection => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn calls_of_clients_that_gave_up_or_vanished_are_dropped() {
    let server = Server::start(|options| {
        options.handshake_timeout = Duration::from_secs(2);
        options.idle_timeout = Duration::from_secs(1);
    })
    .await;
    let (mut sender, connection) = server.client_by_hand().await;
    let mut connection = Box::pin(connection);
    let calls = async {
        for method in ["/test/Wait", "/test/Repeat"] {
            let (_response, mut body) = sender.send_request(server.request(method), false).unwrap();
            body.send_data(framed(b"x"), method == "/test/Wait").unwrap();
            server.until_under_way(1).await;
            body.send_reset(h2::Reason::CANCEL);
            server.until_under_way(0).await;
        }
        let opened = sender.send_request(server.request("/test/Repeat"), false).unwrap();
        server.until_under_way(1).await;
        opened
    };
    let _opened = tokio::select! {
        opened = calls => opened,
        ended = connection.as_mut() => panic!("{ended:?}"),
    };
    // From here on it answers no ping.
    server.until_under_way(0).await;
}

#[tokio::test]
async fn streams_end_when_their_connection_is_old_and_at_the_stop() {
    let server = Server::start(|options| options.max_age = Duration::from_secs(1)).await;
    let said = async {
        loop {
            // It may be too old already.
            let client = server.client();
            let Ok((_sender, mut receiver)) = client.open("/test/Repeat", &HeaderMap::new()).await else {
                continue;
            };
            if let Err(GrpcError::Status { code, message, .. }) = receiver.next().await {
                return (code, message);
            }
        }
    };
    let (number, text) = timeout(PATIENCE, said).await.unwrap();
    assert!(number == 14 && text.contains("connect again"), "{number} {text}");

    let mut server = Server::start(|_| {}).await;
    let client = server.client();
    let (_sender, mut receiver) = client.open("/test/Repeat", &HeaderMap::new()).await.unwrap();
    server.until_under_way(1).await;
    server.stop.take().unwrap().send(()).unwrap();
    assert!(matches!(timeout(PATIENCE, receiver.next()).await.unwrap(), Err(GrpcError::Status { code: 14, .. })));
    timeout(PATIENCE, server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_at_a_unix_socket_is_called_without_tls() {
    use http_body_util::Full;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let client = GrpcClient::on_socket(path.clone(), GrpcOptions::default());
    let error = call(&client, "/test/Echo", b"x").await.unwrap_err().to_string();
    assert!(error.contains(&format!("unix://{}", path.display())) && error.contains("cannot connect"), "{error}");

    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            assert_eq!(request.uri().to_string(), "http://localhost/test/Echo");
            let body = http_body_util::BodyExt::collect(request.into_body()).await?.to_bytes();
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
            let body = http_body_util::BodyExt::with_trailers(Full::new(body), async { Some(Ok(trailers)) });
            let mut response = http::Response::new(body);
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok::<_, hyper::Error>(response)
        });
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
    });
    for message in [&b"x"[..], b""] {
        assert_eq!(call(&client, "/test/Echo", message).await.unwrap(), message);
    }
    server.abort();
}
