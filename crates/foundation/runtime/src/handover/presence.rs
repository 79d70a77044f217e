//! Whether another worker runs: a lock that the kernel frees however its holder ends.
//!
//! In: the path of the keeper's socket. Out: a shared lock on `PATH.lock`, held for as
//! long as the process lives. Promise: waits for milliseconds at most.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const ATTEMPTS: u32 = 50;

/// The lock of a worker that runs; free again when this is dropped.
pub(super) struct Presence {
    _held: File,
}

impl Presence {
    /// Tells others that this process runs.
    pub(super) fn show(socket: &Path) -> io::Result<Self> {
        let file = open(socket)?;
        for _ in 0..ATTEMPTS {
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                // Somebody looks whether others run, which takes microseconds.
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(1)),
                outcome => return Ok(outcome.map(|()| Self { _held: file })?),
            }
        }
        Err(Errno::WOULDBLOCK.into())
    }

    /// Whether a worker runs that shows its presence here. Not to be asked by one that does.
    pub(super) fn of_another(socket: &Path) -> io::Result<bool> {
        match flock(open(socket)?, FlockOperation::NonBlockingLockExclusive) {
            // Free again with the file, which is closed here.
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(socket: &Path) -> io::Result<File> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    OpenOptions::new().create(true).append(true).mode(0o600).open(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_seen_while_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("keeper");
        assert!(!Presence::of_another(&socket).unwrap());
        let one = Presence::show(&socket).unwrap();
        let other = Presence::show(&socket).unwrap();
        assert!(Presence::of_another(&socket).unwrap());
        drop(one);
        assert!(Presence::of_another(&socket).unwrap());
        drop(other);
        assert!(!Presence::of_another(&socket).unwrap());
        assert!(Presence::show(Path::new("/no/such/folder/keeper")).is_err());
    }
}
