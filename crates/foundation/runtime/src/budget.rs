//! How the time of a stop is shared out.
//!
//! In: when the stop began, its budget, the part of it kept for flushing. Out: a deadline
//! for every phase. Promise: no phase ends after the budget, the flush budget is never
//! touched by what comes before it, and time a phase leaves over is the next one's.

use std::time::Duration;

use tokio::time::Instant;

use crate::state::StopPhase;

/// Deadlines of all phases. They can come nearer, never move away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopPlan {
    inbound: Instant,
    /// When an application that is still there is killed; the flush time begins at the latest.
    application: Instant,
    end: Instant,
}

impl StopPlan {
    /// A plan for a stop that begins `now`. With an application, inbound traffic may take half of
    /// the time before the flush, so that the application has the other half to exit in.
    pub(crate) fn new(now: Instant, budget: Duration, flush: Duration, application: bool) -> Self {
        let before_flush = budget.saturating_sub(flush);
        let inbound = if application { before_flush / 2 } else { before_flush };
        Self { inbound: now + inbound, application: now + before_flush, end: now + budget }
    }

    /// When the phase must be over. The flush time is shared out in the order of the phases;
    /// whoever has most to bring to safety has the largest share.
    pub(crate) fn deadline(&self, phase: StopPhase) -> Instant {
        let percent = match phase {
            StopPhase::Inbound => return self.inbound,
            StopPhase::Outbound => 10,
            StopPhase::Logs => 60,
            StopPhase::Metrics => 75,
            StopPhase::Secrets => 95,
            StopPhase::Identity => 100,
        };
        self.application + (self.end - self.application) * percent / 100
    }

    /// When an application that is still there is killed.
    pub(crate) fn application(&self) -> Instant {
        self.application
    }

    /// When everything must be over.
    #[cfg(test)]
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    /// A second signal: nobody waits for drains or for the application any more; the flush keeps its time.
    pub(crate) fn hasten(&mut self, now: Instant) {
        if now < self.application {
            let flush = self.end - self.application;
            self.inbound = self.inbound.min(now);
            self.application = now;
            self.end = now + flush;
        }
    }

    /// A third signal: nobody waits for anything.
    pub(crate) fn abandon(&mut self, now: Instant) {
        self.inbound = self.inbound.min(now);
        self.application = self.application.min(now);
        self.end = self.end.min(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instants(plan: &StopPlan) -> Vec<Instant> {
        let mut all = vec![plan.deadline(StopPhase::Inbound), plan.application()];
        all.extend(StopPhase::ALL[1..].iter().map(|phase| plan.deadline(*phase)));
        all
    }

    proptest! {
        #[test]
        fn phases_follow_one_another_within_the_budget(budget in 0u64..3_600_000, flush in 0u64..3_600_000, app: bool) {
            let now = Instant::now();
            let (budget, flush) = (Duration::from_millis(budget), Duration::from_millis(flush));
            let plan = StopPlan::new(now, budget, flush, app);
            let all = instants(&plan);
            prop_assert!(all.is_sorted(), "{:?}", all);
            prop_assert!(all[0] >= now);
            prop_assert_eq!(*all.last().unwrap(), now + budget);
            prop_assert_eq!(plan.end() - plan.application(), flush.min(budget), "the flush budget is kept");
        }

        #[test]
        fn haste_only_brings_deadlines_forward_and_keeps_the_flush(
            budget in 0u64..100_000, flush in 0u64..100_000, at in 0u64..150_000, again in 0u64..150_000, app: bool,
        ) {
            let begin = Instant::now();
            let mut plan = StopPlan::new(begin, Duration::from_millis(budget), Duration::from_millis(flush), app);
            let before = instants(&plan);
            let now = begin + Duration::from_millis(at);
            plan.hasten(now);
            let hastened = instants(&plan);
            prop_assert!(hastened.is_sorted());
            prop_assert!(hastened.iter().zip(&before).all(|(after, before)| after <= before));
            prop_assert!(plan.application() <= now.max(before[1]));
            prop_assert_eq!(plan.end() - plan.application(), Duration::from_millis(flush.min(budget)));
            plan.abandon(now + Duration::from_millis(again));
            let abandoned = instants(&plan);
            prop_assert!(abandoned.is_sorted());
            prop_assert!(abandoned.iter().zip(&hastened).all(|(after, before)| after <= before));
            prop_assert!(*abandoned.last().unwrap() <= now + Duration::from_millis(again));
        }
    }
}
