//! Child processes: one reaper owns them all.
//!
//! In: commands to start. Out: handles to signal them and to await their exit. Promise:
//! every child is reaped, ours and those that were orphaned onto us; a signal never goes
//! to a process id that was already given to somebody else.

mod application;
mod harden;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub(crate) use application::{launch, shares_terminal};
pub(crate) use harden::{Limits, harden};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with a code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code as shells give it: the process's own, or 128 plus the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    fn of(status: WaitStatus) -> Option<Self> {
        status.exit_status().map(Self::Code).or_else(|| status.terminating_signal().map(Self::Signal))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// All children of this process. Cheap to clone; exactly one clone reaps.
#[derive(Clone, Default)]
pub struct Children(Arc<Mutex<HashMap<Pid, Known>>>);

struct Known {
    exit: watch::Sender<Option<Exit>>,
    own_group: bool,
}

impl Children {
    /// No children yet. Reaping takes every child of the process: there is one of these per process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a command. `own_group` says that the command makes itself the leader of a process group
    /// (`Command::process_group(0)`): what is left of the group is then killed when the leader ends.
    ///
    /// # Errors
    /// As `Command::spawn`.
    pub fn spawn(&self, command: &mut Command, own_group: bool) -> io::Result<Child> {
        // Under the lock, so that the reaper cannot see the child's end before we know the child.
        let mut known = self.0.lock();
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, exit) = watch::channel(None);
        known.insert(pid, Known { exit: sender, own_group });
        Ok(Child { pid, exit, children: self.clone() })
    }

    /// Reaps for ever: woken by SIGCHLD, never polling.
    pub(crate) async fn reap(self) -> io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            self.reap_ended();
            if ended.recv().await.is_none() {
                return std::future::pending().await;
            }
        }
    }

    fn reap_ended(&self) {
        let mut known = self.0.lock();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(exit) = Exit::of(status) else { continue };
            match known.remove(&pid) {
                Some(child) => {
                    if child.own_group {
                        // The number is free again only in theory: the kernel counts through all others first.
                        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                    }
                    child.exit.send_replace(Some(exit));
                }
                None => tracing::debug!(component = "runtime", pid = pid.as_raw_nonzero(), %exit, "reaped an orphan"),
            }
        }
    }
}

/// A child process. Dropping the handle leaves the process running.
pub struct Child {
    pid: Pid,
    exit: watch::Receiver<Option<Exit>>,
    children: Children,
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for its end. Cancel-safe, and may be called again.
    pub async fn wait(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => (*exit).unwrap_or(Exit::Code(0)),
            // The reaper is gone, and with it everybody who could tell.
            Err(_) => std::future::pending().await,
        }
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Sends it a signal, by number. Nothing happens when it has ended.
    pub fn signal(&self, number: i32) {
        self.send(number, false);
    }

    /// Sends a signal to its whole process group when it leads one, else to itself.
    pub fn signal_group(&self, number: i32) {
        self.send(number, true);
    }

    fn send(&self, number: i32, group: bool) {
        let Some(signal) = Signal::from_named_raw(number) else { return };
        // Not reaped yet means that the number is still its own.
        let known = self.children.0.lock();
        let Some(child) = known.get(&self.pid) else { return };
        let sent = if group && child.own_group {
            rustix::process::kill_process_group(self.pid, signal)
        } else {
            rustix::process::kill_process(self.pid, signal)
        };
        if let Err(error) = sent {
            tracing::warn!(component = "runtime", pid = self.pid(), signal = number, %error, "cannot signal");
        }
    }
}
