//! The retry budget of a cluster ([GEP-3388]).
//!
//! In: requests and wishes to send one again, from all workers. Out: whether one may be. Promise:
//! over the budget's interval retries are at most its share of the requests, or, where that is
//! more, at most the minimum in its own interval; a dying cluster is not killed by them.
//!
//! [GEP-3388]: https://gateway-api.sigs.k8s.io/geps/gep-3388/

use std::time::Instant;

use outrigger_config::RetryConstraint;

use crate::window::Window;

/// Counts a cluster's requests and retries. Shared by workers.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u64,
    least: u64,
    requests: Window,
    retries: Window,
    /// Retries again, over the minimum's own interval.
    recent: Window,
}

impl RetryBudget {
    /// A budget that begins to count `now`.
    pub fn new(constraint: &RetryConstraint, now: Instant) -> Self {
        let RetryConstraint { budget, min_retry_rate } = constraint;
        Self {
            percent: budget.percent.into(),
            least: min_retry_rate.count.into(),
            requests: Window::new(budget.interval.into(), now),
            retries: Window::new(budget.interval.into(), now),
            recent: Window::new(min_retry_rate.interval.into(), now),
        }
    }

    /// A request that may be sent again goes out for the first time.
    pub fn request(&self, now: Instant) {
        self.requests.add(now);
    }

    /// Whether a request may be sent again; it is counted then.
    pub fn try_retry(&self, now: Instant) -> bool {
        // Counted before it is looked at, so that two workers never take the last one both.
        self.retries.add(now);
        self.recent.add(now);
        let share = self.requests.sum(now) * self.percent / 100;
        if self.retries.sum(now) <= share || self.recent.sum(now) <= self.least {
            return true;
        }
        self.retries.take_back(now);
        self.recent.take_back(now);
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_config::{RetryBudget as Budget, RetryRate};
    use proptest::prelude::*;

    use super::*;

    fn constraint(percent: u32, count: u32) -> RetryConstraint {
        let interval = outrigger_config::Duration::from_secs(10);
        let least = outrigger_config::Duration::from_secs(1);
        RetryConstraint { budget: Budget { percent, interval }, min_retry_rate: RetryRate { count, interval: least } }
    }

    #[test]
    fn a_dying_cluster_gets_a_fifth_more_and_no_more() {
        let begin = Instant::now();
        let budget = RetryBudget::new(&constraint(20, 0), begin);
        let (mut requests, mut retries) = (0_u64, 0_u64);
        for step in 0..100_000_u64 {
            let now = begin + Duration::from_millis(step);
            budget.request(now);
            requests += 1;
            // Every request fails, and so does every retry.
            while budget.try_retry(now) {
                retries += 1;
            }
            assert!(retries * 5 <= requests, "{retries} of {requests}");
        }
        // A tenth of the interval at most is forgotten too early.
        assert!(retries * 6 > requests, "{retries} of {requests}: the budget is used");
    }

    #[test]
    fn few_requests_may_be_sent_again_all_the_same() {
        let now = Instant::now();
        let budget = RetryBudget::new(&constraint(20, 10), now);
        budget.request(now);
        assert_eq!((0..50).filter(|_| budget.try_retry(now)).count(), 10);
        assert_eq!(
            (0..50).filter(|_| budget.try_retry(now + Duration::from_secs(1))).count(),
            10,
            "again a second later"
        );
    }

    #[test]
    fn workers_together_never_take_more_than_there_is() {
        let now = Instant::now();
        let budget = RetryBudget::new(&constraint(20, 0), now);
        (0..1000).for_each(|_| budget.request(now));
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..500).filter(|_| budget.try_retry(now)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(taken <= 200, "{taken}");
    }

    proptest! {
        /// Beside lists of all times: whatever comes when, a retry that is allowed is within the share or the minimum.
        #[test]
        fn no_retry_beyond_both(
            percent in 0_u32..100, count in 0_u32..4, steps in prop::collection::vec((0_u64..700, 0_u8..9, 0_u8..5), 1..150)
        ) {
            let begin = Instant::now();
            let budget = RetryBudget::new(&constraint(percent, count), begin);
            let (mut now, mut requests, mut retries) = (begin, Vec::new(), Vec::new());
            for (wait, asked, again) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..asked {
                    budget.request(now);
                    requests.push(now);
                }
                for _ in 0..again {
                    if budget.try_retry(now) {
                        retries.push(now);
                        let within = |all: &[Instant], span| {
                            all.iter().filter(|at| now - **at < Duration::from_millis(span)).count() as u64
                        };
                        let share = within(&requests, 10_000) * u64::from(percent) / 100;
                        prop_assert!(within(&retries, 9_000) <= share || within(&retries, 900) <= u64::from(count));
                    }
                }
            }
        }
    }
}
