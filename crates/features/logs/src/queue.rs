//! From sources to sinks: pieces of a file's events, and what became of them.
//!
//! In: events of one file, in order. Out: pieces that a sink acknowledges in that order.
//! Promise: a sink's queue holds at most `buffer` bytes of events; a piece that is dropped
//! without being acknowledged leaves the file's mark where it was.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_telemetry::Gauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::identity::FileIdentity;

/// A file of a source, and how far each of the source's paths has acknowledged it.
pub(crate) struct TrackedFile {
    pub(crate) identity: Mutex<FileIdentity>,
    /// One mark per path from the source to a sink.
    pub(crate) acknowledged: Box<[AtomicU64]>,
    /// Rotated, read to its end, and let go by its source.
    pub(crate) finished: AtomicBool,
    /// How long it was when last looked at.
    pub(crate) length: AtomicU64,
    /// Listings of the folder, one after another, that did not show it.
    pub(crate) absent: AtomicU32,
    /// Told of everything that a checkpoint holds.
    changed: Arc<Notify>,
}

impl TrackedFile {
    pub(crate) fn new(identity: FileIdentity, marks: impl Iterator<Item = u64>, changed: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            identity: Mutex::new(identity),
            acknowledged: marks.map(AtomicU64::new).collect(),
            finished: AtomicBool::new(false),
            length: AtomicU64::new(0),
            absent: AtomicU32::new(0),
            changed: Arc::clone(changed),
        })
    }

    /// Bytes that not every path has acknowledged.
    pub(crate) fn lag(&self) -> u64 {
        self.length.load(Relaxed).saturating_sub(self.low_mark())
    }

    /// Notes how long the file is.
    pub(crate) fn measured(&self, length: u64) {
        if self.length.swap(length, Relaxed) != length {
            self.changed.notify_one();
        }
    }

    /// Follows the file as it grows, or to where its content went.
    pub(crate) fn identify(
        &self,
        change: impl FnOnce(&mut FileIdentity) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *identity;
        change(&mut identity)?;
        if *identity != before {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Up to where every path has acknowledged everything: where reading must begin again.
    pub(crate) fn low_mark(&self) -> u64 {
        self.acknowledged.iter().map(|mark| mark.load(Relaxed)).min().unwrap_or(0)
    }

    pub(crate) fn identity(&self) -> FileIdentity {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Some events of one file, encoded, for one sink.
pub(crate) struct Piece {
    pub(crate) file: Arc<TrackedFile>,
    /// Which of the file's marks this piece moves.
    pub(crate) path: usize,
    /// Where in the file it begins and ends; events that transforms dropped lie within.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// JSON lines.
    pub(crate) data: String,
    /// Where each line ends in `data`.
    pub(crate) ends: Vec<u32>,
    room: Option<OwnedSemaphorePermit>,
    gauge: Gauge,
}

impl Piece {
    /// Moves the file's mark: the sink has everything up to here.
    pub(crate) fn acknowledge(self) {
        self.file.acknowledged[self.path].fetch_max(self.end, Relaxed);
        self.file.changed.notify_one();
    }

    /// The number of events.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(room) = self.room.take() {
            self.gauge.add(-(room.num_permits() as f64));
        }
    }
}

/// A sink's end of its queue.
pub(crate) type Pieces = mpsc::Receiver<Piece>;

/// The sources' end of a sink's queue.
#[derive(Clone)]
pub(crate) struct Queue {
    sender: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    bytes: usize,
    gauge: Gauge,
}

/// Pieces in a queue; their bytes are what really bounds it.
const MOST_PIECES: usize = 1024;

impl Queue {
    /// A queue that holds `bytes` of events.
    pub(crate) fn new(bytes: usize, gauge: Gauge) -> (Self, Pieces) {
        let (sender, receiver) = mpsc::channel(MOST_PIECES);
        let bytes = bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        (Self { sender, room: Arc::new(Semaphore::new(bytes)), bytes, gauge }, receiver)
    }

    /// Waits for room and queues a piece; false when the sink has ended.
    pub(crate) async fn push(&self, draft: Draft, file: &Arc<TrackedFile>, path: usize) -> bool {
        // One event larger than the whole buffer takes all of it.
        let wanted = draft.data.len().min(self.bytes) as u32;
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(wanted).await else { return false };
        self.gauge.add(f64::from(wanted));
        let piece = Piece {
            file: Arc::clone(file),
            path,
            start: draft.start,
            end: draft.end,
            data: draft.data,
            ends: draft.ends,
            room: Some(room),
            gauge: self.gauge.clone(),
        };
        self.sender.send(piece).await.is_ok()
    }
}

/// A piece that is being filled.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) data: String,
    pub(crate) ends: Vec<u32>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Draft {
    /// Notes that the line just written to `data`, or dropped, ends at `end` in the file.
    pub(crate) fn close_line(&mut self, written: bool, end: u64) {
        if written {
            self.ends.push(self.data.len() as u32);
        }
        self.end = end;
    }
}
