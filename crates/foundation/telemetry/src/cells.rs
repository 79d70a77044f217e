//! The memory that metrics are written to.
//!
//! In: a number of shards, and requests for runs of cells. Out: cells addressed by slot,
//! one per shard. Promise: a write takes no lock, and two threads with shards of their own
//! never touch the same cache line. Each shard has chunks of its own, so a series costs
//! eight bytes per cell and shard instead of a padded cache line.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Cells in a chunk: one page of memory per shard.
const CHUNK: usize = 512;
/// Chunks a shard can have; with [`CHUNK`] the registry's ceiling of cells.
const MAX_CHUNKS: usize = 32 * 1024;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Sets which shard this thread writes to: 0 for the main thread, 1 and up for workers.
pub fn set_shard(index: usize) {
    SHARD.set(index);
}

/// This thread's shard.
pub(crate) fn shard() -> usize {
    SHARD.get()
}

#[repr(align(64))]
struct Chunk([AtomicU64; CHUNK]);

type Row = Box<[OnceLock<Box<Chunk>>]>;

/// Sharded cells.
pub(crate) struct Cells {
    /// One row of chunk pointers per shard; a row's pointers are written once each.
    shards: Box<[Row]>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// First slot never given out.
    next: usize,
    /// Runs that came back, by length.
    returned: BTreeMap<usize, Vec<usize>>,
}

impl Cells {
    /// Cells for `shards` writers and at most `max_cells` cells each.
    pub(crate) fn new(shards: usize, max_cells: usize) -> Self {
        let chunks = max_cells.div_ceil(CHUNK).clamp(1, MAX_CHUNKS);
        let row = || (0..chunks).map(|_| OnceLock::new()).collect();
        Self { shards: (0..shards.max(1)).map(|_| row()).collect(), free: Mutex::default() }
    }

    /// A run of `length` cells, all zero; `None` when there are no more.
    pub(crate) fn take(&self, length: usize) -> Option<usize> {
        debug_assert!(length <= CHUNK, "a series fits a chunk");
        let mut free = self.free.lock();
        if let Some(start) = free.returned.get_mut(&length).and_then(Vec::pop) {
            return Some(start);
        }
        // A run never straddles two chunks, so that one bounds check finds all of it.
        let start = if free.next % CHUNK + length > CHUNK { free.next.next_multiple_of(CHUNK) } else { free.next };
        if start + length > self.shards[0].len() * CHUNK {
            return None;
        }
        free.next = start + length;
        Some(start)
    }

    /// Takes a run back. The caller guarantees that nobody writes to it any more.
    pub(crate) fn give_back(&self, start: usize, length: usize) {
        for shard in &self.shards {
            if let Some(chunk) = shard[start / CHUNK].get() {
                for cell in &chunk.0[start % CHUNK..][..length] {
                    cell.store(0, Relaxed);
                }
            }
        }
        self.free.lock().returned.entry(length).or_default().push(start);
    }

    /// This thread's cell of a slot.
    #[inline]
    pub(crate) fn mine(&self, slot: usize) -> &AtomicU64 {
        let shard = &self.shards[SHARD.get() % self.shards.len()];
        let chunk = shard[slot / CHUNK].get_or_init(|| Box::new(Chunk([const { AtomicU64::new(0) }; CHUNK])));
        &chunk.0[slot % CHUNK]
    }

    /// All shards' cells of a slot that have been written.
    pub(crate) fn all(&self, slot: usize) -> impl Iterator<Item = &AtomicU64> {
        self.shards.iter().filter_map(move |shard| shard[slot / CHUNK].get()).map(move |chunk| &chunk.0[slot % CHUNK])
    }

    /// The sum of a slot that holds whole numbers.
    pub(crate) fn sum(&self, slot: usize) -> u64 {
        self.all(slot).map(|cell| cell.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    /// The sum of a slot that holds floats.
    pub(crate) fn sum_f64(&self, slot: usize) -> f64 {
        self.all(slot).map(|cell| f64::from_bits(cell.load(Relaxed))).sum()
    }

    /// Adds to this thread's cell of a slot that holds floats.
    #[inline]
    pub(crate) fn add_f64(&self, slot: usize, value: f64) {
        let cell = self.mine(slot);
        // The shard has one writer as a rule, so the first try succeeds.
        let _ = cell.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + value).to_bits()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_with_shards_of_their_own_add_up() {
        let cells = Cells::new(3, 1024);
        let slot = cells.take(1).unwrap();
        std::thread::scope(|scope| {
            for shard in 0..3 {
                let cells = &cells;
                scope.spawn(move || {
                    set_shard(shard);
                    for _ in 0..10_000 {
                        cells.mine(slot).fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert_eq!(cells.sum(slot), 30_000);
    }

    #[test]
    fn a_run_given_back_is_zero_and_used_again() {
        let cells = Cells::new(2, 1024);
        let run = cells.take(4).unwrap();
        cells.mine(run + 2).store(7, Relaxed);
        cells.give_back(run, 4);
        assert_eq!(cells.take(4), Some(run));
        assert_eq!(cells.sum(run + 2), 0);
    }

    #[test]
    fn runs_do_not_straddle_chunks_and_end_at_the_ceiling() {
        let cells = Cells::new(1, 2 * CHUNK);
        assert_eq!(cells.take(CHUNK - 1), Some(0));
        assert_eq!(cells.take(2), Some(CHUNK));
        assert_eq!(cells.take(CHUNK), None);
    }
}
