//! A quantile of latencies, counted by all workers.
//!
//! In: how long answers took. Out: what all but a share of the last few thousand took at most. Promise: nothing is locked
//! or allocated; the answer is at most an eighth too high; until enough is known there is none.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Eight buckets for each doubling, from microseconds to half an hour.
const BUCKETS: usize = 240;
const PER_DOUBLING: u32 = 3;
/// Before so many are known none says anything.
const FEWEST: u64 = 100;
/// It is worked out anew each time that so many came.
const EVERY: u64 = 64;
/// When so many are counted the older half is forgotten.
const MOST: u64 = 4096;

/// The latency that a share of answers does not exceed.
#[derive(Debug)]
pub struct LatencyQuantile {
    share: f64,
    buckets: [AtomicU32; BUCKETS],
    came: AtomicU64,
    /// In microseconds; 0 while nothing is known.
    value: AtomicU64,
}

impl LatencyQuantile {
    /// The latency of so many percent.
    pub fn new(percentile: f64) -> Self {
        Self {
            share: percentile / 100.0,
            buckets: [const { AtomicU32::new(0) }; BUCKETS],
            came: AtomicU64::new(0),
            value: AtomicU64::new(0),
        }
    }

    /// What it is, if enough is known.
    pub fn value(&self) -> Option<Duration> {
        let value = self.value.load(Relaxed);
        (value > 0).then(|| Duration::from_micros(value))
    }

    /// An answer took so long, or was given up after that.
    pub fn observe(&self, took: Duration) {
        self.buckets[bucket(took.as_micros() as u64)].fetch_add(1, Relaxed);
        // One of all workers comes at the right number.
        let came = self.came.fetch_add(1, Relaxed) + 1;
        if came >= FEWEST && came.is_multiple_of(EVERY) {
            self.work_out();
        }
    }

    fn work_out(&self) {
        let counts: [u64; BUCKETS] = std::array::from_fn(|index| self.buckets[index].load(Relaxed).into());
        let all: u64 = counts.iter().sum();
        let mut below = 0;
        let reached = counts.iter().position(|count| {
            below += count;
            below as f64 >= all as f64 * self.share
        });
        self.value.store(top(reached.unwrap_or(BUCKETS - 1)), Relaxed);
        if all >= MOST {
            for (bucket, count) in self.buckets.iter().zip(counts) {
                bucket.fetch_sub((count / 2) as u32, Relaxed);
            }
        }
    }
}

fn bucket(micros: u64) -> usize {
    if micros < 1 << PER_DOUBLING {
        return micros as usize;
    }
    let doubling = micros.ilog2() - PER_DOUBLING;
    let within = (micros >> doubling) as usize;
    (((doubling as usize) << PER_DOUBLING) + within).min(BUCKETS - 1)
}

/// The most that a bucket holds.
fn top(bucket: usize) -> u64 {
    if bucket < 1 << PER_DOUBLING {
        return (bucket as u64).max(1);
    }
    let doubling = (bucket >> PER_DOUBLING) as u64 - 1;
    let within = (bucket & ((1 << PER_DOUBLING) - 1)) as u64 + (1 << PER_DOUBLING);
    ((within + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn little_says_nothing_and_old_is_forgotten() {
        let quantile = LatencyQuantile::new(95.0);
        (0..FEWEST - 1).for_each(|_| quantile.observe(Duration::from_millis(1)));
        assert_eq!(quantile.value(), None);
        (0..EVERY).for_each(|_| quantile.observe(Duration::from_millis(1)));
        let before = quantile.value().unwrap();
        assert!((1000..1200).contains(&before.as_micros()), "{before:?}");
        (0..8 * MOST).for_each(|_| quantile.observe(Duration::from_millis(50)));
        let after = quantile.value().unwrap();
        assert!((50_000..57_000).contains(&after.as_micros()), "{after:?}");
        (0..8 * MOST).for_each(|_| quantile.observe(Duration::from_millis(2)));
        assert!(quantile.value().unwrap() < Duration::from_millis(3), "it comes down again");
    }

    proptest! {
        #[test]
        fn it_is_that_of_a_sorted_list(
            micros in prop::collection::vec(1..10_000_000_u64, 128), percentile in 50.0..99.9_f64
        ) {
            let quantile = LatencyQuantile::new(percentile);
            micros.iter().for_each(|micros| quantile.observe(Duration::from_micros(*micros)));
            let mut sorted = micros;
            sorted.sort_unstable();
            let exact = sorted[((128.0 * percentile / 100.0).ceil() as usize).clamp(1, 128) - 1];
            let found = quantile.value().unwrap().as_micros() as u64;
            prop_assert!(found >= exact && found as f64 <= exact as f64 * 1.126 + 1.0, "{found} for {exact}");
        }

        #[test]
        fn every_latency_has_its_bucket(micros: u64) {
            let bucket = bucket(micros);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(bucket == BUCKETS - 1 || top(bucket) >= micros.max(1));
            prop_assert!(bucket == 0 || top(bucket - 1) < micros || bucket == BUCKETS - 1);
        }
    }
}
