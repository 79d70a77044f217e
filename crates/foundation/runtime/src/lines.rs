//! Lines that one pillar gives another: the access log to log forwarding.
//!
//! In: batches of lines, from whatever thread. Out: the same in order, for the one who forwards them. Promise: whoever
//! gives never waits; what would go beyond the bound is refused, so that the giver can count it; nothing is kept on disk,
//! so what waits at a crash is gone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Lines on their way. Cheap to clone.
#[derive(Clone, Default)]
pub struct LineQueue(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl LineQueue {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives whole lines, each with its line feed, unless more than `most` bytes would wait then; says whether it did.
    pub fn push(&self, lines: Vec<u8>, most: usize) -> bool {
        let mut waiting = self.waiting();
        if waiting.bytes + lines.len() > most {
            return false;
        }
        waiting.bytes += lines.len();
        waiting.batches.push_back(lines);
        drop(waiting);
        self.0.news.notify_one();
        true
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.waiting().bytes
    }

    /// The next batch, if one waits.
    pub fn try_next(&self) -> Option<Vec<u8>> {
        let mut waiting = self.waiting();
        let batch = waiting.batches.pop_front()?;
        waiting.bytes -= batch.len();
        Some(batch)
    }

    /// Waits for the next batch. Cancel-safe.
    pub async fn next(&self) -> Vec<u8> {
        loop {
            if let Some(batch) = self.try_next() {
                return batch;
            }
            self.0.news.notified().await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_in_order_and_within_the_bound() {
        let queue = LineQueue::new();
        assert!(queue.push(b"one\n".to_vec(), 8));
        assert!(queue.push(b"two\n".to_vec(), 8));
        assert!(!queue.push(b"three\n".to_vec(), 8), "there is no room");
        assert_eq!(queue.bytes(), 8);
        assert_eq!(queue.next().await, b"one\n");
        assert!(queue.push(b"four".to_vec(), 8), "there is again");
        assert_eq!((queue.next().await, queue.try_next()), (b"two\n".to_vec(), Some(b"four".to_vec())));
        assert_eq!(queue.try_next(), None);
        // It waits already when another thread brings the line.
        let push = || {
            std::thread::spawn({
                let queue = queue.clone();
                move || queue.push(b"five\n".to_vec(), 8)
            })
        };
        let (line, ()) = tokio::join!(queue.next(), async { assert!(push().join().unwrap()) });
        assert_eq!(line, b"five\n");
    }
}
