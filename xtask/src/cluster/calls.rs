//! Requests that a pod sends all the time, and what became of them.
//!
//! In: a pod with the tests' application in a container `app`, a URL, a rate. Out: counts. Promise: whoever lets go of it, in a
//! panic, too, ends the requests; one that is killed leaves them for five minutes at most.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cluster, output};

/// Whoever is to end them may be killed.
const AT_MOST: &str = "300";
/// Connections, each of which is closed and opened anew after some requests, so that they come to all pods that are ready.
const CONNECTIONS: &str = "20";

/// Requests on their way.
#[derive(Debug)]
pub struct Calls {
    cluster: Cluster,
    namespace: String,
    pod: String,
    /// Taken by who waits for its end.
    kubectl: Option<Child>,
}

/// What became of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Answered with 200.
    pub answered: u64,
    /// The others.
    pub failed: u64,
    /// How long the slowest took.
    pub slowest: Duration,
    /// Why requests failed, and when; and when others took longer than a second.
    pub remarks: String,
}

impl Calls {
    /// Begins to send them, `rate` a second.
    ///
    /// # Errors
    /// When `kubectl` cannot be started.
    pub fn start(cluster: &Cluster, namespace: &str, pod: &str, url: &str, rate: u32) -> Result<Self> {
        let mut this =
            Self { cluster: cluster.clone(), namespace: namespace.to_owned(), pod: pod.to_owned(), kubectl: None };
        let load = ["timeout", "-s", "TERM", AT_MOST, "/app", "load", "-workers", CONNECTIONS, "-rate"];
        let mut kubectl = this.exec(&load);
        kubectl.args([&rate.to_string(), "-url", url]).stdout(Stdio::piped()).stderr(Stdio::piped());
        this.kubectl = Some(kubectl.spawn().context("cannot start kubectl")?);
        Ok(this)
    }

    /// Ends them.
    ///
    /// # Errors
    /// When they had ended before, or never began.
    pub fn end(mut self) -> Result<Counts> {
        let stopped = self.stop();
        let child = self.kubectl.take().context("it is taken once")?;
        let told = child.wait_with_output().context("cannot read what kubectl says")?;
        let [out, remarks] = [told.stdout, told.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(told.status.success(), "the requests of {} ended: {}\n{remarks}", self.pod, told.status);
        stopped?;
        let counts: Value = serde_json::from_str(out.trim()).with_context(|| format!("no counts: {out}{remarks}"))?;
        let number = |key: &str| counts[key].as_u64().with_context(|| format!("`{key}` is missing in {counts}"));
        Ok(Counts {
            answered: number("ok")?,
            failed: number("failed")?,
            slowest: Duration::from_millis(number("slowest_ms")?),
            remarks,
        })
    }

    fn stop(&self) -> Result<()> {
        output(&mut self.exec(&["killall", "-TERM", "app"])).map(drop)
    }

    fn exec(&self, program: &[&str]) -> Command {
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(["--namespace", &self.namespace, "exec", &self.pod, "--container=app", "--"]);
        kubectl.args(program).stdin(Stdio::null());
        kubectl
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        let Some(mut child) = self.kubectl.take() else { return };
        // It may have ended, or its pod may.
        let _ = self.stop();
        let _ = child.kill();
        let _ = child.wait();
    }
}
