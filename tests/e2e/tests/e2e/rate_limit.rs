//! Global rate limits: a service made of Envoy's protobufs, asked by us and by Envoy side by side.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::path::{Path, PathBuf};

use anyhow::ensure;
use outrigger_e2e::{
    Application, Authority, CLIENT_ID, Envoy, Outrigger, Process, Response, SERVER_ID, eventually, free_port, identity,
    outrigger_command, peer_server, request, run, start_outrigger,
};
use serde_json::{Value, json};

/// The service, and a folder for all that runs.
struct Limited {
    folder: tempfile::TempDir,
    application: Application,
    server: Process,
    service: u16,
}

impl Limited {
    fn new() -> Self {
        let (folder, service) = (tempfile::tempdir().unwrap(), free_port());
        let server = peer_server("rate_limit_server.py", service, folder.path());
        Self { folder, application: Application::start(), server, service }
    }

    fn home(&self, name: &str) -> PathBuf {
        let home = self.folder.path().join(name);
        std::fs::create_dir(&home).unwrap();
        home
    }

    /// An Outrigger whose one route has these limits; `service` is more of the service's settings.
    fn outrigger(&self, name: &str, service: &str, limits: &str) -> (Outrigger, u16) {
        let port = free_port();
        let config = format!(
            "proxy:\n  rateLimitService: {{ backendRef: {{ name: limits }}, domain: {name}, {service} }}\n  listeners:\n  - name: in\n    \
             direction: inbound\n    address: \"127.0.0.1:{port}\"\n    forwarded: {{ reason: true }}\n    routes:\n    - name: all\n      \
             backendRefs: [{{ name: app }}]\n      globalRateLimits: {limits}\n  clusters:\n  - {{ name: app, endpoints: [\"{}\"] }}\n  \
             - {{ name: limits, endpoints: [\"127.0.0.1:{}\"] }}\n",
            self.application.address, self.service
        );
        (start_outrigger(&self.home(name), &config), port)
    }

    /// An Envoy of the same intent.
    fn envoy(&self, limits: &str) -> (Envoy, u16) {
        let port = free_port();
        let cluster = |name: &str, port: u16, more: &str| {
            format!(
                "  - name: {name}\n    connect_timeout: 5s\n    load_assignment: {{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ \
                 endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}\n{more}"
            )
        };
        let http2 = "    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
                     \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
                     explicit_http_config: { http2_protocol_options: {} }\n";
        let text = format!(
            "  listeners:\n  - name: in\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}\n    filter_chains:\n    \
             - filters:\n      - name: http\n        typed_config:\n          \
             \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
             stat_prefix: in\n          use_remote_address: true\n          http_filters:\n          - name: limits\n            typed_config:\n              \
             \"@type\": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit\n              \
             domain: envoy\n              timeout: 10s\n              enable_x_ratelimit_headers: DRAFT_VERSION_03\n              \
             rate_limit_service: {{ transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: limits }} }} }}\n          \
             - {{ name: router, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}\n          \
             route_config: {{ virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: app, \
             rate_limits: {limits} }} }}] }}] }}\n  clusters:\n{}{}",
            cluster("app", self.application.address.port(), ""),
            cluster("limits", self.service, http2)
        );
        (Envoy::start(&self.home("envoy"), port, &text), port)
    }

    /// What a domain's questions were, once there are so many.
    fn asked(&self, domain: &str, count: usize) -> Vec<Value> {
        eventually("the questions", || {
            let log = self.server.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let asked: Vec<_> = lines.filter(|line| line["domain"] == domain).collect();
            ensure!(asked.len() >= count, "{log}");
            Ok(asked)
        })
    }
}

fn get(port: u16, headers: &[(&str, &str)]) -> Response {
    request("GET", &format!("http://127.0.0.1:{port}/items"), headers, "").unwrap()
}

const OURS: &str = "[{ actions: [{ type: GenericKey, genericKey: { descriptorValue: shop } }, \
    { type: RequestHeaders, requestHeaders: { headerName: x-user, descriptorKey: user } }] }, \
    { actions: [{ type: RemoteAddress }, { type: DestinationCluster }, { type: RequestHeaders, \
    requestHeaders: { headerName: x-plan, descriptorKey: plan, skipIfAbsent: true } }] }, \
    { actions: [{ type: MaskedRemoteAddress, maskedRemoteAddress: { v4PrefixMaskLen: 8 } }, \
    { type: GenericKey, genericKey: { descriptorKey: k, descriptorValue: v } }] }]";
const ENVOYS: &str = "[{ actions: [{ generic_key: { descriptor_value: shop } }, \
    { request_headers: { header_name: x-user, descriptor_key: user } }] }, \
    { actions: [{ remote_address: {} }, { destination_cluster: {} }, { request_headers: \
    { header_name: x-plan, descriptor_key: plan, skip_if_absent: true } }] }, \
    { actions: [{ masked_remote_address: { v4_prefix_mask_len: 8 } }, \
    { generic_key: { descriptor_key: k, descriptor_value: v } }] }]";

#[test]
fn the_service_is_asked_and_heeded_as_by_envoy() {
    let limited = Limited::new();
    let (outrigger, ours) = limited.outrigger("outrigger", "timeout: 10s", OURS);
    let (_envoy, envoys) = limited.envoy(ENVOYS);
    let requests: [&[(&str, &str)]; 6] = [
        &[("x-user", "ann")],
        &[("x-user", "ann"), ("x-plan", "paid")],
        &[("x-user", "ann")],
        &[("x-user", "bob")],
        &[("x-plan", "")],
        &[],
    ];
    let told = |answer: &Response| {
        let names = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-envoy-ratelimited"];
        (answer.status, names.map(|name| answer.header(name).map(str::to_owned)))
    };
    let mut statuses = Vec::new();
    for headers in requests {
        let (mine, other) = (get(ours, headers), get(envoys, headers));
        assert_eq!(told(&mine), told(&other), "{headers:?}");
        assert_eq!(mine.header("x-limited-by"), Some("outrigger"), "{mine:?}");
        statuses.push(mine.status);
        if mine.status == 429 {
            assert_eq!(mine.header("x-outrigger-reason"), Some("RL"));
            assert_eq!(mine.header("x-ratelimit-limit"), Some("2, 2;w=3600;name=\"per-user\""));
        }
    }
    assert_eq!(statuses, [200, 200, 429, 200, 200, 200]);
    let descriptors = |domain: &str| {
        let asked = limited.asked(domain, requests.len());
        asked.iter().map(|asked| asked["descriptors"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(descriptors("outrigger"), descriptors("envoy"));
    let first = json!([
        [["generic_key", "shop"], ["user", "ann"]],
        [["remote_address", "127.0.0.1"], ["destination_cluster", "app"]],
        [["masked_remote_address", "127.0.0.0/8"], ["k", "v"]],
    ]);
    assert_eq!(descriptors("outrigger")[0], first);
    assert_eq!(limited.asked("outrigger", 1)[0]["hits"], 1);

    // What it adds to requests arrives, but for what tells who called.
    let seen = limited.application.seen();
    let header = |name: &str| seen[0].headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
    assert_eq!(header("x-tier").map(|(_, value)| value.as_str()), Some("gold"), "{:?}", seen[0]);
    assert_eq!(header("x-forwarded-client-cert"), None, "{:?}", seen[0]);
    for (result, count) in [("ok", 5.0), ("over_limit", 1.0), ("error", 0.0)] {
        let series =
            format!("outrigger_global_rate_limit_requests_total{{listener=\"in\",route=\"all\",result=\"{result}\"}}");
        if count > 0.0 {
            outrigger.counts(&series, count);
        } else {
            assert_eq!(outrigger.metric(&series).unwrap_or_default(), 0.0, "{result}");
        }
    }
    explained(&outrigger.config);
}

/// What would be asked can be read off.
fn explained(config: &Path) {
    let arguments = ["--url", "http://shop/items", "--header", "x-user: ann", "--format", "json"];
    let told = run(outrigger_command().arg("explain").arg("-c").arg(config).args(arguments)).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let asked = &told["globalRateLimits"];
    assert_eq!(asked[0], "(generic_key=shop, user=ann) in the domain `outrigger` at limits", "{told:#}");
    assert_eq!(asked.as_array().unwrap().len(), 3, "{told:#}");
}

#[test]
fn a_service_that_fails_decides_as_the_config_says() {
    let mut limited = Limited::new();
    let mood = "[{ actions: [{ type: RequestHeaders, requestHeaders: { headerName: x-mood, descriptorKey: mood } }] }]";
    let (allowing, open) = limited.outrigger("allowing", "timeout: 300ms", mood);
    let (_denying, closed) = limited.outrigger("denying", "timeout: 300ms, failureMode: Deny", mood);
    for mood in ["hang", "fail"] {
        assert_eq!(get(open, &[("x-mood", mood)]).status, 200, "{mood}");
        let refused = get(closed, &[("x-mood", mood)]);
        assert_eq!((refused.status, refused.header("x-outrigger-reason")), (500, Some("RLSE")), "{mood}");
    }
    assert_eq!(limited.asked("denying", 2).len(), 2);
    // Nobody is asked about a request that no descriptor is whole of.
    assert_eq!(get(closed, &[]).status, 200);
    limited.server.kill();
    assert_eq!(get(open, &[("x-mood", "good")]).status, 200);
    assert_eq!(get(closed, &[("x-mood", "good")]).status, 500);
    assert_eq!(get(closed, &[]).status, 200);
    let series = "outrigger_global_rate_limit_requests_total{listener=\"in\",route=\"all\",result=\"error\"}";
    allowing.counts(series, 3.0);
    // It is found again when it is back.
    limited.server = peer_server("rate_limit_server.py", limited.service, limited.folder.path());
    eventually("the service to be asked again", || {
        let answer = get(closed, &[("x-mood", "good")]);
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    });
}

#[test]
fn limits_of_a_listener_hold_for_all_its_routes_and_the_service_has_the_word() {
    let limited = Limited::new();
    let port = free_port();
    let config = format!(
        r#"proxy:
  rateLimitService: {{ backendRef: {{ name: limits }}, domain: whole, timeout: 10s, failureMode: Deny }}
  listeners:
  - name: in
    direction: inbound
    address: "127.0.0.1:{port}"
    globalRateLimits:
      - actions:
          - {{ type: RequestHeaders, requestHeaders: {{ headerName: x-user, descriptorKey: user }} }}
          - {{ type: RequestHeaders, requestHeaders: {{ headerName: x-mood, descriptorKey: mood, skipIfAbsent: true }} }}
    routes:
      - {{ name: moved, matches: [{{ path: {{ value: /moved }} }}], filters: [{{ type: RequestRedirect, requestRedirect: {{ hostname: new.example }} }}] }}
      - {{ name: all, backendRefs: [{{ name: app }}], globalRateLimits: [{{ actions: [{{ type: Route }}] }}] }}
  clusters:
  - {{ name: app, endpoints: ["{}"] }}
  - {{ name: limits, endpoints: ["127.0.0.1:{}"] }}
"#,
        limited.application.address, limited.service
    );
    let outrigger = start_outrigger(&limited.home("whole"), &config);
    let at = |path: &str, headers: &[(&str, &str)]| {
        request("GET", &format!("http://127.0.0.1:{port}{path}"), headers, "").unwrap()
    };
    let ann = [("x-user", "ann")];
    // What a filter answers counts as well as what the application does.
    let moved = at("/moved/x", &ann);
    assert_eq!((moved.status, moved.header("x-ratelimit-remaining")), (302, Some("1")), "{moved:?}");
    assert_eq!(at("/items", &ann).status, 200);
    let refused = at("/moved/x", &ann);
    assert_eq!((refused.status, refused.header("location")), (429, None), "{refused:?}");
    assert_eq!(refused.body, "too many requests: a global rate limit is reached\n");
    let refused = at("/items", &[("x-user", "ann"), ("x-mood", "words")]);
    assert_eq!((refused.status, refused.body.as_str()), (429, r#"{"error":"slow down"}"#), "{refused:?}");
    let types: Vec<_> = refused.headers.iter().filter(|(name, _)| name == "content-type").collect();
    assert_eq!(types, [&("content-type".to_owned(), "application/json".to_owned())]);
    let asked: Vec<_> = limited.asked("whole", 4).iter().map(|asked| asked["descriptors"].clone()).collect();
    assert_eq!(asked[..2], [json!([[["user", "ann"]]]), json!([[["user", "ann"]], [["route", "all"]]])]);
    for (route, result, count) in [("moved", "ok", 1.0), ("moved", "over_limit", 1.0), ("all", "over_limit", 1.0)] {
        let series = format!(
            "outrigger_global_rate_limit_requests_total{{listener=\"in\",route=\"{route}\",result=\"{result}\"}}"
        );
        assert_eq!(outrigger.metric(&series).unwrap(), count, "{route} {result}");
    }
}

#[test]
fn the_service_is_asked_over_mtls_and_told_who_calls() {
    let limited = Limited::new();
    let authority = Authority::new(&limited.folder.path().join("ca"));
    let leaf = |name: &str, id: &str| identity(&authority.issue(name, id), &authority);
    let sidecar = |name: &str, id: &str, proxy: &str| {
        start_outrigger(&limited.home(name), &format!("{}proxy:\n{proxy}", leaf(name, id)))
    };
    let listener = |direction: &str, port: u16, more: &str, cluster: &str| {
        format!(
            "  listeners: [{{ name: way, direction: {direction}, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: \
             [{{ name: {cluster} }}]{more} }}]"
        )
    };
    let (before_service, server, client) = (free_port(), free_port(), free_port());
    let _before_service = sidecar(
        "before-service",
        "spiffe://shop.example/ns/shop/sa/limits",
        &format!(
            "{}, tls: {{ mode: strict, allowedPeers: [\"{SERVER_ID}\"] }} }}]\n  clusters: [{{ name: service, endpoints: [\"127.0.0.1:{}\"], \
             protocol: http2 }}]\n",
            listener("inbound", before_service, "", "service"),
            limited.service
        ),
    );
    let limits = ", globalRateLimits: [{ actions: [{ type: Route }, { type: PeerIdentity }] }]";
    let _server = sidecar(
        "server",
        SERVER_ID,
        &format!(
            "  rateLimitService: {{ backendRef: {{ name: limits }}, domain: mesh, timeout: 10s, failureMode: Deny }}\n{}, tls: {{ mode: strict, \
             allowedPeers: [\"{CLIENT_ID}\"] }} }}]\n  clusters:\n  - {{ name: app, endpoints: [\"{}\"] }}\n  - {{ name: limits, endpoints: \
             [\"127.0.0.1:{before_service}\"], tls: {{ spiffeIds: [\"spiffe://shop.example/ns/shop/sa/limits\"] }} }}\n",
            listener("inbound", server, limits, "app"),
            limited.application.address
        ),
    );
    let _client = sidecar(
        "client",
        CLIENT_ID,
        &format!(
            "{} }}]\n  clusters: [{{ name: server, endpoints: [\"127.0.0.1:{server}\"], tls: {{ spiffeIds: [\"{SERVER_ID}\"] }} }}]\n",
            listener("outbound", client, "", "server")
        ),
    );
    assert_eq!(get(client, &[]).status, 200);
    let asked = limited.asked("mesh", 1);
    assert_eq!(asked[0]["descriptors"], json!([[["route", "all"], ["peer_identity", CLIENT_ID]]]));
}
