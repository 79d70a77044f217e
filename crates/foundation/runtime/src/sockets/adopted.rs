//! Sockets of the process before, handed over by a keeper.
//!
//! In: descriptors. Out: each to the first who asks for its address, and his from then
//! on. Promise: of a group on one address (`SO_REUSEPORT`) all are given out, for each
//! has clients of its own waiting in its backlog; those that nobody wants are closed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use parking_lot::Mutex;
use socket2::Socket;

use super::bound::Bound;

#[derive(Default)]
pub(super) struct Adopted(Mutex<Vec<(Bound, OwnedFd)>>);

impl Adopted {
    /// Takes sockets in; returns how many of them can be used.
    pub(super) fn add(&self, sockets: impl Iterator<Item = OwnedFd>) -> usize {
        let mut adopted = self.0.lock();
        let before = adopted.len();
        for socket in sockets {
            match Bound::of(&socket) {
                Ok(bound) => adopted.push((bound, socket)),
                Err(error) => {
                    tracing::warn!(component = "runtime", %error, "a socket that was handed over cannot be used");
                }
            }
        }
        adopted.len() - before
    }

    /// All listeners on an address.
    pub(super) fn tcp(&self, wanted: SocketAddr) -> Vec<Socket> {
        self.take(|bound| bound.is_tcp(wanted))
    }

    pub(super) fn udp(&self, wanted: SocketAddr) -> Option<Socket> {
        self.take(|bound| bound.is_udp(wanted)).pop()
    }

    pub(super) fn unix(&self, wanted: &Path) -> Option<Socket> {
        self.take(|bound| bound.is_unix(wanted)).pop()
    }

    /// Closes what nobody asked for; returns the addresses.
    pub(super) fn close_rest(&self) -> Vec<String> {
        self.take_all().into_iter().map(|(bound, _)| bound.to_string()).collect()
    }

    fn take(&self, fits: impl Fn(&Bound) -> bool) -> Vec<Socket> {
        self.0.lock().extract_if(.., |(bound, _)| fits(bound)).map(|(_, socket)| Socket::from(socket)).collect()
    }

    fn take_all(&self) -> Vec<(Bound, OwnedFd)> {
        std::mem::take(&mut self.0.lock())
    }
}
