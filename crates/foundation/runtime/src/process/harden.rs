//! What the process does to itself before anything else.
//!
//! Promise: no core dump and no debugger of the same user shows a secret, and there are as
//! many file descriptors as the system allows; the application gets its own limits back.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// The limits we were started with, for the application.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    core: Rlimit,
    files: Rlimit,
}

impl Limits {
    /// The limits of this process as they are.
    pub(crate) fn current() -> Self {
        Self { core: getrlimit(Resource::Core), files: getrlimit(Resource::Nofile) }
    }

    /// Sets them again, in a child between fork and exec: only system calls.
    pub(super) fn restore(&self) -> rustix::io::Result<()> {
        setrlimit(Resource::Core, self.core)?;
        setrlimit(Resource::Nofile, self.files)
    }
}

/// Hardens this process. Nothing here may keep it from starting: what fails is logged.
pub(crate) fn harden(before: &Limits) {
    let report = |what: &str, result: rustix::io::Result<()>| {
        if let Err(error) = result {
            tracing::warn!(component = "runtime", %error, "cannot {what}");
        }
    };
    report("forbid core dumps", set_dumpable_behavior(DumpableBehavior::NotDumpable));
    // The hard limit stays, or the application could not have its soft limit back.
    report("set the limit of core dumps", setrlimit(Resource::Core, Rlimit { current: Some(0), ..before.core }));
    let files = Rlimit { current: before.files.maximum, ..before.files };
    report("raise the limit of open files", setrlimit(Resource::Nofile, files));
}
