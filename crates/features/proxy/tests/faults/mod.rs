//! Endpoints that fail in every way: what the client gets, what is noted, and that nobody else notices.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::OK;
use crate::harness::{self, App, Client, Proxy, read_request};

/// What an endpoint does with a connection on which a request has come.
type Deed = fn(&mut TcpStream);

/// What the client must see.
#[derive(Debug, Clone, Copy)]
enum Sees {
    Code(u16),
    /// A beginning, and no end that could be taken for one.
    Broken(&'static str),
}
use Sees::{Broken, Code};

fn reset(stream: &mut TcpStream) {
    let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
}

fn say(stream: &mut TcpStream, bytes: &str) {
    let _ = stream.write_all(bytes.as_bytes());
}

fn hold(stream: &mut TcpStream) {
    // Until the proxy gives up.
    while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
}

/// Name, deed, what the client sees, flag and reason in the access log, code in the metric.
const FAULTS: &[(&str, Deed, Sees, &str, &str)] = &[
    ("closes before its head", |_| {}, Code(502), "UC", "the endpoint closed the connection"),
    ("resets before its head", reset, Code(502), "UC", "the endpoint closed the connection"),
    ("closes within its head", |s| say(s, "HTTP/1.1 200 OK\r\nContent-"), Code(502), "UPE", "its head was cut short"),
    (
        "resets within its head",
        |s| {
            say(s, "HTTP/1.1 200 OK\r\nContent-");
            std::thread::sleep(Duration::from_millis(20));
            reset(s);
        },
        Code(502),
        "UC",
        "the endpoint closed the connection",
    ),
    ("says nothing", hold, Code(504), "UT", "did not answer in time"),
    (
        "stops within its head",
        |s| {
            say(s, "HTTP/1.1 200 OK\r\nX: ");
            hold(s);
        },
        Code(504),
        "UT",
        "did not answer in time",
    ),
    (
        "closes within a length",
        |s| say(s, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"),
        Broken("part"),
        "UC",
        "the endpoint closed the connection",
    ),
    (
        "closes within a chunk",
        |s| say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\npart"),
        Broken("part"),
        "UC",
        "the endpoint closed the connection",
    ),
    (
        "closes before the last chunk",
        |s| say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"),
        Broken("part"),
        "UC",
        "the endpoint closed the connection",
    ),
    (
        "resets within a body that ends with the connection",
        |s| {
            say(s, "HTTP/1.1 200 OK\r\n\r\npart");
            std::thread::sleep(Duration::from_millis(20));
            reset(s);
        },
        Broken("part"),
        "UC",
        "the endpoint closed the connection",
    ),
    (
        "breaks its chunks",
        |s| {
            say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n");
            hold(s);
        },
        Broken("part"),
        "UPE",
        "invalid response",
    ),
    ("speaks something else", |s| say(s, "220 mail.example ESMTP\r\n"), Code(502), "UPE", "not an HTTP/1 status line"),
    ("speaks TLS", |s| say(s, "\x15\x03\x01\0\x02\x02\x46"), Code(502), "UPE", "not an HTTP/1 status line"),
    (
        "sends a head that is too large",
        |s| {
            say(s, &format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(300_000)));
            hold(s);
        },
        Code(502),
        "UPE",
        "the head is too large",
    ),
    (
        "sends too many fields",
        |s| say(s, &format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(300))),
        Code(502),
        "UPE",
        "too many header fields",
    ),
    (
        "says two lengths",
        |s| say(s, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
        Code(502),
        "UPE",
        "more than one Content-Length",
    ),
    (
        "says a coding we do not know",
        |s| say(s, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx"),
        Code(502),
        "UPE",
        "Transfer-Encoding is not `chunked`",
    ),
    ("folds a line", |s| say(s, "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n"), Code(502), "UPE", "folded header line"),
    (
        "never comes to the point",
        |s| {
            for _ in 0..100 {
                say(s, "HTTP/1.1 103 Early Hints\r\n\r\n");
            }
            hold(s);
        },
        Code(502),
        "UPE",
        "too many interim responses",
    ),
    ("switches protocols unasked", |s| say(s, "HTTP/1.1 101 Switching Protocols\r\n\r\n"), Code(502), "UPE", "unasked"),
];

#[tokio::test]
async fn an_endpoint_that_fails_is_told_on_and_its_neighbours_go_on() {
    for (name, deed, sees, flag, reason) in FAULTS {
        let app = App::talking(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                if request.starts_with("GET /fault") {
                    return deed(&mut stream);
                }
                let _ = stream.write_all(OK.as_bytes());
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let config = app.plain_config("").replace("name: all,", "name: all, timeouts: { request: 500ms },")
            + &format!("  accessLog: {{ path: {} }}\n", path.display());
        let proxy = Proxy::start_on(&config, 1).await;
        let ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut neighbour = Client::connect(proxy.port);
        assert!(neighbour.ask(ask).starts_with("HTTP/1.1 200"), "{name}");
        let port = proxy.port;
        let asked = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(port);
            client.send("GET /fault HTTP/1.1\r\nHost: a\r\n\r\n");
            let _ = client.socket().set_read_timeout(Some(Duration::from_secs(20)));
            match sees {
                Code(_) => {
                    let mut answer = client.read_some();
                    while answer.starts_with("HTTP/1.1 1") {
                        answer = answer.split_once("\r\n\r\n").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
                        if answer.is_empty() {
                            answer = client.read_some();
                        }
                    }
                    // It is answered, so the next request on the connection is none the worse.
                    (answer, client.ask("GET /next HTTP/1.1\r\nHost: a\r\n\r\n"))
                }
                Broken(_) => (client.read_to_end(), String::new()),
            }
        });
        let (answer, next) = asked.await.expect("an answer");
        let code = match sees {
            Code(code) => {
                assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{name}: {answer}");
                assert!(next.starts_with("HTTP/1.1 200"), "{name}: the next request: {next}");
                *code
            }
            Broken(part) => {
                assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(part), "{name}: {answer}");
                assert!(!answer.ends_with("0\r\n\r\n"), "{name}: an end was made up: {answer}");
                200
            }
        };
        assert!(neighbour.ask(ask).starts_with("HTTP/1.1 200"), "{name}: the neighbour");
        proxy.metrics_have(&format!("code=\"{code}\"")).await;
        proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
        proxy.stop().await;
        let log = std::fs::read_to_string(&path).expect("a log");
        let line = log.lines().find(|line| line.contains("\"path\":\"/fault\"")).expect("a line");
        assert!(line.contains(&format!("\"flags\":\"{flag}\"")) && line.contains(reason), "{name}: {line}");
        assert_eq!(log.matches("\"flags\"").count(), 1, "{name}: only that request: {log}");
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_told_on() {
    // Full: the kernel lets nobody else in, and the handshake gets no answer.
    let full = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let _ = rustix::net::listen(&full, 0);
    let black_hole = full.local_addr().expect("an address").port();
    let fill: Vec<_> = (0..4)
        .filter_map(|_| {
            TcpStream::connect_timeout(&([127, 0, 0, 1], black_hole).into(), Duration::from_millis(200)).ok()
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let app = App::answering(OK);
    let config = app
        .plain_config("")
        .replace(
            "routes: [",
            "routes: [{ name: refused, hostnames: [refused], backendRefs: [{ name: refused }] }, { name: hole, hostnames: [hole], backendRefs: [{ name: hole }] }, { name: nobody, hostnames: [nobody], backendRefs: [{ name: nobody }] }, ",
        )
        .replace("name: all,", "name: all, hostnames: [a],")
        + &format!(
            "    - {{ name: refused, endpoints: [\"127.0.0.1:{}\"] }}\n    - {{ name: hole, connectTimeout: 300ms, endpoints: [\"127.0.0.1:{black_hole}\"] }}\n    - {{ name: nobody, endpoints: [\"nobody.invalid:80\"] }}\n  accessLog: {{ path: {} }}\n",
            harness::free_port(),
            path.display()
        );
    let proxy = Proxy::start_on(&config, 1).await;
    for (host, code) in [("refused", "503"), ("hole", "503"), ("nobody", "503"), ("stranger", "404"), ("a", "200")] {
        let mut client = Client::connect(proxy.port);
        let answer = client.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{host}: {answer}");
    }
    drop(fill);
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).expect("a log");
    for (host, flag, reason) in [
        ("refused", "UF", "cannot connect to the endpoint"),
        ("hole", "UF", "connecting to the endpoint took too long"),
        ("nobody", "UH", "the cluster has no endpoint"),
        ("stranger", "NR", "no route matches"),
    ] {
        let line = log.lines().find(|line| line.contains(&format!("\"host\":\"{host}\""))).expect("a line");
        assert!(line.contains(&format!("\"flags\":\"{flag}\",\"reason\":\"{reason}")), "{host}: {line}");
    }
}

#[tokio::test]
async fn an_endpoint_that_breaks_tls_is_told_on() {
    for (name, deed) in [
        ("closes", (|_| {}) as Deed),
        ("resets", reset),
        ("speaks plain text", |s| say(s, "HTTP/1.1 400 Bad Request\r\n\r\n")),
        // The head of a record that announces more than comes.
        ("breaks off within a record", |s| say(s, "\x16\x03\x03\x00\x7a\x02\0\0\x76")),
    ] {
        let app = App::talking(move |mut stream| {
            let _ = stream.read(&mut [0; 64]);
            deed(&mut stream);
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let config = app.plain_config("").replace("endpoints:", "tls: { serverName: app.example }\n      endpoints:")
            + &format!("  accessLog: {{ path: {} }}\n", path.display());
        let proxy = Proxy::start_on(&config, 1).await;
        let answer = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 503"), "{name}: {answer}");
        proxy.metrics_have("outrigger_upstream_tls_handshakes_total{cluster=\"app\"").await;
        proxy.stop().await;
        let log = std::fs::read_to_string(&path).expect("a log");
        assert!(log.contains("\"flags\":\"UF\""), "{name}: {log}");
    }
}

/// The bytes of one frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// `:status 200`, and then the beginning of a body.
fn begun() -> Vec<u8> {
    [frame(1, 4, 1, b"\x88"), frame(0, 0, 1, b"part")].concat()
}

/// Name, what an endpoint of HTTP/2 says to a request, what the client sees, and the flag in the access log.
type Http2Fault = (&'static str, fn() -> Vec<u8>, Sees, &'static str);

const HTTP2_FAULTS: &[Http2Fault] = &[
    ("resets before its head", || frame(3, 0, 1, &[0, 0, 0, 2]), Code(502), "UC"),
    ("refuses the stream each time", || frame(3, 0, 1, &[0, 0, 0, 7]), Code(503), "UR"),
    ("says GOAWAY for an error", || frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 2]), Code(502), "UC"),
    ("closes before its head", Vec::new, Code(502), "UC"),
    ("resets within its body", || [begun(), frame(3, 0, 1, &[0, 0, 0, 2])].concat(), Broken("part"), "UC"),
    ("closes within its body", begun, Broken("part"), "UC"),
    (
        "sends less than its length says",
        || [frame(1, 4, 1, b"\x88\x0f\x0d\x0299"), frame(0, 1, 1, b"part")].concat(),
        Broken(""),
        "UPE",
    ),
    ("breaks the compression", || frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"), Code(502), "UPE"),
    ("has no status", || frame(1, 5, 1, b"\0\x01x\x01y"), Code(502), "UPE"),
    ("speaks HTTP/1", || b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Code(502), "UPE"),
    (
        "never comes to the point",
        || [frame(1, 4, 1, b"\x08\x03103").repeat(100), frame(1, 5, 1, b"\x88")].concat(),
        Code(502),
        "UPE",
    ),
];

#[tokio::test]
async fn an_endpoint_of_http2_that_fails_is_told_on() {
    for (name, says, sees, flag) in HTTP2_FAULTS {
        let app = App::talking(move |mut stream| {
            say_bytes(&mut stream, &frame(4, 0, 0, &[]));
            let mut preface = [0; 24];
            if stream.read_exact(&mut preface).is_err() {
                return;
            }
            loop {
                let mut head = [0; 9];
                if stream.read_exact(&mut head).is_err() {
                    return;
                }
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                if stream.read_exact(&mut payload).is_err() {
                    return;
                }
                if head[3] == 1 {
                    say_bytes(&mut stream, &says());
                    // What it said must arrive before its end does.
                    let _ = stream.shutdown(std::net::Shutdown::Write);
                    return hold(&mut stream);
                }
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let config = app.plain_config("").replace("endpoints:", "protocol: http2\n      endpoints:")
            + &format!("  accessLog: {{ path: {} }}\n", path.display());
        let proxy = Proxy::start_on(&config, 1).await;
        let port = proxy.port;
        let asked = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(port);
            client.send("GET /fault HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            client.read_to_end()
        });
        let answer = asked.await.expect("an answer");
        // Interim responses go before what counts.
        let last = answer.rfind("HTTP/1.1 ").map_or("", |at| &answer[at..]);
        match sees {
            Code(code) => assert!(last.starts_with(&format!("HTTP/1.1 {code}")), "{name}: {answer}"),
            Broken(part) => {
                assert!(last.starts_with("HTTP/1.1 200") && last.contains(part), "{name}: {answer}");
                assert!(!last.ends_with("0\r\n\r\n"), "{name}: an end was made up: {answer}");
            }
        }
        proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
        proxy.stop().await;
        let log = std::fs::read_to_string(&path).expect("a log");
        assert!(log.contains(&format!("\"flags\":\"{flag}\"")), "{name}: {log}");
    }
}

fn say_bytes(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}
