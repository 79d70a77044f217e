use super::*;

fn config(text: &str) -> Config {
    outrigger_config::parse("test.yaml", text, &|_| None).unwrap_or_else(|error| panic!("{error}")).config
}

fn shop() -> Config {
    config(
        r#"
identity: { trustDomain: td, development: { directory: /tmp/x, namespace: n, serviceAccount: s } }
proxy:
  listeners:
    - name: in
      direction: inbound
      address: 127.0.0.1:15006
      tls: { allowedPeers: [spiffe://td/ns/shop/*] }
      routes:
        - name: canary
          matches: [{ path: { value: /items }, headers: [{ name: x-canary, value: "yes" }] }]
          backendRefs: [{ name: canary }]
        - name: items
          matches: [{ path: { value: /items } }]
          filters:
            - { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /v2 } } }
          backendRefs: [{ name: app, weight: 3 }, { name: canary }, { name: off, weight: 0 }]
        - name: moved
          hostnames: [old.example]
          filters: [{ type: RequestRedirect, requestRedirect: { hostname: new.example, statusCode: 301 } }]
    - name: out
      direction: outbound
      address: 127.0.0.1:15001
      protocol: auto
      redirected: true
      routes: [{ name: named, hostnames: [orders.shop], backendRefs: [{ name: orders }] }]
      unknownDestinations: deny
    - { name: sql, direction: outbound, address: "127.0.0.1:15002", protocol: tcp, tcpRoute: { name: db, backendRefs: [{ name: app }] } }
    - name: sni
      direction: outbound
      address: 127.0.0.1:15003
      protocol: tls
      tlsRoutes:
        - { name: any, backendRefs: [{ name: app }] }
        - { name: wild, hostnames: ["*.example"], backendRefs: [{ name: app }] }
        - { name: exact, hostnames: [a.example], backendRefs: [{ name: app }] }
  clusters:
    - { name: app, endpoints: ["127.0.0.1:8080"] }
    - { name: canary, endpoints: ["127.0.0.1:8081"] }
    - { name: off, endpoints: ["127.0.0.1:8082"] }
    - { name: orders, endpoints: ["10.0.0.7:80"], virtualAddresses: ["10.96.0.1:80"] }
"#,
    )
}

fn asked(url: &str, listener: &str) -> Question {
    Question { url: url.to_owned(), listener: Some(listener.to_owned()), ..Question::default() }
}

#[test]
fn a_request_is_followed_to_its_clusters() {
    let question =
        Question { peer: Some("spiffe://td/ns/shop/sa/a".to_owned()), ..asked("http://h/x/../items/7?q", "in") };
    let told = explain(&shop(), &question).unwrap();
    assert_eq!(told.normalised.as_deref(), Some("/items/7?q"));
    assert_eq!(told.route.as_ref().map(|route| (route.name.as_str(), route.number)), Some(("items", Some(0))));
    let canary = told.nearer.iter().find(|one| one.route == "canary").unwrap();
    assert_eq!(
        (canary.mismatch.as_str(), canary.reason.as_str()),
        ("header", "header `x-canary` is not there, not `yes`")
    );
    assert_eq!(told.forwarded.as_ref().unwrap().path, "/v2/7?q");
    let shares: Vec<_> = told.backends.iter().map(|one| (one.cluster.as_str(), one.share)).collect();
    assert_eq!(shares, [("app", 75.0), ("canary", 25.0)]);
    assert_eq!(told.backends[0].endpoints[0].address, "127.0.0.1:8080");
    assert!(told.notes.is_empty() && told.refused.is_none() && told.response.is_none(), "{told:?}");
    let again: Explanation = serde_json::from_str(&serde_json::to_string(&told).unwrap()).unwrap();
    assert_eq!(again, told);
}

#[test]
fn answers_of_our_own_and_refusals_are_told() {
    let told = explain(&shop(), &asked("http://old.example/a", "in")).unwrap();
    let response = told.response.unwrap();
    let location = ("location".to_owned(), "https://new.example/a".to_owned());
    assert_eq!((response.status, response.headers), (301, vec![location]));
    assert!(told.notes[0].contains("handshake fails"), "{:?}", told.notes);
    for (url, listener, status, reason) in [
        ("http://h/other", "in", 404, "no route"),
        ("http://h/..", "in", 400, "above the root"),
        ("http://10.1.1.1/", "out", 502, "deny"),
    ] {
        let refused = explain(&shop(), &asked(url, listener)).unwrap().refused.unwrap();
        assert!(refused.status == status && refused.reason.contains(reason), "{url}: {refused:?}");
    }
}

#[test]
fn other_connections_go_by_destination_and_name() {
    for (url, listener, route, kind, endpoint) in [
        ("http://orders.shop/", "out", "named", RouteKind::Http, "10.0.0.7:80"),
        ("http://10.96.0.1/", "out", "orders", RouteKind::VirtualAddress, "10.0.0.7:80"),
        ("http://10.0.0.7:80/x", "out", "orders", RouteKind::Endpoint, "10.0.0.7:80"),
        ("http://h/", "sql", "db", RouteKind::Tcp, "127.0.0.1:8080"),
        ("https://a.example/", "sni", "exact", RouteKind::Tls, "127.0.0.1:8080"),
        ("https://b.example/", "sni", "wild", RouteKind::Tls, "127.0.0.1:8080"),
        ("https://other/", "sni", "any", RouteKind::Tls, "127.0.0.1:8080"),
    ] {
        let told = explain(&shop(), &asked(url, listener)).unwrap();
        let found = told.route.as_ref().map(|route| (route.name.as_str(), route.kind));
        assert_eq!(found, Some((route, kind)), "{url} {told:?}");
        assert_eq!(told.backends[0].endpoints[0].address, endpoint, "{url}");
    }
}

#[test]
fn a_question_that_makes_no_sense_says_why() {
    let question = |change: &dyn Fn(&mut Question)| {
        let mut question = asked("http://h/", "in");
        change(&mut question);
        explain(&shop(), &question).unwrap_err().to_string()
    };
    for (change, why) in [
        (
            &(|q: &mut Question| q.listener = None) as &dyn Fn(&mut Question),
            "say which listener takes the request: `in`, `out`",
        ),
        (&|q| q.listener = Some("x".to_owned()), "no listener `x`; known are `in`, `out`, `sql`, `sni`"),
        (&|q| q.url = "shop".to_owned(), "no URL"),
        (&|q| q.url = "ftp://x/".to_owned(), "no URL"),
        (&|q| q.method = "G T".to_owned(), "no method"),
        (&|q| q.method = "CONNECT".to_owned(), "connectRoutes"),
        (&|q| q.peer = Some("me".to_owned()), "no SPIFFE ID"),
        (&|q| q.headers = vec![("a b".to_owned(), "x".to_owned())], "no header field"),
    ] {
        let error = question(change);
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn a_test_says_what_is_not_as_expected() {
    let text = r#"
tests:
  - name: holds
    request: { url: "http://h/items/7", listener: in, headers: [{ name: x-a, value: "1" }] }
    expect:
      route: items
      backend: canary
      request: { path: /v2/7, host: h, headers: [{ name: X-A, value: "1" }], absent: [x-b] }
  - name: own answer
    request: { url: "http://old.example/", listener: in }
    expect: { response: { status: 301, headers: [{ name: Location, value: "https://new.example/" }] } }
  - name: refused
    request: { url: "http://h/none", listener: in }
    expect: { response: { status: 404 } }
  - name: all wrong
    request: { url: "http://h/items/7", listener: in, headers: [{ name: x-b, value: "1" }] }
    expect:
      route: canary
      backend: off
      request: { path: /items/7, headers: [{ name: x-a, value: "1" }], absent: [x-b] }
      response: { status: 200 }
  - name: not forwarded
    request: { url: "http://old.example/", listener: in }
    expect: { request: { path: / } }
"#;
    let (shop, tests) = (shop(), config(text).tests);
    let found: Vec<Vec<String>> = tests
        .iter()
        .map(|test| {
            let told = judge_test(&shop, test).unwrap().1;
            told.iter().map(|one| format!("{}: {} | {}", one.what, one.expected, one.got)).collect()
        })
        .collect();
    let wrong = [
        "route: canary | items",
        "backend: off | app or canary",
        "request.path: /items/7 | /v2/7",
        "request header x-a: 1 | absent",
        "request header x-b: absent | 1",
        "response: is the proxy's own | forwarded to app",
    ];
    let none: &[&str] = &[];
    assert_eq!(found, [none, none, none, &wrong[..], &["request: is forwarded | answered with 301"][..]]);
}
