//! Where native histograms are written to.
//!
//! In: observations. Out: a [`NativeSnapshot`]. Promise: an observation that falls into a
//! known bucket takes no lock, allocates nothing, and writes to memory of this thread's
//! shard only; a reader makes no writer wait.
//!
//! A shard has a list of tables from bucket to count that only grows. A full table is not
//! rebuilt, which would need writers to stand still, but followed by a larger one, or by one
//! of a lower resolution once the bound of buckets is reached, which knows their buckets but
//! not their counts. Writers use the last table; readers add up all of them at the lowest
//! resolution. Opening a bucket takes the lock, as often as there are buckets.

use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use parking_lot::Mutex;

use crate::cells;
use crate::native::{MIN_SCHEMA, NativeSnapshot, ZERO_THRESHOLD, bucket_index};

/// Buckets of the first table.
const FIRST: usize = 16;
/// The most buckets of a histogram.
pub(crate) const MAX_BUCKETS: usize = 4096;
/// Buckets there can be at the lowest resolution: the exponents -128 to 1024 in steps of 16, infinity, and both signs.
const BUCKETS_AT_MIN: usize = 2 * (8 + 64 + 2);
/// Tables of a shard: the first, one for each halving of the resolution, and doublings up to [`MAX_BUCKETS`].
const TABLES: usize = 1 + 12 + 8 + 1;

/// One native histogram, all shards.
pub(crate) struct Exponential {
    schema: i8,
    max_buckets: usize,
    shards: Box<[OnceLock<Box<Shard>>]>,
}

/// One shard, on cache lines of its own.
#[repr(align(64))]
struct Shard {
    sum: AtomicU64,
    zero: AtomicU64,
    /// NaN, which has no bucket.
    without_bucket: AtomicU64,
    last: AtomicUsize,
    tables: [OnceLock<Table>; TABLES],
    opening: Mutex<()>,
}

/// Buckets of one resolution, as an open-addressed table.
struct Table {
    schema: i8,
    /// Buckets it takes; it has more lines than that, so a probe always ends.
    limit: usize,
    used: AtomicUsize,
    lines: Box<[Line]>,
}

#[derive(Default)]
#[repr(align(64))]
struct Line([Entry; 4]);

#[derive(Default)]
struct Entry {
    /// See [`key_of`]; 0 when the entry is free.
    key: AtomicU64,
    count: AtomicU64,
}

impl Entry {
    #[inline]
    fn add(&self, n: u64) {
        self.count.fetch_add(n, Relaxed);
    }
}

impl Exponential {
    pub(crate) fn new(schema: i8, max_buckets: usize, shards: usize) -> Self {
        let shards = (0..shards.max(1)).map(|_| OnceLock::new()).collect();
        Self { schema, max_buckets: max_buckets.clamp(2, MAX_BUCKETS), shards }
    }

    /// Adds `n` observations of one value.
    #[inline]
    pub(crate) fn observe(&self, value: f64, n: u64) {
        if n == 0 {
            return;
        }
        let shard = self.shards[cells::shard(self.shards.len())].get_or_init(|| Box::new(self.new_shard()));
        cells::add_f64(&shard.sum, value * n as f64);
        if value.is_nan() {
            shard.without_bucket.fetch_add(n, Relaxed);
        } else if value.abs() <= ZERO_THRESHOLD {
            shard.zero.fetch_add(n, Relaxed);
        } else {
            let table = shard.last();
            match table.find(key(value, table.schema)) {
                Ok(entry) => entry.add(n),
                Err(_) => self.open(shard, value, n),
            }
        }
    }

    /// Everything so far.
    pub(crate) fn snapshot(&self) -> NativeSnapshot {
        let mut all = NativeSnapshot::new(self.schema);
        for shard in self.shards.iter().filter_map(OnceLock::get) {
            shard.add_to(&mut all);
        }
        all.fit(self.max_buckets);
        all
    }

    /// Counts an observation whose bucket the last table does not have.
    #[cold]
    fn open(&self, shard: &Shard, value: f64, n: u64) {
        let _opening = shard.opening.lock();
        loop {
            let table = shard.last();
            let key = key(value, table.schema);
            match table.find(key) {
                Ok(entry) => return entry.add(n),
                Err(entry) if table.used.load(Relaxed) < table.limit => {
                    table.used.fetch_add(1, Relaxed);
                    entry.count.store(n, Relaxed);
                    return entry.key.store(key, Release);
                }
                Err(_) => {}
            }
            if !self.append_table(shard, value) {
                debug_assert!(false, "there is a table for every resolution");
                shard.without_bucket.fetch_add(n, Relaxed);
                return;
            }
        }
    }

    /// A larger table, or one of a resolution at which the buckets, with the one of `value`, are few enough.
    fn append_table(&self, shard: &Shard, value: f64) -> bool {
        let old = shard.last();
        let mut all = NativeSnapshot::new(old.schema);
        shard.add_to(&mut all);
        all.observe(value, self.max_buckets);
        let most = if all.schema == MIN_SCHEMA { BUCKETS_AT_MIN.max(self.max_buckets) } else { self.max_buckets };
        let known = all.positive.len() + all.negative.len();
        // It never shrinks, or there would be more tables than places for them.
        let mut table = Table::new(all.schema, (2 * known).max(old.limit).min(most));
        table.know(&all);
        let next = shard.last.load(Relaxed) + 1;
        let added = shard.tables.get(next).is_some_and(|place| place.set(table).is_ok());
        if added {
            shard.last.store(next, Release);
        }
        added
    }

    fn new_shard(&self) -> Shard {
        let mut tables = [const { OnceLock::new() }; TABLES];
        tables[0] = OnceLock::from(Table::new(self.schema, FIRST.min(self.max_buckets)));
        Shard {
            sum: AtomicU64::new(0),
            zero: AtomicU64::new(0),
            without_bucket: AtomicU64::new(0),
            last: AtomicUsize::new(0),
            tables,
            opening: Mutex::new(()),
        }
    }
}

impl Shard {
    #[inline]
    fn last(&self) -> &Table {
        self.tables[self.last.load(Acquire)].get().expect("`last` is raised after the table was put there")
    }

    fn add_to(&self, all: &mut NativeSnapshot) {
        let mut mine = NativeSnapshot::new(all.schema);
        mine.sum = f64::from_bits(self.sum.load(Relaxed));
        mine.zero_count = self.zero.load(Relaxed);
        mine.count = mine.zero_count + self.without_bucket.load(Relaxed);
        all.merge(&mine, usize::MAX);
        for table in self.tables.iter().map_while(OnceLock::get) {
            all.merge(&table.snapshot(), usize::MAX);
        }
    }
}

impl Table {
    fn new(schema: i8, limit: usize) -> Self {
        let entries = (limit + limit / 2 + 1).next_power_of_two().max(4);
        let lines = (0..entries / 4).map(|_| Line::default()).collect();
        Self { schema, limit, used: AtomicUsize::new(0), lines }
    }

    /// Opens the buckets there are already, so that only new ones need the lock.
    fn know(&mut self, all: &NativeSnapshot) {
        let positive = all.positive.keys().map(|index| key_of(*index, false));
        let negative = all.negative.keys().map(|index| key_of(*index, true));
        for key in positive.chain(negative) {
            if let Err(entry) = self.find(key) {
                entry.key.store(key, Relaxed);
                self.used.fetch_add(1, Relaxed);
            }
        }
    }

    /// The entry of a bucket, or the free one where it would go.
    #[inline]
    fn find(&self, key: u64) -> Result<&Entry, &Entry> {
        let mask = self.lines.len() * 4 - 1;
        // Neighbouring buckets are neighbouring entries: values that come together lie together.
        let mut at = (key as usize).wrapping_add((key >> 32) as usize * 0x9e37) & mask;
        loop {
            let entry = &self.lines[at / 4].0[at % 4];
            match entry.key.load(Acquire) {
                0 => return Err(entry),
                found if found == key => return Ok(entry),
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn snapshot(&self) -> NativeSnapshot {
        let mut all = NativeSnapshot::new(self.schema);
        for entry in self.lines.iter().flat_map(|line| &line.0) {
            let (key, count) = (entry.key.load(Acquire), entry.count.load(Relaxed));
            // Without a count it was only taken over from the table before.
            if key != 0 && count > 0 {
                let side = if key & NEGATIVE == 0 { &mut all.positive } else { &mut all.negative };
                side.insert(key as u32 as i32, count);
                all.count += count;
            }
        }
        all
    }
}

const PRESENT: u64 = 1 << 32;
const NEGATIVE: u64 = 1 << 33;

/// The bucket of a value as one number that is not 0.
#[inline]
fn key(value: f64, schema: i8) -> u64 {
    key_of(bucket_index(value.abs(), schema), value < 0.0)
}

#[inline]
fn key_of(index: i32, negative: bool) -> u64 {
    u64::from(index as u32) | PRESENT | if negative { NEGATIVE } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn threads_that_share_a_shard_lose_nothing_while_tables_grow() {
        for shards in [1, 2] {
            let histogram = Exponential::new(8, 40, shards);
            std::thread::scope(|scope| {
                for thread in 0..4_u64 {
                    let histogram = &histogram;
                    scope.spawn(move || {
                        cells::set_shard(thread as usize % 2);
                        for step in 0..20_000_u64 {
                            // Ever wider, so that buckets are opened and the resolution falls all the while.
                            let exponent = (step * (thread + 1)) as f64 / 400.0 - 50.0;
                            histogram.observe(exponent.exp2(), 1);
                            if step % 1000 == 0 {
                                assert!(histogram.snapshot().count > 0);
                            }
                        }
                    });
                }
            });
            let all = histogram.snapshot();
            assert_eq!(all.count, 80_000);
            assert_eq!(all.positive.values().sum::<u64>(), 80_000);
            assert!(all.positive.len() <= 40 && all.schema < 0, "{all:?}");
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_plain_implementation(
            values in prop::collection::vec(prop_oneof![any::<f64>(), 0.1f64..10.0, Just(0.0)], 0..600),
            schema in MIN_SCHEMA..=8,
            max_buckets in 2_usize..200,
        ) {
            let histogram = Exponential::new(schema, max_buckets, 1);
            let mut plain = NativeSnapshot::new(schema);
            for value in &values {
                histogram.observe(*value, 2);
                plain.observe_n(*value, 2, max_buckets);
            }
            let all = histogram.snapshot();
            prop_assert!(all.sum.total_cmp(&plain.sum).is_eq() || (all.sum.is_nan() && plain.sum.is_nan()));
            prop_assert_eq!(
                (all.schema, all.zero_count, &all.positive, &all.negative, all.count),
                (plain.schema, plain.zero_count, &plain.positive, &plain.negative, plain.count)
            );
        }
    }
}
