//! Faults around secrets and logs: servers that are down, disks that are full, kills at any moment.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_e2e::{
    Authority, Bao, Collector, Mood, Outrigger, eventually, eventually_within, free_port, free_port_pair, one_line,
    outrigger_command, request, run, start_outrigger, start_outrigger_as, start_outrigger_with, tool,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longer than the longest wait between two attempts to reach a sink (15 s), on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// Waits until `/readyz?verbose` answers `status` with all of `parts`, and returns the page.
#[track_caller]
fn wait_until_told(outrigger: &mut Outrigger, status: u16, parts: &[&str]) -> String {
    eventually("the reason on /readyz?verbose", || {
        outrigger.process.still_runs()?;
        let page = outrigger.get("/readyz?verbose")?;
        ensure!(page.status == status, "status {}: {}", page.status, page.body);
        let told = one_line(&page.body);
        for part in parts {
            ensure!(told.contains(part), "no {part} in {}", page.body);
        }
        Ok(page.body)
    })
}

/// Waits until a file has exactly this content.
#[track_caller]
fn wait_for_content(path: &Path, content: &str) {
    eventually(&format!("the content of {}", path.display()), || {
        let found = fs::read_to_string(path)?;
        ensure!(found == content, "it holds {found:?}");
        Ok(())
    });
}

/// Starts it as root that may not override permissions, as every other user is.
#[track_caller]
fn start_unprivileged(folder: &Path, config: &str) -> Outrigger {
    let mut command = tool("setpriv");
    command.arg("--bounding-set=-dac_override,-dac_read_search").arg(outrigger_command().get_program());
    start_outrigger_as(command, folder, config, &[])
}

// ---- secrets ----

/// A secret's file, rendered from `secret/data/db` of an OpenBao.
struct Rendered {
    file: PathBuf,
    token: PathBuf,
    config: String,
}

impl Rendered {
    fn new(folder: &Path, address: &str) -> Self {
        let (file, token) = (folder.join("run/db"), folder.join("token"));
        fs::create_dir_all(folder.join("run")).expect("the test's folder can be written");
        fs::write(&token, "outrigger-test-root\n").expect("the test's folder can be written");
        let config = format!(
            "secrets:\n  providers: [{{ name: bao, vault: {{ address: \"{address}\", refresh: 1s, timeout: 2s, auth: {{ token: {{ file: {} }} }} }} }}]\n  \
             files:\n  - path: {}\n    template: 'password={{{{ with secret \"secret/data/db\" }}}}{{{{ .Data.data.password }}}}{{{{ end }}}}'\n",
            token.display(),
            file.display()
        );
        Self { file, token, config }
    }
}

#[test]
fn vault_may_come_after_us() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port_pair();
    let address = format!("http://127.0.0.1:{port}");
    let rendered = Rendered::new(folder.path(), &address);
    let seen = folder.path().join("seen");
    let script = format!("cat {} > {}; exec sleep 600", rendered.file.display(), seen.display());
    let mut outrigger = start_outrigger_with(folder.path(), &rendered.config, &["--", "sh", "-c", &script]);
    wait_until_told(&mut outrigger, 503, &["secrets waiting", &address, "refused", "not ready: secrets"]);
    assert!(outrigger.children().is_empty() && !rendered.file.exists(), "the application was started");
    outrigger.counts("outrigger_component_ready{component=\"secrets\"}", 0.0);
    let bao = Bao::start_on(folder.path(), port);
    bao.put_secret("db", &json!({ "password": "pw-first" }));
    outrigger.wait_ready();
    assert_eq!(fs::read_to_string(&rendered.file).unwrap(), "password=pw-first");
    assert_eq!(fs::metadata(&rendered.file).unwrap().permissions().mode() & 0o7777, 0o400);
    // The application found it there at its first instruction.
    wait_for_content(&seen, "password=pw-first");
    let label = rendered.file.display();
    outrigger.counts(&format!("outrigger_secret_version{{path=\"{label}\"}}"), 1.0);
    assert!(
        outrigger.metric(&format!("outrigger_secret_rendered_timestamp_seconds{{path=\"{label}\"}}")).unwrap() > 1.7e9
    );
}

#[test]
fn each_refusal_of_vault_is_told_and_can_be_mended() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    let rendered = Rendered::new(folder.path(), &bao.address);
    fs::write(&rendered.token, "s.not-the-token").unwrap();
    let mut outrigger = start_outrigger_with(folder.path(), &rendered.config, &[]);
    let page = wait_until_told(&mut outrigger, 503, &["secrets waiting", "token", "403", &bao.address]);
    assert!(!page.contains("s.not-the-token"), "{page}");
    fs::write(&rendered.token, &bao.token).unwrap();
    wait_until_told(&mut outrigger, 503, &["there is no secret at `secret/data/db`", &bao.address]);
    bao.put_secret("db", &json!({ "user": "app" }));
    wait_until_told(&mut outrigger, 503, &["password", "secrets.files[0].template", "line 1"]);
    assert!(!rendered.file.exists(), "half a secret was written");
    bao.put_secret("db", &json!({ "user": "app", "password": "pw-mended" }));
    outrigger.wait_ready();
    assert_eq!(fs::read_to_string(&rendered.file).unwrap(), "password=pw-mended");
    // An absent token file is as clear.
    fs::remove_file(&rendered.token).unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut second = start_outrigger_with(other.path(), &rendered.config, &[]);
    wait_until_told(&mut second, 503, &[rendered.token.to_str().unwrap(), "not exist"]);
}

#[test]
fn a_sealed_vault_is_told_and_the_last_good_secret_stays() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    bao.put_secret("db", &json!({ "password": "pw-one" }));
    let rendered = Rendered::new(folder.path(), &bao.address);
    let mut running = start_outrigger(folder.path(), &rendered.config);
    let key = eventually("the key", || {
        let log = bao.process.log();
        let rest = log.split("Unseal Key: ").nth(1).context("not told yet")?;
        Ok(rest.split_once('\n').context("not whole yet")?.0.trim().to_owned())
    });
    bao.call("PUT", "sys/seal", &Value::Null).unwrap();
    // One that starts now waits; one that runs serves on.
    let other = tempfile::tempdir().unwrap();
    let fresh = Rendered::new(other.path(), &bao.address);
    let mut starting = start_outrigger_with(other.path(), &fresh.config, &[]);
    wait_until_told(&mut starting, 503, &["secrets waiting", "sealed", &bao.address]);
    wait_until_told(&mut running, 200, &["secrets degraded", "sealed"]);
    assert_eq!(fs::read_to_string(&rendered.file).unwrap(), "password=pw-one");
    bao.call("PUT", "sys/unseal", &json!({ "key": key })).unwrap();
    starting.wait_ready();
    assert_eq!(fs::read_to_string(&fresh.file).unwrap(), "password=pw-one");
    wait_until_told(&mut running, 200, &["secrets ready"]);
}

#[test]
fn a_certificate_that_may_not_be_read_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let leaf = authority.issue("leaf", "spiffe://shop.example/ns/shop/sa/backend");
    let config = format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {} }}\n",
        leaf.certificate.display(),
        leaf.key.display(),
        authority.bundle().display()
    );
    let allow = |mode: u32| fs::set_permissions(&leaf.key, fs::Permissions::from_mode(mode)).unwrap();
    allow(0);
    let mut outrigger = start_unprivileged(folder.path(), &config);
    wait_until_told(&mut outrigger, 503, &["identity waiting", leaf.key.to_str().unwrap(), "cannot be read by user"]);
    allow(0o400);
    outrigger.wait_ready();
}

#[test]
fn a_rotated_secret_is_rendered_again_whole() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    let password = |version: usize| format!("{version}").repeat(5000);
    bao.put_secret("db", &json!({ "password": password(1) }));
    let rendered = Rendered::new(folder.path(), &bao.address);
    let config = rendered.config.clone() + "    mode: \"0440\"\n    uid: 12345\n    gid: 23456\n";
    let outrigger = start_outrigger(folder.path(), &config);
    for version in 2..=4 {
        bao.put_secret("db", &json!({ "password": password(version) }));
        eventually("the new version", || {
            // Read at any moment, it is one of the two.
            let found = fs::read_to_string(&rendered.file)?;
            let is = |version: usize| found == format!("password={}", password(version));
            assert!(is(version) || is(version - 1), "a torn file: {} bytes", found.len());
            ensure!(is(version), "still the old one");
            Ok(())
        });
        let metadata = fs::metadata(&rendered.file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o440, 12345, 23456));
    }
    let series = format!("outrigger_secret_version{{path=\"{}\"}}", rendered.file.display());
    eventually("its version", || {
        ensure!(outrigger.metric(&series)? == 4.0, "not 4");
        Ok(())
    });
    // Nothing is left beside it.
    assert_eq!(fs::read_dir(rendered.file.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn vault_going_away_and_coming_back_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port_pair();
    let bao = Bao::start_on(folder.path(), port);
    bao.put_secret("db", &json!({ "password": "pw-one" }));
    let rendered = Rendered::new(folder.path(), &bao.address);
    let mut outrigger = start_outrigger(folder.path(), &rendered.config);
    drop(bao);
    wait_until_told(&mut outrigger, 200, &["secrets degraded", "refused"]);
    assert_eq!(fs::read_to_string(&rendered.file).unwrap(), "password=pw-one");
    let bao = Bao::start_on(folder.path(), port);
    bao.put_secret("db", &json!({ "password": "pw-two" }));
    wait_for_content(&rendered.file, "password=pw-two");
    wait_until_told(&mut outrigger, 200, &["secrets ready"]);
}

#[test]
fn a_reload_changes_templates_and_adds_files() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    bao.put_secret("db", &json!({ "password": "pw-one", "user": "app" }));
    let rendered = Rendered::new(folder.path(), &bao.address);
    let outrigger = start_outrigger(folder.path(), &rendered.config);
    let more = folder.path().join("run/more");
    let config = rendered.config.replace("password={{", "db_password={{")
        + &format!(
            "  - path: {}\n    template: '{{{{ with secret \"secret/data/db\" }}}}{{{{ .Data.data.user }}}}{{{{ end }}}}'\n",
            more.display()
        );
    outrigger.write_config(&config);
    wait_for_content(&more, "app");
    wait_for_content(&rendered.file, "db_password=pw-one");
    // A template that cannot work is refused as a whole; the last good config stays.
    outrigger.write_config(&config.replace("{{ end }}", "{{ bogus }}{{ end }}"));
    eventually("the refusal", || {
        ensure!(outrigger.metric("outrigger_config_last_reload_successful")? == 0.0, "not yet");
        Ok(())
    });
    bao.put_secret("db", &json!({ "password": "pw-two", "user": "app" }));
    wait_for_content(&rendered.file, "db_password=pw-two");
}

#[test]
fn approle_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    bao.put_secret("db", &json!({ "password": "pw-variable" }));
    bao.call("POST", "sys/auth/approle", &json!({ "type": "approle" })).unwrap();
    let policy = "path \"secret/data/db\" { capabilities = [\"read\"] }";
    bao.call("PUT", "sys/policies/acl/app", &json!({ "policy": policy })).unwrap();
    bao.call("POST", "auth/approle/role/app", &json!({ "token_policies": "app", "token_ttl": "1h" })).unwrap();
    let role = bao.call("GET", "auth/approle/role/app/role-id", &Value::Null).unwrap();
    let secret = bao.call("POST", "auth/approle/role/app/secret-id", &json!({})).unwrap();
    let secret_id = secret["data"]["secret_id"].as_str().unwrap();
    let (secret_file, seen) = (folder.path().join("secret-id"), folder.path().join("seen"));
    fs::write(&secret_file, secret_id).unwrap();
    let config = format!(
        "secrets:\n  providers: [{{ name: bao, vault: {{ address: \"{}\", auth: {{ appRole: {{ roleId: {}, secretIdFile: {} }} }} }} }}]\n  \
         env: [{{ name: DB_PASSWORD, template: '{{{{ with secret \"secret/data/db\" }}}}{{{{ .Data.data.password }}}}{{{{ end }}}}' }}]\n",
        bao.address,
        role["data"]["role_id"].as_str().unwrap(),
        secret_file.display()
    );
    let script = format!("printf %s \"$DB_PASSWORD\" > {}; exec sleep 600", seen.display());
    let mut outrigger = start_outrigger_with(folder.path(), &config, &["--", "sh", "-c", &script]);
    wait_for_content(&seen, "pw-variable");
    // Our own environment has it not, nor has any output.
    let environment = fs::read(format!("/proc/{}/environ", outrigger.process.id())).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("pw-variable"));
    for page in ["/config", "/readyz?verbose", "/metrics"] {
        let body = outrigger.get(page).unwrap().body;
        assert!(!body.contains("pw-variable") && !body.contains(secret_id), "{page}: {body}");
    }
    assert_eq!(outrigger.process.stop().code(), Some(143));
    let tokens = bao.call("LIST", "auth/token/accessors", &Value::Null).unwrap();
    assert_eq!(
        tokens["data"]["keys"].as_array().unwrap().len(),
        1,
        "the token was not revoked: only root's may be left"
    );
}

/// A small disk of its own, for as long as the guard lives.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&at).expect("the test's folder can be written");
        run(tool("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&at))
            .expect("a disk can be mounted: these tests run as root");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(tool("umount").arg("--lazy").arg(&self.0));
    }
}

#[test]
fn a_full_disk_leaves_the_old_secret_whole() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path().join("run"), "64k");
    let bao = Bao::start(folder.path());
    bao.put_secret("db", &json!({ "password": "pw-small" }));
    let rendered = Rendered::new(folder.path(), &bao.address);
    let mut outrigger = start_outrigger(folder.path(), &rendered.config);
    let ballast = disk.0.join("ballast");
    let _ = File::create(&ballast).unwrap().write_all(&[0; 60 * 1024]);
    let large = "x".repeat(20 * 1024);
    bao.put_secret("db", &json!({ "password": large }));
    wait_until_told(
        &mut outrigger,
        200,
        &["secrets degraded", "cannot write", rendered.file.to_str().unwrap(), "space"],
    );
    assert_eq!(fs::read_to_string(&rendered.file).unwrap(), "password=pw-small");
    let names: Vec<_> = fs::read_dir(&disk.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "something is left on the full disk: {names:?}");
    fs::remove_file(&ballast).unwrap();
    wait_for_content(&rendered.file, &format!("password={large}"));
    wait_until_told(&mut outrigger, 200, &["secrets ready"]);
    drop(outrigger);
}

#[test]
fn killed_while_it_writes_it_leaves_whole_files_and_no_litter() {
    let folder = tempfile::tempdir().unwrap();
    let (store, run) = (folder.path().join("store"), folder.path().join("run"));
    fs::create_dir(&store).unwrap();
    fs::create_dir(&run).unwrap();
    let config = format!(
        "secrets:\n  providers: [{{ name: store, file: {{ directory: {} }} }}]\n  \
         files: [{{ path: {}/db, template: '{{{{ with secret \"db\" }}}}{{{{ .Data.data.password }}}}{{{{ end }}}}' }}]\n",
        store.display(),
        run.display()
    );
    // Large, so that a write takes its time.
    let put = |version: u32| {
        let secret = json!({ "password": format!("{version:06}").repeat(20_000) });
        fs::write(store.join(".db.new"), secret.to_string()).unwrap();
        fs::rename(store.join(".db.new"), store.join("db.json")).unwrap();
    };
    let assert_whole = || {
        let Ok(text) = fs::read_to_string(run.join("db")) else { return };
        assert_eq!(text, text[..6].repeat(20_000), "a torn secret of {} bytes", text.len());
    };
    for life in 0..12u32 {
        put(life * 100);
        let mut outrigger = start_outrigger(folder.path(), &config);
        // Killed at another moment after a change each time.
        for change in 1..=(life % 3) + 1 {
            put(life * 100 + change);
            std::thread::sleep(Duration::from_millis(u64::from(life) * 7 % 40));
            assert_whole();
        }
        outrigger.process.kill();
        assert_whole();
    }
    put(9999);
    let outrigger = start_outrigger(folder.path(), &config);
    wait_for_content(&run.join("db"), &"009999".repeat(20_000));
    let names: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["db"], "litter of a killed process");
    drop(outrigger);
}

#[test]
fn a_template_that_cannot_work_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let rendered = Rendered::new(folder.path(), "http://127.0.0.1:1");
    let marker = folder.path().join("started");
    for (bad, named) in [("{{ end }}{{ end }}", "line 1"), ("{{ bogus }}{{ end }}", "bogus")] {
        let config = rendered.config.replace("{{ end }}", bad);
        let command = ["--", "touch", marker.to_str().unwrap()];
        let mut outrigger = start_outrigger_with(folder.path(), &config, &command);
        assert_eq!(outrigger.process.wait(Duration::from_secs(20)).code(), Some(1), "{bad}");
        let log = outrigger.process.log();
        assert!(log.contains("secrets.files[0].template") && log.contains(named), "{bad}: {log}");
        assert!(!marker.exists());
    }
}

#[test]
fn nothing_tells_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let bao = Bao::start(folder.path());
    let (first, second, key) = ("pw-4real-one", "pw-4real-two", "Bearer 4real-key");
    bao.put_secret("db", &json!({ "password": first, "user": "4real-user" }));
    let rendered = Rendered::new(folder.path(), &bao.address);
    let sink = free_port();
    let log = folder.path().join("app.log");
    fs::write(&log, "a line\n").unwrap();
    let config = format!(
        "telemetry: {{ log: {{ level: trace, rateLimit: 0 }} }}\nlogs:\n  stateDirectory: {0}/state\n  sources: [{{ name: app, file: {{ path: {1} }} }}]\n  \
         sinks: [{{ name: out, inputs: [app], http: {{ url: \"http://127.0.0.1:{sink}/\", headers: {{ authorization: \"{key}\" }} }} }}]\n{2}",
        folder.path().display(),
        log.display(),
        rendered.config
    );
    let mut outrigger = start_outrigger(folder.path(), &config);
    // Through a failure of each: the sink down and then refusing, the template flawed, the token wrong.
    wait_until_told(&mut outrigger, 200, &["logs degraded"]);
    let collector = Collector::start_on(sink, Mood::Refuses(401));
    eventually("a refused batch", || {
        ensure!(collector.requests() > 0, "none yet");
        Ok(())
    });
    collector.set_mood(Mood::Takes);
    eventually("a batch", || {
        ensure!(collector.lines().len() == 1, "none yet");
        Ok(())
    });
    fs::write(&rendered.token, "4real-wrong-token").unwrap();
    wait_until_told(&mut outrigger, 200, &["secrets degraded", "403"]);
    bao.put_secret("db", &json!({ "passwort": second }));
    fs::write(&rendered.token, &bao.token).unwrap();
    wait_until_told(&mut outrigger, 200, &["secrets degraded", "no field `password`"]);
    bao.put_secret("db", &json!({ "password": second }));
    wait_for_content(&rendered.file, &format!("password={second}"));
    // The config file itself may be wrong in the worst place.
    let good = fs::read_to_string(&outrigger.config).unwrap();
    fs::write(&outrigger.config, good.replace("authorization: ", "authorization: [").replace("http: {", "htpp: {"))
        .unwrap();
    eventually("the refusal", || {
        ensure!(outrigger.metric("outrigger_config_last_reload_successful")? == 0.0, "not yet");
        Ok(())
    });
    for path in ["/config", "/metrics", "/readyz?verbose", "/debug/tasks", "/"] {
        for accept in ["text/plain", "application/json"] {
            let url = format!("{}{path}", outrigger.admin);
            let body = request("GET", &url, &[("accept", accept)], "").unwrap().body;
            assert!(!body.contains("4real") && !body.contains(&bao.token), "{path}: {body}");
        }
    }
    let said = outrigger.process.log();
    let leaks: Vec<_> = said.lines().filter(|line| line.contains("4real") || line.contains(&bao.token)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", outrigger.process.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let command = fs::read(format!("/proc/{}/cmdline", outrigger.process.id())).unwrap();
    assert!(!String::from_utf8_lossy(&command).contains("4real"));
    outrigger.process.stop();
    assert!(!outrigger.process.log().contains("4real"));
}

// ---- logs ----

/// Forwards `app.log` in `folder` to a file sink and, when a port is given, to an HTTP sink.
fn forwarding(folder: &Path, http: Option<u16>) -> String {
    let http = http.map_or(String::new(), |port| {
        format!(
            "  - {{ name: http, inputs: [app], batch: {{ timeout: 20ms }}, http: {{ url: \"http://127.0.0.1:{port}/logs\", timeout: 2s }} }}\n"
        )
    });
    format!(
        "logs:\n  stateDirectory: {0}/state\n  sources: [{{ name: app, file: {{ path: {0}/app.log }} }}]\n  sinks:\n  \
         - {{ name: file, inputs: [app], batch: {{ timeout: 20ms }}, file: {{ path: {0}/shipped.ndjson }} }}\n{http}",
        folder.display()
    )
}

/// How often each numbered line is among `events`, by its number.
fn count<'a>(events: impl Iterator<Item = &'a str>, lines: u64) -> Result<Vec<u32>> {
    let mut counts = vec![0; usize::try_from(lines)?];
    for event in events {
        let event: Value = serde_json::from_str(event).with_context(|| format!("{event:?} is no JSON"))?;
        let message = event["message"].as_str().context("no message")?;
        let number: usize = message.split(' ').nth(1).context("no number")?.parse()?;
        ensure!(message == line(number as u64), "a damaged line: {message:?}");
        *counts.get_mut(number).with_context(|| format!("{number} was never written"))? += 1;
    }
    Ok(counts)
}

fn line(number: u64) -> String {
    format!("line {number} {}", "x".repeat((number % 97) as usize))
}

fn ensure_each(counts: &[u32], well: impl Fn(u32) -> bool) -> Result<()> {
    let wrong: Vec<_> = counts.iter().enumerate().filter(|(_, count)| !well(**count)).collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} lines are wrong, as (number, times): {:?}",
        wrong.len(),
        counts.len(),
        &wrong[..wrong.len().min(10)]
    );
    Ok(())
}

/// An application that appends numbered lines and rotates its log by rename, as logrotate does.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(folder: &Path, rotate_every: u64) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let folder = folder.to_path_buf();
        let thread = std::thread::spawn({
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            move || write_lines(&folder, rotate_every, &stop, &written)
        });
        Self { stop, written, thread: Some(thread) }
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until so many lines were written since `from`.
    #[track_caller]
    fn goes_on(&self, from: u64, more: u64) {
        eventually("the application to write on", || {
            ensure!(self.written() >= from + more, "{} lines", self.written());
            Ok(())
        });
    }

    /// Ends it; the number of lines in all.
    fn end(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer did not panic");
        }
        self.written()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write_lines(folder: &Path, rotate_every: u64, stop: &AtomicBool, written: &AtomicU64) {
    let path = folder.join("app.log");
    let open = || File::options().create(true).append(true).open(&path).expect("the log can be opened");
    let mut file = open();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if number > 0 && number % rotate_every == 0 {
            let rotated = number / rotate_every;
            for old in (1..rotated).rev() {
                let name = |index: u64| folder.join(format!("app.log.{index}"));
                fs::rename(name(old), name(old + 1)).expect("a log can be renamed");
            }
            fs::rename(&path, folder.join("app.log.1")).expect("the log can be renamed");
            file = open();
        }
        let text = line(number) + "\n";
        // Sometimes in two pieces, as a buffer that runs full does it.
        let cut = if number % 13 == 0 { text.len() / 2 } else { text.len() };
        file.write_all(&text.as_bytes()[..cut]).expect("the log can be written");
        file.write_all(&text.as_bytes()[cut..]).expect("the log can be written");
        written.store(number + 1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Waits until a checkpoint knows the file sink.
#[track_caller]
fn wait_for_checkpoint(folder: &Path) {
    eventually("a checkpoint that knows the sink", || {
        let checkpoint: Value = serde_json::from_slice(&fs::read(folder.join("state/checkpoint.json"))?)?;
        ensure!(checkpoint["sinks"]["file"]["length"].as_u64() > Some(0), "{checkpoint}");
        Ok(())
    });
}

#[test]
fn killed_at_any_moment_it_delivers_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let collector = Collector::start_on(port, Mood::Takes);
    let config = forwarding(folder.path(), Some(port));
    let mut writer = Writer::start(folder.path(), 400);
    let shipped = folder.path().join("shipped.ndjson");
    let mut outrigger = start_outrigger(folder.path(), &config);
    wait_for_checkpoint(folder.path());
    outrigger.process.kill();
    // Between 3 and 340 lines after the first sign of life: before, within and after a checkpoint.
    for (round, life) in [3u64, 160, 40, 270, 10, 90, 210, 25, 340, 60, 130, 5].into_iter().enumerate() {
        let from = writer.written();
        let mut outrigger = start_outrigger_with(folder.path(), &config, &[]);
        eventually("it to start", || {
            outrigger.process.still_runs()?;
            outrigger.get("/livez")?.ok()
        });
        writer.goes_on(from, life);
        outrigger.process.kill();
        if round % 4 == 1 {
            // Rotated twice while nobody looks.
            writer.goes_on(writer.written(), 900);
        }
    }
    let _outrigger = start_outrigger(folder.path(), &config);
    writer.goes_on(writer.written(), 500);
    let lines = writer.end();
    eventually("every line in the file, once", || {
        let text = fs::read_to_string(&shipped)?;
        ensure!(text.ends_with('\n'), "the last line is not whole");
        ensure_each(&count(text.lines(), lines)?, |times| times == 1)
    });
    eventually("every line at the collector, at least once", || {
        ensure_each(&count(collector.lines().iter().map(String::as_str), lines)?, |times| times >= 1)
    });
}

#[test]
fn killed_before_its_first_checkpoint_it_repeats_nothing_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let lines = 2000;
    fs::write(folder.path().join("app.log"), (0..lines).map(|number| line(number) + "\n").collect::<String>()).unwrap();
    for round in 0..5 {
        let home = folder.path().join(format!("round-{round}"));
        fs::create_dir(&home).unwrap();
        fs::copy(folder.path().join("app.log"), home.join("app.log")).unwrap();
        let shipped = home.join("shipped.ndjson");
        let mut outrigger = start_outrigger_with(&home, &forwarding(&home, None), &[]);
        // Killed as soon as the first bytes stand there.
        eventually_within(Duration::from_secs(20), "the first bytes", || {
            ensure!(fs::metadata(&shipped)?.len() > 0, "empty");
            Ok(())
        });
        outrigger.process.kill();
        let _again = start_outrigger(&home, &forwarding(&home, None));
        eventually("every line in the file, once", || {
            ensure_each(&count(fs::read_to_string(&shipped)?.lines(), lines)?, |times| times == 1)
        });
    }
}

#[test]
fn orderly_restarts_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let collector = Collector::start_on(port, Mood::Takes);
    let config = forwarding(folder.path(), Some(port));
    let mut writer = Writer::start(folder.path(), 300);
    for life in [5u64, 120, 40, 300, 15] {
        let from = writer.written();
        let mut outrigger = start_outrigger(folder.path(), &config);
        writer.goes_on(from, life);
        assert_eq!(outrigger.process.stop().code(), Some(0));
        assert!(!outrigger.process.log().contains("not everything was delivered"), "{}", outrigger.process.log());
    }
    let _outrigger = start_outrigger(folder.path(), &config);
    let lines = writer.end();
    eventually("every line in the file and at the collector, once", || {
        let text = fs::read_to_string(folder.path().join("shipped.ndjson"))?;
        ensure_each(&count(text.lines(), lines)?, |times| times == 1).context("the file")?;
        ensure_each(&count(collector.lines().iter().map(String::as_str), lines)?, |times| times == 1)
            .context("the collector")
    });
}

#[test]
fn reloads_of_the_graph_lose_and_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let collector = Collector::start_on(port, Mood::Takes);
    let config = forwarding(folder.path(), Some(port));
    let mut writer = Writer::start(folder.path(), 300);
    let outrigger = start_outrigger(folder.path(), &config);
    for reload in 1..=6u64 {
        writer.goes_on(writer.written(), 30 * reload);
        outrigger.write_config(&config.replace("timeout: 20ms", &format!("timeout: {}ms", 20 + reload)));
        eventually("the reload", || {
            let applied = outrigger.metric("outrigger_config_reloads_total{result=\"applied\"}")?;
            ensure!(applied == reload as f64, "{applied} reloads");
            Ok(())
        });
        assert_eq!(outrigger.get("/readyz").unwrap().status, 200);
    }
    writer.goes_on(writer.written(), 50);
    let lines = writer.end();
    eventually("every line in the file and at the collector, once", || {
        let text = fs::read_to_string(folder.path().join("shipped.ndjson"))?;
        ensure_each(&count(text.lines(), lines)?, |times| times == 1).context("the file")?;
        ensure_each(&count(collector.lines().iter().map(String::as_str), lines)?, |times| times == 1)
            .context("the collector")
    });
}

#[test]
fn a_sink_that_is_down_loses_nothing_and_costs_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let path = folder.path().join("app.log");
    let config = forwarding(folder.path(), Some(port));
    let mut outrigger = start_outrigger(folder.path(), &config);
    // Its own memory: pages of the executable come and go.
    let before = outrigger.process.memory("RssAnon").unwrap();
    // 16 MB that nobody takes; the sink's buffer is 1 MiB.
    let lines = 250_000u64;
    fs::write(&path, (0..lines).map(|number| line(number) + "\n").collect::<String>()).unwrap();
    wait_until_told(&mut outrigger, 200, &["logs degraded", "sink `http`", "refused"]);
    let collector = Collector::start_on(port, Mood::Refuses(503));
    for (mood, requests, reason) in [(Mood::Refuses(503), 2, "503"), (Mood::Refuses(429), 4, "429")] {
        collector.set_mood(mood);
        wait_until_told(&mut outrigger, 200, &["sink `http`", reason]);
        eventually_within(LONG, "the batch to be tried again", || {
            ensure!(collector.requests() >= requests, "{} requests", collector.requests());
            Ok(())
        });
    }
    assert_eq!(collector.lines().len(), 0);
    outrigger.counts_at_least("outrigger_logs_sink_retries_total{sink=\"http\"}", 4.0);
    let after = outrigger.process.memory("RssAnon").unwrap();
    assert!(after < before + 12_000, "it grew from {before} to {after} KiB for a sink that is down");
    assert!(outrigger.metric("outrigger_logs_buffer_bytes{sink=\"http\"}").unwrap() <= 2e6);
    collector.set_mood(Mood::Takes);
    eventually_within(LONG, "every line", || {
        let taken = collector.lines();
        ensure!(taken.len() as u64 >= lines, "{} lines", taken.len());
        ensure_each(&count(taken.iter().map(String::as_str), lines)?, |times| times == 1)
    });
    eventually("the acknowledgements", || {
        let sink = outrigger.metric("outrigger_logs_sink_acknowledged_total{sink=\"http\"}")?;
        ensure!(sink == lines as f64, "{sink}");
        ensure!(outrigger.metric("outrigger_logs_source_lag_bytes{source=\"app\"}")? == 0.0, "lag");
        ensure!(one_line(&outrigger.get("/readyz?verbose")?.body).contains("logs ready"), "not ready");
        Ok(())
    });
}

#[test]
fn the_lag_is_told_while_a_sink_is_down() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("app.log"), (0..250_000).map(|number| line(number) + "\n").collect::<String>())
        .unwrap();
    let outrigger = start_outrigger(folder.path(), &forwarding(folder.path(), Some(free_port())));
    eventually("the lag", || {
        let lag = outrigger.metric("outrigger_logs_source_lag_bytes{source=\"app\"}")?;
        ensure!(lag > 1e6, "{lag} bytes");
        Ok(())
    });
}

#[test]
fn a_batch_whose_acknowledgement_is_lost_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let collector = Collector::start_on(port, Mood::TakesInSilence);
    fs::write(folder.path().join("app.log"), (0..50).map(|number| line(number) + "\n").collect::<String>()).unwrap();
    let outrigger = start_outrigger(folder.path(), &forwarding(folder.path(), Some(port)));
    eventually("two deliveries", || {
        ensure!(collector.requests() >= 2, "{}", collector.requests());
        Ok(())
    });
    outrigger.counts("outrigger_logs_sink_acknowledged_total{sink=\"http\"}", 0.0);
    collector.set_mood(Mood::Takes);
    eventually_within(LONG, "the acknowledgement", || {
        let acknowledged = outrigger.metric("outrigger_logs_sink_acknowledged_total{sink=\"http\"}")?;
        ensure!(acknowledged == 50.0, "{acknowledged}");
        Ok(())
    });
    ensure_each(&count(collector.lines().iter().map(String::as_str), 50).unwrap(), |times| times >= 3).unwrap();
}

#[test]
fn a_log_folder_may_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("not/there/yet");
    let config = format!(
        "logs:\n  stateDirectory: {0}/state\n  sources: [{{ name: app, file: {{ path: {1}/app.log }} }}]\n  \
         sinks: [{{ name: file, inputs: [app], file: {{ path: {0}/shipped.ndjson }} }}]\n",
        folder.path().display(),
        home.display()
    );
    // It does not hold the application back: that makes the folder itself.
    let mut outrigger = start_outrigger(folder.path(), &config);
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("app.log"), format!("{}\n{}\n", line(0), line(1))).unwrap();
    let shipped = folder.path().join("shipped.ndjson");
    eventually("the lines", || ensure_each(&count(fs::read_to_string(&shipped)?.lines(), 2)?, |times| times == 1));
    // A folder that goes and comes back, as an emptyDir that is remade.
    fs::remove_dir_all(folder.path().join("not")).unwrap();
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("app.log"), format!("{}\n", line(2))).unwrap();
    eventually("the line after", || ensure_each(&count(fs::read_to_string(&shipped)?.lines(), 3)?, |times| times == 1));
    outrigger.process.stop();
}

#[test]
fn what_the_application_says_last_is_shipped_before_the_exit() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let collector = Collector::start_on(port, Mood::Takes);
    // Rotated on the way, and the last line has no end.
    let script = format!(
        "cd {}; i=0; while [ $i -lt 300 ]; do echo \"n $i\" >> app.log; i=$((i+1)); [ $i = 150 ] && mv app.log app.log.1; done; printf 'n 300' >> app.log; exit 3",
        folder.path().display()
    );
    let config = forwarding(folder.path(), Some(port));
    let mut outrigger = start_outrigger_with(folder.path(), &config, &["--", "sh", "-c", &script]);
    assert_eq!(outrigger.process.wait(Duration::from_secs(30)).code(), Some(3), "{}", outrigger.process.log());
    let shipped = fs::read_to_string(folder.path().join("shipped.ndjson")).unwrap();
    let expected: Vec<_> = (0..=300).map(|number| format!("n {number}")).collect();
    let messages = |lines: &mut dyn Iterator<Item = &str>| -> Vec<String> {
        lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(messages(&mut shipped.lines()), expected);
    assert_eq!(messages(&mut collector.lines().iter().map(String::as_str)), expected);
}

#[test]
fn a_sink_that_is_down_does_not_hold_up_the_stop_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let config =
        format!("runtime: {{ shutdownBudget: 3s, flushBudget: 2s }}\n{}", forwarding(folder.path(), Some(port)));
    let log = folder.path().join("app.log");
    fs::write(&log, (0..100).map(|number| line(number) + "\n").collect::<String>()).unwrap();
    let mut outrigger = start_outrigger(folder.path(), &config);
    wait_until_told(&mut outrigger, 200, &["sink `http`"]);
    outrigger.process.signal(Signal::TERM);
    assert_eq!(outrigger.process.wait(Duration::from_secs(15)).code(), Some(0));
    // After the next start they are sent; the file, which had them, gets them no second time.
    let collector = Collector::start_on(port, Mood::Takes);
    let _again = start_outrigger(folder.path(), &config);
    eventually("the lines", || {
        ensure_each(&count(collector.lines().iter().map(String::as_str), 100)?, |times| times == 1)
    });
    let shipped = fs::read_to_string(folder.path().join("shipped.ndjson")).unwrap();
    ensure_each(&count(shipped.lines(), 100).unwrap(), |times| times == 1).unwrap();
}

#[test]
fn a_full_disk_under_a_file_sink_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path().join("disk"), "64k");
    let config = forwarding(folder.path(), None).replace("/shipped.ndjson", "/disk/shipped.ndjson");
    let ballast = disk.0.join("ballast");
    let _ = File::create(&ballast).unwrap().write_all(&[0; 40 * 1024]);
    fs::write(folder.path().join("app.log"), (0..150).map(|number| line(number) + "\n").collect::<String>()).unwrap();
    let mut outrigger = start_outrigger(folder.path(), &config);
    wait_until_told(&mut outrigger, 200, &["logs degraded", "sink `file`", "space"]);
    fs::remove_file(&ballast).unwrap();
    let shipped = disk.0.join("shipped.ndjson");
    eventually("every line in the file, once", || {
        ensure_each(&count(fs::read_to_string(&shipped)?.lines(), 150)?, |times| times == 1)
    });
    wait_until_told(&mut outrigger, 200, &["logs ready"]);
    drop(outrigger);
}

#[test]
fn logs_that_may_not_be_read_are_told_and_read_later() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("logs");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("app.log"), line(0) + "\n").unwrap();
    let config = format!(
        "logs:\n  stateDirectory: {0}/state\n  sources: [{{ name: app, file: {{ path: {0}/logs/app.log }} }}]\n  \
         sinks: [{{ name: file, inputs: [app], file: {{ path: {0}/shipped.ndjson }} }}]\n",
        folder.path().display()
    );
    let allow = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, closed, open) in [(home.clone(), 0, 0o755), (home.join("app.log"), 0, 0o644)] {
        allow(&path, closed);
        let mut outrigger = start_unprivileged(folder.path(), &config);
        // Traffic comes before logs: the pod is ready all the same.
        wait_until_told(&mut outrigger, 200, &["logs degraded", "app.log", "ermission denied"]);
        allow(&path, open);
        let shipped = folder.path().join("shipped.ndjson");
        eventually("the line", || ensure_each(&count(fs::read_to_string(&shipped)?.lines(), 1)?, |times| times == 1));
        wait_until_told(&mut outrigger, 200, &["logs ready"]);
        outrigger.process.stop();
        fs::remove_file(&shipped).unwrap();
        fs::remove_dir_all(folder.path().join("state")).unwrap();
    }
}

#[test]
fn a_state_folder_has_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let config = forwarding(folder.path(), None);
    let first = start_outrigger(folder.path(), &config);
    let mut second = start_outrigger_with(other.path(), &config, &[]);
    let state = folder.path().join("state");
    wait_until_told(
        &mut second,
        503,
        &["logs failed", &format!("another process (pid {}) uses", first.process.id()), state.to_str().unwrap()],
    );
    drop(first);
    second.wait_ready();
    let at_all = outrigger_command().args(["validate", "-c"]).arg(&second.config).output().unwrap();
    assert!(at_all.status.success());
}
