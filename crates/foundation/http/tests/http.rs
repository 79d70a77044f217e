//! The client against servers that are good, slow, broken, or gone.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use outrigger_http::{Client, ClientOptions, HttpError, Resolver, ResolverOptions, Stage};
use outrigger_identity::client_config_with_roots;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A server: `serve` gets the number of the connection, from 0, and the connection.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), serve)
    }

    fn on(listener: TcpListener, serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let (connections, serve) = (Arc::new(AtomicUsize::new(0)), Arc::new(serve));
        let count = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let serve = serve.clone();
                std::thread::spawn(move || serve(number, stream));
            }
        });
        Self { address, connections }
    }

    /// Answers every request with the same bytes.
    fn answering(response: &'static str) -> Self {
        Self::start(move |_, mut stream| {
            while read_request(&mut stream).is_some() {
                if stream.write_all(response.as_bytes()).is_err() {
                    return;
                }
            }
        })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A request with its body, or nothing when the client has closed.
fn read_request(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn client(change: impl FnOnce(&mut ClientOptions)) -> Client {
    let mut options = ClientOptions { timeout: Duration::from_secs(15), ..ClientOptions::default() };
    change(&mut options);
    Client::new(options, Resolver::from_system())
}

fn request(method: Method, url: &str, body: &'static str) -> Request<Bytes> {
    Request::builder().method(method).uri(url).body(Bytes::from_static(body.as_bytes())).unwrap()
}

async fn get(client: &Client, url: &str) -> Result<(StatusCode, String), HttpError> {
    let response = client.send(request(Method::GET, url, "")).await?;
    Ok((response.status(), String::from_utf8(response.body().to_vec()).unwrap()))
}

#[tokio::test]
async fn connections_are_used_again_for_requests_in_full_form() {
    let (sender, requests) = sync_channel(8);
    let server = Server::start(move |_, mut stream| {
        while let Some(request) = read_request(&mut stream) {
            sender.send(request).unwrap();
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let client = client(|_| {});
    assert_eq!(get(&client, &server.url("/a?b=c")).await.unwrap(), (StatusCode::OK, "ok".into()));
    let post = request(Method::POST, &server.url(""), "hello");
    client.clone().send(post).await.unwrap();
    get(&client, &server.url("/")).await.unwrap();
    assert_eq!(server.connections(), 1);
    let first: String = requests.recv().unwrap().to_ascii_lowercase();
    assert!(first.starts_with("get /a?b=c http/1.1\r\n"), "{first}");
    assert!(first.contains(&format!("\r\nhost: {}\r\n", server.address)), "{first}");
    assert!(first.contains("\r\nuser-agent: outrigger/"), "{first}");
    let second = requests.recv().unwrap();
    assert!(second.starts_with("POST / HTTP/1.1\r\n") && second.ends_with("\r\n\r\nhello"), "{second}");
}

#[tokio::test]
async fn responses_of_every_shape() {
    let rows = [
        (
            "chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\nX: y\r\n\r\n",
            200,
            "abcde",
        ),
        ("empty", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("a redirect is the caller's", "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, ""),
        ("an error is a response", "HTTP/1.1 503 Sealed\r\nContent-Length: 6\r\n\r\nsealed", 503, "sealed"),
        (
            "early hints first",
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
            200,
            "a",
        ),
        ("as long as the limit", "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n12345678", 200, "12345678"),
        ("HTTP/1.0 until the end", "HTTP/1.0 200 OK\r\n\r\nto end", 200, "to end"),
    ];
    for (name, response, status, body) in rows {
        let server = Server::start(move |_, mut stream| {
            read_request(&mut stream);
            stream.write_all(response.as_bytes()).unwrap();
        });
        let client = client(|options| options.max_response = 8);
        let (got, text) = get(&client, &server.url("/")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((got.as_u16(), text.as_str()), (status, body), "{name}");
    }
    let server = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n");
    let client = client(|options| options.max_response = 8);
    for _ in 0..2 {
        assert!(client.send(request(Method::HEAD, &server.url("/"), "")).await.unwrap().body().is_empty());
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn broken_responses_tell_what_is_broken() {
    let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(80 << 10));
    let rows: [(&str, &str, bool, &str); 7] = [
        ("half a body", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n1234", true, "before its response was whole"),
        ("half a head", "HTTP/1.1 200 O", true, "before its response was whole"),
        ("nothing", "", true, "before its response was whole"),
        ("no HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n", false, "not HTTP/1.1"),
        ("too long, and says so", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", false, "larger than 8 bytes"),
        (
            "too long, and does not say so",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n5\r\n67890\r\n0\r\n\r\n",
            false,
            "larger than 8 bytes",
        ),
        ("a head without end", head.leak(), false, "head is larger"),
    ];
    for (name, response, retryable, detail) in rows {
        let response = response.to_owned();
        let server = Server::start(move |_, mut stream| {
            read_request(&mut stream);
            let _ = stream.write_all(response.as_bytes());
        });
        let client = client(|options| options.max_response = 8);
        let error = get(&client, &server.url("/x?token=secret")).await.expect_err(name);
        assert_eq!(
            (error.stage(), error.retryable(), error.maybe_sent()),
            (Stage::Receive, retryable, true),
            "{name}: {error}"
        );
        assert!(error.detail().contains(detail), "{name}: {error}");
        assert_eq!(error.to_string(), format!("GET {}: {}", server.url("/x"), error.detail()), "{name}");
    }
}

#[tokio::test]
async fn a_server_that_closes_is_asked_on_a_new_connection() {
    let closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let server = Server::answering(closing);
    let client = client(|_| {});
    for _ in 0..3 {
        get(&client, &server.url("/")).await.unwrap();
    }
    assert_eq!(server.connections(), 3);
}

/// Answers the first request of each connection and closes on the second without an answer, like a server whose
/// keep-alive time ends just then.
fn forgetful() -> Server {
    Server::start(|_, mut stream| {
        read_request(&mut stream);
        stream.write_all(OK.as_bytes()).unwrap();
        read_request(&mut stream);
    })
}

#[tokio::test]
async fn a_request_that_meets_a_closing_connection_is_repeated_if_it_may_be() {
    let server = forgetful();
    let client = client(|_| {});
    for _ in 0..3 {
        get(&client, &server.url("/")).await.unwrap();
    }
    assert_eq!(server.connections(), 3);
    let error = client.send(request(Method::POST, &server.url("/"), "x")).await.unwrap_err();
    assert!(error.retryable() && error.maybe_sent(), "{error}");
    client.send(request(Method::POST, &server.url("/"), "x")).await.unwrap();
    client.send(request(Method::PUT, &server.url("/"), "x")).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_rested_is_not_used() {
    let (closed, was_closed) = sync_channel(1);
    let server = Server::start(move |number, mut stream| {
        read_request(&mut stream);
        stream.write_all(OK.as_bytes()).unwrap();
        if number == 0 {
            drop(stream);
            closed.send(()).unwrap();
        } else {
            read_request(&mut stream);
        }
    });
    let client = client(|_| {});
    get(&client, &server.url("/")).await.unwrap();
    tokio::task::spawn_blocking(move || was_closed.recv().unwrap()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // A POST would not be repeated: it must not have been sent on the closed one.
    client.send(request(Method::POST, &server.url("/"), "x")).await.unwrap();
}

fn wait_for_close(server: &mut Vec<Receiver<Duration>>) -> Duration {
    server.pop().unwrap().recv_timeout(Duration::from_secs(15)).unwrap()
}

/// Tells how long after its answer the client closed the connection.
fn watching() -> (Server, Vec<Receiver<Duration>>) {
    let (sender, closes) = sync_channel(8);
    let server = Server::start(move |_, mut stream| {
        read_request(&mut stream);
        stream.write_all(OK.as_bytes()).unwrap();
        let begin = Instant::now();
        assert!(read_request(&mut stream).is_none());
        sender.send(begin.elapsed()).unwrap();
    });
    (server, vec![closes])
}

#[tokio::test]
async fn connections_rest_no_longer_than_allowed() {
    let (server, mut closes) = watching();
    let client = client(|options| options.idle_timeout = Duration::from_millis(300));
    get(&client, &server.url("/")).await.unwrap();
    let rested = tokio::task::spawn_blocking(move || wait_for_close(&mut closes)).await.unwrap();
    assert!(rested >= Duration::from_millis(250), "{rested:?}");
    drop(client);
}

#[tokio::test]
async fn no_connection_rests_when_none_may_and_none_outlives_the_client() {
    let (server, mut closes) = watching();
    let unpooled = client(|options| options.max_idle = 0);
    get(&unpooled, &server.url("/")).await.unwrap();
    tokio::task::spawn_blocking(move || wait_for_close(&mut closes)).await.unwrap();
    drop(unpooled);

    let (server, mut closes) = watching();
    let client = client(|_| {});
    get(&client, &server.url("/")).await.unwrap();
    drop(client);
    tokio::task::spawn_blocking(move || wait_for_close(&mut closes)).await.unwrap();
}

#[tokio::test]
async fn a_client_outlives_the_runtime_of_its_connections() {
    let server = Server::answering(OK);
    let client = client(|_| {});
    for _ in 0..2 {
        let (client, url) = (client.clone(), server.url("/"));
        let other = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(get(&client, &url)).unwrap();
        };
        std::thread::spawn(other).join().unwrap();
    }
    get(&client, &server.url("/")).await.unwrap();
}

#[tokio::test]
async fn many_at_once_rest_only_as_many_as_allowed() {
    let server = Server::answering(OK);
    let client = client(|options| options.max_idle = 2);
    let url = server.url("/");
    let all = futures_util::future::join_all((0..10).map(|_| get(&client, &url))).await;
    assert!(all.iter().all(Result::is_ok));
    let opened = server.connections();
    for _ in 0..5 {
        get(&client, &url).await.unwrap();
    }
    assert_eq!(server.connections(), opened);
}

#[tokio::test]
async fn time_runs_out_wherever_the_server_stops() {
    let rows: [(&str, &str); 3] = [
        ("before the head", ""),
        ("in the head", "HTTP/1.1 200 OK\r\nContent-Le"),
        ("in the body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1"),
    ];
    for (name, part) in rows {
        let server = Server::start(move |_, mut stream| {
            read_request(&mut stream);
            stream.write_all(part.as_bytes()).unwrap();
            read_request(&mut stream);
        });
        let client = client(|options| options.timeout = Duration::from_millis(200));
        let begin = Instant::now();
        let error = get(&client, &server.url("/")).await.expect_err(name);
        assert!(begin.elapsed() < Duration::from_secs(5), "{name}");
        assert_eq!(
            (error.stage(), error.retryable(), error.maybe_sent()),
            (Stage::Timeout, true, true),
            "{name}: {error}"
        );
        assert!(error.detail().contains("200ms") && error.detail().contains("response"), "{error}");
    }
}

#[tokio::test]
async fn an_early_refusal_of_a_large_body_is_seen() {
    let server = Server::start(|_, mut stream| {
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let client = client(|_| {});
    let body = Bytes::from(vec![b'x'; 8 << 20]);
    let response = client.send(Request::post(server.url("/")).body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_closed_port_and_an_unknown_name_say_so() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = client(|_| {});
    let error = get(&client, &format!("http://{free}/")).await.unwrap_err();
    assert_eq!((error.stage(), error.retryable(), error.maybe_sent()), (Stage::Connect, true, false));
    assert!(error.detail().contains(&free.to_string()) && error.detail().contains("refused"), "{error}");

    let lost = resolving(tempfile::tempdir().unwrap().path(), "");
    let error = get(&lost, "http://vault.infra:8200/v1").await.unwrap_err();
    assert_eq!((error.stage(), error.retryable()), (Stage::Resolve, true));
    assert!(error.detail().contains("vault.infra"), "{error}");

    for url in ["/path", "ftp://a/", "http://user:secret@a/"] {
        let error = get(&client, url).await.unwrap_err();
        assert_eq!((error.stage(), error.retryable()), (Stage::Request, false), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

/// A client that knows only the names of a hosts file.
fn resolving(folder: &Path, hosts: &str) -> Client {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("hosts"), hosts).unwrap();
    let options = ResolverOptions {
        resolv_conf: folder.join("resolv.conf"),
        hosts: folder.join("hosts"),
        ..ResolverOptions::default()
    };
    Client::new(ClientOptions::default(), Resolver::new(options))
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses_or_is_silent() {
    let server = Server::answering(OK);
    let port = server.address.port();
    let folder = tempfile::tempdir().unwrap();
    let client =
        resolving(folder.path(), "127.0.0.3 refusing\n127.0.0.1 refusing\n127.0.0.2 silent\n127.0.0.1 silent\n");
    get(&client, &format!("http://refusing:{port}/")).await.unwrap();

    // A listener whose queue is full drops what comes, as a firewall would.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 2], port)).into()).unwrap();
    full.listen(0).unwrap();
    let filling: Vec<_> = (0..4)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&SocketAddr::from(([127, 0, 0, 2], port)).into());
            socket
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begin = Instant::now();
    get(&client, &format!("http://silent:{port}/")).await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(2), "{took:?}");

    let impatient = Client::new(
        ClientOptions { connect_timeout: Duration::from_millis(300), ..ClientOptions::default() },
        Resolver::from_system(),
    );
    let error = get(&impatient, &format!("http://127.0.0.2:{port}/")).await.unwrap_err();
    assert_eq!((error.stage(), error.retryable()), (Stage::Connect, true));
    assert!(error.detail().contains("127.0.0.2") && error.detail().contains("300ms"), "{error}");
    drop(filling);
}

/// An authority for server certificates, as PEM in a file.
struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn client(&self) -> Client {
        let tls = client_config_with_roots(Some(&self.folder.path().join("ca.pem"))).unwrap();
        client(|options| options.tls = Some(tls))
    }

    fn server(&self, name: &str) -> Server {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // A year: some clients refuse more, and webpki has its own idea of the year 4096.
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate: CertificateDer<'static> = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let config = Arc::new(config);
        Server::start(move |_, stream| {
            let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream);
            while read_request(&mut stream).is_some() {
                stream.write_all(OK.as_bytes()).unwrap();
                stream.flush().unwrap();
            }
        })
    }
}

#[tokio::test]
async fn tls_to_servers_whose_authority_we_know() {
    let authority = Authority::new();
    let (server, client) = (authority.server("localhost"), authority.client());
    let port = server.address.port();
    for _ in 0..2 {
        assert_eq!(get(&client, &format!("https://localhost:{port}/")).await.unwrap().1, "ok");
    }
    assert_eq!(server.connections(), 1);
    let by_address = authority.server("127.0.0.1");
    get(&client, &format!("https://{}/", by_address.address)).await.unwrap();
}

#[tokio::test]
async fn tls_that_fails_says_why_and_whether_time_may_help() {
    let authority = Authority::new();
    let server = authority.server("somebody.else");
    let port = server.address.port();
    let wrong_name = get(&authority.client(), &format!("https://localhost:{port}/")).await.unwrap_err();
    assert_eq!((wrong_name.stage(), wrong_name.retryable()), (Stage::Tls, false));
    assert!(wrong_name.detail().contains("somebody.else"), "{wrong_name}");

    let stranger = get(&Authority::new().client(), &format!("https://localhost:{port}/")).await.unwrap_err();
    assert_eq!((stranger.stage(), stranger.retryable()), (Stage::Tls, false), "{stranger}");
    let public = get(&client(|_| {}), &format!("https://localhost:{port}/")).await.unwrap_err();
    assert!(public.detail().contains("not signed by"), "{public}");

    let plain = Server::answering(OK);
    let not_tls = Server::start(|_, mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap());
    let error = get(&authority.client(), &not_tls.url("/").replace("http:", "https:")).await.unwrap_err();
    assert!(error.detail().contains("does not speak TLS"), "{error}");

    let impatient = client(|options| options.connect_timeout = Duration::from_millis(200));
    let error = get(&impatient, &plain.url("/").replace("http:", "https:")).await.unwrap_err();
    assert_eq!((error.stage(), error.retryable(), error.maybe_sent()), (Stage::Tls, true, false));

    let hangs_up = Server::start(|_, stream| drop(stream));
    let error = get(&authority.client(), &hangs_up.url("/").replace("http:", "https:")).await.unwrap_err();
    assert_eq!((error.stage(), error.retryable()), (Stage::Tls, true), "{error}");
}
