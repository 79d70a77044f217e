//! HTTP/2 as h2spec judges it, and as h2load and nghttpd speak it.

use std::fs;
use std::path::Path;

use outrigger_e2e::{
    Authority, Nghttpd, Nginx, Process, Sidecars, Spoken, Way, eventually, free_port, run, start_outrigger, tool,
};
use rustix::process::Signal;

/// Serves `/` with a body of 3 KB, which h2spec's cases of flow control need, after it has read the request's body:
/// an answer that comes before would be ahead of what h2spec sends and wants to be told about.
fn nginx(folder: &Path) -> Nginx {
    let page = "a line of text\n".repeat(200);
    let locations = format!(
        "location / {{ proxy_pass http://127.0.0.1:$server_port/page; proxy_http_version 1.1; }}\n\
         location = /page {{ default_type text/plain; return 200 '{page}'; }}"
    );
    Nginx::start(folder, &locations)
}

/// All cases, those for strict implementations too.
#[track_caller]
fn h2spec(port: u16, arguments: &[&str]) {
    let output = tool("h2spec")
        .args(["--strict", "--host", "127.0.0.1", "--timeout", "5", "--port", &port.to_string()])
        .args(arguments)
        .output()
        .expect("h2spec can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    let failures = said.find("Failures:").map_or("", |at| &said[at..]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && failures.is_empty(), "h2spec {arguments:?}: {failures}{errors}");
    // `146 tests, 145 passed, 1 skipped, 0 failed`
    let sums = said.lines().rev().find(|line| line.contains(" tests, ")).expect("h2spec sums up");
    let count = |what: &str| -> u32 {
        let part = sums.split(", ").find(|part| part.contains(what)).expect("h2spec counts");
        part.split(' ').next().and_then(|count| count.parse().ok()).expect("a count is a number")
    };
    assert!(count("tests") >= 140 && count("passed") >= 140 && count("failed") == 0, "{sums}");
}

#[test]
fn h2spec_finds_no_fault_with_prior_knowledge() {
    let folder = tempfile::tempdir().unwrap();
    let nginx = nginx(folder.path());
    let way = Sidecars::start(folder.path(), Way::Plain, Spoken::HTTP, nginx.port);
    h2spec(way.at.port(), &[]);
}

#[test]
fn h2spec_finds_no_fault_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let nginx = nginx(folder.path());
    let leaf = Authority::new(&folder.path().join("ca")).issue_server("server", "shop.example");
    let port = free_port();
    let config = format!(
        "proxy:\n  listeners:\n  - name: edge\n    direction: inbound\n    address: 127.0.0.1:{port}\n    \
         tls: {{ mode: simple, certificates: [{{ certificate: {}, key: {} }}] }}\n    \
         routes: [{{ name: all, backendRefs: [{{ name: app }}] }}]\n  \
         clusters: [{{ name: app, endpoints: [\"127.0.0.1:{}\"] }}]\n",
        leaf.certificate.display(),
        leaf.key.display(),
        nginx.port
    );
    let home = folder.path().join("edge");
    fs::create_dir(&home).unwrap();
    let _outrigger = start_outrigger(&home, &config);
    h2spec(port, &["--tls", "--insecure"]);
}

/// What h2load says of its requests: `requests: 100 total, 100 started, 100 done, …`.
fn requests(said: &str) -> &str {
    said.lines().find(|line| line.starts_with("requests:")).unwrap_or(said)
}

#[track_caller]
fn expect_all(said: &str, total: u32) {
    let expected = format!(
        "requests: {total} total, {total} started, {total} done, {total} succeeded, 0 failed, 0 errored, 0 timeout"
    );
    assert_eq!(requests(said), expected, "{said}");
}

#[test]
fn h2load_has_all_its_requests_answered() {
    for way in [Way::Plain, Way::Chain] {
        for spoken in [Spoken::HTTP, Spoken::HTTP2] {
            let folder = tempfile::tempdir().unwrap();
            let page = folder.path().join("htdocs");
            fs::create_dir(&page).unwrap();
            fs::write(page.join("index.html"), "x".repeat(10_000)).unwrap();
            let (nginx, nghttpd);
            let port = if spoken.cluster == Spoken::HTTP2.cluster {
                nghttpd = Nghttpd::start(folder.path(), &[]);
                nghttpd.port
            } else {
                nginx = Nginx::start(folder.path(), &format!("root {};", page.display()));
                nginx.port
            };
            let way_there = Sidecars::start(folder.path(), way, spoken, port);
            let mut load = tool("h2load");
            load.args(["-n", "2000", "-c", "10", "-m", "20", &format!("{}/index.html", way_there.address())]);
            let said = run(&mut load).unwrap();
            expect_all(&said, 2000);
            // Every body came whole.
            assert!(said.contains("(20000000) data"), "{way:?} {spoken:?}: {said}");
        }
    }
}

#[test]
fn an_upload_comes_back_from_nghttpd_as_it_went() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("htdocs")).unwrap();
    let nghttpd = Nghttpd::start(folder.path(), &["--echo-upload"]);
    let upload = folder.path().join("upload");
    fs::write(&upload, (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    for way in [Way::Plain, Way::Chain] {
        let home = folder.path().join(format!("{way:?}"));
        fs::create_dir(&home).unwrap();
        let way = Sidecars::start(&home, way, Spoken::HTTP2, nghttpd.port);
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let back = home.join("back");
            let mut curl = tool("curl");
            curl.args(["-sS", "--fail", "--max-time", "30", version, "--data-binary"]);
            curl.arg(format!("@{}", upload.display())).arg("-o").arg(&back).arg(way.address());
            run(&mut curl).unwrap();
            assert!(fs::read(&back).unwrap() == fs::read(&upload).unwrap(), "{version}: not what was sent");
        }
    }
}

#[test]
fn an_upstream_that_says_goodbye_costs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    // nginx ends each connection by GOAWAY after so many requests, and all of them when it reads its config again.
    let nginx = Nginx::start_with(
        folder.path(),
        "http2",
        "keepalive_requests 50;",
        "location / { return 200 'a line of text'; }",
    );
    let way = Sidecars::start(folder.path(), Way::Plain, Spoken::HTTP2, nginx.port);
    let mut load = tool("h2load");
    load.args(["-n", "6000", "-c", "10", "-m", "10", &way.address()]);
    let mut load = Process::start("h2load", &mut load, folder.path());
    let (mut looks, mut reloads) = (0, 0);
    eventually("h2load's end", || {
        if load.ended().is_err() && looks % 5 == 0 {
            nginx.process.signal(Signal::HUP);
            reloads += 1;
        }
        looks += 1;
        load.ended()
    });
    expect_all(&load.log(), 6000);
    assert!(reloads > 0, "the load ended before its upstream did");
    // There were many connections, not one: most of them were ended under way.
    let made = way.first.metric("outrigger_upstream_connections_total{cluster=\"server\",result=\"ok\"}").unwrap();
    assert!(made > 50.0, "{made} connections");
}
