//! Maglev's table ([Eisenbud and others, 2016], section 3.4): a key's place in it tells the endpoint.
//!
//! Promise: entries are spread almost evenly, by weight; few move when endpoints come and go; the same endpoints make
//! the same table in every process.
//!
//! [Eisenbud and others, 2016]: https://research.google/pubs/maglev-a-fast-and-reliable-software-network-load-balancer/

use super::mix;

const EMPTY: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Maglev(Box<[u32]>);

impl Maglev {
    /// `size` is a prime, so that every step visits all entries.
    pub(super) fn new(keys: impl Iterator<Item = u64>, weights: &[f64], size: usize) -> Self {
        let size = size.max(1) as u64;
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let mut walks: Vec<(u64, u64)> = keys
            .map(|key| (mix(key) % size, mix(key ^ 0x9e37_79b9_7f4a_7c15) % size.saturating_sub(1).max(1) + 1))
            .collect();
        let mut due = vec![0.0; weights.len()];
        let mut table = vec![EMPTY; size as usize].into_boxed_slice();
        let mut left = size;
        while left > 0 {
            for (owner, (at, step)) in walks.iter_mut().enumerate() {
                // A lighter one sits out rounds.
                due[owner] += weights[owner] / largest;
                if due[owner] < 1.0 {
                    continue;
                }
                due[owner] -= 1.0;
                while table[*at as usize] != EMPTY {
                    *at = (*at + *step) % size;
                }
                table[*at as usize] = owner as u32;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Self(table)
    }

    /// The owners from a key's place on.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = u32> {
        let count = self.0.len();
        let first = (mix(key) % count as u64) as usize;
        (first..first + count).map(move |place| self.0[place % count])
    }
}
