//! The one retry policy: exponential, capped, with full jitter.
//!
//! In: the first and the longest wait. Out: how long to wait before the next try.
//! Promise: waits are spread over the whole interval, so that many sidecars which lost
//! the same server do not come back in step.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// How to wait between tries: what [`Backoff`] is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// The upper bound of the first wait.
    pub initial: Duration,
    /// The upper bound of every wait.
    pub max: Duration,
}

impl BackoffPolicy {
    /// A fresh sequence of waits.
    pub fn start(self) -> Backoff {
        Backoff::new(self.initial, self.max)
    }
}

/// A sequence of waits: each is drawn from zero to a bound that doubles up to a cap.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: BackoffPolicy,
    bound: Duration,
}

impl Backoff {
    /// The first wait is at most `initial`, every wait at most `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { policy: BackoffPolicy { initial, max }, bound: initial.min(max) }
    }

    /// How long to wait now (full jitter), and doubles the bound of the next wait.
    #[expect(clippy::should_implement_trait, reason = "a sequence without end is no iterator to its callers")]
    pub fn next(&mut self) -> Duration {
        let wait = self.bound.mul_f64(random_fraction());
        self.bound = self.bound.saturating_mul(2).min(self.policy.max);
        wait
    }

    /// Begins again with the first wait, after a success.
    pub fn reset(&mut self) {
        self.bound = self.policy.initial.min(self.policy.max);
    }
}

/// A random duration between two shares of another, so that many do not do the same at the same time.
pub fn jittered(whole: Duration, least: f64, most: f64) -> Duration {
    whole.mul_f64(least) + whole.mul_f64((most - least) * random_fraction())
}

/// A number in `[0, 1)`; good enough for jitter, for nothing else (SplitMix64).
fn random_fraction() -> f64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(std::process::id()));
    }
    STATE.with(|state| {
        let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(seed);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for bound in [100, 200, 350, 350] {
            assert_eq!(backoff.bound, Duration::from_millis(bound));
            assert!(backoff.next() <= Duration::from_millis(bound));
        }
        backoff.reset();
        assert_eq!(backoff.bound, Duration::from_millis(100));
    }

    #[test]
    fn waits_are_spread_over_the_whole_interval() {
        let fractions: Vec<f64> = (0..2000).map(|_| random_fraction()).collect();
        assert!(fractions.iter().all(|f| (0.0..1.0).contains(f)));
        for tenth in 0..10 {
            let share = fractions.iter().filter(|f| (**f * 10.0) as usize == tenth).count();
            assert!((100..300).contains(&share), "tenth {tenth} has {share} of 2000");
        }
    }

    #[test]
    fn a_cap_below_the_first_wait_wins() {
        let mut backoff = Backoff::new(Duration::from_secs(9), Duration::from_secs(1));
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
