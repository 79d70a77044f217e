//! `outrigger fleet`: a cluster's sidecars, one line each.
//!
//! In: the pods that the API server tells of, and what their sidecars answer through it at their metrics' port. Out: a
//! table, or JSON. Promise: what could not be learned is shown as unknown, never guessed; one that does not answer holds up
//! nobody for longer than its time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use outrigger_kubernetes::resources::PODS;
use outrigger_kubernetes::{Client, Selection};
use outrigger_rollout::{Moment, Pod};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::cli::Format;
use crate::output;
use crate::table::{Align, Table, seconds};
use crate::upgrade::{ClusterArgs, run};

pub(crate) const HELP: &str = "\
State is the kubelet's word (running, or why not), health the pod's. Version, config generation and the end of the identity come from
the sidecar itself, at port 15020 through the API server, which needs the right `get pods/proxy`; `-` where that is not to be had.

Examples:
  outrigger fleet -n shop
  outrigger fleet --format json | jq '.sidecars[] | select(.ready | not) | .pod'

Exit codes:
  0  success
  1  the cluster cannot be asked
  2  the command line is wrong";

/// Sidecars that are asked at once.
const AT_ONCE: usize = 16;
/// A sidecar that takes longer is not known.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    /// Only this namespace; default: all
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only pods that this selects, such as `app=web`
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "")]
    selector: String,
    /// Do not ask the sidecars, only the API server
    #[arg(long)]
    quick: bool,
    /// `text` is a table
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What a sidecar tells of itself.
#[derive(Debug, Default, PartialEq)]
struct Told {
    version: Option<String>,
    generation: Option<u64>,
    reload_failed: bool,
    identity_until: Option<u64>,
    /// Components that are not ready.
    waiting: Vec<String>,
}

/// Lists sidecars.
pub(crate) fn fleet(args: &FleetArgs) -> anyhow::Result<u8> {
    let (client, _) = args.cluster.client()?;
    let (fleet, now) = run(async {
        let path = args.namespace.as_deref().map_or(PODS.all(), |namespace| PODS.within(namespace));
        let mut pods = Vec::new();
        // Pods with large objects are many: of each, little is kept.
        let keep = |pod: Value| pods.extend(Pod::read(&pod));
        client.each(path, &Selection::labels(args.selector.as_str()), || {}, keep).await?;
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let ask = |pod: Pod| {
            let client = &client;
            async move {
                let told = if args.quick { None } else { told(client, &pod).await };
                (pod, told)
            }
        };
        let fleet: Vec<(Pod, Option<Told>)> = stream::iter(pods).map(ask).buffered(AT_ONCE).collect().await;
        Ok((fleet, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()))
    })?;
    match args.format {
        Format::Json => {
            let sidecars: Vec<Value> = fleet.iter().map(|(pod, told)| sidecar(pod, told.as_ref())).collect();
            output::print(&format!("{:#}\n", json!({ "sidecars": sidecars })))?;
        }
        Format::Text if fleet.is_empty() => output::print("no pod has a sidecar here\n")?,
        Format::Text => output::print(&text(&fleet, now))?,
    }
    Ok(0)
}

async fn told(client: &Client, pod: &Pod) -> Option<Told> {
    pod.sidecar.state.running?;
    let place = format!("{}:15020", pod.name);
    let path = PODS.named(&pod.namespace, &place).part("proxy/metrics");
    let metrics = timeout(PATIENCE, client.text(path)).await.ok()?.ok()?;
    Some(read(&metrics))
}

/// Reads what matters of Prometheus' text format.
fn read(metrics: &str) -> Told {
    let mut told = Told::default();
    for line in metrics.lines().filter(|line| line.starts_with("outrigger_")) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let label = |key: &str| {
            let rest = labels.split_once(&format!("{key}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let number = value.parse::<f64>().ok().filter(|value| *value >= 0.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times and counts are far below")]
        let whole = number.map(|number| number as u64);
        match name {
            "outrigger_build_info" => told.version = label("version"),
            "outrigger_config_generation" => told.generation = whole,
            "outrigger_config_last_reload_successful" => told.reload_failed = whole == Some(0),
            // The first one to end matters.
            "outrigger_identity_not_after_timestamp_seconds" => {
                told.identity_until = whole.filter(|at| *at > 0).into_iter().chain(told.identity_until).min();
            }
            "outrigger_component_ready" if whole == Some(0) => told.waiting.extend(label("component")),
            _ => {}
        }
    }
    told
}

fn state(pod: &Pod) -> String {
    let state = &pod.sidecar.state;
    match (&state.waiting, state.running) {
        (Some((reason, _)), _) => reason.clone(),
        (None, Some(_)) if state.ready => "ready".to_owned(),
        (None, Some(_)) => "running".to_owned(),
        (None, None) => "unknown".to_owned(),
    }
}

fn health(pod: &Pod, told: Option<&Told>) -> String {
    let mut problems = Vec::new();
    if let Some(record) = pod.record.as_ref().filter(|record| record.is_under_way()) {
        problems.push(format!("on its way to {}", record.goal()));
    }
    if !pod.ready {
        problems.push("pod not ready".to_owned());
    }
    if let Some(told) = told {
        problems.extend(told.waiting.iter().map(|component| format!("{component} not ready")));
        problems.extend(told.reload_failed.then(|| "last config refused".to_owned()));
    }
    if problems.is_empty() { "ok".to_owned() } else { problems.join(", ") }
}

fn sidecar(pod: &Pod, told: Option<&Told>) -> Value {
    json!({
        "namespace": pod.namespace,
        "pod": pod.name,
        "workload": pod.workload,
        "image": pod.sidecar.image,
        "state": state(pod),
        "ready": pod.ready,
        "restarts": pod.sidecar.state.restarts,
        "startedAt": pod.sidecar.state.running,
        "canHandOver": pod.socket.is_some(),
        "version": told.and_then(|told| told.version.clone()),
        "configGeneration": told.and_then(|told| told.generation),
        "identityNotAfter": told.and_then(|told| told.identity_until).map(Moment),
        "health": health(pod, told),
    })
}

fn text(fleet: &[(Pod, Option<Told>)], now: u64) -> String {
    let mut table = Table::new(&[
        ("NAMESPACE", Align::Left),
        ("POD", Align::Left),
        ("IMAGE", Align::Left),
        ("VERSION", Align::Left),
        ("STATE", Align::Left),
        ("RESTARTS", Align::Right),
        ("SINCE", Align::Right),
        ("CONFIG", Align::Right),
        ("IDENTITY", Align::Right),
        ("HEALTH", Align::Left),
    ]);
    let unknown = || "-".to_owned();
    #[expect(clippy::cast_precision_loss, reason = "shown in three digits")]
    let time = |time: u64| seconds(time as f64);
    for (pod, told) in fleet {
        let told = told.as_ref();
        let identity = told.and_then(|told| told.identity_until).map(|until| match until.checked_sub(now) {
            Some(left) => time(left),
            None => "ended".to_owned(),
        });
        table.row(vec![
            pod.namespace.clone(),
            pod.name.clone(),
            pod.sidecar.image.clone(),
            told.and_then(|told| told.version.clone()).unwrap_or_else(unknown),
            state(pod),
            pod.sidecar.state.restarts.to_string(),
            pod.sidecar.state.running.map_or_else(unknown, |since| time(since.age(Moment(now)))),
            told.and_then(|told| told.generation).map_or_else(unknown, |generation| generation.to_string()),
            identity.unwrap_or_else(unknown),
            health(pod, told),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sidecar_tells() {
        let metrics = "# HELP outrigger_build_info x\noutrigger_build_info{version=\"0.2.0\",rustc=\"1\"} 1\n\
            outrigger_config_generation 3\noutrigger_config_last_reload_successful 0\n\
            outrigger_identity_not_after_timestamp_seconds{svid=\"a\"} 1.7e9\n\
            outrigger_component_ready{component=\"proxy\"} 1\noutrigger_component_ready{component=\"logs\"} 0\nup 1\n";
        let expected = Told {
            version: Some("0.2.0".to_owned()),
            generation: Some(3),
            reload_failed: true,
            identity_until: Some(1_700_000_000),
            waiting: vec!["logs".to_owned()],
        };
        assert_eq!(read(metrics), expected);
        assert_eq!(read("nonsense"), Told::default(), "who tells nothing is not known");
    }
}
