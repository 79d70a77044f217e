//! Where messages begin and end, whoever sends them however.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::OK;
use crate::harness::{App, Client, Proxy, read_request};

#[tokio::test]
async fn a_smuggled_request_is_never_heard() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    for framing in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let mut client = Client::connect(proxy.port);
        let bad =
            format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n");
        // A good request before it, in the same packet, is answered.
        client.send(&format!("GET /good HTTP/1.1\r\nHost: a\r\n\r\n{bad}"));
        let all = client.read_to_end();
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n"), "{all}");
        assert_eq!(all.matches("HTTP/1.1 ").count(), 2, "nothing behind it is answered: {all}");
        assert!(all.contains("HTTP/1.1 400") && all.contains("both Content-Length and Transfer-Encoding"), "{all}");
    }
    assert!(app.seen().iter().all(|request| request.starts_with("GET /good ")), "{:?}", app.seen());
    proxy.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = App::new(|request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        Some(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()))
    });
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3\r\nabc\r\n0\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxxGET /4 HTTP/1.1\r\n");
    client.send("Host: a\r\nConnection: close\r\n\r\n");
    let all = client.read_to_end();
    let order: Vec<_> = all.match_indices("\r\n\r\n/").map(|(at, _)| &all[at + 5..at + 6]).collect();
    assert_eq!(order, ["1", "2", "3", "4"], "{all}");
    proxy.stop().await;
}

#[tokio::test]
async fn old_clients_are_served_as_they_expect() {
    let app = App::new(|request| {
        Some(match request.split(' ').nth(1) {
            Some("/chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(),
            _ => OK.to_owned(),
        })
    });
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    client.send("GET /chunked HTTP/1.0\r\n\r\n");
    let all = client.read_to_end();
    assert!(all.ends_with("\r\n\r\nok") && !all.to_lowercase().contains("chunked"), "{all}");
    let seen = app.seen().remove(0);
    assert!(seen.starts_with("GET /chunked HTTP/1.1\r\n"), "{seen}");
    assert!(seen.to_lowercase().contains(&format!("host: 127.0.0.1:{}\r\n", app.port)), "1.1 needs a Host: {seen}");
    let mut client = Client::connect(proxy.port);
    let answer = client.ask("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    assert!(answer.to_lowercase().contains("connection: keep-alive"), "{answer}");
    assert!(client.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n").ends_with("ok"));
    proxy.stop().await;
}

#[tokio::test]
async fn an_old_client_is_told_by_a_reset_that_a_response_broke_off() {
    let app = App::closing_after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n");
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    client.send("GET / HTTP/1.0\r\n\r\n");
    let mut all = Vec::new();
    let error = client.socket().read_to_end(&mut all).expect_err("no orderly end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    proxy.stop().await;
}

#[tokio::test]
async fn targets_in_every_form() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    for (request, line, host) in [
        ("GET http://real.example:80/x?y=1 HTTP/1.1\r\nHost: forged\r\n\r\n", "GET /x?y=1 ", "host: real.example:80"),
        ("GET http://real.example HTTP/1.1\r\nHost: real.example\r\n\r\n", "GET / ", "host: real.example"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * ", "host: a"),
        ("GET //x/%2Fy HTTP/1.1\r\nHost: a\r\n\r\n", "GET //x/%2Fy ", "host: a"),
    ] {
        assert!(client.ask(request).starts_with("HTTP/1.1 200"), "{request}");
        let seen = app.seen().pop().expect("it was forwarded");
        assert!(seen.starts_with(line) && seen.to_lowercase().contains(host), "{seen}");
        assert!(!seen.contains("forged"), "{seen}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let app = App::new(|request| {
        Some(match request.split(' ').nth(1) {
            Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            Some("/304") => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\n".to_owned(),
            Some("/twice") => OK.replace("Content", "Content-Length: 2\r\nContent"),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n".to_owned(),
        })
    });
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    let mut head = |request: &str| {
        client.send(request);
        client.read_some().to_lowercase()
    };
    let answer = head("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.contains("content-length: 12345") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = head("GET /204 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("http/1.1 204") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(!answer.contains("content-length") && !answer.contains("transfer-encoding"), "{answer}");
    let answer = head("GET /304 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("http/1.1 304") && answer.contains("etag") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = head("GET /twice HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.matches("content-length: 2\r\n").count(), 1, "{answer}");
    // All on one connection, and one more upstream: none of the answers left anything behind.
    assert!(head("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("http/1.1 200"));
    proxy.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_frames_badly_is_told_on() {
    for (name, answer, expected) in [
        (
            "both",
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "200",
        ),
        ("lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok", "502"),
        ("coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "502"),
        ("no http", "SSH-2.0-OpenSSH_9.2\r\n", "502"),
        ("switch", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "502"),
    ] {
        let app = App::answering(answer);
        let proxy = Proxy::start(&app.plain_config("")).await;
        let got = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(got.starts_with(&format!("HTTP/1.1 {expected}")), "{name}: {got}");
        assert!(!got.to_lowercase().contains("content-length: 99"), "{name}: {got}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn trailers_pass_when_announced() {
    let app = App::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    );
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    client.send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n");
    let all = client.read_to_end().to_lowercase();
    assert!(all.contains("\r\n0\r\nx-sum: 7\r\n"), "{all}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_offer_of_http2_does_not_hinder() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let offer = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n\r\n";
    assert!(Client::connect(proxy.port).ask(offer).starts_with("HTTP/1.1 200"));
    let seen = app.seen().remove(0).to_lowercase();
    assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_whole() {
    let app = App::talking(|mut stream| {
        let mut some = [0; 1024];
        let _ = stream.read(&mut some);
        let _ = stream.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
        while stream.read(&mut some).is_ok_and(|read| read > 0) {}
    });
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nbegun");
    assert!(client.read_some().starts_with("HTTP/1.1 413"), "it does not wait for the rest");
    // The connection with half a request in it is not used again, on either side.
    let next = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(next.starts_with("HTTP/1.1 413"), "{next}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_along() {
    let (asked, was_asked) = sync_channel(4);
    let (gone, was_gone) = sync_channel(4);
    let app = App::talking(move |mut stream| {
        let Some(request) = read_request(&mut stream) else { return };
        let _ = asked.send(());
        if request.starts_with("GET /stream") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
        }
        let _ = gone.send(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = app.plain_config("") + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start(&config).await;
    for request in ["GET /wait HTTP/1.1\r\nHost: a\r\n\r\n", "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let mut client = Client::connect(proxy.port);
        client.send(request);
        was_asked.recv_timeout(Duration::from_secs(20)).unwrap();
        if request.starts_with("GET /stream") {
            assert!(client.read_some().starts_with("HTTP/1.1 200"));
        }
        client.socket().shutdown(Shutdown::Both).unwrap();
        assert!(was_gone.recv_timeout(Duration::from_secs(20)).unwrap(), "{request}");
    }
    proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
    proxy.metrics_have("outrigger_upstream_connections_active{cluster=\"app\"} 0").await;
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(log.matches("\"flags\":\"DC\"").count(), 2, "{log}");
}

#[tokio::test]
async fn a_bad_chunk_is_the_clients_mistake() {
    let app = App::talking(|mut stream| while stream.read(&mut [0; 512]).is_ok_and(|read| read > 0) {});
    let proxy = Proxy::start(&app.plain_config("")).await;
    let answer = Client::connect(proxy.port)
        .ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\nbad\r\n");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    proxy.metrics_have("code=\"400\"").await;
    proxy.stop().await;
}
