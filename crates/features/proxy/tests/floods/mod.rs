//! HTTP/2 clients that give us work and none to themselves: cut off, counted, and nobody else the worse for it.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::OK;
use crate::harness::{App, Client, Proxy};
use crate::http2::{
    CONTINUATION, END_HEADERS, END_STREAM, Frames, GET, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const PADDED: u8 = 8;
const PRIORITISED: u8 = 0x20;

/// The bytes of one frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A request that is not ended.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, GET)
}

fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, GET)
}

/// The `n`th piece of a flood, and how many pieces there are at most.
type Flood = fn(u32) -> Vec<u8>;

const FLOODS: &[(&str, u32, Flood)] = &[
    ("pings", 20_000, |_| frame(PING, 0, 0, &[0; 8])),
    ("settings", 20_000, |_| frame(SETTINGS, 0, 0, &[])),
    ("settings that touch every stream", 20_000, |n| {
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x7f, if n % 2 == 0 { 1 } else { 2 }])
    }),
    ("priorities", 20_000, |n| frame(PRIORITY, 0, n * 2 + 1, &[0, 0, 0, 0, 9])),
    ("streams that depend on one another", 20_000, |n| {
        let (one, other) = if n % 2 == 0 { (1, 3) } else { (3, 1_u32) };
        frame(PRIORITY, 0, one, &[&other.to_be_bytes()[..], &[9]].concat())
    }),
    ("updates of the connection's window", 20_000, |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ("updates of a stream's window", 20_000, |n| match n {
        0 => open(1),
        _ => frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
    }),
    ("frames that nobody knows", 20_000, |_| frame(0x42, 0, 0, b"x")),
    ("empty data", 20_000, |n| if n == 0 { open(1) } else { frame(DATA, 0, 1, &[]) }),
    ("data that is all padding", 20_000, |n| if n == 0 { open(1) } else { frame(DATA, PADDED, 1, &[0]) }),
    ("a byte of data at a time", 200_000, |n| if n == 0 { open(1) } else { frame(DATA, 0, 1, b"x") }),
    ("resets of requests", 20_000, |n| {
        [request(n * 2 + 1), frame(RST_STREAM, 0, n * 2 + 1, &8_u32.to_be_bytes())].concat()
    }),
    ("resets of one request, again and again", 20_000, |n| match n {
        0 => request(1),
        _ => frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()),
    }),
    // What is called MadeYouReset: the client's mistake has us reset the stream, while its request goes on.
    ("windows that overflow", 20_000, |n| {
        [request(n * 2 + 1), frame(WINDOW_UPDATE, 0, n * 2 + 1, &0x7fff_ffff_u32.to_be_bytes())].concat()
    }),
    ("requests that depend on themselves", 20_000, |n| {
        let stream = n * 2 + 1;
        let payload = [&stream.to_be_bytes()[..], &[9], GET].concat();
        frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, stream, &payload)
    }),
    ("requests that are malformed", 20_000, |n| {
        // `:method` twice.
        frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &[&b"\x82"[..], GET].concat())
    }),
    ("requests beyond the limit", 200_000, |n| open(n * 2 + 1)),
    ("a head without end", 20_000, |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, GET),
        _ => frame(CONTINUATION, 0, 1, &[&b"\x00\x01x\x7e"[..], &[b'y'; 126]].concat()),
    }),
    ("a head without end, in empty pieces", 20_000, |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, GET),
        _ => frame(CONTINUATION, 0, 1, &[]),
    }),
    ("a field of four kilobytes, told again by an index", 2_000, |n| match n {
        // A literal with indexing: `x: yyyy…`; its index is 62 from then on.
        0 => frame(HEADERS, END_HEADERS | END_STREAM, 1, &[GET, &b"\x40\x01x\x7f\xa1\x1e"[..], &[b'y'; 4000]].concat()),
        n => frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &[GET, &[0xbe; 16_000]].concat()),
    }),
];

#[tokio::test]
async fn every_flood_is_cut_off_and_counted_and_its_neighbours_go_on() {
    for (name, most, flood) in FLOODS {
        // Never answers those of the flood, so that every request is under way.
        let app = App::new(|request| request.contains("neighbour").then(|| OK.to_owned()));
        let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
        let port = proxy.port;
        let mut neighbour = Client::connect(port);
        let ask = "GET /neighbour HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(neighbour.ask(ask).starts_with("HTTP/1.1 200"), "{name}");
        let flooding = tokio::task::spawn_blocking(move || {
            let mut client = Frames::connect(port);
            let pieces: Vec<u32> = (0..*most).collect();
            let ended = pieces.chunks(64).find(|pieces| {
                let bytes: Vec<u8> = pieces.iter().flat_map(|n| flood(*n)).collect();
                client.0.write_all(&bytes).is_err()
            });
            (ended.is_some(), client.goaway())
        });
        let (ended, code) = flooding.await.unwrap();
        // The reset that follows may overtake the farewell.
        assert!(ended || code.is_some(), "{name}: all of it was taken");
        let cut = r#"outrigger_downstream_connections_cut_total{listener="in",reason="http2_flood"} 1"#;
        proxy.metrics_have(cut).await;
        assert!(neighbour.ask(ask).starts_with("HTTP/1.1 200"), "{name}: the neighbour");
        proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_cut_off_and_counted() {
    let app = App::new(|_| None);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let broken: &[(&str, Vec<u8>)] = &[
        ("data behind the request's end", [request(1), frame(DATA, 0, 1, b"late")].concat()),
        ("an update by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a stream that goes back", [request(5), request(3)].concat()),
        ("data on no stream", frame(DATA, 0, 7, b"x")),
        ("padding longer than the frame", [open(1), frame(DATA, PADDED, 1, &[9, 0])].concat()),
        ("a frame within a head", [frame(HEADERS, END_STREAM, 1, GET), frame(PING, 0, 0, &[0; 8])].concat()),
        ("a frame larger than we take", frame(DATA, 0, 1, &[0; 20_000])),
        ("a table larger than we take", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xe1, 0xff, 0x03])),
    ];
    for (number, (name, bytes)) in broken.iter().enumerate() {
        let mut client = Frames::connect(proxy.port);
        let _ = client.0.write_all(bytes);
        let code = tokio::task::spawn_blocking(move || client.goaway()).await.unwrap();
        assert_ne!(code, Some(0), "{name}");
        let cut = "outrigger_downstream_connections_cut_total{listener=\"in\",reason=\"http2_protocol\"}";
        proxy.metrics_have(&format!("{cut} {}", number + 1)).await;
    }
    proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_works_hard_is_not_taken_for_a_flood() {
    let app = App::answering(OK);
    let proxy = Proxy::start_on(&app.plain_config("      limits: { maxControlFrames: 1 }\n"), 1).await;
    let port = proxy.port;
    let working = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        for round in 0..500 {
            let stream = round * 2 + 1;
            client.send(HEADERS, END_STREAM | END_HEADERS, stream, GET);
            client.send(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]);
            client.send(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 9]);
            loop {
                let (kind, flags, of, _) = client.receive().unwrap();
                assert_ne!(kind, GOAWAY, "round {round}");
                if of == stream && flags & END_STREAM != 0 {
                    break;
                }
            }
        }
    });
    working.await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn answers_that_a_client_has_no_window_for_are_given_up() {
    let body = "x".repeat(200_000);
    let app = App::answering(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let proxy = Proxy::start_on(&app.plain_config("      limits: { bodyTimeout: 300ms }\n"), 1).await;
    let port = proxy.port;
    let greedy = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        for stream in (1..100).step_by(2) {
            client.send(HEADERS, END_STREAM | END_HEADERS, stream, GET);
        }
        let mut given_up = 0;
        while given_up < 50 {
            let (kind, ..) = client.receive().expect("the connection itself lives");
            given_up += u32::from(kind == RST_STREAM);
        }
    });
    let held = r#"outrigger_downstream_connections_cut_total{listener="in",reason="body_timeout"} 50"#;
    proxy.metrics_have(held).await;
    greedy.await.unwrap();
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 0"#).await;
    proxy.stop().await;
}

/// What an endpoint sends once it was asked something, over and over: the `n`th piece of it.
const ENDPOINT_FLOODS: &[(&str, Flood)] = &[
    ("pings", |_| frame(PING, 0, 0, &[0; 8])),
    ("settings", |_| frame(SETTINGS, 0, 0, &[])),
    ("settings that touch every stream", |n| {
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x7f, if n % 2 == 0 { 1 } else { 2 }])
    }),
    ("priorities", |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])),
    ("updates of the connection's window", |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ("updates of the stream's window", |_| frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
    ("frames that nobody knows", |_| frame(0x42, 0, 0, b"x")),
    ("empty data", |n| if n == 0 { frame(HEADERS, END_HEADERS, 1, b"\x88") } else { frame(DATA, 0, 1, &[]) }),
    ("data that is all padding", |n| {
        if n == 0 { frame(HEADERS, END_HEADERS, 1, b"\x88") } else { frame(DATA, PADDED, 1, &[0]) }
    }),
    ("resets of one request, again and again", |_| frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())),
    // `:status: 103`, as a literal.
    ("interim responses", |_| frame(HEADERS, END_HEADERS, 1, b"\x08\x03103")),
    ("a head without end", |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, b"\x88"),
        _ => frame(CONTINUATION, 0, 1, &[&b"\x00\x01x\x7e"[..], &[b'y'; 126]].concat()),
    }),
    ("a head without end, in empty pieces", |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, b"\x88"),
        _ => frame(CONTINUATION, 0, 1, &[]),
    }),
    ("pushes", |n| frame(5, END_HEADERS, 1, &[&(n * 2 + 2).to_be_bytes()[..], GET].concat())),
];

#[tokio::test]
async fn an_endpoint_that_floods_is_cut_off_and_counted_and_the_next_connection_serves() {
    for (name, flood) in ENDPOINT_FLOODS {
        let connections = AtomicUsize::new(0);
        let (taken, told) = std::sync::mpsc::sync_channel(1);
        let app = App::talking(move |stream| {
            let Some(mut server) = Frames::accept(stream) else { return };
            let floods = connections.fetch_add(1, Ordering::Relaxed) == 0;
            while let Some((kind, flags, stream, payload)) = server.receive() {
                match kind {
                    SETTINGS if flags & 1 == 0 => drop(server.send(SETTINGS, 1, 0, &[])),
                    PING if flags & 1 == 0 => drop(server.send(PING, 1, 0, &payload)),
                    HEADERS if floods => {
                        let pieces: Vec<u32> = (0..20_000).collect();
                        let all = pieces.chunks(64).all(|pieces| {
                            let bytes: Vec<u8> = pieces.iter().flat_map(|n| flood(*n)).collect();
                            server.0.write_all(&bytes).is_ok()
                        });
                        // What the kernel took may still be unread: the end of the connection tells.
                        let _ = taken.send(all && server.goaway().is_none() && server.receive().is_some());
                        return;
                    }
                    HEADERS => drop(server.send(HEADERS, END_HEADERS | END_STREAM, stream, b"\x88")),
                    _ => {}
                }
            }
        });
        let config = app.plain_config("") + "      protocol: http2\n";
        let proxy = Proxy::start_on(&config, 1).await;
        let port = proxy.port;
        let answer = tokio::task::spawn_blocking(move || {
            let mut client = Client::connect(port);
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            client.read_to_end()
        });
        let answer = answer.await.unwrap();
        // An answer that had begun is broken off.
        let begun = name.contains("data");
        // One reset may come to be read before the others, and is no flood.
        let why = ["floods its HTTP/2 connection", "invalid HTTP/2", "too many interim responses"];
        let refused = answer.contains("HTTP/1.1 502")
            && (name.contains("resets") || why.iter().any(|reason| answer.contains(reason)));
        assert!(if begun { !answer.ends_with("\r\n0\r\n\r\n") } else { refused }, "{name}: {answer}");
        let reasons = ["http2_flood", "http2_protocol"]
            .map(|reason| format!("outrigger_upstream_connections_cut_total{{cluster=\"app\",reason=\"{reason}\"}} 1"));
        proxy.metrics_have_one_of(&[&reasons[0], &reasons[1]]).await;
        assert!(!told.recv_timeout(Duration::from_secs(20)).unwrap(), "{name}: all of it was taken");
        let mut client = Client::connect(port);
        let answer = client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
        proxy.stop().await;
    }
}
