//! Requests refused because clients give up waiting for the application.
//!
//! In: requests to the application as they begin, get their answers' heads, or end without. Out: leave to go on, or
//! the reason to refuse one. Promise: what is decided is decided by `outrigger_traffic::Shedding`, per worker; it is told
//! to operators when it begins and ends, and every refusal is counted.

use std::rc::Rc;
use std::time::{Duration, Instant};

use outrigger_traffic::{Criticality, Shedding, Turn};
use outrigger_wire::head::Head;

use super::Exchange;
use crate::error::Reason;
use crate::pool::Pool;

impl Exchange {
    /// Counts a request among those that wait for the application, unless there are too many.
    pub(super) fn join_crowd(&mut self, pool: &Rc<Pool>, request: &Head) -> Result<(), Reason> {
        let resilience = self.route().and_then(|route| route.resilience.as_deref());
        let criticality = resilience.map_or(Criticality::Standard, |resilience| resilience.criticality(request));
        if !pool.shedding.borrow_mut().enter(criticality) {
            pool.metrics.shed(criticality);
            return Err(Reason::Shed);
        }
        self.awaits = true;
        Ok(())
    }

    /// The answer's head has come.
    pub(super) fn leave_crowd(&mut self) {
        if std::mem::take(&mut self.awaits)
            && let Some(pool) = &self.pool
        {
            let now = Instant::now();
            pool.waited(now - self.started, now, Shedding::answered);
        }
    }

    /// The request ended without one.
    pub(super) fn end_in_crowd(&mut self, now: Instant) {
        self.awaits = false;
        let Some(pool) = &self.pool else { return };
        if matches!(self.reason, Some(Reason::ClientGone | Reason::Timeout)) {
            pool.waited(now - self.started, now, Shedding::gave_up);
        } else {
            pool.shedding.borrow_mut().dropped();
        }
    }
}

impl Pool {
    /// Notes how a wait for the application ended.
    fn waited(&self, waited: Duration, now: Instant, how: fn(&mut Shedding, Duration, Instant) -> Option<Turn>) {
        let turn = how(&mut self.shedding.borrow_mut(), waited, now);
        if let Some(turn) = turn {
            self.tell_turn(turn);
        }
    }

    #[cold]
    fn tell_turn(&self, turn: Turn) {
        let cluster = &*self.cluster.name;
        match turn {
            Turn::InForce(limit) => tracing::warn!(
                component = "proxy",
                cluster,
                limit,
                "clients give up waiting for the application; a worker refuses requests beyond the limit (`limits.shedOverload`)"
            ),
            Turn::Lifted => tracing::warn!(
                component = "proxy",
                cluster,
                "refusing requests did not let more clients be answered; they are refused no longer"
            ),
            Turn::Over => {
                tracing::info!(component = "proxy", cluster, "requests are refused no longer; the overload is over")
            }
        }
        self.tell_limit(self.shedding.borrow().limit());
    }

    /// Tells the metric how many may wait for the application on this worker; nothing while that is not limited.
    pub(crate) fn tell_limit(&self, limit: Option<u32>) {
        let limit = limit.unwrap_or(0);
        let before = self.told_limit.replace(limit);
        if limit != before {
            self.metrics.shed_limit(f64::from(limit) - f64::from(before));
        }
    }
}
