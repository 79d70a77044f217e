//! The application that `run -- CMD` starts.
//!
//! In: the command and the variables that `secrets` gave. Out: a child, or the exit code a
//! shell gives for a command that cannot be started. Promise: it starts with default
//! signals, its own limits and only the descriptors 0 to 2, and never outlives us.

use std::ffi::OsString;
use std::io;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::Command;

use outrigger_config::Secret;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use super::harden::Limits;
use super::{Child, Children};
use crate::sockets::INHERITANCE_VARIABLES;

/// The highest signal that is not a real-time one; those have their default disposition in every program.
const LAST_SIGNAL: i32 = 31;

/// A command that cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start `{program}`: {source}")]
pub(crate) struct LaunchError {
    program: String,
    source: io::Error,
}

impl LaunchError {
    /// 127 when there is no such command, 126 when it cannot be executed, as in a shell.
    pub(crate) fn exit_code(&self) -> i32 {
        if self.source.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

/// Whether the application shares our process group: at a terminal, which then delivers its signals to both.
pub(crate) fn shares_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Starts the application.
///
/// It leads a process group of its own, so that its helpers end with it. At a terminal it
/// stays in ours, for only the foreground group may read from the terminal.
pub(crate) fn launch(
    children: &Children,
    command: &[OsString],
    variables: &[(String, Secret)],
    limits: Limits,
) -> Result<Child, LaunchError> {
    let program = command.first().cloned().unwrap_or_default();
    let mut child = Command::new(&program);
    child.args(&command[1.min(command.len())..]);
    for name in INHERITANCE_VARIABLES {
        child.env_remove(name);
    }
    child.envs(variables.iter().map(|(name, value)| (name, value.expose())));
    let own_group = !shares_terminal();
    if own_group {
        child.process_group(0);
    }
    let parent = getpid();
    let prepare = move || {
        for signal in 1..=LAST_SIGNAL {
            // SAFETY: signal() is async-signal-safe, and SIG_DFL installs no code; for SIGKILL and SIGSTOP it fails, which is fine.
            #[expect(unsafe_code, reason = "no wrapper sets a disposition in a forked child")]
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        limits.restore()?;
        // As if we were PID 1 of a container: when we are killed the application does not run on,
        // unwatched, without its proxy and with secrets that nobody renews.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have died before the line above.
        if getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::CHILD));
        }
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` makes only system calls: it allocates nothing and takes no lock.
    #[expect(unsafe_code, reason = "signals, limits and the death signal can only be set in the child itself")]
    unsafe {
        child.pre_exec(prepare);
    }
    children.spawn(&mut child, own_group).map_err(|source| {
        let program = program.to_string_lossy().into_owned();
        LaunchError { program, source }
    })
}
