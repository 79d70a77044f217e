//! Requests that are sent again: when, how often, with which body, and when not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::OK;
use crate::harness::{self, App, Client, Proxy, read_request};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// A listener whose one route has these further members, in front of endpoints at these ports.
fn config(route: &str, ports: &[u16], cluster: &str) -> String {
    let endpoints: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    format!(
        r#"
proxy:
  listeners:
    - name: in
      direction: inbound
      address: 127.0.0.1:PORT
      routes: [{{ name: all, backendRefs: [{{ name: app }}], {route} }}]
  clusters:
    - name: app
      endpoints: [{}]
      {cluster}
"#,
        endpoints.join(", ")
    )
}

/// Asks on a connection of its own, off the runtime's thread.
async fn ask(port: u16, request: String) -> String {
    tokio::task::spawn_blocking(move || Client::connect(port).ask(&request)).await.unwrap()
}

#[tokio::test]
async fn an_answer_that_asks_for_it_is_tried_again_elsewhere_and_told() {
    let (busy, good) = (App::answering(BUSY), App::answering(OK));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = config(
        "retry: { codes: [503], attemptCount: true }",
        &[busy.port, good.port],
        "loadBalancing: { policy: RoundRobin }",
    ) + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start_on(&config, 1).await;
    let mut again = 0;
    while again < 8 {
        assert!(ask(proxy.port, GET.to_owned()).await.starts_with("HTTP/1.1 200"));
        again = busy.seen().len();
    }
    assert!(busy.seen().iter().all(|request| request.contains("x-envoy-attempt-count: 1")), "{:?}", busy.seen());
    let seconds = good.seen().iter().filter(|request| request.contains("x-envoy-attempt-count: 2")).count();
    assert_eq!(seconds, again, "the second try goes to the other one");
    proxy.metrics_have(&format!("outrigger_retries_total{{cluster=\"app\",reason=\"code\"}} {again}")).await;
    proxy.metrics_have(&format!("outrigger_retries_succeeded_total{{cluster=\"app\"}} {again}")).await;
    // Answers that come whole with their head leave their connection as it is; on a busy machine one may not.
    let opened = proxy.metric("outrigger_upstream_connections_total{cluster=\"app\",result=\"ok\"}");
    assert!(opened <= 5.0, "an answer that is not used costs no connection: {opened} for {again}");
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(log.matches("\"attempts\":2").count(), again, "{log}");
}

#[tokio::test]
async fn a_dying_cluster_gets_no_more_than_its_budget() {
    const REQUESTS: usize = 400;
    let app = App::answering(BUSY);
    let constraint = "retryConstraint: { budget: { percent: 20, interval: 1h }, minRetryRate: { count: 0 } }";
    let route = "retry: { codes: [503], attempts: 3, backoff: 1ms }";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = config(route, &[app.port], constraint) + &format!("  accessLog: {{ path: {} }}\n", path.display());
    // Two workers spend from the same budget.
    let proxy = Proxy::start_on(&config, 2).await;
    let port = proxy.port;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(port);
                (0..REQUESTS / 4).for_each(|_| assert!(client.ask(GET).starts_with("HTTP/1.1 503")));
            })
        })
        .collect();
    tokio::task::spawn_blocking(|| clients.into_iter().for_each(|client| client.join().unwrap())).await.unwrap();
    let seen = app.seen().len();
    assert!(seen <= REQUESTS * 12 / 10, "{seen} tries of {REQUESTS} requests");
    assert!(seen > REQUESTS * 11 / 10, "{seen} tries: the budget is there to be used");
    proxy.counts_at_least("outrigger_retries_withheld_total{cluster=\"app\",reason=\"budget\"}", 1.0).await;
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("\"flags\":\"URX\"") && log.contains("\"retry_withheld\":\"budget\""), "{log}");
}

#[tokio::test]
async fn what_may_have_been_acted_on_is_repeated_only_where_that_is_safe() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let keyed = "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: 7\r\nContent-Length: 5\r\n\r\nhello";
    for (name, retry, request, tries) in [
        ("get", "attempts: 1", GET, 2),
        ("post", "attempts: 1", post, 1),
        ("post with a key", "attempts: 1", keyed, 2),
        ("post, told", "attempts: 2, onlyIdempotent: false", post, 3),
        ("get, but not for this", "attempts: 1, on: [connect-failure]", GET, 1),
    ] {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let app = App::talking(move |mut stream| {
            let request = read_request(&mut stream).unwrap();
            assert!(request.starts_with("GET") || request.ends_with("hello"), "the body goes along: {request}");
            count.fetch_add(1, SeqCst);
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        });
        let proxy = Proxy::start_on(&config(&format!("retry: {{ {retry} }}"), &[app.port], "# plain"), 1).await;
        let answer = ask(proxy.port, request.to_owned()).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{name}: {answer}");
        assert_eq!(seen.load(SeqCst), tries, "{name}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_request_that_reached_nobody_is_sent_again_whatever_it_is() {
    let port = harness::free_port();
    let route = "retry: { attempts: 10, backoff: 300ms, maxBackoff: 300ms }";
    let proxy = Proxy::start_on(&config(route, &[port], "# nobody there yet"), 1).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned();
    let at = proxy.port;
    let answer = tokio::task::spawn_blocking(move || Client::connect(at).ask(&post));
    proxy.metrics_have("outrigger_retries_total{cluster=\"app\",reason=\"connect-failure\"} 1").await;
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let server = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = read_request(&mut stream).unwrap();
        stream.write_all(OK.as_bytes()).unwrap();
        request
    });
    assert!(server.await.unwrap().ends_with("hello"));
    assert!(answer.await.unwrap().starts_with("HTTP/1.1 200"));
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_goes_again_whole_or_not_at_all() {
    let large = "x".repeat(100_000);
    let sized = |body: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n5\r\nhello\r\n0\r\n\r\n",
        40_000,
        "y".repeat(40_000)
    );
    for (name, most, request, tries) in [
        ("small", "1KiB", sized("hello"), 2),
        ("large", "1KiB", sized(&large), 1),
        ("large and kept", "200KiB", sized(&large), 2),
        ("chunked", "64KiB", chunked.clone(), 2),
        ("chunked, beyond", "8KiB", chunked, 1),
    ] {
        let app = App::answering(BUSY);
        let route = format!("retry: {{ codes: [503], maxBodyBytes: {most} }}");
        let proxy = Proxy::start_on(&config(&route, &[app.port], "# plain"), 1).await;
        let answer = ask(proxy.port, request).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{name}: {answer}");
        let seen = app.seen();
        assert_eq!(seen.len(), tries, "{name}");
        let body = |request: &String| {
            let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
            // How it is cut into chunks is each sender's own.
            body.chars().filter(|c| "xy".contains(*c)).count()
        };
        assert!(seen.iter().all(|request| body(request) == body(&seen[0]) && body(request) != 1), "{name}");
        if tries == 1 {
            proxy.metrics_have("outrigger_retries_withheld_total{cluster=\"app\",reason=\"body\"} 1").await;
        }
        proxy.metrics_have("outrigger_proxy_buffer_bytes{state=\"lent\"} 0").await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn an_answer_that_has_begun_is_never_begun_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let app = App::talking(move |mut stream| {
        let _ = read_request(&mut stream);
        count.fetch_add(1, SeqCst);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart");
    });
    let proxy = Proxy::start_on(&config("retry: { attempts: 3 }", &[app.port], "# plain"), 1).await;
    let at = proxy.port;
    let answer = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(at);
        client.send(GET);
        client.read_to_end()
    });
    assert!(answer.await.unwrap().ends_with("part"));
    assert_eq!(seen.load(SeqCst), 1);
    proxy.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_is_slow_is_left_for_another() {
    let (slow, good) = (App::new(|_| None), App::answering(OK));
    let route = "timeouts: { request: 20s, backendRequest: 150ms }, retry: { attempts: 2, backoff: 1ms }";
    let proxy =
        Proxy::start_on(&config(route, &[slow.port, good.port], "loadBalancing: { policy: RoundRobin }"), 1).await;
    while slow.seen().len() < 2 {
        let answer = ask(proxy.port, GET.to_owned()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    proxy.counts_at_least("outrigger_retries_total{cluster=\"app\",reason=\"timeout\"}", 2.0).await;
    proxy.stop().await;
    // Where no further try is allowed its time is the request's.
    let slow = App::new(|_| None);
    let proxy = Proxy::start_on(&config("timeouts: { backendRequest: 150ms }", &[slow.port], "# plain"), 1).await;
    let answer = ask(proxy.port, GET.to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_asks_for_patience_gets_it() {
    let asked = |seconds: u32| {
        format!("HTTP/1.1 503 Service Unavailable\r\nRetry-After: {seconds}\r\nContent-Length: 4\r\n\r\nbusy")
    };
    let first = AtomicUsize::new(0);
    let soon = asked(1);
    let app = App::new(move |_| Some(if first.fetch_add(1, SeqCst) == 0 { soon.clone() } else { OK.to_owned() }));
    let proxy = Proxy::start_on(&config("retry: { codes: [503] }", &[app.port], "# plain"), 1).await;
    let began = Instant::now();
    assert!(ask(proxy.port, GET.to_owned()).await.starts_with("HTTP/1.1 200"));
    assert!(began.elapsed() >= Duration::from_secs(1), "not before its time");
    proxy.stop().await;

    let app = App::answering(&asked(60));
    let proxy = Proxy::start_on(&config("retry: { codes: [503] }", &[app.port], "# plain"), 1).await;
    let answer = ask(proxy.port, GET.to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Retry-After: 60"), "{answer}");
    assert_eq!(app.seen().len(), 1);
    proxy.metrics_have("outrigger_retries_withheld_total{cluster=\"app\",reason=\"asked\"} 1").await;
    proxy.stop().await;
}

#[tokio::test]
async fn an_answer_in_which_nothing_moves_is_cut() {
    let app = App::talking(|mut stream| {
        let _ = read_request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n");
        // Until the proxy gives up.
        while stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = config("timeouts: { idle: 200ms }", &[app.port], "# plain")
        + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start_on(&config, 1).await;
    let at = proxy.port;
    let answer = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(at);
        client.send(GET);
        client.read_to_end()
    });
    let answer = answer.await.unwrap();
    assert!(answer.contains("part") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    proxy.stop().await;
    assert!(std::fs::read_to_string(&path).unwrap().contains("\"flags\":\"SI\""));
}

/// An application that answers with its name, after so long; how many requests it saw, and how many of these were given up.
fn named(name: &'static str, after: Duration) -> (App, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (seen, given_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&seen), Arc::clone(&given_up));
    let app = App::talking(move |mut stream| {
        while read_request(&mut stream).is_some() {
            counts.0.fetch_add(1, SeqCst);
            stream.set_read_timeout(Some(after)).unwrap();
            if stream.peek(&mut [0]).is_ok() {
                // Nothing may come before the answer but the end.
                counts.1.fetch_add(1, SeqCst);
                return;
            }
            stream.set_read_timeout(None).unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    (app, seen, given_up)
}

#[tokio::test]
async fn the_first_answer_wins_and_the_other_is_given_up() {
    let (slow, slow_seen, slow_given_up) = named("slow", Duration::from_secs(10));
    let (fast, fast_seen, fast_given_up) = named("fast", Duration::from_millis(1));
    let route = "hedge: { after: 50ms }, timeouts: { request: 20s }";
    let cluster = "loadBalancing: { policy: RoundRobin }";
    let proxy = Proxy::start_on(&config(route, &[slow.port, fast.port], cluster), 1).await;
    let count = |result| proxy.metric(&format!("outrigger_hedges_total{{cluster=\"app\",result=\"{result}\"}}"));
    // On a busy machine the fast one is slow now and then, and its hedge does not win.
    while count("won") < 2.0 {
        let answer = ask(proxy.port, GET.to_owned()).await;
        assert!(answer.ends_with("fast"), "{answer}");
    }
    harness::until("the slow ones are given up", || slow_given_up.load(SeqCst) == slow_seen.load(SeqCst)).await;
    assert_eq!(fast_given_up.load(SeqCst), 0);
    assert!(slow_seen.load(SeqCst) >= 2 && count("sent") >= 2.0, "{}", count("sent"));
    // What may not be done twice goes to one only, however long that takes.
    let before = slow_seen.load(SeqCst) + fast_seen.load(SeqCst);
    let hedged = count("sent");
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let mut patient: Vec<_> = (0..2).map(|_| Client::connect(proxy.port)).collect();
    patient.iter_mut().for_each(|client| client.send(post));
    let both = || slow_seen.load(SeqCst) + fast_seen.load(SeqCst) - before;
    harness::until("both are there", || both() == 2).await;
    // The one that is at the slow one has waited long enough when a later one has been sent twice.
    while count("sent") == hedged {
        assert!(ask(proxy.port, GET.to_owned()).await.ends_with("fast"));
    }
    let posted = proxy.metric("outrigger_retries_total{cluster=\"app\",reason=\"reset\"}");
    assert_eq!(posted, 0.0);
    harness::until("only the POST waits there", || slow_seen.load(SeqCst) == slow_given_up.load(SeqCst) + 1).await;
    drop(patient);
    proxy.stop().await;
}

#[tokio::test]
async fn the_first_one_wins_when_it_is_the_first_to_answer() {
    let (first, first_seen, first_given_up) = named("first", Duration::from_millis(400));
    let (second, second_seen, second_given_up) = named("second", Duration::from_secs(10));
    let cluster = "loadBalancing: { policy: RoundRobin }";
    let proxy = Proxy::start_on(&config("hedge: { after: 100ms }", &[first.port, second.port], cluster), 1).await;
    let mut won_by_first = 0;
    while second_seen.load(SeqCst) < 2 {
        let answer = ask(proxy.port, GET.to_owned()).await;
        assert!(answer.ends_with("first"), "{answer}");
        won_by_first += 1;
    }
    harness::until("the others are given up", || second_given_up.load(SeqCst) == second_seen.load(SeqCst)).await;
    assert_eq!((first_given_up.load(SeqCst), first_seen.load(SeqCst)), (0, won_by_first));
    proxy.stop().await;
}

#[tokio::test]
async fn hedges_are_kept_within_the_budget() {
    let (app, seen, _) = named("slow", Duration::from_millis(60));
    let constraint = "retryConstraint: { budget: { percent: 10, interval: 1h }, minRetryRate: { count: 0 } }";
    let proxy = Proxy::start_on(&config("hedge: { after: 5ms, max: 3 }", &[app.port], constraint), 1).await;
    let port = proxy.port;
    let clients: Vec<_> = (0..20)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(port);
                (0..5).for_each(|_| assert!(client.ask(GET).ends_with("slow")));
            })
        })
        .collect();
    tokio::task::spawn_blocking(|| clients.into_iter().for_each(|client| client.join().unwrap())).await.unwrap();
    let seen = seen.load(SeqCst);
    assert!(seen > 100 && seen <= 110, "{seen} for 100 requests");
    proxy.metrics_have("outrigger_hedges_total{cluster=\"app\",result=\"withheld\"}").await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_is_hedged_too_and_comes_whole() {
    let bodies = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&bodies);
    let slow = App::talking(move |mut stream| {
        while let Some(request) = read_request(&mut stream) {
            log.lock().unwrap().push(request.split_once("\r\n\r\n").unwrap().1.to_owned());
            // It never answers; the proxy gives it up.
            let _ = stream.read(&mut [0]);
        }
    });
    let fast = App::answering(OK);
    let cluster = "loadBalancing: { policy: RoundRobin }";
    let route = "hedge: { after: 20ms, maxBodyBytes: 10KiB }, timeouts: { request: 2s }";
    let proxy = Proxy::start_on(&config(route, &[slow.port, fast.port], cluster), 1).await;
    let put = |body: &str| format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let body = "0123456789".repeat(900);
    while bodies.lock().unwrap().len() < 2 {
        let answer = ask(proxy.port, put(&body)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(bodies.lock().unwrap().iter().all(|seen| *seen == body));
    assert!(fast.seen().iter().all(|seen| seen.ends_with(&format!("\r\n\r\n{body}"))));
    // A longer one goes to one only, whole.
    let long = "x".repeat(30_000);
    let hedged = proxy.metric("outrigger_hedges_total{cluster=\"app\",result=\"sent\"}");
    let mut answers = [ask(proxy.port, put(&long)).await, ask(proxy.port, put(&long)).await];
    answers.sort();
    assert!(answers[0].starts_with("HTTP/1.1 200") && answers[1].starts_with("HTTP/1.1 504"), "{answers:?}");
    assert!(fast.seen().last().unwrap().ends_with(&format!("\r\n\r\n{long}")));
    assert_eq!(proxy.metric("outrigger_hedges_total{cluster=\"app\",result=\"sent\"}"), hedged);
    // Nor one whose client waits for a consent before it sends the body.
    let expecting = put("abc").replace("Host: a", "Host: a\r\nConnection: close\r\nExpect: 100-continue");
    let answers = [ask(proxy.port, expecting.clone()).await, ask(proxy.port, expecting).await];
    assert!(answers.iter().any(|answer| answer.contains("HTTP/1.1 200")), "{answers:?}");
    assert_eq!(proxy.metric("outrigger_hedges_total{cluster=\"app\",result=\"sent\"}"), hedged);
    proxy.stop().await;
}

#[tokio::test]
async fn what_few_answers_take_is_found_out() {
    let hold = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let held = Arc::clone(&hold);
    let slow = App::talking(move |mut stream| {
        while read_request(&mut stream).is_some() {
            if held.load(SeqCst) {
                let _ = stream.read(&mut [0]);
                return;
            }
            stream.write_all(OK.as_bytes()).unwrap();
        }
    });
    let fast = App::answering(OK);
    let cluster = "loadBalancing: { policy: RoundRobin }\n      retryConstraint: { minRetryRate: { count: 1000 } }";
    let route = "hedge: { percentile: 95 }, timeouts: { request: 20s }";
    let proxy = Proxy::start_on(&config(route, &[slow.port, fast.port], cluster), 1).await;
    let sent = || proxy.metric("outrigger_hedges_total{cluster=\"app\",result=\"sent\"}");
    let port = proxy.port;
    let many = move |count: usize| {
        let mut client = Client::connect(port);
        (0..count).for_each(|_| assert!(client.ask(GET).starts_with("HTTP/1.1 200")));
    };
    tokio::task::spawn_blocking(move || many(99)).await.unwrap();
    assert_eq!(sent(), 0.0, "little is known yet");
    tokio::task::spawn_blocking(move || many(60)).await.unwrap();
    // One endpoint answers no more; without a second request each other one would take the route's whole time.
    hold.store(true, SeqCst);
    let before = Instant::now();
    tokio::task::spawn_blocking(move || many(10)).await.unwrap();
    assert!(sent() >= 4.0, "{}", sent());
    assert!(before.elapsed() < Duration::from_secs(20), "none waited for its whole time");
    proxy.stop().await;
}

#[tokio::test]
async fn only_so_many_are_sent_again_at_once() {
    let (wait, held) = std::sync::mpsc::sync_channel::<()>(0);
    let held = std::sync::Mutex::new(held);
    let busy = App::answering(BUSY);
    let slow = App::new(move |_| {
        let _ = held.lock().unwrap().recv_timeout(Duration::from_secs(20));
        Some(OK.to_owned())
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    // All go to the one first, and to the other when they failed.
    let cluster = "circuitBreakers: { maxRetries: 1 }\n      retryConstraint: { minRetryRate: { count: 1000 } }";
    let config = config("retry: { codes: [503], backoff: 1ms }", &[busy.port], cluster).replace(
        &format!("\"127.0.0.1:{}\"", busy.port),
        &format!("{{ address: \"127.0.0.1:{}\" }}, {{ address: \"127.0.0.1:{}\", priority: 1 }}", busy.port, slow.port),
    ) + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start_on(&config, 1).await;
    let mut first = Client::connect(proxy.port);
    first.send(GET);
    harness::until("the first one is sent again", || slow.seen().len() == 1).await;
    let answer = ask(proxy.port, GET.to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("busy"), "{answer}");
    proxy.metrics_have("outrigger_circuit_breaker_refusals_total{cluster=\"app\",breaker=\"retries\"} 1").await;
    proxy.metrics_have("outrigger_retries_withheld_total{cluster=\"app\",reason=\"overflow\"} 1").await;
    wait.send(()).unwrap();
    assert!(first.read_some().starts_with("HTTP/1.1 200"));
    // Its place is free again.
    let port = proxy.port;
    let again = tokio::task::spawn_blocking(move || Client::connect(port).ask(GET));
    harness::until("another one is sent again", || slow.seen().len() == 2).await;
    wait.send(()).unwrap();
    assert!(again.await.unwrap().starts_with("HTTP/1.1 200"));
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("\"flags\":\"UO\"") && log.contains("\"retry_withheld\":\"overflow\""), "{log}");
}
