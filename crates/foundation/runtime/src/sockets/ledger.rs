//! Which sockets were given out, and are still open.
//!
//! In: each socket as it is given out. Out: copies of those that whoever has them has not
//! closed. Promise: nothing is held open by it. A second descriptor would keep a socket
//! listening after its owner has closed it, and its clients waiting for nobody; so a
//! socket is remembered by its number and its inode, which the kernel gives no other.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use parking_lot::Mutex;

use super::bound::Bound;

/// A socket that somebody listens on.
pub(crate) struct Listening {
    /// Who asked for it.
    pub(crate) owner: String,
    /// `tcp`, `udp` or `unix`.
    pub(crate) kind: &'static str,
    /// Its address or path.
    pub(crate) address: String,
    /// A copy of its descriptor.
    pub(crate) socket: OwnedFd,
}

#[derive(Default)]
pub(super) struct Ledger(Mutex<Vec<Entry>>);

struct Entry {
    owner: String,
    number: RawFd,
    inode: u64,
}

impl Ledger {
    /// Notes that `owner` has got a socket; what was closed meanwhile is forgotten.
    pub(super) fn note(&self, owner: &str, socket: &impl AsRawFd) {
        let number = socket.as_raw_fd();
        let Some(inode) = inode(number) else { return };
        let mut entries = self.0.lock();
        entries.retain(|entry| entry.number != number && self::inode(entry.number) == Some(entry.inode));
        entries.push(Entry { owner: owner.to_owned(), number, inode });
    }

    /// Copies of all that are open, each once, however many share it.
    pub(super) fn open(&self) -> Vec<Listening> {
        let mut seen = HashSet::new();
        self.0.lock().iter().filter_map(|entry| entry.copy().filter(|_| seen.insert(entry.inode))).collect()
    }
}

impl Entry {
    fn copy(&self) -> Option<Listening> {
        if inode(self.number) != Some(self.inode) {
            return None;
        }
        // SAFETY: fcntl asks for a new descriptor; when the number is open no longer it gives an error.
        #[expect(unsafe_code, reason = "the owner has the descriptor; here is only its number")]
        let copy = unsafe { libc::fcntl(self.number, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return None;
        }
        // SAFETY: the kernel has just made it, for us alone.
        #[expect(unsafe_code, reason = "as above")]
        let socket = unsafe { OwnedFd::from_raw_fd(copy) };
        // Another thread may have closed it and opened something else in between.
        if inode(socket.as_raw_fd()) != Some(self.inode) {
            return None;
        }
        let bound = Bound::of(&socket).ok()?;
        Some(Listening { owner: self.owner.clone(), kind: bound.kind(), address: bound.address(), socket })
    }
}

/// The inode of the socket with this number, if it is one.
fn inode(number: RawFd) -> Option<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes the whole structure when it succeeds; of a number that is not open it gives an error.
    #[expect(unsafe_code, reason = "whether a number is still the same socket can only be asked by its number")]
    let stat = unsafe {
        if libc::fstat(number, stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    (stat.st_mode & libc::S_IFMT == libc::S_IFSOCK).then_some(stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_socket_is_known_while_its_owner_has_it_open() {
        let ledger = Ledger::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        ledger.note("one", &listener);
        // The same number again replaces what was noted before.
        ledger.note("two", &listener);
        let shared = listener.try_clone().unwrap();
        ledger.note("three", &shared);
        let open = ledger.open();
        assert_eq!(open.len(), 1);
        assert_eq!((open[0].owner.as_str(), open[0].kind), ("two", "tcp"));
        assert_eq!(open[0].address, address.to_string());
        drop((open, listener, shared));
        assert!(ledger.open().is_empty());
        // Nothing of it holds the address.
        drop(TcpListener::bind(address).unwrap());
        let another = TcpListener::bind("127.0.0.1:0").unwrap();
        ledger.note("four", &another);
        assert_eq!(ledger.0.lock().len(), 1, "what is closed is forgotten");
    }
}
