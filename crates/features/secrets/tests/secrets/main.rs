//! The component as a whole, against a real OpenBao, a folder, and a server with leases.
//!
//! Each test looks for its own secrets in all that can be seen from outside, and must not
//! find them.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

mod bao;
mod lender;
mod pillar;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use outrigger_http::Resolver;
use outrigger_runtime::Component;
use outrigger_secrets::SecretsComponent;
use serde_json::json;

use bao::{Bao, ROOT};
use lender::Lender;
use pillar::{Folder, Pillar, config, eventually, file, free_port, holds, journal, local, parse, token};

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
        eventually("the next process gets the new value", async || {
            pillar.environment.variables()[0].1.expose() == "second-s3cret"
        })
        .await;
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
        // Without `data/`: this policy denies that path before anyone sees that nothing is there.
        let short = file(&folder.path("short"), &template.replace("secret/data/db", "secret/db"));
        let files = [file(&db, template), short];
        let pillar = Pillar::start(&config(&bao.provider(&auth), &files));
        pillar.is("waiting", &["secret ID file", "secret-id", "does not exist yet"]).await;
        folder.replace("secret-id", "not-the-s3cret-id\n");
        pillar.is("waiting", &["AppRole login", "(400)", "roleId"]).await;
        folder.replace("secret-id", &format!("{id}\n"));
        pillar.is("ready", &[]).await;
        holds(&db, "role-s3cret").await;
        holds(&folder.path("short"), "role-s3cret").await;
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
        let more = [files[0].clone(), files[1].clone(), file(&other, r#"{{ with secret "secret/data/other" }}x{{ end }}"#)];
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
async fn names_are_listed_and_followed() {
    local(async {
        let (bao, folder) = (Bao::start().await, Folder::new());
        bao.put("shop/db", json!({ "key": "db-s3cret" })).await;
        bao.put("shop/web/api", json!({ "key": "api-s3cret" })).await;
        folder.replace("in/apps/db.json", r#"{ "key": "db-s3cret" }"#);
        folder.replace("in/apps/web/api.yaml", "key: api-s3cret");
        folder.replace("in/apps/notes.txt", "none of ours");
        let provider = format!("{{ name: folder, file: {{ directory: '{}' }} }}", folder.path("in").display());
        let (vault, local, meta) = (folder.path("vault"), folder.path("local"), folder.path("meta"));
        let entry = |path: &Path, provider: &str, template: &str| {
            format!("{{ path: '{}', provider: {provider}, template: '{template}' }}", path.display())
        };
        let files = [
            entry(&vault, "vault", r#"{{ range secrets "secret/shop" }}{{ . }} {{ end }}"#),
            entry(&local, "folder", r#"{{ range secrets "apps" }}{{ . }} {{ end }}"#),
            entry(&meta, "vault", r#"{{ with secret "secret/metadata/shop/db" }}{{ .Data.current_version }}{{ end }}"#),
        ];
        let pillar = Pillar::start(&config(&format!("{}, {provider}", bao.provider(&token())), &files));
        pillar.is("ready", &[]).await;
        holds(&vault, "db web/ ").await;
        holds(&local, "db web/ ").await;
        bao.put("shop/new", json!({ "key": "new-s3cret" })).await;
        holds(&vault, "db new web/ ").await;
        folder.replace("in/apps/new.json", "{}");
        holds(&local, "db new web/ ").await;
        // Also once it is known that the mount is of KV version 2.
        bao.put("shop/db", json!({ "key": "db-s3cret" })).await;
        holds(&meta, "2").await;
        pillar.leaks_none_of(&["db-s3cret", "api-s3cret", "new-s3cret", ROOT]);
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

#[tokio::test]
async fn an_operator_is_told_ages_and_no_value() {
    local(async {
        let folder = Folder::new();
        folder.replace("in/db.json", r#"{ "password": "told-s3cret", "next": "other-s3cret-path" }"#);
        folder.replace("in/other-s3cret-path.json", r#"{ "key": "deep-s3cret" }"#);
        let provider = format!("{{ name: folder, file: {{ directory: '{}' }} }}", folder.path("in").display());
        let out = folder.path("out");
        let template = r#"{{ with secret "db" }}{{ .Data.data.password }}{{ with secret .Data.data.next }}{{ .Data.data.key }}{{ end }}{{ end }}"#;
        let pillar = Pillar::start(&config(&provider, &[file(&out, template)]));
        pillar.is("ready", &[]).await;
        holds(&out, "told-s3cretdeep-s3cret").await;
        let told = pillar.told();
        let provider = &told["providers"][0];
        assert_eq!((&provider["name"], &provider["kind"], &provider["settled"]), (&json!("folder"), &json!("file"), &json!(true)));
        let output = &provider["outputs"][0];
        assert_eq!((&output["name"], &output["done"], &output["version"]), (&json!(out), &json!(true), &json!(1)));
        let changed = output["changedAt"].as_f64().unwrap();
        let paths = provider["paths"].as_array().unwrap();
        let shown: Vec<_> = paths.iter().map(|path| &path["path"]).collect();
        assert_eq!(shown, [&json!("db"), &json!(null)], "a path that a template made is not told: {told:#}");
        assert_eq!(paths[0]["usedBy"], json!([out]));
        assert!(!told.to_string().contains("s3cret"), "{told:#}");

        folder.replace("in/db.json", r#"{ "password": "new-s3cret", "next": "other-s3cret-path" }"#);
        eventually("the new version is told", async || pillar.told()["providers"][0]["outputs"][0]["version"] == 2).await;
        assert!(pillar.told()["providers"][0]["outputs"][0]["changedAt"].as_f64().unwrap() > changed);
        folder.replace("in/db.json", "{ broken");
        eventually("what is wrong is told", async || {
            let output = pillar.told()["providers"][0]["outputs"][0].clone();
            output["done"] == true && pillar.told()["providers"][0]["troubles"].as_array().is_some_and(|all| !all.is_empty())
        })
        .await;
        assert!(!pillar.told().to_string().contains("s3cret"), "{:#}", pillar.told());
        pillar.stop().await;
        assert!(!journal().lock().unwrap().contains("told-s3cret"));
    })
    .await;
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
        let path = pillar.told()["providers"][0]["paths"][0].clone();
        let (ends, read) = (path["lease"]["endsAt"].as_f64().unwrap(), path["readAt"].as_f64().unwrap());
        assert!(ends > read && path["lease"]["renewable"].is_boolean(), "{path:#}");
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

#[tokio::test]
async fn another_token_takes_out_leases_of_its_own() {
    local(async {
        let (lender, folder) = (Lender::start(), Folder::new());
        *lender.mood.lock().unwrap() = "patient";
        let (out, token) = (folder.path("out"), folder.replace("token", "first-s3cret-token"));
        let auth = format!("{{ token: {{ file: '{}' }} }}", token.display());
        let provider = format!("{{ name: vault, vault: {{ address: '{}', auth: {auth} }} }}", lender.address);
        let files = [file(&out, r#"{{ with secret "database/creds/app" }}{{ .Data.username }}{{ end }}"#)];
        let pillar = Pillar::start(&config(&provider, &files));
        holds(&out, "user-1").await;
        pillar.is("ready", &[]).await;
        folder.replace("token", "second-s3cret-token");
        holds(&out, "user-2").await;
        pillar.leaks_none_of(&["first-s3cret-token", "second-s3cret-token", "lease-s3cret"]);
        pillar.stop().await;
        assert_eq!(lender.count("revoke-self"), 0, "given tokens are not ours to revoke");
        assert_eq!(lender.count("leases/revoke HTTP/1.1 lease-s3cret-2"), 1);
    })
    .await;
}
