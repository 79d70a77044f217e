//! Requests whose route asks for more than one try: sent again when that is allowed.
//!
//! In: a request, and how its last try failed. Out: the answer of the last try. Promise: what to do is
//! decided by `outrigger_traffic`, this does it; the body is replayed from a bounded buffer; once
//! a byte of an answer went to the client nothing is sent again; requests of other routes never
//! come here.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use outrigger_config::RetryOn;
use outrigger_telemetry::trace::SpanId;
use outrigger_traffic::{Asked, Failure, Question, Random, Verdict, Withheld, grpc_pushback, retry_after};
use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Head};

use super::attempt::may_be_repeated;
use super::hedge::Hedge;
use super::note::is_grpc;
use super::protect::{CallersDeadline, Waiting};
use super::trace::{Outcomes, TryTold};
use super::{After, Exchange, Incoming, Sent};
use crate::breakers::{Breaker, Held};
use crate::error::Reason;
use crate::mirror::MOST_BODY;
use crate::pool::{Pool, Way};
use crate::resilience::Resilience;
use crate::snapshot::LocalSnapshot;
use crate::upstream::Ask;
use crate::watch::SLACK;

/// What endpoints are told of the number of a try, as Envoy calls it.
const ATTEMPT_COUNT: &str = "x-envoy-attempt-count";

/// The tries of one request, whose route asks for more than sending it once.
pub(crate) struct Tries {
    /// Tries made, and where to.
    pub(super) attempts: u32,
    /// Further requests that were sent beside one that let itself be waited for.
    pub(super) hedges: u32,
    pub(super) tried: Vec<SocketAddr>,
    /// Why another one was not made.
    pub(super) withheld: Option<Withheld>,
    /// The wait before the next one, when an answer asks for it.
    wait: Option<Duration>,
    /// When the request's time is over.
    end: Option<Instant>,
    /// The caller's own wish for that, where the route heeds it.
    callers: Option<CallersDeadline>,
    /// When the last try began, and its span where it is not the first.
    pub(super) began: Instant,
    pub(super) span: Option<SpanId>,
    /// Those before it, where spans tell of them.
    pub(super) told: Vec<TryTold>,
    /// What the client is told of its rate limits.
    pub(super) fields: Vec<(Cow<'static, str>, Vec<u8>)>,
    /// What the rate limit service wants a client told that it refuses.
    pub(super) body: Vec<u8>,
    /// Its place among those that wait for the cluster, where they are limited.
    pub(super) waiting: Option<Waiting>,
    /// The last try's place under `maxRetries`.
    retrying: Option<Held>,
    idle: Option<Duration>,
    /// Bytes that had moved when the idle time was set last.
    moved: u64,
}

impl Tries {
    /// The tries of a request that began then, and whose time is over at `end`.
    pub(super) fn of(
        resilience: &Resilience,
        began: Instant,
        end: Option<Instant>,
        callers: Option<CallersDeadline>,
    ) -> Box<Self> {
        Box::new(Self {
            attempts: 0,
            hedges: 0,
            tried: Vec::new(),
            withheld: None,
            wait: None,
            end,
            callers,
            began,
            span: None,
            told: Vec::new(),
            fields: Vec::new(),
            body: Vec::new(),
            waiting: None,
            retrying: None,
            idle: resilience.idle,
            moved: 0,
        })
    }
}

/// The route's part of a snapshot. A method of the exchange would hold all of it.
pub(super) fn resilience(snapshot: &LocalSnapshot, route: Option<u32>) -> Option<&Resilience> {
    snapshot.routes.route(route?)?.resilience.as_deref()
}

impl Exchange {
    /// Sends the request as often as its route allows and its failures ask for, and a copy where the route has a mirror.
    pub(super) async fn send_again(
        &mut self,
        pool: &Rc<Pool>,
        way: Way,
        incoming: &mut Incoming<'_>,
        framing: Framing,
        ask: Ask,
        response: &mut Head,
    ) -> Result<After, Reason> {
        let snapshot = Rc::clone(&self.snapshot);
        let mirror = resilience(&snapshot, self.route).and_then(|resilience| resilience.mirror.as_ref());
        let worker = Rc::clone(&self.downstream.local.worker);
        let mirror = mirror.filter(|mirror| ask == Ask::Answer && mirror.takes(worker.random()));
        let copy = mirror.map(|mirror| {
            if !matches!(framing, Framing::Empty) {
                incoming.source.keep_all(MOST_BODY);
            }
            let mut request = Box::new(Head::default());
            request.copy_from(incoming.request);
            (mirror, request)
        });
        let outcome = self.send_often(pool, way, incoming, framing, ask, response).await;
        if let Some((mirror, request)) = copy {
            mirror.send(&worker, self.downstream.ends, request, framing, incoming.source.take_kept());
        }
        outcome
    }

    async fn send_often(
        &mut self,
        pool: &Rc<Pool>,
        way: Way,
        incoming: &mut Incoming<'_>,
        framing: Framing,
        ask: Ask,
        response: &mut Head,
    ) -> Result<After, Reason> {
        let snapshot = Rc::clone(&self.snapshot);
        let resilience = resilience(&snapshot, self.route).ok_or(Reason::NoRoute)?;
        let retry = resilience.retry.as_ref();
        let mut hedge = resilience.hedge.as_ref().filter(|_| Hedge::is_for(incoming.request, framing, ask));
        if retry.is_some() || hedge.is_some() {
            pool.cluster.retry_budget.request(Instant::now());
        }
        if let Some(retry) = retry
            && !matches!(framing, Framing::Empty)
        {
            incoming.source.keep_all(retry.max_body);
        }
        if let Some(one) = hedge
            && !matches!(framing, Framing::Empty)
            && !Box::pin(self.gather(one.max_body, incoming)).await?
        {
            hedge = None;
        }
        loop {
            let end = self.begin_try(resilience, incoming.request)?;
            if retry.is_some_and(|retry| retry.attempt_count) {
                let number = self.tries.as_ref().map_or(1, |tries| tries.attempts);
                incoming.request.set(ATTEMPT_COUNT, itoa::Buffer::new().format(number).as_bytes());
            }
            let outcome = match hedge {
                Some(hedge) => {
                    let way = (way, framing);
                    Box::pin(self.send_hedged(hedge, retry, pool, way, incoming, response)).await
                }
                None => self.send(pool, way, incoming, framing, ask, response).await,
            };
            let (wait, ended) = match outcome {
                Ok(Sent::Done(after)) => {
                    let Some(tries) = &self.tries else { return Ok(after) };
                    if tries.attempts > 1 && tries.withheld.is_none() && self.reason.is_none() {
                        pool.metrics.retry().succeeded.inc();
                    }
                    return Ok(after);
                }
                Ok(Sent::Asked) => {
                    let wait = self.tries.as_mut().and_then(|tries| tries.wait.take()).unwrap_or_default();
                    let grpc_status = response.get(FieldId::GrpcStatus).filter(|_| is_grpc(response));
                    let grpc_status = grpc_status.and_then(|status| str::from_utf8(status).ok()?.parse().ok());
                    (wait, Outcomes { code: response.status(), grpc_status, reason: None })
                }
                Err(reason) if self.answered => return Err(reason),
                Err(reason) => match self.judge_failure(reason, incoming) {
                    Some(wait) => (wait, Outcomes { code: 0, grpc_status: None, reason: Some(reason) }),
                    None => return Err(self.blame(reason)),
                },
            };
            if self.trace.is_some() {
                self.trace_next_try(incoming.request, ended);
            }
            if let Some(tries) = &mut self.tries {
                tries.tried.extend(self.endpoint);
            }
            self.received = 0;
            self.retried = true;
            self.watched.request_waits(None, 0);
            self.watched.try_until(end);
            self.rest(wait, incoming).await.map_err(|reason| self.blame(reason))?;
        }
    }

    /// Begins a try: counts it and sets its time. Returns when the time of all is over.
    fn begin_try(&mut self, resilience: &Resilience, request: &mut Head) -> Result<Option<Instant>, Reason> {
        let Some(tries) = &mut self.tries else { return Ok(None) };
        tries.attempts += 1;
        let now = Instant::now();
        tries.began = now;
        if let Some(waiting) = &mut tries.waiting {
            waiting.since = now;
        }
        if let Some(callers) = tries.callers {
            callers.tell(request, now)?;
        }
        let own = resilience.backend_request.and_then(|limit| now.checked_add(limit));
        self.watched.try_until(tries.end.into_iter().chain(own).min());
        Ok(tries.end)
    }

    /// The answer to the last try is there, and its route looks at such things. Whether it asks for another try.
    pub(super) fn look_at_answer(&mut self, incoming: &mut Incoming<'_>, response: &Head) -> bool {
        if self.is_asked_again(incoming, response) {
            return true;
        }
        if let Some(waiting) = self.tries.as_mut().and_then(|tries| tries.waiting.take()) {
            // An endpoint that fails does so in less time than it works.
            waiting.ended(response.status() < 500);
        }
        false
    }

    /// What to tell the client instead: its own deadline has passed, not only the route's time.
    fn blame(&mut self, reason: Reason) -> Reason {
        let Some(tries) = &mut self.tries else { return reason };
        if reason == Reason::Timeout {
            if let Some(waiting) = tries.waiting.take() {
                waiting.ended(true);
            }
            if tries.callers.is_some_and(|callers| callers.has_passed(Instant::now())) {
                return Reason::DeadlinePassed;
            }
        }
        reason
    }

    /// How long to wait before the request is sent again after it failed without an answer, if it is to be.
    fn judge_failure(&mut self, reason: Reason, incoming: &mut Incoming<'_>) -> Option<Duration> {
        let now = Instant::now();
        let how = match reason {
            Reason::ConnectFailure | Reason::ConnectTimeout | Reason::TlsFailure => RetryOn::ConnectFailure,
            Reason::Refused | Reason::Unseen => RetryOn::RefusedStream,
            Reason::Reset | Reason::Protocol(_) => RetryOn::Reset,
            // That of the request is over for good, that of a try is not.
            Reason::Timeout if self.tries.as_ref()?.end.is_none_or(|end| now + SLACK < end) => RetryOn::Timeout,
            _ => return None,
        };
        self.judge_try(Failure::Unanswered(how), None, now, incoming)
    }

    /// Whether an answer is one after which the request is sent again.
    fn is_asked_again(&mut self, incoming: &mut Incoming<'_>, response: &Head) -> bool {
        let status = response.get(FieldId::GrpcStatus).filter(|_| is_grpc(response));
        let (failure, asked) = match status.and_then(|status| str::from_utf8(status).ok()?.parse().ok()) {
            // Only an answer that is nothing but a status has it here.
            Some(0) => return false,
            Some(status) => (Failure::Grpc(status), response.get_named("grpc-retry-pushback-ms").map(grpc_pushback)),
            None if response.status() < 400 => return false,
            None => {
                let asked = response.get_named("retry-after");
                (Failure::Code(response.status()), asked.and_then(|value| retry_after(value, SystemTime::now())))
            }
        };
        let wait = self.judge_try(failure, asked, Instant::now(), incoming);
        if let (Some(tries), Some(wait)) = (&mut self.tries, wait) {
            tries.wait = Some(wait);
            return true;
        }
        false
    }

    fn judge_try(
        &mut self,
        failure: Failure,
        asked: Option<Asked>,
        now: Instant,
        incoming: &mut Incoming<'_>,
    ) -> Option<Duration> {
        let snapshot = Rc::clone(&self.snapshot);
        let retry = resilience(&snapshot, self.route)?.retry.as_ref()?;
        let (tries, pool) = (self.tries.as_mut()?, self.pool.as_ref()?);
        tries.retrying = None;
        let idempotent = may_be_repeated(incoming.request);
        if !retry.wants(failure, idempotent) {
            return None;
        }
        let question = Question {
            failure,
            attempts: tries.attempts,
            idempotent,
            replayable: self.received == 0 || incoming.source.is_kept(),
            asked,
            left: tries.end.map(|end| end.saturating_duration_since(now)),
        };
        let mut random = Random::new(u64::from(self.downstream.local.worker.random()) << 20);
        match retry.judge(&question, &pool.cluster.retry_budget, now, &mut random) {
            Verdict::No => None,
            Verdict::Withheld(why) => {
                tries.withheld = Some(why);
                pool.metrics.retry().withheld(why);
                None
            }
            Verdict::After(wait) => {
                match pool.hold(Breaker::Retries) {
                    Ok(place) => tries.retrying = place,
                    Err(_) => {
                        tries.withheld = Some(Withheld::Overflow);
                        pool.metrics.retry().withheld(Withheld::Overflow);
                        return None;
                    }
                }
                pool.metrics.retry().made(failure);
                incoming.source.rewind();
                Some(wait)
            }
        }
    }

    /// Waits before the next try, as long as the client is there.
    async fn rest(&mut self, wait: Duration, incoming: &mut Incoming<'_>) -> Result<(), Reason> {
        let mut wait = pin!(tokio::time::sleep(wait));
        poll_fn(|cx| {
            if self.watched.has_timed_out() {
                return Poll::Ready(Err(Reason::Timeout));
            }
            self.watched.keep_waker(cx.waker());
            let gone = incoming.source.is_read() && incoming.source.poll_gone(cx).is_ready();
            if gone || incoming.responder.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientGone));
            }
            wait.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Notes that bytes of an answer under way moved, or that none has for too long.
    pub(super) fn mind_idle(&mut self) -> Poll<Result<(), Reason>> {
        let Some(tries) = &mut self.tries else { return Poll::Pending };
        let Some(idle) = tries.idle else { return Poll::Pending };
        let moved = self.received + self.sent + 1;
        if tries.moved != moved {
            tries.moved = moved;
            self.watched.try_until(Instant::now().checked_add(idle));
        } else if self.watched.has_timed_out() {
            self.watched.try_until(None);
            return Poll::Ready(Err(Reason::StreamIdle));
        }
        Poll::Pending
    }
}
