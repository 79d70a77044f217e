//! Circuit breakers: what a cluster's endpoints have at once, over all workers.
//!
//! In: requests and connections as they begin and end. Out: whether another one may. Promise: workers share counters
//! only; what is not limited is not counted, connections apart.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::error::Reason;
use crate::pool::Pool;

/// What there is at once.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    pub(crate) connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breaker {
    Pending,
    Requests,
    Retries,
}

/// A place under a breaker, given back when dropped.
pub(crate) struct Held {
    pool: Rc<Pool>,
    breaker: Breaker,
}

impl Breakers {
    /// Connections there are.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    fn count(&self, breaker: Breaker) -> &AtomicU32 {
        match breaker {
            Breaker::Pending => &self.pending,
            Breaker::Requests => &self.requests,
            Breaker::Retries => &self.retries,
        }
    }
}

impl Pool {
    /// A place under a breaker; `None` where it is not limited.
    pub(crate) fn hold(self: &Rc<Self>, breaker: Breaker) -> Result<Option<Held>, Reason> {
        let Some(most) = self.most(breaker) else { return Ok(None) };
        let take = |count| (count < most).then_some(count + 1);
        if self.cluster.breakers.count(breaker).fetch_update(Relaxed, Relaxed, take).is_err() {
            let (name, reason) = match breaker {
                Breaker::Pending => {
                    ("pending", Reason::Overflow("too many requests wait for a connection to the cluster"))
                }
                Breaker::Requests => ("requests", Reason::Overflow("too many requests are under way at the cluster")),
                Breaker::Retries => ("retries", Reason::Overflow("too many requests were sent again to the cluster")),
            };
            self.metrics.refused(name);
            return Err(reason);
        }
        Ok(Some(Held { pool: Rc::clone(self), breaker }))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.cluster.breakers.count(self.breaker).fetch_sub(1, Relaxed);
    }
}
