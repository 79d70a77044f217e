//! What may keep a request from its endpoint: a deadline that has passed, a rate, an overload.
//!
//! In: a request whose route limits it. Out: leave to go on, or the reason to refuse it. Promise: it is refused
//! before it costs the endpoint anything, and told when to come again where that is known.

use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_traffic::{read_grpc_timeout, read_milliseconds, read_unix_deadline, write_grpc_timeout};
use outrigger_wire::head::Head;

use super::Exchange;
use super::retry::{Tries, resilience};
use crate::error::Reason;
use crate::pool::Pool;
use crate::resilience::Resilience;
use crate::watch::SLACK;

const GRPC_TIMEOUT: &str = "grpc-timeout";
const EXPECTED_TIMEOUT: &str = "x-envoy-expected-rq-timeout-ms";
const REQUEST_DEADLINE: &str = "x-request-deadline";

/// A caller's deadline, and the headers that tell the next hop what is left of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallersDeadline {
    at: Instant,
    grpc: bool,
    expected: bool,
}

impl CallersDeadline {
    /// The first of those that a request brings along.
    fn of(request: &Head, now: Instant) -> Option<Self> {
        let grpc = request.get_named(GRPC_TIMEOUT).and_then(read_grpc_timeout);
        let expected = request.get_named(EXPECTED_TIMEOUT).and_then(read_milliseconds);
        let absolute = request.get_named(REQUEST_DEADLINE);
        let absolute = absolute.and_then(|value| read_unix_deadline(value, SystemTime::now()));
        let left = [grpc, expected, absolute].into_iter().flatten().min()?;
        Some(Self { at: now.checked_add(left)?, grpc: grpc.is_some(), expected: expected.is_some() })
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Whether it has passed, as far as clocks are looked at.
    pub(super) fn has_passed(&self, now: Instant) -> bool {
        now + SLACK >= self.at
    }

    /// Tells the next hop what is left, or that nothing is.
    pub(super) fn tell(&self, request: &mut Head, now: Instant) -> Result<(), Reason> {
        let left = self.at.saturating_duration_since(now);
        // Of a millisecond nobody can make use.
        if left < Duration::from_millis(1) {
            return Err(Reason::DeadlinePassed);
        }
        if self.grpc {
            let mut value = String::new();
            write_grpc_timeout(left, &mut value);
            request.set(GRPC_TIMEOUT, value.as_bytes());
        }
        if self.expected {
            request.set(EXPECTED_TIMEOUT, itoa::Buffer::new().format(left.as_millis() as u64).as_bytes());
        }
        Ok(())
    }
}

/// A place among the requests that wait for a cluster's answer, given back when dropped.
pub(super) struct Waiting {
    pool: Rc<Pool>,
    pub(super) since: Instant,
    /// How long the answer took, if it says something of the endpoint's load.
    latency: Option<Duration>,
}

impl Waiting {
    /// The answer is there, or was waited for in vain.
    pub(super) fn ended(mut self, tells: bool) {
        self.latency = tells.then(|| self.since.elapsed());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(limit) = &self.pool.cluster.adaptive {
            limit.leave(self.latency, Instant::now());
        }
    }
}

impl Exchange {
    /// Whether a request may go on, and within what time.
    pub(super) fn protect(
        &mut self,
        resilience: &Resilience,
        end: Option<Instant>,
        request: &mut Head,
    ) -> Result<Box<Tries>, Reason> {
        let callers = if resilience.deadlines { CallersDeadline::of(request, self.started) } else { None };
        let end = end.into_iter().chain(callers.map(|callers| callers.at())).min();
        let mut tries = Tries::of(resilience, self.started, end, callers);
        if let Some(callers) = callers {
            self.watched.set_deadline(end);
            callers.tell(request, Instant::now())?;
        }
        if let Err(reason) = self.limit(resilience, &mut tries, request) {
            self.tries = Some(tries);
            return Err(reason);
        }
        Ok(tries)
    }

    /// Whether the cluster has room for a request that may go there.
    pub(super) fn enter(&mut self, resilience: &Resilience, pool: &Rc<Pool>, request: &Head) -> Result<(), Reason> {
        let (Some(limit), Some(tries)) = (&pool.cluster.adaptive, &mut self.tries) else { return Ok(()) };
        let criticality = resilience.criticality(request);
        if !limit.enter(criticality) {
            pool.metrics.shed(criticality);
            return Err(Reason::Shed);
        }
        // What the rate limit service took is not the cluster's.
        let since = if resilience.global.is_some() { Instant::now() } else { self.started };
        tries.waiting = Some(Waiting { pool: Rc::clone(pool), since, latency: None });
        Ok(())
    }

    /// Whether the rate limits of a request's route let it pass.
    fn limit(&self, resilience: &Resilience, tries: &mut Tries, request: &Head) -> Result<(), Reason> {
        for limiter in &resilience.rate_limits {
            let decision = limiter.check(request, &self.downstream, self.started);
            limiter.tell(&decision, &mut tries.fields);
            if !decision.allowed {
                return Err(Reason::RateLimited);
            }
        }
        Ok(())
    }

    /// The same for a request that a filter answers; the service is asked, too.
    pub(super) async fn limit_answer(&mut self, request: &mut Head) -> Result<(), Reason> {
        let snapshot = Rc::clone(&self.snapshot);
        let Some(resilience) = resilience(&snapshot, self.route) else { return Ok(()) };
        let mut tries = Tries::of(resilience, self.started, None, None);
        let outcome = self.limit(resilience, &mut tries, request);
        self.tries = Some(tries);
        outcome?;
        match &resilience.global {
            Some(global) => self.ask_service(global, None, request).await,
            None => Ok(()),
        }
    }

    /// Adds what a client is told of its limits.
    pub(super) fn tell_limits(&self, response: &mut Head) {
        let Some(tries) = &self.tries else { return };
        tries.fields.iter().for_each(|(name, value)| response.push(name, value));
    }
}
