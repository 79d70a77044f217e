//! A file source: one log file over all its rotations.
//!
//! In: a path. Out: pieces of events on the queues of the sinks its lines go to. Promise:
//! every line of every file that the path has named since the first start is queued, oldest
//! file first; the source waits while a queue is full, and meanwhile holds open what is
//! rotated, so that deletion loses nothing; an idle file costs nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use outrigger_config::{FileSource, ReadFrom};
use outrigger_runtime::Backoff;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{self, Line, Outcome, Timestamp};
use crate::graph::Path;
use crate::identity::{self, FileIdentity};
use crate::metrics::SourceMetrics;
use crate::problems::Problems;
use crate::queue::{Draft, Queue, TrackedFile};
use crate::tail::{Lines, RawLine};
use crate::watch::FolderWatch;

/// Writes that follow one another closely are read together.
const COALESCE: Duration = Duration::from_millis(20);
/// Rotated files that are remembered although they are done with, as long as they exist.
const MOST_REMEMBERED: usize = 1024;
/// A file that so many listings do not show is gone. One listing proves nothing: while files are being renamed, it may
/// leave out some.
const ABSENCES: u32 = 16;
/// For the same reason a folder in which files were renamed is listed once more.
const LIST_AGAIN: Duration = Duration::from_millis(200);
/// Files that are held open while a sink does not take more.
const MOST_RESERVED: usize = 64;
/// While a sink does not take more, the folder is looked at no more often than this.
const RESERVE_EVERY: Duration = Duration::from_millis(100);
/// Without a change, nothing is looked at before this has passed.
const LONG: Duration = Duration::from_secs(3600);

/// All files a source knows, shared with the checkpoint.
#[derive(Default)]
pub(crate) struct Tracked {
    pub(crate) files: Mutex<Vec<Arc<TrackedFile>>>,
    /// The source has looked at its folder once: what appears from now on is new.
    pub(crate) looked: AtomicBool,
    /// Cancelled when it has looked for the first time, whatever came of it.
    pub(crate) tried: CancellationToken,
    /// Bytes of files that are held open until their turn comes.
    pub(crate) reserved: AtomicU64,
}

impl Tracked {
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Relaxed)
    }

    fn files(&self) -> MutexGuard<'_, Vec<Arc<TrackedFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a source may rely on when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// It goes on where the checkpoint says.
    Kept,
    /// It never ran: files rotated before are not for us, and `readFrom` says where to begin.
    FirstStart,
    /// The checkpoint was broken: what was acknowledged is not known, so the file is read from its beginning.
    Lost,
}

/// How a source is ended.
#[derive(Clone, Default)]
pub(crate) struct SourceStop {
    /// Read everything to its end, an unterminated last line too, and end.
    pub(crate) finish: CancellationToken,
    /// End at once.
    pub(crate) abort: CancellationToken,
}

/// A source before it runs.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) config: FileSource,
    pub(crate) paths: Vec<Path>,
    /// Queue and the most events and bytes of one piece, by path.
    pub(crate) queues: Vec<(Queue, usize, usize)>,
    pub(crate) tracked: Arc<Tracked>,
    pub(crate) memory: Memory,
    pub(crate) metrics: SourceMetrics,
    pub(crate) problems: Problems,
    pub(crate) stop: SourceStop,
    /// Told of what a checkpoint holds.
    pub(crate) changed: Arc<Notify>,
    pub(crate) eyes: Eyes,
}

/// What a source sees of its folder.
#[derive(Default)]
pub(crate) struct Eyes {
    watches: Vec<FolderWatch>,
    /// Something happened while a push waited.
    again: bool,
    /// When the folder was listed.
    listed: Option<Instant>,
    /// When the folder is to be listed once more.
    list_again: Option<Instant>,
    /// Files that are being read.
    open: Vec<Inode>,
    /// Files that appeared while a push waited, held open.
    reserve: Vec<Candidate>,
}

type Inode = (u64, u64);

/// A file that is being read.
struct OpenFile {
    file: File,
    tracked: Arc<TrackedFile>,
    lines: Lines,
    /// Lines that end at or before this were acknowledged by that path before a restart.
    skip: Vec<u64>,
    grown: Instant,
    is_current: bool,
    /// Its content was overwritten; only a line that was held back is left of it.
    gone: bool,
}

impl OpenFile {
    fn inode(&self) -> io::Result<Inode> {
        Ok(inode(&self.file.metadata()?))
    }
}

impl Source {
    /// Reads until stopped.
    pub(crate) async fn run(mut self) {
        let owner = format!("source `{}`", self.name);
        let mut open: Vec<OpenFile> = Vec::new();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let stop = self.stop.clone();
        let folder = self.config.path.parent().unwrap_or(FsPath::new("/")).to_owned();
        loop {
            // The watch comes before the look, so that nothing happens unseen between them.
            let folder_there = folder.is_dir();
            if folder_there {
                self.watch();
            }
            self.eyes.again = false;
            let finishing = stop.finish.is_cancelled();
            let outcome = self
                .look(&mut open)
                .and_then(|()| if folder_there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) });
            if let Err(error) = &outcome {
                self.eyes.watches.clear();
                let what = if folder_there { &self.config.path } else { &folder };
                let remedy = "it is tried again until it can be read";
                self.problems.tell(&owner, format!("cannot read {}: {error}; {remedy}", what.display()));
            }
            self.tracked.tried.cancel();
            match self.read_all(&mut open).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.problems.tell(&owner, format!("cannot read {}: {error}", self.config.path.display()))
                }
            }
            if outcome.is_ok() {
                self.problems.mended(&owner);
                backoff.reset();
            }
            if finishing {
                for mut file in open {
                    if !self.give_rest(&mut file).await {
                        return;
                    }
                }
                return;
            }
            let Some(lingers) = self.retire(&mut open).await else { return };
            if self.eyes.again {
                continue;
            }
            let retry = if outcome.is_err() { backoff.next() } else { LONG };
            let listing = self.eyes.list_again.map_or(LONG, |at| at.saturating_duration_since(Instant::now()));
            let retry = retry.min(listing);
            tokio::select! {
                () = stop.abort.cancelled() => return,
                () = stop.finish.cancelled() => {}
                () = tokio::time::sleep(lingers.min(retry)) => {}
                () = changed(&mut self.eyes.watches) => {
                    tokio::select! {
                        () = tokio::time::sleep(COALESCE) => {}
                        () = stop.finish.cancelled() => {}
                        () = stop.abort.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Watches the folders that the path leads to now: one may have been exchanged for another, and a symlink may come
    /// later or lead elsewhere.
    fn watch(&mut self) {
        let folders = self.folders();
        let watches = &self.eyes.watches;
        let all = watches.len() == folders.len() && watches.iter().zip(&folders).all(|(watch, at)| watch.is_on(at));
        if !all {
            self.eyes.watches = folders.iter().map(|folder| FolderWatch::new(folder)).collect();
        }
    }

    /// The file's folder and, when the path is a symlink, that of the file it leads to, with their names for the file.
    fn places(&self) -> Vec<(PathBuf, String)> {
        let place = |path: &FsPath| {
            let name = path.file_name()?.to_str()?.to_owned();
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            Some((folder.unwrap_or(FsPath::new(".")).to_owned(), name))
        };
        let mut places: Vec<_> = place(&self.config.path).into_iter().collect();
        // Of a symlink to what is not there yet, where it will be.
        let to_come = || Some(self.config.path.parent()?.join(fs::read_link(&self.config.path).ok()?));
        let real = fs::canonicalize(&self.config.path).ok().or_else(to_come);
        if let Some(real) = real.and_then(|path| place(&path))
            && !places
                .iter()
                .any(|(folder, name)| *name == real.1 && fs::canonicalize(folder).is_ok_and(|f| f == real.0))
        {
            places.push(real);
        }
        places
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self.places().into_iter().map(|(folder, _)| folder).collect();
        folders.dedup();
        folders
    }

    /// Notices rotation, truncation and new files.
    fn look(&mut self, open: &mut Vec<OpenFile>) -> io::Result<()> {
        let current = match fs::metadata(&self.config.path) {
            Ok(metadata) if !metadata.is_file() => return Err(identity::not_regular()),
            Ok(metadata) => Some(inode(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut overwritten = Vec::new();
        for (index, file) in open.iter_mut().enumerate() {
            if file.gone {
                continue;
            }
            let metadata = file.file.metadata()?;
            let was_current = std::mem::replace(&mut file.is_current, current == Some(inode(&metadata)));
            if metadata.len() >= file.lines.position() && file.tracked.identity().is(&file.file)? {
                file.tracked.measured(metadata.len());
            } else if was_current || file.is_current {
                overwritten.push(index);
            } else {
                // A rotated file that is written over, by the next copy for instance: what it held is read.
                (file.gone, file.grown) = (true, Instant::now());
            }
        }
        for index in overwritten {
            let fresh = self.begin_again(&mut open[index])?;
            open.push(fresh);
        }
        // A name that leads to a file we do not read means that files were moved, or that one is new.
        let moved = current.is_some_and(|_| !open.iter().any(|file| file.is_current));
        let is_due = self.eyes.list_again.take_if(|at| *at <= Instant::now()).is_some();
        // Without a file at the path, one may have come and been moved away since.
        let unclear = current.is_none() || self.stop.finish.is_cancelled();
        let rested = self.eyes.listed.is_none_or(|at| at.elapsed() >= LIST_AGAIN) || self.stop.finish.is_cancelled();
        if moved || is_due || (unclear && rested) {
            self.eyes.listed = Some(Instant::now());
            self.discover(open)?;
        }
        if moved || (unclear && !rested) {
            self.eyes.list_again = Some(Instant::now() + LIST_AGAIN);
        }
        self.eyes.open = open.iter().filter_map(|file| file.inode().ok()).collect();
        self.memory = Memory::Kept;
        if !self.tracked.looked.swap(true, Relaxed) {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// `old` was truncated, as `copytruncate` does: goes on with the copy of what it held, if there is one, and gives
    /// the file to be read from its beginning.
    fn begin_again(&mut self, old: &mut OpenFile) -> io::Result<OpenFile> {
        self.metrics.copytruncate.inc();
        let file = old.file.try_clone()?;
        let before = old.tracked.identity();
        let tracked = self.track(before.next_content(&file)?, |_| 0);
        let copy = self.copy_of(&before, old.lines.position());
        let path = self.config.path.display();
        tracing::info!(
            component = "logs",
            source = self.name,
            %path,
            copy = copy.as_ref().map(|copy| tracing::field::display(copy.name.display())),
            "file was truncated, reading it from its beginning"
        );
        match copy {
            Some(copy) => {
                old.tracked.identify(|identity| before.moved_to(&copy.file).map(|moved| *identity = moved))?;
                old.file = copy.file;
            }
            None => old.gone = true,
        }
        let is_current = std::mem::take(&mut old.is_current);
        old.grown = Instant::now();
        let (lines, skip) = (self.lines(0), vec![0; self.paths.len()]);
        Ok(OpenFile { file, tracked, lines, skip, grown: Instant::now(), is_current, gone: false })
    }

    /// A rotated file that begins as the file of `identity` did and goes at least to `length`.
    fn copy_of(&self, identity: &FileIdentity, length: u64) -> Option<Candidate> {
        let candidates = self.candidates().ok()?;
        let fits = |candidate: &Candidate| {
            let other = inode(&candidate.file.metadata().ok()?);
            let is_copy = !candidate.is_current
                && other != (identity.device, identity.inode)
                && candidate.file.metadata().ok()?.len() >= length
                && identity.is_copied_to(&candidate.file).ok()?;
            is_copy.then_some(())
        };
        candidates.into_iter().filter(|candidate| fits(candidate).is_some()).max_by_key(|candidate| candidate.written)
    }

    /// Opens every file of the folder that may hold lines we have not read, oldest first.
    fn discover(&mut self, open: &mut Vec<OpenFile>) -> io::Result<()> {
        let mut found = self.candidates()?;
        let mut seen: HashSet<Inode> = HashSet::new();
        let mut reserve = std::mem::take(&mut self.eyes.reserve);
        self.tracked.reserved.store(0, Relaxed);
        for candidate in &found {
            seen.insert(inode(&candidate.file.metadata()?));
        }
        // What was deleted meanwhile has no name any more, but it is still open.
        reserve.retain(|candidate| candidate.file.metadata().is_ok_and(|metadata| seen.insert(inode(&metadata))));
        found.extend(reserve.into_iter().map(|candidate| Candidate { is_current: false, ..candidate }));
        found.sort_by(|a, b| (a.is_current, a.written, &b.name).cmp(&(b.is_current, b.written, &a.name)));

        let known: Vec<Arc<TrackedFile>> = self.tracked.files().clone();
        let mut matches: Vec<Option<Arc<TrackedFile>>> = Vec::new();
        for candidate in &found {
            let length = candidate.file.metadata()?.len();
            let mut match_of = None;
            for tracked in &known {
                // A file that is shorter than what was read of it is another.
                if length >= tracked.low_mark() && tracked.identity().is(&candidate.file)? {
                    match_of = Some(Arc::clone(tracked));
                }
            }
            matches.push(match_of);
        }
        let mut present = Vec::new();
        for index in 0..found.len() {
            let length = found[index].file.metadata()?.len();
            let is_current = found[index].is_current;
            if !is_current && length == 0 && matches[index].is_none() && self.memory == Memory::Kept {
                // A copy that is about to be made looks like this, too. There is nothing to read yet, so it can wait.
                if found[index].written.elapsed().is_ok_and(|age| age < self.config.rotate_wait.0 + LIST_AGAIN * 2) {
                    self.eyes.list_again = Some(Instant::now() + LIST_AGAIN);
                }
                continue;
            }
            let tracked = match matches[index].clone() {
                Some(tracked) => tracked,
                None => self.meet(&found, &mut matches, index, &known, open)?,
            };
            tracked.measured(length);
            present.push(Arc::clone(&tracked));
            if open.iter().any(|file| Arc::ptr_eq(&file.tracked, &tracked)) {
                continue;
            }
            if !is_current && (tracked.finished.load(Relaxed) || tracked.low_mark() >= length) {
                tracked.finished.store(true, Relaxed);
                continue;
            }
            let start = tracked.low_mark();
            tracing::info!(
                component = "logs",
                source = self.name,
                file = %found[index].name.display(),
                offset = start,
                "reading a file"
            );
            open.push(OpenFile {
                skip: tracked.acknowledged.iter().map(|mark| mark.load(Relaxed)).collect(),
                file: found[index].file.try_clone()?,
                lines: self.lines(start),
                tracked,
                grown: Instant::now(),
                is_current,
                gone: false,
            });
        }
        self.forget(&present, open);
        Ok(())
    }

    /// Decides what a file is that no checkpoint knows.
    fn meet(
        &self,
        found: &[Candidate],
        matches: &mut [Option<Arc<TrackedFile>>],
        index: usize,
        known: &[Arc<TrackedFile>],
        open: &[OpenFile],
    ) -> io::Result<Arc<TrackedFile>> {
        let candidate = &found[index];
        let length = candidate.file.metadata()?.len();
        let identity = FileIdentity::of(&candidate.file)?;
        if candidate.is_current {
            let from_end = self.memory == Memory::FirstStart && self.config.read_from == ReadFrom::End;
            // The same inode with other content: it was truncated while nobody looked.
            let before = known.iter().rev().find(|tracked| {
                let old = tracked.identity();
                (old.device, old.inode) == (identity.device, identity.inode)
            });
            let identity = before.map_or(Ok(identity), |before| before.identity().next_content(&candidate.file))?;
            return Ok(self.track(identity, |_| if from_end { length } else { 0 }));
        }
        if self.memory != Memory::Kept {
            return Ok(self.track(identity, |_| length));
        }
        // The copy of a file that was then truncated: the place of what has no file any more.
        for tracked in known.iter().rev() {
            let is_lost = !matches.iter().flatten().any(|other| Arc::ptr_eq(other, tracked))
                && !open.iter().any(|file| Arc::ptr_eq(&file.tracked, tracked))
                && !tracked.finished.load(Relaxed);
            let before = tracked.identity();
            if is_lost && length >= tracked.low_mark() && before.is_copied_to(&candidate.file)? {
                tracked.identify(|identity| before.moved_to(&candidate.file).map(|moved| *identity = moved))?;
                matches[index] = Some(Arc::clone(tracked));
                return Ok(Arc::clone(tracked));
            }
        }
        // The copy of one that is there still: nothing in it is new.
        for (other, tracked) in found.iter().zip(matches.iter()) {
            let Some(tracked) = tracked else { continue };
            if tracked.identity().is_copied_to(&candidate.file)?
                && identity::same_content(&other.file, &candidate.file)?
            {
                return Ok(self.track(identity, |_| length));
            }
        }
        Ok(self.track(identity, |_| 0))
    }

    /// The file itself, what it was renamed to by the look of the names, and any file of the folder that we know.
    fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let known: HashSet<u64> = self.tracked.files().iter().map(|tracked| tracked.identity().inode).collect();
        let current = fs::metadata(&self.config.path).ok().map(|metadata| inode(&metadata));
        let mut found: Vec<Candidate> = Vec::new();
        for (folder, base) in self.places() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let rotated = name.to_str().is_some_and(|name| name == base || identity::is_rotation_of(name, &base));
                if !rotated && !known.contains(&entry.ino()) {
                    continue;
                }
                let is_file = name.to_str() == Some(&*base);
                let file = match identity::open_regular(&folder.join(&name)) {
                    Ok(file) => file,
                    Err(error) if is_file && error.kind() != io::ErrorKind::NotFound => return Err(error),
                    // Renamed or removed since it was listed, not ours to read, or a folder.
                    Err(_) => continue,
                };
                let metadata = file.metadata()?;
                let is = inode(&metadata);
                if found.iter().any(|other| other.file.metadata().is_ok_and(|metadata| inode(&metadata) == is)) {
                    continue;
                }
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Candidate { file, name: name.into(), written, is_current: current == Some(is) });
            }
        }
        Ok(found)
    }

    /// Holds open what appeared while a push waits: rotation may delete it before its turn comes.
    fn reserve(&mut self) {
        self.eyes.again = true;
        let finished: HashSet<Inode> = self
            .tracked
            .files()
            .iter()
            .map(|tracked| tracked.identity())
            .map(|identity| (identity.device, identity.inode))
            .collect();
        for candidate in self.candidates().unwrap_or_default() {
            let Ok(metadata) = candidate.file.metadata() else { continue };
            let is = inode(&metadata);
            let held = |other: &Candidate| other.file.metadata().is_ok_and(|metadata| inode(&metadata) == is);
            let known = self.eyes.open.contains(&is) || finished.contains(&is) || self.eyes.reserve.iter().any(held);
            if !known && self.eyes.reserve.len() < MOST_RESERVED {
                self.eyes.reserve.push(candidate);
            }
        }
        let bytes = self.eyes.reserve.iter().filter_map(|held| Some(held.file.metadata().ok()?.len())).sum();
        self.tracked.reserved.store(bytes, Relaxed);
        self.changed.notify_one();
        if let Ok(metadata) = fs::metadata(&self.config.path) {
            let files = self.tracked.files();
            let current = files.iter().rev().find(|tracked| tracked.identity().inode == metadata.ino());
            current.inspect(|tracked| tracked.measured(metadata.len()));
        }
    }

    /// Reads every open file to its end, oldest first. False when the source was told to end at once.
    async fn read_all(&mut self, open: &mut [OpenFile]) -> io::Result<bool> {
        for file in open.iter_mut().filter(|file| !file.gone) {
            loop {
                if self.stop.abort.is_cancelled() {
                    return Ok(false);
                }
                let mut pieces = Pieces::new(self, &file.skip, file.tracked.identity().key);
                let read = file.lines.read(&file.file, |line| pieces.add(&line))?;
                let pieces = pieces.finish();
                if read == 0 {
                    break;
                }
                file.grown = Instant::now();
                self.metrics.bytes.add(read as u64);
                let position = file.lines.position();
                file.tracked.measured(position.max(file.tracked.length.load(Relaxed)));
                file.tracked.identify(|identity| identity.grow(&file.file))?;
                if !self.push(pieces, &file.tracked).await {
                    return Ok(false);
                }
                // A long file must not keep others from their turn.
                tokio::task::yield_now().await;
            }
        }
        Ok(true)
    }

    /// Lets rotated files go that have not grown for `rotateWait`; gives how long the next one lingers.
    /// `None` when the source was told to end at once.
    async fn retire(&mut self, open: &mut Vec<OpenFile>) -> Option<Duration> {
        let wait = Duration::from(self.config.rotate_wait);
        let mut next = LONG;
        let mut index = 0;
        while index < open.len() {
            let age = open[index].grown.elapsed();
            if open[index].is_current {
                index += 1;
            } else if age >= wait {
                let mut file = open.remove(index);
                if !self.give_rest(&mut file).await {
                    return None;
                }
                file.tracked.finished.store(true, Relaxed);
            } else {
                next = next.min(wait - age);
                index += 1;
            }
        }
        Some(next)
    }

    /// Gives the unterminated last line of a file. False when the source was told to end at once.
    async fn give_rest(&mut self, file: &mut OpenFile) -> bool {
        let mut pieces = Pieces::new(self, &file.skip, file.tracked.identity().key);
        file.lines.take_rest(|line| pieces.add(&line));
        let pieces = pieces.finish();
        self.push(pieces, &file.tracked).await
    }

    /// Queues pieces in order; waits for room. False when told to end at once, or when a sink has ended.
    async fn push(&mut self, pieces: Vec<(usize, Draft)>, tracked: &Arc<TrackedFile>) -> bool {
        for (path, draft) in pieces {
            let queue = self.queues[path].0.clone();
            let push = queue.push(draft, tracked, path);
            tokio::pin!(push);
            let mut look_at = Instant::now();
            loop {
                let pushed = tokio::select! {
                    biased;
                    () = self.stop.abort.cancelled() => false,
                    pushed = &mut push => pushed,
                    () = changed_after(&mut self.eyes.watches, look_at) => {
                        self.reserve();
                        look_at = Instant::now() + RESERVE_EVERY;
                        continue;
                    }
                };
                if !pushed {
                    return false;
                }
                break;
            }
        }
        true
    }

    fn lines(&self, offset: u64) -> Lines {
        Lines::new(offset, self.config.max_line.as_usize())
    }

    fn track(&self, identity: FileIdentity, mark: impl Fn(usize) -> u64) -> Arc<TrackedFile> {
        let tracked = TrackedFile::new(identity, (0..self.paths.len()).map(mark), &self.changed);
        self.tracked.files().push(Arc::clone(&tracked));
        self.changed.notify_one();
        tracked
    }

    /// Forgets files that are gone, or too many to remember.
    fn forget(&self, present: &[Arc<TrackedFile>], open: &[OpenFile]) {
        let mut tracked = self.tracked.files();
        tracked.retain(|one| {
            let is = |other: &Arc<TrackedFile>| Arc::ptr_eq(one, other);
            if present.iter().any(is) || open.iter().any(|file| is(&file.tracked)) {
                one.absent.store(0, Relaxed);
                return true;
            }
            // Pieces of a file that is gone may still be on their way; they hold it too.
            one.absent.fetch_add(1, Relaxed) < ABSENCES || Arc::strong_count(one) > 2
        });
        // Those that are gone first: one that is there and forgotten would be taken for new.
        for only_absent in [true, false] {
            let mut excess = tracked.len().saturating_sub(MOST_REMEMBERED);
            tracked.retain(|one| {
                let done = one.finished.load(Relaxed) && Arc::strong_count(one) <= 2;
                let drop = excess > 0 && done && (!only_absent || one.absent.load(Relaxed) > 0);
                excess -= usize::from(drop);
                !drop
            });
        }
    }
}

/// Waits for something to happen in one of the folders.
async fn changed(watches: &mut [FolderWatch]) {
    match watches {
        [] => std::future::pending().await,
        [one] => one.changed().await,
        [one, other, ..] => tokio::select! {
            () = one.changed() => {}
            () = other.changed() => {}
        },
    }
}

async fn changed_after(watches: &mut [FolderWatch], instant: Instant) {
    tokio::time::sleep_until(instant).await;
    changed(watches).await;
}

fn inode(metadata: &fs::Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

pub(crate) struct Candidate {
    file: File,
    name: PathBuf,
    written: SystemTime,
    is_current: bool,
}

/// The pieces that one read becomes, by path.
struct Pieces<'a> {
    source: &'a Source,
    skip: &'a [u64],
    file: String,
    key: u64,
    now: Timestamp,
    drafts: Vec<Draft>,
    full: Vec<(usize, Draft)>,
}

impl<'a> Pieces<'a> {
    fn new(source: &'a Source, skip: &'a [u64], key: u64) -> Self {
        let drafts = source.paths.iter().map(|_| Draft::default()).collect();
        let file = source.config.path.to_string_lossy().into_owned();
        Self { source, skip, file, key, now: Timestamp::now(), drafts, full: Vec::new() }
    }

    fn add(&mut self, raw: &RawLine<'_>) {
        let metrics = &self.source.metrics;
        metrics.lines.inc();
        if raw.truncated {
            metrics.truncated.inc();
        }
        if raw.repaired {
            metrics.repaired.inc();
        }
        let line = Line {
            text: &raw.text,
            truncated: raw.truncated,
            offset: raw.start,
            source: &self.source.name,
            file: &self.file,
            key: self.key,
            now: &self.now,
        };
        for (index, path) in self.source.paths.iter().enumerate() {
            if raw.end <= self.skip[index] {
                continue;
            }
            let draft = &mut self.drafts[index];
            if draft.end == 0 {
                draft.start = raw.start;
            }
            let before = draft.data.len();
            let outcome = event::write(&line, path.parse_json, &mut draft.data);
            match outcome {
                Outcome::Written => {}
                Outcome::Kept => metrics.parse_errors.inc(),
                Outcome::Dropped => metrics.dropped.inc(),
            }
            let (_, most_events, most_bytes) = self.source.queues[index];
            // A piece that grew too large by this line is closed before it.
            if draft.data.len() > most_bytes && before > 0 {
                let last = draft.data.split_off(before);
                let closed = std::mem::take(draft);
                *draft = Draft { data: last, start: raw.start, ..Draft::default() };
                self.full.push((index, closed));
            }
            let draft = &mut self.drafts[index];
            draft.close_line(outcome != Outcome::Dropped, raw.end);
            if draft.ends.len() >= most_events {
                self.full.push((index, std::mem::take(draft)));
            }
        }
    }

    /// All pieces, in order for each path.
    fn finish(mut self) -> Vec<(usize, Draft)> {
        for (index, draft) in self.drafts.into_iter().enumerate() {
            if draft.end > 0 {
                self.full.push((index, draft));
            }
        }
        self.full
    }
}
