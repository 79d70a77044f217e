//! Sockets passed by whoever started us, by systemd's protocol ([sd_listen_fds(3)]).
//!
//! In: `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`. Out: the sockets, found by the
//! address they are bound to. Promise: a socket stays open for the life of the process,
//! so that a component that is restarted finds it again; children never get it.
//!
//! [sd_listen_fds(3)]: https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html

use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bound::Bound;

/// The variables of the protocol; the application must not get them.
pub(crate) const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The first descriptor passed; below are the standard streams.
const FIRST: RawFd = 3;

/// More are certainly a mistake.
const MOST: RawFd = 256;

#[derive(Default)]
pub(super) struct Inherited(Vec<InheritedSocket>);

struct InheritedSocket {
    socket: OwnedFd,
    name: String,
    bound: Bound,
    claimed: AtomicBool,
}

impl Inherited {
    pub(super) fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let Some(count) = passed(std::process::id(), &variable) else { return Self::default() };
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        Self((FIRST..FIRST + count).filter_map(|fd| take(fd, names.next().unwrap_or_default())).collect())
    }

    pub(super) fn tcp(&self, wanted: SocketAddr) -> Option<&OwnedFd> {
        self.claim(|bound| bound.is_tcp(wanted))
    }

    pub(super) fn udp(&self, wanted: SocketAddr) -> Option<&OwnedFd> {
        self.claim(|bound| bound.is_udp(wanted))
    }

    pub(super) fn unix(&self, wanted: &Path) -> Option<&OwnedFd> {
        self.claim(|bound| bound.is_unix(wanted))
    }

    pub(super) fn unclaimed(&self) -> Vec<String> {
        let unclaimed = self.0.iter().filter(|socket| !socket.claimed.load(Ordering::Relaxed));
        unclaimed.map(|socket| format!("{} ({})", socket.bound, socket.name)).collect()
    }

    fn claim(&self, fits: impl Fn(&Bound) -> bool) -> Option<&OwnedFd> {
        let found = self.0.iter().find(|socket| fits(&socket.bound))?;
        found.claimed.store(true, Ordering::Relaxed);
        Some(&found.socket)
    }
}

/// How many descriptors are meant for process `pid`.
fn passed(pid: u32, variable: &dyn Fn(&str) -> Option<String>) -> Option<RawFd> {
    let meant_for: u32 = variable("LISTEN_PID")?.parse().ok()?;
    let count: RawFd = variable("LISTEN_FDS")?.parse().ok()?;
    (meant_for == pid && (1..=MOST).contains(&count)).then_some(count)
}

/// Takes ownership of descriptor `fd` when it is an open listening or datagram socket.
fn take(fd: RawFd, name: String) -> Option<InheritedSocket> {
    let report = |what: &str| tracing::warn!(component = "runtime", fd, name, "inherited descriptor ignored: {what}");
    // SAFETY: fcntl only asks; a descriptor that is not open gives an error.
    #[expect(unsafe_code, reason = "whether a number is an open descriptor can only be asked by its number")]
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    if !open {
        report("it is not open");
        return None;
    }
    // SAFETY: it is open, and by the protocol (LISTEN_PID is ours) it was passed for us to own;
    // this runs once, before anything else could have opened a descriptor of this number.
    #[expect(unsafe_code, reason = "the protocol passes descriptors by number")]
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let Ok(bound) = Bound::of(&socket) else {
        report("it is no socket we know");
        return None;
    };
    Some(InheritedSocket { socket, name, bound, claimed: AtomicBool::new(false) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descriptors_meant_for_us_are_taken() {
        for (name, pid, count, expected) in [
            ("ours", Some("7"), Some("2"), Some(2)),
            ("somebody else's", Some("8"), Some("2"), None),
            ("no pid", None, Some("2"), None),
            ("none", Some("7"), Some("0"), None),
            ("nonsense", Some("7"), Some("many"), None),
            ("far too many", Some("7"), Some("100000"), None),
        ] {
            let variable = |name: &str| {
                let value = if name == "LISTEN_PID" { pid } else { count };
                value.map(str::to_owned)
            };
            assert_eq!(passed(7, &variable), expected, "{name}");
        }
    }
}
