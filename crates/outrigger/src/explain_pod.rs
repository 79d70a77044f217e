//! `outrigger explain pod`: why a pod's sidecar is as it is.
//!
//! In: a pod's name, what the API server knows. Out: each value with its origin, for people or as JSON. Promise: nothing is
//! changed; what may not be read is told, and no answer is given that would need it. The work is in `outrigger-inject`.

use std::fmt::Write;

use anyhow::{Context, bail};
use clap::Args;
use outrigger_inject::{Explained, Namespace, Outcome, Profile, ProfileKind, Row, explain};
use outrigger_kubernetes::resources::{CLUSTER_SIDECAR_PROFILES, CONFIG_MAPS, NAMESPACES, PODS, SIDECAR_PROFILES};
use outrigger_kubernetes::{ApiError, Client, Path, Selection, names};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::controller::installed;
use crate::output;
use crate::table::{Align, Table, shown};
use crate::upgrade::{ClusterArgs, run as block_on};

pub(crate) const HELP: &str = "\
The API server is asked for the pod, its namespace, the profiles (SidecarProfile, ClusterSidecarProfile) and the installation's
own, and the pod is injected anew by the very code that injects it, but for nobody: what comes out is told, value by value, with
who says so. What the pod has otherwise is listed at the end, such as a profile that was changed since. Secrets are masked.

Examples:
  outrigger explain pod web-0 -n shop
  outrigger explain pod web-0 -n shop --format json | jq '.config[] | select(.path == \"telemetry.log.level\")'

Exit codes:
  0  the pod has what it should have; one that is to have no sidecar, too
  1  the cluster cannot be asked, or there is no such pod
  2  the command line is wrong
  3  the pod has something else, or would be refused now";

#[derive(Debug, Args)]
pub(crate) struct PodArgs {
    /// The pod
    name: String,
    /// Its namespace; default: that of the context
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// The controllers' namespace
    #[arg(long, value_name = "NAME", default_value = names::NAMESPACE)]
    system_namespace: String,
    /// Show defaults, too
    #[arg(long)]
    all: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What the cluster knows of a pod.
struct Facts {
    pod: Value,
    namespace: Namespace,
    installation: Option<String>,
    profiles: Vec<Profile>,
    notes: Vec<String>,
}

/// Explains a pod.
pub(crate) fn run(args: &PodArgs) -> anyhow::Result<u8> {
    let (client, home) = args.cluster.client()?;
    let namespace = args.namespace.clone().unwrap_or(home);
    let facts = block_on(facts(&client, &namespace, args))?;
    let never = [args.system_namespace.clone()];
    let settings = installed(facts.installation.as_deref(), &never)
        .map_err(|problem| anyhow::anyhow!("the installation's profile is wrong: {problem}"))?;
    let told = explain(&facts.pod, &facts.namespace, &settings, &facts.profiles);
    match args.format {
        Format::Json => output::print(&format!("{:#}\n", as_json(&told, &namespace, &args.name, &facts.notes)))?,
        Format::Text => output::print(&text(&told, &namespace, args, &facts.notes, output::stdout_takes_colour()))?,
    }
    let well = told.differences.is_empty() && !matches!(told.outcome, Outcome::Refused(_));
    Ok(if well { 0 } else { 3 })
}

async fn facts(client: &Client, namespace: &str, args: &PodArgs) -> anyhow::Result<Facts> {
    let pod = client.find(PODS.named(namespace, &args.name)).await?;
    let pod = pod.with_context(|| {
        format!("there is no pod `{}` in the namespace `{namespace}`; `outrigger fleet -n {namespace}` lists those with a sidecar", args.name)
    })?;
    let labels = match client.find(NAMESPACES.global(namespace)).await? {
        Some(found) => serde_json::from_value(found["metadata"]["labels"].clone()).unwrap_or_default(),
        None => Default::default(),
    };
    let mut notes = Vec::new();
    let map = client.find(CONFIG_MAPS.named(&args.system_namespace, names::CONTROLLER)).await?;
    let installation = map.as_ref().and_then(|map| map["data"]["profile.yaml"].as_str()).map(str::to_owned);
    if installation.is_none() {
        let (name, place) = (names::CONTROLLER, &args.system_namespace);
        notes.push(format!("there is no ConfigMap `{name}` with a profile in `{place}` (--system-namespace), so the installation's profile is taken for the defaults"));
    }
    let mut profiles = Vec::new();
    for (kind, path) in [
        (ProfileKind::Cluster, CLUSTER_SIDECAR_PROFILES.all()),
        (ProfileKind::Namespaced, SIDECAR_PROFILES.within(namespace)),
    ] {
        match listed(client, path).await {
            Ok(Some(objects)) => profiles.extend(objects.iter().map(|object| Profile::of(kind, object))),
            Ok(None) => {
                notes.push(format!("the cluster knows no {}; `outrigger install` brings its definition", kind.name()))
            }
            Err(error) => bail!(error),
        }
    }
    profiles.sort_by(Profile::rank);
    Ok(Facts { pod, namespace: Namespace { name: namespace.to_owned(), labels }, installation, profiles, notes })
}

/// `None` where the kind is not known.
async fn listed(client: &Client, path: Path<'_>) -> Result<Option<Vec<Value>>, ApiError> {
    match client.list(path, &Selection::default()).await {
        Ok(objects) => Ok(Some(objects)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn verdict(told: &Explained) -> (&'static str, Vec<String>) {
    match &told.outcome {
        Outcome::Injected(_) if told.differences.is_empty() => ("it has what it should have", Vec::new()),
        Outcome::Injected(_) => ("it has something else", told.differences.clone()),
        Outcome::Left(_) if !told.differences.is_empty() => ("it has something else", told.differences.clone()),
        Outcome::Left(why) => ("it is to have no sidecar", vec![why.clone()]),
        Outcome::Refused(problems) => ("it would be refused", problems.clone()),
    }
}

fn as_json(told: &Explained, namespace: &str, pod: &str, notes: &[String]) -> Value {
    let rows = |rows: &[Row]| -> Value {
        rows.iter().map(|row| json!({ "path": row.place(), "value": row.value, "origin": *row.origin })).collect()
    };
    let outcome = match &told.outcome {
        Outcome::Injected(_) => "injected",
        Outcome::Left(_) => "left",
        Outcome::Refused(_) => "refused",
    };
    let passed_over = told.passed_over.iter().map(|(profile, why)| json!({ "profile": profile, "reason": why }));
    json!({
        "namespace": namespace,
        "pod": pod,
        "hasSidecar": told.has_sidecar,
        "outcome": outcome,
        "reasons": match &told.outcome {
            Outcome::Injected(_) => json!([]),
            Outcome::Left(why) => json!([why]),
            Outcome::Refused(problems) => json!(problems),
        },
        "profiles": told.counted,
        "passedOver": passed_over.collect::<Value>(),
        "injection": rows(&told.injection),
        "config": rows(&told.config),
        "differences": told.differences,
        "notes": notes,
    })
}

fn text(told: &Explained, namespace: &str, args: &PodArgs, notes: &[String], colour: bool) -> String {
    let (bold, plain) = if colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let (verdict, why) = verdict(told);
    let mut text = format!("{bold}pod {namespace}/{}{plain}: {verdict}\n", shown(&args.name));
    for line in &why {
        let _ = writeln!(text, "  {}", shown(line));
    }
    for note in notes {
        let _ = writeln!(text, "note: {}", shown(note));
    }
    if !told.counted.is_empty() || !told.passed_over.is_empty() {
        let _ = writeln!(text, "\n{bold}profiles{plain}, each over the one before");
        told.counted.iter().for_each(|profile| {
            let _ = writeln!(text, "  + {}", shown(profile));
        });
        told.passed_over.iter().for_each(|(profile, why)| {
            let _ = writeln!(text, "  - {}: {}", shown(profile), shown(why));
        });
    }
    for (title, rows) in [("injection", &told.injection), ("config", &told.config)] {
        let mut table = Table::new(&[("PATH", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left)]);
        let (mut some, mut hidden) = (false, 0);
        for row in rows {
            if title == "injection" && !args.all && &*row.origin == "default" {
                hidden += 1;
                continue;
            }
            some = true;
            let value = match &row.value {
                Value::String(text) => text.replace('\n', "⏎"),
                other => other.to_string(),
            };
            table.row(vec![row.place(), cut(value), row.origin.to_string()]);
        }
        if some {
            let _ = write!(text, "\n{bold}{title}{plain}\n{}", table.text());
        }
        if hidden > 0 {
            let _ = writeln!(text, "{}{hidden} more by default (--all)", if some { "" } else { "\ninjection: " });
        }
    }
    text
}

/// A value that leaves room for where it is from.
fn cut(value: String) -> String {
    const LONGEST: usize = 60;
    if value.chars().count() <= LONGEST {
        return value;
    }
    value.chars().take(LONGEST - 1).chain(['…']).collect()
}
