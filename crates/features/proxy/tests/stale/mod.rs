//! Kept connections that end, and endpoints that cannot be reached.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{Domain, SockRef, Socket, Type};

use crate::OK;
use crate::harness::{App, Client, Proxy, read_request};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_body_goes_again_where_the_request_may_be_repeated() {
    // Closes each connection on its second request, unanswered.
    let app = App::closing_on_second_request(OK);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let sized =
        |method: &str, more: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\n{more}Content-Length: 5\r\n\r\nhello");
    let chunked = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n";
    for (name, request, status, times) in [
        ("put", sized("PUT", ""), "200", 2),
        ("delete", sized("DELETE", ""), "200", 2),
        ("chunked", chunked.to_owned(), "200", 2),
        ("key", sized("POST", "Idempotency-Key: 7\r\n"), "200", 2),
        ("post", sized("POST", ""), "502", 1),
        ("patch", sized("PATCH", ""), "502", 1),
    ] {
        // Leaves a connection that carried one request.
        let mut client = Client::connect(proxy.port);
        while !app.seen().last().is_some_and(|last| last.starts_with("GET /leave")) {
            assert!(client.ask("GET /leave HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
        }
        let before = app.seen().len();
        let answer = client.ask(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
        let seen = app.seen().split_off(before);
        assert_eq!(seen.len(), times, "{name}: {seen:?}");
        let body = |request: &str| request.split_once("\r\n\r\n").unwrap().1.replace("\r\n", " ");
        let whole = |request: &String| {
            let body = body(request);
            if name == "chunked" { body.contains("hel") && body.ends_with("0  ") } else { body == "hello" }
        };
        assert!(seen.iter().all(whole), "{name}: {seen:?}");
        // The next row begins on a connection of its own.
        if status == "200" {
            client.ask("GET /end HTTP/1.1\r\nHost: a\r\n\r\n");
        }
    }
    proxy.stop().await;
}

#[tokio::test]
async fn what_cannot_be_repeated_is_not_sent_where_the_end_has_come() {
    // Ends each connection behind its answer, without saying so in it.
    let app = App::closing_after(OK);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let mut client = Client::connect(proxy.port);
    for round in 0..100 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        assert!(answer.starts_with("HTTP/1.1 200"), "{round}: {answer}");
        // The end is on its way when the answer is there; it has come when the endpoint says so no longer.
        until_no_connection_is_open_to(app.port).await;
    }
    assert_eq!(app.seen().len(), 100);
    proxy.stop().await;
}

/// Waits until the far end of every connection to a port of this machine has ended.
async fn until_no_connection_is_open_to(port: u16) {
    let local = format!(":{port:04X}");
    crate::harness::until("the endpoint has closed its connections", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        !table.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().take(4).collect();
            fields.len() == 4 && fields[1].ends_with(&local) && fields[3] == "01"
        })
    })
    .await;
}

/// An address at which connections are neither taken nor refused: its backlog is full.
pub(crate) struct BlackHole {
    listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn at(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream);
        }
        Self { listener, _waiting: waiting }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().as_socket().unwrap().port()
    }
}

#[tokio::test]
async fn an_endpoint_that_never_answers_costs_one_connect_timeout_and_no_request() {
    let app = App::answering(OK);
    let hole = BlackHole::new();
    let endpoints = format!("connectTimeout: 300ms, endpoints: [\"127.0.0.1:{}\", ", hole.port());
    let config = app
        .plain_config("")
        .replace("      endpoints: [", &format!("      {}", endpoints.replace(", endpoints", "\n      endpoints")));
    let proxy = Proxy::start_on(&config, 1).await;
    let at = proxy.port;
    let clients = tokio::task::spawn_blocking(move || {
        let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        (0..30).all(|_| Client::connect(at).ask(close).starts_with("HTTP/1.1 200"))
    });
    assert!(clients.await.unwrap());
    proxy.stop().await;

    // With nowhere else to go the reason is told, in time.
    let config = App::answering(OK).plain_config("");
    let only = config.split("endpoints: [").next().unwrap().to_owned();
    let only = format!("{only}endpoints: [\"127.0.0.1:{}\"]\n      connectTimeout: 300ms\n", hole.port());
    let proxy = Proxy::start_on(&only, 1).await;
    let at = proxy.port;
    let answer = tokio::task::spawn_blocking(move || Client::connect(at).ask(GET));
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("took too long"), "{answer}");
    proxy.stop().await;
}

/// The descriptor in this process of the connection to a port, once more.
fn socket_to(port: u16) -> Option<Socket> {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let number = entry.file_name().to_string_lossy().parse().unwrap();
        let Ok(descriptor) = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) else { continue };
        let socket = Socket::from(descriptor);
        let peer = SockRef::from(&socket).peer_addr().ok().and_then(|peer| peer.as_socket());
        if peer.is_some_and(|peer| peer.port() == port) {
            return Some(socket);
        }
    }
    None
}

#[tokio::test]
async fn a_peer_that_vanishes_is_noticed_by_keepalive_and_user_timeout() {
    let app = App::talking(|mut stream| {
        while read_request(&mut stream).is_some() {
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let config = app.plain_config("      tcpKeepalive: 90s\n").trim_end().to_owned()
        + "\n      tcpKeepalive: 45s\n      tcpUserTimeout: 12s\n";
    let proxy = Proxy::start_on(&config, 1).await;
    let mut client = Client::connect(proxy.port);
    assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    let upstream = socket_to(app.port).expect("the connection to the endpoint is kept");
    assert!(upstream.keepalive().unwrap());
    assert_eq!(upstream.tcp_keepalive_time().unwrap(), Duration::from_secs(45));
    assert_eq!(upstream.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
    assert_eq!(upstream.tcp_user_timeout().unwrap(), Some(Duration::from_secs(12)));
    assert!(upstream.tcp_nodelay().unwrap());
    let own = client.socket().local_addr().unwrap().port();
    let downstream = socket_to(own).expect("the client's connection");
    assert_eq!(downstream.tcp_keepalive_time().unwrap(), Duration::from_secs(90));
    proxy.stop().await;
}

#[tokio::test]
async fn a_request_under_way_waits_no_longer_than_it_may_for_a_connection() {
    let hole = BlackHole::new();
    let config = App::answering(OK)
        .plain_config("")
        .replace("backendRefs: [{ name: app }] }", "backendRefs: [{ name: app }], timeouts: { request: 300ms } }");
    let config = config.split("endpoints: [").next().unwrap().to_owned();
    let config = format!("{config}endpoints: [\"127.0.0.1:{}\"]\n      connectTimeout: 60s\n", hole.port());
    let proxy = Proxy::start_on(&config, 1).await;
    let at = proxy.port;
    let began = Instant::now();
    let answer = tokio::task::spawn_blocking(move || Client::connect(at).ask(GET)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer} after {:?}", began.elapsed());
    proxy.stop().await;
}
