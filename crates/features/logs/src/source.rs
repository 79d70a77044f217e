//! A file source: one log file over all its rotations.
//!
//! In: a path. Out: pieces of events on the queues of the sinks its lines go to. Promise:
//! every line of every file that the path has named since the first start is queued, oldest
//! file first; the source waits while a queue is full; an idle file costs nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use outrigger_config::{FileSource, ReadFrom};
use outrigger_runtime::Backoff;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{self, Line, Outcome};
use crate::graph::Path;
use crate::identity::FileIdentity;
use crate::metrics::SourceMetrics;
use crate::problems::Problems;
use crate::queue::{Draft, Queue, TrackedFile};
use crate::tail::{Lines, RawLine};
use crate::watch::FolderWatch;

/// Writes that follow one another closely are read together.
const COALESCE: Duration = Duration::from_millis(20);
/// Rotated files that are remembered although they are done with, as long as they exist.
const MOST_REMEMBERED: usize = 256;

/// All files a source knows, shared with the checkpoint.
pub(crate) type TrackedFiles = Arc<Mutex<Vec<Arc<TrackedFile>>>>;

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
    pub(crate) tracked: TrackedFiles,
    /// Nothing was ever read: files rotated before that are not for us.
    pub(crate) first_start: bool,
    pub(crate) metrics: SourceMetrics,
    pub(crate) problems: Problems,
    pub(crate) stop: SourceStop,
}

/// A file that is being read.
struct OpenFile {
    file: File,
    tracked: Arc<TrackedFile>,
    lines: Lines,
    /// Lines that end at or before this were acknowledged by that path before a restart.
    skip: Vec<u64>,
    grown: Instant,
    is_current: bool,
}

impl Source {
    /// Reads until stopped.
    pub(crate) async fn run(mut self) {
        let owner = format!("source `{}`", self.name);
        let mut open: Vec<OpenFile> = Vec::new();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut watch = None;
        let stop = self.stop.clone();
        let folder = self.config.path.parent().unwrap_or(FsPath::new("/")).to_owned();
        loop {
            // The watch comes before the look, so that nothing happens unseen between them.
            let folder_there = folder.is_dir();
            if watch.is_none() && folder_there {
                watch = Some(FolderWatch::new(&folder));
            }
            let finishing = stop.finish.is_cancelled();
            let outcome = self
                .look(&mut open)
                .and_then(|()| if folder_there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) });
            match self.read_all(&mut open).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.problems.tell(&owner, format!("cannot read {}: {error}", self.config.path.display()))
                }
            }
            match &outcome {
                Ok(()) => {
                    self.problems.mended(&owner);
                    backoff.reset();
                }
                Err(error) => {
                    watch = None;
                    let what = if folder_there { &self.config.path } else { &folder };
                    let remedy = "it is tried again until it can be read";
                    self.problems.tell(&owner, format!("cannot read {}: {error}; {remedy}", what.display()));
                }
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
            let retry = if outcome.is_err() { backoff.next() } else { Duration::from_secs(3600) };
            tokio::select! {
                () = stop.abort.cancelled() => return,
                () = stop.finish.cancelled() => {}
                () = tokio::time::sleep(lingers.min(retry)) => {}
                () = changed(&mut watch) => {
                    tokio::select! {
                        () = tokio::time::sleep(COALESCE) => {}
                        () = stop.finish.cancelled() => {}
                        () = stop.abort.cancelled() => return,
                    }
                }
            }
        }
    }

    /// Notices rotation, truncation and new files.
    fn look(&mut self, open: &mut Vec<OpenFile>) -> io::Result<()> {
        let current = match fs::metadata(&self.config.path) {
            Ok(metadata) => Some((metadata.dev(), metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        for file in open.iter_mut() {
            let metadata = file.file.metadata()?;
            file.is_current = current == Some((metadata.dev(), metadata.ino()));
            let shrunk = metadata.len() < file.lines.position();
            if shrunk || !file.tracked.identity().is(&file.file)? {
                self.metrics.copytruncate.inc();
                let path = self.config.path.display();
                tracing::info!(component = "logs", source = self.name, %path, "file was truncated, reading it from its beginning");
                file.tracked.finished.store(true, Relaxed);
                let tracked = self.track(FileIdentity::of(&file.file)?, |_| 0);
                *file = OpenFile {
                    tracked,
                    lines: self.lines(0),
                    skip: vec![0; self.paths.len()],
                    grown: Instant::now(),
                    ..take(file)?
                };
            }
        }
        // A name that leads to a file we do not read means that files were moved, or that one is new.
        if current.is_some_and(|_| !open.iter().any(|file| file.is_current)) || (current.is_none() && open.is_empty()) {
            self.discover(open)?;
        }
        self.first_start = false;
        Ok(())
    }

    /// Opens every file of the folder that may hold lines we have not read, oldest first.
    fn discover(&mut self, open: &mut Vec<OpenFile>) -> io::Result<()> {
        let mut found = self.candidates()?;
        found.sort_by(|a, b| (a.is_current, a.written, &b.name).cmp(&(b.is_current, b.written, &a.name)));
        let known: Vec<Arc<TrackedFile>> = self.tracked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut present = Vec::new();
        for candidate in found {
            let length = candidate.file.metadata()?.len();
            let mut match_of = None;
            for tracked in &known {
                if tracked.identity().is(&candidate.file)? {
                    match_of = Some(tracked);
                }
            }
            let tracked = match match_of {
                Some(tracked) => {
                    present.push(Arc::clone(tracked));
                    if open.iter().any(|file| Arc::ptr_eq(&file.tracked, tracked)) {
                        continue;
                    }
                    if !candidate.is_current && (tracked.finished.load(Relaxed) || tracked.low_mark() >= length) {
                        tracked.finished.store(true, Relaxed);
                        continue;
                    }
                    Arc::clone(tracked)
                }
                None => {
                    let from_end = candidate.is_current && self.config.read_from == ReadFrom::End;
                    let start = if self.first_start && (from_end || !candidate.is_current) { length } else { 0 };
                    let tracked = self.track(FileIdentity::of(&candidate.file)?, |_| start);
                    present.push(Arc::clone(&tracked));
                    if !candidate.is_current && start == length {
                        tracked.finished.store(true, Relaxed);
                        continue;
                    }
                    tracked
                }
            };
            let start = tracked.low_mark().min(length);
            tracing::info!(
                component = "logs",
                source = self.name,
                file = %candidate.name.to_string_lossy(),
                offset = start,
                "reading a file"
            );
            open.push(OpenFile {
                skip: tracked.acknowledged.iter().map(|mark| mark.load(Relaxed)).collect(),
                file: candidate.file,
                lines: self.lines(start),
                tracked,
                grown: Instant::now(),
                is_current: candidate.is_current,
            });
        }
        self.forget(&present, open);
        Ok(())
    }

    /// The file itself and what it was renamed to: names that begin with its own and are not compressed.
    fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let (Some(folder), Some(base)) = (self.config.path.parent(), self.config.path.file_name()) else {
            return Ok(Vec::new());
        };
        let base = base.as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let bytes = name.as_encoded_bytes();
            let rotated = bytes
                .strip_prefix(base)
                .is_some_and(|rest| rest.first().is_some_and(|first| matches!(first, b'.' | b'-' | b'_')));
            let compressed =
                [".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip"].iter().any(|ending| bytes.ends_with(ending.as_bytes()));
            let is_current = bytes == base;
            if !is_current && (!rotated || compressed) {
                continue;
            }
            let file = match File::open(folder.join(&name)) {
                Ok(file) => file,
                Err(error) if is_current && error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Renamed or removed since it was listed, or not ours to read.
                Err(_) => continue,
            };
            let metadata = file.metadata()?;
            if metadata.is_file() {
                let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Candidate { file, name: name.into(), written, is_current });
            }
        }
        Ok(found)
    }

    /// Reads every open file to its end, oldest first. False when the source was told to end at once.
    async fn read_all(&mut self, open: &mut [OpenFile]) -> io::Result<bool> {
        for file in open.iter_mut() {
            loop {
                if self.stop.abort.is_cancelled() {
                    return Ok(false);
                }
                let mut pieces = Pieces::new(self, &file.skip);
                let read = file.lines.read(&file.file, |line| pieces.add(&line))?;
                let pieces = pieces.finish();
                if read == 0 {
                    break;
                }
                file.grown = Instant::now();
                self.metrics.bytes.add(read as u64);
                if !self.push(pieces, &file.tracked).await {
                    return Ok(false);
                }
                let mut identity = file.tracked.identity.lock().unwrap_or_else(PoisonError::into_inner);
                identity.grow(&file.file)?;
            }
            if file.is_current {
                let length = file.file.metadata()?.len();
                self.metrics.lag.set(length.saturating_sub(file.lines.position()) as f64);
            }
        }
        Ok(true)
    }

    /// Lets rotated files go that have not grown for `rotateWait`; gives how long the next one lingers.
    /// `None` when the source was told to end at once.
    async fn retire(&mut self, open: &mut Vec<OpenFile>) -> Option<Duration> {
        let wait = Duration::from(self.config.rotate_wait);
        let mut next = Duration::from_secs(3600);
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
    async fn give_rest(&self, file: &mut OpenFile) -> bool {
        let mut pieces = Pieces::new(self, &file.skip);
        file.lines.take_rest(|line| pieces.add(&line));
        let pieces = pieces.finish();
        self.push(pieces, &file.tracked).await
    }

    /// Queues pieces in order; waits for room. False when told to end at once, or when a sink has ended.
    async fn push(&self, pieces: Vec<(usize, Draft)>, tracked: &Arc<TrackedFile>) -> bool {
        for (path, draft) in pieces {
            let pushed = tokio::select! {
                biased;
                () = self.stop.abort.cancelled() => false,
                pushed = self.queues[path].0.push(draft, tracked, path) => pushed,
            };
            if !pushed {
                return false;
            }
        }
        true
    }

    fn lines(&self, offset: u64) -> Lines {
        Lines::new(offset, self.config.max_line.as_usize())
    }

    fn track(&self, identity: FileIdentity, mark: impl Fn(usize) -> u64) -> Arc<TrackedFile> {
        let tracked = TrackedFile::new(identity, (0..self.paths.len()).map(mark));
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&tracked));
        tracked
    }

    /// Forgets files that are gone, or too many to remember.
    fn forget(&self, present: &[Arc<TrackedFile>], open: &[OpenFile]) {
        let mut tracked = self.tracked.lock().unwrap_or_else(PoisonError::into_inner);
        tracked.retain(|one| {
            let is = |other: &Arc<TrackedFile>| Arc::ptr_eq(one, other);
            // Pieces of a file that is gone may still be on their way; they hold it too.
            present.iter().any(is) || open.iter().any(|file| is(&file.tracked)) || Arc::strong_count(one) > 2
        });
        let excess = tracked.len().saturating_sub(MOST_REMEMBERED);
        let mut dropped = 0;
        tracked.retain(|one| {
            let drop = dropped < excess && one.finished.load(Relaxed) && Arc::strong_count(one) <= 2;
            dropped += usize::from(drop);
            !drop
        });
    }
}

async fn changed(watch: &mut Option<FolderWatch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// A second handle on the same open file, for a value that replaces the old one.
fn take(file: &OpenFile) -> io::Result<OpenFile> {
    Ok(OpenFile {
        file: file.file.try_clone()?,
        tracked: Arc::clone(&file.tracked),
        lines: Lines::new(0, 0),
        skip: Vec::new(),
        grown: file.grown,
        is_current: file.is_current,
    })
}

struct Candidate {
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
    drafts: Vec<Draft>,
    full: Vec<(usize, Draft)>,
}

impl<'a> Pieces<'a> {
    fn new(source: &'a Source, skip: &'a [u64]) -> Self {
        let drafts = source.paths.iter().map(|_| Draft::default()).collect();
        Self { source, skip, file: source.config.path.to_string_lossy().into_owned(), drafts, full: Vec::new() }
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
            text: (&*raw.text).into(),
            truncated: raw.truncated,
            offset: raw.start,
            source: &self.source.name,
            file: &self.file,
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
