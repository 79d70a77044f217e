//! gRPC between Python's grpcio on both sides: calls of all kinds, their ends, their metrics.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;

use anyhow::ensure;
use outrigger_e2e::{
    CLIENT_ID, Outrigger, Place, Process, Sidecars, Spoken, Way, eventually, free_port, peer_server, run_peer,
};
use rustix::process::Signal;

/// Every test but those of a missing server.
const TESTS: [&str; 8] = ["calls", "turns", "large", "metadata", "errors", "deadline", "cancel", "keepalive"];

#[test]
fn calls_of_all_kinds_pass() {
    every_kind_of_call(&Place::Here);
}

#[test]
fn calls_of_all_kinds_pass_between_pods() {
    every_kind_of_call(&Place::pods());
}

#[track_caller]
fn every_kind_of_call(place: &Place) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    for way in place.ways(folder.path(), Spoken::HTTP, port) {
        // One for each, for it counts the calls that were given up.
        let _server = place.at_server(|| peer_server("grpc_server.py", port, folder.path()));
        every_kind_of_call_over(&way);
    }
}

#[track_caller]
fn every_kind_of_call_over(way: &Sidecars) {
    for test in TESTS {
        let call = || run_peer("grpc_client.py", &[&way.at.to_string(), test]);
        way.at_client(call).unwrap_or_else(|error| panic!("{test}: {error:#}"));
    }
    // The tests make two calls with the first of these statuses and one with each of the others.
    for (outrigger, _) in way.each() {
        eventually("calls by their status", || {
            ensure!(calls(outrigger, 0)? >= 15.0, "{} calls went well", calls(outrigger, 0)?);
            for (status, count) in [(9, 1.0), (8, 1.0), (12, 1.0)] {
                let counted = calls(outrigger, status)?;
                ensure!(counted == count, "{counted} calls, not {count}, ended with {status}");
            }
            Ok(())
        });
    }
    if let Some(second) = &way.second {
        let peer = format!("grpc_status=\"0\",peer=\"{CLIENT_ID}\"");
        let text = second.get("/metrics").unwrap().ok().unwrap();
        assert!(text.lines().any(|line| line.starts_with("outrigger_grpc_requests_total") && line.contains(&peer)));
    }
}

/// Calls that an Outrigger has counted with a status.
fn calls(outrigger: &Outrigger, status: u8) -> anyhow::Result<f64> {
    let text = outrigger.get("/metrics")?.ok()?;
    let status = format!("grpc_status=\"{status}\"");
    let lines =
        text.lines().filter(|line| line.starts_with("outrigger_grpc_requests_total{") && line.contains(&status));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

#[test]
fn a_missing_server_is_told_in_grpcs_own_terms() {
    let folder = tempfile::tempdir().unwrap();
    let way = Sidecars::start(folder.path(), Way::Plain, Spoken::HTTP, free_port());
    run_peer("grpc_client.py", &[&way.at.to_string(), "unavailable"]).unwrap();
    eventually("the failed call", || {
        let counted = calls(&way.first, 14)?;
        ensure!(counted >= 1.0, "{counted} calls");
        Ok(())
    });
}

#[test]
fn a_channel_outlives_its_server() {
    for way in [Way::Plain, Way::Chain] {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut server = peer_server("grpc_server.py", port, folder.path());
        let way = Sidecars::start(folder.path(), way, Spoken::HTTP, port);
        let mut client = client(&way, folder.path());
        says(&mut client, "up");
        server.signal(Signal::KILL);
        server.wait(std::time::Duration::from_secs(10));
        says(&mut client, "down");
        let _server = peer_server("grpc_server.py", port, folder.path());
        let status = client.wait(std::time::Duration::from_secs(30));
        assert!(status.success(), "{}", client.log());
    }
}

fn client(way: &Sidecars, folder: &std::path::Path) -> Process {
    let home = folder.join("client");
    fs::create_dir(&home).unwrap();
    outrigger_e2e::start_peer("grpc_client.py", &[&way.at.to_string(), "stays"], &home)
}

#[track_caller]
fn says(client: &mut Process, word: &str) {
    eventually(&format!("the client to say `{word}`"), || {
        client.still_runs()?;
        ensure!(client.log().lines().any(|line| line == word), "it said {}", client.log());
        Ok(())
    });
}

#[test]
fn routes_go_by_service_and_method_and_servers_that_fail_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let home = |name: &str| {
        let home = folder.path().join(name);
        fs::create_dir(&home).unwrap();
        home
    };
    let (good, bad, port) = (free_port(), free_port(), free_port());
    let _good = peer_server("grpc_server.py", good, &home("good"));
    let arguments = [bad.to_string(), "failing".to_owned()];
    let mut failing =
        outrigger_e2e::start_peer("grpc_server.py", &arguments.each_ref().map(String::as_str), &home("bad"));
    eventually("the one that fails", || {
        failing.still_runs()?;
        outrigger_e2e::is_listening(bad)
    });
    let config = format!(
        "proxy:\n  listeners:\n    - name: in\n      direction: inbound\n      address: 127.0.0.1:{port}\n      grpcRoutes:\n        \
         - name: unary\n          matches: [{{ method: {{ service: test.Way, method: Unary }} }}]\n          \
         backendRefs: [{{ name: both }}]\n        - name: fails\n          matches: [{{ method: {{ type: RegularExpression, \
         service: \"test[.].*\", method: \"Fail(Late)?\" }} }}]\n          backendRefs: [{{ name: good }}]\n  clusters:\n    \
         - {{ name: good, endpoints: [\"127.0.0.1:{good}\"] }}\n    - name: both\n      endpoints: [\"127.0.0.1:{good}\", \
         \"127.0.0.1:{bad}\"]\n      loadBalancing: {{ policy: RoundRobin }}\n      outlierDetection: {{ consecutive5xx: 3, \
         baseEjectionTime: 10m, maxEjectionTime: 10m }}\n"
    );
    let proxy = outrigger_e2e::start_outrigger(folder.path(), &config);
    let at = format!("127.0.0.1:{port}");
    run_peer("grpc_client.py", &[&at, "routed"]).unwrap_or_else(|error| panic!("{error:#}"));
    let ejections = r#"outrigger_outlier_ejections_total{cluster="both",cause="consecutive5xx"}"#;
    let metrics = proxy.get("/metrics").unwrap().ok().unwrap();
    assert!(metrics.contains("outrigger_outlier_ejections_active{cluster=\"both\"} 1"), "{ejections}: {metrics}");
    let of = |route: &str, status: &str| {
        metrics.lines().any(|line| {
            line.starts_with("outrigger_grpc_requests_total")
                && (route.is_empty() != line.contains("route="))
                && (route.is_empty() || line.contains(&format!("route=\"{route}\"")))
                && line.contains(&format!("grpc_status=\"{status}\""))
        })
    };
    for (route, status) in [("unary", "0"), ("unary", "14"), ("fails", "9"), ("fails", "8"), ("", "12")] {
        assert!(of(route, status), "{route} {status}: {metrics}");
    }
}
