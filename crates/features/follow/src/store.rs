//! What was told, kept for a restart while no server answers.
//!
//! In: a folder, which is made where it is missing; bytes. Out: the same bytes to the next process. Promise: the file is whole or
//! absent; one that is larger than may be is not read; nothing of it is secret, and nobody but us may read it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

const NAME: &str = "endpoints.pb";

/// Reads what is kept; nothing when there is nothing.
pub(crate) fn read(folder: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(folder.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other("it is larger than `maxBytes`"));
    }
    Ok(Some(bytes))
}

/// Keeps bytes in place of what was kept.
pub(crate) fn write(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (path, new) = (folder.join(NAME), folder.join(format!(".{NAME}.new")));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_in_a_folder_that_was_not_there() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("run/discovery");
        assert_eq!(read(&folder, 9).unwrap(), None);
        for bytes in [&b"before"[..], b"after"] {
            write(&folder, bytes).unwrap();
            assert_eq!(read(&folder, 9).unwrap().unwrap(), bytes);
        }
        assert!(read(&folder, 4).unwrap_err().to_string().contains("maxBytes"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
    }
}
