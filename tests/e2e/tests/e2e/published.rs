//! What is published for others to use: the dashboard and the rules ask for metrics that there are.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use outrigger_e2e::{Application, Prometheus, eventually, free_port, request, run, start_outrigger, tool};
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// Names of our metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("outrigger_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// All sources of the product as one text.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn rules_are_right_and_fire_when_they_should() {
    let folder = deploy().join("prometheus");
    run(tool("promtool").args(["check", "rules"]).arg(folder.join("outrigger-rules.yaml"))).unwrap();
    run(tool("promtool").args(["test", "rules"]).arg(folder.join("outrigger-rules.test.yaml"))).unwrap();
}

#[test]
fn dashboard_and_rules_ask_for_metrics_that_there_are() {
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates"), &mut text);
    let dashboard = fs::read_to_string(deploy().join("grafana/outrigger.json")).unwrap();
    let rules = fs::read_to_string(deploy().join("prometheus/outrigger-rules.yaml")).unwrap();
    let asked: BTreeSet<_> = metrics(&dashboard).union(&metrics(&rules)).cloned().collect();
    assert!(asked.len() > 20, "{asked:?}");
    for name in asked {
        let base = name.strip_suffix("_bucket").unwrap_or(&name);
        assert!(text.contains(&format!("\"{base}\"")), "{name} is no metric of ours");
    }
}

#[test]
fn prometheus_understands_every_panel() {
    let folder = tempfile::tempdir().unwrap();
    let (application, listen) = (Application::start(), free_port());
    let outrigger = start_outrigger(
        folder.path(),
        &format!(
            r#"proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:{listen}", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}
  clusters:
    - {{ name: app, endpoints: ["{}"] }}
"#,
            application.address
        ),
    );
    request("GET", &format!("http://127.0.0.1:{listen}/"), &[], "").unwrap().ok().unwrap();
    let prometheus = Prometheus::start(folder.path(), outrigger.admin.trim_start_matches("http://"));
    let text = fs::read_to_string(deploy().join("grafana/outrigger.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    // What Grafana puts in.
    let filled = |expression: String| {
        expression
            .replace("namespace=~\"$namespace\", pod=~\"$pod\"", "job=\"outrigger\"")
            .replace("$__rate_interval", "1m")
            .replace("on (namespace, pod)", "on (job)")
    };
    let all: Vec<_> = expressions(&dashboard).into_iter().map(filled).collect();
    assert!(all.len() > 20 && all.iter().all(|one| !one.contains('$')), "{all:#?}");
    for expression in &all {
        prometheus.parse(expression).unwrap_or_else(|error| panic!("{expression}: {error:#}"));
    }
    let memory = all.iter().find(|one| one.starts_with("process_resident_memory_bytes")).unwrap();
    let bytes = eventually("memory", || prometheus.query(memory));
    assert!(bytes > 1e6, "{bytes}");
}
