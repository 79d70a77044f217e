//! The netlink socket: asks the kernel and reads its answer.
//!
//! Promise: the kernel answers at once, so a wait for it has a limit and is an error.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use super::reply::{Reply, replies};

const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An error repeats its request, and no message of ours comes near this.
const LONGEST_REPLY: usize = 64 * 1024;

/// A connection to the kernel's netfilter.
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// Opens it.
    pub(crate) fn open() -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LONGEST_WAIT))?;
        Ok(Self(socket))
    }

    /// Sends a message, or a whole batch.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(&self.0, bytes, SendFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads the next answers.
    pub(crate) fn receive(&self) -> io::Result<Vec<Reply>> {
        let mut buffer = vec![0; LONGEST_REPLY];
        let (count, whole) = loop {
            match recv(&self.0, &mut buffer[..], RecvFlags::TRUNC) {
                // When there were more failures than room for them, the first ones are told next.
                Err(Errno::INTR | Errno::NOBUFS) => {}
                other => break other?,
            }
        };
        if whole > buffer.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is too long"));
        }
        let read: Result<Vec<_>, _> = replies(&buffer[..count]).collect();
        read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
