use outrigger_config::{
    GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, HeaderMatch, PathMatch, PathMatchType, QueryParamMatch, Route,
    RouteMatch, ValueMatchType,
};
use outrigger_wire::head::Head;
use proptest::prelude::*;

use super::*;

fn head(method: &str, fields: &[(&str, &str)]) -> Head {
    let mut head = Head::default();
    head.set_method(method);
    for (name, value) in fields {
        head.push(name, value.as_bytes());
    }
    head
}

/// A route of one line: hosts, then matches of `[=~]PATH METHOD? name=value name~value ?name=value @PEER`.
fn route(name: &str, hosts: &[&str], matches: &[&str]) -> Route {
    let mut route = Route::new(name.parse().unwrap());
    route.hostnames = hosts.iter().map(|host| (*host).to_owned()).collect();
    route.matches = matches.iter().map(|text| one(text)).collect();
    route
}

fn one(text: &str) -> RouteMatch {
    let mut words = text.split(' ');
    let path = words.next().unwrap();
    let kind = match path.as_bytes()[0] {
        b'=' => PathMatchType::Exact,
        b'~' => PathMatchType::RegularExpression,
        _ => PathMatchType::PathPrefix,
    };
    let value = path.trim_start_matches(['=', '~']).to_owned();
    let mut one = RouteMatch { path: PathMatch { kind, value }, ..RouteMatch::default() };
    for word in words {
        let kind = if word.contains('~') { ValueMatchType::RegularExpression } else { ValueMatchType::Exact };
        match word.split_once(['=', '~']) {
            Some((name, value)) if name.starts_with('?') => {
                one.query_params.push(QueryParamMatch { kind, name: name[1..].to_owned(), value: value.to_owned() })
            }
            Some((name, value)) => {
                one.headers.push(HeaderMatch { kind, name: name.to_owned(), value: value.to_owned() });
            }
            None if word.starts_with('@') => one.peers.push(word[1..].parse().unwrap()),
            None => one.method = Some(word.to_owned()),
        }
    }
    one
}

fn call(name: &str, kind: ValueMatchType, service: Option<&str>, method: Option<&str>) -> GrpcRoute {
    let method = GrpcMethodMatch { kind, service: service.map(str::to_owned), method: method.map(str::to_owned) };
    let given = method.service.is_some() || method.method.is_some();
    GrpcRoute {
        name: name.parse().unwrap(),
        hostnames: Vec::new(),
        matches: if given {
            vec![GrpcRouteMatch { method: Some(method), ..GrpcRouteMatch::default() }]
        } else {
            vec![]
        },
        filters: Vec::new(),
        backend_refs: Vec::new(),
        timeouts: Route::new("x".parse().unwrap()).timeouts,
        retry: None,
        session_persistence: None,
        rate_limits: Vec::new(),
        global_rate_limits: Vec::new(),
        priority: None,
    }
}

/// The name of the route that takes a request, which the table and the list must agree on.
fn found(routes: &[Route], grpc: &[GrpcRoute], request: &Request<'_>) -> Option<String> {
    let names: Vec<String> =
        routes.iter().map(|one| one.name.to_string()).chain(grpc.iter().map(|one| one.name.to_string())).collect();
    let found = RouteTable::new(routes, grpc).find(request);
    let slow = candidates(routes, grpc, request).into_iter().find(|one| one.mismatch.is_none());
    assert_eq!(found.map(|found| found.route), slow.as_ref().map(|one| one.route), "{request:?}");
    Some(names[found?.route as usize].clone())
}

#[test]
fn precedence_is_the_gateway_apis() {
    let routes = [
        route("any", &[], &["/"]),
        route("wild", &["*.shop"], &["/"]),
        route("wilder", &["*.eu.shop"], &["/only"]),
        route("host", &["a.eu.shop"], &["/items", "=/items/exact"]),
        route("longest", &["h"], &["/a/b/c"]),
        route("prefix", &["h"], &["/a/b"]),
        route("regex", &["h"], &["~/r/[0-9]+"]),
        route("longer-regex", &["h"], &["~/r/[0-9]+(/.*)?"]),
        route("before-regex", &["h"], &["=/r/1"]),
        route("behind-regex", &["h"], &["/r/2/x/y/z/very/long"]),
        route("method", &["m"], &["/ GET"]),
        route("headers", &["m"], &["/ a=1 b=2"]),
        route("header", &["m"], &["/ a=1"]),
        route("query", &["m"], &["/ ?q=1 ?r=2 ?s=3"]),
        route("peer", &["m"], &["/ @spiffe://td/ns/x/*"]),
        route("plain", &["m"], &["/"]),
        route("second", &["m"], &["/"]),
        route("slash", &["s"], &["/dir/"]),
    ];
    let peer = Some("spiffe://td/ns/x/sa/y");
    let none: &[(&str, &str)] = &[];
    for (host, target, method, fields, peer, expected) in [
        ("a.eu.shop", "/items/1", "GET", none, None, Some("host")),
        ("a.eu.shop", "/items/exact", "GET", none, None, Some("host")),
        // What the most specific host does not take falls to the less specific ones.
        ("a.eu.shop", "/only/x", "GET", none, None, Some("wilder")),
        ("a.eu.shop", "/other", "GET", none, None, Some("wild")),
        ("eu.shop", "/only", "GET", none, None, Some("wild")),
        ("shop", "/only", "GET", none, None, Some("any")),
        ("A.EU.Shop.", "/items", "GET", none, None, Some("host")),
        ("h", "/a/b/c/d", "GET", none, None, Some("longest")),
        ("h", "/a/b/cd", "GET", none, None, Some("prefix")),
        ("h", "/a/bc", "GET", none, None, Some("any")),
        ("h", "/r/1", "GET", none, None, Some("before-regex")),
        ("h", "/r/2", "GET", none, None, Some("longer-regex")),
        ("h", "/r/2/x/y/z/very/long", "GET", none, None, Some("longer-regex")),
        ("h", "/r/x", "GET", none, None, Some("any")),
        ("m", "/", "GET", &[("a", "1"), ("b", "2")], peer, Some("method")),
        ("m", "/", "POST", &[("A", "1"), ("b", "2")], peer, Some("headers")),
        ("m", "/?q=1&r=2&s=3", "POST", &[("a", "1")], None, Some("header")),
        ("m", "/?q=1&r=2&s=3", "POST", none, None, Some("query")),
        ("m", "/?q=1&r=2", "POST", none, peer, Some("peer")),
        ("m", "/x", "POST", none, Some("spiffe://td/ns/other/sa/y"), Some("plain")),
        ("s", "/dir", "GET", none, None, Some("slash")),
        ("s", "/dir/x", "GET", none, None, Some("slash")),
        ("s", "/", "GET", none, None, Some("any")),
        ("s", "*", "OPTIONS", none, None, Some("any")),
        ("h", "*", "OPTIONS", none, None, Some("any")),
    ] {
        let head = head(method, fields);
        let (path, query) = split_target(target);
        let request = Request { host, path, query, head: &head, peer };
        assert_eq!(found(&routes, &[], &request).as_deref(), expected, "{host} {target} {method} {fields:?}");
    }
}

#[test]
fn values_are_compared_as_the_specification_says() {
    let none: &[(&str, &str)] = &[];
    for (condition, target, fields, expected) in [
        ("x=1", "/", &[("X", "1")][..], true),
        ("x=1", "/", &[("x", "12")], false),
        ("x=1", "/", none, false),
        ("x=1,2", "/", &[("x", "1"), ("y", "3"), ("x", "2")], true),
        ("x=1", "/", &[("x", "1"), ("x", "2")], false),
        ("x~[12,]+", "/", &[("x", "1"), ("x", "2")], true),
        ("x~1", "/", &[("x", "1"), ("x", "2")], false),
        ("cookie~.*canary=yes.*", "/", &[("cookie", "a=b; canary=yes")], true),
        ("x=", "/", &[("x", "")], true),
        ("x=", "/", none, false),
        ("?q=1", "/?q=1", none, true),
        ("?q=1", "/?q=1&q=2", none, true),
        ("?q=2", "/?q=1&q=2", none, false),
        ("?q=1", "/?Q=1", none, false),
        ("?q=1", "/?qq=1&q=1", none, true),
        ("?q=", "/?q", none, true),
        ("?q=", "/?q=", none, true),
        ("?q=", "/?", none, false),
        ("?q=a/b", "/?q=a%2Fb", none, true),
        ("?q=a&b", "/?q=a%26b", none, true),
        ("?q=1", "/?%71=%31", none, true),
        ("?q=%zz", "/?q=%zz", none, true),
        ("?q=a+b", "/?q=a+b", none, true),
        ("?q~[a-c]+", "/?q=%61bc", none, true),
        ("?q~[a-c]+", "/?q=abcd", none, false),
    ] {
        let routes = [route("it", &[], &[&format!("/ {condition}")])];
        let (path, query) = split_target(target);
        let head = head("GET", fields);
        let request = Request { host: "h", path, query, head: &head, peer: None };
        assert_eq!(found(&routes, &[], &request).is_some(), expected, "{condition}: {target} {fields:?}");
    }
}

#[test]
fn grpc_calls_take_grpc_routes() {
    use ValueMatchType::{Exact, RegularExpression};
    let http = [route("http", &[], &["/"]), route("http-exact", &[], &["=/shop.Cart/Add"])];
    let grpc = [
        call("every", Exact, None, None),
        call("method", Exact, None, Some("Ping")),
        call("service", Exact, Some("shop.Cart"), None),
        call("both", Exact, Some("shop.Cart"), Some("Add")),
        call("pattern", RegularExpression, Some("shop\\.(Cart|Order)"), Some("List.*")),
    ];
    for (path, kind, expected) in [
        ("/shop.Cart/Add", "application/grpc", "both"),
        ("/shop.Cart/Add", "application/grpc+proto", "both"),
        ("/shop.Cart/Add", "application/json", "http-exact"),
        ("/shop.Cart/Ping", "application/grpc", "service"),
        ("/shop.Order/Ping", "application/grpc", "method"),
        ("/shop.Cart/ListAll", "application/grpc", "pattern"),
        ("/shop.CartX/Get", "application/grpc", "every"),
        ("/shop.Cart/Remove", "text/plain", "http"),
    ] {
        let head = head("POST", &[("content-type", kind)]);
        let request = Request { host: "h", path, query: "", head: &head, peer: None };
        assert_eq!(found(&http, &grpc, &request).as_deref(), Some(expected), "{path} {kind}");
    }
}

#[test]
fn so_much_of_the_path_was_matched() {
    let routes = [
        route("a", &[], &["/a/b/"]),
        route("b", &[], &["=/x/y"]),
        route("c", &[], &["~/r.*"]),
        route("d", &[], &["/"]),
    ];
    let table = RouteTable::new(&routes, &[]);
    let head = head("GET", &[]);
    for (path, route, matched) in [("/a/b/c", 0, 4), ("/a/b", 0, 4), ("/x/y", 1, 4), ("/r/1", 2, 4), ("/z", 3, 0)] {
        let request = Request { host: "h", path, query: "", head: &head, peer: None };
        assert_eq!(table.find(&request), Some(Found { route, matched }), "{path}");
    }
}

#[test]
fn an_explanation_says_what_does_not_match() {
    let routes = [
        route("peer", &[], &["/a @spiffe://td/ns/x/*"]),
        route("query", &[], &["/a/b ?q=1"]),
        route("header", &[], &["/a/b x=1"]),
        route("method", &[], &["/a/b PUT"]),
        route("path", &[], &["/a/b/c"]),
        route("host", &["other"], &["/"]),
        route("it", &[], &["/"]),
    ];
    let head = head("GET", &[("x", "2")]);
    let request = Request { host: "h", path: "/a/b", query: "", head: &head, peer: None };
    let found: Vec<_> = candidates(&routes, &[], &request)
        .iter()
        .map(|one| {
            (
                routes[one.route as usize].name.to_string(),
                one.mismatch.as_ref().map(|m| (m.kind(), m.text().to_owned())),
            )
        })
        .collect();
    let expected = [
        ("host", Some(("host", "host is `h`, not `other`"))),
        ("path", Some(("path", "path is `/a/b`, not `/a/b/c` or below"))),
        ("method", Some(("method", "method is `GET`, not `PUT`"))),
        ("header", Some(("header", "header `x` is `2`, not `1`"))),
        ("query", Some(("queryParam", "query parameter `q` is not `1`"))),
        ("peer", Some(("peer", "the peer is not known, and must be `spiffe://td/ns/x/*`"))),
        ("it", None),
    ]
    .map(|(name, why)| (name.to_owned(), why.map(|(kind, text)| (kind, text.to_owned()))));
    assert_eq!(found, expected);
}

fn any_match() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        Just(PathMatch::default()),
        "(/[ab]{1,2}){0,3}/?".prop_map(|value| PathMatch { kind: PathMatchType::PathPrefix, value }),
        "(/[ab]{1,2}){1,3}".prop_map(|value| PathMatch { kind: PathMatchType::Exact, value }),
        "/(a|b)\\*/?|/\\.\\*|/\\[ab\\]\\{2\\}(/b)?"
            .prop_map(|value| PathMatch { kind: PathMatchType::RegularExpression, value }),
    ];
    let kind = || prop_oneof![3 => Just(ValueMatchType::Exact), 1 => Just(ValueMatchType::RegularExpression)];
    let header = (kind(), "x|y", "[01]").prop_map(|(kind, name, value)| HeaderMatch { kind, name, value });
    let query = (kind(), "p|q", "[01]").prop_map(|(kind, name, value)| QueryParamMatch { kind, name, value });
    let peer = prop_oneof![Just("spiffe://td/ns/a/*"), Just("spiffe://td/ns/b/sa/c")];
    (
        path,
        prop::option::weighted(0.3, "GET|PUT"),
        prop::collection::vec(header, 0..3),
        prop::collection::vec(query, 0..2),
        prop::collection::vec(peer, 0..2),
    )
        .prop_map(|(path, method, headers, query_params, peers)| RouteMatch {
            path,
            method,
            headers,
            query_params,
            peers: peers.into_iter().map(|peer| peer.parse().unwrap()).collect(),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// The table finds what a look at every route finds.
    #[test]
    fn the_table_agrees_with_the_list(
        routes in prop::collection::vec(
            (prop::collection::vec("(\\*\\.)?([ab]\\.){0,2}[ab]", 0..3), prop::collection::vec(any_match(), 0..3)), 1..12),
        requests in prop::collection::vec(
            ("([abA]\\.){0,3}[abc]\\.?", "(/[ab]{1,2}){1,3}/?|/|\\*", "(p=[01]&?)?(q=[01])?", "GET|PUT|POST",
             prop::collection::vec(("[xyX]", "[01]"), 0..3), prop::option::of("spiffe://td/ns/[ab]/sa/c")), 1..8),
    ) {
        let routes: Vec<_> = routes.into_iter().map(|(hosts, matches)| {
            let mut route = Route::new("r".parse().unwrap());
            (route.hostnames, route.matches) = (hosts, matches);
            route
        }).collect();
        let table = RouteTable::new(&routes, &[]);
        for (host, path, query, method, fields, peer) in &requests {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let head = head(method, &fields);
            let request = Request { host, path, query, head: &head, peer: peer.as_deref() };
            let slow = candidates(&routes, &[], &request).into_iter().find(|one| one.mismatch.is_none());
            prop_assert_eq!(table.find(&request).map(|found| found.route), slow.map(|one| one.route), "{:?}", request);
        }
    }
}

#[test]
fn one_is_found_among_ten_thousand() {
    let many: Vec<_> = (0..10_000).map(|n| route("r", &["h"], &[&format!("/svc-{n}/items")])).collect();
    let table = RouteTable::new(&many, &[]);
    let head = head("GET", &[]);
    for n in [0, 7, 4711, 9999] {
        let path = format!("/svc-{n}/items/1");
        let request = Request { host: "h", path: &path, query: "", head: &head, peer: None };
        assert_eq!(table.find(&request).map(|found| found.route), Some(n));
    }
    let request = Request { host: "h", path: "/svc-10000/items", query: "", head: &head, peer: None };
    assert_eq!(table.find(&request), None);
    let hosts: Vec<_> = (0..10_000).map(|n| route("r", &[&format!("*.h{n}.shop")], &["/"])).collect();
    let table = RouteTable::new(&hosts, &[]);
    let request = Request { host: "x.h4711.shop", ..request };
    assert_eq!(table.find(&request).map(|found| found.route), Some(4711));
}
