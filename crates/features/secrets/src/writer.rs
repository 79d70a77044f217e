//! Puts a secret on disk, whole or not at all.
//!
//! In: content, mode and owner. Out: the file under its name, durable, or an error that says
//! what to mend. Promise: a reader sees the old content or the new one; the new one is never
//! open to more than its mode allows; whatever fails, the old file stays and nothing else does.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::error::Error;

/// Where and how a file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileTarget {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// Writes `content` unless the file holds just that already, with that mode and owner; whether it was written. Blocks.
pub(crate) fn write(target: &FileTarget, content: &[u8]) -> Result<bool, Error> {
    let failed = |problem: String| Error::Write { path: target.path.clone(), problem };
    let (Some(folder), Some(name)) = (target.path.parent(), target.path.file_name()) else {
        return Err(failed("the path names no file".to_owned()));
    };
    match fs::symlink_metadata(&target.path) {
        Ok(meta) if meta.is_symlink() => {
            let problem = "it is a symbolic link, which we do not follow or replace; remove it or name its target";
            return Err(failed(problem.to_owned()));
        }
        Ok(meta) if !meta.is_file() => {
            let kind = if meta.is_dir() { "a directory" } else { "no regular file" };
            return Err(failed(format!("it is {kind}; remove it or choose another path")));
        }
        Ok(meta) if is_current(target, &meta, content) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(advice(&error, folder))),
    }
    create_folders(folder).map_err(|error| failed(advice(&error, folder)))?;
    replace(target, folder, name, |file| fill(file, target, content))
        .map_err(|failure| failed(failure.text(target, folder)))?;
    Ok(true)
}

/// Whether a file is there at all; if not, it has to be written again.
pub(crate) fn exists(target: &FileTarget) -> bool {
    fs::symlink_metadata(&target.path).is_ok()
}

fn is_current(target: &FileTarget, meta: &fs::Metadata, content: &[u8]) -> bool {
    let same = meta.mode() & 0o7777 == target.mode
        && target.uid.is_none_or(|uid| uid == meta.uid())
        && target.gid.is_none_or(|gid| gid == meta.gid())
        && meta.nlink() == 1
        && meta.len() == content.len() as u64;
    if !same {
        return false;
    }
    let Ok(file) = File::open(&target.path) else { return false };
    let mut present = Zeroizing::new(Vec::with_capacity(content.len() + 1));
    file.take(content.len() as u64 + 1).read_to_end(&mut present).is_ok() && *present == content
}

/// Creates what is missing of a path of folders, open to all for reading whatever the umask says.
fn create_folders(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folders(parent)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

enum Failure {
    Owner(Errno),
    Other(io::Error),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Other(error.into())
    }
}

impl Failure {
    fn text(&self, target: &FileTarget, folder: &Path) -> String {
        match self {
            Self::Owner(error) => {
                let owner = [("uid", target.uid), ("gid", target.gid)]
                    .iter()
                    .filter_map(|(name, id)| id.map(|id| format!("{name} {id}")))
                    .collect::<Vec<_>>()
                    .join(" and ");
                let why = io::Error::from(*error);
                format!("it cannot be given to {owner}: {why}; run as root or with CAP_CHOWN, or leave the owner out")
            }
            Self::Other(error) => advice(error, folder),
        }
    }
}

fn replace(
    target: &FileTarget,
    folder: &Path,
    name: &OsStr,
    fill: impl FnOnce(&File) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = openat(CWD, folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let temporary = temporary_name(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(target.mode);
    let opened = match openat(&folder, &temporary, flags, mode) {
        // Left behind by a process that was killed.
        Err(Errno::EXIST) => {
            unlinkat(&folder, &temporary, AtFlags::empty())?;
            openat(&folder, &temporary, flags, mode)
        }
        opened => opened,
    };
    let file = File::from(opened?);
    let filled = fill(&file).and_then(|()| renameat(&folder, &temporary, &folder, name).map_err(Failure::from));
    if filled.is_err() {
        let _ = unlinkat(&folder, &temporary, AtFlags::empty());
        return filled;
    }
    // The content is in place; some file systems cannot sync folders, which is no reason to fail.
    let _ = fsync(&folder);
    Ok(())
}

fn fill(mut file: &File, target: &FileTarget, content: &[u8]) -> Result<(), Failure> {
    if target.uid.is_some() || target.gid.is_some() {
        fchown(file, target.uid.map(Uid::from_raw), target.gid.map(Gid::from_raw)).map_err(Failure::Owner)?;
    }
    // Again, for the umask has taken bits away.
    fchmod(file, Mode::from_raw_mode(target.mode))?;
    file.write_all(content).map_err(Failure::Other)?;
    fsync(file)?;
    Ok(())
}

/// The same for the same file, so that what a killed process left is found; short enough for every file system.
fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    let bytes = name.as_bytes();
    temporary.push(OsStr::from_bytes(&bytes[..bytes.len().min(230)]));
    temporary.push(".outrigger~");
    temporary
}

/// An error in the operator's words, with a remedy.
fn advice(error: &io::Error, folder: &Path) -> String {
    let folder = folder.display();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => format!("no space left on the file system of {folder}: {error}"),
        Some(Errno::ROFS) => format!("the file system of {folder} is read-only; mount a volume there"),
        Some(Errno::PERM | Errno::ACCESS) => {
            format!("{error}; let the user we run as (uid {}) write to {folder}", rustix::process::geteuid().as_raw())
        }
        Some(Errno::NOTDIR) => format!("a part of {folder} is a file, not a folder"),
        Some(Errno::NAMETOOLONG) => "its name is too long".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: PathBuf) -> FileTarget {
        FileTarget { path, mode: 0o400, uid: None, gid: None }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_folders_and_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path().join("a/b/secret"));
        assert!(write(&target, b"one").unwrap());
        assert!(!write(&target, b"one").unwrap(), "the same content is not written again");
        assert!(write(&target, b"two").unwrap());
        assert_eq!(fs::read(&target.path).unwrap(), b"two");
        assert_eq!(fs::metadata(&target.path).unwrap().mode() & 0o7777, 0o400);
        assert_eq!(names(&folder.path().join("a/b")), ["secret"]);
        let wider = FileTarget { mode: 0o666, ..target.clone() };
        assert!(write(&wider, b"two").unwrap(), "another mode is another file");
        assert_eq!(fs::metadata(&target.path).unwrap().mode() & 0o7777, 0o666, "whatever the umask says");
    }

    #[test]
    fn gives_the_file_to_its_owner_or_says_what_that_takes() {
        let folder = tempfile::tempdir().unwrap();
        let own = FileTarget {
            uid: Some(rustix::process::geteuid().as_raw()),
            gid: Some(rustix::process::getegid().as_raw()),
            ..target(folder.path().join("own"))
        };
        assert!(write(&own, b"x").unwrap());
        let other = FileTarget { uid: Some(4242), gid: Some(4243), ..target(folder.path().join("other")) };
        match write(&other, b"x") {
            Ok(_) => {
                let meta = fs::metadata(&other.path).unwrap();
                assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4242, 4243, 0o400));
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("uid 4242 and gid 4243") && error.contains("CAP_CHOWN"), "{error}");
                assert_eq!(names(folder.path()), ["own"]);
            }
        }
    }

    #[test]
    fn takes_the_place_of_what_a_killed_process_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".secret.outrigger~"), b"half").unwrap();
        let target = target(folder.path().join("secret"));
        assert!(write(&target, b"whole").unwrap());
        assert_eq!(fs::read(&target.path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["secret"]);
    }

    #[test]
    fn refuses_links_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (link, directory) = (folder.path().join("link"), folder.path().join("directory"));
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        fs::create_dir(&directory).unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        let cases = [
            ("link", link, "symbolic link"),
            ("directory", directory, "a directory"),
            ("file as folder", folder.path().join("file/secret"), "not a folder"),
            ("no space", PathBuf::from("/dev/full"), "no regular file"),
        ];
        for (name, path, expected) in cases {
            let error = write(&target(path), b"x").unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    #[test]
    fn a_full_disk_keeps_the_old_file_and_leaves_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path().join("secret"));
        write(&target, b"old").unwrap();
        // The one file system that every machine has and that is always full.
        let full = |_: &File| {
            let mut full = File::options().write(true).open("/dev/full").map_err(Failure::Other)?;
            full.write_all(b"new").map_err(Failure::Other)
        };
        let failure = replace(&target, folder.path(), OsStr::new("secret"), full).unwrap_err();
        assert!(failure.text(&target, folder.path()).contains("no space left"));
        assert_eq!(fs::read(&target.path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["secret"]);
    }
}
