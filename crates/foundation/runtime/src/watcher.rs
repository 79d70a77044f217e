//! Tells when files change: inotify on their folders, and a comparison of what is there.
//!
//! In: paths of files or folders, existing or not. Out: a wake-up after something really
//! changed, debounced. Promise: it notices writes, renames over the file, deletion and
//! return, and swapped symlinks anywhere on the path (Kubernetes' `..data`); where the
//! system grants no inotify instance it looks every two seconds instead.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// A change is told when the files have been left alone for so long …
const QUIET: Duration = Duration::from_millis(50);
/// … or when this much has passed since the first sign of it.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often we look when there is no inotify.
const POLL: Duration = Duration::from_secs(2);
/// Symlinks followed on one path, as the kernel does.
const MOST_LINKS: usize = 40;
/// How far a watched folder is looked into.
const MOST_DEPTH: usize = 8;
const MOST_ENTRIES: usize = 4096;

/// Tells when any of a set of paths changes.
pub struct FileWatcher {
    paths: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Option<Fingerprint>>,
    source: Source,
    /// When the first sign of an untold change came. Kept here so that dropping `changed()` loses nothing.
    sign: Option<Instant>,
}

enum Source {
    Inotify { fd: AsyncFd<OwnedFd>, watches: BTreeMap<i32, Interest> },
    Polling,
}

/// What matters in a watched folder.
#[derive(Debug, Default)]
struct Interest {
    names: HashSet<OsString>,
    /// Every name matters, or the watch is on the file itself.
    all: bool,
}

/// What tells one content of a path from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileWatcher {
    /// Watches paths; none of them has to exist. Call it within a tokio runtime with IO enabled.
    ///
    /// # Errors
    /// When the reactor refuses the descriptor. A system without inotify instances to spare is no error.
    pub fn new<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> io::Result<Self> {
        let source = match inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) {
            Ok(fd) => Source::Inotify { fd: register(fd)?, watches: BTreeMap::new() },
            Err(error) => {
                tracing::warn!(component = "runtime", %error, "no inotify instance to be had; looking for changes every 2s");
                Source::Polling
            }
        };
        let mut watcher = Self { paths: Vec::new(), known: BTreeMap::new(), source, sign: None };
        watcher.watch(paths);
        Ok(watcher)
    }

    /// Replaces the set of paths; their present content counts as known.
    pub fn watch<P: Into<PathBuf>>(&mut self, paths: impl IntoIterator<Item = P>) {
        self.paths = paths.into_iter().map(Into::into).collect();
        self.sign = None;
        self.rearm();
        self.known = look_at(&self.paths);
    }

    /// Resolves when the content or the existence of a path has changed since the last call. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            self.settle().await;
            // First the watches, then the look: what changes in between is seen by both, never by none.
            self.rearm();
            self.sign = None;
            let now = look_at(&self.paths);
            if now != self.known {
                self.known = now;
                return;
            }
        }
    }

    /// Waits for a sign of a change, and then until it is quiet.
    async fn settle(&mut self) {
        let Source::Inotify { fd, watches } = &mut self.source else {
            return tokio::time::sleep(POLL).await;
        };
        loop {
            let wait = self.sign.map(|first| QUIET.min((first + PATIENCE).saturating_duration_since(Instant::now())));
            if wait.is_some_and(|wait| wait.is_zero()) {
                return;
            }
            let readable = async {
                match wait {
                    None => fd.readable().await.map(Some),
                    Some(wait) => tokio::time::timeout(wait, fd.readable()).await.ok().transpose(),
                }
            };
            match readable.await {
                Ok(Some(mut guard)) => {
                    if drain(fd.get_ref(), watches) && self.sign.is_none() {
                        self.sign = Some(Instant::now());
                    }
                    guard.clear_ready();
                }
                Ok(None) => return,
                // The reactor is shutting down: nothing will ever come.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// Sets the watches that the paths need as the file system is now.
    fn rearm(&mut self) {
        let Source::Inotify { fd, watches } = &mut self.source else { return };
        let mut wanted: BTreeMap<i32, Interest> = BTreeMap::new();
        for (place, name) in self.paths.iter().flat_map(|path| interests(path)) {
            let flags = WatchFlags::CLOSE_WRITE
                | WatchFlags::ATTRIB
                | WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVED_FROM
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF;
            match inotify::add_watch(fd.get_ref(), &place, flags) {
                Ok(watch) => {
                    let interest = wanted.entry(watch).or_default();
                    match name {
                        Some(name) => drop(interest.names.insert(name)),
                        None => interest.all = true,
                    }
                }
                // Gone again, or not ours to read: the folder above tells when that changes.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::ACCESS) => {}
                Err(error) => {
                    tracing::warn!(component = "runtime", path = %place.display(), %error, "cannot watch; looking for changes every 2s");
                    self.source = Source::Polling;
                    return;
                }
            }
        }
        for old in watches.keys().filter(|old| !wanted.contains_key(old)) {
            // A watch on something that is gone went with it.
            let _ = inotify::remove_watch(fd.get_ref(), *old);
        }
        *watches = wanted;
    }
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same description until it is dropped, and the `AsyncFd` owns it.
    #[expect(unsafe_code, reason = "tokio cannot know of an arbitrary type that its descriptor stays the same")]
    let registered = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Reads all events that wait; whether one of them matters.
fn drain(fd: &OwnedFd, watches: &BTreeMap<i32, Interest>) -> bool {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut reader = inotify::Reader::new(fd, &mut buffer);
    let mut matters = false;
    while let Ok(event) = reader.next() {
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            matters = true;
            continue;
        }
        let Some(interest) = watches.get(&event.wd()) else { continue };
        matters |= match event.file_name() {
            Some(name) => interest.all || interest.names.contains(OsStr::from_bytes(name.to_bytes())),
            // Of the folder or file itself; the end of a watch follows an event that said why.
            None => !event.events().contains(ReadFlags::IGNORED),
        };
    }
    matters
}

/// Where to look for changes of `path`: folders with a name that matters there, and places where everything matters.
///
/// Follows the path as the kernel would. Each symlink on it matters in its folder, and so does the last component, or
/// the first one that is missing.
fn interests(path: &Path) -> Vec<(PathBuf, Option<OsString>)> {
    let mut found = Vec::new();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest: VecDeque<OsString> = components(&absolute).collect();
    let mut folder = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            folder.pop();
            continue;
        }
        let here = folder.join(&name);
        let Ok(metadata) = fs::symlink_metadata(&here) else {
            found.push((folder, Some(name)));
            return found;
        };
        if metadata.is_symlink() {
            found.push((folder.clone(), Some(name)));
            links += 1;
            let Ok(target) = fs::read_link(&here) else { return found };
            if links > MOST_LINKS {
                return found;
            }
            if target.is_absolute() {
                folder = PathBuf::from("/");
            }
            for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(component);
            }
            continue;
        }
        if rest.is_empty() {
            found.push((folder.clone(), Some(name)));
        }
        folder = here;
    }
    if folder.is_dir() {
        found.extend(walk(&folder).into_iter().filter(|(_, is_folder)| *is_folder).map(|(path, _)| (path, None)));
    }
    // A bind mount of the file alone shows writes from outside only on the file itself.
    found.push((folder, None));
    found
}

fn components(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn look_at(paths: &[PathBuf]) -> BTreeMap<PathBuf, Option<Fingerprint>> {
    let mut seen = BTreeMap::new();
    for path in paths {
        let metadata = fs::metadata(path);
        if metadata.as_ref().is_ok_and(fs::Metadata::is_dir) {
            for (entry, is_folder) in walk(path) {
                // A folder's own times change with every temporary file in it.
                let fingerprint = if is_folder { None } else { fs::metadata(&entry).ok().map(|m| Fingerprint::of(&m)) };
                seen.insert(entry, fingerprint);
            }
        }
        let own = metadata.ok().filter(|metadata| !metadata.is_dir()).map(|metadata| Fingerprint::of(&metadata));
        seen.insert(path.clone(), own);
    }
    seen
}

/// What lies in a folder, following symlinks, without Kubernetes' `..` entries; with whether it is a folder.
fn walk(folder: &Path) -> Vec<(PathBuf, bool)> {
    let mut found = vec![(folder.to_owned(), true)];
    let mut depth_of: VecDeque<(PathBuf, usize)> = VecDeque::from([(folder.to_owned(), 0)]);
    while let Some((folder, depth)) = depth_of.pop_front() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten().filter(|entry| !entry.file_name().as_bytes().starts_with(b"..")) {
            if found.len() >= MOST_ENTRIES {
                return found;
            }
            let path = entry.path();
            let is_folder = path.is_dir();
            if is_folder && depth < MOST_DEPTH {
                depth_of.push_back((path.clone(), depth + 1));
            }
            found.push((path, is_folder));
        }
    }
    found
}

impl Fingerprint {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    /// Longer than the debouncing of a change that does not matter.
    const SETTLED: Duration = Duration::from_millis(250);

    async fn told(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(SOON, watcher.changed()).await.is_ok()
    }

    async fn quiet(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(SETTLED, watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn writes_renames_deletions_and_returns_are_told_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outrigger.yaml");
        let mut watcher = FileWatcher::new([&path]).unwrap();
        fs::write(&path, "one").unwrap();
        assert!(told(&mut watcher).await, "made");
        fs::write(&path, "two").unwrap();
        assert!(told(&mut watcher).await, "written");
        fs::write(folder.path().join("new"), "three").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(told(&mut watcher).await, "renamed over");
        fs::write(folder.path().join("neighbour"), "x").unwrap();
        fs::read(&path).unwrap();
        assert!(quiet(&mut watcher).await, "a neighbour and a reader change nothing");
        fs::remove_file(&path).unwrap();
        assert!(told(&mut watcher).await, "deleted");
        fs::write(&path, "four").unwrap();
        assert!(told(&mut watcher).await, "back again");
    }

    #[tokio::test]
    async fn an_editor_that_moves_the_file_away_and_writes_a_new_one_is_one_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outrigger.yaml");
        fs::write(&path, "one").unwrap();
        let mut watcher = FileWatcher::new([&path]).unwrap();
        fs::rename(&path, folder.path().join("outrigger.yaml~")).unwrap();
        fs::write(&path, "two").unwrap();
        assert!(told(&mut watcher).await);
        assert!(quiet(&mut watcher).await);
    }

    #[tokio::test]
    async fn the_symlink_swap_of_kubernetes_is_told_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |version: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("tls.crt"), version).unwrap();
        };
        write("..2026_01");
        symlink("..2026_01", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let mut of_file = FileWatcher::new([at("tls.crt")]).unwrap();
        let mut of_folder = FileWatcher::new([folder.path()]).unwrap();
        for version in ["..2026_02", "..2026_03"] {
            write(version);
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
            assert!(told(&mut of_file).await, "{version}");
            assert!(told(&mut of_folder).await, "{version}");
        }
        fs::remove_dir_all(at("..2026_01")).unwrap();
        assert!(quiet(&mut of_file).await, "the removal of an old version changes nothing");
    }

    #[tokio::test]
    async fn a_folder_that_does_not_exist_yet_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/file");
        let mut watcher = FileWatcher::new([&path]).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "one").unwrap();
        assert!(told(&mut watcher).await);
        fs::remove_dir_all(folder.path().join("a")).unwrap();
        assert!(told(&mut watcher).await);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "two").unwrap();
        assert!(told(&mut watcher).await);
    }

    #[tokio::test]
    async fn files_below_a_watched_folder_are_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("db")).unwrap();
        let mut watcher = FileWatcher::new([folder.path()]).unwrap();
        fs::write(folder.path().join("db/creds.json"), "{}").unwrap();
        assert!(told(&mut watcher).await, "in a folder that was there");
        fs::create_dir(folder.path().join("more")).unwrap();
        assert!(told(&mut watcher).await);
        fs::write(folder.path().join("more/x.json"), "{}").unwrap();
        assert!(told(&mut watcher).await, "in a folder that is new");
    }

    #[tokio::test]
    async fn dropping_the_future_loses_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut watcher = FileWatcher::new([&path]).unwrap();
        fs::write(&path, "one").unwrap();
        for _ in 0..5 {
            let _ = tokio::time::timeout(Duration::from_millis(5), watcher.changed()).await;
        }
        assert!(told(&mut watcher).await);
    }

    #[tokio::test]
    async fn links_in_a_circle_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let mut watcher = FileWatcher::new([folder.path().join("a")]).unwrap();
        fs::remove_file(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a"), "real").unwrap();
        assert!(told(&mut watcher).await);
    }

    #[tokio::test(start_paused = true)]
    async fn without_inotify_it_looks_now_and_then() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut watcher = FileWatcher::new([&path]).unwrap();
        watcher.source = Source::Polling;
        fs::write(&path, "one").unwrap();
        watcher.changed().await;
    }
}
