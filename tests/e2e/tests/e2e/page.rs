//! The page at the admin API, and the CORS filter, as a real browser sees them.
//!
//! In: Outriggers with traffic, and scripts in `tests/e2e/page` that drive Debian's Chromium. Out: what the
//! scripts demand, step by step; pictures of every view in `target/page`, to be looked at.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::{Path, PathBuf};

use outrigger_e2e::{
    Application, Authority, Namespace, free_port, identity, outrigger_command, request, run, start_outrigger, tool,
};
use serde_json::{Value, json};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/e2e lies in the repository")
}

/// Runs a script to its end; what it prints is shown when it fails.
#[track_caller]
fn browse(script: &str, given: &Value) {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let printed = run(tool("node")
        .arg(repository().join("tests/e2e/page").join(script))
        .env("OUTRIGGER_BROWSER", repository().join("target/tools/browser"))
        .env("OUTRIGGER_PICTURES", repository().join("target/page"))
        .env("OUTRIGGER_GIVEN", given.to_string())
        // Chromium keeps caches and a crash database at home.
        .env("HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .env("XDG_CACHE_HOME", folder.path()));
    println!("{}", printed.unwrap_or_else(|error| panic!("{script}: {error}")));
}

#[test]
fn the_page_shows_what_goes_on_and_why_it_fails() {
    alone(busy);
}

/// Where no other test makes and removes interfaces: whenever one does, Chromium drops what it is loading.
fn alone(test: fn()) {
    Namespace::new("browser").enter(0, test);
}

fn busy() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = Authority::new(&path("ca"));
    let own = authority.issue("own", "spiffe://shop.example/ns/shop/sa/shop");
    let front = authority.issue("front", "spiffe://shop.example/ns/web/sa/front");
    let application = Application::start();
    let (inbound, outbound, failing, dead) = (free_port(), free_port(), free_port(), free_port());
    fs::create_dir(path("store")).unwrap();
    fs::write(path("store/db.json"), r#"{ "password": "hunter2" }"#).unwrap();
    fs::write(path("app.log"), "first\nsecond\n").unwrap();
    let config = format!(
        r#"{}secrets:
  providers: [{{ name: store, file: {{ directory: "{store}" }} }}]
  files: [{{ path: "{rendered}", template: '{{{{ with secret "db" }}}}PASSWORD={{{{ .Data.data.password }}}}{{{{ end }}}}' }}]
logs:
  stateDirectory: "{state}"
  sources: [{{ name: app, file: {{ path: "{log}" }} }}]
  sinks:
    - {{ name: archive, inputs: [app], file: {{ path: "{archive}" }} }}
    - {{ name: loki, inputs: [app], http: {{ url: "http://127.0.0.1:{dead}/push", headers: {{ X-Key: t0ken1 }} }} }}
proxy:
  listeners:
    - name: in
      direction: inbound
      address: "127.0.0.1:{inbound}"
      tls: {{ mode: permissive }}
      routes:
        - {{ name: nowhere, matches: [{{ path: {{ value: /gone }} }}], backendRefs: [{{ name: gone }}] }}
        - {{ name: broken, matches: [{{ path: {{ value: /broken }} }}], backendRefs: [{{ name: broken }}] }}
        - {{ name: everything, backendRefs: [{{ name: app }}], timeouts: {{ request: 5s }} }}
    - name: out
      direction: outbound
      address: "127.0.0.1:{outbound}"
      routes: [{{ name: to-cart, hostnames: [cart], backendRefs: [{{ name: cart }}] }}]
  clusters:
    - {{ name: app, endpoints: ["{app}"] }}
    - {{ name: cart, endpoints: ["{app}"] }}
    - {{ name: gone, endpoints: ["127.0.0.1:{dead}"] }}
    - {{ name: broken, endpoints: ["127.0.0.1:{failing}"], outlierDetection: {{ consecutive5xx: 2, baseEjectionTime: 300s, maxEjectionPercent: 100 }} }}
"#,
        identity(&own, &authority),
        store = path("store").display(),
        rendered = path("db.env").display(),
        state = path("state").display(),
        log = path("app.log").display(),
        archive = path("archive.log").display(),
        app = application.address,
    );
    let outrigger = start_outrigger(folder.path(), &config);
    let peers = 3;
    for _ in 0..peers {
        // The server's certificate names no host; who it is, is not what is tested here.
        let answer = run(tool("curl")
            .args([
                "--silent",
                "--insecure",
                "--max-time",
                "20",
                "--write-out",
                "%{http_code}",
                "--output",
                "/dev/null",
            ])
            .arg("--cert")
            .arg(&front.certificate)
            .arg("--key")
            .arg(&front.key)
            .arg(format!("https://127.0.0.1:{inbound}/products")));
        assert_eq!(answer.unwrap(), "200");
    }
    browse(
        "busy.mjs",
        &json!({
            "admin": outrigger.admin, "inbound": inbound, "outbound": outbound, "failing": failing, "peers": peers,
            "pid": outrigger.process.id(), "config": outrigger.config, "executable": executable(),
        }),
    );
}

fn executable() -> PathBuf {
    outrigger_command().get_program().into()
}

#[test]
fn the_page_has_something_to_say_where_nothing_goes_on() {
    alone(quiet);
}

fn quiet() {
    let (idle, bare) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let application = Application::start();
    let with_proxy = start_outrigger(
        idle.path(),
        &format!(
            "proxy:\n  listeners: [{{ name: in, direction: inbound, address: \"127.0.0.1:{}\", routes: [{{ name: all, \
             backendRefs: [{{ name: app }}] }}] }}]\n  clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
            free_port(),
            application.address
        ),
    );
    let logs = |name: &str| bare.path().join(name).display().to_string();
    let without = start_outrigger(
        bare.path(),
        &format!(
            "logs:\n  stateDirectory: \"{}\"\n  sources: [{{ name: app, file: {{ path: \"{}\" }} }}]\n  sinks: [{{ name: \
             archive, inputs: [app], file: {{ path: \"{}\" }} }}]\n",
            logs("state"),
            logs("app.log"),
            logs("archive.log")
        ),
    );
    browse("quiet.mjs", &json!({ "idle": with_proxy.admin, "bare": without.admin }));
}

#[test]
fn the_page_is_of_use_with_a_thousand_routes() {
    alone(many);
}

fn many() {
    let folder = tempfile::tempdir().unwrap();
    let (application, port) = (Application::start(), free_port());
    let route = |host: usize, path: usize| {
        format!(
            "    - {{ name: service-{host}-{path}, hostnames: [service-{host}.bench], matches: [{{ path: {{ value: /api/resource-{path} }} }}], \
             backendRefs: [{{ name: cluster-{host} }}] }}\n"
        )
    };
    let routes: String = (0..100).flat_map(|host| (0..10).map(move |path| route(host, path))).collect();
    let cluster = |host: usize| format!("  - {{ name: cluster-{host}, endpoints: [\"{}\"] }}\n", application.address);
    let clusters: String = (0..100).map(cluster).collect();
    let listener =
        format!("  - name: out\n    direction: outbound\n    address: \"127.0.0.1:{port}\"\n    routes:\n{routes}");
    let outrigger = start_outrigger(folder.path(), &format!("proxy:\n  listeners:\n{listener}  clusters:\n{clusters}"));
    browse("many.mjs", &json!({ "admin": outrigger.admin, "port": port }));
}

#[test]
fn the_cors_filter_is_what_browsers_understand() {
    alone(cors);
}

fn cors() {
    let folder = tempfile::tempdir().unwrap();
    let application = Application::start();
    let (inbound, allowed, refused) = (free_port(), free_port(), free_port());
    let origin = format!("http://127.0.0.1:{allowed}");
    let cors = format!(
        "{{ type: CORS, cors: {{ allowOrigins: [\"{origin}\"], allowMethods: [GET, PUT], allowHeaders: [x-tenant], exposeHeaders: [x-app] }} }}"
    );
    let fields = "{ type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-app, value: shop }, { name: x-hidden, value: shop }] } }";
    let config = format!(
        r#"proxy:
  listeners:
    - name: in
      direction: inbound
      address: "127.0.0.1:{inbound}"
      routes:
        - {{ name: gone, matches: [{{ path: {{ value: /api/gone }} }}], filters: [{cors}], backendRefs: [{{ name: gone }}] }}
        - {{ name: api, matches: [{{ path: {{ value: /api }} }}], filters: [{cors}, {fields}], backendRefs: [{{ name: app }}] }}
        - {{ name: cookies, matches: [{{ path: {{ value: /cookies }} }}], filters: [{{ type: CORS, cors: {{ allowOrigins: ["{origin}"], allowCredentials: true }} }}], backendRefs: [{{ name: app }}] }}
        - {{ name: plain, backendRefs: [{{ name: app }}] }}
  clusters:
    - {{ name: app, endpoints: ["{}"] }}
    - {{ name: gone, endpoints: ["127.0.0.1:{}"] }}
"#,
        application.address,
        free_port()
    );
    let outrigger = start_outrigger(folder.path(), &config);
    let given = json!({ "admin": outrigger.admin, "inbound": inbound, "allowed": allowed, "refused": refused });
    browse("cors.mjs", &given);
    let lines: Vec<_> = application.seen().into_iter().map(|seen| seen.line).collect();
    assert!(lines.iter().any(|line| line == "PUT /api/put HTTP/1.1"), "{lines:#?}");
    for kept_out in ["OPTIONS", "DELETE", "/api/field", "/api/refused"] {
        assert!(!lines.iter().any(|line| line.contains(kept_out)), "{kept_out} reached the application: {lines:#?}");
    }
}

#[test]
fn its_files_are_sent_as_they_should_be() {
    let folder = tempfile::tempdir().unwrap();
    let outrigger = start_outrigger(folder.path(), "");
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        request(method, &format!("{}{path}", outrigger.admin), headers, "").expect("it answers")
    };
    let page = ask("GET", "/ui/", &[]);
    let policy = page.header("content-security-policy").expect("a policy");
    for part in
        ["default-src 'none'", "script-src 'self'", "form-action 'none'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let tag = page.header("etag").expect("a tag").to_owned();
    let again = ask("GET", "/ui/", &[("if-none-match", &tag)]);
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    let head = ask("HEAD", "/ui/main.js", &[]);
    assert_eq!(
        (head.status, head.body.as_str(), head.header("content-type")),
        (200, "", Some("text/javascript; charset=utf-8"))
    );
    assert!(
        head.header("content-length").and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > 1000)
    );
    assert_eq!(ask("POST", "/ui/", &[]).status, 405, "it changes nothing");
    assert_eq!(ask("GET", "/ui/nothing.js", &[]).status, 404);
    let bare = ask("GET", "/ui", &[]);
    assert_eq!((bare.status, bare.header("location")), (308, Some("ui/")));

    let browser = ask("GET", "/", &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")]);
    assert_eq!((browser.status, browser.header("location")), (307, Some("ui/")));
    let script = ask("GET", "/", &[]);
    assert!(
        script.status == 200 && script.body.contains("/ui/") && !script.body.contains("main.js"),
        "{}",
        script.body
    );
    let rebound = ask("GET", "/ui/", &[("host", "evil.example")]);
    assert_eq!(rebound.status, 403, "another name that leads here");

    outrigger.write_config("");
    let text = fs::read_to_string(&outrigger.config).unwrap();
    fs::write(&outrigger.config, text.replace("admin: {", "admin: { page: false,")).unwrap();
    outrigger_e2e::eventually("the page to be off", || {
        anyhow::ensure!(ask("GET", "/ui/", &[]).status == 404, "it is there");
        Ok(())
    });
    assert_eq!(ask("GET", "/", &[("accept", "text/html")]).status, 200, "the index is there without it");
}
