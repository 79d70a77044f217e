//! The memory that metrics are written to.
//!
//! In: a number of shards, and requests for runs of cells. Out: cells addressed by slot,
//! one per shard. Promise: a write takes no lock, and two threads with shards of their own
//! never touch the same cache line. Each shard has chunks of its own, so a series costs
//! eight bytes per cell and shard that wrote, instead of a padded cache line; a chunk is
//! allocated at the first write to it, once for 512 cells.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// Cells in a chunk: one page of memory per shard.
const CHUNK: usize = 512;
/// Chunks in a segment, whose pointers are allocated together.
const SEGMENT: usize = 256;
/// Segments of a shard: with the others, 16.7 million cells, enough for a million histograms of request durations.
const SEGMENTS: usize = 128;

/// The longest run.
pub(crate) const MAX_RUN: usize = CHUNK;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Sets which shard this thread writes to: 0 for the main thread, 1 and up for workers.
pub fn set_shard(index: usize) {
    SHARD.set(index);
}

/// This thread's among `count` shards. A thread beyond them shares one, which is slower and still right.
#[inline]
pub(crate) fn shard(count: usize) -> usize {
    let index = SHARD.get();
    if index < count { index } else { index % count }
}

#[repr(align(64))]
struct Chunk([AtomicU64; CHUNK]);

type Segment = Box<[OnceLock<Box<Chunk>>]>;

/// One shard's pointers; each is written once.
type Shard = Box<[OnceLock<Segment>]>;

/// Sharded cells.
pub(crate) struct Cells {
    shards: Box<[Shard]>,
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
    /// Cells for `shards` writers.
    pub(crate) fn new(shards: usize) -> Self {
        let shard = || (0..SEGMENTS).map(|_| OnceLock::new()).collect();
        Self { shards: (0..shards.max(1)).map(|_| shard()).collect(), free: Mutex::default() }
    }

    /// A run of `length` cells, all zero; `None` when there are no more.
    pub(crate) fn take(&self, length: usize) -> Option<usize> {
        debug_assert!(length <= MAX_RUN, "a series fits a chunk");
        let mut free = self.free.lock();
        if let Some(start) = free.returned.get_mut(&length).and_then(Vec::pop) {
            return Some(start);
        }
        // A run never straddles two chunks, so that a series' cells lie together.
        let start = if free.next % CHUNK + length > CHUNK { free.next.next_multiple_of(CHUNK) } else { free.next };
        if start + length > SEGMENTS * SEGMENT * CHUNK {
            return None;
        }
        free.next = start + length;
        Some(start)
    }

    /// Takes a run back. The caller guarantees that nobody writes to it any more.
    pub(crate) fn give_back(&self, start: usize, length: usize) {
        for slot in start..start + length {
            self.all(slot).for_each(|cell| cell.store(0, Relaxed));
        }
        self.free.lock().returned.entry(length).or_default().push(start);
    }

    /// This thread's cell of a slot.
    #[inline]
    pub(crate) fn mine(&self, slot: usize) -> &AtomicU64 {
        self.of(shard(self.shards.len()), slot)
    }

    /// Adds to this thread's cell of a slot that holds floats.
    #[inline]
    pub(crate) fn add_f64(&self, slot: usize, value: f64) {
        add_f64(self.mine(slot), value);
    }

    /// Sets a slot that holds floats. The value is kept by the first shard, so that it is exact whatever was added
    /// elsewhere before; an addition made meanwhile counts as made either before or after.
    pub(crate) fn set_f64(&self, slot: usize, value: f64) {
        for cell in self.all(slot).filter(|cell| cell.load(Relaxed) != 0) {
            cell.store(0, Relaxed);
        }
        self.of(0, slot).store(value.to_bits(), Relaxed);
    }

    /// The sum of a slot that holds whole numbers.
    pub(crate) fn sum(&self, slot: usize) -> u64 {
        self.all(slot).map(|cell| cell.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    /// The sum of a slot that holds floats.
    pub(crate) fn sum_f64(&self, slot: usize) -> f64 {
        self.all(slot).map(|cell| f64::from_bits(cell.load(Relaxed))).fold(0.0, |sum, value| sum + value)
    }

    /// All shards' cells of a slot that may have been written.
    pub(crate) fn all(&self, slot: usize) -> impl Iterator<Item = &AtomicU64> {
        let (segment, chunk, cell) = place(slot);
        let chunks = self.shards.iter().filter_map(move |shard| shard[segment].get()?[chunk].get());
        chunks.map(move |chunk| &chunk.0[cell])
    }

    #[inline]
    fn of(&self, shard: usize, slot: usize) -> &AtomicU64 {
        let (segment, chunk, cell) = place(slot);
        let segment = self.shards[shard][segment].get_or_init(|| (0..SEGMENT).map(|_| OnceLock::new()).collect());
        let chunk = segment[chunk].get_or_init(|| Box::new(Chunk([const { AtomicU64::new(0) }; CHUNK])));
        &chunk.0[cell]
    }
}

/// Adds to a cell that holds a float. A shard has one writer as a rule, so the first try succeeds.
#[inline]
pub(crate) fn add_f64(cell: &AtomicU64, value: f64) {
    let _ = cell.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + value).to_bits()));
}

/// Segment, chunk and cell of a slot.
#[inline]
fn place(slot: usize) -> (usize, usize, usize) {
    (slot / (CHUNK * SEGMENT), slot / CHUNK % SEGMENT, slot % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_with_shards_of_their_own_or_shared_ones_add_up() {
        for shards in [1, 2, 4] {
            let cells = Cells::new(shards);
            let (whole, float) = (cells.take(1).unwrap(), cells.take(1).unwrap());
            std::thread::scope(|scope| {
                for shard in 0..4 {
                    let cells = &cells;
                    scope.spawn(move || {
                        set_shard(shard);
                        for _ in 0..10_000 {
                            cells.mine(whole).fetch_add(1, Relaxed);
                            cells.add_f64(float, 0.5);
                        }
                    });
                }
            });
            assert_eq!((cells.sum(whole), cells.sum_f64(float)), (40_000, 20_000.0), "{shards} shards");
        }
    }

    #[test]
    fn a_value_set_is_exact_whatever_was_there_and_whoever_sets_it() {
        let cells = Cells::new(3);
        let slot = cells.take(1).unwrap();
        for (shard, value) in [(1, 0.1), (0, 0.3), (2, f64::NAN), (2, 1e300), (1, f64::INFINITY), (0, 7.1), (2, 0.2)] {
            set_shard(shard);
            cells.set_f64(slot, value);
            assert_eq!(cells.sum_f64(slot).to_bits(), value.to_bits(), "shard {shard}");
        }
        cells.add_f64(slot, 2.0);
        assert_eq!(cells.sum_f64(slot), 2.2);
        set_shard(0);
    }

    #[test]
    fn shards_share_no_cache_line() {
        let cells = Cells::new(2);
        let line = |shard, slot| std::ptr::from_ref(cells.of(shard, slot)) as usize / 64;
        let lines = |shard| (0..2 * CHUNK).map(|slot| line(shard, slot)).collect::<std::collections::HashSet<_>>();
        assert!(lines(0).is_disjoint(&lines(1)));
    }

    #[test]
    fn a_run_given_back_is_zero_and_used_again() {
        let cells = Cells::new(2);
        let run = cells.take(4).unwrap();
        cells.mine(run + 2).store(7, Relaxed);
        cells.give_back(run, 4);
        assert_eq!(cells.take(4), Some(run));
        assert_eq!(cells.sum(run + 2), 0);
    }

    #[test]
    fn runs_do_not_straddle_chunks_and_end_at_the_ceiling() {
        let cells = Cells::new(1);
        assert_eq!(cells.take(CHUNK - 1), Some(0));
        assert_eq!(cells.take(2), Some(CHUNK));
        cells.free.lock().next = (SEGMENTS * SEGMENT - 1) * CHUNK;
        let last = cells.take(CHUNK).unwrap();
        cells.mine(last + CHUNK - 1).store(1, Relaxed);
        assert_eq!(cells.take(1), None);
    }
}
