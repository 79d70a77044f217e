//! `cargo test`, with a second look at the few tests that failed.
//!
//! In: a `cargo test` command. Out: the names of tests that failed, and then passed alone, each time; or the failure.
//! Promise: a test that fails for a reason fails the run. One that fails by chance (two cores, real servers) costs no
//! run of half an hour, but it never passes silently: the closing table names it, and it is to be mended.

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command::Cmd;
use crate::ui;

/// More failures than this at once are no chance.
const MOST: usize = 3;

/// How many times in a row a failed test must pass alone.
const TIMES: usize = 3;

/// A target with failed tests, as cargo and the test harness told of it.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    /// What selects the target: `-p outrigger-logs --test logs`.
    target: Vec<String>,
    names: Vec<String>,
}

/// What the output of a run tells, line by line.
#[derive(Default)]
struct Reader {
    failed: Vec<Failed>,
    /// Names below the last `failures:` of the target that runs.
    names: Vec<String>,
    listing: bool,
    /// How many failed in that target, as its last line says.
    count: Option<usize>,
    /// Something failed that is no test: a compiler, a crash.
    other: bool,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if line == "failures:" {
            self.names.clear();
            self.listing = true;
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.listing = false;
            self.count = count(rest);
        } else if let Some(target) = line.strip_prefix("error: test failed, to rerun pass `") {
            let names = std::mem::take(&mut self.names);
            if names.is_empty() || self.count.take() != Some(names.len()) {
                self.other = true;
            }
            let target = target.trim_end_matches('`').split_whitespace().map(str::to_owned).collect();
            self.failed.push(Failed { target, names });
        } else if self.listing
            && let Some(name) = line.strip_prefix("    ")
            && !name.contains(' ')
        {
            self.names.push(name.to_owned());
        }
    }

    /// The tests worth another look, or none.
    fn few(self) -> Option<Vec<Failed>> {
        let all: usize = self.failed.iter().map(|failed| failed.names.len()).sum();
        (!self.other && (1..=MOST).contains(&all)).then_some(self.failed)
    }
}

/// `FAILED. 26 passed; 1 failed; …` says 1.
fn count(result: &str) -> Option<usize> {
    result.split("; ").find_map(|part| part.strip_suffix(" failed")?.parse().ok())
}

/// Runs `cargo test`, as `make` gives it, over `targets` with the harness' own `arguments`.
pub(crate) fn test(make: impl Fn() -> Cmd, targets: &[&str], arguments: &[String]) -> Result<Vec<String>> {
    let command = make().args(targets).args(["--no-fail-fast", "--"]).args(arguments);
    let mut reader = Reader::default();
    let Err(failure) = command.each_line(|line| reader.line(line)) else { return Ok(Vec::new()) };
    let Some(failed) = reader.few() else { return Err(failure) };
    let mut unsteady = Vec::new();
    for Failed { target, names } in failed {
        ui::title(&format!("{} failed; again, {TIMES} times, alone", names.join(", ")));
        for _ in 0..TIMES {
            let passed = format!("test result: ok. {} passed; 0 failed", names.len());
            let mut ran = false;
            make()
                .args(&target)
                .args(["--", "--exact"])
                .args(&names)
                .each_line(|line| ran |= line.starts_with(&passed))
                .map_err(|again| again.context("it failed again"))?;
            if !ran {
                bail!("`{}` did not run again in {}", names.join(", "), target.join(" "));
            }
        }
        unsteady.extend(names);
    }
    ui::note(&format!(
        "failed once, then passed {TIMES} times: {}. Mend what makes it fail by chance",
        unsteady.join(", ")
    ));
    Ok(unsteady)
}

/// Copies what `child` says through `from` to our own error output, a line at a time, and shows each line without
/// colours to `see`. Something that `child` started and left behind may hold the pipe: it is not waited for.
pub(crate) fn copy(mut child: Child, from: PipeReader, mut see: impl FnMut(&str)) -> std::io::Result<ExitStatus> {
    let (sender, lines) = mpsc::sync_channel(256);
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) && sender.send(line).is_ok() {
            line = Vec::new();
        }
    });
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                std::io::stderr().write_all(&line)?;
                see(&plain(&String::from_utf8_lossy(&line)));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = ended {
                    return Ok(status);
                }
                ended = child.try_wait()?;
            }
            Err(RecvTimeoutError::Disconnected) => return child.wait(),
        }
    }
}

/// A line without its end and without colours.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut parts = line.trim_end().split('\x1b');
    text.extend(parts.next());
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "
     Running tests/logs.rs (target/debug/deps/logs-1)

running 2 tests
test b ... ok
test child ... \x1b[31mFAILED\x1b[0m

failures:

---- child stdout ----
failures:
    nothing of this list

failures:
    child

test result: FAILED. 26 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 14.15s

\x1b[1m\x1b[31merror\x1b[0m: test failed, to rerun pass `-p outrigger-logs --test logs`
";

    fn read(text: &str) -> Reader {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(&plain(line)));
        reader
    }

    #[test]
    fn a_failed_test_is_found_with_its_target() {
        let target = ["-p", "outrigger-logs", "--test", "logs"].map(str::to_owned).to_vec();
        assert_eq!(read(RUN).few(), Some(vec![Failed { target, names: vec!["child".to_owned()] }]));
    }

    #[test]
    fn many_failures_and_crashes_are_no_chance() {
        assert_eq!(read("").few(), None);
        assert_eq!(read(&RUN.repeat(MOST + 1)).few(), None);
        assert_eq!(read(&RUN.replace("1 failed", "2 failed")).few(), None);
        let crash = "error: test failed, to rerun pass `-p outrigger-logs --lib`";
        assert_eq!(read(crash).few(), None);
        assert_eq!(read(&format!("{RUN}{crash}")).few(), None);
    }
}
