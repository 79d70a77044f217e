//! Compressed bodies over real sockets: what clients get, what the application sees, and what is bounded.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use outrigger_wire::coding::{Coding, Decoder, Encoder, Op};

use crate::harness::{App, Client, Proxy, read_request};

const FILTERS: &str = r#"      routes:
        - name: all
          filters:
            - { type: Compressor, compressor: {} }
            - { type: Decompressor, decompressor: {} }
          retry: { codes: [503], onlyIdempotent: false, backoff: 1ms, maxBackoff: 2ms }
          backendRefs: [{ name: app }]
"#;

fn config(app: &App, more: &str) -> String {
    format!(
        "proxy:\n{more}  listeners:\n    - name: in\n      direction: inbound\n      address: 127.0.0.1:PORT\n{FILTERS}  \
         clusters:\n    - {{ name: app, endpoints: [\"127.0.0.1:{}\"] }}\n",
        app.port
    )
}

/// Asks on a connection of its own, and takes the answer apart.
fn fetch(port: u16, request: &[u8]) -> (String, Vec<u8>) {
    let mut stream = Client::connect(port).into_socket();
    let _ = stream.write_all(request);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let body = &all[end..];
    let body = if head.contains("chunked") { joined(body) } else { body.to_vec() };
    (head, body)
}

fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&chunks[end + 2..end + 2 + length]);
        chunks = &chunks[end + 4 + length..];
    }
}

fn get(accepts: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAccept-Encoding: {accepts}\r\n\r\n").into_bytes()
}

fn post(coding: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn compressed(coding: Coding, mut input: &[u8]) -> Vec<u8> {
    let (mut encoder, mut output, mut all) = (Encoder::new(coding, 4), vec![0; 4096], Vec::new());
    loop {
        let op = if input.is_empty() { Op::End } else { Op::Go };
        let step = encoder.step(input, &mut output, op).unwrap();
        input = &input[step.read..];
        all.extend_from_slice(&output[..step.written]);
        if step.done {
            return all;
        }
    }
}

fn decompressed(decoder: &mut Decoder, mut input: &[u8]) -> Vec<u8> {
    let (mut output, mut all) = (vec![0; 4096], Vec::new());
    loop {
        let step = decoder.step(input, &mut output).unwrap();
        input = &input[step.read..];
        all.extend_from_slice(&output[..step.written]);
        if step.read == 0 && step.written == 0 {
            return all;
        }
    }
}

#[tokio::test]
async fn clients_get_the_coding_they_take() {
    let page = "<p>the same again</p>".repeat(10_000);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n{page}",
        page.len()
    );
    let app = App::new(move |request| {
        let head = answer.split_once("\r\n\r\n").unwrap().0;
        Some(if request.starts_with("HEAD") { format!("{head}\r\n\r\n") } else { answer.clone() })
    });
    let proxy = Proxy::start(&config(&app, "")).await;
    for (accepts, coding) in [("gzip", Coding::Gzip), ("br", Coding::Br), ("gzip, br, zstd", Coding::Zstd)] {
        let (head, body) = fetch(proxy.port, &get(accepts));
        for wanted in ["200 OK", "ETag: W/\"v1\"\r\n", "vary: accept-encoding\r\n", "Transfer-Encoding: chunked\r\n"] {
            assert!(head.contains(wanted), "{accepts}: {wanted} in {head}");
        }
        assert!(head.contains(&format!("content-encoding: {}\r\n", coding.as_str())), "{head}");
        assert!(!head.contains("Content-Length") && body.len() < page.len() / 50, "{}: {head}", body.len());
        let mut decoder = Decoder::new(coding);
        assert!(decompressed(&mut decoder, &body) == page.as_bytes() && decoder.is_whole(), "{accepts}");
        proxy.metrics_have(&format!(r#"route="all",work="compress-response",coding="{}"}} 1"#, coding.as_str())).await;
    }
    let counted =
        format!(r#"in_bytes_total{{listener="in",route="all",work="compress-response",coding="br"}} {}"#, page.len());
    proxy.metrics_have(&counted).await;
    let (head, body) = fetch(proxy.port, &get("deflate"));
    assert!(head.contains("vary: accept-encoding\r\n") && head.contains("ETag: \"v1\"\r\n"), "{head}");
    assert_eq!(body.len(), page.len());
    let (head, body) = fetch(proxy.port, &[b"HEAD", &get("gzip")[3..]].concat());
    assert!(head.contains(&format!("Content-Length: {}\r\n", page.len())) && body.is_empty(), "{head}");
    proxy.metrics_have("outrigger_coded_bodies_active 0").await;
    proxy.stop().await;
}

/// An application that sends an event for each message on the channel.
fn events(next: Receiver<String>) -> App {
    let next = Mutex::new(next);
    App::talking(move |mut stream: TcpStream| {
        while read_request(&mut stream).is_some() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            while let Ok(event) = next.lock().unwrap().recv_timeout(Duration::from_secs(20)) {
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                if stream.write_all(chunk.as_bytes()).is_err() || event.is_empty() {
                    let _ = stream.write_all(b"\r\n");
                    break;
                }
            }
        }
    })
}

#[tokio::test]
async fn events_do_not_wait_for_the_next() {
    let (send, next) = sync_channel(8);
    let app = events(next);
    let proxy = Proxy::start(&config(&app, "  limits: { maxCodedBodies: 1 }\n")).await;
    let port = proxy.port;
    let (stream, send) = tokio::task::spawn_blocking(move || {
        let mut stream = Client::connect(port).into_socket();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: br\r\n\r\n").unwrap();
        let (mut decoder, mut raw, mut taken, mut text) = (Decoder::new(Coding::Br), Vec::new(), 0, Vec::new());
        for number in 0..3 {
            send.send(format!("data: {number}\n\n")).unwrap();
            // The next one is sent only when this one is here.
            let expected: String = (0..=number).map(|number| format!("data: {number}\n\n")).collect();
            while text != expected.as_bytes() {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).expect("the event comes");
                assert!(read > 0);
                raw.extend_from_slice(&buffer[..read]);
                let body = raw.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|end| so_far(&raw[end + 4..]));
                let body = body.unwrap_or_default();
                text.extend(decompressed(&mut decoder, &body[taken..]));
                taken = body.len();
            }
        }
        (stream, send)
    })
    .await
    .unwrap();
    proxy.metrics_have("outrigger_coded_bodies_active 1").await;
    send.send("data: plain\n\n".to_owned()).unwrap();
    send.send(String::new()).unwrap();
    drop(stream);
    proxy.metrics_have("outrigger_coded_bodies_active 0").await;
    proxy.stop().await;
}

/// The data of the chunks that came whole.
fn so_far(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|bytes| bytes == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).unwrap(), 16).unwrap();
        let Some(data) = chunks.get(end + 2..end + 4 + length) else { break };
        body.extend_from_slice(&data[..length]);
        chunks = &chunks[end + 4 + length..];
    }
    body
}

#[tokio::test]
async fn without_a_place_answers_go_as_they_are_and_requests_do_not() {
    let page = "x".repeat(5000);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/css\r\nContent-Length: {}\r\n\r\n{page}", page.len());
    let (app, go) = {
        let (go, wait) = sync_channel::<()>(8);
        let wait = Mutex::new(wait);
        let first = Mutex::new(true);
        let app = App::talking(move |mut stream| {
            while let Some(request) = read_request(&mut stream) {
                let slow = request.contains("GET /slow") && std::mem::take(&mut *first.lock().unwrap());
                let (head, body) = answer.split_at(answer.len() - 10);
                if stream.write_all(head.as_bytes()).is_err() {
                    return;
                }
                if slow {
                    let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
                }
                let _ = stream.write_all(body.as_bytes());
            }
        });
        (app, go)
    };
    let proxy = Proxy::start(&config(&app, "  limits: { maxCodedBodies: 1 }\n")).await;
    let mut slow = Client::connect(proxy.port);
    slow.send("GET /slow HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    proxy.metrics_have("outrigger_coded_bodies_active 1").await;
    let (head, body) = fetch(proxy.port, &get("gzip"));
    assert!(!head.contains("content-encoding") && head.contains("vary: accept-encoding"), "{head}");
    assert_eq!(body.len(), page.len());
    let (head, _) = fetch(proxy.port, &post("gzip", &compressed(Coding::Gzip, b"abc")));
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    proxy.metrics_have(r#"skipped_total{listener="in",route="all",work="compress-response"} 1"#).await;
    proxy.metrics_have(r#"skipped_total{listener="in",route="all",work="decompress-request"} 1"#).await;
    go.send(()).unwrap();
    proxy.metrics_have("outrigger_coded_bodies_active 0").await;
    assert!(fetch(proxy.port, &get("gzip")).0.contains("content-encoding: gzip"));
    proxy.stop().await;
}

#[tokio::test]
async fn applications_get_requests_as_they_were_before() {
    let seen = Mutex::new(0);
    let app = App::new(move |_| {
        let mut seen = seen.lock().unwrap();
        *seen += 1;
        // The first try of all fails, so the body is sent again.
        let status = if *seen == 1 { "503 Again" } else { "200 OK" };
        Some(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"))
    });
    let proxy = Proxy::start(&config(&app, "")).await;
    let text = "a line\n".repeat(300);
    for coding in Coding::ALL {
        let (head, _) = fetch(proxy.port, &post(coding.as_str(), &compressed(coding, text.as_bytes())));
        assert!(head.starts_with("HTTP/1.1 200"), "{coding:?}: {head}");
    }
    let requests = app.seen();
    assert_eq!(requests.len(), 4, "one was sent twice");
    for request in requests {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let head = head.to_lowercase();
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-"), "{head}");
        assert_eq!(String::from_utf8(joined(body.as_bytes())).unwrap(), text);
    }
    let bomb = compressed(Coding::Gzip, &vec![0; 4 << 20]);
    let cut = compressed(Coding::Br, text.as_bytes());
    for (name, request, status) in [
        ("a bomb", post("gzip", &bomb), "400"),
        ("cut", post("br", &cut[..cut.len() - 2]), "400"),
        ("not what it says", post("zstd", b"{}"), "400"),
        ("unknown", post("deflate", b"x"), "415"),
        ("several", post("gzip, br", b"x"), "415"),
        ("none", post("identity", b"x"), "200"),
    ] {
        let (head, body) = fetch(proxy.port, &request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {head}{}", String::from_utf8_lossy(&body));
        assert_eq!(head.contains("Accept-Encoding: gzip, br, zstd\r\n"), status == "415", "{name}: {head}");
    }
    proxy.metrics_have("outrigger_coded_bodies_active 0").await;
    proxy.stop().await;
}
