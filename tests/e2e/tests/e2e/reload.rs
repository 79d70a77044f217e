//! Hot reload: what changes while traffic flows, and what a bad file cannot change.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use outrigger_e2e::{
    Application, Authority, Connection, Leaf, Outrigger, Process, eventually, free_port, one_line, outrigger_command,
    request, run, start_outrigger, tool,
};
use rustix::process::Signal;

const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";
const APPLIED: &str = "outrigger_config_reloads_total{result=\"applied\"}";
const REFUSED: &str = "outrigger_config_reloads_total{result=\"refused\"}";
const SUCCESSFUL: &str = "outrigger_config_last_reload_successful";

/// A proxy in front of one application.
fn proxy(port: u16, application: &Application) -> String {
    format!(
        "proxy:\n  listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}]\n  \
         clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
        application.address
    )
}

/// Two applications, to tell which config is in force by who is asked.
fn pair() -> [Application; 2] {
    [Application::start(), Application::start()]
}

/// Waits until requests to `port` reach `application`.
#[track_caller]
fn wait_until_served_by(application: &Application, port: u16) {
    eventually("the new route", || {
        let before = application.seen().len();
        request("GET", &format!("http://127.0.0.1:{port}/"), &[], "")?.ok()?;
        ensure!(application.seen().len() > before, "another application was asked");
        Ok(())
    });
}

/// Clients that send requests without a pause on connections that they never give up.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::spawn(move || {
                let mut connection = Connection::open(port)?;
                while !stop.load(Ordering::Relaxed) {
                    connection.get("/load")?.ok()?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let clients = (0..3).map(client).collect();
        Self { stop, sent, clients }
    }

    /// Waits until `more` further requests were answered.
    #[track_caller]
    fn goes_on(&self, more: u64) {
        let until = self.sent.load(Ordering::Relaxed) + more;
        eventually("the load to go on", || {
            ensure!(!self.clients.iter().any(JoinHandle::is_finished), "a client gave up");
            let sent = self.sent.load(Ordering::Relaxed);
            ensure!(sent >= until, "{sent} of {until} requests");
            Ok(())
        });
    }

    /// Ends it, and fails with the first failure there was.
    #[track_caller]
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("no client panicked").expect("no request failed");
        }
    }
}

#[test]
fn routes_change_under_load_without_a_drop() {
    let folder = tempfile::tempdir().unwrap();
    let (applications, port) = (pair(), free_port());
    let outrigger = start_outrigger(folder.path(), &proxy(port, &applications[0]));
    let load = Load::start(port);
    load.goes_on(50);
    for reload in 1..=5 {
        let next = &applications[reload % 2];
        let before = next.seen().len();
        outrigger.write_config(&proxy(port, next));
        // Seen on the connections of the load alone: no other client asks.
        eventually("the live connections to take the new route", || {
            ensure!(next.seen().len() > before + 30, "{} requests arrived", next.seen().len() - before);
            Ok(())
        });
        load.goes_on(30);
        let applied = outrigger.metric(APPLIED).unwrap();
        assert_eq!(applied, reload as f64);
    }
    load.end();
    outrigger.counts("outrigger_config_generation", 6.0);
    outrigger.counts("outrigger_downstream_connections_total{listener=\"in\"}", 3.0);
}

#[test]
fn a_listener_moves_while_the_old_connection_finishes() {
    let folder = tempfile::tempdir().unwrap();
    let application = Application::start();
    let (old, new) = (free_port(), free_port());
    let outrigger = start_outrigger(folder.path(), &proxy(old, &application));
    let mut kept = Connection::open(old).unwrap();
    kept.get("/").unwrap().ok().unwrap();
    outrigger.write_config(&proxy(new, &application));
    wait_until_served_by(&application, new);
    eventually("the old port to be closed", || {
        ensure!(Connection::open(old).is_err(), "it still takes connections");
        Ok(())
    });
    assert_eq!(outrigger.get("/readyz").unwrap().status, 200);
}

#[test]
fn an_overwritten_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (applications, port) = (pair(), free_port());
    let outrigger = start_outrigger(folder.path(), &proxy(port, &applications[0]));
    // In place, as `cp` and some editors do; the file may be seen half written.
    let text = fs::read_to_string(&outrigger.config).unwrap();
    let text = text.replace(&applications[0].address.to_string(), &applications[1].address.to_string());
    fs::write(&outrigger.config, text).unwrap();
    wait_until_served_by(&applications[1], port);
    eventually("the verdict", || {
        ensure!(outrigger.metric(SUCCESSFUL)? == 1.0, "the last reload failed");
        Ok(())
    });
}

#[test]
fn a_kubernetes_swap_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (applications, port) = (pair(), free_port());
    let (admin, health) = (free_port(), free_port());
    let mount = folder.path().join("etc");
    fs::create_dir(&mount).unwrap();
    // What the kubelet does: a new folder, a new link beside the old one, and the rename of it.
    let publish = |revision: &str, config: &str| {
        let version = mount.join(format!("..{revision}"));
        fs::create_dir(&version).unwrap();
        let admin = format!("admin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}\n");
        fs::write(version.join("outrigger.yaml"), admin + config).unwrap();
        let before = fs::read_link(mount.join("..data"));
        symlink(format!("..{revision}"), mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        if let Ok(before) = before {
            fs::remove_dir_all(mount.join(before)).unwrap();
        }
    };
    publish("2026_01", &proxy(port, &applications[0]));
    symlink("..data/outrigger.yaml", mount.join("outrigger.yaml")).unwrap();
    let mut command = outrigger_command();
    command.args(["run", "-c"]).arg(mount.join("outrigger.yaml"));
    let mut process = Process::start("outrigger", &mut command, folder.path());
    eventually("readiness", || {
        process.still_runs()?;
        request("GET", &format!("http://127.0.0.1:{admin}/readyz"), &[], "")?.ok()
    });
    wait_until_served_by(&applications[0], port);
    for revision in 2..5 {
        let next = &applications[(revision + 1) % 2];
        publish(&format!("2026_0{revision}"), &proxy(port, next));
        wait_until_served_by(next, port);
    }
    process.stop();
}

#[test]
fn sighup_reads_the_file_again() {
    let folder = tempfile::tempdir().unwrap();
    let (applications, port) = (pair(), free_port());
    let outrigger = start_outrigger(folder.path(), &proxy(port, &applications[0]));
    for times in [1.0, 2.0] {
        outrigger.process.signal(Signal::HUP);
        eventually("a reload that changes nothing", || {
            let unchanged = outrigger.metric("outrigger_config_reloads_total{result=\"unchanged\"}")?;
            ensure!(unchanged == times, "{unchanged} reloads");
            Ok(())
        });
    }
    outrigger.counts("outrigger_config_generation", 1.0);
    wait_until_served_by(&applications[0], port);
}

#[test]
fn a_bad_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (applications, port) = (pair(), free_port());
    let outrigger = start_outrigger(folder.path(), &proxy(port, &applications[0]));
    let load = Load::start(port);
    let good = proxy(port, &applications[1]);
    let rows = [
        ("an unknown key", good.replace("direction", "directoin"), "directoin"),
        ("no YAML", format!("{good}\n: ]["), "outrigger.yaml:"),
        (
            "an unknown cluster",
            good.replace("backendRefs: [{ name: app }]", "backendRefs: [{ name: nobody }]"),
            "nobody",
        ),
        ("cut short", good[..good.len() / 2].to_owned(), "outrigger.yaml:"),
    ];
    for (refusals, (name, bad, named)) in (1..).zip(rows) {
        outrigger.write_config(&bad);
        eventually(name, || {
            let refused = outrigger.metric(REFUSED)?;
            ensure!(refused == f64::from(refusals), "{refused} refusals");
            Ok(())
        });
        outrigger.counts(SUCCESSFUL, 0.0);
        let log = outrigger.process.log();
        assert!(log.contains("config refused; the last good one stays"), "{name}: {log}");
        assert!(log.lines().any(|line| line.contains("ERROR") && line.contains(named)), "{name}: {log}");
        assert_eq!(outrigger.get("/readyz").unwrap().status, 200, "{name}");
    }
    load.goes_on(20);
    load.end();
    assert!(applications[1].seen().is_empty(), "a refused config was applied");
    // A good one takes over again.
    outrigger.write_config(&good);
    wait_until_served_by(&applications[1], port);
    outrigger.counts(SUCCESSFUL, 1.0);
}

#[test]
fn a_file_that_goes_away_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (applications, port) = (pair(), free_port());
    let outrigger = start_outrigger(folder.path(), &proxy(port, &applications[0]));
    let aside = folder.path().join("aside");
    fs::rename(&outrigger.config, &aside).unwrap();
    eventually("the refusal", || {
        ensure!(outrigger.metric(SUCCESSFUL)? == 0.0, "not yet");
        Ok(())
    });
    wait_until_served_by(&applications[0], port);
    fs::rename(&aside, &outrigger.config).unwrap();
    eventually("the file's return", || {
        ensure!(outrigger.metric(SUCCESSFUL)? == 1.0, "not yet");
        Ok(())
    });
}

/// A second listener beside the one of `proxy`.
fn with_more(config: &str, port: u16) -> String {
    let more = format!(
        "listeners: [{{ name: more, direction: inbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}, "
    );
    config.replace("listeners: [", &more)
}

/// Waits until listener, address and holder of a port in use are named.
#[track_caller]
fn wait_until_told(outrigger: &Outrigger, listener: &str, port: u16) {
    eventually("the reason", || {
        let said = outrigger.get("/readyz?verbose")?.body;
        for part in [listener, &format!("127.0.0.1:{port}"), &format!("process {}", std::process::id())] {
            ensure!(said.contains(part), "no {part} in {said}");
        }
        Ok(())
    });
}

#[test]
fn a_reload_that_needs_a_taken_port_leaves_the_rest_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let (application, port) = (Application::start(), free_port());
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    let outrigger = start_outrigger(folder.path(), &proxy(port, &application));
    let mut kept = Connection::open(port).unwrap();
    kept.get("/").unwrap().ok().unwrap();
    outrigger.write_config(&with_more(&proxy(port, &application), taken));
    wait_until_told(&outrigger, "more", taken);
    kept.get("/").unwrap().ok().unwrap();
}

#[test]
fn a_listener_whose_port_becomes_free_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (application, port) = (Application::start(), free_port());
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    let outrigger = start_outrigger(folder.path(), &proxy(port, &application));
    outrigger.write_config(&with_more(&proxy(port, &application), taken));
    wait_until_told(&outrigger, "more", taken);
    drop(holder);
    eventually("the new listener", || {
        request("GET", &format!("http://127.0.0.1:{taken}/"), &[], "")?.ok()?;
        outrigger.get("/readyz")?.ok()
    });
}

#[test]
fn a_listener_that_cannot_move_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (application, port) = (Application::start(), free_port());
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    let outrigger = start_outrigger(folder.path(), &proxy(port, &application));
    outrigger.write_config(&proxy(taken, &application));
    wait_until_told(&outrigger, "in", taken);
    let answer = request("GET", &format!("http://127.0.0.1:{port}/"), &[], "");
    // Either the old one serves on, or nobody calls the pod ready.
    assert!(answer.is_ok() || outrigger.get("/readyz").unwrap().status == 503, "{answer:?}");
}

#[test]
fn a_pillar_is_turned_on_and_off() {
    let folder = tempfile::tempdir().unwrap();
    let (application, port) = (Application::start(), free_port());
    let outrigger = start_outrigger(folder.path(), "");
    assert!(Connection::open(port).is_err());
    outrigger.write_config(&proxy(port, &application));
    wait_until_served_by(&application, port);
    outrigger.write_config("");
    eventually("the listener to go", || {
        ensure!(Connection::open(port).is_err(), "it still takes connections");
        ensure!(one_line(&outrigger.get("/readyz?verbose")?.body).contains("proxy-inbound disabled"), "not disabled");
        Ok(())
    });
    assert_eq!(outrigger.get("/readyz").unwrap().status, 200);
}

#[test]
fn changes_are_logged_without_secrets_and_those_of_the_next_start_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let sink = |key: &str, level: &str| {
        format!(
            "telemetry: {{ log: {{ level: {level} }} }}\nlogs:\n  stateDirectory: {0}\n  sources: [{{ name: app, file: {{ path: {0}/app.log }} }}]\n  \
             sinks: [{{ name: out, inputs: [app], http: {{ url: \"http://127.0.0.1:1/\", headers: {{ authorization: {key} }} }} }}]\n",
            folder.path().display()
        )
    };
    let outrigger = outrigger_e2e::start_outrigger_with(folder.path(), &sink("first-4real", "info"), &[]);
    eventually("its admin API", || outrigger.get("/livez")?.ok());
    let text = fs::read_to_string(&outrigger.config).unwrap();
    let admin = format!("127.0.0.1:{}", free_port());
    let old = outrigger.admin.strip_prefix("http://").unwrap();
    let text = text.replace("first-4real", "second-4real").replace("level: info", "level: debug").replace(old, &admin);
    fs::write(&outrigger.config, text).unwrap();
    eventually("the reload", || {
        ensure!(outrigger.metric(APPLIED)? == 1.0, "not yet");
        Ok(())
    });
    assert_eq!(outrigger.get("/log-level").unwrap().body, "debug\n");
    let log = outrigger.process.log();
    for part in ["authorization", "telemetry.log.level", "takes effect at the next start"] {
        assert!(log.contains(part), "no {part} in:\n{log}");
    }
    assert!(log.lines().any(|line| line.contains("next start") && line.contains("admin.listen")), "{log}");
    assert!(!log.contains("4real"), "{log}");
}

fn inbound_mtls(port: u16, leaf: &Leaf, authority: &Authority, application: &Application) -> String {
    format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {} }}\n{}",
        leaf.certificate.display(),
        leaf.key.display(),
        authority.bundle().display(),
        proxy(port, application).replace("direction: inbound,", "direction: inbound, tls: {},")
    )
}

/// The serial number of the certificate that is shown on `port` now.
fn shown_serial(port: u16, authority: &Authority, client: &Leaf, folder: &Path) -> Result<String> {
    let mut command = tool("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"]).arg(authority.bundle());
    command.arg("-cert").arg(&client.certificate).arg("-key").arg(&client.key).stdin(Stdio::null());
    let said = String::from_utf8(command.stderr(Stdio::null()).output()?.stdout)?;
    let (begin, end) = (said.find("-----BEGIN CERT"), said.find("-----END CERT"));
    let (Some(begin), Some(end)) = (begin, end) else { anyhow::bail!("no certificate was shown: {said}") };
    let file = folder.join("shown.pem");
    fs::write(&file, format!("{}-----END CERTIFICATE-----\n", &said[begin..end]))?;
    serial(&file)
}

fn serial(certificate: &Path) -> Result<String> {
    run(tool("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(certificate))
}

#[test]
fn a_new_certificate_is_shown_while_an_old_connection_lives() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let (leaf, client) = (authority.issue("live", BACKEND), authority.issue("client", "spiffe://shop.example/visitor"));
    let (application, port) = (Application::start(), free_port());
    let outrigger: Outrigger = start_outrigger(folder.path(), &inbound_mtls(port, &leaf, &authority, &application));
    let mut command = tool("openssl");
    command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"]).arg(authority.bundle());
    command.arg("-cert").arg(&client.certificate).arg("-key").arg(&client.key);
    let mut old = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = old.stdin.take().unwrap();
    let mut lines = BufReader::new(old.stdout.take().unwrap()).lines();
    let mut ask = |path: &str| {
        write!(stdin, "GET {path} HTTP/1.1\r\nhost: backend\r\n\r\n").unwrap();
        // The application repeats the request's line.
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with(&format!("GET {path} ")));
        assert!(line.is_some(), "the connection was closed before {path} was answered");
    };
    ask("/first");
    let first = shown_serial(port, &authority, &client, folder.path()).unwrap();
    assert_eq!(first, serial(&leaf.certificate).unwrap());
    for rotation in 1..=3 {
        let fresh = authority.issue("fresh", BACKEND);
        let expected = serial(&fresh.certificate).unwrap();
        fs::rename(&fresh.key, &leaf.key).unwrap();
        fs::rename(&fresh.certificate, &leaf.certificate).unwrap();
        eventually("the new certificate", || {
            let shown = shown_serial(port, &authority, &client, folder.path())?;
            ensure!(shown == expected, "{shown} is shown, not {expected}");
            Ok(())
        });
        ask(&format!("/after-{rotation}"));
        assert_eq!(
            outrigger.metric("outrigger_identity_rotations_total{result=\"ok\"}").unwrap(),
            f64::from(rotation + 1)
        );
    }
    drop(stdin);
    old.kill().unwrap();
    old.wait().unwrap();
    outrigger.counts(APPLIED, 0.0);
}

#[test]
fn a_bad_certificate_leaves_the_good_one_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let (leaf, client) = (authority.issue("live", BACKEND), authority.issue("client", "spiffe://shop.example/visitor"));
    let (application, port) = (Application::start(), free_port());
    let outrigger = start_outrigger(folder.path(), &inbound_mtls(port, &leaf, &authority, &application));
    let good = serial(&leaf.certificate).unwrap();
    // A certificate without its key, as in the moment between two writes, but for good.
    fs::rename(authority.issue("fresh", BACKEND).certificate, &leaf.certificate).unwrap();
    eventually("the complaint", || {
        let page = outrigger.get("/readyz?verbose")?;
        ensure!(
            page.status == 200 && page.body.contains("degraded") && page.body.contains("does not belong"),
            "{page:?}"
        );
        Ok(())
    });
    assert_eq!(shown_serial(port, &authority, &client, folder.path()).unwrap(), good);
}
