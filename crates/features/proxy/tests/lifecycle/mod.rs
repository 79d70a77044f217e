//! Limits, stops and reloads.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::OK;
use crate::harness::{self, App, Client, Proxy, Shop, text};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn header_limits_hold_to_the_byte() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("      limits: { maxHeaderBytes: 1KiB, maxHeaders: 3 }\n")).await;
    let of_size = |size: usize| {
        let rest = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(size - rest))
    };
    let three = "GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\n\r\n";
    for (name, request, status) in [
        ("as large as may be", of_size(1024), "200"),
        ("a byte more", of_size(1025), "431"),
        ("as many as may be", three.to_owned(), "200"),
        ("one more", three.replace("A: 1", "A: 1\r\nC: 3"), "431"),
    ] {
        let answer = Client::connect(proxy.port).ask(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_full_listener_serves_whoever_comes_when_there_is_room() {
    let app = App::answering(OK);
    // Two workers: whichever of them a client reaches must get the only place.
    let proxy = Proxy::start(&app.plain_config("      limits: { maxConnections: 1 }\n")).await;
    for round in 0..10 {
        let mut first = Client::connect(proxy.port);
        assert!(first.ask(GET).starts_with("HTTP/1.1 200"), "round {round}");
        let mut second = Client::connect(proxy.port);
        second.send(GET);
        second.socket().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(second.read_some(), "", "round {round}: there is no room");
        second.socket().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        drop(first);
        assert!(second.read_some().starts_with("HTTP/1.1 200"), "round {round}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn clients_that_stall_in_the_middle_are_not_waited_for() {
    let big = format!("HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n{}", "x".repeat(1_000_000));
    let app = App::talking(move |mut stream| {
        while let Some(request) = harness::read_request(&mut stream) {
            if request.starts_with("GET /big") {
                let _ = stream.write_all(big.as_bytes());
                while stream.write_all(&[b'x'; 100_000]).is_ok() {}
            }
        }
    });
    let config = app.plain_config("      limits: { bodyTimeout: 300ms }\n");
    let proxy = Proxy::start(&config.replace("name: all,", "name: all, timeouts: { request: 30s },")).await;
    let proxy_port = proxy.port;
    // One that does not read its answer.
    let mut reader = Client::connect(proxy.port);
    reader.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    // One that does not send the rest of its request.
    let mut sender = Client::connect(proxy.port);
    sender.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    assert!(sender.read_to_end().starts_with("HTTP/1.1 408"), "it is told");
    // One whose bytes come, but too few for the time they take.
    let trickle = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(proxy_port);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
        for _ in 0..1000 {
            if client.socket().write_all(b"x").is_err() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    assert!(trickle.await.unwrap(), "it was never cut");
    proxy.metrics_have("outrigger_downstream_connections_cut_total{listener=\"in\",reason=\"body_timeout\"} 3").await;
    proxy.metrics_have("outrigger_http_requests_in_flight{listener=\"in\"} 0").await;
    proxy.metrics_have("outrigger_downstream_connections_active{listener=\"in\"} 0").await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_slow_request_is_the_clients_timeout_and_a_slow_answer_the_endpoints() {
    let app = App::new(|_| None);
    let config = app.plain_config("").replace("name: all,", "name: all, timeouts: { request: 200ms },");
    let proxy = Proxy::start(&config).await;
    let slow = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf";
    for (request, status) in [(slow, "408"), (GET, "504")] {
        let begun = Instant::now();
        let answer = Client::connect(proxy.port).ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(begun.elapsed() >= Duration::from_millis(190), "not before its time");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_full_pool_refuses_and_says_so() {
    let (app, release) = App::held(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = app.plain_config("").replace("endpoints:", "circuitBreakers: { maxConnections: 1 }\n      endpoints:")
        + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start_on(&config, 1).await;
    let mut busy = Client::connect(proxy.port);
    busy.send(GET);
    harness::until("the request reached the application", || app.seen().len() == 1).await;
    assert!(Client::connect(proxy.port).ask(GET).starts_with("HTTP/1.1 503"));
    release.send(()).unwrap();
    assert!(busy.read_some().starts_with("HTTP/1.1 200"));
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("\"flags\":\"UO\"") && log.contains("too many connections"), "{log}");
}

#[tokio::test]
async fn a_connection_kept_for_one_endpoint_makes_room_for_another() {
    let apps = [App::answering(OK), App::answering(OK)];
    let both = format!("endpoints: [\"127.0.0.1:{}\", ", apps[1].port);
    let config = apps[0].plain_config("").replace("endpoints: [", &both);
    let proxy =
        Proxy::start_on(&config.replace("endpoints:", "circuitBreakers: { maxConnections: 1 }\n      endpoints:"), 1)
            .await;
    let mut client = Client::connect(proxy.port);
    for _ in 0..30 {
        assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    }
    assert!(apps.iter().all(|app| !app.seen().is_empty()), "both got some");
    proxy.metrics_have("outrigger_upstream_connections_active{cluster=\"app\"} 1").await;
    proxy.stop().await;
}

#[tokio::test]
async fn outbound_serves_on_until_the_application_is_done() {
    let app = App::answering(OK);
    let config = app.plain_config("").replace("direction: inbound", "direction: outbound");
    let (_unused, identities) = outrigger_identity::IdentityComponent::new();
    let mut proxy = Proxy::start_with(&config, identities, 1).await;
    let mut client = Client::connect(proxy.port);
    assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    proxy.request_stop(Duration::from_secs(20));
    // The stop takes its time; meanwhile the application works, on this connection and on new ones.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
        assert!(Client::connect(proxy.port).ask(GET).starts_with("HTTP/1.1 200"));
    }
    let begun = Instant::now();
    drop(client);
    proxy.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "with the last connection it ends");
}

#[tokio::test]
async fn what_waits_in_the_backlog_at_a_stop_is_served() {
    let app = App::answering(OK);
    let mut proxy = Proxy::start(&app.plain_config("      limits: { maxConnections: 1 }\n")).await;
    let mut first = Client::connect(proxy.port);
    assert!(first.ask(GET).starts_with("HTTP/1.1 200"));
    let mut waiting = Client::connect(proxy.port);
    waiting.send(GET);
    proxy.request_stop(Duration::from_secs(20));
    let answer = text(tokio::task::spawn_blocking(move || waiting.read_to_end()).await);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.to_lowercase().contains("connection: close"), "{answer}");
    proxy.ended().await;
}

#[tokio::test]
async fn a_listener_moves_only_when_its_new_place_is_free() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut kept = Client::connect(proxy.port);
    assert!(kept.ask(GET).starts_with("HTTP/1.1 200"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let new_port = taken.local_addr().unwrap().port();
    let moved = app.plain_config("").replace("PORT", &new_port.to_string());
    proxy.reload(&moved);
    harness::until("the taken port is told", || {
        let (state, reason) = proxy.status();
        state == "degraded" && reason.contains(&new_port.to_string())
    })
    .await;
    assert!(Client::connect(proxy.port).ask(GET).starts_with("HTTP/1.1 200"), "the old place is still served");
    assert!(kept.ask(GET).starts_with("HTTP/1.1 200"), "its connections were not touched");
    drop(taken);
    harness::until("the move is tried again and told", || proxy.status().0 == "ready").await;
    assert!(Client::connect(new_port).ask(GET).starts_with("HTTP/1.1 200"));
    harness::until("the old place is left", || std::net::TcpStream::connect(("127.0.0.1", proxy.port)).is_err()).await;
    // To an address that its own socket stands in the way of.
    proxy.reload(&moved.replace("address: 127.0.0.1", "address: 0.0.0.0"));
    harness::until("it listens on all addresses", || std::net::TcpStream::connect(("127.0.0.2", new_port)).is_ok())
        .await;
    assert!(Client::connect(new_port).ask(GET).starts_with("HTTP/1.1 200"));
    assert_eq!(proxy.status().0, "ready");
    proxy.stop().await;
}

#[tokio::test]
async fn limits_and_access_log_change_under_an_open_connection() {
    let app = App::answering(OK);
    let folder = tempfile::tempdir().unwrap();
    let with_log = |name: &str| {
        app.plain_config("") + &format!("  accessLog: {{ path: {} }}\n", folder.path().join(name).display())
    };
    let proxy = Proxy::start(&with_log("first.log")).await;
    let mut client = Client::connect(proxy.port);
    assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    proxy.reload(&with_log("second.log"));
    let lines = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default().lines().count();
    harness::until("the new log is written", || {
        assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
        lines("second.log") > 0
    })
    .await;
    // A log that cannot be opened: told, and the old one goes on.
    proxy.reload(&with_log("absent/third.log"));
    harness::until("the missing folder is told", || proxy.status().1.contains("absent/third.log")).await;
    let before = lines("second.log");
    assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    harness::until("the old log is written", || lines("second.log") > before).await;
    std::fs::create_dir(folder.path().join("absent")).unwrap();
    harness::until("the folder is noticed", || proxy.status().0 == "ready").await;
    let answered = app.seen().len();
    proxy.stop().await;
    assert_eq!(lines("first.log") + lines("second.log") + lines("absent/third.log"), answered, "no line is lost");
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_told_and_refused() {
    let app = App::answering(OK);
    let config = app
        .plain_config("")
        .replace("127.0.0.1:", "no-such-host.invalid:")
        .replace("no-such-host.invalid:PORT", "127.0.0.1:PORT");
    let proxy = Proxy::start(&config).await;
    let (state, reason) = proxy.status();
    assert!(state == "degraded" && reason.contains("no-such-host.invalid"), "{state} {reason}");
    let answer = Client::connect(proxy.port).ask(GET);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no endpoint"), "{answer}");
    proxy.reload(&app.plain_config(""));
    harness::until("the new cluster is used", || Client::connect(proxy.port).ask(GET).starts_with("HTTP/1.1 200"))
        .await;
    harness::until("all is well again", || proxy.status().0 == "ready").await;
    proxy.stop().await;
}

#[tokio::test]
async fn handshakes_that_never_end_are_cut() {
    let app = App::answering(OK);
    let shop =
        Shop::start_with(&app, "spiffe://shop.example/ns/shop/sa/backend", "limits: { headerTimeout: 200ms }").await;
    let mut silent = Client::connect(shop.backend.port);
    silent.socket().write_all(b"\x16\x03\x01").unwrap();
    let mut rest = Vec::new();
    let _ = silent.socket().read_to_end(&mut rest);
    shop.backend.metrics_have("outrigger_tls_handshakes_total{listener=\"in\",result=\"timeout\"} 1").await;
    shop.stop().await;
}

#[tokio::test]
async fn connections_between_sidecars_are_kept() {
    let app = App::answering(OK);
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    let mut client = Client::connect(shop.outbound());
    for _ in 0..20 {
        assert!(client.ask(GET).starts_with("HTTP/1.1 200"));
    }
    shop.backend.metrics_have("outrigger_tls_handshakes_total{listener=\"in\",result=\"ok\"} 1").await;
    shop.frontend.metrics_have("outrigger_upstream_connections_active{cluster=\"backend\"} 1").await;
    shop.frontend.metrics_have("peer=\"spiffe://shop.example/ns/shop/sa/backend\"").await;
    shop.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_used_for_new_requests_and_disturbs_none_under_way() {
    let (release, held) = std::sync::mpsc::sync_channel::<()>(1);
    let held = std::sync::Mutex::new(held);
    let app = App::new(move |request| {
        if request.starts_with("GET /slow") {
            let _ = held.lock().unwrap().recv_timeout(Duration::from_secs(20));
        }
        Some(OK.to_owned())
    });
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    let mut idle = Client::connect(shop.outbound());
    assert!(idle.ask(GET).starts_with("HTTP/1.1 200"));
    let mut slow = Client::connect(shop.outbound());
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    harness::until("the slow request is under way", || app.seen().len() == 2).await;
    shop.rotate_frontend("renewed");
    harness::until("requests come with the new identity", || {
        assert!(idle.ask(GET).starts_with("HTTP/1.1 200"));
        app.seen().last().is_some_and(|request| request.contains("sa/renewed"))
    })
    .await;
    release.send(()).unwrap();
    assert!(slow.read_some().starts_with("HTTP/1.1 200"), "the request under way was not disturbed");
    for _ in 0..5 {
        assert!(Client::connect(shop.outbound()).ask(GET).starts_with("HTTP/1.1 200"));
        let last = app.seen().pop().unwrap();
        assert!(last.contains("sa/renewed"), "no connection of the old identity is used again: {last}");
    }
    shop.stop().await;
}
