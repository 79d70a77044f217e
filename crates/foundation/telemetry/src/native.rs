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

/// The lowest resolution: each bucket is 65536 times as wide as the one before.
pub(crate) const MIN_SCHEMA: i8 = -4;
/// The highest resolution: 256 buckets for each power of two.
pub(crate) const MAX_SCHEMA: i8 = 8;

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
            schema: schema.clamp(MIN_SCHEMA, MAX_SCHEMA),
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

    /// The buckets as classic ones, for formats that have no other: upper bound and cumulative count, ascending,
    /// without `+Inf`. A gap before a bucket gets a bound too, so that quantiles are interpolated within the bucket.
    pub fn classic(&self) -> Vec<(f64, u64)> {
        let mut buckets = Vec::with_capacity(2 * (self.negative.len() + self.positive.len() + 1));
        let mut cumulative = 0;
        let mut push = |lower: f64, upper: f64, count: u64| {
            if buckets.last().is_none_or(|(bound, _)| *bound < lower) {
                buckets.push((lower, cumulative));
            }
            cumulative += count;
            if upper.is_finite() {
                buckets.push((upper, cumulative));
            }
        };
        for (index, count) in self.negative.iter().rev() {
            // The bound nearer to zero is the upper one of a negative bucket.
            push(-upper_bound(*index, self.schema), -upper_bound(index - 1, self.schema), *count);
        }
        if self.zero_count > 0 {
            push(-ZERO_THRESHOLD, ZERO_THRESHOLD, self.zero_count);
        }
        for (index, count) in &self.positive {
            push(upper_bound(index - 1, self.schema), upper_bound(*index, self.schema), *count);
        }
        // Nothing is below what cannot be lower, and no bucket reaches to minus infinity.
        buckets.retain(|(bound, cumulative)| bound.is_finite() && !(*cumulative == 0 && *bound < 0.0));
        buckets
    }

    /// Halves the resolution until the buckets are few enough.
    pub(crate) fn fit(&mut self, max_buckets: usize) {
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

/// The smallest `i` with `value <= 2^(i / 2^schema)`; infinity has the bucket behind the largest number's.
pub(crate) fn bucket_index(value: f64, schema: i8) -> i32 {
    if value.is_infinite() {
        return bucket_index(f64::MAX, schema) + 1;
    }
    let scale = f64::from(schema).exp2();
    let exact = value.log2() * scale;
    let guess = exact.ceil() as i32;
    // `log2` may round over a bound, and a bucket's bound belongs to the bucket it ends; away from bounds there is no
    // doubt: the product is off by less than 1e-10.
    if (exact - exact.round()).abs() > 1e-6 {
        return guess;
    }
    if value <= upper_bound(guess - 1, schema) {
        guess - 1
    } else if value > upper_bound(guess, schema) {
        guess + 1
    } else {
        guess
    }
}

/// Where a bucket ends. The last one of finite numbers ends at the largest of them, as the specification says.
fn upper_bound(index: i32, schema: i8) -> f64 {
    let exponent = f64::from(index) * f64::from(-schema).exp2();
    match exponent {
        1024.0 => f64::MAX,
        _ => exponent.exp2(),
    }
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

    #[test]
    fn the_last_buckets_end_at_the_largest_number_and_at_infinity() {
        for schema in MIN_SCHEMA..=MAX_SCHEMA {
            let last = bucket_index(f64::MAX, schema);
            assert_eq!(upper_bound(last, schema), f64::MAX, "schema {schema}");
            assert_eq!(upper_bound(bucket_index(f64::INFINITY, schema), schema), f64::INFINITY, "schema {schema}");
        }
        let mut histogram = NativeSnapshot::new(3);
        for value in [f64::INFINITY, f64::NEG_INFINITY, f64::MAX] {
            histogram.observe(value, 160);
        }
        while histogram.schema > MIN_SCHEMA {
            histogram.halve();
        }
        assert_eq!(histogram.positive, BTreeMap::from([(64, 1), (65, 1)]));
        assert_eq!(histogram.negative, BTreeMap::from([(65, 1)]));
    }

    #[test]
    fn classic_buckets_have_both_bounds_of_each_bucket() {
        for (name, values, expected) in [
            ("adjacent", &[1.5, 3.0][..], &[(1.0, 0), (2.0, 1), (4.0, 2)][..]),
            ("a gap", &[1.5, 100.0], &[(1.0, 0), (2.0, 1), (64.0, 1), (128.0, 2)]),
            ("negative", &[-1.5, 1.5], &[(-1.0, 1), (1.0, 1), (2.0, 2)]),
            ("zero", &[0.0, 1.5], &[(ZERO_THRESHOLD, 1), (1.0, 1), (2.0, 2)]),
            ("infinity", &[1.5, f64::INFINITY], &[(1.0, 0), (2.0, 1), (f64::MAX, 1)]),
            ("none", &[], &[]),
        ] {
            let mut histogram = NativeSnapshot::new(0);
            for value in values {
                histogram.observe(*value, 160);
            }
            assert_eq!(histogram.classic(), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn buckets_stay_bounded_and_nothing_is_lost(values in prop::collection::vec(prop::num::f64::ANY, 0..400)) {
            let mut histogram = NativeSnapshot::new(8);
            for value in &values {
                histogram.observe(*value, 40);
            }
            prop_assert!(histogram.positive.len() + histogram.negative.len() <= 148);
            let nan = values.iter().filter(|value| value.is_nan()).count() as u64;
            let infinite = values.iter().filter(|value| **value == f64::INFINITY).count() as u64;
            let counted = histogram.classic().last().map_or(0, |bucket| bucket.1);
            prop_assert_eq!(counted + infinite + nan, values.len() as u64);
            prop_assert_eq!(histogram.count, values.len() as u64);
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
