//! Spans that wait to be sent.
//!
//! In: spans, written on whatever thread a request ends. Out: all that came since, for the
//! one who sends them. Promise: each thread writes to memory of its own, so that a lock is
//! contended only while it is emptied; what would go beyond the bound is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::cells::shard;

/// The main thread and two workers, which is the most by default; further ones share.
const SHARDS: usize = 3;

/// Room for spans of all threads. Cheap to clone.
#[derive(Clone)]
pub struct SpanQueue(Arc<Inner>);

struct Inner {
    shards: [Mutex<Shard>; SHARDS],
    /// Bytes that one thread's spans may take.
    most: AtomicUsize,
    /// Somebody sends them.
    open: AtomicBool,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Shard {
    spans: Vec<u8>,
    count: u64,
}

/// What was taken out.
#[derive(Debug, Default)]
pub struct Drained {
    /// Spans, one behind the other.
    pub spans: Vec<u8>,
    /// How many.
    pub count: u64,
}

impl Default for SpanQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl SpanQueue {
    /// Room for nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            shards: Default::default(),
            most: AtomicUsize::new(0),
            open: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        }))
    }

    /// Begins to take spans, up to so many bytes in all, or changes how many.
    pub fn open(&self, most: usize) {
        self.0.most.store(most / self.0.shards.len(), Relaxed);
        self.0.open.store(true, Relaxed);
    }

    /// Takes no more: nobody sends them. Those that wait can still be drained.
    pub fn close(&self) {
        self.0.open.store(false, Relaxed);
    }

    /// Lets `write` add one span.
    pub fn push(&self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.0.open.load(Relaxed) {
            return;
        }
        let mut shard = self.0.shards[shard(self.0.shards.len())].lock();
        let before = shard.spans.len();
        if before < self.0.most.load(Relaxed) {
            write(&mut shard.spans);
        }
        // One that did not fit whole is taken back.
        if shard.spans.len() == before || shard.spans.len() > self.0.most.load(Relaxed) {
            shard.spans.truncate(before);
            self.0.dropped.fetch_add(1, Relaxed);
        } else {
            shard.count += 1;
        }
    }

    /// Takes out what one thread has written; `None` when no thread has any.
    pub fn drain(&self) -> Option<Drained> {
        self.0.shards.iter().find_map(|shard| {
            let mut shard = shard.lock();
            (shard.count > 0).then(|| {
                let Shard { spans, count } = std::mem::take(&mut *shard);
                Drained { spans, count }
            })
        })
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().spans.len()).sum()
    }

    /// Spans dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        self.0.dropped.swap(0, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_waits_and_what_does_not_is_dropped_and_counted() {
        let queue = SpanQueue::new();
        queue.push(|out| out.extend_from_slice(b"early"));
        assert!(queue.drain().is_none(), "nobody sends yet");
        queue.open(10 * SHARDS);
        for _ in 0..3 {
            queue.push(|out| out.extend_from_slice(b"1234"));
        }
        assert_eq!((queue.waiting(), queue.take_dropped()), (8, 1));
        let drained = queue.drain().unwrap();
        assert_eq!((drained.spans.as_slice(), drained.count), (b"12341234".as_slice(), 2));
        assert!(queue.drain().is_none());
        queue.push(|out| out.extend_from_slice(b"after"));
        queue.close();
        queue.push(|out| out.extend_from_slice(b"late"));
        assert_eq!(queue.drain().unwrap().count, 1, "what waits is still sent");
        assert_eq!(queue.take_dropped(), 0, "what nobody wants is not missed");
    }
}
