//! Everything CI runs, in one order, stopping at the first failure.
//!
//! In: the sources and what `setup` brought. Out: a table of stages and the exit code.
//! Promise: cheap stages come first; end-to-end tests and the demo run the release
//! executable, the one that is shipped.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::command::{Cmd, cargo};
use crate::ui::{self, Outcome};
use crate::{again, check, cluster, elf, fuzz, image, instructions, setup};

pub(crate) const USAGE: &str = "cargo xtask test [--fast] [--only STAGE]...

Stages, in order: setup, check, unit, fuzz, release, instructions, image, e2e, cluster, demo.

  --fast         setup's part for `check`, then check and unit only
  --only STAGE   this stage only (may be repeated); `instructions`, `image`, `e2e`, `cluster` and `demo`
                 use the last release executable, and `cluster` its image";

/// The largest the stripped executable may be.
const MAX_SIZE: u64 = 25_000_000;

struct Stage {
    name: &'static str,
    fast: bool,
    /// Gives the names of tests that failed and then passed alone.
    run: fn() -> Result<Vec<String>>,
}

/// A stage without tests that could be run again.
fn whole(result: Result<()>) -> Result<Vec<String>> {
    result.map(|()| Vec::new())
}

const STAGES: &[Stage] = &[
    Stage { name: "setup", fast: false, run: || whole(setup::ensure(setup::Need::Everything)) },
    Stage { name: "check", fast: true, run: || whole(check::run()) },
    Stage { name: "unit", fast: true, run: unit },
    Stage { name: "fuzz", fast: false, run: || whole(fuzz::seeds()) },
    Stage { name: "release", fast: false, run: || whole(release()) },
    Stage { name: "instructions", fast: false, run: || whole(instructions::check()) },
    Stage { name: "image", fast: false, run: || whole(image::run(image::Variant::Release)) },
    Stage { name: "e2e", fast: false, run: || e2e(&executable("release"), Vec::new()) },
    Stage { name: "cluster", fast: false, run: in_pods },
    Stage { name: "demo", fast: false, run: || whole(demo()) },
];

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let fast = args.flag("--fast");
    let mut only = Vec::new();
    while let Some(name) = args.value("--only")? {
        if !STAGES.iter().any(|stage| stage.name == name) {
            let names: Vec<_> = STAGES.iter().map(|stage| stage.name).collect();
            bail!("there is no stage `{name}`; there are {}", names.join(", "));
        }
        only.push(name);
    }
    args.done()?;
    if fast {
        setup::ensure(setup::Need::CargoDeny)?;
    }
    let chosen =
        |stage: &Stage| (!fast || stage.fast) && (only.is_empty() || only.iter().any(|name| name == stage.name));
    let mut rows = Vec::new();
    let mut unsteady = Vec::new();
    let mut failure = None;
    for stage in STAGES.iter().filter(|stage| chosen(stage)) {
        if failure.is_some() {
            rows.push((stage.name, Outcome::NotRun, Duration::ZERO));
            continue;
        }
        let begun = Instant::now();
        let result = (stage.run)();
        let outcome = match &result {
            Ok(names) if names.is_empty() => Outcome::Passed,
            Ok(_) => Outcome::Unsteady,
            Err(_) => Outcome::Failed,
        };
        rows.push((stage.name, outcome, begun.elapsed()));
        match result {
            Ok(names) => unsteady.extend(names),
            Err(error) => failure = Some(error.context(format!("stage `{}` failed", stage.name))),
        }
    }
    if let Some(error) = &failure {
        ui::error(&format!("{error:#}"));
    }
    ui::table(&rows);
    if !unsteady.is_empty() {
        ui::note(&format!("unsteady, to be mended: {}", unsteady.join(", ")));
    }
    match failure {
        None => Ok(()),
        Some(_) => bail!("the tests failed"),
    }
}

pub(crate) fn verb_e2e(args: &mut Args) -> Result<()> {
    let profile = if args.flag("--release") { "release" } else { "debug" };
    let passed = args.passed();
    args.done()?;
    setup::ensure(setup::Need::Everything)?;
    ui::step("e2e: build the executable", || {
        let build = cargo("build").args(["--package", "outrigger", "--locked"]);
        if profile == "release" { build.arg("--release").run() } else { build.run() }
    })?;
    e2e(&executable(profile), passed).map(drop)
}

fn unit() -> Result<Vec<String>> {
    ui::step("unit: tests of each crate", || {
        again::test(|| cargo("test").arg("--locked"), &["--workspace", "--exclude", "outrigger-e2e"], &[])
    })
}

/// Builds what is shipped and holds it to its promises: small and static.
pub(crate) fn release() -> Result<()> {
    ui::step("release: build the executable", || {
        cargo("build").args(["--release", "--package", "outrigger", "--locked"]).run()
    })?;
    let path = executable("release");
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    elf::require_static(&bytes).with_context(|| format!("{} is not static", path.display()))?;
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if size > MAX_SIZE {
        bail!("{} has {size} bytes; at most {MAX_SIZE} are allowed", path.display());
    }
    ui::note(&format!("static, {}.{} MB", size / 1_000_000, size % 1_000_000 / 100_000));
    Ok(())
}

fn e2e(executable: &PathBuf, arguments: Vec<String>) -> Result<Vec<String>> {
    if !executable.exists() {
        bail!("{} is missing; build it first (`cargo xtask test --only release`)", executable.display());
    }
    let cargo_test = || cargo("test").arg("--locked").env("OUTRIGGER_BIN", executable).with_tools();
    ui::step("e2e: the executable against real servers", || {
        again::test(cargo_test, &["--package", "outrigger-e2e", "--lib", "--test", "e2e"], &arguments)
    })
}

/// The image that is shipped, in the pods of a real cluster.
fn in_pods() -> Result<Vec<String>> {
    cluster::tests(&cluster::Cluster::shared(), image::Variant::Release, Vec::new())
}

/// The README's demo with its output piped, as CI sees it; it checks itself.
fn demo() -> Result<()> {
    ui::step("demo: the shop for 20 s, checking itself", || {
        let output = Cmd::new(executable("release")).args(["demo", "--for", "20s"]).output()?;
        if output.contains('\x1b') {
            bail!("the demo wrote escape codes although its output is no terminal");
        }
        let lines: Vec<_> = output.lines().collect();
        for line in &lines[lines.len().saturating_sub(20)..] {
            ui::note(line);
        }
        Ok(())
    })
}

/// Where cargo puts the executable: `.cargo/config.toml` names the host as an explicit target.
pub(crate) fn executable(profile: &str) -> PathBuf {
    crate::root().join(format!("target/{}-unknown-linux-gnu/{profile}/outrigger", std::env::consts::ARCH))
}
