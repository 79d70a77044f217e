//! Reads the proxy's access log, straight from the one who writes it.
//!
//! In: batches of lines. Out: events on the queues of sinks, as a file's lines are. Promise: while sinks are slow lines wait
//! in a bounded queue, and what finds no room there is shed and counted by the access log; nothing is remembered over a
//! restart, so a line is delivered at most once.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use outrigger_runtime::LineQueue;
use tokio::sync::Notify;

use crate::event::{self, Line, Outcome, Timestamp};
use crate::graph::Path;
use crate::identity::FileIdentity;
use crate::metrics::SourceMetrics;
use crate::queue::{Draft, Queue, TrackedFile};
use crate::source::SourceStop;

/// What events tell as their `file`.
const FILE: &str = "accessLog";

/// The source before it runs.
pub(crate) struct Feed {
    pub(crate) name: String,
    pub(crate) lines: LineQueue,
    pub(crate) paths: Vec<Path>,
    /// Queue and the most events and bytes of one piece, by path.
    pub(crate) queues: Vec<(Queue, usize, usize)>,
    pub(crate) metrics: SourceMetrics,
    pub(crate) stop: SourceStop,
    /// How far each path is, as if the lines were those of a file.
    pub(crate) origin: Arc<TrackedFile>,
}

/// What stands for the file of lines that have none.
pub(crate) fn origin(paths: usize, changed: &Arc<Notify>) -> Arc<TrackedFile> {
    // Its name makes events' ids differ from those of other runs.
    let key = RandomState::new().hash_one(0);
    TrackedFile::new(FileIdentity::of_no_file(key), (0..paths).map(|_| 0), changed)
}

impl Feed {
    /// Gives what comes until stopped; at the stop all that waits.
    pub(crate) async fn run(self) {
        let key = self.origin.identity().key;
        let mut offset = 0;
        loop {
            let batch = tokio::select! {
                biased;
                () = self.stop.abort.cancelled() => return,
                batch = self.lines.next() => batch,
                () = self.stop.finish.cancelled() => return,
            };
            self.metrics.bytes.add(batch.len() as u64);
            self.origin.measured(offset + batch.len() as u64);
            tokio::select! {
                biased;
                () = self.stop.abort.cancelled() => return,
                given = self.give(&batch, offset, key) => if !given {
                    return;
                },
            }
            offset += batch.len() as u64;
        }
    }

    /// Queues a batch for each sink; false when one has ended.
    async fn give(&self, batch: &[u8], offset: u64, key: u64) -> bool {
        let now = Timestamp::now();
        let text = String::from_utf8_lossy(batch);
        self.metrics.lines.add(text.lines().count() as u64);
        for (number, path) in self.paths.iter().enumerate() {
            let (queue, most_events, most_bytes) = &self.queues[number];
            let mut at = offset;
            let mut draft = Draft { start: at, end: at, ..Draft::default() };
            for line in text.split_inclusive('\n') {
                let before = draft.data.len();
                let whole = Line {
                    text: line.strip_suffix('\n').unwrap_or(line),
                    truncated: false,
                    offset: at,
                    source: &self.name,
                    file: FILE,
                    key,
                    now: &now,
                };
                let outcome = event::write(&whole, path.parse_json, &mut draft.data);
                match outcome {
                    Outcome::Written => {}
                    Outcome::Kept => self.metrics.parse_errors.inc(),
                    Outcome::Dropped => {
                        self.metrics.parse_errors.inc();
                        self.metrics.dropped.inc();
                    }
                }
                // What makes a piece too large begins the next one.
                if before > 0 && (draft.data.len() > *most_bytes || draft.ends.len() >= *most_events) {
                    let rest = draft.data.split_off(before);
                    let next = Draft { data: rest, start: at, end: at, ..Draft::default() };
                    if !queue.push(std::mem::replace(&mut draft, next), &self.origin, number).await {
                        return false;
                    }
                }
                at += line.len() as u64;
                draft.close_line(outcome != Outcome::Dropped, at);
            }
            if draft.ends.is_empty() {
                // A transform dropped all of it, so no sink will say that it has it.
                let mark = &self.origin.acknowledged[number];
                let _ = mark.compare_exchange(draft.start, at, Relaxed, Relaxed);
            } else if !queue.push(draft, &self.origin, number).await {
                return false;
            }
        }
        true
    }
}
