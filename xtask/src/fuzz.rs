//! Fuzzes the parsers of untrusted bytes.
//!
//! In: the targets of `fuzz/`, and the corpus each has gathered. Out: nothing, or the
//! input that made a target panic, kept under `fuzz/artifacts`. Promise: works on the
//! stable toolchain, with coverage feedback; only memory sanitizers would need nightly,
//! and our own code has no unsafe blocks for them to watch.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::command::{Cmd, cargo, find_program};
use crate::ui;

pub(crate) const USAGE: &str = "cargo xtask fuzz [TARGET]... [--for 60s | --seeds] [-- LIBFUZZER-ARGUMENTS]

Without a target, each one runs in turn. `--seeds` only runs what lies in fuzz/seeds, as `cargo xtask test` does. A crash is kept under fuzz/artifacts/TARGET; run it again with
`cargo xtask fuzz TARGET -- fuzz/artifacts/TARGET/crash-…`, then make it a row of that parser's tests.
`cargo xtask fuzz --list` shows the targets. Needs a C++ compiler (libFuzzer is compiled along).";

/// What `cargo fuzz` sets as well: libFuzzer's coverage counters, which stable rustc can emit.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let known = targets()?;
    if args.flag("--list") {
        args.done()?;
        known.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let only_seeds = args.flag("--seeds");
    let seconds = seconds(&args.value("--for")?.unwrap_or_else(|| "60s".to_owned()))?;
    let passed = args.passed();
    let mut chosen = args.rest();
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target `{unknown}`; there are {}", known.join(", "));
    }
    if chosen.is_empty() {
        chosen = known;
    }
    if find_program("c++").is_none() {
        bail!("a C++ compiler is missing (libFuzzer is written in C++): install Debian's g++");
    }
    ui::step("fuzz: build the targets", build)?;
    if only_seeds {
        return ui::step("fuzz: the seeds", || chosen.iter().try_for_each(|target| run_seeds(target)));
    }
    for target in chosen {
        ui::step(&format!("fuzz: {target} for {seconds} s"), || run(&target, seconds, &passed))?;
    }
    Ok(())
}

/// Runs every target on its seeds, none of which may fail.
pub(crate) fn seeds() -> Result<()> {
    ui::step("fuzz: build the targets", build)?;
    ui::step("fuzz: the seeds", || targets()?.iter().try_for_each(|target| run_seeds(target)))
}

fn run_seeds(target: &str) -> Result<()> {
    let seeds = format!("fuzz/seeds/{target}");
    if fs::read_dir(&seeds).map_or(0, Iterator::count) == 0 {
        bail!("{target} has no seeds; put an input or two into {seeds}");
    }
    Cmd::new(executable(target)).args(["-runs=0", &seeds]).run().with_context(|| format!("{target}: a seed fails"))
}

fn executable(target: &str) -> String {
    format!("fuzz/target/{}-unknown-linux-gnu/release/{target}", std::env::consts::ARCH)
}

fn build() -> Result<()> {
    cargo("build")
        .args(["--release", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "fuzz/target", "--bins", "--locked"])
        .env("RUSTFLAGS", COVERAGE)
        .run()
}

fn run(target: &str, seconds: u64, passed: &[String]) -> Result<()> {
    let corpus = format!("fuzz/corpus/{target}");
    let artifacts = format!("fuzz/artifacts/{target}/");
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    let mut fuzzer = Cmd::new(executable(target))
        .arg(format!("-artifact_prefix={artifacts}"))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-max_len=65536", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    if passed.iter().all(|arg| arg.starts_with('-')) {
        fuzzer = fuzzer.arg(&corpus);
        let seeds = format!("fuzz/seeds/{target}");
        if fs::exists(&seeds)? {
            fuzzer = fuzzer.arg(seeds);
        }
    }
    fuzzer.args(passed).run().with_context(|| format!("{target}: found an input that fails; it lies in {artifacts}"))
}

/// One target is one file.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("fuzz/fuzz_targets").context("cannot read fuzz/fuzz_targets")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// `90`, `90s`, `5m` or `1h`.
fn seconds(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("`{text}` is no duration; write `90s`, `5m` or `1h`"),
    };
    let number: u64 = digits.parse().with_context(|| format!("`{text}` is no duration; write `90s`, `5m` or `1h`"))?;
    Ok(number.saturating_mul(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600)] {
            assert_eq!(seconds(text).unwrap(), expected, "{text}");
        }
        assert!(seconds("soon").is_err());
        assert!(seconds("5d").is_err());
    }
}
