//! The access log in the operator's own format, as it stands in the file.

use std::path::Path;

use anyhow::ensure;
use outrigger_e2e::{Application, Collector, Mood, Outrigger, eventually, free_port, request, start_outrigger};

struct Logged {
    outrigger: Outrigger,
    _application: Application,
    listen: u16,
}

fn start(folder: &Path, format: &str) -> Logged {
    let (application, listen) = (Application::start(), free_port());
    let config = format!(
        r#"proxy:
  listeners:
    - name: in
      direction: inbound
      address: "127.0.0.1:{listen}"
      forwarded: {{ reason: true }}
      routes: [{{ name: all, backendRefs: [{{ name: app }}] }}, {{ name: down, matches: [{{ path: {{ value: /down }} }}], backendRefs: [{{ name: gone }}] }}]
  clusters:
    - {{ name: app, endpoints: ["{}"] }}
    - {{ name: gone, endpoints: ["127.0.0.1:{}"] }}
  accessLog:
    path: {}
{format}
"#,
        application.address,
        free_port(),
        folder.join("access.log").display()
    );
    Logged { outrigger: start_outrigger(folder, &config), _application: application, listen }
}

impl Logged {
    fn get(&self, path: &str, headers: &[(&str, &str)]) -> outrigger_e2e::Response {
        request("GET", &format!("http://127.0.0.1:{}{path}", self.listen), headers, "").expect("an answer")
    }

    /// All lines, once there are so many.
    fn lines(&self, count: usize) -> Vec<String> {
        let file = self.outrigger.config.with_file_name("access.log");
        eventually("the lines", || {
            let text = std::fs::read_to_string(&file)?;
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            ensure!(lines.len() >= count, "{text}");
            Ok(lines)
        })
    }
}

#[test]
fn a_text_format_and_a_filter_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let format = r#"    filter: "response.code >= 500 || request.headers['x-debug'] == 'yes'"
    text: '%REQ(:METHOD)% %REQ(:PATH)% %PATH% %RESPONSE_CODE% %RESPONSE_FLAGS% "%REQ(X-NONE?USER-AGENT)%" %RESP(CONTENT-TYPE):10% %RESP(X-OUTRIGGER-REASON)% %UPSTREAM_CLUSTER%'"#;
    let logged = start(folder.path(), format);
    assert_eq!(logged.get("/untold", &[]).status, 200);
    assert_eq!(logged.get("/told?a=b", &[("x-debug", "yes"), ("user-agent", "one")]).status, 200);
    let refused = logged.get("/down", &[]);
    assert_eq!((refused.status, refused.header("x-outrigger-reason")), (503, Some("UF")));
    let mut lines = logged.lines(2);
    // Each worker hands over its own.
    lines.sort();
    assert_eq!(lines[0], "GET /down /down 503 UF \"-\" text/plain UF gone");
    assert_eq!(lines[1], "GET /told?a=b /told 200 - \"one\" text/plain - app");
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn json_members_are_those_of_the_config_and_a_reload_changes_them() {
    let folder = tempfile::tempdir().unwrap();
    let format = r#"    json: { status: "%RESPONSE_CODE%", took: "%DURATION%", who: "%REQ(USER-AGENT)%", peer: "%DOWNSTREAM_PEER_URI_SAN%", what: "%REQ(:METHOD)% %PATH%" }"#;
    let logged = start(folder.path(), format);
    assert_eq!(logged.get("/a", &[("user-agent", "a\"b")]).status, 200);
    let line: serde_json::Value = serde_json::from_str(&logged.lines(1)[0]).unwrap();
    assert_eq!((&line["status"], &line["who"], &line["what"]), (&200.into(), &"a\"b".into(), &"GET /a".into()));
    assert!(line["took"].is_u64() && line["peer"].is_null(), "{line}");
    let members = line.as_object().map_or(0, serde_json::Map::len);
    assert_eq!(members, 5, "{line}");

    let config = std::fs::read_to_string(&logged.outrigger.config).unwrap();
    let proxy = &config[config.find("proxy:").unwrap()..];
    logged.outrigger.write_config(&proxy.replace(format, "    text: 'only %RESPONSE_CODE%'"));
    eventually("the new format", || {
        let _ = logged.get("/b", &[]);
        let lines = logged.lines(1);
        ensure!(lines.iter().any(|line| line == "only 200"), "{lines:?}");
        Ok(())
    });
}

#[test]
fn requests_go_straight_to_a_sink_of_the_logs() {
    let folder = tempfile::tempdir().unwrap();
    let (application, listen, sink) = (Application::start(), free_port(), free_port());
    let collector = Collector::start_on(sink, Mood::Takes);
    let config = format!(
        r#"proxy:
  listeners: [{{ name: in, direction: inbound, address: "127.0.0.1:{listen}", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}, {{ name: down, matches: [{{ path: {{ value: /down }} }}], backendRefs: [{{ name: gone }}] }}] }}]
  clusters: [{{ name: app, endpoints: ["{}"] }}, {{ name: gone, endpoints: ["127.0.0.1:{}"] }}]
  accessLog: {{ filter: "response.code < 400" }}
logs:
  stateDirectory: {}
  sources: [{{ name: requests, accessLog: {{}} }}]
  transforms: [{{ name: parsed, inputs: [requests], json: {{}} }}]
  sinks:
    - {{ name: out, inputs: [parsed], batch: {{ timeout: 20ms }}, http: {{ url: "http://127.0.0.1:{sink}/" }} }}
"#,
        application.address,
        free_port(),
        folder.path().join("state").display(),
    );
    let mut outrigger = start_outrigger(folder.path(), &config);
    let get = |path: &str| request("GET", &format!("http://127.0.0.1:{listen}{path}"), &[], "").unwrap();
    assert_eq!(get("/orders").status, 200);
    let line = eventually("the line", || {
        let lines = collector.lines();
        ensure!(lines.len() == 1, "{lines:?}");
        Ok(serde_json::from_str::<serde_json::Value>(&lines[0])?)
    });
    assert_eq!(
        (&line["path"], &line["code"], &line["route"]),
        (&"/orders".into(), &200.into(), &"all".into()),
        "{line:#}"
    );
    assert_eq!((&line["outrigger"]["source"], &line["outrigger"]["file"]), (&"requests".into(), &"accessLog".into()));
    assert!(!outrigger.process.log().contains("/orders"), "it does not go to standard output, too");
    // The view of logs tells of it as of a file's.
    eventually("the source in the view of logs", || {
        let told: serde_json::Value = serde_json::from_str(&outrigger.get("/logs")?.ok()?)?;
        let source = &told["sources"][0];
        let (name, kind) = (&source["name"], &source["kind"]);
        ensure!((name, kind) == (&"requests".into(), &"accessLog".into()), "{told:#}");
        ensure!(source["lines"].as_f64() == Some(1.0) && source["waitingBytes"] == 0, "{told:#}");
        Ok(())
    });
    // The filter holds, and what was answered just before the stop is delivered.
    assert_eq!(get("/down/refused").status, 503);
    outrigger.write_config(&config.replace("response.code < 400", "response.code > 400"));
    eventually("the new filter", || {
        get("/down/late");
        ensure!(collector.lines().iter().any(|line| line.contains("/late")), "not yet");
        Ok(())
    });
    assert_eq!(get("/down/last").status, 503);
    outrigger.process.stop();
    let lines = collector.lines();
    assert!(lines.iter().any(|line| line.contains("/last")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("/refused")), "{lines:?}");
}
