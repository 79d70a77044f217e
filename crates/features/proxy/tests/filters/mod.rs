//! Filters over real sockets: what the application sees of a request, and the client of the answer.

use crate::harness::{App, Client, Proxy};
use crate::http2::{END_HEADERS, END_STREAM, Frames, GET, HEADERS};
use crate::routing::{apps, config};

const ROUTES: &str = r#"
      routes:
        - name: changed
          matches: [{ path: { value: /old } }]
          filters:
            - type: RequestHeaderModifier
              requestHeaderModifier:
                set: [{ name: X-Set, value: new }]
                add: [{ name: X-Add, value: "2" }]
                remove: [x-gone]
            - type: ResponseHeaderModifier
              responseHeaderModifier: { set: [{ name: x-app, value: hidden }], add: [{ name: X-Proxy, value: us }] }
            - type: URLRewrite
              urlRewrite: { hostname: app.internal, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }
          backendRefs:
            - name: a
              filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-backend, value: a }] } }]
        - name: moved
          matches: [{ path: { value: /moved } }]
          filters:
            - type: RequestRedirect
              requestRedirect:
                { scheme: https, hostname: new.example, statusCode: 308, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
        - name: closed
          matches: [{ path: { value: /closed } }]
          filters:
            - type: DirectResponse
              directResponse: { statusCode: 418, body: "<i>tea</i>", headers: [{ name: content-type, value: text/html }] }
        - name: empty
          matches: [{ path: { value: /empty } }]
          filters: [{ type: DirectResponse, directResponse: { statusCode: 204 } }]
        - name: api
          matches: [{ path: { value: /api } }]
          filters:
            - type: CORS
              cors: { allowOrigins: ["https://*.shop.example"], allowMethods: [GET, PUT], exposeHeaders: [x-app], maxAge: 60s }
          backendRefs: [{ name: a }]
        - name: nobody
          matches: [{ path: { value: /nobody } }]
          filters:
            - type: CORS
              cors: { allowOrigins: ["*"] }
            - type: ResponseHeaderModifier
              responseHeaderModifier: { add: [{ name: x-proxy, value: us }] }
          backendRefs: [{ name: gone }]
        - name: failing
          matches: [{ path: { value: /failing } }]
          filters:
            - type: Fault
              fault:
                delay: { duration: 1ms }
                abort: { httpStatus: 503 }
                headers: [{ name: x-chaos, value: "on" }]
          backendRefs: [{ name: a }]
        - name: slow
          matches: [{ path: { value: /slow } }]
          filters: [{ type: Fault, fault: { delay: { duration: 1h } } }]
          timeouts: { request: 50ms }
          backendRefs: [{ name: a }]
        - name: all
          filters: [{ type: Fault, fault: { abort: { httpStatus: 599 } } }]
          backendRefs: [{ name: a }]
"#;

/// What a client sends, what must and (with `!`) must not be in its answer.
type Row = (&'static str, &'static [&'static str]);

#[tokio::test]
async fn requests_and_answers_are_changed() {
    let clusters = apps(&["a", "gone"]);
    let proxy = Proxy::start(&config(ROUTES, &clusters)).await;
    let mut client = Client::connect(proxy.port);
    let answer = client.ask(
        "GET /old/./x?q=/old HTTP/1.1\r\nHost: shop:80\r\nX-Gone: 1\r\nx-set: a\r\nX-Add: 1\r\nConnection: x-set\r\n\r\n",
    );
    assert!(answer.contains("X-App: hidden\r\n") && answer.contains("X-Proxy: us\r\n"), "{answer}");
    let seen = &clusters["a"].seen()[0];
    assert!(seen.starts_with("GET /new/x?q=/old HTTP/1.1\r\n"), "{seen}");
    for wanted in ["Host: app.internal\r\n", "X-Set: new\r\n", "X-Add: 1\r\n", "X-Add: 2\r\n", "x-backend: a\r\n"] {
        assert!(seen.contains(wanted), "{wanted} in {seen}");
    }
    assert!(!seen.contains("X-Gone") && !seen.contains("shop:80"), "{seen}");
    // The same connection goes on.
    assert!(client.ask("GET /old HTTP/1.1\r\nHost: shop\r\n\r\n").starts_with("HTTP/1.1 200"));
    assert!(clusters["a"].seen()[1].starts_with("GET /new HTTP/1.1\r\n"));
    proxy.stop().await;
}

#[tokio::test]
async fn the_proxy_answers_in_the_applications_stead() {
    let rows: &[Row] = &[
        (
            "GET /moved/a?b HTTP/1.1\r\nHost: shop:8080\r\n\r\n",
            &[
                "HTTP/1.1 308 Permanent Redirect\r\n",
                "Location: https://new.example/a?b\r\n",
                "Content-Length: 0\r\n",
                "!close",
            ],
        ),
        ("HEAD /moved HTTP/1.1\r\nHost: shop\r\n\r\n", &["HTTP/1.1 308", "Location: https://new.example/\r\n"]),
        (
            "GET /closed HTTP/1.1\r\nHost: shop\r\n\r\n",
            &[
                "HTTP/1.1 418",
                "content-type: text/html\r\n",
                "Content-Length: 10\r\n",
                "\r\n\r\n<i>tea</i>",
                "!text/plain",
            ],
        ),
        ("GET /empty HTTP/1.1\r\nHost: shop\r\n\r\n", &["HTTP/1.1 204 No Content\r\n", "!ontent-Length"]),
        // Its body is on its way, so the connection cannot be used again.
        (
            "POST /closed HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\n",
            &["HTTP/1.1 418", "Connection: close\r\n", "<i>tea</i>"],
        ),
        (
            "OPTIONS /api/x HTTP/1.1\r\nHost: shop\r\nOrigin: https://a.shop.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
            &[
                "HTTP/1.1 204 No Content\r\n",
                "access-control-allow-origin: https://a.shop.example\r\n",
                "vary: origin\r\n",
                "access-control-allow-methods: GET, PUT\r\n",
                "access-control-max-age: 60\r\n",
            ],
        ),
        (
            "OPTIONS /api/x HTTP/1.1\r\nHost: shop\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
            &["HTTP/1.1 403", "!access-control"],
        ),
        (
            "GET /api/x HTTP/1.1\r\nHost: shop\r\nOrigin: https://a.shop.example\r\n\r\n",
            &[
                "HTTP/1.1 200",
                "access-control-allow-origin: https://a.shop.example\r\n",
                "access-control-expose-headers: x-app\r\n",
                "vary: origin\r\n",
                "X-App: a\r\n",
            ],
        ),
        ("GET /api/x HTTP/1.1\r\nHost: shop\r\n\r\n", &["HTTP/1.1 200", "!access-control", "vary: origin\r\n"]),
        // Errors of ours, too, so that a page's developer can read them.
        (
            "GET /nobody HTTP/1.1\r\nHost: shop\r\nOrigin: https://x\r\n\r\n",
            &["HTTP/1.1 502", "access-control-allow-origin: *\r\n", "x-proxy: us\r\n"],
        ),
        ("GET /failing HTTP/1.1\r\nHost: shop\r\n\r\n", &["HTTP/1.1 200", "X-App: a\r\n"]),
        (
            "GET /failing HTTP/1.1\r\nHost: shop\r\nX-Chaos: on\r\n\r\n",
            &["HTTP/1.1 503", "fault filter abort", "!X-App"],
        ),
        ("GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n", &["HTTP/1.1 504", "!X-App"]),
        ("GET / HTTP/1.1\r\nHost: shop\r\n\r\n", &["HTTP/1.1 599"]),
    ];
    let mut clusters = apps(&["a"]);
    // Takes connections and ends them.
    clusters.insert("gone", App::talking(drop));
    let proxy = Proxy::start(&config(ROUTES, &clusters)).await;
    let mut kept = Client::connect(proxy.port);
    for (request, wanted) in rows {
        // What leaves the connection in order does so for the next.
        let mut fresh = Client::connect(proxy.port);
        let body = request.starts_with("POST");
        let (answer, again) =
            if body || request.starts_with("HEAD") || request.contains("/empty") || request.starts_with("OPTIONS") {
                fresh.send(request);
                let answer = fresh.read_some();
                (answer.clone(), None)
            } else {
                (fresh.ask(request), Some(kept.ask(request)))
            };
        for answer in [Some(answer), again].into_iter().flatten() {
            for wanted in *wanted {
                let (text, must) = wanted.strip_prefix('!').map_or((*wanted, true), |text| (text, false));
                assert_eq!(answer.contains(text), must, "{request}: {wanted} in {answer}");
            }
        }
    }
    proxy.metrics_have(r#"route="moved",code="308"} 3"#).await;
    proxy.metrics_have(r#"route="failing",code="503"} 2"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn over_http2_too() {
    let clusters = apps(&["a", "gone"]);
    let routes = ROUTES.replace("abort: { httpStatus: 599 }", "abort: { httpStatus: 404 }");
    let proxy = Proxy::start(&config(&routes, &clusters)).await;
    let port = proxy.port;
    let block = tokio::task::spawn_blocking(move || {
        let mut client = Frames::connect(port);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, GET);
        while let Some((kind, _, stream, payload)) = client.receive() {
            if stream == 1 && kind == HEADERS {
                return payload;
            }
        }
        Vec::new()
    });
    // `:status: 404` is entry 13 of HPACK's static table.
    assert_eq!(block.await.unwrap().first(), Some(&0x8d));
    proxy.metrics_have(r#"route="all",code="404"} 1"#).await;
    proxy.stop().await;
}

#[tokio::test]
async fn answers_of_filters_are_limited_like_others() {
    let routes = r#"
      routes:
        - name: moved
          matches: [{ path: { value: /moved } }]
          rateLimits: [{ name: few, requests: 2, per: 1h, headers: true }]
          filters: [{ type: RequestRedirect, requestRedirect: { hostname: new.example } }]
        - name: asked
          matches: [{ path: { value: /asked } }]
          rateLimits: [{ name: few, requests: 1, per: 1h }]
          filters:
            - { type: CORS, cors: { allowOrigins: ["*"] } }
            - { type: DirectResponse, directResponse: { statusCode: 200, body: "hello" } }
"#;
    let proxy = Proxy::start(&config(routes, &apps(&["a"]))).await;
    let ask = |request: &str| Client::connect(proxy.port).ask(request);
    let statuses = |path: &str, count: usize| -> Vec<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
        (0..count).map(|_| ask(&request)[9..12].to_owned()).collect()
    };
    assert!(ask("GET /moved HTTP/1.1\r\nHost: shop\r\n\r\n").contains("RateLimit: \"few\";r=1;"));
    assert_eq!(statuses("/moved", 3), ["302", "429", "429"]);
    // A browser's question whether it may ask is none of the requests.
    let preflight = "OPTIONS /asked HTTP/1.1\r\nHost: shop\r\nOrigin: https://x\r\nAccess-Control-Request-Method: GET\r\nConnection: close\r\n\r\n";
    for _ in 0..3 {
        let mut client = Client::connect(proxy.port);
        client.send(preflight);
        assert!(client.read_to_end().starts_with("HTTP/1.1 204"));
    }
    assert_eq!(statuses("/asked", 2), ["200", "429"]);
    proxy.metrics_have(r#"route="moved",limit="few",result="limited"} 2"#).await;
    proxy.stop().await;
}
