//! Through two sidecars: calls made again, deadlines spent on the way, limits told in gRPC's terms; and a server that dies
//! is not killed by those who ask again.

use anyhow::ensure;
use outrigger_e2e::{Connection, Nginx, eventually, free_port, peer_server, run_peer, start_outrigger};

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

#[test]
fn a_server_that_dies_under_load_gets_a_fifth_more_and_no_more() {
    const CLIENTS: usize = 4;
    const EACH: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let home = |name: &str| {
        let home = folder.path().join(name);
        std::fs::create_dir(&home).unwrap();
        home
    };
    let (well, log) = (folder.path().join("well"), folder.path().join("asked.log"));
    std::fs::write(&well, "").unwrap();
    let server = Nginx::start(
        folder.path(),
        &format!(
            "access_log {log};\nlocation /dying {{ if (-f {well}) {{ return 200 ok; }} return 503; }}\nlocation / {{ access_log off; return 200 ok; }}",
            log = log.display(),
            well = well.display()
        ),
    );
    let (between, at) = (free_port(), free_port());
    let sidecar = |direction: &str, port: u16, route: &str, cluster: &str, to: u16| {
        format!(
            "proxy:\n  listeners:\n  - {{ name: way, direction: {direction}, address: \"127.0.0.1:{port}\", routes: [{{ name: all, \
             backendRefs: [{{ name: server }}]{route} }}] }}\n  clusters: [{{ name: server, endpoints: [\"127.0.0.1:{to}\"]{cluster} }}]\n"
        )
    };
    let _inbound = start_outrigger(&home("inbound"), &sidecar("inbound", between, "", "", server.port));
    let retry = ", retry: { codes: [503], attempts: 3, backoff: 1ms }";
    let budget = ", retryConstraint: { budget: { percent: 20, interval: 1h }, minRetryRate: { count: 0 } }";
    let outbound = start_outrigger(&home("outbound"), &sidecar("outbound", at, retry, budget, between));
    // It dies when a quarter of the requests are through.
    let asked = |status: u16, count: usize| {
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let mut client = Connection::open(at).unwrap();
                    (0..count).for_each(|_| assert_eq!(client.get("/dying").unwrap().status, status));
                });
            }
        });
    };
    asked(200, EACH / 4);
    std::fs::remove_file(&well).unwrap();
    asked(503, EACH - EACH / 4);
    let requests = CLIENTS * EACH;
    let retries = eventually("each try to be counted on both sides", || {
        let retries = outbound.metric("outrigger_retries_total{cluster=\"server\",reason=\"code\"}")? as usize;
        let lines = std::fs::read_to_string(&log)?.lines().count();
        ensure!(lines == requests + retries, "{lines} lines of {requests} requests and {retries} retries");
        Ok(retries)
    });
    assert!(retries * 5 <= requests, "{retries} retries of {requests} requests");
    assert!(retries * 6 > requests, "{retries} retries of {requests} requests: the budget is there to be used");
}
