//! The gRPC server, asked by our own client and by clients that do not keep to the rules.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::HeaderValue;
use outrigger_http::{
    GrpcAnswer, GrpcCall, GrpcClient, GrpcCode, GrpcError, GrpcOptions, GrpcServerOptions, GrpcService, GrpcStatus,
    Resolver, serve_grpc,
};
use outrigger_identity::{client_config_with_roots, server_config_with_key, write_pem};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// Repeats what it gets, and does as the method says.
#[derive(Default)]
struct Echo {
    begun: AtomicUsize,
    go: Notify,
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
                "/test/Wait" => {
                    self.go.notified().await;
                    Ok(Bytes::from_static(b"waited"))
                }
                _ => Err(GrpcStatus::new(GrpcCode::Unimplemented, "no € of it,\n100% sure")),
            }
        })
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
