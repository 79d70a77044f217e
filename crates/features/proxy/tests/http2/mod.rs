//! HTTP/2 as its frames: what a client library would not do, and what it would.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{App, Proxy};
use crate::{OK, harness};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// `GET / HTTP/2` for the host `a`, without indexing.
pub(crate) const GET: &[u8] = b"\x82\x84\x86\x01\x01a";

/// One side of a connection, frame by frame.
pub(crate) struct Frames(pub(crate) TcpStream);

impl Frames {
    pub(crate) fn connect(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut this = Self(stream);
        this.send(SETTINGS, 0, 0, &[]);
        this
    }

    /// The server's side of a connection that begins.
    pub(crate) fn accept(mut stream: TcpStream) -> Option<Self> {
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).ok()?;
        let mut this = Self(stream);
        this.send(SETTINGS, 0, 0, &[]);
        Some(this)
    }

    /// Whether the connection took it.
    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).is_ok()
    }

    /// The next frame: its kind, flags, stream and payload; nothing at the end.
    pub(crate) fn receive(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }

    /// The error code of the GOAWAY that ends the connection.
    pub(crate) fn goaway(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.receive() {
            if kind == GOAWAY {
                code = Some(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]));
            }
        }
        code
    }
}

#[tokio::test]
async fn a_client_that_resets_in_haste_is_cut_off_and_named() {
    // Never answers, so that every request is under way when it is reset.
    let app = App::new(|_| None);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let port = proxy.port;
    let flood = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        let deadline = Instant::now() + Duration::from_secs(10);
        for stream in (1..).step_by(2) {
            let more = client.send(HEADERS, END_STREAM | END_HEADERS, stream, GET)
                && client.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            if !more || Instant::now() > deadline {
                break;
            }
        }
        client.goaway()
    });
    let code = flood.await.unwrap();
    assert!(matches!(code, Some(ENHANCE_YOUR_CALM) | None), "{code:?}");
    proxy.metrics_have(r#"outrigger_downstream_connections_cut_total{listener="in",reason="http2_flood"} 1"#).await;
    proxy.stop().await;
}

/// The frames of stream 1 and the acknowledged PING, until `last` is among them.
fn until(client: &mut Frames, last: u8) -> Vec<(u8, u8)> {
    let mut came = Vec::new();
    while came.last().is_none_or(|(kind, _)| *kind != last) {
        let (kind, flags, stream, payload) = client.receive().expect("the connection goes on");
        if stream == 1 || kind == PING {
            came.push((kind, flags));
        }
        if kind == RST_STREAM {
            assert_eq!(payload, [0; 4], "NO_ERROR");
        }
    }
    came
}

#[tokio::test]
async fn who_is_answered_early_may_end_in_peace_but_not_for_ever() {
    let app = App::answering(OK);
    let proxy = Proxy::start_on(&app.plain_config("      limits: { maxBodyBytes: 1KiB }\n"), 1).await;
    let port = proxy.port;
    // `POST / HTTP/2` with a `content-length` of 2000.
    let post = [&b"\x83\x84\x86\x01\x01a"[..], b"\x0f\x0d\x042000"].concat();
    let clients = tokio::task::spawn_blocking(move || {
        let answered = |ends: bool| {
            let mut client = Frames::connect(port);
            client.send(HEADERS, END_HEADERS, 1, &post);
            while client.receive().is_some_and(|(_, flags, stream, _)| stream != 1 || flags & END_STREAM == 0) {}
            client.send(DATA, if ends { END_STREAM } else { 0 }, 1, &[b'x'; 2000]);
            client
        };
        let mut client = answered(true);
        client.send(PING, 0, 0, &[7; 8]);
        assert_eq!(until(&mut client, PING), [(PING, 1)], "no reset for a client that has ended");
        assert_eq!(until(&mut answered(false), RST_STREAM), [(RST_STREAM, 0)]);
    });
    clients.await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn headers_without_end_are_bounded() {
    let app = App::answering(OK);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let port = proxy.port;
    let flood = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        client.send(HEADERS, END_STREAM, 1, GET);
        // A literal field without indexing: `x: yyyy…`, again and again.
        let field = [&b"\x00\x01x\x7e"[..], &[b'y'; 126]].concat().repeat(100);
        let mut frames = 0;
        while frames < 10_000 && client.send(CONTINUATION, 0, 1, &field) {
            frames += 1;
        }
        (frames, client.goaway())
    });
    let (frames, _) = flood.await.unwrap();
    assert!(frames < 10_000, "the connection took {frames} frames of one head");
    let mut neighbour = harness::Client::connect(port);
    assert!(neighbour.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
    proxy.stop().await;
}

#[tokio::test]
async fn a_stop_tells_the_client_twice_and_serves_what_it_sent() {
    let app = App::answering(OK);
    let mut proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let port = proxy.port;
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let client = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, GET);
        while client.receive().expect("an answer").2 != 1 {}
        ready.send(()).unwrap();
        let mut last = Vec::new();
        let mut answered = false;
        while let Some((kind, flags, stream, payload)) = client.receive() {
            match kind {
                GOAWAY => {
                    last.push(u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]));
                    if last.len() == 1 {
                        // Sent before the client could know.
                        client.send(HEADERS, END_STREAM | END_HEADERS, 3, GET);
                    }
                }
                6 if flags == 0 => drop(client.send(6, 1, 0, &payload)),
                HEADERS if stream == 3 => answered = true,
                _ => {}
            }
        }
        (last, answered)
    });
    tokio::task::spawn_blocking(move || is_ready.recv().unwrap()).await.unwrap();
    proxy.request_stop(Duration::from_secs(5));
    let (last, answered) = client.await.unwrap();
    assert_eq!(last.first(), Some(&0x7fff_ffff), "{last:?}");
    assert_eq!(last.get(1), Some(&3), "{last:?}");
    assert!(answered, "the request that crossed the GOAWAY");
    proxy.ended().await;
}

/// A client that is a library, driven by a task of its own until the test ends.
async fn library(port: u16) -> h2::client::SendRequest<bytes::Bytes> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(connection);
    harness::until("extended CONNECT", || sender.is_extended_connect_protocol_enabled()).await;
    sender.ready().await.unwrap()
}

#[tokio::test]
async fn what_fails_is_told_to_grpc_in_its_own_terms() {
    let nobody = harness::free_port();
    let config = format!(
        r#"
proxy:
  listeners:
    - name: in
      direction: inbound
      address: "127.0.0.1:PORT"
      limits: {{ maxBodyBytes: 10B }}
      routes: [{{ name: all, matches: [{{ path: {{ value: /shop.Shop }} }}], backendRefs: [{{ name: app }}] }}]
  clusters: [{{ name: app, endpoints: ["127.0.0.1:{nobody}"] }}]
"#
    );
    let proxy = Proxy::start_on(&config, 1).await;
    let mut sender = library(proxy.port).await;
    for (path, length, kind, expected) in [
        ("/shop.Shop/Buy", None, "application/grpc", Some(("14", "cannot connect to the endpoint"))),
        ("/shop.Shop/Buy", Some("99"), "application/grpc+proto", Some(("8", "request body too large"))),
        ("/other", None, "application/grpc", Some(("12", "no route matches this host and path"))),
        ("/other", None, "application/grpc-web", None),
    ] {
        let mut request = http::Request::post(format!("http://a{path}")).header("content-type", kind);
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let (answer, _body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        let answer = answer.await.unwrap();
        let field = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let told = field("grpc-status").zip(field("grpc-message"));
        let expected = expected.map(|(status, message)| (status.to_owned(), message.to_owned()));
        assert_eq!((told, answer.status() == 200), (expected.clone(), expected.is_some()), "{path} {kind}");
        assert_eq!(answer.body().is_end_stream(), expected.is_some(), "{path} {kind}");
    }
    proxy.metrics_have(r#"outrigger_grpc_requests_total{direction="inbound",listener="in",route="all",cluster="app",grpc_status="14"} 1"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_extended_connect_becomes_an_upgrade_and_a_tunnel() {
    let app = App::talking(|mut stream| {
        let Some(head) = harness::read_request(&mut stream) else { return };
        let head = head.to_lowercase();
        assert!(head.starts_with("get /chat http/1.1\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("connection: upgrade\r\n") && head.contains("sec-websocket-key: "), "{head}");
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: abc\r\nSec-WebSocket-Protocol: chat\r\n\r\nwelcome";
        stream.write_all(agreed.as_bytes()).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        stream.write_all(&said).unwrap();
    });
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let mut sender = library(proxy.port).await;
    let mut request = http::Request::connect("http://a/chat").header("sec-websocket-version", "13").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, mut there) = sender.send_request(request, false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    for hop in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!answer.headers().contains_key(hop), "{answer:?}");
    }
    there.send_data("and more".into(), true).unwrap();
    let mut back = answer.into_body();
    let mut said = Vec::new();
    while let Some(data) = back.data().await {
        said.extend_from_slice(&data.unwrap());
    }
    assert_eq!(String::from_utf8(said).unwrap(), "welcomeand more");
    proxy.stop().await;
}

/// An endpoint that ends its first `refusals` connections without looking at the request they bring.
fn fickle(refusals: usize) -> App {
    let connections = AtomicUsize::new(0);
    App::talking(move |mut stream| {
        let refuses = connections.fetch_add(1, Ordering::Relaxed) < refusals;
        stream.read_exact(&mut [0; 24]).unwrap();
        let mut endpoint = Frames(stream);
        endpoint.send(SETTINGS, 0, 0, &[]);
        while let Some((kind, flags, stream, payload)) = endpoint.receive() {
            match kind {
                SETTINGS if flags == 0 => drop(endpoint.send(SETTINGS, 1, 0, &[])),
                6 if flags == 0 => drop(endpoint.send(6, 1, 0, &payload)),
                // It looked at no stream, and has no complaint.
                HEADERS if refuses => drop(endpoint.send(GOAWAY, 0, 0, &[0; 8])),
                HEADERS => drop(endpoint.send(HEADERS, END_STREAM | END_HEADERS, stream, b"\x88")),
                _ => {}
            }
        }
    })
}

#[tokio::test]
async fn a_request_that_no_connection_looked_at_is_sent_again_a_few_times() {
    for (refusals, expected) in [(1, "HTTP/1.1 200"), (16, "HTTP/1.1 200"), (17, "HTTP/1.1 503")] {
        let app = fickle(refusals);
        let config = app.plain_config("").replace("endpoints:", "protocol: http2\n      endpoints:");
        let proxy = Proxy::start_on(&config, 1).await;
        let port = proxy.port;
        // One that may not be repeated, but for this.
        let ask = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        let answer = tokio::task::spawn_blocking(move || harness::Client::connect(port).ask(ask)).await.unwrap();
        assert!(answer.starts_with(expected), "{refusals} refusals: {answer}");
        proxy.stop().await;
    }
}
