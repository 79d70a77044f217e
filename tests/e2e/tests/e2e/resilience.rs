//! gRPC through two sidecars: calls made again, deadlines spent on the way, limits told in gRPC's terms.

use outrigger_e2e::{free_port, peer_server, run_peer, start_outrigger};

/// A sidecar's config: a route with these members, which leads to a port.
fn config(direction: &str, port: u16, route: &str, to: u16) -> String {
    format!(
        "proxy:\n  listeners:\n  - {{ name: way, direction: {direction}, address: \"127.0.0.1:{port}\", routes: [{{ name: all, \
         backendRefs: [{{ name: server }}], {route} }}] }}\n  clusters: [{{ name: server, endpoints: [\"127.0.0.1:{to}\"], \
         protocol: http2 }}]\n"
    )
}

#[test]
fn calls_are_made_again_deadlines_are_spent_and_limits_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let home = |name: &str| {
        let home = folder.path().join(name);
        std::fs::create_dir(&home).unwrap();
        home
    };
    let (server, between, at) = (free_port(), free_port(), free_port());
    let _server = peer_server("grpc_server.py", server, folder.path());
    let honour = "timeouts: { deadlines: honour }";
    let inbound = config("inbound", between, honour, server);
    let _inbound = start_outrigger(&home("inbound"), &inbound);
    let retry = format!("{honour}, retry: {{ grpcCodes: [UNAVAILABLE], attempts: 2, backoff: 5ms }}");
    let outbound = start_outrigger(&home("outbound"), &config("outbound", at, &retry, between));
    let way = format!("127.0.0.1:{at}");
    for test in ["retried", "deadlines"] {
        run_peer("grpc_client.py", &[&way, test]).unwrap_or_else(|error| panic!("{test}: {error:#}"));
    }
    let metrics = outbound.get("/metrics").unwrap().ok().unwrap();
    // Twice, once after the wait asked for, and twice in vain.
    let made = "outrigger_retries_total{cluster=\"server\",reason=\"grpc-code\"} 5";
    assert!(metrics.contains(made), "{metrics}");

    let limits = "rateLimits: [{ name: few, requests: 2, per: 1h }]";
    let port = free_port();
    let _limited = start_outrigger(&home("limited"), &config("outbound", port, limits, server));
    run_peer("grpc_client.py", &[&format!("127.0.0.1:{port}"), "limited"]).unwrap();
}
