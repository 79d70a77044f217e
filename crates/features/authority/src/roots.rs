//! The life of the roots: which is trusted, which signs, and when the next one comes and the last one goes.
//!
//! In: the roots there are, lifetimes, the time. Out: who signs, and the one step that is due.
//! Promise: at no moment does a workload meet a certificate that its bundle cannot vouch for. A
//! new root is in every bundle for `propagation` before it signs, which is longer than any
//! certificate lives, so whoever still has a valid one has a bundle with the new root, too. An old
//! one stays in every bundle until the last certificate under it has ended. Only when no controller
//! was there in time is the new root's wait cut short, and then for the old one's end.
//!
//! Nothing here does I/O or knows a key's bytes: a step is decided alike by every controller that
//! sees the same roots, and the store lets only one of them take it.

use std::time::{Duration, SystemTime};

/// The lifetimes that rule the roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a root lives.
    pub lifetime: Duration,
    /// How long a new root is in all bundles before it signs. Longer than `max_ttl` by at least twice `slack`.
    pub propagation: Duration,
    /// How long a workload's certificate lives at most.
    pub max_ttl: Duration,
    /// How much controllers' clocks, and what they have read, may differ.
    pub slack: Duration,
}

impl Timing {
    /// Lifetimes in which `slack` is what propagation leaves over.
    pub fn new(lifetime: Duration, propagation: Duration, max_ttl: Duration) -> Self {
        let slack = (propagation.saturating_sub(max_ttl) / 2).min(Duration::from_secs(3600));
        Self { lifetime, propagation, max_ttl, slack }
    }

    /// How long before a root's end the next one is made: time for a whole change, and a tenth of its life to spare
    /// for controllers that are down.
    fn lead(&self) -> Duration {
        self.propagation + self.max_ttl + self.slack + self.lifetime / 10
    }
}

/// One root, as far as time matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root<T> {
    /// When its certificate ends.
    pub not_after: SystemTime,
    /// When it begins to sign.
    pub signs_from: SystemTime,
    /// Whether its key is still there.
    pub has_key: bool,
    /// Its certificate and key.
    pub material: T,
}

/// All roots, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roots<T>(pub Vec<Root<T>>);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// A new root is to be made, which signs from then on.
    Add {
        /// When.
        signs_from: SystemTime,
    },
    /// The oldest but these signs no more: its key is to be destroyed.
    DropKey(usize),
    /// The oldest root has no valid certificate under it.
    Remove,
}

impl<T> Roots<T> {
    /// The one step that is due.
    pub fn step(&self, timing: &Timing, now: SystemTime) -> Step {
        let Some(newest) = self.0.last() else { return Step::Add { signs_from: now } };
        if newest.not_after <= now {
            // Nobody has a valid certificate under it, so nobody can be surprised.
            return Step::Add { signs_from: now };
        }
        if let [oldest, next, ..] = self.0.as_slice()
            && (oldest.not_after + timing.slack <= now || next.signs_from + timing.max_ttl + timing.slack <= now)
        {
            return Step::Remove;
        }
        for (at, pair) in self.0.windows(2).enumerate() {
            // A controller whose clock is behind may still sign with it.
            if pair[0].has_key && pair[1].signs_from + timing.slack <= now {
                return Step::DropKey(at);
            }
        }
        if newest.signs_from <= now && newest.not_after <= now + timing.lead() {
            // Late, because no controller was there: then what is left must do. Certificates under the old root end with
            // it, so workloads come ever more often, and all that can come have come before three quarters are over.
            let left = newest.not_after.duration_since(now).unwrap_or_default();
            return Step::Add { signs_from: now + timing.propagation.min(left * 3 / 4) };
        }
        Step::Rest
    }

    /// Which root signs.
    pub fn signer(&self, now: SystemTime) -> Option<usize> {
        let usable = |root: &Root<T>| root.has_key && now < root.not_after;
        let newest = self.0.iter().rposition(|root| usable(root) && root.signs_from <= now);
        // Another controller's clock is ahead, and it has destroyed the key of the one before.
        newest.or_else(|| self.0.iter().position(usable))
    }

    /// When time alone makes a step due, or another root sign; a little late does no harm.
    pub fn next_change(&self, timing: &Timing, now: SystemTime) -> Option<SystemTime> {
        let own = self.0.iter().flat_map(|root| {
            let lead = root.not_after.checked_sub(timing.lead()).unwrap_or(root.signs_from);
            [
                root.signs_from,
                root.signs_from + timing.slack,
                root.signs_from + timing.max_ttl + timing.slack,
                lead.max(root.signs_from),
                root.not_after,
            ]
        });
        own.filter(|at| *at > now).min()
    }
}
