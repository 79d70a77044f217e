//! Which cluster gets a request, over real sockets: each application says its name.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::harness::{App, Client, Proxy, Shop};
use crate::http2::{END_HEADERS, END_STREAM, Frames, HEADERS};

/// An application that answers with a name.
pub(crate) fn named(name: &'static str) -> App {
    App::answering(Box::leak(
        format!("HTTP/1.1 200 OK\r\nX-App: {name}\r\nContent-Length: {}\r\n\r\n{name}", name.len()).into_boxed_str(),
    ))
}

/// A listener with these lines, and clusters of applications that say their names.
pub(crate) fn config(listener: &str, clusters: &BTreeMap<&'static str, App>) -> String {
    let clusters: String = clusters
        .iter()
        .map(|(name, app)| format!("    - {{ name: {name}, endpoints: [\"127.0.0.1:{}\"] }}\n", app.port))
        .collect();
    format!(
        "proxy:\n  listeners:\n    - name: in\n      direction: inbound\n      address: 127.0.0.1:PORT\n{listener}  clusters:\n{clusters}"
    )
}

pub(crate) fn apps(names: &[&'static str]) -> BTreeMap<&'static str, App> {
    names.iter().map(|name| (*name, named(name))).collect()
}

const ROUTES: &str = r#"
      routes:
        - name: canary
          matches: [{ path: { value: /items }, headers: [{ name: X-Canary, value: "yes" }] }]
          backendRefs: [{ name: b }]
        - name: items
          matches: [{ path: { value: /items } }]
          backendRefs: [{ name: a }]
        - name: numbers
          matches: [{ path: { type: RegularExpression, value: "/items/[0-9]+" } }]
          backendRefs: [{ name: c }]
        - name: writes
          matches: [{ path: { value: /items }, method: POST }]
          backendRefs: [{ name: d }]
        - name: debug
          matches: [{ path: { value: /items/debug }, queryParams: [{ name: level, value: "2 0" }] }]
          backendRefs: [{ name: d }]
      grpcRoutes:
        - name: cart
          matches: [{ method: { service: items, method: cart } }]
          backendRefs: [{ name: e }]
"#;

#[tokio::test]
async fn what_a_request_looks_like_chooses_its_route() {
    let clusters = apps(&["a", "b", "c", "d", "e"]);
    let proxy = Proxy::start(&config(ROUTES, &clusters)).await;
    for (request, expected) in [
        ("GET /items/x HTTP/1.1\r\nHost: h\r\n\r\n", "a"),
        ("GET /items/x HTTP/1.1\r\nHost: h\r\nx-canary: yes\r\n\r\n", "b"),
        ("GET /items/x HTTP/1.1\r\nHost: h\r\nx-canary: yes\r\nx-canary: no\r\n\r\n", "a"),
        ("GET /items/7 HTTP/1.1\r\nHost: h\r\nX-Canary: yes\r\n\r\n", "c"),
        // The path that is looked at is the normalised one.
        ("GET /x/../items/%37 HTTP/1.1\r\nHost: h\r\n\r\n", "c"),
        ("POST /items HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", "d"),
        ("GET /items/debug?x&level=2%200 HTTP/1.1\r\nHost: h\r\n\r\n", "d"),
        ("GET /items/debug?level=3 HTTP/1.1\r\nHost: h\r\n\r\n", "a"),
        ("POST /items/cart HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n", "d"),
    ] {
        let answer = Client::connect(proxy.port).ask(request);
        assert!(answer.contains(&format!("X-App: {expected}\r\n")), "{request}: {answer}");
    }
    let answer = Client::connect(proxy.port).ask("GET /other HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    proxy.metrics_have(r#"route="numbers",cluster="c",code="200"} 2"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn over_http2_the_same_table_is_asked() {
    let clusters = apps(&["a", "b", "c", "d", "e"]);
    let proxy = Proxy::start(&config(ROUTES, &clusters)).await;
    let port = proxy.port;
    let asked = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        // `GET /items/12 HTTP/2` for the host `h` with `x-canary: yes`, without indexing.
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x86\x04\x09/items/12\x01\x01h\x00\x08x-canary\x03yes");
        while let Some((_, flags, stream, _)) = client.receive() {
            if stream == 1 && flags & END_STREAM != 0 {
                return;
            }
        }
    });
    asked.await.unwrap();
    assert_eq!(clusters["c"].seen().len(), 1);
    proxy.stop().await;
}

#[tokio::test]
async fn who_a_peer_is_chooses_its_route() {
    let (app, other) = (named("app"), named("other"));
    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    for (peer, expected) in [("sa/frontend", "other"), ("sa/somebody", "app")] {
        let route = format!(
            "routes:\n        - {{ name: one, matches: [{{ peers: [spiffe://shop.example/ns/shop/{peer}] }}], backendRefs: [{{ name: other }}] }}\n        - "
        );
        let cluster = format!("clusters:\n    - {{ name: other, endpoints: [\"127.0.0.1:{}\"] }}\n", other.port);
        let changed = shop.backend_config.replace("routes: [", &route).replace("}] }]\n", "}] }\n");
        shop.backend.reload(&changed.replace("clusters:\n", &cluster));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = Client::connect(shop.outbound()).ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            if answer.contains(&format!("X-App: {expected}\r\n")) {
                break;
            }
            assert!(Instant::now() < deadline, "{peer}: {answer}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    shop.stop().await;
}
