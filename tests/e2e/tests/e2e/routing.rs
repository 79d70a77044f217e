//! Routing as a stranger meets it: explained, tested, shown; redirects and CORS as curl sees
//! them; and the same routes beside Envoy, where the Gateway API is silent.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::Path;
use std::process::Output;

use outrigger_e2e::{Application, Envoy, free_port, outrigger_command, request, run, start_outrigger, tool};
use serde_json::Value;

fn outrigger(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = outrigger_command().args(arguments).output().unwrap();
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

fn example() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/routing/outrigger.yaml")).unwrap()
}

#[test]
fn a_file_is_explained_and_tested() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outrigger.yaml");
    let file = path.to_str().unwrap();
    fs::write(&path, example()).unwrap();
    let (code, text) = outrigger(&["explain", "-c", file, "--url", "http://shop.example/x/../cart/7"]);
    assert_eq!(code, Some(0), "{text}");
    for wanted in [
        "normalised /cart/7\n",
        "nearer     cart-canary match 0 (shop.example /cart/*): header `x-canary` is not there, not `yes`\n",
        "route      cart (HTTP route, match 0: shop.example /cart/*)\n",
        "forwarded  GET /v2/cart/7, host shop.example\n",
        "cluster    90.0 % to app, plain text\n             127.0.0.1:8080\n",
    ] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(!text.contains('\u{1b}'), "colours are for terminals: {text}");
    let (code, text) = outrigger(&["explain", "-c", file, "--url", "http://shop.example/none"]);
    assert!(code == Some(3) && text.contains("refused    404: no route matches this request"), "{text}");
    let (code, text) = outrigger(&["explain", "-c", file, "--url", "http://h/", "--listener", "out"]);
    assert!(code == Some(2) && text.contains("there is no listener `out`; known are `in`"), "{text}");
    let (code, text) = outrigger(&["explain", "-c", file, "--url", "http://old.example/a", "--format", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &told["response"]["status"]), (Some(0), &Value::from(301)));

    let (code, text) = outrigger(&["test", "-c", file]);
    assert!(code == Some(0) && text.ends_with("6 passed, 0 failed\n"), "{text}");
    fs::write(&path, example().replace("replacePrefixMatch: /v2/cart", "replacePrefixMatch: /v3/cart")).unwrap();
    let (code, text) = outrigger(&["test", "-c", file]);
    let wrong = "FAIL the cart moved below /v2\n     request.path\n       - expected: /v2/cart/7?full\n       + got:      /v3/cart/7?full\n";
    assert!(code == Some(1) && text.contains(wrong), "{text}");
    let (code, text) = outrigger(&["test", "-c", file, "--format", "json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &told["failed"]), (Some(1), &Value::from(1)));
    fs::write(&path, example().split("tests:").next().unwrap()).unwrap();
    let (code, text) = outrigger(&["test", "-c", file]);
    assert!(code == Some(2) && text.contains("has no `tests`"), "{text}");
}

#[test]
fn a_running_one_is_asked_and_curl_is_sent_on() {
    let folder = tempfile::tempdir().unwrap();
    let (app, port) = (Application::start(), free_port());
    let config = example()
        .replace("127.0.0.1:15006", &format!("127.0.0.1:{port}"))
        .replace("127.0.0.1:8080", &app.address.to_string());
    let proxy = start_outrigger(folder.path(), &config);
    let curl = |arguments: &[&str]| {
        let url = format!("http://127.0.0.1:{port}");
        let arguments = arguments.iter().map(|one| one.replace("URL", &url));
        run(tool("curl").args(["-sS", "-i", "--max-time", "20"]).args(arguments)).unwrap().to_lowercase()
    };
    for http in ["--http1.1", "--http2-prior-knowledge"] {
        let moved = curl(&[http, "-H", "host: old.example", "URL/a?b"]);
        assert!(moved.contains(" 301") && moved.contains("location: https://shop.example/a?b\r\n"), "{moved}");
        let preflight = [http, "-X", "OPTIONS", "-H", "host: shop.example", "-H", "origin: https://www.shop.example"];
        let asked = curl(&[&preflight[..], &["-H", "access-control-request-method: PUT", "URL/api/x"]].concat());
        assert!(asked.contains(" 204") && asked.contains("access-control-allow-methods: get, put\r\n"), "{asked}");
        let other = curl(&[http, "-H", "host: shop.example", "-H", "origin: https://www.shop.example", "URL/api/x"]);
        assert!(
            other.contains(" 200") && other.contains("access-control-allow-origin: https://www.shop.example\r\n"),
            "{other}"
        );
        let health = curl(&[http, "URL/healthz"]);
        assert!(health.contains(" 200") && health.ends_with("ok\n"), "{health}");
    }
    assert_eq!(app.seen().len(), 2, "only the pages' own requests reach the application");

    let admin = proxy.admin.as_str();
    let live =
        ["explain", "--live", "--admin", admin, "--url", "http://shop.example/cart/7?x=1&y", "--header", "x-a: b&c"];
    let (code, text) = outrigger(&live);
    assert!(code == Some(0) && text.contains("forwarded  GET /v2/cart/7?x=1&y, host shop.example\n"), "{text}");
    assert!(text.contains(&format!("{}, healthy\n", app.address)), "{text}");
    let (code, text) = outrigger(&["routes", "--admin", admin]);
    let moved = text.lines().find(|line| line.contains("moved")).unwrap();
    assert!(code == Some(0) && moved.ends_with(" 2") && moved.contains("old.example"), "{text}");
    let (code, text) = outrigger(&["routes", "--admin", admin, "--format", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let api = rows.iter().find(|row| row["route"] == "api").unwrap();
    assert_eq!((code, &api["requests"]), (Some(0), &Value::from(4)));
    let (code, text) = outrigger(&["listeners", "--admin", admin]);
    assert!(code == Some(0) && text.contains("inbound") && text.contains(&format!("127.0.0.1:{port}")), "{text}");
}

/// Routes in the order that Envoy Gateway gives them, for Envoy, which takes the first; for us they stand in any order.
const ROUTES: [(&str, &str, &str); 7] = [
    ("exact", "path: /a/b", "{ path: { type: Exact, value: /a/b } }"),
    (
        "longer",
        "safe_regex: { regex: \"/[a-z]/[0-9]+/x?\" }",
        "{ path: { type: RegularExpression, value: \"/[a-z]/[0-9]+/x?\" } }",
    ),
    ("regex", "safe_regex: { regex: \"/a/[0-9]+\" }", "{ path: { type: RegularExpression, value: \"/a/[0-9]+\" } }"),
    (
        "header",
        "path_separated_prefix: /a, headers: [{ name: x, string_match: { exact: \"1,2\" } }]",
        "{ path: { value: /a }, headers: [{ name: x, value: \"1,2\" }] }",
    ),
    (
        "query",
        "path_separated_prefix: /a, query_parameters: [{ name: q, string_match: { exact: \"1\" } }]",
        "{ path: { value: /a }, queryParams: [{ name: q, value: \"1\" }] }",
    ),
    ("prefix", "path_separated_prefix: /a", "{ path: { value: /a } }"),
    ("all", "prefix: /", "{ path: { value: / } }"),
];

#[test]
fn envoy_with_the_same_intent_takes_the_same_routes() {
    let folder = tempfile::tempdir().unwrap();
    let (home, ours) = (folder.path().join("envoy"), folder.path().join("outrigger"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&ours).unwrap();
    let (envoy_port, port) = (free_port(), free_port());
    let theirs: Vec<_> = ROUTES
        .iter()
        .map(|(name, matching, _)| {
            format!(
                "{{ match: {{ {matching} }}, direct_response: {{ status: 200, body: {{ inline_string: {name} }} }} }}"
            )
        })
        .collect();
    let text = format!(
        "  listeners:\n  - name: way\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {envoy_port} }} }}\n    \
         filter_chains:\n    - filters:\n      - name: http\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: way\n          normalize_path: true\n          \
         http_filters: [{{ name: router, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]\n          \
         route_config: {{ virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{}] }}] }}\n",
        theirs.join(", ")
    );
    let _envoy = Envoy::start(&home, envoy_port, &text);
    let routes: String = ROUTES
        .iter()
        .rev()
        .map(|(name, _, matching)| {
            format!(
                "    - {{ name: {name}, matches: [{matching}], filters: [{{ type: DirectResponse, directResponse: {{ statusCode: 200, body: {name} }} }}] }}\n"
            )
        })
        .collect();
    let config = format!(
        "proxy:\n  listeners:\n  - name: in\n    direction: inbound\n    address: 127.0.0.1:{port}\n    routes:\n{routes}"
    );
    let _ours = start_outrigger(&ours, &config);
    let mut wrong = Vec::new();
    for (target, headers, expected) in [
        ("/a/b", &[][..], "exact"),
        ("/a/b?q=1", &[("x", "1,2")], "exact"),
        ("/x/../a/%62", &[], "exact"),
        ("/a/7", &[("x", "1,2")], "regex"),
        ("/a/7/x", &[], "longer"),
        ("/a/7/xy", &[], "prefix"),
        ("/a/b/", &[], "prefix"),
        ("/ab", &[], "all"),
        ("/a/c", &[("x", "1,2")], "header"),
        ("/a/c", &[("X", "1")], "prefix"),
        ("/a/c?q=1", &[("x", "1,2")], "header"),
        ("/a/c?p=0&q=1&q=2", &[], "query"),
        ("/a/c?q=2&q=1", &[], "prefix"),
        ("/a?q=1", &[], "query"),
    ] {
        let ask = |port: u16| request("GET", &format!("http://127.0.0.1:{port}{target}"), headers, "").unwrap().body;
        let (theirs, ours) = (ask(envoy_port), ask(port));
        if (theirs.as_str(), ours.as_str()) != (expected, expected) {
            wrong.push(format!("{target} {headers:?}: Envoy {theirs}, we {ours}, expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Where we differ knowingly: a field that is sent twice is one value to us (RFC 9110, 5.3), not to Envoy.
    let twice = [("x", "1"), ("x", "2")];
    let ask = |port: u16| request("GET", &format!("http://127.0.0.1:{port}/a/c"), &twice, "").unwrap().body;
    assert_eq!((ask(envoy_port).as_str(), ask(port).as_str()), ("prefix", "header"));
}
