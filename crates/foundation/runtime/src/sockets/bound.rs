//! What a socket of unknown origin is bound to.
//!
//! In: a descriptor that somebody passed. Out: its kind and address, as the kernel has
//! them. Promise: made fit for use: it does not block, and children do not get it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::FdFlags;
use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use socket2::SockRef;

/// A listening or datagram socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl Bound {
    /// What the socket is, and made fit for use.
    pub(super) fn of(socket: &OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(socket, FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(socket, true)?;
        let local = SockRef::from(socket).local_addr()?;
        match (socket_type(socket)?, local.as_socket(), local.as_pathname()) {
            (SocketType::STREAM, Some(address), _) if socket_acceptconn(socket)? => Ok(Self::Tcp(address)),
            (SocketType::STREAM, None, Some(path)) if socket_acceptconn(socket)? => Ok(Self::Unix(path.into())),
            (SocketType::DGRAM, Some(address), _) => Ok(Self::Udp(address)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Unix(_) => "unix",
        }
    }

    /// The address alone.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(address) | Self::Udp(address) => address.to_string(),
            Self::Unix(path) => path.display().to_string(),
        }
    }

    pub(super) fn is_tcp(&self, wanted: SocketAddr) -> bool {
        matches!(self, Self::Tcp(address) if *address == wanted)
    }

    pub(super) fn is_udp(&self, wanted: SocketAddr) -> bool {
        matches!(self, Self::Udp(address) if *address == wanted)
    }

    pub(super) fn is_unix(&self, wanted: &Path) -> bool {
        matches!(self, Self::Unix(path) if path == wanted)
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
