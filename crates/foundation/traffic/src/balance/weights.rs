//! Choosing by weight at the same cost for any number of endpoints.

use crate::Random;

/// Entries of a schedule at most; where weights have no small common measure they are rounded.
const LONGEST_SCHEDULE: f64 = 65_536.0;

/// Chooses at random by weight, in one step (the alias method of Walker and Vose).
#[derive(Debug)]
pub(super) struct Alias {
    /// For each column: below which number it is itself, and what it is above.
    columns: Box<[(u32, u32)]>,
    weights: Box<[f32]>,
}

impl Alias {
    /// The weights are positive.
    pub(super) fn new(weights: &[f64]) -> Self {
        let count = weights.len();
        let sum: f64 = weights.iter().sum();
        let mut parts: Vec<f64> = weights.iter().map(|weight| weight / sum * count as f64).collect();
        let mut columns: Box<[(u32, u32)]> = (0..count as u32).map(|index| (u32::MAX, index)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..count).partition(|index| parts[*index] < 1.0);
        while let (Some(low), Some(high)) = (small.pop(), large.last().copied()) {
            columns[low] = ((parts[low] * f64::from(u32::MAX)) as u32, high as u32);
            parts[high] -= 1.0 - parts[low];
            if parts[high] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self { columns, weights: weights.iter().map(|weight| *weight as f32).collect() }
    }

    pub(super) fn sample(&self, random: &mut Random) -> usize {
        let column = random.below(self.columns.len());
        let (below, other) = self.columns[column];
        if random.next() <= below { column } else { other as usize }
    }

    pub(super) fn weight(&self, position: usize) -> f32 {
        self.weights[position]
    }
}

/// An order in which each comes as often as its weight says, spread as evenly as can be.
pub(super) fn schedule(weights: &[f64]) -> Box<[u32]> {
    let least = weights.iter().copied().fold(f64::INFINITY, f64::min);
    let sum: f64 = weights.iter().sum();
    // Whole weights are divided by what they have in common; others by the least of them, within reason.
    let whole = weights.iter().all(|weight| weight.fract() == 0.0);
    let unit = if whole { weights.iter().fold(0, |all, one| divisor(all, *one as u64)) as f64 } else { least / 16.0 };
    let unit = unit.max(sum / LONGEST_SCHEDULE);
    let mut entries = Vec::new();
    for (position, weight) in (0..).zip(weights) {
        let times = (weight / unit).round().max(1.0);
        // Each begins elsewhere, so that those of one weight do not all come at once.
        let phase = (f64::from(position) * 0.618_033_988_75).fract();
        entries.extend((0..times as u32).map(|turn| ((f64::from(turn) + phase) / times, position)));
    }
    entries.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    entries.into_iter().map(|(_, position)| position).collect()
}

/// The greatest common divisor.
fn divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { divisor(other, one % other) }
}
