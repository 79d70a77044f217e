//! A ring of points: a key belongs to the endpoint whose point comes next.
//!
//! Promise: when one of n endpoints comes or goes, about one key in n moves; the same endpoints make the
//! same ring in every process.

use super::mix;

/// Points that an endpoint of average weight has at least, if the ring may be as large.
const POINTS: usize = 128;

#[derive(Debug)]
pub(super) struct Ring {
    /// In ascending order.
    points: Box<[u64]>,
    owners: Box<[u32]>,
    /// For each beginning of a key, the first point that may follow.
    starts: Box<[u32]>,
    shift: u32,
}

impl Ring {
    pub(super) fn new(keys: impl Iterator<Item = u64>, weights: &[f64], least: usize, most: usize) -> Self {
        let count = weights.len().max(1);
        let each = least.div_ceil(count).max(POINTS).min((most / count).max(1));
        // Rounded to a power of two, so that it stays the same while few endpoints come and go; else those that stay
        // would get other points, and keys would move without need.
        let mean = weights.iter().sum::<f64>() / weights.len() as f64;
        let unit = mean.log2().floor().exp2();
        let mut all: Vec<(u64, u32)> = Vec::new();
        for ((owner, key), weight) in (0..).zip(keys).zip(weights) {
            let count = (weight / unit * each as f64).ceil().clamp(1.0, most as f64) as u64;
            all.extend((0..count).map(|turn| (mix(key ^ mix(turn)), owner)));
        }
        all.sort_unstable();
        all.dedup_by_key(|(point, _)| *point);
        let bits = all.len().next_power_of_two().trailing_zeros().max(1);
        let shift = 64 - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut next = 0;
        for begin in 0..1_u64 << bits {
            while next < all.len() && all[next].0 >> shift < begin {
                next += 1;
            }
            starts.push(next as u32);
        }
        let (points, owners): (Vec<u64>, Vec<u32>) = all.into_iter().unzip();
        Self { points: points.into(), owners: owners.into(), starts: starts.into(), shift }
    }

    /// The owners from a key's place on.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = u32> {
        let key = mix(key);
        let mut next = self.starts[(key >> self.shift) as usize] as usize;
        while self.points.get(next).is_some_and(|point| *point < key) {
            next += 1;
        }
        let count = self.owners.len();
        (next..next + count).map(move |place| self.owners[place % count])
    }
}
