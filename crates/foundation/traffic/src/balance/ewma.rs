//! How long an endpoint takes to answer: a moving average that rises at once and falls slowly.
//!
//! In: the time to each response's headers. Out: what another request would cost there. Promise: one
//! slow answer is believed at once; an endpoint that gets no requests because it was slow is worth a
//! try again after a while, for what is known of it fades ("Peak EWMA", as Finagle has it).

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The cost of an endpoint that has not answered yet while a request is under way there.
const UNKNOWN: f32 = 1e12;

/// What is known of one endpoint's latency, in microseconds.
#[derive(Debug, Default)]
pub struct PeakEwma {
    average: Cell<f32>,
    at: Cell<Option<Instant>>,
}

impl PeakEwma {
    /// Takes in how long an answer took.
    pub fn observe(&self, took: Duration, now: Instant, decay: Duration) {
        let took = took.as_secs_f32() * 1e6;
        let known = self.average.get();
        let average = if took >= known {
            took
        } else {
            let kept = fade(self.age(now), decay);
            known * kept + took * (1.0 - kept)
        };
        self.average.set(average.max(1.0));
        self.at.set(Some(now));
    }

    /// The average by now; `None` when there was no answer yet.
    pub fn latency(&self, now: Instant, decay: Duration) -> Option<Duration> {
        self.at.get()?;
        Some(Duration::from_secs_f32(self.average.get() * fade(self.age(now), decay) / 1e6))
    }

    /// What another request would cost beside `under_way` others; lower is better.
    pub fn cost(&self, under_way: u32, now: Instant, decay: Duration) -> f32 {
        let under_way = under_way as f32;
        match self.at.get() {
            // The first request finds out; those beside it go where more is known.
            None if under_way > 0.0 => UNKNOWN + under_way,
            None => 0.0,
            Some(at) => self.average.get() * fade(now.saturating_duration_since(at), decay) * (under_way + 1.0),
        }
    }

    fn age(&self, now: Instant) -> Duration {
        self.at.get().map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

/// What is left after so long: e to the minus `age / decay`, as near as a balancer needs it, without asking for `exp`.
fn fade(age: Duration, decay: Duration) -> f32 {
    let rest = 1.0 / (1.0 + age.as_secs_f32() / decay.as_secs_f32().max(1e-3) / 8.0);
    let square = rest * rest;
    let fourth = square * square;
    fourth * fourth
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn it_rises_at_once_falls_slowly_and_fades() {
        let (ewma, start) = (PeakEwma::default(), Instant::now());
        let millis = Duration::from_millis;
        let latency = |now| ewma.latency(now, DECAY).map_or(0, |latency| latency.as_millis());
        assert_eq!(ewma.cost(0, start, DECAY), 0.0, "unknown: worth a try");
        assert!(ewma.cost(1, start, DECAY) > 1e9, "but one is enough");
        ewma.observe(millis(10), start, DECAY);
        assert_eq!(latency(start), 10);
        ewma.observe(millis(100), start, DECAY);
        assert_eq!(latency(start), 100, "a peak is believed");
        ewma.observe(millis(10), start + millis(100), DECAY);
        assert!((95..100).contains(&latency(start + millis(100))), "one fast answer changes little");
        assert!((30..45).contains(&latency(start + DECAY)), "a third after the time of decay");
        assert!(latency(start + DECAY * 5) < 3);
        let cost = ewma.cost(0, start, DECAY);
        assert!(
            (ewma.cost(3, start, DECAY) - cost * 4.0).abs() < cost / 1000.0,
            "each request under way costs as much"
        );
    }
}
