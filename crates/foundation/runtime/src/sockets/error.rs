//! Why a socket was refused, in words an operator can act on.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use rustix::io::Errno;

use super::holder::{self, Holder, Transport};

/// Why a socket was refused.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else has the address.
    #[error("{owner}: {address} is in use{}", by(.holder.as_ref()))]
    InUse {
        /// Who wanted it: a listener's name.
        owner: String,
        /// The address.
        address: String,
        /// Who has it, when /proc tells.
        holder: Option<Holder>,
    },
    /// The process may not listen there.
    #[error("{owner}: no permission to listen on {address}; {advice}")]
    Denied {
        /// Who wanted it.
        owner: String,
        /// The address.
        address: String,
        /// What to do.
        advice: &'static str,
    },
    /// The address belongs to no interface of this machine.
    #[error("{owner}: {address} is not an address of this machine; use one of its own, 0.0.0.0 or [::]")]
    NotLocal {
        /// Who wanted it.
        owner: String,
        /// The address.
        address: String,
    },
    /// A unix socket's folder does not exist.
    #[error("{owner}: cannot listen on {address}: its folder does not exist; make it, or mount it, before the start")]
    NoFolder {
        /// Who wanted it.
        owner: String,
        /// The address.
        address: String,
    },
    /// Anything else.
    #[error("{owner}: cannot listen on {address}: {source}")]
    Other {
        /// Who wanted it.
        owner: String,
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

impl SocketError {
    pub(super) fn new(owner: &str, address: SocketAddr, transport: Transport, error: io::Error) -> Self {
        let holder = || holder::of_port(transport, address);
        let advice = if address.port() != 0 && address.port() < 1024 {
            "ports below 1024 need CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start"
        } else {
            "a security policy of the system forbids it"
        };
        let protocol = match transport {
            Transport::Tcp => "",
            Transport::Udp => "udp ",
        };
        Self::from_errno(owner, format!("{protocol}{address}"), holder, advice, error)
    }

    pub(super) fn new_unix(owner: &str, path: &Path, error: io::Error) -> Self {
        let holder = || holder::of_unix(path);
        let advice = "its folder must be writable for this process";
        Self::from_errno(owner, format!("unix:{}", path.display()), holder, advice, error)
    }

    fn from_errno(
        owner: &str,
        address: String,
        holder: impl FnOnce() -> Option<Holder>,
        advice: &'static str,
        source: io::Error,
    ) -> Self {
        let owner = owner.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::ADDRINUSE) => Self::InUse { owner, address, holder: holder() },
            Some(Errno::ACCESS | Errno::PERM) => Self::Denied { owner, address, advice },
            Some(Errno::NOENT) => Self::NoFolder { owner, address },
            Some(Errno::ADDRNOTAVAIL) => Self::NotLocal { owner, address },
            _ => Self::Other { owner, address, source },
        }
    }
}

fn by(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) if holder.pid == std::process::id() => " by Outrigger itself: another listener has it".to_owned(),
        Some(holder) => format!(" by process {} (`{}`)", holder.pid, holder.command),
        None => " by another process".to_owned(),
    }
}
