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

use rustix::io::FdFlags;
use rustix::net::SocketType;
use socket2::SockRef;

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
    kind: SocketType,
    address: Address,
    claimed: AtomicBool,
}

enum Address {
    Ip(SocketAddr),
    Unix(std::path::PathBuf),
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
        self.claim(|socket| {
            socket.kind == SocketType::STREAM && matches!(socket.address, Address::Ip(a) if a == wanted)
        })
    }

    pub(super) fn udp(&self, wanted: SocketAddr) -> Option<&OwnedFd> {
        self.claim(|socket| socket.kind == SocketType::DGRAM && matches!(socket.address, Address::Ip(a) if a == wanted))
    }

    pub(super) fn unix(&self, wanted: &Path) -> Option<&OwnedFd> {
        self.claim(|socket| {
            socket.kind == SocketType::STREAM && matches!(&socket.address, Address::Unix(path) if path == wanted)
        })
    }

    pub(super) fn unclaimed(&self) -> Vec<String> {
        let unclaimed = self.0.iter().filter(|socket| !socket.claimed.load(Ordering::Relaxed));
        unclaimed.map(|socket| format!("{} ({})", socket.address.text(), socket.name)).collect()
    }

    fn claim(&self, fits: impl Fn(&InheritedSocket) -> bool) -> Option<&OwnedFd> {
        let found = self.0.iter().find(|socket| fits(socket))?;
        found.claimed.store(true, Ordering::Relaxed);
        Some(&found.socket)
    }
}

impl Address {
    fn text(&self) -> String {
        match self {
            Self::Ip(address) => address.to_string(),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
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
    let described = describe(&socket);
    let Ok((kind, address)) = described else {
        report("it is no socket we know");
        return None;
    };
    Some(InheritedSocket { socket, name, kind, address, claimed: AtomicBool::new(false) })
}

fn describe(socket: &OwnedFd) -> std::io::Result<(SocketType, Address)> {
    let kind = rustix::net::sockopt::socket_type(socket)?;
    rustix::io::fcntl_setfd(socket, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(socket, true)?;
    let local = SockRef::from(socket).local_addr()?;
    let address =
        local.as_socket().map(Address::Ip).or_else(|| local.as_pathname().map(|path| Address::Unix(path.into())));
    address.map(|address| (kind, address)).ok_or_else(|| std::io::ErrorKind::Unsupported.into())
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
