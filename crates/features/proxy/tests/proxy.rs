//! The data plane over real sockets: raw clients, scripted applications, two proxies with mTLS.

mod ahead;
mod balancing;
mod compression;
mod connect;
mod corpus;
mod dns;
mod faults;
mod filters;
mod floods;
mod framing;
mod harness;
mod headers;
mod health;
mod http2;
mod lifecycle;
mod limits;
mod live;
mod multiplex;
mod permissive;
mod protection;
mod public;
mod race;
mod retries;
mod routing;
mod sessions;
mod stale;
mod tunnel;

use std::time::Duration;

use harness::{App, Client, Proxy, Shop, text};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_passes_and_is_counted() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    let answer =
        client.ask("GET /a?b=c HTTP/1.1\r\nHOST: shop.example\r\nX-CaSe: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    let seen = app.seen();
    assert!(seen[0].starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen:?}");
    assert!(seen[0].contains("X-CaSe: 1") && seen[0].contains("HOST: shop.example"), "casing stays: {seen:?}");
    assert!(!seen[0].to_lowercase().contains("x-hop"), "what Connection names goes: {seen:?}");
    let count =
        r#"outrigger_http_requests_total{direction="inbound",listener="in",route="all",cluster="app",code="200"} 1"#;
    proxy.metrics_have(count).await;
    proxy.stop().await;
}

#[tokio::test]
async fn bodies_pass_both_ways_in_either_framing() {
    let app = App::new(|request| {
        let body = request.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Some(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()))
    });
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert!(answer.contains("hello"), "{answer}");
    let mut client = Client::connect(proxy.port);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert!(client.read_some().starts_with("HTTP/1.1 100"), "the client is told to go on");
    assert!(client.ask("more").contains("more"));
    proxy.stop().await;
}

#[tokio::test]
async fn a_response_cut_short_is_never_a_success() {
    for (name, answer) in [
        ("length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"),
        ("chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n"),
    ] {
        let app = App::closing_after(answer);
        let proxy = Proxy::start(&app.plain_config("")).await;
        let mut client = Client::connect(proxy.port);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let read = client.read_to_end();
        assert!(read.contains("only this"), "{name}: {read}");
        assert!(!read.ends_with("0\r\n\r\n"), "{name}: the end was made up: {read}");
        proxy.metrics_have("outrigger_http_requests_total").await;
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_stale_connection_is_not_the_clients_trouble() {
    // The application closes each connection after two requests, the second unanswered.
    let app = App::closing_on_second_request(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    for round in 0..6 {
        let answer = client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "round {round}: {answer}");
    }
    proxy.metrics_have("outrigger_upstream_retries_total{cluster=\"app\"}").await;
    // What may have had an effect is not sent twice. The kept connection has carried one request already.
    let before = app.seen().len();
    let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    if answer.starts_with("HTTP/1.1 502") {
        assert_eq!(app.seen().iter().skip(before).filter(|request| request.starts_with("POST")).count(), 1);
    } else {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn the_memory_of_buffers_is_told_and_given_back() {
    let app = App::new(|_| None);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell");
    let mut half = Client::connect(proxy.port);
    half.send("GET / HT");
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 16384"#).await;
    drop((client, half));
    proxy.metrics_have(r#"outrigger_proxy_buffer_bytes{state="lent"} 0"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_in_either_framing() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("      limits: { maxBodyBytes: 1KiB }\n")).await;
    let (fits, large) = ("x".repeat(1024), "x".repeat(1025));
    for (body, status) in [(&fits, "200"), (&large, "413")] {
        let length = body.len();
        let sized = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunked = format!("{head}{length:x}\r\n{body}\r\n0\r\n\r\n");
        for request in [sized, chunked] {
            let answer = Client::connect(proxy.port).ask(&request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{length}: {answer}");
        }
    }
    proxy.stop().await;
}

#[tokio::test]
async fn what_is_forwarded_is_what_was_judged() {
    let app = App::answering(OK);
    let rules =
        "      routes: [{ name: private, matches: [{ path: { value: /admin } }], backendRefs: [{ name: app }] }]\n";
    let config =
        app.plain_config("").replacen("      routes: [{ name: all, backendRefs: [{ name: app }] }]\n", rules, 1);
    assert!(config.contains("private"), "{config}");
    let proxy = Proxy::start(&config).await;
    for (given, seen) in [
        ("/public/%2e%2e/%61dmin/x?a=/../b", "GET /admin/x?a=/../b HTTP/1.1"),
        ("/x/./../admin", "GET /admin HTTP/1.1"),
        ("/admin/%7euser/%c3%a4", "GET /admin/~user/%C3%A4 HTTP/1.1"),
        ("/admin/a%2fb", "GET /admin/a%2Fb HTTP/1.1"),
    ] {
        let answer = Client::connect(proxy.port).ask(&format!("GET {given} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{given}: {answer}");
        assert!(app.seen().last().unwrap().starts_with(seen), "{given}: {:?}", app.seen());
    }
    let answer = Client::connect(proxy.port).ask("GET /admin/../public HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    proxy.reload(
        &config.replace("      routes:", "      path: { dotSegments: refuse, escapedSlashes: refuse }\n      routes:"),
    );
    for path in ["/admin/./x", "/admin/a%2Fb"] {
        let refused = || {
            let answer = Client::connect(proxy.port).ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            answer.starts_with("HTTP/1.1 400")
        };
        harness::until("the policy holds", refused).await;
    }
    proxy.stop().await;
}

#[tokio::test]
async fn what_may_mean_two_things_is_refused() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    for (name, request, status) in [
        ("above the root", "GET /a/../../b HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("escaped dots above the root", "GET /%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("no host", "GET / HTTP/1.1\r\n\r\n", "400"),
        ("userinfo in host", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
        ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "400"),
        ("length is no number", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", "400"),
        ("unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "400"),
        ("folded field", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", "400"),
        ("space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
        ("connect", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "501"),
        ("star without options", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        ("dots before an escaped slash", "GET /a/..%2fb HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        (
            "both framings",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400",
        ),
        (
            "both, reversed",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
            "400",
        ),
        ("two codings", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "400"),
        (
            "the same length twice",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "400",
        ),
        ("chunked in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("nul in a field", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", "400"),
        ("bare carriage return", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "400"),
        ("connect", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "501"),
        ("bare line feeds", "GET / HTTP/1.1\nHost: a\n\n", "400"),
        ("blank before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
    ] {
        let answer = Client::connect(proxy.port).ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(70_000));
    let answer = Client::connect(proxy.port).ask(&long);
    assert!(answer.starts_with("HTTP/1.1 431"), "too large: {answer}");
    assert!(app.seen().is_empty(), "nothing of it reached the application: {:?}", app.seen());
    proxy.metrics_have("code=\"431\"").await;
    proxy.stop().await;
}

#[tokio::test]
async fn failures_say_whose_they_are() {
    let dead = harness::free_port();
    let silent = App::new(|_| None);
    let config = format!(
        r#"
proxy:
  listeners:
    - name: in
      direction: inbound
      address: 127.0.0.1:PORT
      routes:
        - {{ name: dead, hostnames: [dead], backendRefs: [{{ name: dead }}] }}
        - {{ name: slow, hostnames: [slow], backendRefs: [{{ name: slow }}], timeouts: {{ request: 200ms }} }}
        - {{ name: one, hostnames: ["*.one"], matches: [{{ path: {{ value: /a }} }}], backendRefs: [{{ name: slow }}] }}
  clusters:
    - {{ name: dead, endpoints: ["127.0.0.1:{dead}"] }}
    - {{ name: slow, endpoints: ["127.0.0.1:{}"] }}
"#,
        silent.port
    );
    let proxy = Proxy::start(&config).await;
    for (name, host, path, status) in [
        ("refused", "dead", "/", "503"),
        ("no answer", "slow", "/", "504"),
        ("no such host", "other", "/", "404"),
        ("no such path", "x.one", "/ab", "404"),
    ] {
        let answer = Client::connect(proxy.port).ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}:80\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_by() {
    let app = App::answering(OK);
    let dead = harness::free_port();
    let config = app.plain_config("").replace("endpoints: [", &format!("endpoints: [\"127.0.0.1:{dead}\", "));
    let proxy = Proxy::start(&config).await;
    for _ in 0..20 {
        let answer = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn slow_clients_are_cut_and_many_wait() {
    let app = App::answering(OK);
    let limits = "      limits: { maxConnections: 2, headerTimeout: 1s, idleTimeout: 1s }\n";
    let proxy = Proxy::start(&app.plain_config(limits)).await;
    let mut slow = Client::connect(proxy.port);
    slow.send("GET / HT");
    assert_eq!(slow.read_to_end(), "", "a client that never ends its headers is cut");
    let mut idle = Client::connect(proxy.port);
    assert!(idle.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
    assert_eq!(idle.read_to_end(), "", "a client that rests too long is let go");
    proxy.metrics_have("outrigger_downstream_connections_cut_total{listener=\"in\",reason=\"header_timeout\"} 1").await;
    // With two connections open the third is not answered before one of them ends.
    let mut first = Client::connect(proxy.port);
    let mut second = Client::connect(proxy.port);
    assert!(first.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
    assert!(second.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
    drop(first);
    let answer = Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_stop_lets_the_request_under_way_end() {
    let (app, release) = App::held(OK);
    let mut proxy = Proxy::start(&app.plain_config("")).await;
    let mut idle = Client::connect(proxy.port);
    release.send(()).unwrap();
    assert!(idle.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"));
    let mut busy = Client::connect(proxy.port);
    busy.send("GET /busy HTTP/1.1\r\nHost: a\r\n\r\n");
    harness::until("the request reached the application", || app.seen().len() == 2).await;
    proxy.request_stop(Duration::from_secs(10));
    let rest = text(tokio::task::spawn_blocking(move || idle.read_to_end()).await);
    assert_eq!(rest, "", "an idle connection ends at once");
    harness::until("the port is closed", || std::net::TcpStream::connect(("127.0.0.1", proxy.port)).is_err()).await;
    release.send(()).unwrap();
    let answer = text(tokio::task::spawn_blocking(move || busy.read_to_end()).await);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.to_lowercase().contains("connection: close"), "{answer}");
    proxy.ended().await;
}

#[tokio::test]
async fn a_stop_cuts_what_outlives_its_time() {
    let (app, _release) = App::held(OK);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let config = app.plain_config("") + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let mut proxy = Proxy::start(&config).await;
    let mut busy = Client::connect(proxy.port);
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    harness::until("the request reached the application", || app.seen().len() == 1).await;
    proxy.request_stop(Duration::from_millis(600));
    proxy.ended().await;
    assert_eq!(busy.read_to_end(), "");
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("\"flags\":\"LR\"") && log.contains("shutdown budget"), "{log}");
}

#[tokio::test]
async fn a_reload_touches_only_what_changed() {
    let (first, second) = (App::answering(OK), App::answering(&OK.replace("ok", "no")));
    let proxy = Proxy::start(&first.plain_config("")).await;
    let mut client = Client::connect(proxy.port);
    assert!(client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("ok"));
    proxy.reload(&second.plain_config(""));
    harness::until("the open connection sees the new cluster", || {
        client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("no")
    })
    .await;
    // A port that another has: the listener that works stays, and the reason is told.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let extra = format!(
        "    - {{ name: extra, direction: inbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}\n"
    );
    proxy.reload(&second.plain_config("").replace("  clusters:", &format!("{extra}  clusters:")));
    harness::until("the taken port is told", || {
        let (state, reason) = proxy.status();
        state == "degraded" && reason.contains(&port.to_string()) && reason.contains("extra")
    })
    .await;
    assert!(client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("no"));
    proxy.stop().await;
}

#[tokio::test]
async fn the_access_log_tells_each_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let app = App::answering(OK);
    let config = app.plain_config("") + &format!("  accessLog: {{ path: {} }}\n", path.display());
    let proxy = Proxy::start(&config).await;
    let mut client = Client::connect(proxy.port);
    client.ask("GET /pay?token=geheim HTTP/1.1\r\nHost: shop\r\nUser-Agent: \"x\\\r\nX-Request-Id: r-1\r\n\r\n");
    client.ask("GET /../x HTTP/1.1\r\nHost: shop\r\n\r\n");
    proxy.stop().await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(!log.contains("geheim"), "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert_eq!((lines[0]["path"].as_str(), lines[0]["code"].as_u64()), (Some("/pay"), Some(200)));
    assert_eq!((lines[0]["request_id"].as_str(), lines[0]["bytes_sent"].as_u64()), (Some("r-1"), Some(2)));
    assert_eq!((lines[1]["flags"].as_str(), lines[1]["code"].as_u64()), (Some("DPE"), Some(400)));
}

#[tokio::test]
async fn two_proxies_speak_mtls_and_tell_the_peer() {
    let app = App::answering(OK);
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    let answer = Client::connect(shop.outbound()).ask(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: URI=spiffe://shop.example/ns/shop/sa/admin\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = app.seen().remove(0).to_lowercase();
    let told = seen.lines().find(|line| line.starts_with("x-forwarded-client-cert: ")).unwrap();
    let told: Vec<_> = told.split([':', ';']).map(str::trim).collect();
    assert!(
        told.contains(&"by=spiffe") && seen.contains(";uri=spiffe://shop.example/ns/shop/sa/frontend\r\n"),
        "{seen}"
    );
    let hash = told.iter().find_map(|field| field.strip_prefix("hash=")).unwrap();
    assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{seen}");
    assert!(!seen.contains("sa/admin"), "a forged identity is removed: {seen}");
    shop.backend.metrics_have("peer=\"spiffe://shop.example/ns/shop/sa/frontend\"").await;
    // Plain text on the strict port gets no HTTP.
    let mut plain = Client::connect(shop.backend.port);
    plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(!plain.read_to_end().starts_with("HTTP/"));
    assert_eq!(app.seen().len(), 1);
    shop.stop().await;
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_not_trusted() {
    let app = App::answering(OK);
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/other").await;
    let answer = Client::connect(shop.outbound()).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(app.seen().is_empty());
    shop.stop().await;
}
