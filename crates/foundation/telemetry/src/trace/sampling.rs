//! Whether a trace is kept.
//!
//! In: what the caller decided, the trace's id, the time. Out: kept, or not so far.
//! Promise: every hop with the same ratio decides the same for the same trace; no more than
//! the rate is begun a second; a caller's decision is honoured where the config says so.

use std::cell::Cell;
use std::time::Instant;

use outrigger_config::Sampling;

use super::context::{TraceContext, TraceId};

/// The config's policy, compiled.
#[derive(Debug, Clone)]
pub struct Sampler {
    parent: bool,
    /// Of the last 56 bits of an id, those from here up are kept ([W3C] Trace Context level 2 makes these random).
    ///
    /// [W3C]: https://www.w3.org/TR/trace-context-2/#randomness-of-trace-id
    threshold: u64,
    /// Traces a second on one thread.
    rate: f64,
}

/// What becomes of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is kept.
    Keep,
    /// It is not, unless its end says otherwise.
    Drop,
}

const BITS: u32 = 56;

impl Sampler {
    /// Compiles the policy; `threads` share the rate.
    pub fn new(config: &Sampling, threads: usize) -> Self {
        let all = (1_u64 << BITS) as f64;
        Self {
            parent: config.parent,
            threshold: ((1.0 - config.ratio.clamp(0.0, 1.0)) * all) as u64,
            rate: f64::from(config.max_per_second) / threads.max(1) as f64,
        }
    }

    /// Decides at a request's beginning.
    pub fn decide(&self, trace: TraceId, parent: Option<&TraceContext>, now: Instant) -> Decision {
        if self.parent
            && let Some(sampled) = parent.and_then(|parent| parent.sampled)
        {
            return if sampled { Decision::Keep } else { Decision::Drop };
        }
        let random = (trace.0 as u64) & ((1 << BITS) - 1);
        if random >= self.threshold && self.has_room(now) { Decision::Keep } else { Decision::Drop }
    }

    /// A token bucket of this thread: a second's worth at most.
    fn has_room(&self, now: Instant) -> bool {
        thread_local! {
            static TOKENS: Cell<Option<(Instant, f64)>> = const { Cell::new(None) };
        }
        let most = self.rate.max(1.0);
        let (then, tokens) = TOKENS.get().unwrap_or((now, most));
        let tokens = (tokens + now.saturating_duration_since(then).as_secs_f64() * self.rate).min(most);
        let room = tokens >= 1.0;
        TOKENS.set(Some((now, if room { tokens - 1.0 } else { tokens })));
        room
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sampler(ratio: f64, max_per_second: u32) -> Sampler {
        Sampler::new(&Sampling { ratio, max_per_second, ..Sampling::default() }, 1)
    }

    #[test]
    fn the_ratio_holds_and_all_hops_agree() {
        let (one, other) = (sampler(0.25, 1_000_000), sampler(0.25, 1_000_000));
        let now = Instant::now();
        let kept = (0..20_000).filter(|_| {
            let trace = TraceId::random();
            let decision = one.decide(trace, None, now);
            assert_eq!(decision, other.decide(trace, None, now), "{trace:?}");
            decision == Decision::Keep
        });
        let kept = kept.count();
        assert!((4_500..5_500).contains(&kept), "{kept} of 20000");
        assert_eq!(sampler(0.0, 100).decide(TraceId(u128::MAX), None, now), Decision::Drop, "none at 0");
        assert_eq!(
            sampler(1.0, 100).decide(TraceId(1), None, now + Duration::from_secs(1)),
            Decision::Keep,
            "all at 1"
        );
    }

    #[test]
    fn the_callers_decision_is_honoured_where_that_is_wanted() {
        let caller = |sampled| TraceContext { trace: TraceId(7), parent: None, sampled, flags: 0 };
        let now = Instant::now() + Duration::from_secs(10);
        assert_eq!(sampler(0.0, 100).decide(TraceId(7), Some(&caller(Some(true))), now), Decision::Keep);
        assert_eq!(sampler(1.0, 100).decide(TraceId(7), Some(&caller(Some(false))), now), Decision::Drop);
        assert_eq!(sampler(1.0, 100).decide(TraceId(7), Some(&caller(None)), now), Decision::Keep, "left to us");
        let own = Sampler { parent: false, ..sampler(0.0, 100) };
        assert_eq!(own.decide(TraceId(7), Some(&caller(Some(true))), now), Decision::Drop);
    }

    #[test]
    fn no_more_than_the_rate_are_begun() {
        let sampler = sampler(1.0, 10);
        let start = Instant::now() + Duration::from_secs(100);
        let mut kept = 0;
        for tick in 0..10_000 {
            let now = start + Duration::from_millis(tick);
            kept += u32::from(sampler.decide(TraceId::random(), None, now) == Decision::Keep);
        }
        assert!((100..=110).contains(&kept), "{kept} in ten seconds");
    }
}
