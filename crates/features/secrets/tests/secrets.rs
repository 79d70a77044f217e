//! The component as a whole, against a real OpenBao, a folder, and a server with leases.
//!
//! Every event of every test, at trace level, goes into one journal; each test looks for its
//! own secrets in it, in the status and in the metrics, and must not find them.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_config::Config;
use outrigger_http::{Client, ClientOptions, Resolver};
use outrigger_runtime::{AppEnvironment, BoxError, Component, Context, Standalone};
use outrigger_secrets::SecretsComponent;
use outrigger_telemetry::{Format, Registry};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

const ROOT: &str = "root-token-that-must-not-leak";
const PATIENCE: Duration = Duration::from_secs(20);

// ---- OpenBao -------------------------------------------------------------------------

/// An OpenBao server in development mode, ended with its guard.
struct Bao {
    child: Child,
    address: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    _home: TempDir,
}

impl Bao {
    async fn start() -> Self {
        Self::start_on(free_port()).await
    }

    async fn start_on(port: u16) -> Self {
        Self::start_with(port, None).await
    }

    /// With TLS, its authority in `vault-ca.pem` of a folder.
    async fn start_with(port: u16, tls: Option<&Path>) -> Self {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/tools/bin/bao");
        assert!(tool.exists(), "OpenBao is not installed: run `cargo xtask setup`");
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(tool);
        if let Some(folder) = tls {
            command.args(["server", "-dev-tls", &format!("-dev-tls-cert-dir={}", folder.display())]);
        } else {
            command.args(["server"]);
        }
        let child = command
            .args(["-dev", "-dev-no-store-token", &format!("-dev-root-token-id={ROOT}")])
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let ca = tls.map(|folder| folder.join("vault-ca.pem"));
        let mut bao = Self { child, address: format!("{scheme}://127.0.0.1:{port}"), tls: None, _home: home };
        if let Some(ca) = ca {
            eventually("OpenBao makes its certificates", async || {
                bao.tls = outrigger_identity::client_config_with_roots(Some(&ca)).ok();
                bao.tls.is_some()
            })
            .await;
        }
        eventually("OpenBao serves", async || bao.call("GET", "sys/health", json!(null)).await.0 == 200).await;
        // The development mount of KV comes a moment after the rest.
        eventually("KV is mounted", async || {
            bao.call("PUT", "secret/data/probe", json!({ "data": {} })).await.0 == 200
        })
        .await;
        bao
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let client =
            Client::new(ClientOptions { tls: self.tls.clone(), ..ClientOptions::default() }, Resolver::from_system());
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = http::Request::builder().method(method).uri(format!("{}/v1/{path}", self.address));
        match client.send(request.header("x-vault-token", ROOT).body(body).unwrap()).await {
            Ok(response) => (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap_or_default()),
            Err(_) => (0, Value::Null),
        }
    }

    async fn put(&self, path: &str, data: Value) {
        let (status, _) = self.call("PUT", &format!("secret/data/{path}"), json!({ "data": data })).await;
        assert_eq!(status, 200, "OpenBao takes {path}");
    }

    /// How many tokens there are.
    async fn tokens(&self) -> usize {
        let (_, answer) = self.call("LIST", "auth/token/accessors", json!(null)).await;
        answer["data"]["keys"].as_array().map_or(0, Vec::len)
    }

    fn provider(&self, auth: &str) -> String {
        format!(
            "{{ name: vault, vault: {{ address: '{}', refresh: 200ms, timeout: 2s, auth: {auth} }} }}",
            self.address
        )
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the component -------------------------------------------------------------------

/// A running component, with the folder its files are in.
struct Pillar {
    outside: Standalone,
    registry: Registry,
    environment: AppEnvironment,
    task: JoinHandle<Result<(), BoxError>>,
}

impl Pillar {
    fn start(config: &str) -> Self {
        journal();
        let config = parse(config);
        let component = SecretsComponent::new(Resolver::from_system());
        component.check(None, &config).unwrap();
        assert!(component.enabled(&config));
        let (context, outside) = Context::standalone(config, 0);
        let (registry, environment) = (context.registry.clone(), context.environment.clone());
        let task = tokio::task::spawn_local(async move { component.run(context).await });
        Self { outside, registry, environment, task }
    }

    fn reload(&self, config: &str) {
        self.outside.config.send(Arc::new(parse(config))).unwrap();
    }

    async fn is(&self, state: &str, parts: &[&str]) {
        let what = format!("status {state} with {parts:?}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (now, reason) = self.outside.status();
            if now == state && parts.iter().all(|part| reason.contains(part)) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}; it is {now}: {reason}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn metrics(&self) -> String {
        let mut text = Vec::new();
        self.registry.encode(Format::Text, &mut text);
        String::from_utf8(text).unwrap()
    }

    fn version(&self, file: &Path) -> Option<u64> {
        let start = format!("outrigger_secret_version{{path=\"{}\"}} ", file.display());
        self.metrics().lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    }

    /// Nothing that can be seen from outside holds one of these.
    fn leaks_none_of(&self, secrets: &[&str]) {
        let seen = format!("{:?}\n{}\n{}", self.outside.status(), self.metrics(), journal().lock().unwrap());
        assert!(seen.contains("outrigger_secret_version"), "there is something to look through");
        for secret in secrets {
            assert!(!seen.contains(secret), "{secret} leaks: {:?}", seen.lines().find(|line| line.contains(secret)));
        }
    }

    async fn stop(self) {
        self.outside.stop.request(tokio::time::Instant::now() + Duration::from_secs(10));
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").unwrap().unwrap();
    }
}

fn parse(yaml: &str) -> Config {
    match outrigger_config::parse("test.yaml", yaml, &|_| None) {
        Ok(loaded) => loaded.config,
        Err(error) => panic!("{}\n{yaml}", error.render(false)),
    }
}

fn file(path: &Path, template: &str) -> String {
    format!("{{ path: '{}', template: '{template}' }}", path.display())
}

fn config(providers: &str, files: &[String]) -> String {
    format!("secrets: {{ providers: [{providers}], files: [{}] }}", files.join(", "))
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn holds(path: &Path, content: &str) {
    eventually(&format!("{} holds what it shall", path.display()), async || {
        fs::read_to_string(path).is_ok_and(|text| text == content)
    })
    .await;
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// All events of this process.
fn journal() -> &'static Mutex<String> {
    static JOURNAL: Mutex<String> = Mutex::new(String::new());
    static ONCE: Once = Once::new();
    struct Writer;
    impl<S: tracing::Subscriber> Layer<S> for Writer {
        fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
            use std::fmt::Write as _;
            let mut journal = JOURNAL.lock().unwrap();
            let _ = write!(journal, "{}", event.metadata().target());
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                let _ = write!(journal, " {field}={value:?}");
            });
            journal.push('\n');
        }
    }
    ONCE.call_once(|| tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Writer)).unwrap());
    &JOURNAL
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// As an editor or the kubelet writes: a new file, moved over the old one.
    fn replace(&self, name: &str, content: &str) -> PathBuf {
        let (fresh, path) = (self.path("fresh~"), self.path(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&fresh, content).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path
    }
}

fn token() -> String {
    format!("{{ token: {{ value: {ROOT} }} }}")
}

// ---- OpenBao, from end to end --------------------------------------------------------

#[tokio::test]
async fn secrets_of_openbao_reach_files_and_variables_and_follow_changes() {
    local(async {
        let (bao, folder) = (Bao::start().await, Folder::new());
        bao.put("db", json!({ "password": "first-s3cret", "user": "app" })).await;
        bao.put("shop/api", json!({ "key": "api-s3cret" })).await;
        let (db, api) = (folder.path("out/db"), folder.path("out/api"));
        let files = [
            file(&db, r#"{{ with secret "secret/data/db" }}{{ .Data.data.user }}:{{ .Data.data.password }}{{ end }}"#),
            file(&api, r#"{{ with secret "secret/shop/api" }}{{ .Data.data.key | base64Encode }}{{ end }}"#),
        ];
        let env = r#"{ name: DB, template: '{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}' }"#;
        let config = format!(
            "secrets: {{ providers: [{}], files: [{}], env: [{env}] }}",
            bao.provider(&token()),
            files.join(", ")
        );
        let pillar = Pillar::start(&config);
        pillar.is("ready", &[]).await;
        // Ready means that everything is there, at once.
        assert_eq!(fs::read_to_string(&db).unwrap(), "app:first-s3cret");
        assert_eq!(fs::read_to_string(&api).unwrap(), "YXBpLXMzY3JldA==");
        assert_eq!(fs::metadata(&db).unwrap().mode() & 0o7777, 0o400);
        let variables = pillar.environment.variables();
        assert_eq!((variables.len(), variables[0].1.expose()), (1, "first-s3cret"));
        assert_eq!(pillar.version(&db), Some(1));
        let metrics = pillar.metrics();
        let reads = r#"outrigger_vault_requests_total{provider="vault",operation="read",result="200"} 2"#;
        assert!(metrics.contains(reads), "each path is read once, whoever uses it:\n{metrics}");

        bao.put("db", json!({ "password": "second-s3cret", "user": "app" })).await;
        holds(&db, "app:second-s3cret").await;
        eventually("the version follows", async || pillar.version(&db) == Some(2)).await;
        let written = fs::metadata(&api).unwrap().ino();
        fs::remove_file(&db).unwrap();
        holds(&db, "app:second-s3cret").await;
        assert_eq!(fs::metadata(&api).unwrap().ino(), written, "what has not changed is not written again");

        pillar.leaks_none_of(&["first-s3cret", "second-s3cret", "api-s3cret", "YXBpLXMzY3JldA", ROOT]);
        pillar.stop().await;
        assert_eq!(bao.call("GET", "auth/token/lookup-self", json!(null)).await.0, 200, "a given token lives on");
    })
    .await;
}

#[tokio::test]
async fn an_app_role_logs_in_and_its_token_ends_with_us() {
    local(async {
        let (bao, folder) = (Bao::start().await, Folder::new());
        bao.put("db", json!({ "password": "role-s3cret" })).await;
        // A token without the default policy, so that it may not even look itself up.
        let policy = r#"path "secret/data/db" { capabilities = ["read"] }
            path "auth/token/renew-self" { capabilities = ["update"] }
            path "auth/token/revoke-self" { capabilities = ["update"] }"#;
        bao.call("PUT", "sys/policies/acl/app", json!({ "policy": policy })).await;
        bao.call("POST", "sys/auth/approle", json!({ "type": "approle" })).await;
        bao.call(
            "POST",
            "auth/approle/role/app",
            json!({ "token_policies": "app", "token_no_default_policy": true, "token_ttl": "3s", "token_max_ttl": "6s" }),
        )
        .await;
        let role = bao.call("GET", "auth/approle/role/app/role-id", json!(null)).await.1;
        let role = role["data"]["role_id"].as_str().unwrap().to_owned();
        let id = bao.call("POST", "auth/approle/role/app/secret-id", json!({})).await.1;
        let id = id["data"]["secret_id"].as_str().unwrap().to_owned();
        let before = bao.tokens().await;

        let id_file = folder.path("secret-id");
        let auth = format!("{{ appRole: {{ roleId: {role}, secretIdFile: '{}' }} }}", id_file.display());
        let (db, other) = (folder.path("db"), folder.path("other"));
        let template = r#"{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}"#;
        let files = [file(&db, template)];
        let pillar = Pillar::start(&config(&bao.provider(&auth), &files));
        pillar.is("waiting", &["secret ID file", "secret-id", "does not exist yet"]).await;
        folder.replace("secret-id", "not-the-s3cret-id\n");
        pillar.is("waiting", &["AppRole login", "(400)", "roleId"]).await;
        folder.replace("secret-id", &format!("{id}\n"));
        pillar.is("ready", &[]).await;
        holds(&db, "role-s3cret").await;
        assert_eq!(bao.tokens().await, before + 1);

        // Past its greatest age the token is replaced by a new login, and nothing is to be seen of that.
        let logins = |count: &str| pillar.metrics().contains(&format!("operation=\"login\",result=\"200\"}} {count}"));
        eventually("it renews", async || pillar.metrics().contains("renew_self")).await;
        eventually("it logs in again", async || logins("2")).await;
        assert_eq!(pillar.outside.status(), ("ready", String::new()));

        // A provider that a reload replaces leaves once its successor is in place.
        let changed = bao.provider(&auth).replace("refresh: 200ms", "refresh: 150ms");
        pillar.reload(&config(&changed, &files));
        eventually("its successor logs in", async || logins("3")).await;
        eventually("it gives its token back", async || {
            pillar.metrics().contains("operation=\"revoke_self\",result=\"204\"} 1") && bao.tokens().await == before + 1
        })
        .await;
        pillar.is("ready", &[]).await;

        // A policy that says no is not a token that is wrong.
        let more = [files[0].clone(), file(&other, r#"{{ with secret "secret/data/other" }}x{{ end }}"#)];
        pillar.reload(&config(&bao.provider(&auth), &more));
        pillar.is("waiting", &["`secret/data/other`", "403", "policies"]).await;
        pillar.leaks_none_of(&["role-s3cret", "not-the-s3cret-id", &id, ROOT]);
        pillar.stop().await;
        eventually("the tokens are gone", async || bao.tokens().await == before).await;
    })
    .await;
}

#[tokio::test]
async fn says_why_it_waits_and_goes_on_once_that_is_mended() {
    local(async {
        let (bao, folder) = (Bao::start().await, Folder::new());
        let token_file = folder.replace("token", "");
        let auth = format!("{{ token: {{ file: '{}' }} }}", token_file.display());
        let out = folder.path("out");
        let files = [file(&out, r#"{{ with secret "secret/data/late" }}{{ .Data.data.password }}{{ end }}"#)];
        let pillar = Pillar::start(&config(&bao.provider(&auth), &files));
        pillar.is("waiting", &["token file", "is empty"]).await;
        folder.replace("token", "wrong-s3cret-token");
        pillar.is("waiting", &[&bao.address, "does not accept the token", "secret/data/late", "403"]).await;
        folder.replace("token", ROOT);
        pillar.is("waiting", &["there is no secret at `secret/data/late`"]).await;
        bao.put("late", json!({ "passwrd": "late-s3cret", "user": "x" })).await;
        let out_name = out.display().to_string();
        pillar.is("waiting", &["`password`", "`secret/data/late`", "`passwrd`, `user`", &out_name, "line 1"]).await;
        assert!(!out.exists());
        bao.put("late", json!({ "password": "late-s3cret" })).await;
        pillar.is("ready", &[]).await;
        holds(&out, "late-s3cret").await;

        bao.call("DELETE", "secret/data/late", json!(null)).await;
        pillar.is("degraded", &["last good", "secret/data/late", "deleted"]).await;
        holds(&out, "late-s3cret").await;
        bao.put("late", json!({ "password": "later-s3cret" })).await;
        holds(&out, "later-s3cret").await;

        assert_eq!(bao.call("PUT", "sys/seal", json!(null)).await.0, 204);
        pillar.is("degraded", &[&bao.address, "is sealed"]).await;
        holds(&out, "later-s3cret").await;
        let sealed =
            Pillar::start(&config(&bao.provider(&token()), &[file(&folder.path("never"), r#"{{ secret "a/b" }}"#)]));
        sealed.is("waiting", &["is sealed (503)"]).await;
        sealed.stop().await;
        pillar.leaks_none_of(&["late-s3cret", "later-s3cret", "wrong-s3cret-token", ROOT]);
        pillar.stop().await;
    })
    .await;
}

#[tokio::test]
async fn waits_for_a_vault_that_is_down_and_outlives_it() {
    local(async {
        let (port, folder) = (free_port(), Folder::new());
        let address = format!("http://127.0.0.1:{port}");
        let out = folder.path("out");
        let provider =
            format!("{{ name: vault, vault: {{ address: '{address}', refresh: 100ms, auth: {} }} }}", token());
        let files = [file(&out, r#"{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}"#)];
        let pillar = Pillar::start(&config(&provider, &files));
        pillar.is("waiting", &[&format!("vault {address} refused the connection; retrying")]).await;
        let bao = Bao::start_on(port).await;
        bao.put("db", json!({ "password": "old-s3cret" })).await;
        pillar.is("ready", &[]).await;
        drop(bao);
        pillar.is("degraded", &["last good", "refused the connection"]).await;
        holds(&out, "old-s3cret").await;
        let bao = Bao::start_on(port).await;
        bao.put("db", json!({ "password": "new-s3cret" })).await;
        holds(&out, "new-s3cret").await;
        pillar.is("ready", &[]).await;
        drop(bao);
        pillar.stop().await;
    })
    .await;
}

#[tokio::test]
async fn tls_is_checked_against_the_bundle() {
    local(async {
        let folder = Folder::new();
        let bao = Bao::start_with(free_port(), Some(folder.0.path())).await;
        bao.put("db", json!({ "password": "tls-s3cret" })).await;
        let out = folder.path("out");
        let ca = folder.path("ca.pem");
        let provider = format!(
            "{{ name: vault, vault: {{ address: '{}', caFile: '{}', auth: {} }} }}",
            bao.address,
            ca.display(),
            token()
        );
        let files = [file(&out, r#"{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}"#)];
        let pillar = Pillar::start(&config(&provider, &files));
        pillar.is("waiting", &["CA bundle", "ca.pem"]).await;
        let other = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/other-ca.pem")).unwrap();
        folder.replace("ca.pem", &other);
        pillar.is("waiting", &[&bao.address, "cannot be reached", "certificate"]).await;
        folder.replace("ca.pem", &fs::read_to_string(folder.path("vault-ca.pem")).unwrap());
        pillar.is("ready", &[]).await;
        holds(&out, "tls-s3cret").await;
        pillar.stop().await;
    })
    .await;
}

// ---- the folder ----------------------------------------------------------------------

#[tokio::test]
async fn a_folder_is_followed_and_a_reload_applied() {
    local(async {
        let folder = Folder::new();
        folder.replace("in/db/creds.json", r#"{ "password": "one-s3cret" }"#);
        folder.replace("in/web.yaml", "key: web-s3cret\n");
        let (db, web) = (folder.path("db"), folder.path("web"));
        let provider = format!("{{ name: folder, file: {{ directory: '{}' }} }}", folder.path("in").display());
        let first =
            file(&db, r#"{{ with secret "db/creds" }}{{ .Data.data.password }} {{ .Data.metadata.version }}{{ end }}"#);
        let second = file(&web, r#"{{ with secret "web" }}{{ .Data.data.key }}{{ end }}"#);
        let pillar = Pillar::start(&config(&provider, std::slice::from_ref(&first)));
        pillar.is("ready", &[]).await;
        assert_eq!(fs::read_to_string(&db).unwrap(), "one-s3cret 1");
        assert_eq!(pillar.version(&db), Some(1));
        folder.replace("in/db/creds.json", r#"{ "password": "two-s3cret" }"#);
        holds(&db, "two-s3cret 2").await;
        eventually("the version follows", async || pillar.version(&db) == Some(2)).await;

        folder.replace("in/db/creds.json", r#"{ "password": "half-s3cret"#);
        pillar.is("degraded", &["creds.json", "not valid JSON at line 1"]).await;
        folder.replace("in/db/creds.json", "[1]");
        pillar.is("degraded", &["creds.json", "must hold an object"]).await;
        holds(&db, "two-s3cret 2").await;
        folder.replace("in/db/creds.json", r#"{ "password": "two-s3cret" }"#);
        pillar.is("ready", &[]).await;

        pillar.reload(&config(&provider, &[second]));
        holds(&web, "web-s3cret").await;
        assert!(db.exists(), "what the config no longer names stays where it is");
        eventually("its series goes", async || pillar.version(&db).is_none()).await;
        pillar.leaks_none_of(&["one-s3cret", "two-s3cret", "half-s3cret", "web-s3cret"]);
        pillar.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_failed_write_is_told_and_tried_again() {
    local(async {
        let folder = Folder::new();
        folder.replace("in/a.json", r#"{ "x": "s3cret", "keystore": "/u3+7QDDKAA=" }"#);
        let out = folder.path("out");
        fs::create_dir(&out).unwrap();
        let provider = format!("{{ name: folder, file: {{ directory: '{}' }} }}", folder.path("in").display());
        let (good, keystore) = (folder.path("good"), folder.path("keystore"));
        let files = [
            file(&out, r#"{{ with secret "a" }}{{ .Data.data.x }}{{ end }}"#),
            file(&good, r#"{{ with secret "a" }}{{ .Data.data.x }}{{ end }}"#),
            file(&keystore, r#"{{ with secret "a" }}{{ .Data.data.keystore | base64Decode }}{{ end }}"#),
        ];
        let pillar = Pillar::start(&config(&provider, &files));
        pillar.is("waiting", &["cannot write", &out.display().to_string(), "it is a directory"]).await;
        holds(&good, "s3cret").await;
        fs::remove_dir(&out).unwrap();
        pillar.is("ready", &[]).await;
        assert_eq!(fs::read(&keystore).unwrap(), [0xfe, 0xed, 0xfe, 0xed, 0, 0xc3, 0x28, 0], "bytes that are no text");
        pillar.stop().await;
    })
    .await;
}

#[test]
fn templates_are_checked_before_anything_runs() {
    let component = SecretsComponent::new(Resolver::from_system());
    let cases = [
        ("function", "\\n{{ secrt 1 }}", "secrets.files[0].template: line 2 of the template: unknown function `secrt`"),
        ("syntax", "{{ .x", "secrets.files[0].template: line 1 of the template: "),
        ("blocks", "{{ if true }}", "is not closed"),
    ];
    for (name, template, expected) in cases {
        let file = format!("{{ path: /tmp/x, template: \"{template}\" }}");
        let config = parse(&config("{ name: f, file: { directory: /tmp } }", &[file]));
        let error = component.check(None, &config).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

// ---- leases, from a server that lends briefly ----------------------------------------

/// A server of a few lines that lends what OpenBao lends only with a database beside it.
struct Lender {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
    mood: Arc<Mutex<&'static str>>,
}

impl Lender {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (seen, mood) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Mutex::new("well")));
        let (log, state) = (seen.clone(), mood.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|stream| answer(stream, &log, *state.lock().unwrap()));
            }
        });
        Self { address, seen, mood }
    }

    fn count(&self, what: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }
}

fn answer(mut stream: TcpStream, seen: &Mutex<Vec<String>>, mood: &str) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    let text = loop {
        let read = stream.read(&mut chunk)?;
        buffer.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&buffer).into_owned();
        let length =
            text.to_lowercase().split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let whole = text.find("\r\n\r\n").is_some_and(|head| text.len() >= head + 4 + length.unwrap_or(0));
        if whole || read == 0 {
            break text;
        }
    };
    let line = text.lines().next().unwrap_or_default().to_owned();
    let mut seen = seen.lock().unwrap();
    let reads = seen.iter().filter(|line| line.starts_with("GET /v1/database")).count();
    let (status, body) = match mood {
        "uninitialised" => (501, "{}".to_owned()),
        "standby" => {
            (if line.contains("sys/health") { 429 } else { 500 }, r#"{"errors":["local node not active"]}"#.to_owned())
        }
        "busy" => (429, r#"{"errors":["rate limit quota exceeded"]}"#.to_owned()),
        "html" => (200, "<html>portal</html>".to_owned()),
        _ if line.contains("sys/leases/renew") => {
            // Renewed in full twice, then near its end.
            let renewed = seen.iter().filter(|line| line.contains("renew ")).count();
            let duration = if renewed % 3 == 2 { 0 } else { 1 };
            (
                200,
                json!({ "lease_id": format!("lease-s3cret-{reads}"), "lease_duration": duration, "renewable": true })
                    .to_string(),
            )
        }
        _ if line.starts_with("GET /v1/database") => (
            200,
            json!({ "lease_id": format!("lease-s3cret-{}", reads + 1), "lease_duration": 1, "renewable": true,
                "data": { "username": format!("user-{}", reads + 1) } })
            .to_string(),
        ),
        _ if line.contains("lookup-self") => (200, json!({ "data": { "ttl": 0, "renewable": false } }).to_string()),
        _ => (204, String::new()),
    };
    let lease = text.split("\"lease_id\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    seen.push(format!("{line} {lease}"));
    drop(seen);
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn leases_are_renewed_replaced_and_given_back() {
    local(async {
        let (lender, folder) = (Lender::start(), Folder::new());
        let out = folder.path("out");
        let provider = format!("{{ name: vault, vault: {{ address: '{}', auth: {} }} }}", lender.address, token());
        let files = [file(&out, r#"{{ with secret "database/creds/app" }}{{ .Data.username }}{{ end }}"#)];
        *lender.mood.lock().unwrap() = "uninitialised";
        let pillar = Pillar::start(&config(&provider, &files));
        pillar.is("waiting", &["is not initialised (501)"]).await;
        *lender.mood.lock().unwrap() = "standby";
        pillar.is("waiting", &["is a standby"]).await;
        *lender.mood.lock().unwrap() = "busy";
        pillar.is("waiting", &["slow down (429): rate limit quota exceeded"]).await;
        *lender.mood.lock().unwrap() = "html";
        pillar.is("waiting", &["not Vault's JSON"]).await;
        *lender.mood.lock().unwrap() = "well";
        pillar.is("ready", &[]).await;
        holds(&out, &format!("user-{}", lender.count("GET /v1/database"))).await;
        let reads = lender.count("GET /v1/database");
        eventually("the lease is renewed", async || lender.count("leases/renew") >= 2).await;
        assert_eq!(lender.count("GET /v1/database"), reads, "renewed, not read again");
        eventually("a lease near its end is replaced", async || lender.count("GET /v1/database") > reads).await;
        eventually("the file follows", async || {
            fs::read_to_string(&out).is_ok_and(|user| user == format!("user-{}", lender.count("GET /v1/database")))
        })
        .await;
        pillar.leaks_none_of(&["lease-s3cret", ROOT]);
        pillar.stop().await;
        let held = format!("leases/revoke HTTP/1.1 lease-s3cret-{}", lender.count("GET /v1/database"));
        assert_eq!(lender.count(&held), 1, "{:?}", lender.seen.lock().unwrap());
    })
    .await;
}
