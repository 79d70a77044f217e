//! Gives privileges up, for good, and goes on as another program.
//!
//! In: the user to become. Out: this process without any capability in any set (permitted, effective, inheritable,
//! bounding, ambient), which no program that it executes can regain. Promise: that it is so was read back from the
//! kernel, or nothing is executed. Call it while there is only one thread.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Uid, getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    no_new_privs, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_res_uid,
};

/// The kernel has numbers for so many.
const MOST_CAPABILITIES: u32 = 64;

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel refuses a step.
    #[error(
        "cannot {what}; give this container the capability {needs} for its start (`securityContext.capabilities.add`)"
    )]
    Missing {
        what: &'static str,
        needs: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The primary group stays as it is, and root's may write what is root's.
    #[error("this runs as the group 0; set `securityContext.runAsGroup` to another, such as {0}")]
    RootGroup(u32),
    /// The kernel agreed to every step, and yet.
    #[error("the process still has {0} although it gave it up; this kernel cannot be relied on")]
    Kept(&'static str),
    /// What was to be executed.
    #[error("cannot execute {program}")]
    Execute {
        program: String,
        #[source]
        source: std::io::Error,
    },
}

/// Becomes `user`, without any capability, now and later.
pub(crate) fn drop_all(user: u32) -> Result<(), Error> {
    if getegid().is_root() {
        return Err(Error::RootGroup(user));
    }
    let missing = |what, needs| move |errno: Errno| Error::Missing { what, needs, source: errno.into() };
    let setpcap = "SETPCAP";
    clear_ambient_capability_set().map_err(missing("clear the ambient capabilities", setpcap))?;
    for capability in all() {
        // The kernel answers `invalid` for numbers that it has no capability for.
        if capability_is_in_bounding_set(capability) == Ok(true) {
            remove_capability_from_bounding_set(capability)
                .map_err(missing("give up capabilities for later programs", setpcap))?;
        }
    }
    if geteuid().as_raw() != user {
        let user = Uid::from_raw(user);
        set_thread_res_uid(user, user, user).map_err(missing("become the user of --proxy-uid", "SETUID"))?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(missing("give up capabilities", setpcap))?;
    set_no_new_privs(true).map_err(missing("forbid new privileges", setpcap))?;
    read_back()
}

/// Nothing is left, says the kernel.
fn read_back() -> Result<(), Error> {
    let sets = capabilities(None).map_err(|_| Error::Kept("capabilities that cannot be told"))?;
    if !(sets.effective | sets.permitted | sets.inheritable).is_empty() {
        return Err(Error::Kept("capabilities"));
    }
    if all().any(|capability| capability_is_in_bounding_set(capability) == Ok(true)) {
        return Err(Error::Kept("capabilities in its bounding set"));
    }
    if no_new_privs() != Ok(true) {
        return Err(Error::Kept("ways to new privileges"));
    }
    Ok(())
}

fn all() -> impl Iterator<Item = CapabilitySet> {
    (0..MOST_CAPABILITIES).map(|number| CapabilitySet::from_bits_retain(1 << number))
}

/// Goes on as this same executable with other arguments.
pub(crate) fn execute_self(arguments: &[OsString]) -> Result<Infallible, Error> {
    let program = "/proc/self/exe";
    let source = Command::new(program).arg0("outrigger").args(arguments).exec();
    Err(Error::Execute { program: program.to_owned(), source })
}
