//! Native histograms: exponential buckets, as Prometheus defines them ([native histograms]).
//!
//! In: observations. Out: counts per bucket, where bucket `i` of schema `s` ends at
//! `2^(i / 2^s)`. Promise: never more than `max_buckets` buckets; when an observation would
//! need more, the resolution is halved instead.
//!
//! [native histograms]: https://prometheus.io/docs/specs/native_histograms/

use std::collections::BTreeMap;

/// Observations no farther from zero than this fall into the zero bucket.
pub const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39; // 2^-128, as in client_golang

const MIN_SCHEMA: i8 = -4;

/// The state of one native histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct NativeSnapshot {
    /// Resolution: each power of two has `2^schema` buckets.
    pub schema: i8,
    /// Observations within [`ZERO_THRESHOLD`] of zero.
    pub zero_count: u64,
    /// Counts of positive observations by bucket index.
    pub positive: BTreeMap<i32, u64>,
    /// Counts of negative observations by bucket index of their absolute value.
    pub negative: BTreeMap<i32, u64>,
    /// Observations in all, NaN included.
    pub count: u64,
    /// Sum of all observations.
    pub sum: f64,
}

impl NativeSnapshot {
    /// An empty histogram; `schema` is held within -4 and 8.
    pub fn new(schema: i8) -> Self {
        Self {
            schema: schema.clamp(MIN_SCHEMA, 8),
            zero_count: 0,
            positive: BTreeMap::new(),
            negative: BTreeMap::new(),
            count: 0,
            sum: 0.0,
        }
    }

    /// Takes one observation.
    pub fn observe(&mut self, value: f64, max_buckets: usize) {
        self.observe_n(value, 1, max_buckets);
    }

    /// Adds `n` observations of one value.
    pub fn observe_n(&mut self, value: f64, n: u64, max_buckets: usize) {
        self.count += n;
        self.sum += value * n as f64;
        if value.is_nan() {
            return;
        }
        if value.abs() <= ZERO_THRESHOLD {
            self.zero_count += n;
        } else if n > 0 {
            let index = bucket_index(value.abs(), self.schema);
            let side = if value > 0.0 { &mut self.positive } else { &mut self.negative };
            *side.entry(index).or_default() += n;
            self.fit(max_buckets);
        }
    }

    /// Adds another histogram; the result has the coarser resolution of the two.
    pub fn merge(&mut self, other: &Self, max_buckets: usize) {
        let mut other = other.clone();
        while self.schema > other.schema {
            self.halve();
        }
        while other.schema > self.schema {
            other.halve();
        }
        self.count += other.count;
        self.sum += other.sum;
        self.zero_count += other.zero_count;
        for (mine, theirs) in [(&mut self.positive, &other.positive), (&mut self.negative, &other.negative)] {
            for (index, count) in theirs {
                *mine.entry(*index).or_default() += count;
            }
        }
        self.fit(max_buckets);
    }

    /// The buckets as classic ones, for formats that have no other: upper bound and cumulative count, ascending.
    pub fn classic(&self) -> Vec<(f64, u64)> {
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(self.negative.len() + self.positive.len() + 1);
        for (index, count) in self.negative.iter().rev() {
            cumulative += count;
            // The bound nearer to zero is the upper one of a negative bucket.
            buckets.push((-upper_bound(index - 1, self.schema), cumulative));
        }
        if self.zero_count > 0 {
            cumulative += self.zero_count;
            buckets.push((ZERO_THRESHOLD, cumulative));
        }
        for (index, count) in &self.positive {
            cumulative += count;
            buckets.push((upper_bound(*index, self.schema), cumulative));
        }
        buckets
    }

    fn fit(&mut self, max_buckets: usize) {
        while self.positive.len() + self.negative.len() > max_buckets.max(2) && self.schema > MIN_SCHEMA {
            self.halve();
        }
    }

    /// Halves the resolution: buckets `2k - 1` and `2k` become bucket `k`.
    fn halve(&mut self) {
        for side in [&mut self.positive, &mut self.negative] {
            let mut merged = BTreeMap::new();
            for (index, count) in side.iter() {
                *merged.entry((index + 1).div_euclid(2)).or_default() += count;
            }
            *side = merged;
        }
        self.schema -= 1;
    }
}

/// The smallest `i` with `value <= 2^(i / 2^schema)`.
fn bucket_index(value: f64, schema: i8) -> i32 {
    if value.is_infinite() {
        // Infinity shares the bucket of the largest finite number.
        return bucket_index(f64::MAX, schema);
    }
    let scale = f64::from(schema).exp2();
    let guess = (value.log2() * scale).ceil() as i32;
    // `log2` may round over a bound; a bucket's bound belongs to the bucket it ends.
    if value <= upper_bound(guess - 1, schema) {
        guess - 1
    } else if value > upper_bound(guess, schema) {
        guess + 1
    } else {
        guess
    }
}

/// Where a bucket ends.
fn upper_bound(index: i32, schema: i8) -> f64 {
    let bound = (f64::from(index) * f64::from(-schema).exp2()).exp2();
    if bound.is_infinite() { f64::MAX } else { bound }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn indices_follow_the_specification() {
        for (value, schema, index) in
            [(1.0, 0, 0), (1.5, 0, 1), (2.0, 0, 1), (2.1, 0, 2), (0.5, 0, -1), (0.4, 0, -1), (4.0, 1, 4), (5.0, -1, 2)]
        {
            assert_eq!(bucket_index(value, schema), index, "{value} in schema {schema}");
        }
    }

    proptest! {
        #[test]
        fn buckets_stay_bounded_and_nothing_is_lost(values in prop::collection::vec(prop::num::f64::ANY, 0..400)) {
            let mut histogram = NativeSnapshot::new(8);
            for value in &values {
                histogram.observe(*value, 40);
            }
            prop_assert!(histogram.positive.len() + histogram.negative.len() <= 140);
            let nan = values.iter().filter(|value| value.is_nan()).count() as u64;
            let counted = histogram.classic().last().map_or(0, |bucket| bucket.1);
            prop_assert_eq!(counted + nan, values.len() as u64);
        }

        #[test]
        fn a_value_lies_within_its_bucket(value in 1e-30f64..1e30, schema in -4i8..=8) {
            let index = bucket_index(value, schema);
            prop_assert!(value <= upper_bound(index, schema));
            prop_assert!(value > upper_bound(index - 1, schema));
        }

        #[test]
        fn classic_buckets_ascend(values in prop::collection::vec(-1e3f64..1e3, 1..100)) {
            let mut histogram = NativeSnapshot::new(3);
            for value in values {
                histogram.observe(value, 160);
            }
            let buckets = histogram.classic();
            prop_assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        }
    }
}
