//! What keeps requests from an endpoint: rates, deadlines that have passed, overload.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
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

/// An application that works on one request at a time, for so long, and does not hear of clients that have gone.
fn busy_app(work: Duration) -> App {
    let turn = std::sync::Mutex::new(());
    App::new(move |request| {
        let _turn = turn.lock().unwrap();
        std::thread::sleep(work);
        (!request.contains("x-never")).then(|| OK.to_owned())
    })
}

/// Clients that ask again and again until told to stop, and go away when an answer takes too long.
struct Crowd {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    refused: Arc<AtomicU32>,
    clients: Vec<std::thread::JoinHandle<()>>,
}

impl Crowd {
    fn begin(port: u16, count: usize, patience: Duration) -> Self {
        let (stop, asked, refused) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let client = |_| {
            let (stop, asked, refused) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&refused));
            std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    let mut client = Client::connect(port);
                    client.socket().set_read_timeout(Some(patience)).unwrap();
                    if status(&client.ask(&get(""))) == "503" {
                        refused.fetch_add(1, Relaxed);
                        std::thread::sleep(patience / 4);
                    }
                    asked.fetch_add(1, Relaxed);
                }
            })
        };
        let clients = (0..count).map(client).collect();
        Self { stop, asked, refused, clients }
    }

    /// How many of them were refused by the end.
    async fn end(self) -> u32 {
        self.stop.store(true, Relaxed);
        let all = move || self.clients.into_iter().for_each(|client| client.join().unwrap());
        tokio::task::spawn_blocking(all).await.unwrap();
        self.refused.load(Relaxed)
    }
}

#[tokio::test]
async fn when_clients_give_up_waiting_the_rest_is_refused_without_being_told_to() {
    let app = busy_app(Duration::from_millis(10));
    let proxy = Proxy::start_on(&config("", "priority: { level: Critical }", &app, "# plain"), 1).await;
    let limit = || proxy.metric("outrigger_overload_limit_requests{cluster=\"app\"}");
    // What answers take without a crowd.
    let (port, begin) = (proxy.port, std::time::Instant::now());
    let mut calm = 0;
    while calm < 30 || begin.elapsed() < Duration::from_millis(500) {
        assert_eq!(status(&ask(port, "").await), "200");
        calm += 1;
    }
    let crowd = Crowd::begin(port, 60, Duration::from_millis(200));
    harness::until("a limit is in force", || limit() > 0.0).await;
    let shed = "outrigger_concurrency_shed_total{cluster=\"app\",priority=\"critical\"}";
    harness::until("requests are refused", || proxy.metric(shed) > 0.0).await;
    harness::until("clients hear of it", || crowd.refused.load(Relaxed) > 0).await;
    crowd.end().await;
    proxy.stop().await;
}

#[tokio::test]
async fn nobody_is_refused_where_that_is_turned_off_or_while_clients_wait() {
    let app = busy_app(Duration::from_millis(5));
    for (listener, patience) in [("limits: { shedOverload: false }", 100), ("", 20_000)] {
        let proxy = Proxy::start_on(&config(listener, "timeouts: {}", &app, "# plain"), 1).await;
        let port = proxy.port;
        for _ in 0..30 {
            assert_eq!(status(&ask(port, "").await), "200");
        }
        let crowd = Crowd::begin(port, 60, Duration::from_millis(patience));
        harness::until("many have asked", || crowd.asked.load(Relaxed) > 400).await;
        assert_eq!(crowd.end().await, 0, "{listener}");
        proxy.stop().await;
    }
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

#[tokio::test]
async fn connections_that_a_crowd_needs_are_not_made_again_for_the_next() {
    // Eight at once, or none of them is answered.
    let together = std::sync::Barrier::new(8);
    let app = App::new(move |_| {
        together.wait();
        Some(OK.to_owned())
    });
    let proxy = Proxy::start_on(&config("", "timeouts: {}", &app, "pool: { maxIdle: 1 }"), 1).await;
    let port = proxy.port;
    for _ in 0..10 {
        let mut crowd = tokio::task::JoinSet::new();
        (0..8).for_each(|_| drop(crowd.spawn(async move { status(&ask(port, "").await).to_owned() })));
        assert!(crowd.join_all().await.iter().all(|status| status == "200"));
    }
    // Without that seven of eight are closed each time, and made again.
    let made = || proxy.metric("outrigger_upstream_connections_total{cluster=\"app\",result=\"ok\"}");
    assert!(made() < 40.0, "{}", made());
    let open = || proxy.metric("outrigger_upstream_connections_active{cluster=\"app\"}");
    harness::until("they are let go", || open() <= 1.0).await;
    proxy.stop().await;
}

#[tokio::test]
async fn who_is_refused_and_asks_again_at_once_is_listened_to_less_and_less() {
    let app = App::new(|request| request.contains("x-now").then(|| OK.to_owned()));
    let proxy =
        Proxy::start_on(&config("limits: { maxRequests: 1 }", "timeouts: { request: 0s }", &app, "# plain"), 1).await;
    let mut held = Client::connect(proxy.port);
    held.send(&get(""));
    harness::until("it is under way", || app.seen().len() == 1).await;
    let port = proxy.port;
    let asked = move || {
        let mut client = Client::connect(port);
        let begin = std::time::Instant::now();
        let mut refused = 0;
        while begin.elapsed() < Duration::from_secs(1) {
            assert_eq!(status(&client.ask(&get("x-now: 1\r\n"))), "503");
            refused += 1;
        }
        (client, refused, begin.elapsed())
    };
    let (mut client, refused, took) = tokio::task::spawn_blocking(asked).await.unwrap();
    // 2, 4, 8 … 256 ms, and then 256 each time.
    assert!(f64::from(refused) <= 10.0 + took.as_secs_f64() / 0.256, "{refused} in {took:?}");
    drop(held);
    let again = move || (0..100).any(|_| status(&client.ask(&get("x-now: 1\r\n"))) == "200");
    assert!(tokio::task::spawn_blocking(again).await.unwrap(), "there is room again, and it is listened to");
    proxy.stop().await;
}
