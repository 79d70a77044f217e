//! Endpoints that fail are taken out, come back, and what all have at once is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};

use crate::balancing::{answers, config};
use crate::harness::{App, Client, Proxy, Shop, free_port, until};

/// An application that names itself, and answers with a status that a test sets; with more header lines.
struct Moody {
    app: App,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
}

impl Moody {
    fn new(name: &'static str, status: u16, lines: &'static str) -> Self {
        let (status, asked) = (Arc::new(AtomicU16::new(status)), Arc::new(AtomicUsize::new(0)));
        let (current, count) = (Arc::clone(&status), Arc::clone(&asked));
        let app = App::new(move |_| {
            count.fetch_add(1, SeqCst);
            let (status, length) = (current.load(SeqCst), name.len());
            Some(format!("HTTP/1.1 {status} x\r\n{lines}Content-Length: {length}\r\n\r\n{name}"))
        });
        Self { app, status, asked }
    }

    fn endpoint(&self) -> String {
        format!("\"127.0.0.1:{}\"", self.app.port)
    }
}

const ONE_AFTER_THE_OTHER: &str = "      loadBalancing: { policy: RoundRobin }\n";

async fn ask(proxy: &Proxy, count: usize) -> HashMap<String, usize> {
    answers(proxy.port, count, |_| String::new()).await
}

/// Asks until only this one answers.
async fn only(proxy: &Proxy, name: &str) {
    let mut last = HashMap::new();
    for _ in 0..1000 {
        last = ask(proxy, 8).await;
        if last.len() == 1 && last.contains_key(name) {
            return;
        }
    }
    panic!("not only {name}: {last:?}");
}

#[tokio::test]
async fn an_endpoint_that_answers_503_is_ejected_and_comes_back() {
    let (good, bad) = (Moody::new("good", 200, ""), Moody::new("bad", 503, ""));
    let endpoints = format!("{}, {}", good.endpoint(), bad.endpoint());
    let detection = "      outlierDetection: { consecutive5xx: 3, interval: 100ms, baseEjectionTime: 300ms, maxEjectionPercent: 50 }";
    let proxy = Proxy::start_on(&config(&endpoints, &format!("{ONE_AFTER_THE_OTHER}{detection}"), ""), 2).await;
    only(&proxy, "good").await;
    proxy.metrics_have("outrigger_outlier_ejections_total{cluster=\"app\",cause=\"consecutive_5xx\"}").await;
    proxy.metrics_have("outrigger_cluster_endpoints{cluster=\"app\",state=\"all\"} 2").await;
    bad.status.store(200, SeqCst);
    until("it is used again", || Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("bad"))
        .await;
    proxy.metrics_have("outrigger_outlier_ejections_active{cluster=\"app\"} 0").await;
    proxy.stop().await;
}

#[tokio::test]
async fn when_all_would_be_ejected_all_are_used() {
    let apps = ["a", "b", "c"].map(|name| Moody::new(name, 503, ""));
    let endpoints = apps.each_ref().map(Moody::endpoint).join(", ");
    let detection = "      outlierDetection: { consecutive5xx: 1, baseEjectionTime: 60s, maxEjectionPercent: 100 }";
    let proxy = Proxy::start_on(&config(&endpoints, &format!("{ONE_AFTER_THE_OTHER}{detection}"), ""), 1).await;
    ask(&proxy, 12).await;
    proxy.metrics_have("outrigger_outlier_ejections_active{cluster=\"app\"} 3").await;
    proxy.metrics_have("outrigger_cluster_panic{cluster=\"app\"} 1").await;
    apps.iter().for_each(|app| app.status.store(200, SeqCst));
    let answers = ask(&proxy, 30).await;
    assert_eq!(answers.len(), 3, "all are worth a try: {answers:?}");
    // Without a word about it in the config, nobody stays away.
    proxy.reload(&config(&endpoints, ONE_AFTER_THE_OTHER, ""));
    proxy.metrics_have("outrigger_outlier_ejections_active{cluster=\"app\"} 0").await;
    proxy.metrics_have("outrigger_cluster_endpoints{cluster=\"app\",state=\"healthy\"} 3").await;
    proxy.stop().await;
}

#[tokio::test]
async fn one_that_says_when_to_come_back_is_left_alone() {
    let (good, busy) = (Moody::new("good", 200, ""), Moody::new("busy", 429, "Retry-After: 600\r\n"));
    let endpoints = format!("{}, {}", good.endpoint(), busy.endpoint());
    let detection = "      outlierDetection: { maxRetryAfter: 600s, maxEjectionTime: 600s }";
    let proxy = Proxy::start_on(&config(&endpoints, &format!("{ONE_AFTER_THE_OTHER}{detection}"), ""), 1).await;
    only(&proxy, "good").await;
    proxy.metrics_have("outrigger_outlier_ejections_total{cluster=\"app\",cause=\"retry_after\"} 1").await;
    let before = busy.asked.load(SeqCst);
    ask(&proxy, 20).await;
    assert_eq!(busy.asked.load(SeqCst), before, "it was not asked again");
    proxy.stop().await;
}

#[tokio::test]
async fn one_that_cannot_be_reached_is_ejected_for_that() {
    let good = Moody::new("good", 200, "");
    let endpoints = format!("\"127.0.0.1:{}\", {}", free_port(), good.endpoint());
    let detection = "      outlierDetection: { consecutiveLocalOriginFailures: 1 }";
    let proxy = Proxy::start_on(&config(&endpoints, &format!("{ONE_AFTER_THE_OTHER}{detection}"), ""), 1).await;
    assert_eq!(ask(&proxy, 4).await.get("good"), Some(&4), "no request is lost by it");
    let state = proxy.admin("/clusters").await;
    assert_eq!(state["clusters"][0]["endpoints"][1]["answers"], 4, "{state:#}");
    let cause = "outrigger_outlier_ejections_total{cluster=\"app\",cause=\"consecutive_local_origin_failures\"} 1";
    proxy.metrics_have(cause).await;
    let state = proxy.admin("/clusters").await;
    let endpoint = &state["clusters"][0]["endpoints"][0];
    assert_eq!(endpoint["health"], "ejected", "{state:#}");
    assert_eq!(endpoint["reason"], "consecutive_local_origin_failures");
    assert!(endpoint["backInSeconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    proxy.stop().await;
}

#[tokio::test]
async fn one_that_succeeds_less_often_than_the_others_is_ejected() {
    let apps = ["a", "b", "c", "bad"].map(|name| Moody::new(name, 200, ""));
    let endpoints = apps.each_ref().map(Moody::endpoint).join(", ");
    apps[3].status.store(500, SeqCst);
    let detection = "      outlierDetection: { consecutive5xx: 0, interval: 100ms, baseEjectionTime: 60s, successRate: { minimumHosts: 3, requestVolume: 4, stdevFactor: 1000 } }";
    let proxy = Proxy::start_on(&config(&endpoints, &format!("{ONE_AFTER_THE_OTHER}{detection}"), ""), 1).await;
    let mut seen = HashMap::from([("bad".to_owned(), 1)]);
    for _ in 0..1000 {
        seen = ask(&proxy, 16).await;
        if !seen.contains_key("bad") {
            break;
        }
    }
    assert!(!seen.contains_key("bad"), "{seen:?}");
    proxy.metrics_have("outrigger_outlier_ejections_total{cluster=\"app\",cause=\"success_rate\"} 1").await;
    proxy.stop().await;
}

#[tokio::test]
async fn requests_beyond_a_circuit_breaker_are_refused() {
    let (app, answer) = App::held("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let endpoints = format!("\"127.0.0.1:{}\"", app.port);
    let proxy = Proxy::start_on(&config(&endpoints, "      circuitBreakers: { maxRequests: 1 }", ""), 2).await;
    let mut first = Client::connect(proxy.port);
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    until("the first request is there", || app.seen().len() == 1).await;
    // On either worker.
    for _ in 0..8 {
        let refused = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("too many requests"), "{refused}");
    }
    assert!(
        (proxy.metric("outrigger_circuit_breaker_refusals_total{cluster=\"app\",breaker=\"requests\"}") - 8.0).abs()
            < 0.1
    );
    answer.send(()).unwrap();
    assert!(first.ask("").starts_with("HTTP/1.1 200"));
    answer.send(()).unwrap();
    until("there is room again", || {
        let answered = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let _ = answer.try_send(());
        answered.starts_with("HTTP/1.1 200")
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn few_wait_for_a_connection() {
    let hole = crate::stale::BlackHole::new();
    let endpoints = format!("\"127.0.0.1:{}\"", hole.port());
    let breakers = "      connectTimeout: 20s\n      circuitBreakers: { maxPendingRequests: 1 }";
    let proxy = Proxy::start_on(&config(&endpoints, breakers, ""), 1).await;
    let mut first = Client::connect(proxy.port);
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    proxy.metrics_have("outrigger_upstream_connections_active{cluster=\"app\"} 1").await;
    let refused = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("wait for a connection"), "{refused}");
    drop(first);
    proxy.metrics_have("outrigger_upstream_connections_active{cluster=\"app\"} 0").await;
    proxy.stop().await;
}

/// A server that answers gRPC's health check as a test says: 1 is serving, 2 is not.
fn grpc_server(state: &Arc<AtomicU16>) -> u16 {
    let state = Arc::clone(state);
    let answer = move |_: usize,
                       request: http::Request<h2::RecvStream>,
                       mut respond: h2::server::SendResponse<bytes::Bytes>| {
        let status = state.load(SeqCst) as u8;
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let head = http::Response::builder().header("content-type", "application/grpc").body(()).expect("a plain head");
        let mut stream = respond.send_response(head, false).expect("the client is there");
        stream.send_data(bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false).expect("it is open");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        stream.send_trailers(trailers).expect("it is open");
    };
    crate::multiplex::http2_server(answer, h2::server::Builder::new)
}

const FAST: &str = "interval: 50ms, noTrafficInterval: 50ms, healthyThreshold: 2, unhealthyThreshold: 2";

/// The health of the cluster's endpoints, as the metrics have it.
async fn healthy(proxy: &Proxy, count: usize) {
    proxy.metrics_have(&format!("outrigger_cluster_endpoints{{cluster=\"app\",state=\"healthy\"}} {count}")).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_its_health_check_gets_nothing_until_it_is_well() {
    let (good, bad) = (Moody::new("good", 200, ""), Moody::new("bad", 200, ""));
    let endpoints = format!("{}, {}", good.endpoint(), bad.endpoint());
    let check = format!("      healthChecks: [{{ type: HTTP, http: {{ path: /healthz }}, {FAST} }}]");
    let with = format!("{ONE_AFTER_THE_OTHER}{check}");
    let proxy = Proxy::start_on(&config(&endpoints, &with, ""), 2).await;
    healthy(&proxy, 2).await;
    bad.status.store(503, SeqCst);
    healthy(&proxy, 1).await;
    assert_eq!(ask(&proxy, 20).await.get("good"), Some(&20), "nothing goes to the other one");
    assert!(bad.app.seen().iter().any(|request| request.starts_with("GET /healthz HTTP/1.1\r\n")));
    bad.status.store(200, SeqCst);
    healthy(&proxy, 2).await;
    assert_eq!(ask(&proxy, 20).await.get("bad"), Some(&10));
    // A check that is gone takes its verdict along.
    bad.status.store(500, SeqCst);
    healthy(&proxy, 1).await;
    proxy.reload(&config(&endpoints, ONE_AFTER_THE_OTHER, ""));
    healthy(&proxy, 2).await;
    proxy.stop().await;
}

#[tokio::test]
async fn when_nobody_passes_the_check_all_are_used() {
    let apps = ["a", "b"].map(|name| Moody::new(name, 404, ""));
    let endpoints = apps.each_ref().map(Moody::endpoint).join(", ");
    let check = format!("{ONE_AFTER_THE_OTHER}      healthChecks: [{{ type: HTTP, {FAST} }}]");
    let proxy = Proxy::start_on(&config(&endpoints, &check, ""), 1).await;
    healthy(&proxy, 0).await;
    proxy.metrics_have("outrigger_cluster_panic{cluster=\"app\"} 1").await;
    assert_eq!(ask(&proxy, 10).await.len(), 2);
    proxy.stop().await;
}

#[tokio::test]
async fn health_is_asked_by_grpc_and_by_tcp() {
    let state = Arc::new(AtomicU16::new(1));
    let port = grpc_server(&state);
    let check = format!("      healthChecks: [{{ type: GRPC, grpc: {{ service: shop.Orders }}, {FAST} }}]");
    let proxy = Proxy::start_on(&config(&format!("\"127.0.0.1:{port}\""), &check, ""), 1).await;
    healthy(&proxy, 1).await;
    state.store(2, SeqCst);
    healthy(&proxy, 0).await;
    state.store(1, SeqCst);
    healthy(&proxy, 1).await;
    proxy.stop().await;

    let pong = App::talking(|mut stream| {
        use std::io::{Read, Write};
        let mut ping = [0; 4];
        if stream.read_exact(&mut ping).is_ok() && &ping == b"PING" {
            let _ = stream.write_all(b"+PONG\r\n");
        }
    });
    let dead = free_port();
    let endpoints = format!("\"127.0.0.1:{}\", \"127.0.0.1:{dead}\"", pong.port);
    for (tcp, count) in [("tcp: { send: PING, receive: PONG }", 1), ("tcp: { send: PING, receive: NEVER }", 0)] {
        let check = format!("      healthChecks: [{{ type: TCP, {tcp}, timeout: 300ms, {FAST} }}]");
        let proxy = Proxy::start_on(&config(&endpoints, &check, ""), 1).await;
        healthy(&proxy, count).await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn health_is_asked_between_sidecars_as_requests_are() {
    let count =
        |healthy: usize| format!("outrigger_cluster_endpoints{{cluster=\"backend\",state=\"healthy\"}} {healthy}");
    for protocol in ["http1", "http2"] {
        let app = Moody::new("app", 200, "");
        let check = format!("healthChecks: [{{ type: HTTP, http: {{ path: /healthz }}, {FAST} }}]");
        let shop = Shop::start_toward(&app.app, &format!("protocol: {protocol}\n      {check}"), 1).await;
        let frontend = &shop.frontend;
        until("the endpoint was asked, and told by whom", || {
            let asked =
                |request: &String| request.starts_with("GET /healthz HTTP/1.1\r\n") && request.contains("sa/frontend");
            app.app.seen().iter().any(asked)
        })
        .await;
        frontend.metrics_have(&count(1)).await;
        app.status.store(503, SeqCst);
        frontend.metrics_have(&count(0)).await;
        app.status.store(200, SeqCst);
        frontend.metrics_have(&count(1)).await;
        // One that is somebody else is not healthy, whatever it answers.
        frontend.reload(&shop.frontend_config.replace("shop/sa/backend", "shop/sa/other"));
        frontend.metrics_have(&count(0)).await;
        let told = frontend.admin("/clusters").await;
        let endpoint = &told["clusters"][0]["endpoints"][0];
        assert!(endpoint["reason"].as_str().is_some_and(|reason| reason.starts_with("TLS: ")), "{told:#}");
        shop.stop().await;
    }
}

#[tokio::test]
async fn health_is_asked_over_http2_in_plain_text() {
    let status = Arc::new(AtomicU16::new(200));
    let current = Arc::clone(&status);
    let answer =
        move |_: usize, request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<bytes::Bytes>| {
            assert_eq!((request.method().as_str(), request.uri().path()), ("HEAD", "/healthz"));
            let head = http::Response::builder().status(current.load(SeqCst)).body(()).expect("a plain head");
            let _ = respond.send_response(head, true);
        };
    let port = crate::multiplex::http2_server(answer, h2::server::Builder::new);
    let check = format!(
        "      protocol: http2\n      healthChecks: [{{ type: HTTP, http: {{ path: /healthz, method: HEAD, expectedStatuses: [200, 204] }}, {FAST} }}]"
    );
    let proxy = Proxy::start_on(&config(&format!("\"127.0.0.1:{port}\""), &check, ""), 1).await;
    for (answer, count) in [(503, 0), (204, 1), (404, 0), (200, 1)] {
        status.store(answer, SeqCst);
        healthy(&proxy, count).await;
    }
    proxy.stop().await;
}
