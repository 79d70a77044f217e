//! What keeps requests from an endpoint: rates, deadlines that have passed, overload.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::time::Duration;

use crate::OK;
use crate::harness::{self, App, Client, Proxy};

/// A listener with these members and one route with these, in front of an application; and its cluster's.
fn config(listener: &str, route: &str, app: &App, cluster: &str) -> String {
    format!(
        r#"
proxy:
  listeners:
    - name: in
      direction: inbound
      address: 127.0.0.1:PORT
      {listener}
      routes: [{{ name: all, backendRefs: [{{ name: app }}], {route} }}]
  clusters:
    - name: app
      endpoints: ["127.0.0.1:{}"]
      {cluster}
"#,
        app.port
    )
}

fn get(header: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\n")
}

/// Asks on a connection of its own, off the runtime's thread.
async fn ask(port: u16, header: &str) -> String {
    let request = get(header);
    tokio::task::spawn_blocking(move || Client::connect(port).ask(&request)).await.unwrap()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

#[tokio::test]
async fn each_key_has_a_rate_of_its_own_over_all_workers_and_reloads() {
    let app = App::answering(OK);
    let limits = "rateLimits: [{ name: per-user, requests: 3, per: 1h, key: [{ type: Header, header: { name: x-user } }], headers: true }]";
    let written = config("", limits, &app, "# plain");
    let proxy = Proxy::start_on(&written, 2).await;
    for user in ["a", "b"] {
        let header = format!("X-User: {user}\r\n");
        let mut passed = 0;
        for _ in 0..12 {
            let answer = ask(proxy.port, &header).await;
            match status(&answer) {
                "200" => passed += 1,
                "429" => {
                    assert!(
                        answer.contains("\r\nRetry-After: 1200\r\n") || answer.contains("\r\nRetry-After: 1199\r\n"),
                        "{answer}"
                    );
                    assert!(answer.contains("\r\nRateLimit-Policy: \"per-user\";q=3;w=3600\r\n"), "{answer}");
                    assert!(answer.contains("\r\nRateLimit: \"per-user\";r=0;t="), "{answer}");
                }
                _ => panic!("{answer}"),
            }
        }
        assert_eq!(passed, 3, "{user}");
    }
    assert_eq!(status(&ask(proxy.port, "").await), "200", "those without share a key of their own");
    assert_eq!(app.seen().len(), 7);
    let result = |result| {
        format!(
            "outrigger_rate_limit_requests_total{{listener=\"in\",route=\"all\",limit=\"per-user\",result=\"{result}\"}}"
        )
    };
    proxy.counts(&result("allowed"), 7.0).await;
    proxy.counts(&result("limited"), 18.0).await;

    // A reload that changes something else leaves the count as it is.
    proxy.reload(&written.replace("# plain", "connectTimeout: 7s"));
    let other = written.replace("name: all,", "name: all, timeouts: { request: 7s },");
    proxy.reload(&other);
    assert_eq!(status(&ask(proxy.port, "X-User: a\r\n").await), "429");
    // One that changes the limit begins anew.
    proxy.reload(&other.replace("requests: 3", "requests: 4"));
    let port = proxy.port;
    harness::until("the new limit holds", || status(&Client::connect(port).ask(&get("X-User: a\r\n"))) == "200").await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_limit_of_the_listener_counts_all_and_one_in_the_shadow_only_counts() {
    let app = App::answering(OK);
    let listener = "rateLimits: [{ name: everyone, requests: 2, per: 1h, key: [{ type: ClientAddress }] }]";
    let shadow = "rateLimits: [{ name: shadow, requests: 1, per: 1h, enforce: false }]";
    let proxy = Proxy::start_on(&config(listener, shadow, &app, "# plain"), 1).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(status(&ask(proxy.port, "").await).to_owned());
    }
    assert_eq!(statuses, ["200", "200", "429"]);
    let series = "outrigger_rate_limit_requests_total{listener=\"in\",route=\"all\",limit=\"shadow\",result=\"would-be-limited\"} 1";
    proxy.metrics_have(series).await;
    proxy.metrics_have("outrigger_rate_limit_table_fullness_ratio{listener=\"in\"").await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_deadline_that_has_passed_costs_the_application_nothing() {
    let app = App::answering(OK);
    let proxy = Proxy::start_on(&config("", "timeouts: { deadlines: honour }", &app, "# plain"), 1).await;
    for header in
        ["X-Request-Deadline: 1700000000.5\r\n", "x-envoy-expected-rq-timeout-ms: 0\r\n", "grpc-timeout: 9n\r\n"]
    {
        let answer = ask(proxy.port, header).await;
        assert!(status(&answer) == "504" && answer.contains("deadline"), "{header}: {answer}");
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
    // What is left is told on, and what cannot be read is left alone.
    assert_eq!(status(&ask(proxy.port, "x-envoy-expected-rq-timeout-ms: 20000\r\nGrpc-Timeout: 20S\r\n").await), "200");
    let seen = app.seen().remove(0).to_lowercase();
    let value =
        |name: &str| seen.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap().to_owned();
    let left: u64 = value("x-envoy-expected-rq-timeout-ms").parse().unwrap();
    assert!((1..20_000).contains(&left), "{seen}");
    let left: u64 = value("grpc-timeout").strip_suffix('u').unwrap().parse().unwrap();
    assert!((1_000..20_000_000).contains(&left), "{seen}");
    assert_eq!(status(&ask(proxy.port, "grpc-timeout: soon\r\n").await), "200");
    assert!(app.seen()[1].contains("grpc-timeout: soon"));
    proxy.stop().await;

    // Without being told to, nobody's deadline counts.
    let proxy = Proxy::start_on(&config("", "timeouts: {}", &app, "# plain"), 1).await;
    assert_eq!(status(&ask(proxy.port, "x-envoy-expected-rq-timeout-ms: 0\r\n").await), "200");
    assert!(app.seen()[2].contains("x-envoy-expected-rq-timeout-ms: 0"));
    proxy.stop().await;
}

#[tokio::test]
async fn a_caller_shortens_its_time_and_never_lengthens_it() {
    let silent = App::new(|_| None);
    for (route, header, said) in [
        ("timeouts: { request: 30s, deadlines: honour }, retry: { attempts: 3 }", "200", "deadline"),
        ("timeouts: { request: 200ms, deadlines: honour }", "30000", "did not answer in time"),
    ] {
        let proxy = Proxy::start_on(&config("", route, &silent, "# plain"), 1).await;
        let answer = ask(proxy.port, &format!("x-envoy-expected-rq-timeout-ms: {header}\r\n")).await;
        assert!(status(&answer) == "504" && answer.contains(said), "{route}: {answer}");
        proxy.stop().await;
    }
    assert_eq!(silent.seen().len(), 2, "nothing is sent on once the time is over");
}

#[tokio::test]
async fn an_overload_sheds_what_matters_least_first() {
    // Answers only what it is told to.
    let app = App::new(|request| request.contains("x-now").then(|| OK.to_owned()));
    let cluster = "adaptiveConcurrency: { minConcurrency: 10, maxConcurrency: 10 }";
    let route = "timeouts: { request: 0s }, priority: { level: Standard, header: x-priority }";
    let proxy = Proxy::start_on(&config("", route, &app, cluster), 2).await;
    let hold = |header: &str| {
        let mut client = Client::connect(proxy.port);
        client.send(&get(header));
        client
    };
    let mut held = Vec::new();
    for (priority, until) in [("sheddable", 7), ("standard", 9), ("critical", 10)] {
        let header = format!("x-priority: {priority}\r\n");
        while held.len() < until {
            held.push(hold(&header));
        }
        harness::until("they are under way", || app.seen().len() == until).await;
        let answer = ask(proxy.port, &header).await;
        assert!(status(&answer) == "503" && answer.contains("X-Envoy-Overloaded: true"), "{priority}: {answer}");
        proxy
            .metrics_have(&format!("outrigger_concurrency_shed_total{{cluster=\"app\",priority=\"{priority}\"}} 1"))
            .await;
    }
    assert_eq!(app.seen().len(), 10, "what was refused never came there");
    drop(held);
    let port = proxy.port;
    harness::until("there is room again", || status(&Client::connect(port).ask(&get("x-now: 1\r\n"))) == "200").await;
    proxy.stop().await;
}

#[tokio::test]
async fn the_limit_grows_while_answers_come_in_time_and_is_told() {
    let app = App::answering(OK);
    let cluster = "adaptiveConcurrency: { minConcurrency: 4, maxConcurrency: 64 }";
    let proxy = Proxy::start_on(&config("", "timeouts: {}", &app, cluster), 2).await;
    let port = proxy.port;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stop = std::sync::Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut client = Client::connect(port);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = client.ask(&get(""));
                    assert!(["200", "503"].contains(&status(&answer)), "{answer}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    let limit = || proxy.metric("outrigger_concurrency_limit_requests{cluster=\"app\"}");
    harness::until("the limit has grown", || limit() > 4.0).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    tokio::task::spawn_blocking(|| clients.into_iter().for_each(|client| client.join().unwrap())).await.unwrap();
    proxy.stop().await;
}

#[tokio::test]
async fn a_mirror_gets_copies_and_nobody_waits_for_it() {
    // The mirror never answers, and so it is never waited for.
    let (app, mirror) = (App::answering(OK), App::new(|request| request.contains("x-answer").then(|| OK.to_owned())));
    let written = |share: &str| {
        let route =
            format!("filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: mirror }}{share} }} }}]");
        config("", &route, &app, "# plain")
            + &format!("    - {{ name: mirror, endpoints: [\"127.0.0.1:{}\"] }}\n", mirror.port)
    };
    let proxy = Proxy::start_on(&written(""), 1).await;
    let post = |body: &str| {
        format!("POST /x?y=z HTTP/1.1\r\nHost: a\r\nx-answer: 1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let large = "x".repeat(70_000);
    let mut client = Client::connect(proxy.port);
    for request in [post("hello"), get("x-answer: 1\r\n"), get("x-silent: 1\r\n"), post(&large)] {
        assert_eq!(status(&client.ask(&request)), "200");
    }
    harness::until("the copies are there", || mirror.seen().len() == 3).await;
    let mut seen = mirror.seen();
    seen.sort();
    assert!(seen[2].starts_with("POST /x?y=z HTTP/1.1\r\n") && seen[2].ends_with("hello"), "{seen:?}");
    assert!(seen[2].contains("Host: a\r\n"), "the host stays: {seen:?}");
    proxy.metrics_have("outrigger_mirrored_requests_total{cluster=\"mirror\",result=\"sent\"} 2").await;
    proxy.metrics_have("outrigger_mirrored_requests_total{cluster=\"mirror\",result=\"body\"} 1").await;
    assert_eq!(app.seen().len(), 4);
    proxy.reload(&written(", percent: 0"));
    let rule = |name: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nx-answer: {name}\r\n\r\n");
    harness::until("no copies are made", || {
        let before = mirror.seen().len();
        (0..20).for_each(|_| assert_eq!(status(&client.ask(&rule("none"))), "200"));
        mirror.seen().len() == before
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_mirror_that_hangs_holds_a_bounded_number_of_copies() {
    let (app, mirror) = (App::answering(OK), App::new(|_| None));
    let route = "filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: mirror } } }]";
    let written = config("", route, &app, "# plain")
        + &format!("    - {{ name: mirror, endpoints: [\"127.0.0.1:{}\"] }}\n", mirror.port);
    let proxy = Proxy::start_on(&written, 1).await;
    let mut client = Client::connect(proxy.port);
    (0..80).for_each(|_| assert_eq!(status(&client.ask(&get(""))), "200"));
    proxy.metrics_have("outrigger_mirrored_requests_total{cluster=\"mirror\",result=\"busy\"} 16").await;
    proxy.stop().await;
}
