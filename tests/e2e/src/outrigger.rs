//! The executable under test.
//!
//! In: a config as YAML, without the sections `admin` and `runtime` that every test
//! shares (a test that begins with a `runtime:` of its own keeps that). Out: a running Outrigger on ports of its own. Promise: `start_outrigger`
//! returns once it is ready, or fails the test with the reasons it gave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::http::{Response, request};
use crate::pods::Inside;
use crate::process::{Process, repository};
use crate::{eventually, free_port};

/// A running Outrigger.
#[derive(Debug)]
pub struct Outrigger {
    /// The process.
    pub process: Process,
    /// `http://127.0.0.1:PORT` of the admin API.
    pub admin: String,
    /// `http://127.0.0.1:PORT` of the kubelet's health port.
    pub health: String,
    /// Its config file.
    pub config: PathBuf,
    /// Where it runs.
    inside: Inside,
    preamble: String,
}

/// Starts Outrigger with `config` in `folder` and waits until it is ready.
///
/// # Panics
/// When it does not become ready.
#[track_caller]
pub fn start_outrigger(folder: &Path, config: &str) -> Outrigger {
    let mut outrigger = start_outrigger_with(folder, config, &[]);
    outrigger.wait_ready();
    outrigger
}

/// Starts `outrigger run -c FILE` with more arguments (`--`, `CMD`, …) and does not wait.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn start_outrigger_with(folder: &Path, config: &str, arguments: &[&str]) -> Outrigger {
    start_outrigger_as(outrigger_command(), folder, config, arguments)
}

/// As [`start_outrigger_with`], by a command that ends in the executable, such as one that changes the user.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn start_outrigger_as(mut command: Command, folder: &Path, config: &str, arguments: &[&str]) -> Outrigger {
    let (admin, health) = (free_port(), free_port());
    let mut preamble = format!("admin: {{ listen: \"127.0.0.1:{admin}\", health: \"127.0.0.1:{health}\" }}\n");
    if !config.starts_with("runtime:") {
        preamble.push_str("runtime: { shutdownBudget: 10s, flushBudget: 4s }\n");
    }
    let file = folder.join("outrigger.yaml");
    fs::write(&file, format!("{preamble}{config}")).expect("the test's folder can be written");
    let process = Process::start("outrigger", command.arg("run").arg("-c").arg(&file).args(arguments), folder);
    Outrigger {
        process,
        admin: format!("http://127.0.0.1:{admin}"),
        health: format!("http://127.0.0.1:{health}"),
        config: file,
        inside: Inside::here(),
        preamble,
    }
}

/// The executable: `OUTRIGGER_BIN`, or else what cargo built last in the debug or release profile.
///
/// # Panics
/// When none was built.
pub fn outrigger_command() -> Command {
    let target = repository().join(format!("target/{}-unknown-linux-gnu", std::env::consts::ARCH));
    let named = std::env::var_os("OUTRIGGER_BIN").map(PathBuf::from);
    let newest = || {
        let built = ["debug", "release"].map(|profile| target.join(profile).join("outrigger"));
        built.into_iter().filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max()
    };
    let path = named.or_else(|| newest().map(|(_, path)| path));
    Command::new(path.expect("an executable: `cargo build -p outrigger` makes it, or OUTRIGGER_BIN names it"))
}

impl Outrigger {
    /// Waits until `/readyz` says so.
    ///
    /// # Panics
    /// When it does not, with the reasons.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        eventually("Outrigger to become ready", || {
            self.process.still_runs()?;
            self.get("/readyz?verbose")?.ok()
        });
    }

    /// `GET` on the admin API.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn get(&self, path: &str) -> Result<Response> {
        self.inside.enter(|| request("GET", &format!("{}{path}", self.admin), &[], ""))
    }

    /// Its child processes: the application, and orphans that became ours.
    pub fn children(&self) -> Vec<u32> {
        let id = self.process.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Replaces its config file as a whole, as an editor or a config map does.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn write_config(&self, config: &str) {
        let fresh = self.config.with_extension("new");
        fs::write(&fresh, format!("{}{config}", self.preamble)).expect("the test's folder can be written");
        fs::rename(&fresh, &self.config).expect("the test's folder can be written");
    }

    /// Waits until a series has the value: what a client sees is counted a moment later.
    ///
    /// # Panics
    /// When it has another value for too long.
    #[track_caller]
    pub fn counts(&self, series: &str, value: f64) {
        eventually(series, || match self.metric(series)? {
            now if now == value => Ok(()),
            now => bail!("it is {now}, not {value}"),
        });
    }

    /// Waits until a series has at least the value.
    ///
    /// # Panics
    /// When it stays below for too long.
    #[track_caller]
    pub fn counts_at_least(&self, series: &str, value: f64) {
        eventually(series, || match self.metric(series)? {
            now if now >= value => Ok(()),
            now => bail!("it is {now}, less than {value}"),
        });
    }

    /// The value of one series on the admin API's `/metrics`, such as `name{label="value"}`.
    ///
    /// # Errors
    /// When there is no such series, with all lines of that family.
    pub fn metric(&self, series: &str) -> Result<f64> {
        find_metric(&self.get("/metrics")?.ok()?, series)
    }
}

/// Finds one series in exposition text.
pub(crate) fn find_metric(text: &str, series: &str) -> Result<f64> {
    let name = series.split('{').next().unwrap_or(series);
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.with_context(|| {
        let family: Vec<_> = text.lines().filter(|line| line.starts_with(name)).collect();
        format!("there is no series {series}; there are {family:#?}")
    })?;
    let value = line[series.len()..].split_whitespace().next().unwrap_or_default();
    value.parse().with_context(|| format!("{value} is no number"))
}
