//! Bounds on what clients may use: what one asks for, what all hold.

use std::io::Write;
use std::time::Duration;

use crate::OK;
use crate::harness::{self, App, Client, Proxy, Shop};
use crate::http2::{END_HEADERS, END_STREAM, Frames, HEADERS, WINDOW_UPDATE};

const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn long(target: usize) -> String {
    format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(target - 1))
}

#[tokio::test]
async fn a_target_beyond_its_limit_gets_414_and_a_head_431() {
    let app = App::answering(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = app.plain_config("      limits: { maxUriBytes: 2KiB, maxHeaderBytes: 4KiB }\n")
        + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start(&config).await;
    for (name, request, status) in [
        ("as long as may be", long(2048), "200"),
        ("a byte more", long(2049), "414"),
        ("longer than a whole head may be", long(100_000), "414"),
        ("a query counts", long(2049).replacen("x", "?", 1), "414"),
        ("a large field", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(5000)), "431"),
    ] {
        let answer = Client::connect(proxy.port).ask(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    }
    assert_eq!(app.seen().len(), 1, "only the first reached the application");
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        log.matches("\"code\":414,\"flags\":\"DPE\",\"reason\":\"request target too long\"").count(),
        3,
        "{log}"
    );
}

#[tokio::test]
async fn heads_of_http2_have_the_same_limits() {
    let app = App::answering(OK);
    let line = "      limits: { maxUriBytes: 2KiB, maxHeaderBytes: 4KiB, maxHeaders: 10 }\n";
    let proxy = Proxy::start_on(&app.plain_config(line), 1).await;
    let port = proxy.port;
    // `:method GET`, `:scheme http`, `:authority a`, then a path of so many bytes and so many fields of so many bytes.
    let head = |path: usize, fields: usize, size: usize| {
        let number = |length: usize, out: &mut Vec<u8>| {
            out.push(0x7f);
            let mut rest = length - 127;
            while rest >= 128 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        };
        let mut block = b"\x82\x86\x01\x01a\x04".to_vec();
        number(path, &mut block);
        block.push(b'/');
        block.resize(block.len() + path - 1, b'p');
        for _ in 0..fields {
            block.extend_from_slice(b"\x00\x01x");
            number(size, &mut block);
            block.resize(block.len() + size, b'y');
        }
        block
    };
    for (name, block, status) in [
        ("as large as may be", head(2048, 9, 200), "200"),
        ("the path", head(2049, 1, 200), "414"),
        ("the number of fields", head(200, 10, 200), "431"),
        ("the size of all fields", head(200, 9, 500), "431"),
    ] {
        let (status, asked) = (status.to_owned(), block.clone());
        let answered = tokio::task::spawn_blocking(move || {
            let mut client = Frames::connect(port);
            client.send(HEADERS, END_STREAM | END_HEADERS, 1, &asked);
            loop {
                let (kind, _, _, payload) = client.receive().expect("an answer");
                if kind == HEADERS {
                    return payload;
                }
            }
        });
        let payload = answered.await.unwrap();
        // `:status 200` has an index of its own; others are digits behind the index of `:status`, perhaps in Huffman's code.
        assert_eq!(payload[0] == 0x88, status == "200", "{name}: {payload:?}");
        if status != "200" {
            proxy.metrics_have(&format!("code=\"{status}\"")).await;
        }
    }
    assert_eq!(app.seen().len(), 1);
    proxy.stop().await;
}

#[tokio::test]
async fn all_listeners_together_serve_so_many_connections() {
    let app = App::answering(OK);
    let other = harness::free_port();
    let config = app.plain_config("").replace("proxy:\n", "proxy:\n  limits: { maxConnections: 2 }\n").replace(
        "  clusters:",
        &format!(
            "    - {{ name: other, direction: inbound, address: \"127.0.0.1:{other}\", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}\n  clusters:"
        ),
    );
    let proxy = Proxy::start(&config).await;
    let (mut one, mut two) = (Client::connect(proxy.port), Client::connect(other));
    assert!(one.ask(ASK).starts_with("HTTP/1.1 200") && two.ask(ASK).starts_with("HTTP/1.1 200"));
    for port in [proxy.port, other] {
        let mut third = Client::connect(port);
        third.send(ASK);
        third.socket().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(third.read_some(), "", "there is no room");
        third.socket().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        drop(one);
        assert!(third.read_some().starts_with("HTTP/1.1 200"), "it waited in the backlog");
        one = third;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_at_once_and_the_others_answered() {
    let (app, release) = App::held(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = app.plain_config("      limits: { maxRequests: 3 }\n")
        + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start(&config).await;
    let mut busy: Vec<Client> = (0..3).map(|_| Client::connect(proxy.port)).collect();
    busy.iter_mut().for_each(|client| client.send(ASK));
    harness::until("three are under way", || app.seen().len() == 3).await;
    let mut refused = Client::connect(proxy.port);
    for _ in 0..3 {
        // On one connection: it is refused a request, not thrown out.
        let answer = refused.ask(ASK).to_lowercase();
        assert!(answer.starts_with("http/1.1 503") && answer.contains("x-envoy-overloaded: true"), "{answer}");
    }
    (0..3).for_each(|_| release.send(()).unwrap());
    for client in &mut busy {
        assert!(client.read_some().starts_with("HTTP/1.1 200"));
    }
    release.send(()).unwrap();
    assert!(refused.ask(ASK).starts_with("HTTP/1.1 200"), "there is room again");
    assert_eq!(app.seen().len(), 4);
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        log.matches("\"code\":503,\"flags\":\"OM\",\"reason\":\"too many requests under way\"").count(),
        3,
        "{log}"
    );
}

#[tokio::test]
async fn when_memory_is_full_those_who_hold_it_are_cut_and_the_others_served() {
    let big = format!("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n{}", "x".repeat(1_000_000));
    let app = App::talking(move |mut stream| {
        while let Some(request) = harness::read_request(&mut stream) {
            let answer = if request.starts_with("GET /big") { big.as_str() } else { OK };
            let _ = stream.write_all(answer.as_bytes());
            while answer != OK && stream.write_all(&[b'x'; 100_000]).is_ok() {}
        }
    });
    let config = app.plain_config("").replace("proxy:\n", "proxy:\n  limits: { maxBufferBytes: 1MiB }\n");
    let proxy = Proxy::start_on(&config, 1).await;
    proxy.metrics_have("outrigger_proxy_buffer_limit_bytes 1048576").await;
    // These do not read their answers.
    let mut readers: Vec<Client> = (0..20).map(|_| Client::connect(proxy.port)).collect();
    readers.iter_mut().for_each(|client| client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n"));
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 327680"#).await;
    // Sixteen kibibytes each: none of them ends its head.
    let mut halves: Vec<Client> = (0..60).map(|_| Client::connect(proxy.port)).collect();
    halves.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: a\r\nX: "));
    proxy.metrics_have(r#"outrigger_downstream_connections_cut_total{listener="in",reason="memory"}"#).await;
    proxy.metrics_have("outrigger_proxy_buffer_reclaims_total").await;
    // Whoever held memory longest has gone, so that others are served.
    let served = || Client::connect(proxy.port).ask(ASK).starts_with("HTTP/1.1 200");
    harness::until("there is room for others", served).await;
    let mut first = readers.remove(0);
    let read = tokio::task::spawn_blocking(move || first.read_to_end().len()).await.unwrap();
    assert!(read < 100_000_000, "the one that held longest did not get all of its answer");
    drop((halves, readers));
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 0"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn what_tls_holds_for_a_peer_that_does_not_read_is_counted() {
    let app = App::answering(&format!("HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n{}", "x".repeat(20_000_000)));
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    let mut client = Client::connect(shop.outbound());
    client.send(ASK);
    // The block that the application's answer is read into, and what is encrypted and not taken.
    let lent = || shop.backend.metric(r#"outrigger_proxy_buffer_bytes{state="lent"}"#);
    harness::until("it is counted", || lent() > 65536.0).await;
    drop(client);
    harness::until("it is given back", || lent() == 0.0).await;
    shop.stop().await;
}

#[tokio::test]
async fn when_memory_is_short_new_requests_are_refused() {
    let app = App::answering(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = app.plain_config("").replace("proxy:\n", "proxy:\n  limits: { maxBufferBytes: 1MiB }\n")
        + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start_on(&config, 1).await;
    // Fifty-seven blocks leave less than an eighth.
    let mut halves: Vec<Client> = (0..57).map(|_| Client::connect(proxy.port)).collect();
    halves.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: a\r\nX: "));
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 933888"#).await;
    let answer = Client::connect(proxy.port).ask(ASK).to_lowercase();
    assert!(answer.starts_with("http/1.1 503") && answer.contains("x-envoy-overloaded"), "{answer}");
    drop(halves);
    let served = || Client::connect(proxy.port).ask(ASK).starts_with("HTTP/1.1 200");
    harness::until("there is room again", served).await;
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("\"flags\":\"OM\",\"reason\":\"too much memory in use\""), "{log}");
}

#[tokio::test]
async fn what_comes_for_requests_of_http2_counts_until_they_end() {
    // Takes nothing of the body.
    let app = App::talking(|mut stream| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 64]);
        std::thread::sleep(Duration::from_secs(30));
    });
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let port = proxy.port;
    // `POST / HTTP/2` for the host `a`.
    const POST: &[u8] = b"\x83\x84\x86\x01\x01a";
    let mut client = Frames::connect(port);
    // The connection's window is the protocol's 64 KiB until the proxy has said that it is larger.
    let mut frames = std::iter::from_fn(|| client.receive());
    assert!(frames.any(|(kind, _, stream, _)| (kind, stream) == (WINDOW_UPDATE, 0)));
    // More than the kernel and the endpoint's connection take, within the windows that the proxy offers.
    let sent = (0..16_u32).all(|stream| {
        let stream = stream * 2 + 1;
        client.send(HEADERS, END_HEADERS, stream, POST) && (0..3).all(|_| client.send(0, 0, stream, &[b'x'; 16_000]))
    });
    assert!(sent);
    let count = r#"outrigger_http_requests_in_flight{listener="in"} 16"#;
    proxy.metrics_have(count).await;
    for stream in 0..16_u32 {
        client.send(3, 0, stream * 2 + 1, &8_u32.to_be_bytes());
        // Under way when the request ended.
        client.send(0, 0, stream * 2 + 1, &[b'x'; 1000]);
    }
    proxy.metrics_have(r#"outrigger_http_requests_in_flight{listener="in"} 0"#).await;
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 0"#).await;
    drop(client);
    proxy.stop().await;
}
