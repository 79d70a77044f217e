//! What makes a file the same file under another name.
//!
//! Promise: a rotated file is recognised by device, inode, its birth where the file system
//! tells it, and its first bytes; an inode that was given to a new file is not taken for the
//! old one, and a copy that `copytruncate` made is known as one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use rustix::fs::OFlags;

use serde::{Deserialize, Serialize};

/// So many first bytes tell files with the same inode apart.
const FINGERPRINT: usize = 256;

/// A file's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileIdentity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// When it was made, in nanoseconds since 1970; `None` where the file system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born: Option<u64>,
    /// Names the content, over renames and in the ids of events.
    #[serde(default)]
    pub(crate) key: u64,
    /// How many first bytes `hash` covers; a young file has few.
    length: usize,
    hash: u64,
}

impl FileIdentity {
    /// Of what never was a file.
    pub(crate) fn of_no_file(key: u64) -> Self {
        Self { device: 0, inode: 0, born: None, key, length: 0, hash: 0 }
    }

    /// Looks at an open file.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let born = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let born = born.and_then(|at| u64::try_from(at.as_nanos()).ok());
        let (device, inode) = (metadata.dev(), metadata.ino());
        let mut first = [0; FINGERPRINT];
        let length = read_at(file, &mut first, 0)?;
        let key = mix([device, inode, born.unwrap_or(0)]);
        Ok(Self { device, inode, born, key, length, hash: fnv(&first[..length]) })
    }

    /// Looks at a file that was truncated since it was `self`: it is another content, of another name.
    pub(crate) fn next_content(&self, file: &File) -> io::Result<Self> {
        Ok(Self { key: mix([self.key, 1]), ..Self::of(file)? })
    }

    /// Whether an open file is this one, perhaps grown.
    pub(crate) fn is(&self, file: &File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != (self.device, self.inode) {
            return Ok(false);
        }
        let other = Self::of(file)?;
        let reborn = self.born.is_some() && other.born.is_some() && self.born != other.born;
        Ok(!reborn && self.begins(file)?)
    }

    /// Whether an open file begins with the bytes that this one began with.
    pub(crate) fn begins(&self, file: &File) -> io::Result<bool> {
        let mut first = [0; FINGERPRINT];
        let length = read_at(file, &mut first[..self.length.min(FINGERPRINT)], 0)?;
        Ok(length == self.length && fnv(&first[..length]) == self.hash)
    }

    /// Whether an open file may be a copy of this one: one without content can be told from nothing.
    pub(crate) fn is_copied_to(&self, file: &File) -> io::Result<bool> {
        Ok(self.length > 0 && self.begins(file)?)
    }

    /// The same content in another file.
    pub(crate) fn moved_to(&self, file: &File) -> io::Result<Self> {
        Ok(Self { key: self.key, ..Self::of(file)? })
    }

    /// Covers more first bytes once the file has them.
    pub(crate) fn grow(&mut self, file: &File) -> io::Result<()> {
        if self.length < FINGERPRINT {
            *self = Self { key: self.key, ..Self::of(file)? };
        }
        Ok(())
    }
}

/// Opens a regular file for reading, and nothing else: to open a pipe would wait for its writer.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
}

/// What lies at the path can never be a log.
pub(crate) fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

/// Whether two files hold the same bytes as far as both go, judged by the beginning and the last 4 KiB of that.
pub(crate) fn same_content(one: &File, other: &File) -> io::Result<bool> {
    let common = one.metadata()?.len().min(other.metadata()?.len());
    let last = common.saturating_sub(4096);
    for (from, bytes) in [(0, common.min(FINGERPRINT as u64)), (last, common - last)] {
        let (mut left, mut right) = (vec![0; bytes as usize], vec![0; bytes as usize]);
        read_at(one, &mut left, from)?;
        read_at(other, &mut right, from)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(common > 0)
}

/// Whether `other` is what rotation makes of `name`: `app.log.1`, `app.log-20261123`, `app-2026-11-23.log`, `app.1.log`;
/// nothing compressed, and no other log that merely begins alike (`app-error.log`).
pub(crate) fn is_rotation_of(other: &str, name: &str) -> bool {
    let stamp = |text: &str| {
        text.strip_prefix(['.', '-', '_']).is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit())
                && rest.chars().all(|c| c.is_ascii_digit() || "TZ.-_:+".contains(c))
        })
    };
    let word = |text: &str| matches!(text, ".old" | ".bak" | ".prev" | ".rotated" | "-old" | "_old");
    if let Some(rest) = other.strip_prefix(name) {
        return stamp(rest) || word(rest);
    }
    let Some((stem, extension)) = name.rsplit_once('.') else { return false };
    let middle = other.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension)?.strip_suffix('.'));
    middle.is_some_and(|middle| stamp(middle) || word(middle))
}

fn read_at(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// One number of several.
fn mix<const N: usize>(numbers: [u64; N]) -> u64 {
    let mut bytes = Vec::with_capacity(N * 8);
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    fnv(&bytes)
}

/// FNV-1a: stable over releases, for it stands in checkpoints.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn names_of_rotated_files() {
        for (other, expected) in [
            ("app.log.1", true),
            ("app.log.12", true),
            ("app.log-20261123", true),
            ("app.log.2026-11-23T10:00:00Z", true),
            ("app-2026-11-23.log", true),
            ("app-2026-11-23T10-00-00.000.log", true),
            ("app.1.log", true),
            ("app.log.old", true),
            ("app.log", false),
            ("app.log.1.gz", false),
            ("app-error.log", false),
            ("app2.log", false),
            ("app.log.lock", false),
            ("other.log.1", false),
            ("app.log.1.tmp", false),
        ] {
            assert_eq!(is_rotation_of(other, "app.log"), expected, "{other}");
        }
        assert!(is_rotation_of("messages.1", "messages"));
        assert!(is_rotation_of("messages-20261123", "messages"));
    }

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
