//! The admin API and the kubelet's health port: who may ask what, and what is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use outrigger_e2e::{
    Authority, Leaf, Outrigger, Process, eventually, free_port, one_line, outrigger_command, request, run,
    start_outrigger, start_outrigger_with, tool,
};
use serde_json::Value;

const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";

fn identity(certificate: &Path, key: &Path, bundle: &Path) -> String {
    format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {} }}\n",
        certificate.display(),
        key.display(),
        bundle.display()
    )
}

fn json(outrigger: &Outrigger, path: &str) -> Value {
    let url = format!("{}{path}", outrigger.admin);
    let response = request("GET", &url, &[("accept", "application/json")], "").expect("it answers");
    assert_eq!(response.header("content-type"), Some("application/json"), "{path}");
    serde_json::from_str(&response.body).expect("it is JSON")
}

#[test]
fn every_endpoint_answers() {
    let folder = tempfile::tempdir().unwrap();
    let outrigger = start_outrigger(folder.path(), &format!("metrics: {{ listen: \"127.0.0.1:{}\" }}\n", free_port()));
    let rows = [
        ("/", "/quitquitquit"),
        ("/config", "shutdownBudget: 10s"),
        ("/debug/tasks", "worker-0"),
        ("/livez", "ok\n"),
        ("/livez?verbose", "main       ok\n"),
        ("/log-level", "info\n"),
        ("/metrics", "outrigger_build_info{"),
        ("/readyz", "ok\n"),
        ("/readyz?verbose", "metrics ready"),
        ("/startupz", "ok\n"),
        ("/startupz?verbose", "proxy-inbound disabled"),
        ("/version", "outrigger 0."),
    ];
    let index = outrigger.get("/").unwrap().body;
    for (path, expected) in rows {
        let response = outrigger.get(path).unwrap();
        assert_eq!(response.status, 200, "{path}");
        let body = if expected.ends_with('\n') { response.body.clone() } else { one_line(&response.body) };
        assert!(body.contains(expected), "{path}: no {expected} in:\n{}", response.body);
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(response.header("cache-control"), Some("no-store"), "{path}");
        let bare = path.split('?').next().unwrap();
        assert!(index.contains(&format!(" {bare} ")), "the index lacks {bare}");
        let head = request("HEAD", &format!("{}{path}", outrigger.admin), &[], "").unwrap();
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
    for (method, path, status, allow) in [
        ("GET", "/quitquitquit", 405, Some("POST")),
        ("POST", "/config", 405, Some("GET, HEAD")),
        ("DELETE", "/log-level", 405, Some("GET, PUT, POST, HEAD")),
        ("GET", "/nothing", 404, None),
        ("GET", "/config/../config", 404, None),
    ] {
        let response = request(method, &format!("{}{path}", outrigger.admin), &[], "").unwrap();
        assert_eq!((response.status, response.header("allow")), (status, allow), "{method} {path}");
    }
    assert_eq!(json(&outrigger, "/readyz?verbose")["ready"], true);
    assert_eq!(json(&outrigger, "/config")["runtime"]["shutdownBudget"], "10s");
    assert_eq!(json(&outrigger, "/log-level")["level"], "info");
    assert!(json(&outrigger, "/version")["version"].is_string());
    assert!(json(&outrigger, "/debug/tasks")["uptimeSeconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn own_metrics_tell_of_start_and_components() {
    let folder = tempfile::tempdir().unwrap();
    let outrigger = start_outrigger(folder.path(), &format!("metrics: {{ listen: \"127.0.0.1:{}\" }}\n", free_port()));
    outrigger.counts("outrigger_component_ready{component=\"metrics\"}", 1.0);
    outrigger.counts("outrigger_component_restarts_total{component=\"metrics\"}", 0.0);
    outrigger.counts("outrigger_config_generation", 1.0);
    outrigger.counts("outrigger_config_last_reload_successful", 1.0);
    let start = outrigger.metric("outrigger_start_duration_seconds").unwrap();
    assert!(start > 0.0 && start < 20.0, "{start}");
    assert!(outrigger.metric("process_resident_memory_bytes").unwrap() > 1e6);
    let open = outrigger.metric("process_open_fds").unwrap();
    assert!((5.0..200.0).contains(&open), "{open}");
    // A component that is off has no series: a dashboard must not show it as dead.
    assert!(outrigger.metric("outrigger_component_ready{component=\"logs\"}").is_err());
}

/// Starts with an identity and gives what `/readyz?verbose` says of it once it waits.
fn reason(folder: &Path, leaf: &Leaf, bundle: &Path) -> String {
    let outrigger = start_outrigger_with(folder, &identity(&leaf.certificate, &leaf.key, bundle), &[]);
    eventually("the reason", || {
        let response = outrigger.get("/readyz?verbose")?;
        let line = response.body.lines().find(|line| line.starts_with("identity ")).unwrap_or_default().to_owned();
        ensure!(response.status == 503 && line.contains(" waiting "), "{response:?}");
        ensure!(response.body.ends_with("not ready: identity\n"), "{response:?}");
        Ok(line)
    })
}

#[test]
fn readyz_says_what_is_wrong_with_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let foreign = Authority::new(&folder.path().join("foreign"));
    let good = authority.issue("good", BACKEND);
    let other = authority.issue("other", BACKEND);
    let garbage = folder.path().join("garbage.pem");
    fs::write(&garbage, "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n").unwrap();
    let absent = folder.path().join("absent.pem");
    let bundle = authority.bundle();
    let with = |certificate: &Path, key: &Path| Leaf { certificate: certificate.into(), key: key.into() };
    let rows = [
        ("missing certificate", with(&absent, &good.key), &bundle, "does not exist", &absent),
        ("missing key", with(&good.certificate, &absent), &bundle, "does not exist", &absent),
        ("missing bundle", good.clone(), &absent, "does not exist", &absent),
        (
            "expired",
            authority.issue_expired("expired", BACKEND),
            &bundle,
            "expired at",
            &folder.path().join("ca/expired.pem"),
        ),
        ("key of another", with(&good.certificate, &other.key), &bundle, "does not belong", &other.key),
        ("another authority", good.clone(), &foreign.bundle(), "does not chain", &good.certificate),
        (
            "another trust domain",
            authority.issue("else", "spiffe://other.example/ns/shop/sa/backend"),
            &bundle,
            "not usable as a SPIFFE identity",
            &folder.path().join("ca/else.pem"),
        ),
        ("no PEM", with(&garbage, &good.key), &bundle, "line 1: the block", &garbage),
        ("a key for a certificate", with(&good.key, &good.key), &bundle, "holds no", &good.key),
    ];
    for (name, leaf, bundle, expected, file) in rows {
        let line = reason(folder.path(), &leaf, bundle);
        assert!(line.contains(expected) && line.contains(file.to_str().unwrap()), "{name}: {line}");
    }
}

#[test]
fn an_identity_that_is_mended_makes_it_ready() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let (expired, good) = (authority.issue_expired("live", BACKEND), authority.issue("good", BACKEND));
    let config = identity(&expired.certificate, &expired.key, &authority.bundle());
    let mut outrigger = start_outrigger_with(folder.path(), &config, &[]);
    eventually("it to wait", || {
        ensure!(outrigger.get("/readyz?verbose")?.body.contains("expired"), "not yet");
        Ok(())
    });
    fs::rename(&good.key, &expired.key).unwrap();
    fs::rename(&good.certificate, &expired.certificate).unwrap();
    outrigger.wait_ready();
    let not_after =
        outrigger.metric(&format!("outrigger_identity_not_after_timestamp_seconds{{spiffe_id=\"{BACKEND}\"}}"));
    assert!(not_after.unwrap() > 1.7e9);
}

#[test]
fn the_health_port_tells_health_only() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("secret-place/absent.pem");
    let outrigger = start_outrigger_with(folder.path(), &identity(&absent, &absent, &absent), &[]);
    eventually("its admin API to tell the reason", || {
        ensure!(outrigger.get("/readyz?verbose")?.body.contains("secret-place"), "not yet");
        Ok(())
    });
    let ask = |method: &str, path: &str| request(method, &format!("{}{path}", outrigger.health), &[], "").unwrap();
    for (path, status) in [("/livez", 200), ("/readyz", 503), ("/startupz", 503)] {
        for query in ["", "?verbose", "?verbose=1"] {
            let response = ask("GET", &format!("{path}{query}"));
            assert_eq!(response.status, status, "{path}{query}");
            // Whoever reaches the pod may ask here.
            assert!(!response.body.contains("secret-place"), "{}", response.body);
        }
    }
    for path in ["/", "/config", "/metrics", "/debug/tasks", "/log-level", "/version", "/quitquitquit", "//config"] {
        assert_eq!(ask("GET", path).status, 404, "{path}");
        assert_eq!(ask("POST", path).status, 404, "{path}");
    }
    assert_eq!(ask("POST", "/readyz").status, 405);
    // The kubelet asks by the pod's address, and some by a name.
    let named = request("GET", &format!("{}/livez", outrigger.health), &[("host", "pod.example:15021")], "").unwrap();
    assert_eq!(named.status, 200);
}

#[test]
fn no_secret_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "telemetry: {{ log: {{ level: trace }} }}\nsecrets:\n  providers: [{{ name: bao, vault: {{ address: \"http://127.0.0.1:{}\", auth: {{ token: {{ value: hvs.4real }} }} }} }}]\n  \
         files: [{{ path: {1}/db, template: '{{{{ with secret \"secret/data/db\" }}}}{{{{ .Data.data.password }}}}{{{{ end }}}}' }}]\n\
         logs:\n  stateDirectory: {1}/state\n  sources: [{{ name: app, file: {{ path: {1}/app.log }} }}]\n  \
         sinks: [{{ name: out, inputs: [app], http: {{ url: \"http://127.0.0.1:1/x\", headers: {{ authorization: \"Bearer 4real\" }} }} }}]\n",
        free_port(),
        folder.path().display()
    );
    let outrigger = start_outrigger_with(folder.path(), &config, &[]);
    let yaml = eventually("the config", || outrigger.get("/config")?.ok());
    assert!(yaml.contains("authorization: \"********\"") && yaml.contains("value: \"********\""), "{yaml}");
    assert_eq!(json(&outrigger, "/config")["secrets"]["providers"][0]["vault"]["auth"]["token"]["value"], "********");
    for path in ["/config", "/readyz?verbose", "/metrics", "/debug/tasks"] {
        let body = outrigger.get(path).unwrap().body;
        assert!(!body.contains("4real"), "{path}: {body}");
    }
    assert!(!outrigger.process.log().contains("4real"), "{}", outrigger.process.log());
}

#[test]
fn the_log_level_can_be_set() {
    let folder = tempfile::tempdir().unwrap();
    let outrigger = start_outrigger(folder.path(), "telemetry: { log: { level: warn } }\n");
    let put =
        |query: &str, body: &str| request("PUT", &format!("{}/log-level{query}", outrigger.admin), &[], body).unwrap();
    assert_eq!(outrigger.get("/log-level").unwrap().body, "warn\n");
    assert!(!outrigger.process.log().contains(" INFO "), "{}", outrigger.process.log());
    assert_eq!(put("?level=debug", "").ok().unwrap(), "debug\n");
    // A reload that changes nothing is told at the level info.
    outrigger.process.signal(rustix::process::Signal::HUP);
    eventually("an event at the new level", || {
        ensure!(outrigger.process.log().contains("nothing changed"), "{}", outrigger.process.log());
        Ok(())
    });
    assert_eq!(put("", "error\n").ok().unwrap(), "error\n");
    for bad in ["loud", "", "info,debug"] {
        assert_eq!(put(&format!("?level={bad}"), "").status, 400, "{bad}");
    }
    assert_eq!(outrigger.get("/log-level").unwrap().body, "error\n");
}

#[test]
fn other_sites_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut outrigger = start_outrigger(folder.path(), "");
    let own = outrigger.admin.strip_prefix("http://").unwrap().to_owned();
    let foreign: [&[(&str, &str)]; 6] = [
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "http://127.0.0.1:1")],
        &[("sec-fetch-site", "cross-site")],
        // A name that its owner makes point to loopback.
        &[("host", "evil.example")],
        &[("host", "evil.example"), ("origin", "http://evil.example")],
    ];
    for headers in foreign {
        for (method, path) in
            [("PUT", "/log-level?level=trace"), ("POST", "/log-level?level=trace"), ("POST", "/quitquitquit")]
        {
            let response = request(method, &format!("{}{path}", outrigger.admin), headers, "").unwrap();
            assert_eq!(response.status, 403, "{method} {path} {headers:?}");
        }
    }
    let read = request("GET", &format!("{}/config", outrigger.admin), &[("host", "evil.example")], "").unwrap();
    assert_eq!(read.status, 403);
    assert!(!read.body.contains("runtime"), "{}", read.body);
    outrigger.process.still_runs().unwrap();
    assert_eq!(outrigger.get("/log-level").unwrap().body, "info\n");
    // Our own page may.
    let origin = format!("http://{own}");
    let headers = [("origin", origin.as_str()), ("sec-fetch-site", "same-origin")];
    let response = request("PUT", &format!("{origin}/log-level?level=debug"), &headers, "").unwrap();
    assert_eq!(response.status, 200, "{}", response.body);
}

#[test]
fn quitquitquit_stops_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut outrigger = start_outrigger(folder.path(), "");
    let response = request("POST", &format!("{}/quitquitquit", outrigger.admin), &[], "").unwrap();
    assert_eq!((response.status, response.body.as_str()), (200, "stopping\n"));
    assert_eq!(outrigger.process.wait(Duration::from_secs(20)).code(), Some(0));
    let log = outrigger.process.log();
    assert!(log.contains("stopping cause=quitquitquit") && log.contains("stopped took="), "{log}");
}

#[test]
fn the_admin_api_can_be_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, health) = (folder.path().join("admin.sock"), free_port());
    let config = folder.path().join("outrigger.yaml");
    fs::write(&config, format!("admin: {{ listen: \"unix:{}\", health: \"127.0.0.1:{health}\" }}\n", socket.display()))
        .unwrap();
    let curl = |arguments: &[&str]| {
        let mut command = tool("curl");
        command.args(["-sS", "--fail-with-body", "--max-time", "10", "--unix-socket"]).arg(&socket);
        run(command.args(arguments))
    };
    // Twice, and killed the first time: a socket that is left over is in nobody's way.
    for killed in [true, false] {
        let mut process =
            Process::start("outrigger", outrigger_command().args(["run", "-c"]).arg(&config), folder.path());
        let page = eventually("its admin API", || {
            process.still_runs()?;
            curl(&["http://localhost/readyz?verbose"])
        });
        assert!(page.ends_with("ok\n"), "{page}");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(curl(&["-X", "PUT", "http://admin/log-level?level=debug"]).unwrap(), "debug\n");
        assert!(curl(&["-X", "POST", "-H", "origin: https://evil.example", "http://localhost/quitquitquit"]).is_err());
        process.still_runs().unwrap();
        if killed {
            process.kill();
        } else {
            assert_eq!(curl(&["-X", "POST", "http://localhost/quitquitquit"]).unwrap(), "stopping\n");
            assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(0));
        }
    }
}

#[test]
fn the_admin_api_is_not_offered_to_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("outrigger.yaml");
    fs::write(
        &config,
        format!("admin: {{ listen: \"0.0.0.0:{}\", health: \"127.0.0.1:{}\" }}\n", free_port(), free_port()),
    )
    .unwrap();
    for verb in ["validate", "run"] {
        let output = outrigger_command().args([verb, "-c"]).arg(&config).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("loopback"), "{verb}: {said}");
    }
}
