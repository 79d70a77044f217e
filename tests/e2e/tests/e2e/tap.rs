//! `outrigger tap` beside traffic.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_e2e::{
    Application, Outrigger, Process, eventually, free_port, outrigger_command, request, start_outrigger,
};
use rustix::process::Signal;
use serde_json::Value;

/// Neither access log nor tracing: what is told is told for the tap alone.
struct Pod {
    outrigger: Outrigger,
    application: Application,
    port: u16,
}

impl Pod {
    fn start(folder: &Path) -> Self {
        let (application, port) = (Application::start(), free_port());
        let config = format!(
            r#"proxy:
  maskHeaders: [x-tenant-*]
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:{port}", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}, {{ name: nowhere, matches: [{{ path: {{ value: /gone }} }}], backendRefs: [{{ name: gone }}] }}] }}
  clusters:
    - {{ name: app, endpoints: ["{}"] }}
    - {{ name: gone, endpoints: ["127.0.0.1:{}"] }}
"#,
            application.address,
            free_port()
        );
        Self { outrigger: start_outrigger(folder, &config), application, port }
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        request("GET", &format!("http://127.0.0.1:{}{path}", self.port), headers, "").expect("an answer").status
    }

    /// A tap that is told of what comes from here on.
    fn tap(&self, folder: &Path, name: &str, flags: &[&str]) -> Process {
        let tap = Process::start(name, self.command().args(flags), folder);
        eventually("the tap to begin", || {
            ensure!(tap.log().contains("tapping the Outrigger"), "{}", tap.log());
            Ok(())
        });
        tap
    }

    fn command(&self) -> Command {
        let mut command = outrigger_command();
        command.args(["tap", "--admin", &self.outrigger.admin]);
        command
    }
}

/// The JSON lines that a tap has printed.
fn told(tap: &Process) -> Result<Vec<Value>> {
    let log = tap.log();
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().filter(|line| line.starts_with('{')).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn a_tap_sees_what_it_asks_for_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::start(folder.path());
    let failures = pod.tap(folder.path(), "failures", &["--status", "5xx", "--flag", "UF,UT", "--format", "json"]);
    let flags = ["--path", "/cart", "--header", "x-user=a*", "--headers", "--max", "2", "--format", "json"];
    let mut carts = pod.tap(folder.path(), "carts", &flags);
    let text = pod.tap(folder.path(), "text", &["--route", "all"]);
    pod.outrigger.counts("outrigger_taps_active", 3.0);
    let secrets = [
        ("authorization", "Bearer 4real"),
        ("cookie", "id=4real"),
        ("x-api-key", "4real"),
        ("x-tenant-key", "4real"),
        ("x-user", "ann"),
    ];
    assert_eq!(pod.get("/cart/1?token=4real", &secrets), 200);
    assert_eq!(pod.get("/cart/2", &[("x-user", "bob")]), 200);
    assert_eq!(pod.get("/other", &[("x-user", "ann")]), 200);
    assert_eq!(pod.get("/gone", &[]), 503);
    assert_eq!(pod.get("/cart/3", &[("x-user", "abe"), ("authorization", "Bearer 4real")]), 200);

    assert!(carts.wait(Duration::from_secs(20)).success(), "it ends after two");
    let carts = told(&carts).unwrap();
    let paths: Vec<_> = carts.iter().map(|one| one["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/cart/1", "/cart/3"], "neither another user's nor another path");
    let first = &carts[0];
    assert_eq!((&first["code"], &first["route"], &first["cluster"]), (&200.into(), &"all".into(), &"app".into()));
    let field = |one: &Value, list: &str, name: &str| {
        let fields = one[list].as_array().expect("fields were asked for").clone();
        fields.iter().find(|field| field["name"] == name).map(|field| field["value"].as_str().unwrap().to_owned())
    };
    assert_eq!(field(first, "request_headers", "x-user").as_deref(), Some("ann"));
    assert_eq!(field(first, "response_headers", "content-type").as_deref(), Some("text/plain"));
    let masked = field(first, "request_headers", "authorization").unwrap();
    assert!(masked.starts_with("<masked: 12 bytes"), "{masked}");
    assert_eq!(field(&carts[1], "request_headers", "authorization"), Some(masked), "the same value, the same mark");
    assert!(pod.application.seen()[0].headers.contains(&("authorization".into(), "Bearer 4real".into())));

    let failed = eventually("the failure", || {
        let failed = told(&failures)?;
        ensure!(!failed.is_empty(), "none yet");
        Ok(failed)
    });
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!((&failed[0]["path"], &failed[0]["flags"]), (&"/gone".into(), &"UF".into()));
    assert!(failed[0]["request_headers"].is_null(), "these were not asked for");
    eventually("four lines of text", || {
        let log = text.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("GET")).collect();
        ensure!(lines.len() == 4 && log.contains("WHERE"), "{log}");
        let columns: Vec<_> = lines.iter().map(|line| line.find("GET")).collect();
        ensure!(columns.windows(2).all(|pair| pair[0] == pair[1]) && !log.contains('\x1b'), "{log}");
        Ok(())
    });
    for name in ["carts", "failures", "text"] {
        let log = std::fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap();
        assert!(!log.contains("4real"), "{log}");
    }
}

#[test]
fn a_reader_that_stops_slows_nobody_and_is_told_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::start(folder.path());
    let tap = pod.tap(folder.path(), "tap", &["--headers", "--format", "json"]);
    tap.signal(Signal::STOP);
    let long = "l".repeat(1000);
    let headers: Vec<(String, &str)> = (0..14).map(|index| (format!("x-long-{index}"), long.as_str())).collect();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let mut sent = 0;
    // What sockets and the queue hold is full some time.
    let missed = eventually("requests to be missed", || {
        for _ in 0..50 {
            assert_eq!(pod.get("/", &headers), 200, "traffic goes on");
            sent += 1;
        }
        let missed = pod.outrigger.metric("outrigger_tap_missed_total").unwrap_or_default();
        ensure!(missed > 10.0, "{missed} after {sent}");
        Ok(missed as u64)
    });
    tap.signal(Signal::CONT);
    eventually("all to be told or counted", || {
        let (all, last) = (told(&tap)?, pod.outrigger.metric("outrigger_tap_missed_total")? as u64);
        let counted: u64 = all.iter().filter_map(|one| one["missed"].as_u64()).sum();
        let requests = all.iter().filter(|one| one["missed"].is_null()).count() as u64;
        ensure!(
            counted == last && counted >= missed && requests + counted == sent,
            "{requests} and {counted} of {sent}"
        );
        Ok(())
    });
    assert_eq!(pod.get("/again", &[]), 200);
    eventually("the tap to go on", || {
        told(&tap)?.iter().any(|one| one["path"] == "/again").then_some(()).context("no")
    });
}

#[test]
fn taps_are_few_and_end_with_their_reader_and_with_outrigger() {
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::start(folder.path());
    let mut taps: Vec<_> = (0..4).map(|index| pod.tap(folder.path(), &format!("tap{index}"), &[])).collect();
    let fifth = pod.command().output().unwrap();
    let said = String::from_utf8_lossy(&fifth.stderr).into_owned();
    assert!(fifth.status.code() == Some(1) && said.contains("4 taps already"), "{said}");
    taps.pop().unwrap().kill();
    eventually("its place to be free", || {
        let active = pod.outrigger.metric("outrigger_taps_active")?;
        ensure!(active == 3.0, "{active}");
        Ok(())
    });
    let mut short = pod.tap(folder.path(), "short", &["--duration", "50ms"]);
    assert!(short.wait(Duration::from_secs(20)).success(), "{}", short.log());
    // A page of another site cannot take places.
    let foreign = request("GET", &format!("{}/tap", pod.outrigger.admin), &[("sec-fetch-site", "cross-site")], "");
    assert_eq!(foreign.unwrap().status, 403);
    assert!(pod.outrigger.process.stop().success());
    for mut tap in taps {
        let status = tap.wait(Duration::from_secs(20));
        assert!(status.code() == Some(1) && tap.log().contains("ended the stream"), "{}", tap.log());
    }
    let nobody = pod.command().output().unwrap();
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(1) && said.contains("is Outrigger running?"), "{said}");
    let wrong = pod.command().args(["--status", "5x"]).output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && said.contains("--status: `5x` is not a status"), "{said}");
}
