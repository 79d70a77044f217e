//! How an endpoint is chosen, and what is known of each.
//!
//! In: a cluster's endpoints with what is under way at them. Out: one of them. Promise: an
//! endpoint that refused connections lately is passed over while there is another; nothing
//! is allocated per request.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use outrigger_traffic::Random;

use crate::pool::Idle;
use crate::shared::SharedConnections;

/// An endpoint that failed is avoided for so long, doubling up to [`LONGEST_AVOIDANCE`].
const AVOIDANCE: Duration = Duration::from_millis(200);
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(10);

/// One endpoint of a cluster, as one worker sees it.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// Requests under way.
    pub(crate) under_way: Cell<u32>,
    /// Connections kept for the next request.
    pub(crate) idle: RefCell<Vec<Idle>>,
    /// Connections that carry many requests.
    pub(crate) shared: SharedConnections,
    /// The last connection to it was agreed on as between Outriggers.
    pub(crate) kin: Cell<bool>,
    /// A connection is being made ahead of requests.
    pub(crate) preparing: Cell<bool>,
    /// The cluster has it no longer; connections to it are not kept.
    pub(crate) retired: Cell<bool>,
    failures: Cell<u32>,
    avoid_until: Cell<Option<Instant>>,
}

impl Endpoint {
    pub(crate) fn new(address: SocketAddr) -> Rc<Self> {
        Rc::new(Self {
            address,
            under_way: Cell::new(0),
            idle: RefCell::default(),
            shared: SharedConnections::default(),
            kin: Cell::new(false),
            preparing: Cell::new(false),
            retired: Cell::new(false),
            failures: Cell::new(0),
            avoid_until: Cell::new(None),
        })
    }

    /// No connection could be made: the endpoint is avoided for a while.
    pub(crate) fn failed(&self, now: Instant) {
        let failures = self.failures.get();
        let wait = AVOIDANCE.saturating_mul(1 << failures.min(6)).min(LONGEST_AVOIDANCE);
        self.failures.set(failures.saturating_add(1));
        self.avoid_until.set(Some(now + wait));
    }

    /// A connection is being made. While it is not known that the endpoint is back, one try is enough.
    pub(crate) fn try_again(&self, timeout: Duration) {
        if self.failures.get() > 0 {
            self.avoid_until.set(Instant::now().checked_add(timeout));
        }
    }

    /// A connection was made.
    pub(crate) fn connected(&self) {
        self.failures.set(0);
        self.avoid_until.set(None);
    }

    /// Whether it failed lately.
    pub(crate) fn is_avoided(&self, now: Instant) -> bool {
        self.avoid_until.get().is_some_and(|until| until > now)
    }
}

/// Chooses among a cluster's endpoints.
pub(crate) trait Balancer {
    /// The index of one of the endpoints, of which there is at least one.
    fn choose(&mut self, endpoints: &[Rc<Endpoint>], now: Instant) -> usize;
}

/// Power of two choices: of two random endpoints the less busy one.
pub(crate) struct LeastRequest(pub(crate) Random);

impl Balancer for LeastRequest {
    fn choose(&mut self, endpoints: &[Rc<Endpoint>], now: Instant) -> usize {
        let count = endpoints.len();
        if count < 2 {
            return 0;
        }
        let first = self.0.below(count);
        let second = (first + 1 + self.0.below(count - 1)) % count;
        match (endpoints[first].is_avoided(now), endpoints[second].is_avoided(now)) {
            (false, false) if endpoints[second].under_way.get() < endpoints[first].under_way.get() => second,
            (false, _) => first,
            (true, false) => second,
            // When all have failed lately, all are worth a try again.
            (true, true) => (0..count)
                .map(|step| (second + step) % count)
                .find(|index| !endpoints[*index].is_avoided(now))
                .unwrap_or(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(under_way: &[u32]) -> Vec<Rc<Endpoint>> {
        (1..)
            .zip(under_way)
            .map(|(port, under_way)| {
                let endpoint = Endpoint::new(([127, 0, 0, 1], port).into());
                endpoint.under_way.set(*under_way);
                endpoint
            })
            .collect()
    }

    #[test]
    fn of_two_the_less_busy_is_chosen_and_all_get_some() {
        let mut balancer = LeastRequest(Random::new(7));
        let now = Instant::now();
        let busy = endpoints(&[5, 0, 0, 0]);
        let mut chosen = [0_u32; 4];
        for _ in 0..4000 {
            chosen[balancer.choose(&busy, now)] += 1;
        }
        assert_eq!(chosen[0], 0, "the busiest of every pair");
        assert!(chosen[1..].iter().all(|count| *count > 800), "{chosen:?}");
        assert_eq!(balancer.choose(&endpoints(&[9]), now), 0);
    }

    #[test]
    fn what_failed_is_avoided_for_a_growing_while() {
        let mut balancer = LeastRequest(Random::new(7));
        let now = Instant::now();
        let some = endpoints(&[0, 9, 9]);
        some[0].failed(now);
        assert!((0..100).all(|_| balancer.choose(&some, now) != 0));
        assert!((0..100).any(|_| balancer.choose(&some, now + AVOIDANCE) == 0), "worth a try again");
        some[0].failed(now + AVOIDANCE);
        assert!(some[0].is_avoided(now + AVOIDANCE * 2), "longer the second time");
        // One that is tried again is not tried by others meanwhile.
        some[0].try_again(Duration::from_secs(60));
        assert!((0..100).all(|_| balancer.choose(&some, now + LONGEST_AVOIDANCE) != 0));
        some[1].failed(now);
        some[2].failed(now);
        let mut chosen = [false; 3];
        (0..200).for_each(|_| chosen[balancer.choose(&some, now)] = true);
        assert_eq!(chosen, [true; 3], "when all have failed, all are tried");
        some[0].connected();
        assert!((0..100).all(|_| balancer.choose(&some, now) == 0));
    }
}
