//! How endpoints do, as all workers see it together, and what follows from it.
//!
//! In: each worker's answers and failures. Out: a sign to the task that looks after the cluster, when an endpoint has
//! failed too often in a row or asked to rest. Promise: workers share only counters; an answer like the one before it
//! writes nothing but the counts of its interval, and nothing at all where `outlierDetection` is absent.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_config::OutlierDetection;
use outrigger_traffic::outlier::Cause;

use crate::members::millis;

/// What is counted of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// In a row.
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// Within an interval.
    good: AtomicU32,
    all: AtomicU32,
    /// Causes that have come up, as bits.
    causes: AtomicU32,
    /// Until when the endpoint wants to rest, in the process's milliseconds.
    rest: AtomicU64,
}

/// When a count is too high; 0 is never.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thresholds {
    server_errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    heeds_retry_after: bool,
}

impl From<&OutlierDetection> for Thresholds {
    fn from(config: &OutlierDetection) -> Self {
        Self {
            server_errors: config.consecutive_5xx,
            gateway_errors: config.consecutive_gateway_errors,
            local_failures: config.consecutive_local_origin_failures,
            heeds_retry_after: !config.max_retry_after.is_zero(),
        }
    }
}

impl Tally {
    /// An answer with this status, which says when to come back, if it does. Returns whether there is something to do.
    pub(crate) fn answered(&self, status: u16, rest: Option<Duration>, thresholds: &Thresholds) -> bool {
        self.all.fetch_add(1, Relaxed);
        clear(&self.local_failures);
        if let Some(rest) = rest.filter(|_| thresholds.heeds_retry_after && matches!(status, 429 | 503)) {
            self.rest.fetch_max(millis(Instant::now()).saturating_add(rest.as_millis() as u64), Relaxed);
            return self.raise(Cause::RetryAfter);
        }
        if status < 500 {
            self.good.fetch_add(1, Relaxed);
            clear(&self.server_errors);
            clear(&self.gateway_errors);
            return false;
        }
        let gateway = match status {
            502..=504 => reaches(&self.gateway_errors, thresholds.gateway_errors),
            _ => {
                clear(&self.gateway_errors);
                false
            }
        };
        let server = reaches(&self.server_errors, thresholds.server_errors);
        (gateway && self.raise(Cause::ConsecutiveGatewayErrors)) | (server && self.raise(Cause::Consecutive5xx))
    }

    /// No answer. Returns whether there is something to do.
    pub(crate) fn unanswered(&self, thresholds: &Thresholds) -> bool {
        self.all.fetch_add(1, Relaxed);
        reaches(&self.local_failures, thresholds.local_failures) && self.raise(Cause::ConsecutiveLocalOriginFailures)
    }

    /// A connection of its own was made for a client.
    pub(crate) fn reached(&self) {
        self.all.fetch_add(1, Relaxed);
        self.good.fetch_add(1, Relaxed);
        clear(&self.local_failures);
    }

    fn raise(&self, cause: Cause) -> bool {
        self.causes.fetch_or(1 << cause as u32, Relaxed);
        true
    }

    /// Takes the causes that have come up.
    pub(crate) fn take_causes(&self) -> impl Iterator<Item = Cause> {
        let causes = if self.causes.load(Relaxed) == 0 { 0 } else { self.causes.swap(0, Relaxed) };
        Cause::ALL.into_iter().filter(move |cause| causes & (1 << *cause as u32) != 0)
    }

    /// How long the endpoint wants to rest.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        Duration::from_millis(self.rest.load(Relaxed).saturating_sub(millis(now)))
    }

    /// Takes the successes and requests of the interval.
    pub(crate) fn take_volume(&self) -> (u64, u64) {
        let all = self.all.swap(0, Relaxed);
        (u64::from(self.good.swap(0, Relaxed).min(all)), u64::from(all))
    }

    /// Begins anew, as an endpoint does that is back.
    pub(crate) fn forget(&self) {
        for count in [&self.server_errors, &self.gateway_errors, &self.local_failures] {
            count.store(0, Relaxed);
        }
    }
}

/// Counts one more; whether that is as many as are too many.
fn reaches(count: &AtomicU32, threshold: u32) -> bool {
    let count = count.fetch_add(1, Relaxed) + 1;
    // From then on each one, for it may not have been possible to eject the endpoint at once.
    threshold > 0 && count >= threshold
}

/// Written only when it is not 0 yet, so that workers do not take the line from one another.
fn clear(count: &AtomicU32) {
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_counted_and_successes_end_the_row() {
        let thresholds = Thresholds { server_errors: 3, gateway_errors: 2, local_failures: 2, heeds_retry_after: true };
        let tally = Tally::default();
        let answer = |status| tally.answered(status, None, &thresholds);
        assert!(!answer(500) && !answer(200) && !answer(500) && !answer(503) && answer(500), "three in a row");
        assert_eq!(tally.take_causes().collect::<Vec<_>>(), [Cause::Consecutive5xx]);
        tally.forget();
        assert!(!answer(502) && answer(504));
        assert_eq!(tally.take_causes().collect::<Vec<_>>(), [Cause::ConsecutiveGatewayErrors]);
        assert!(!tally.unanswered(&thresholds) && tally.unanswered(&thresholds));
        assert_eq!(tally.take_causes().collect::<Vec<_>>(), [Cause::ConsecutiveLocalOriginFailures]);
        assert_eq!(tally.take_volume(), (1, 9));
        assert!(tally.answered(429, Some(Duration::from_secs(9)), &thresholds), "it wants to rest");
        assert!(tally.rest(Instant::now()) > Duration::from_secs(8));
        assert_eq!(tally.take_causes().collect::<Vec<_>>(), [Cause::RetryAfter]);
        assert!(!tally.answered(404, Some(Duration::from_secs(9)), &thresholds));
    }
}
