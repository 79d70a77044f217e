//! Runs other programs.
//!
//! In: a program, its arguments and environment. Out: its success, its output, or an
//! error that names the whole command line. Promise: a program that is run quietly
//! shows what it wrote when it fails; our tools come before the system's in `PATH`.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ui::Ticker;

/// A command line that is being put together.
pub(crate) struct Cmd {
    command: Command,
}

/// `cargo SUBCOMMAND`, by the same cargo that runs us.
pub(crate) fn cargo(subcommand: &str) -> Cmd {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cmd = Cmd::new(program).arg(subcommand);
    // `cargo run` describes xtask itself in these; build scripts that watch them would run again for nothing.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            cmd.command.env_remove(&name);
        }
    }
    cmd
}

impl From<Command> for Cmd {
    fn from(command: Command) -> Self {
        Self { command }
    }
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program) }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in `folder`.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Puts what `setup` installed first in `PATH`.
    pub(crate) fn with_tools(self) -> Self {
        let mut path = OsString::from(tools_dir().join("bin"));
        // Debian keeps nginx and haproxy in sbin, which an ordinary user's PATH lacks.
        for part in [std::env::var_os("PATH").unwrap_or_default(), "/usr/sbin:/sbin".into()] {
            path.push(":");
            path.push(part);
        }
        self.env("PATH", path)
    }

    /// Runs it with our own output.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| format!("cannot start `{}`", self.line()))?;
        if !status.success() {
            bail!("`{}` failed: {status}", self.line());
        }
        Ok(())
    }

    /// Runs it with our own error output for both of its outputs, and shows each line to `see`.
    pub(crate) fn each_line(mut self, see: impl FnMut(&str)) -> Result<()> {
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        self.command.stdout(writer.try_clone()?).stderr(writer);
        if std::io::stderr().is_terminal() {
            self.command.env("CARGO_TERM_COLOR", "always");
        }
        let child = self.command.spawn().with_context(|| format!("cannot start `{}`", self.line()))?;
        let line = self.line();
        // The command holds the pipe's other end, too.
        drop(self);
        let status = crate::again::copy(child, reader, see)?;
        if !status.success() {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// Runs it and returns its standard output.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.command.output().with_context(|| format!("cannot start `{}`", self.line()))?;
        if !output.status.success() {
            bail!("`{}` failed: {}\n{}", self.line(), output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it silently, with a sign of life under the name `what`; shows its output when it fails.
    pub(crate) fn quiet(mut self, what: &str) -> Result<()> {
        std::fs::create_dir_all("target").context("cannot make target/")?;
        let path = PathBuf::from(format!("target/xtask-{}.log", std::process::id()));
        let log = std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        self.command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = self.command.spawn().with_context(|| format!("cannot start `{}`", self.line()))?;
        let mut ticker = Ticker::new(what);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            ticker.tick();
            std::thread::sleep(Duration::from_millis(50));
        };
        ticker.clear();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        std::fs::remove_file(&path)?;
        if !status.success() {
            bail!("`{}` failed: {status}\n{}", self.line(), text.trim_end());
        }
        Ok(())
    }

    fn line(&self) -> String {
        let mut words = vec![self.command.get_program().to_string_lossy().into_owned()];
        words.extend(self.command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
        words.join(" ")
    }
}

/// Where `setup` puts what is ours alone. Copies of the repository may share it by a link, so it has the name of where it lies.
pub(crate) fn tools_dir() -> PathBuf {
    let folder = crate::root().join("target/tools");
    folder.canonicalize().unwrap_or(folder)
}

/// Looks `program` up as a shell would, in `PATH` and the sbin folders.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
