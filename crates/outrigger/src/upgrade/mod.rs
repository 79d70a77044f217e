//! `outrigger upgrade`: makes a `SidecarRollout`, changes it, and shows how it goes.
//!
//! In: flags, a kubeconfig. Out: a resource that the controller follows, a bar or lines, an exit code. Promise: nothing of
//! a rollout depends on this command: who ends it ends the watching alone.

mod progress;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use outrigger_http::Resolver;
use outrigger_kubernetes::definitions::ROLLOUTS;
use outrigger_kubernetes::{Access, ApiError, Client, Options, Patch, Selection, Write};
use outrigger_rollout::{HandOver, OnFailure, Phase, Share, Spec, Status};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::cli::Format;
use progress::Progress;

pub(crate) const HELP: &str = "\
Pods keep running, and so do their applications: only the sidecar's container is replaced, and a keeper holds its sockets
meanwhile. The first pod goes alone, then the canaries, then all others, never more of a workload than --max-unavailable. A pod
whose next sidecar is not well stops it, and all go back (--on-failure). New pods get the image of the profile: change that, too.

The controller does it (`outrigger controller`); this command may be ended at any time. The same can be had by
`kubectl apply` of a SidecarRollout.

Examples:
  outrigger upgrade --image registry.example/outrigger:0.2.0 --canary 5% --all-namespaces --wait
  outrigger upgrade --image registry.example/outrigger:0.2.0 -n shop -n payments
  outrigger upgrade status --wait
  outrigger upgrade rollback --wait

Exit codes:
  0  finished (`rollback`: all are back), or on its way where nobody waits
  1  the cluster cannot be asked, nobody took it up, or a pod could not be brought back
  2  the command line is wrong
  3  paused
  4  rolled back";

/// Whoever takes a rollout up does so within this time.
const TAKEN_UP: Duration = Duration::from_secs(20);
/// How often the resource is looked at.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct UpgradeArgs {
    #[command(subcommand)]
    command: Option<UpgradeCommand>,
    #[command(flatten)]
    start: StartArgs,
}

#[derive(Debug, Subcommand)]
enum UpgradeCommand {
    /// Begin no further pod
    Pause(NamedArgs),
    /// Go on, also after a failure that paused
    Resume(NamedArgs),
    /// Take all pods back to the images they had
    Rollback(NamedArgs),
    /// Show how it goes
    Status(NamedArgs),
    /// What an installation does now
    #[command(hide = true)]
    Setup {
        /// Whatever it was called with.
        #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// Which cluster is asked.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// A kubeconfig; default: as kubectl finds it
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

#[derive(Debug, Args)]
struct NamedArgs {
    /// The rollout; default: the newest
    name: Option<String>,
    /// Show how it goes until it ends or pauses
    #[arg(long)]
    wait: bool,
    /// `text` is a bar on a terminal, lines elsewhere
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Args)]
struct StartArgs {
    /// The sidecar's next image
    #[arg(long, value_name = "IMAGE", required = true)]
    image: Option<String>,
    /// Pods that go before all others: a share of all, or a number
    #[arg(long, value_name = "SHARE", default_value = "5%")]
    canary: Share,
    /// How long the canaries are looked at
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::cli::duration)]
    canary_time: Duration,
    /// Pods of a workload that may be on their way, or not ready, at once: a share of it, or a number
    #[arg(long, value_name = "SHARE", default_value = "1")]
    max_unavailable: Share,
    /// Pods on their way at once, of all workloads
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    parallel: u32,
    /// A namespace; several go one after the other. Default: that of the context
    #[arg(short, long = "namespace", value_name = "NAME", conflicts_with = "all_namespaces")]
    namespace: Vec<String>,
    /// All namespaces, by name
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only pods with this label
    #[arg(short = 'l', long, value_name = "KEY=VALUE", value_parser = label)]
    selector: Vec<(String, String)>,
    /// Time for a pod's keeper to start, and for its next sidecar to be ready
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = crate::cli::duration)]
    deadline: Duration,
    /// How long a next sidecar must have run before it counts as well
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = crate::cli::duration)]
    min_ready: Duration,
    /// What becomes of everything when one pod fails
    #[arg(long, value_enum, default_value_t = Fallback::RollBack)]
    on_failure: Fallback,
    /// Change pods, too, whose sidecar cannot hand its sockets over; they refuse connections meanwhile
    #[arg(long)]
    without_hand_over: bool,
    /// Show how it goes until it ends or pauses
    #[arg(long)]
    wait: bool,
    /// `text` is a bar on a terminal, lines elsewhere
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fallback {
    /// All go back to the images they had
    RollBack,
    /// No further pod
    Pause,
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "write `app=web`".to_owned())
}

/// Does what is asked for; gives the exit code.
pub(crate) fn upgrade(args: UpgradeArgs) -> anyhow::Result<u8> {
    if let Some(UpgradeCommand::Setup { .. }) = args.command {
        crate::output::error(&anyhow::anyhow!(
            "there is no `upgrade setup` any more: what rollouts need comes with the installation, `outrigger install | kubectl apply -f -`"
        ));
        return Ok(2);
    }
    let work = async {
        match args.command {
            None | Some(UpgradeCommand::Setup { .. }) => start(args.start).await,
            Some(UpgradeCommand::Pause(args)) => change(args, "pause").await,
            Some(UpgradeCommand::Resume(args)) => change(args, "resume").await,
            Some(UpgradeCommand::Rollback(args)) => change(args, "rollback").await,
            Some(UpgradeCommand::Status(args)) => change(args, "status").await,
        }
    };
    run(work)
}

/// Runs what asks a cluster.
pub(crate) fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?.block_on(work)
}

impl ClusterArgs {
    /// How the cluster is asked, and the namespace that is meant when none is named.
    pub(crate) fn client(&self) -> anyhow::Result<(Client, String)> {
        let access = Access::find(self.kubeconfig.as_deref(), self.context.as_deref())?;
        let namespace = access.namespace.clone();
        let options = Options { timeout: Duration::from_secs(15), retries: 2, ..Options::default() };
        Ok((Client::new(access, Resolver::from_system(), options), namespace))
    }
}

/// What is wrong, and how to mend it, where the cluster does not know rollouts.
fn known(error: ApiError) -> anyhow::Error {
    if error.is_not_found() {
        return anyhow::anyhow!(
            "the cluster does not know SidecarRollout; `outrigger install … | kubectl apply -f -` with the settings of the installation brings it"
        );
    }
    error.into()
}

async fn start(args: StartArgs) -> anyhow::Result<u8> {
    let (client, namespace) = args.cluster.client()?;
    let namespaces = match (args.all_namespaces, args.namespace.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![namespace],
        (false, false) => args.namespace.clone(),
    };
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let spec = Spec {
        image: args.image.clone().unwrap_or_default(),
        canary: args.canary,
        canary_seconds: seconds(args.canary_time),
        max_unavailable: args.max_unavailable,
        parallel: args.parallel,
        namespaces,
        selector: args.selector.iter().cloned().collect(),
        hand_over: if args.without_hand_over { HandOver::IfPossible } else { HandOver::Required },
        progress_deadline_seconds: seconds(args.deadline),
        min_ready_seconds: seconds(args.min_ready),
        on_failure: match args.on_failure {
            Fallback::RollBack => OnFailure::RollBack,
            Fallback::Pause => OnFailure::Pause,
        },
        ..Spec::default()
    };
    let rollouts = client.list(ROLLOUTS.all(), &Selection::default()).await.map_err(known)?;
    if let Some(other) = rollouts.iter().find(|one| !status(one).phase.has_ended()) {
        let name = name(other);
        bail!(
            "the rollout `{name}` to {} has not ended ({}); wait for it (`outrigger upgrade status --wait`), or take it back (`outrigger upgrade rollback`)",
            other["spec"]["image"].as_str().unwrap_or_default(),
            status(other).phase.name(),
        );
    }
    let object = json!({
        "apiVersion": ROLLOUTS.api_version(), "kind": ROLLOUTS.kind,
        "metadata": { "generateName": "upgrade-" }, "spec": spec,
    });
    let made = client.create(ROLLOUTS.all(), &object, Write::Real).await.map_err(known)?;
    follow(&client, &made, args.wait, args.format, false).await
}

/// Changes a rollout that is there, or only shows it.
async fn change(args: NamedArgs, what: &str) -> anyhow::Result<u8> {
    let (client, _) = args.cluster.client()?;
    let object = match &args.name {
        Some(name) => client.find(ROLLOUTS.global(name)).await.map_err(known)?,
        None => newest(&client).await.map_err(known)?,
    };
    let object = object.with_context(|| match &args.name {
        Some(name) => format!("there is no rollout `{name}`; `kubectl get sidecarrollouts` lists them"),
        None => "there is no rollout; `outrigger upgrade --image IMAGE` makes one".to_owned(),
    })?;
    let (name, phase) = (name(&object), status(&object).phase);
    let spec = match what {
        "status" => return follow(&client, &object, args.wait, args.format, false).await,
        "rollback" => {
            if matches!(phase, Phase::RolledBack | Phase::Failed) {
                bail!("the rollout `{name}` has ended: {}", status(&object).message);
            }
            json!({ "rollback": true, "paused": false })
        }
        _ if phase.has_ended() => bail!("the rollout `{name}` has ended: {}", status(&object).message),
        "pause" => json!({ "paused": true }),
        _ => {
            let attempt = object["spec"]["attempt"].as_u64().unwrap_or(0);
            // After a failure it is another attempt.
            let more = u64::from(status(&object).failure.is_some());
            json!({ "paused": false, "attempt": attempt + more })
        }
    };
    let changed = client
        .patch(ROLLOUTS.global(&name), Patch::Merge, &json!({ "spec": spec }), Write::Real)
        .await
        .map_err(known)?;
    follow(&client, &changed, args.wait, args.format, what == "rollback").await
}

async fn newest(client: &Client) -> Result<Option<Value>, ApiError> {
    let mut rollouts = client.list(ROLLOUTS.all(), &Selection::default()).await?;
    let created = |one: &Value| one["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    rollouts.sort_by_key(|one| (!status(one).phase.has_ended(), created(one)));
    Ok(rollouts.pop())
}

/// Shows a rollout, once or until it ends or pauses; gives the exit code.
async fn follow(client: &Client, object: &Value, wait: bool, format: Format, back: bool) -> anyhow::Result<u8> {
    let (name, generation) = (name(object), object["metadata"]["generation"].as_i64().unwrap_or(0));
    let mut progress = Progress::new(&name, object["spec"]["image"].as_str().unwrap_or_default(), format, wait);
    progress.show(&status(object))?;
    if !wait {
        return Ok(code(&status(object), back));
    }
    let begun = Instant::now();
    loop {
        let found = match client.find(ROLLOUTS.global(&name)).await {
            Ok(found) => found.with_context(|| format!("the rollout `{name}` was deleted; pods stay as they are"))?,
            Err(error) if error.may_pass() => {
                sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let status = status(&found);
        let taken_up = status.observed_generation >= generation;
        // What waits for another rollout was looked at, too.
        if !taken_up && status.message.is_empty() && begun.elapsed() > TAKEN_UP {
            progress.end()?;
            bail!(
                "no controller has taken up the rollout `{name}` within {} s; `outrigger check` says how the controllers are. It begins when one comes",
                TAKEN_UP.as_secs()
            );
        }
        if taken_up {
            progress.show(&status)?;
            if status.phase.has_ended() || status.phase == Phase::Paused && status.rolling == 0 {
                progress.end()?;
                return Ok(code(&status, back));
            }
        }
        sleep(LOOK).await;
    }
}

fn code(status: &Status, back: bool) -> u8 {
    match status.phase {
        Phase::RolledBack if back => 0,
        Phase::RolledBack => 4,
        Phase::Paused => 3,
        Phase::Failed => 1,
        _ => 0,
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn status(object: &Value) -> Status {
    serde_json::from_value(object["status"].clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_how_it_ended() {
        for (phase, back, expected) in [
            (Phase::Completed, false, 0),
            (Phase::Rolling, false, 0),
            (Phase::Paused, false, 3),
            (Phase::RolledBack, false, 4),
            (Phase::RolledBack, true, 0),
            (Phase::Failed, true, 1),
        ] {
            assert_eq!(code(&Status { phase, ..Status::default() }, back), expected, "{phase:?}");
        }
    }

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("app=web"), Ok(("app".to_owned(), "web".to_owned())));
        assert_eq!(label("app="), Ok(("app".to_owned(), String::new())));
        assert!(label("app").is_err() && label("=web").is_err());
    }
}
