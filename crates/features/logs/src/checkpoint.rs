//! What survives the process: how far each file was acknowledged, and how long each file
//! sink then was.
//!
//! In: the state of files and sinks. Out: one small JSON file, replaced whole. Promise: a
//! broken file is put aside and told, never trusted; two processes cannot use one folder.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::identity::FileIdentity;

const VERSION: u32 = 1;
const NAME: &str = "checkpoint.json";

/// What is known of all sources and sinks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    version: u32,
    /// There was one that could not be read.
    #[serde(skip)]
    pub(crate) broken: bool,
    /// Files by source.
    pub(crate) sources: BTreeMap<String, Vec<FileCheckpoint>>,
    /// File sinks by name.
    pub(crate) sinks: BTreeMap<String, SinkCheckpoint>,
}

/// How far one file was acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileCheckpoint {
    #[serde(flatten)]
    pub(crate) identity: FileIdentity,
    /// Offsets by path (`sink`, or `transform/…/sink`).
    pub(crate) acknowledged: BTreeMap<String, u64>,
}

/// How long a file sink was when the offsets above were true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkCheckpoint {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) length: u64,
}

/// The folder that holds the checkpoint, locked for this process.
pub(crate) struct StateDirectory {
    path: PathBuf,
    lock: File,
    /// The number of the last checkpoint that was written.
    last: Mutex<u64>,
}

impl Drop for StateDirectory {
    /// Lets go of the lock itself, not only of our descriptor: a process that is being started has a copy until it executes.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
    }
}

impl StateDirectory {
    /// Makes the folder when it is absent, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fault = |source| Error::StateDirectory { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(fault)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock")).map_err(fault)?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // For the message of whoever comes second; the lock does not rest on it, so a full disk is no matter.
                let _ = lock.set_len(0).and_then(|()| (&lock).write_all(std::process::id().to_string().as_bytes()));
                Ok(Self { path: path.to_owned(), lock, last: Mutex::new(0) })
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let holder = fs::read_to_string(path.join("lock")).ok().and_then(|pid| pid.trim().parse().ok());
                Err(Error::Locked { path: path.to_owned(), holder })
            }
            Err(error) => Err(fault(error.into())),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the checkpoint; an empty one when there is none, and one that says so when it was broken.
    pub(crate) fn load(&self) -> Result<Checkpoint, Error> {
        let path = self.path.join(NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Checkpoint::default()),
            Err(source) => return Err(Error::Checkpoint { path, source }),
        };
        match decode(&bytes) {
            Ok(checkpoint) => Ok(checkpoint),
            Err(reason) => {
                let aside = self.path.join("checkpoint.broken");
                let moved = fs::rename(&path, &aside).is_ok();
                tracing::error!(
                    component = "logs",
                    path = %path.display(),
                    moved_to = %if moved { aside.display().to_string() } else { "nowhere".to_owned() },
                    reason,
                    "the checkpoint is broken; files are read again from their beginning"
                );
                Ok(Checkpoint { broken: true, ..Checkpoint::default() })
            }
        }
    }

    /// Replaces the checkpoint, unless a later one has.
    pub(crate) fn save(&self, checkpoint: &Checkpoint, turn: u64) -> io::Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if turn <= *last {
            return Ok(());
        }
        let fresh = self.path.join(".checkpoint.new");
        let bytes = serde_json::to_vec(&Checkpoint { version: VERSION, ..checkpoint.clone() })?;
        let mut file = File::create(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&fresh, self.path.join(NAME))?;
        *last = turn;
        File::open(&self.path)?.sync_all()
    }
}

fn decode(bytes: &[u8]) -> Result<Checkpoint, String> {
    let checkpoint: Checkpoint = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if checkpoint.version != VERSION {
        return Err(format!("version {} is not {VERSION}", checkpoint.version));
    }
    Ok(checkpoint)
}

/// Entry for the fuzzer.
pub fn fuzz_checkpoint(bytes: &[u8]) -> bool {
    decode(bytes).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(folder: &Path) -> Checkpoint {
        let file = folder.join("some.log");
        fs::write(&file, "content").unwrap();
        let identity = FileIdentity::of(&File::open(&file).unwrap()).unwrap();
        let acknowledged = BTreeMap::from([("out".to_owned(), 7)]);
        let files = vec![FileCheckpoint { identity, acknowledged }];
        let sinks = BTreeMap::from([("out".to_owned(), SinkCheckpoint { device: 1, inode: 2, length: 3 })]);
        Checkpoint { version: VERSION, broken: false, sources: BTreeMap::from([("app".to_owned(), files)]), sinks }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&folder.path().join("a/b")).unwrap();
        assert_eq!(state.load().unwrap(), Checkpoint::default());
        let checkpoint = sample(folder.path());
        state.save(&checkpoint, 2).unwrap();
        assert_eq!(state.load().unwrap(), checkpoint);
        state.save(&Checkpoint::default(), 1).unwrap();
        assert_eq!(state.load().unwrap(), checkpoint, "an old one comes too late");
    }

    #[test]
    fn a_broken_checkpoint_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(folder.path()).unwrap();
        for broken in ["", "{}", "{\"version\":2,\"sources\":{},\"sinks\":{}}", "\0\0\0"] {
            fs::write(folder.path().join(NAME), broken).unwrap();
            assert_eq!(state.load().unwrap(), Checkpoint { broken: true, ..Checkpoint::default() });
            assert!(folder.path().join("checkpoint.broken").exists() && !folder.path().join(NAME).exists());
        }
    }

    #[test]
    fn the_folder_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDirectory::open(folder.path()).unwrap();
        assert!(matches!(StateDirectory::open(folder.path()), Err(Error::Locked { .. })));
        let in_a_child = first.lock.try_clone().unwrap();
        drop(first);
        assert!(StateDirectory::open(folder.path()).is_ok(), "a copy of the descriptor holds nothing");
        drop(in_a_child);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
