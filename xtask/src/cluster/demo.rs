//! `cargo xtask demo-cluster`: what a platform engineer does, on the machine's own cluster, with proof of what it gives.
//!
//! In: a running cluster with Outrigger's image. Out: progress, then two tables: who called whom with which identity, and what an
//! upgrade under load cost. Promise: the shop's manifests know nothing of Outrigger; whatever fails fails the demo; nothing of it
//! is left in the cluster.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::verb::with_image;
use super::{Calls, Cluster, Counts, output};
use crate::args::Args;
use crate::command::Cmd;
use crate::{image, setup, test, ui};

pub(crate) const USAGE: &str = "cargo xtask demo-cluster [--debug] [--keep]

Installs Outrigger in the cluster of `cargo xtask cluster`, which it starts and ends unless one runs already: a shop of plain
HTTP applications gets sidecars by a namespace's label, calls go by mTLS, and all sidecars are upgraded while requests flow.

  --debug   with the debug executable, quicker to build; the default is the release one
  --keep    leave shop, installation and cluster there

Needs root, and what `cargo xtask setup` brings.";

const HOME: &str = "outrigger-system";
const SHOP: &str = "demo-shop";
/// Requests a second during the upgrade.
const RATE: u32 = 100;
/// Load before the upgrade, and after it.
const AROUND: Duration = Duration::from_secs(3);
/// A pod may take so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// An application, its replicas, and whom it calls, as its developers would write it. The last one is alone: no other pod can stand in
/// for it while its sidecar is replaced.
const APPLICATIONS: &[(&str, u32, Option<&str>)] =
    &[("frontend", 2, Some("orders")), ("orders", 2, Some("payments")), ("payments", 1, None)];

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let variant = if args.flag("--debug") { image::Variant::Debug } else { image::Variant::Release };
    let keep = args.flag("--keep");
    args.done()?;
    setup::ensure(setup::Need::Everything)?;
    image::make(variant)?;
    let cluster = Cluster::shared();
    with_image(&cluster, variant, keep, |cluster| {
        let demo = Demo { cluster, executable: test::executable(variant.profile()), image: image::name(variant) };
        demo.refuse_another()?;
        let shown = demo.show();
        if keep {
            ui::note(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()));
            return shown;
        }
        let removed = ui::step("remove all of it", || demo.remove());
        shown.and(removed)
    })
}

struct Demo<'a> {
    cluster: &'a Cluster,
    executable: PathBuf,
    image: String,
}

impl Demo<'_> {
    fn show(&self) -> Result<()> {
        ui::step("outrigger check --pre", || self.tell(&["check", "--pre"]))?;
        ui::step("outrigger install | kubectl apply -f -", || {
            let values = format!("image: \"{}\"\nimagePullPolicy: Never\n", self.image);
            self.apply(&output_with(self.outrigger(&["install", "-f", "-"]), &values)?)
        })?;
        ui::step("a shop that knows nothing of it", || {
            self.kubectl(&["create", "namespace", SHOP])?;
            self.apply(&shop())?;
            self.rolled_out()
        })?;
        let before = self.identities()?;
        ui::step("outrigger check --wait", || self.quietly(&["check", "--wait", "120s"]))?;
        ui::step(
            &format!("kubectl label namespace {SHOP} outrigger.dev/inject=enabled, and restart its pods"),
            || {
                self.kubectl(&["label", "namespace", SHOP, "outrigger.dev/inject=enabled"])?;
                self.kubectl(&["-n", SHOP, "rollout", "restart", "deployment"])?;
                self.rolled_out()
            },
        )?;
        ui::step("outrigger check", || self.tell(&["check", "--wait", "60s"]))?;
        ui::step("outrigger fleet", || self.tell(&["fleet", "-n", SHOP]))?;
        let after = ui::step("calls by mTLS", || self.identities_that_are_known())?;
        let (counts, restarts) = ui::step("outrigger upgrade, under load", || self.upgrade())?;
        self.proof(&before, &after, &counts, restarts)
    }

    /// An installation of somebody else's stays as it is.
    fn refuse_another(&self) -> Result<()> {
        for namespace in [HOME, SHOP] {
            if self.kubectl(&["get", "namespace", namespace]).is_ok() {
                bail!(
                    "the cluster has a namespace `{namespace}` already; the demo would remove it in the end, so remove it first"
                );
            }
        }
        Ok(())
    }

    /// Callers as those that they call know them: what each line of the chain says.
    fn identities(&self) -> Result<Vec<(String, String)>> {
        let url = format!("http://frontend.{SHOP}/chain");
        let pod = self.pod("visitor")?;
        let told = self.kubectl(&["-n", SHOP, "exec", &pod, "-c", "app", "--", "/app", "get", &url])?;
        let lines = told.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.map(|(callee, caller)| (callee.to_owned(), caller.to_owned())).collect())
    }

    /// Services are told of new pods moments after they are ready.
    fn identities_that_are_known(&self) -> Result<Vec<(String, String)>> {
        let begun = Instant::now();
        loop {
            let found = self.identities()?;
            if found.iter().all(|(_, caller)| caller.starts_with("spiffe://")) {
                return Ok(found);
            }
            ensure!(begun.elapsed() < PATIENCE, "some calls are not by mTLS: {found:?}");
            sleep(Duration::from_millis(500));
        }
    }

    fn upgrade(&self) -> Result<(Counts, u64)> {
        let next = format!("{}-next", self.image);
        let full = |name: &str| format!("docker.io/library/{name}");
        self.cluster.tag(&full(&self.image), &full(&next))?;
        let url = format!("http://frontend.{SHOP}/chain");
        let calls = Calls::start(self.cluster, SHOP, &self.pod("visitor")?, &url, RATE)?;
        sleep(AROUND);
        let quick = ["--canary", "1", "--canary-time", "2s", "--min-ready", "1s", "--wait"];
        self.tell(&[&["upgrade", "--image", &next, "-n", SHOP], &quick[..]].concat())?;
        sleep(AROUND);
        let counts = calls.end()?;
        let restarts = self.kubectl(&["-n", SHOP, "get", "pods", "-o", RESTARTS])?;
        let restarts = restarts.split_whitespace().filter_map(|one| one.parse::<u64>().ok()).sum();
        Ok((counts, restarts))
    }

    fn proof(
        &self,
        before: &[(String, String)],
        after: &[(String, String)],
        counts: &Counts,
        restarts: u64,
    ) -> Result<()> {
        let sent = counts.answered + counts.failed;
        let mut text = format!("\n{:<10} {:<22} {}\n", "CALLED", "CALLER, BEFORE", "CALLER, BY MTLS");
        for ((callee, caller), (_, earlier)) in after.iter().zip(before) {
            text += &format!("{callee:<10} {earlier:<22} {caller}\n");
        }
        text += &format!(
            "\n{:<42} {}\n{:<42} {}\n{:<42} {} ms\n{:<42} {restarts}\n",
            "requests during the upgrade",
            sent,
            "  of them failed",
            counts.failed,
            "  the slowest",
            counts.slowest.as_millis(),
            "restarts of applications",
        );
        // A reader that has gone is no error.
        let _ = std::io::stdout().write_all(text.as_bytes());
        ensure!(counts.failed == 0, "{} requests failed during the upgrade:\n{}", counts.failed, counts.remarks);
        ensure!(sent > 0, "no request was sent during the upgrade");
        ensure!(restarts == 0, "applications were restarted {restarts} times");
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        self.kubectl(&["delete", "namespace", SHOP, "--ignore-not-found", "--timeout=90s"])?;
        let removal = output_with(self.outrigger(&["uninstall"]), "")?;
        let arguments = ["delete", "--ignore-not-found", "--timeout=90s", "-f", "-"];
        output_with(self.command(&arguments), &removal).map(drop)
    }

    fn rolled_out(&self) -> Result<()> {
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        Cmd::from(self.command(&["-n", SHOP, "rollout", "status", "deployment", &patience])).quiet("pods start")
    }

    fn pod(&self, application: &str) -> Result<String> {
        let selector = format!("app={application}");
        let told = self.kubectl(&["-n", SHOP, "get", "pods", "-l", &selector, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&told)?;
        // One that is on its way out is not meant.
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let pod = pods["items"].as_array().into_iter().flatten().find(stays);
        let name = pod.and_then(|pod| pod["metadata"]["name"].as_str());
        name.map(str::to_owned).with_context(|| format!("there is no pod of {application}"))
    }

    /// Runs our executable with our own output.
    fn tell(&self, arguments: &[&str]) -> Result<()> {
        Cmd::from(self.outrigger(arguments)).run()
    }

    fn quietly(&self, arguments: &[&str]) -> Result<()> {
        Cmd::from(self.outrigger(arguments)).quiet("controllers start")
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        output_with(self.command(&["apply", "-f", "-"]), manifest).map(drop)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.command(arguments).stdin(Stdio::null()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(arguments);
        kubectl
    }

    fn outrigger(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig());
        command
    }
}

/// Restarts of the applications' containers, and not of sidecars.
const RESTARTS: &str = "jsonpath={range .items[*]}{.status.containerStatuses[*].restartCount} {end}";

fn output_with(mut command: Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // One that does not read has ended, and says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Plain HTTP applications, each with an account, a Deployment and a Service; and a visitor who calls them.
fn shop() -> String {
    let mut text = String::new();
    for (name, replicas, calls) in APPLICATIONS {
        let calls = calls.map(|next| format!(", -calls, \"http://{next}/chain\"")).unwrap_or_default();
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec:\n  selector: {{ app: {name} }}\n  \
             ports: [{{ port: 80, targetPort: 8080 }}]\n{}",
            deployment(name, *replicas, &format!("args: [serve, -name, {name}{calls}]"))
        );
    }
    text += &deployment("visitor", 1, "command: [sleep, \"3600\"]");
    // Of no namespace in particular, so that it is clear whose they are.
    text.replace("metadata: { name", &format!("metadata: {{ namespace: {SHOP}, name"))
}

fn deployment(name: &str, replicas: u32, runs: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: {name} }}\n---\napiVersion: apps/v1\nkind: Deployment\n\
         metadata: {{ name: {name} }}\nspec:\n  replicas: {replicas}\n  selector: {{ matchLabels: {{ app: {name} }} }}\n  template:\n    \
         metadata: {{ labels: {{ app: {name} }} }}\n    spec:\n      serviceAccountName: {name}\n      terminationGracePeriodSeconds: 6\n      \
         containers:\n      - {{ name: app, image: \"localhost/app:1\", imagePullPolicy: Never, {runs} }}\n"
    )
}
