//! The project's own verbs: `cargo xtask VERB`, the same by hand and in CI.
//!
//! In: a verb and its flags. Out: the exit code, and on standard error what runs,
//! how long it took and what to do when it failed. Promise: needs nothing installed
//! beforehand but a Rust toolchain and a C compiler; what else a verb needs,
//! `setup` brings.

mod again;
mod args;
mod check;
pub mod cluster;
mod command;
mod deps;
mod elf;
mod fuzz;
mod image;
mod instructions;
mod setup;
mod test;
mod ui;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::args::Args;

/// One thing `cargo xtask` can do.
struct Verb {
    name: &'static str,
    /// One line for the list.
    summary: &'static str,
    /// What `cargo xtask VERB --help` adds.
    usage: &'static str,
    run: fn(&mut Args) -> Result<()>,
}

const VERBS: &[Verb] = &[
    Verb {
        name: "setup",
        summary: "install the servers and tools that tests need (Debian packages, OpenBao, Envoy, Kubernetes, cargo-deny)",
        usage: "cargo xtask setup\n\nDoes nothing, quickly, when all is there. Installing Debian packages needs root. The first time it compiles\nKubernetes, CoreDNS, Helm and an OpenTelemetry collector, about twelve minutes on two cores.",
        run: setup::verb,
    },
    Verb {
        name: "check",
        summary: "format, clippy with warnings as errors, architecture edges, licences and sources",
        usage: "cargo xtask check [--fix]\n\n  --fix   format the code and apply clippy's suggestions first",
        run: check::verb,
    },
    Verb {
        name: "test",
        summary: "everything CI runs: setup, check, unit, fuzz, release, instructions, image, e2e, cluster, demo",
        usage: test::USAGE,
        run: test::verb,
    },
    Verb {
        name: "e2e",
        summary: "end-to-end tests of the built executable against real servers",
        usage: "cargo xtask e2e [--release] [-- TEST-ARGUMENTS]\n\n  --release   test the release executable (what CI does); the default is the debug one, quicker to build",
        run: test::verb_e2e,
    },
    Verb {
        name: "fuzz",
        summary: "fuzz one parser of untrusted bytes, or each of them in turn",
        usage: fuzz::USAGE,
        run: fuzz::verb,
    },
    Verb {
        name: "bench",
        summary: "measure against Envoy, nginx, HAProxy and the OpenBao agent (bench/run)",
        usage: "cargo xtask bench [SCENARIO]... [-- ARGUMENTS OF bench/run]\n\nBuilds the release executable first. See bench/README.md for how to read the table.",
        run: verb_bench,
    },
    Verb {
        name: "instructions",
        summary: "count what one proxied request takes, and hold it to bench/instructions.txt",
        usage: instructions::USAGE,
        run: instructions::verb,
    },
    Verb {
        name: "bless",
        summary: "rewrite the golden files under testdata/ from what the code gives now; read the diff",
        usage: "cargo xtask bless [PACKAGE]...\n\nRuns the unit tests with OUTRIGGER_BLESS=1 and shows which files changed.",
        run: verb_bless,
    },
    Verb {
        name: "deps",
        summary: "check that dependencies between our crates follow ARCHITECTURE.md",
        usage: "cargo xtask deps",
        run: deps::verb,
    },
    Verb {
        name: "image",
        summary: "build the FROM scratch image into target/image/outrigger.tar and start it",
        usage: image::USAGE,
        run: image::verb,
    },
    Verb {
        name: "cluster",
        summary: "a real Kubernetes on this machine: up, down, status, env, load images, test",
        usage: cluster::USAGE,
        run: cluster::verb,
    },
    Verb {
        name: "demo-cluster",
        summary: "install Outrigger in that cluster, put it into a shop's pods, upgrade it under load, and show the proof",
        usage: cluster::demo::USAGE,
        run: cluster::demo::verb,
    },
];

/// Runs the verb that the command line names.
pub fn main() -> ExitCode {
    let mut args = Args::from_env();
    match run(&mut args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &mut Args) -> Result<()> {
    let Some(name) = args.next() else {
        print!("{}", overview());
        bail!("name a verb");
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        match args.next() {
            Some(verb) => println!("{}", find(&verb)?.usage),
            None => print!("{}", overview()),
        }
        return Ok(());
    }
    let verb = find(&name)?;
    if args.flag("--help") || args.flag("-h") {
        println!("{}\n\nUsage: {}", verb.summary, verb.usage);
        return Ok(());
    }
    std::env::set_current_dir(root()).context("cannot enter the repository's folder")?;
    (verb.run)(args)
}

fn find(name: &str) -> Result<&'static Verb> {
    VERBS
        .iter()
        .find(|verb| verb.name == name)
        .with_context(|| format!("there is no verb `{name}`; `cargo xtask help` lists them"))
}

fn overview() -> String {
    let mut text = String::from("Usage: cargo xtask VERB [ARGUMENTS]\n\nVerbs:\n");
    for Verb { name, summary, .. } in VERBS {
        text.push_str(&format!("  {name:<12}  {summary}\n"));
    }
    text.push_str("  help          this list; `cargo xtask VERB --help` tells more about one verb\n");
    text
}

/// The repository's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository").to_path_buf()
}

fn verb_bench(args: &mut Args) -> Result<()> {
    let rest = args.rest();
    setup::ensure(setup::Need::Everything)?;
    let run = root().join("bench/run");
    if !run.exists() {
        bail!("bench/run is missing");
    }
    test::release()?;
    command::Cmd::new(run).args(rest).with_tools().run()
}

fn verb_bless(args: &mut Args) -> Result<()> {
    let packages = args.rest();
    let mut cargo = command::cargo("test").arg("--locked");
    if packages.is_empty() {
        cargo = cargo.args(["--workspace", "--exclude", "outrigger-e2e"]);
    }
    for package in packages {
        cargo = cargo.args(["--package".to_owned(), package]);
    }
    cargo.env("OUTRIGGER_BLESS", "1").run()?;
    command::Cmd::new("git").args(["status", "--short", "--", "**/testdata/**", "docs"]).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_has_each_verb_on_one_line() {
        let text = overview();
        for verb in VERBS {
            let lines: Vec<_> = text.lines().filter(|line| line.trim_start().starts_with(verb.name)).collect();
            assert_eq!(lines.len(), 1, "{}", verb.name);
            assert!(!verb.summary.contains('\n'), "{}", verb.name);
        }
    }
}
