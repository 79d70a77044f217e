//! What is under way stays so: over rotations of every file, over reloads, and through a stop.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::OK;
use crate::harness::{App, Client, Identified, Proxy, read_request, until};
use crate::http2::{END_HEADERS, END_STREAM, Frames, HEADERS};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// An application with an answer that goes on for as long as its clients like, and one that switches protocols.
struct LongLived {
    http: App,
    bytes: App,
    /// Has each stream say one thing more.
    more: broadcast::Sender<()>,
}

impl LongLived {
    fn new() -> Self {
        let more = broadcast::Sender::new(16);
        let from = more.clone();
        let http = App::talking(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                if request.starts_with("GET /stream") {
                    let mut more = from.subscribe();
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
                    while more.blocking_recv().is_ok() && stream.write_all(b"4\r\nmore\r\n").is_ok() {}
                    return;
                }
                if request.to_lowercase().contains("upgrade: chat") {
                    let _ = stream
                        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n");
                    return echo(stream);
                }
                let told = request.lines().find(|line| line.to_lowercase().starts_with("x-forwarded-client-cert"));
                let body = told.unwrap_or("nobody");
                let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Self { http, bytes: App::talking(echo), more }
    }
}

/// Says everything back.
fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Connections in the middle of something.
struct Live {
    streams: Vec<(&'static str, Client)>,
    echoes: Vec<(&'static str, Client)>,
    frames: Option<Frames>,
}

impl Live {
    /// Begins an answer without end, an upgrade and plain bytes at `port`; further answers without end at `also`.
    fn begin(port: u16, also: &[(&'static str, u16)]) -> Self {
        let (mut streams, mut echoes) = (Vec::new(), Vec::new());
        for (name, port) in [&[("a stream", port)][..], also].concat() {
            let mut client = Client::connect(port);
            client.send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
            streams.push((name, client));
        }
        let mut upgraded = Client::connect(port);
        upgraded.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n");
        read_until(&mut upgraded, "\r\n\r\n");
        echoes.push(("an upgrade", upgraded));
        echoes.push(("plain bytes", Client::connect(port)));
        let mut live = Self { streams, echoes, frames: None };
        for (_, stream) in &mut live.streams {
            read_until(stream, "one\r\n");
        }
        live.check_echoes();
        live
    }

    /// Begins an HTTP/2 stream, too.
    fn and_http2(mut self, port: u16) -> Self {
        let mut frames = Frames::connect(port);
        // `GET /stream` for the host `a`.
        frames.send(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x04\x07/stream\x86\x01\x01a");
        await_data(&mut frames, b"one");
        self.frames = Some(frames);
        self
    }

    fn check_echoes(&mut self) {
        for (name, client) in &mut self.echoes {
            client.send("\0ping");
            let mut heard = String::new();
            while heard.len() < 5 {
                let more = client.read_some();
                assert!(!more.is_empty(), "{name} broke off");
                heard.push_str(&more);
            }
            assert_eq!(heard, "\0ping", "{name}");
        }
    }

    /// Each of them goes on.
    fn goes_on(&mut self, more: &broadcast::Sender<()>) {
        more.send(()).unwrap();
        for (name, stream) in &mut self.streams {
            assert!(read_until(stream, "more\r\n").ends_with("more\r\n"), "{name} broke off");
        }
        if let Some(frames) = &mut self.frames {
            await_data(frames, b"more");
        }
        self.check_echoes();
    }
}

fn read_until(client: &mut Client, end: &str) -> String {
    let mut all = String::new();
    while !all.ends_with(end) {
        let more = client.read_some();
        assert!(!more.is_empty(), "the connection ended after {all:?}");
        all.push_str(&more);
    }
    all
}

fn await_data(frames: &mut Frames, wanted: &[u8]) {
    const DATA: u8 = 0;
    while let Some((kind, _, _, payload)) = frames.receive() {
        if kind == DATA {
            return assert_eq!(payload, wanted);
        }
    }
    panic!("the HTTP/2 stream broke off");
}

#[tokio::test]
async fn rotations_of_certificates_and_authorities_touch_no_live_connection() {
    let authorities = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut keepers = JoinSet::new();
    let backend_identity = Identified::start(&authorities[0], "backend", &mut keepers).await;
    let frontend_identity = Identified::start(&authorities[0], "frontend", &mut keepers).await;
    let app = LongLived::new();
    let routes = |http: &str, bytes: &str| {
        format!(
            "protocol: auto, detectTimeout: 50ms, routes: [{{ name: all, backendRefs: [{{ name: {http} }}] }}], \
             tcpRoute: {{ name: bytes, backendRefs: [{{ name: {bytes} }}] }}"
        )
    };
    let backend = format!(
        "{}proxy:\n  listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:PORT\", tls: {{}}, {} }}]\n  \
         clusters: [{{ name: http, endpoints: [\"127.0.0.1:{}\"] }}, {{ name: bytes, endpoints: [\"127.0.0.1:{}\"] }}]\n",
        backend_identity.section,
        routes("http", "bytes"),
        app.http.port,
        app.bytes.port
    );
    let backend = Proxy::start_with(&backend, backend_identity.identities.clone(), 0).await;
    let frontend = |protocol: &str| {
        format!(
            "{}proxy:\n  listeners: [{{ name: out, direction: outbound, address: \"127.0.0.1:PORT\", {} }}]\n  clusters: \
             [{{ name: there, endpoints: [\"127.0.0.1:{}\"], protocol: {protocol}, tls: {{ spiffeIds: [\"spiffe://shop.example/ns/shop/sa/backend\"] }} }}]\n",
            frontend_identity.section,
            routes("there", "there"),
            backend.port
        )
    };
    let first = Proxy::start_with(&frontend("http1"), frontend_identity.identities.clone(), 1).await;
    let second = Proxy::start_with(&frontend("http2"), frontend_identity.identities.clone(), 1).await;
    let ask = |proxy: &Proxy| Client::connect(proxy.port).ask(GET);
    let mut live = Live::begin(first.port, &[("a stream over HTTP/2 between sidecars", second.port)]);
    let mut told = HashSet::from([ask(&first)]);
    // A new key and chain, then a new authority for both, then the first one again.
    for authority in [&authorities[0], &authorities[1], &authorities[0]] {
        for workload in [&backend_identity, &frontend_identity] {
            workload.renew(authority).await;
        }
        let mut fresh = String::new();
        until("new connections use what is new", || {
            fresh = ask(&first);
            fresh.starts_with("HTTP/1.1 200") && ask(&second) == fresh && !told.contains(&fresh)
        })
        .await;
        told.insert(fresh);
        live.goes_on(&app.more);
    }
    assert_eq!(told.len(), 4, "each showed another certificate: {told:?}");
    drop(live);
    first.stop().await;
    second.stop().await;
    backend.stop().await;
}

#[tokio::test]
async fn a_stop_lets_long_streams_live_until_its_time_is_over() {
    let app = LongLived::new();
    let config = format!(
        r#"
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", protocol: auto, detectTimeout: 50ms,
        routes: [{{ name: all, backendRefs: [{{ name: http }}] }}], tcpRoute: {{ name: bytes, backendRefs: [{{ name: bytes }}] }} }}
  clusters: [{{ name: http, endpoints: ["127.0.0.1:{}"] }}, {{ name: bytes, endpoints: ["127.0.0.1:{}"] }}]
"#,
        app.http.port, app.bytes.port
    );
    let mut proxy = Proxy::start(&config).await;
    let mut live = Live::begin(proxy.port, &[]).and_http2(proxy.port);
    let begun = Instant::now();
    let budget = Duration::from_secs(3);
    proxy.request_stop(budget);
    until("no new client is served", || TcpStream::connect(("127.0.0.1", proxy.port)).is_err()).await;
    live.goes_on(&app.more);
    proxy.ended().await;
    // A moment is kept back for noting their end.
    assert!(begun.elapsed() >= budget - Duration::from_millis(300), "{:?}", begun.elapsed());
    for (name, client) in live.streams.iter_mut().chain(&mut live.echoes) {
        assert!(!client.read_to_end().contains("0\r\n\r\n"), "{name}: what was cut does not look whole");
    }
    let text = proxy.metrics();
    let cut = r#"outrigger_downstream_connections_cut_total{listener="in",reason="drain"}"#;
    let cut = text.lines().find_map(|line| line.strip_prefix(cut)).map(str::trim);
    assert!(cut.is_some_and(|count| count.parse::<u32>().unwrap() >= 4), "all were counted: {text}");
}

#[tokio::test]
async fn a_reload_of_one_cluster_leaves_the_connections_of_all_others() {
    // Who is connected, by application: a connection is one as long as it lives.
    let connected = [Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0))];
    let apps = connected.each_ref().map(|count| {
        let count = Arc::clone(count);
        App::talking(move |mut stream| {
            *count.lock().unwrap() += 1;
            while read_request(&mut stream).is_some() && stream.write_all(OK.as_bytes()).is_ok() {}
        })
    });
    let other = crate::harness::free_port();
    let config = |pool: &str| {
        format!(
            r#"
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", routes: [{{ name: all, backendRefs: [{{ name: first }}] }}] }}
    - {{ name: other, direction: inbound, address: "127.0.0.1:{other}", routes: [{{ name: all, backendRefs: [{{ name: second }}] }}] }}
  clusters:
    - {{ name: first, endpoints: ["127.0.0.1:{}"] }}
    - {{ name: second, endpoints: ["127.0.0.1:{}"]{pool} }}
"#,
            apps[0].port, apps[1].port
        )
    };
    let proxy = Proxy::start_on(&config(""), 1).await;
    let mut clients = [Client::connect(proxy.port), Client::connect(other)];
    let mut ask = || clients.iter_mut().all(|client| client.ask(GET).starts_with("HTTP/1.1 200"));
    assert!(ask() && ask());
    let count = || connected.each_ref().map(|count| *count.lock().unwrap());
    assert_eq!(count(), [1, 1], "connections are kept");
    proxy.reload(&config(", pool: { maxIdle: 5 }"));
    until("the changed cluster has a connection of its own", || {
        assert!(ask(), "both clients keep their connections");
        count()[1] == 2
    })
    .await;
    assert!(ask() && ask());
    assert_eq!(count(), [1, 2], "the other one's connection is the same");
    proxy.stop().await;
}
