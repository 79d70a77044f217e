//! Programs that a test starts.
//!
//! In: a command. Out: a guard, or its output. Promise: ended by its own process id when
//! the guard goes; what it wrote is in a file, and on the screen when the test failed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How much of a failed program's output is shown.
const SHOWN_LINES: usize = 80;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its output goes to `folder/name.log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("the test's folder can be written");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file can be cloned")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it wrote so far, output and errors.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// A figure of its memory in KiB, such as `VmRSS`, as `/proc/PID/status` has it.
    ///
    /// # Errors
    /// When it has ended, or there is no such figure.
    pub fn memory(&self, figure: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
        let line = line.with_context(|| format!("there is no {figure} in {status}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended already.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal)
            .unwrap_or_else(|error| panic!("cannot send {signal:?} to {}: {error}", self.name));
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When it still runs.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        match self.child.try_wait()? {
            Some(status) => Ok(status),
            None => bail!("{} still runs", self.name),
        }
    }

    /// Fails when it has ended, with what it wrote.
    ///
    /// # Errors
    /// When it has ended.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}); it wrote:\n{}", self.name, self.log()),
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `patience`.
    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        crate::eventually_within(patience, &format!("the end of {}", self.name), || self.ended())
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Panics
    /// When it still runs after 30 s.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(Duration::from_secs(30))
    }

    /// Kills it (SIGKILL) and waits for its end.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child of ours can be killed");
        self.child.wait().expect("a child of ours can be awaited");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Politely first, for servers that have children of their own (nginx).
            let asked = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let begun = Instant::now();
            while asked.is_ok() && begun.elapsed() < Duration::from_secs(5) && matches!(self.child.try_wait(), Ok(None))
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            // It may have ended by now, which is what is wanted.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(SHOWN_LINES);
            eprintln!("--- the end of what {} wrote\n{}\n---", self.name, lines[from..].join("\n"));
        }
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails, with all it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} failed ({}):\n{out}{err}", output.status);
    }
    Ok(out.into_owned())
}

/// A program that `cargo xtask setup` installed, or the system has.
pub fn tool(name: impl AsRef<OsStr>) -> Command {
    let ours = repository().join("target/tools/bin").join(name.as_ref());
    if ours.exists() {
        return Command::new(ours);
    }
    // Debian keeps servers in sbin, which an ordinary user's PATH lacks.
    let sbin = Path::new("/usr/sbin").join(name.as_ref());
    if sbin.exists() { Command::new(sbin) } else { Command::new(name) }
}

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/e2e lies in the repository")
}
