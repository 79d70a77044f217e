//! What makes a file the same file under another name.
//!
//! Promise: a rotated file is recognised by device, inode and its first bytes; an inode
//! that was given to a new file is not taken for the old one.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use serde::{Deserialize, Serialize};

/// So many first bytes tell files with the same inode apart.
const FINGERPRINT: usize = 256;

/// A file's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// How many first bytes `hash` covers; a young file has few.
    length: usize,
    hash: u64,
}

impl FileIdentity {
    /// Looks at an open file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let mut first = [0; FINGERPRINT];
        let length = read_first(file, &mut first)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino(), length, hash: fnv(&first[..length]) })
    }

    /// Whether an open file is this one, perhaps grown.
    pub(crate) fn is(&self, file: &File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != (self.device, self.inode) {
            return Ok(false);
        }
        let mut first = [0; FINGERPRINT];
        let length = read_first(file, &mut first[..self.length])?;
        Ok(length == self.length && fnv(&first[..length]) == self.hash)
    }

    /// Covers more first bytes once the file has them.
    pub(crate) fn grow(&mut self, file: &File) -> io::Result<()> {
        if self.length < FINGERPRINT {
            *self = Self::of(file)?;
        }
        Ok(())
    }
}

fn read_first(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// FNV-1a: stable over releases, for it stands in checkpoints.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_grown_file_is_the_same_and_a_rewritten_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut file = File::options().create(true).append(true).read(true).open(&path).unwrap();
        let empty = FileIdentity::of(&file).unwrap();
        file.write_all(b"first line\n").unwrap();
        assert!(empty.is(&file).unwrap());
        let mut young = FileIdentity::of(&file).unwrap();
        file.write_all(&[b'x'; 1000]).unwrap();
        assert!(young.is(&file).unwrap());
        young.grow(&file).unwrap();
        assert_eq!(young.length, FINGERPRINT);
        // Same inode, other content: what copytruncate and a reused inode look like.
        file.set_len(0).unwrap();
        assert!(!young.is(&file).unwrap());
        file.write_all(&[b'y'; 2000]).unwrap();
        assert!(!young.is(&file).unwrap());
    }
}
