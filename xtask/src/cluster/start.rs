//! Measures how long pods take from their creation until they are ready, by how the sidecar is arranged in them.
//!
//! In: a running cluster with Outrigger's image. Out: a table. Promise: the arrangements take turns, so that whatever
//! slows the machine meets all of them; times are those of the API server's own watch, not of polling.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Cluster, output};
use crate::ui;

const NAMESPACE: &str = "pod-start";
const PATIENCE: Duration = Duration::from_secs(60);

/// A way to arrange a sidecar in a pod.
struct Arrangement {
    name: &'static str,
    containers: fn(&str) -> Vec<Value>,
}

const ARRANGEMENTS: &[Arrangement] = &[
    Arrangement { name: "no sidecar", containers: |_| Vec::new() },
    Arrangement { name: "native sidecar that does nothing", containers: |_| vec![idle()] },
    Arrangement {
        name: "init container, startup probe (the usual)",
        containers: |image| vec![init(image), with_startup_probe(sidecar(image, false))],
    },
    Arrangement {
        name: "init container, postStart",
        containers: |image| vec![init(image), with_post_start(sidecar(image, false))],
    },
    Arrangement {
        name: "own rules, startup probe",
        containers: |image| vec![with_startup_probe(sidecar(image, true))],
    },
    Arrangement { name: "own rules, postStart", containers: |image| vec![with_post_start(sidecar(image, true))] },
    Arrangement {
        name: "own rules, postStart, readiness probe",
        containers: |image| vec![with_readiness_probe(with_post_start(sidecar(image, true)))],
    },
    Arrangement { name: "no rules, postStart", containers: |image| vec![with_post_start(sidecar(image, false))] },
];

/// Measures each arrangement `runs` times.
pub(super) fn measure(cluster: &Cluster, image: &str, runs: usize) -> Result<()> {
    // What a run that was broken off left.
    let _ = output(cluster.kubectl().args(["delete", "namespace", NAMESPACE, "--ignore-not-found"]));
    output(cluster.kubectl().args(["create", "namespace", NAMESPACE]))?;
    let measured = (|| -> Result<_> {
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "outrigger" },
            "data": { "outrigger.yaml": CONFIG },
        });
        cluster.post(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps"), &config.to_string())?;
        cluster.wait("the namespace's service account", PATIENCE, || {
            cluster.ask(&format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default")).map(drop)
        })?;
        let mut times = vec![Vec::new(); ARRANGEMENTS.len()];
        // The first round finds nothing in the machine's caches, and does not count.
        for run in 0..=runs {
            for (turn, (arrangement, times)) in ARRANGEMENTS.iter().zip(&mut times).enumerate() {
                // The kubelet looks once a second at what became of its containers: pods begin at all moments of it.
                std::thread::sleep(Duration::from_secs_f64((0.618 * run as f64 + 0.37 * turn as f64).fract()));
                let took = start(cluster, image, arrangement).with_context(|| arrangement.name.to_owned())?;
                if run > 0 {
                    times.push(took);
                }
            }
            ui::note(&format!("round {run} of {runs}"));
        }
        Ok(times)
    })();
    let _ = output(cluster.kubectl().args(["delete", "namespace", NAMESPACE, "--wait=false"]));
    println!(
        "{:<46}  {:>6}  {:>5}  {:>5}",
        format!("created -> Ready, in seconds, {runs} pods each"),
        "median",
        "least",
        "most"
    );
    for (arrangement, mut times) in ARRANGEMENTS.iter().zip(measured?) {
        times.sort_unstable();
        let seconds = |index: usize| times.get(index).map_or(0.0, Duration::as_secs_f64);
        println!(
            "{:<46}  {:>6.2}  {:>5.2}  {:>5.2}",
            arrangement.name,
            seconds(times.len() / 2),
            seconds(0),
            seconds(times.len() - 1)
        );
    }
    Ok(())
}

/// Makes a pod, waits until it is ready, and removes it.
fn start(cluster: &Cluster, image: &str, arrangement: &Arrangement) -> Result<Duration> {
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let mut watch = Watch::begin(cluster, &format!("{pods}?watch=1&fieldSelector=metadata.name=pod"))?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pod" },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "initContainers": (arrangement.containers)(image),
            "containers": [{ "name": "app", "image": "localhost/app:1", "imagePullPolicy": "Never", "args": ["serve"] }],
            "volumes": [{ "name": "config", "configMap": { "name": "outrigger" } }],
        },
    });
    let begun = Instant::now();
    cluster.post(&pods, &pod.to_string())?;
    let ready = watch.find("Ready", |event| {
        let conditions = event["object"]["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
    });
    let took = begun.elapsed();
    output(cluster.kubectl().args(["--namespace", NAMESPACE, "delete", "pod", "pod", "--grace-period=0", "--force"]))?;
    watch.find("deleted", |event| event["type"] == "DELETED")?;
    ready.map(|()| took)
}

/// What the API server tells of changes.
struct Watch {
    curl: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Watch {
    fn begin(cluster: &Cluster, path: &str) -> Result<Self> {
        let mut curl = cluster.curl(path)?;
        let mut curl = curl.args(["--no-buffer", "--max-time", "120"]).stdout(Stdio::piped()).spawn()?;
        let out = curl.stdout.take().context("curl's output is ours")?;
        let (sender, lines) = std::sync::mpsc::sync_channel(64);
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { curl, lines })
    }

    fn find(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("the pod was not {what} in {} s", PATIENCE.as_secs());
            };
            if wanted(&serde_json::from_str(&line).context("a watch gives JSON")?) {
                return Ok(());
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It ends by itself otherwise.
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

const CONFIG: &str = "proxy:
  listeners:
  - { name: out, direction: outbound, address: \"0.0.0.0:15001\", protocol: auto, redirected: true }
  - { name: in, direction: inbound, address: \"0.0.0.0:15006\", protocol: auto, redirected: true }
";

fn idle() -> Value {
    json!({
        "name": "idle", "image": "localhost/app:1", "imagePullPolicy": "Never", "restartPolicy": "Always",
        "command": ["sleep", "600"],
    })
}

fn init(image: &str) -> Value {
    json!({
        "name": "outrigger-init", "image": image, "imagePullPolicy": "Never", "args": ["init"],
        "securityContext": { "runAsUser": 0, "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] } },
    })
}

fn sidecar(image: &str, own_rules: bool) -> Value {
    let run = ["run", "--config", "/etc/outrigger/outrigger.yaml"];
    let (arguments, context) = if own_rules {
        let added = ["NET_ADMIN", "SETUID", "SETPCAP"];
        let context = json!({ "runAsUser": 0, "runAsGroup": 65532, "capabilities": { "drop": ["ALL"], "add": added } });
        ([&["init", "--"], &run[..]].concat(), context)
    } else {
        (run.to_vec(), json!({ "capabilities": { "drop": ["ALL"] } }))
    };
    json!({
        "name": "outrigger", "image": image, "imagePullPolicy": "Never", "restartPolicy": "Always",
        "args": arguments, "securityContext": context,
        "volumeMounts": [{ "name": "config", "mountPath": "/etc/outrigger" }],
    })
}

fn with_startup_probe(mut sidecar: Value) -> Value {
    sidecar["startupProbe"] =
        json!({ "httpGet": { "path": "/startupz", "port": 15021 }, "periodSeconds": 1, "failureThreshold": 60 });
    sidecar
}

fn with_readiness_probe(mut sidecar: Value) -> Value {
    sidecar["readinessProbe"] = json!({ "httpGet": { "path": "/readyz", "port": 15021 }, "periodSeconds": 2 });
    sidecar
}

fn with_post_start(mut sidecar: Value) -> Value {
    sidecar["lifecycle"] = json!({ "postStart": { "exec": { "command": ["/outrigger", "wait"] } } });
    sidecar
}
