//! What happened lately: a count over a sliding span of time that threads share without a lock.
//!
//! Promise: a count is what happened within the last tenth-by-tenth nine to ten tenths of the span; one atomic
//! operation counts, ten look.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Parts of a span.
const PARTS: u32 = 10;

/// Counts what happens.
#[derive(Debug)]
pub(crate) struct Window {
    begin: Instant,
    /// Nanoseconds of one part.
    part: u64,
    /// Each holds the number of its part of time in the upper half, and the count in the lower.
    counts: [AtomicU64; PARTS as usize],
}

impl Window {
    /// Counts over `span` from `begin` on.
    pub(crate) fn new(span: Duration, begin: Instant) -> Self {
        let part = u64::try_from(span.as_nanos() / u128::from(PARTS)).unwrap_or(u64::MAX).max(1);
        Self { begin, part, counts: Default::default() }
    }

    /// Counts one.
    pub(crate) fn add(&self, now: Instant) {
        self.change(now, |count| count.saturating_add(1));
    }

    /// Takes one back that was counted just now.
    pub(crate) fn take_back(&self, now: Instant) {
        self.change(now, |count| count.saturating_sub(1));
    }

    /// How many there were lately.
    pub(crate) fn sum(&self, now: Instant) -> u64 {
        let number = self.number(now);
        let counts = self.counts.iter().map(|count| split(count.load(Relaxed)));
        counts.filter(|(of, _)| number.wrapping_sub(*of) < PARTS).map(|(_, count)| u64::from(count)).sum()
    }

    fn change(&self, now: Instant, change: impl Fn(u32) -> u32) {
        let number = self.number(now);
        let count = &self.counts[(number % PARTS) as usize];
        let renew = |word| {
            let (of, count) = split(word);
            let count = if of == number { count } else { 0 };
            Some((u64::from(number) << 32) | u64::from(change(count)))
        };
        let _ = count.fetch_update(Relaxed, Relaxed, renew);
    }

    /// The number of the part of time that `now` is in. Of the first round none is 0, which is what an unused word says.
    fn number(&self, now: Instant) -> u32 {
        let since = u64::try_from(now.saturating_duration_since(self.begin).as_nanos()).unwrap_or(u64::MAX);
        ((since / self.part) as u32).wrapping_add(PARTS)
    }
}

fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Beside the obvious: a list of all times.
        #[test]
        fn it_counts_what_happened_lately(steps in prop::collection::vec((0_u64..400, 0_u8..4), 1..200)) {
            let begin = Instant::now();
            let window = Window::new(Duration::from_secs(1), begin);
            let (mut now, mut all) = (begin, Vec::new());
            for (wait, count) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..count {
                    window.add(now);
                    all.push(now);
                }
                let within = |span| all.iter().filter(|at| now - **at < Duration::from_millis(span)).count() as u64;
                let sum = window.sum(now);
                prop_assert!(within(900) <= sum && sum <= within(1000), "{sum}");
                if count > 0 {
                    window.take_back(now);
                    all.pop();
                }
            }
        }
    }
}
