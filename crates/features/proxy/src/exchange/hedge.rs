//! Hedging: a request whose answer lets itself be waited for is asked for at another endpoint, too.
//!
//! In: a request that may be repeated, with its whole body. Out: the first good answer. Promise: a further
//! request comes only after its time and within the cluster's retry budget and `maxRetries`; as soon as one answer is
//! taken the others are given up; an answer that the route would try again is taken only when there
//! is no other to wait for.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use outrigger_config::Hedge as HedgeConfig;
use outrigger_traffic::{Failure, LatencyQuantile, RetryPolicy};
use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Head};

use super::attempt::{Begun, Sending, may_be_repeated};
use super::{Exchange, Incoming, Sent};
use crate::body::{Broken, Sink, Source, Waiting, poll_pump};
use crate::breakers::{Breaker, Held};
use crate::buffer;
use crate::dial::Ends;
use crate::error::Reason;
use crate::metrics::Hedged;
use crate::pool::{Lease, Pool, Report, Way, Wish};
use crate::upstream::{Ask, Got, Parked, Up};

/// No further request comes sooner than that.
const SHORTEST: Duration = Duration::from_millis(1);

/// A route's `hedge`.
#[derive(Debug)]
pub(crate) struct Hedge {
    after: After,
    /// So many at most, beyond the first.
    most: u32,
    /// The largest body that is kept for them.
    pub(super) max_body: usize,
}

/// When an answer lets itself be waited for.
#[derive(Debug)]
enum After {
    Fixed(Duration),
    /// What most of the route's answers take, as all workers see them.
    Most(Box<LatencyQuantile>),
}

/// An answer whose head has come.
struct Answer {
    lease: Lease,
    parked: Parked,
    body: Framing,
    reusable: bool,
    head: Box<Head>,
    report: Report,
    /// The endpoint took the whole request.
    sent: bool,
    /// Its place under `maxRetries`.
    _retrying: Option<Held>,
}

type Leg<'a> = Pin<Box<dyn Future<Output = Result<Answer, Reason>> + 'a>>;

impl Hedge {
    pub(crate) fn of(config: &HedgeConfig) -> Self {
        let most = |percentile| After::Most(Box::new(LatencyQuantile::new(percentile)));
        let fixed = || After::Fixed(config.after.map(Duration::from).unwrap_or_default());
        Self {
            after: config.percentile.map_or_else(fixed, most),
            most: config.max,
            max_body: config.max_body_bytes.as_usize(),
        }
    }

    /// Whether a request is one that may be asked for twice.
    pub(super) fn is_for(request: &Head, framing: Framing, ask: Ask) -> bool {
        ask == Ask::Answer
            && may_be_repeated(request)
            // Who waits for a consent before the body cannot have it taken first; trailers are not kept.
            && (matches!(framing, Framing::Empty)
                || !(request.contains(FieldId::Expect) || request.contains(FieldId::Trailer)))
    }

    /// How long the first answer is waited for; `None` while nothing is known.
    fn after(&self) -> Option<Duration> {
        match &self.after {
            After::Fixed(after) => Some(*after),
            After::Most(quantile) => quantile.value().map(|value| value.max(SHORTEST)),
        }
    }

    /// The first answer took so long, or was given up for another one after that. Both count, or what is waited for would
    /// become shorter with each hedge that wins.
    fn observe(&self, took: Duration) {
        if let After::Most(quantile) = &self.after {
            quantile.observe(took);
        }
    }
}

impl Exchange {
    /// Takes a request's body before it is sent. Whether all of it is here; what was taken goes on in any case.
    pub(super) async fn gather(&mut self, most: usize, incoming: &mut Incoming<'_>) -> Result<bool, Reason> {
        incoming.source.keep_all(most);
        let mut gathered = 0;
        let whole = poll_fn(|cx| {
            if self.watched.has_timed_out() {
                let client = self.watched.is_request_awaited();
                return Poll::Ready(Err(if client { Reason::ClientSlow } else { Reason::Timeout }));
            }
            self.watched.keep_waker(cx.waker());
            loop {
                match incoming.source.poll_ready(cx) {
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(true)),
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Err(Broken::Invalid(why))) => return Poll::Ready(Err(Reason::BadRequest(why))),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Pending => break,
                }
                let count = incoming.source.data().len();
                if gathered + count > most || buffer::is_short() {
                    return Poll::Ready(Ok(false));
                }
                incoming.source.advance(count);
                gathered += count;
                if self.is_too_large(gathered as u64) {
                    return Poll::Ready(Err(Reason::BodyTooLarge));
                }
            }
            self.watched.request_waits(Some(Waiting::ForSource), gathered as u64);
            incoming.responder.poll_reset(cx).map(|()| Err(Reason::ClientGone))
        })
        .await;
        self.watched.request_waits(None, gathered as u64);
        incoming.source.rewind();
        whole
    }

    /// Sends the request, again to another endpoint when no answer comes, and gives the client the first good answer.
    pub(super) async fn send_hedged(
        &mut self,
        hedge: &Hedge,
        retry: Option<&RetryPolicy>,
        pool: &Rc<Pool>,
        (way, framing): (Way, Framing),
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<Sent, Reason> {
        let began = Instant::now();
        let key = pool.key(Some(incoming.request), self.downstream.remote.ip());
        let tried = RefCell::new(self.tries.as_ref().map(|tries| tries.tried.clone()).unwrap_or_default());
        let ends = self.downstream.ends;
        let prefer = self.belongs_to();
        let (mut sent, mut launched) = (0, 0);
        let after = hedge.after();
        let most = if after.is_some() { hedge.most } else { 0 };
        let length;
        let won = {
            let Incoming { request, source, responder, .. } = &mut *incoming;
            let request: &Head = request;
            let (body, rest) = source.parts();
            length = body.len();
            let sending = Whole { request, framing, body };
            let leg = |place| -> Leg<'_> { Box::pin(ask(pool, (way, ends, key, prefer), &tried, sending, place)) };
            let mut legs: Vec<(u32, Leg<'_>)> = vec![(0, leg(None))];
            let mut timer = Box::pin(tokio::time::sleep(after.unwrap_or_default()));
            let is_good =
                |answer: &Answer| !retry.is_some_and(|retry| retry.wants(Failure::Code(answer.head.status()), true));
            poll_fn(|cx| {
                if self.watched.has_timed_out() {
                    return Poll::Ready(Err(Reason::Timeout));
                }
                self.watched.keep_waker(cx.waker());
                if responder.poll_reset(cx).is_ready() || rest.poll_gone(cx).is_ready() {
                    return Poll::Ready(Err(Reason::ClientGone));
                }
                loop {
                    let mut index = 0;
                    while index < legs.len() {
                        let Poll::Ready(outcome) = legs[index].1.as_mut().poll(cx) else {
                            index += 1;
                            continue;
                        };
                        let (number, _) = legs.swap_remove(index);
                        match outcome {
                            Ok(answer) if legs.is_empty() || is_good(&answer) => {
                                return Poll::Ready(Ok((number, answer)));
                            }
                            Err(reason) if legs.is_empty() => return Poll::Ready(Err(reason)),
                            // Another one may do better.
                            _ => {}
                        }
                    }
                    if sent >= most || timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let now = Instant::now();
                    let place = pool.hold(Breaker::Retries);
                    let Some(place) = place.ok().filter(|_| pool.cluster.retry_budget.try_retry(now)) else {
                        pool.metrics.retry().hedged(Hedged::Withheld);
                        sent = most;
                        return Poll::Pending;
                    };
                    pool.metrics.retry().hedged(Hedged::Sent);
                    (sent, launched) = (sent + 1, launched + 1);
                    legs.push((sent, leg(place)));
                    timer.as_mut().reset((now + after.unwrap_or_default()).into());
                }
            })
            .await
        };
        if let Some(tries) = &mut self.tries {
            tries.tried = tried.into_inner();
            tries.hedges += launched;
        }
        let (number, Answer { mut lease, parked, body, reusable, mut head, report, sent, _retrying }) = won?;
        if head.status() < 500 {
            hedge.observe(began.elapsed());
        }
        self.received = length as u64;
        if number > 0 {
            pool.metrics.retry().hedged(Hedged::Won);
        }
        std::mem::swap(response, &mut head);
        self.endpoint = Some(lease.address());
        self.endpoint_peer = lease.peer();
        self.upstream = self.at.map(|_| began.elapsed());
        report.answered(response, false);
        if self.look_at_answer(incoming, response) {
            return Ok(Sent::Asked);
        }
        self.watched.begin_answer();
        self.code = response.status();
        let source = lease.parts().0.resume(parked);
        let begun = Begun { source, sink: Sink::Ended, sending: Sending::Done, body, reusable };
        let (after, reusable) = self.pass_on(begun, incoming, Ask::Answer, response, &report).await?;
        *lease.parts().1 = reusable && sent;
        lease.settle(Instant::now());
        Ok(Sent::Done(after))
    }
}

/// A request with its whole body.
#[derive(Clone, Copy)]
struct Whole<'a> {
    request: &'a Head,
    framing: Framing,
    body: &'a [u8],
}

/// Asks one endpoint, up to its answer's head. A kept connection that turns out closed is replaced once.
async fn ask(
    pool: &Rc<Pool>,
    (way, ends, key, prefer): (Way, Ends, Option<u64>, Option<SocketAddr>),
    tried: &RefCell<Vec<SocketAddr>>,
    whole: Whole<'_>,
    retrying: Option<Held>,
) -> Result<Answer, Reason> {
    let mut fresh = false;
    loop {
        let before = tried.borrow().clone();
        let wish = Wish { way, fresh, certain: false, ends, tried: &before, key, prefer };
        let mut lease = pool.checkout(wish).await?;
        let (reused, secure, report) = (lease.reused, lease.is_secure(), lease.report());
        tried.borrow_mut().push(lease.address());
        let (link, keep) = lease.parts();
        *keep = false;
        let outcome = match link.open(whole.request, whole.framing, secure, Ask::Answer) {
            Ok(Up { mut sink, mut receiver }) => {
                let mut head = Box::new(Head::default());
                let mut source = Source::Own(whole.body);
                // How the sending went, and what came.
                let (mut sent, mut got) = (None, None);
                let answer = poll_fn(|cx| {
                    if sent.is_none()
                        && let Poll::Ready(outcome) = poll_pump(cx, &mut source, &mut sink, |_| {}, &mut None)
                    {
                        // An endpoint that takes no more may have answered.
                        sent = Some(outcome.is_ok());
                    }
                    while got.is_none() {
                        match receiver.poll_head(cx, &mut head) {
                            Poll::Ready(Ok(Got::Response(body, reusable))) => got = Some((body, reusable)),
                            // Interim ones of several answers would be of no use to the client.
                            Poll::Ready(Ok(Got::Informational)) => {}
                            Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                    match (got, sent) {
                        (Some((body, reusable)), Some(sent)) => Poll::Ready(Ok((body, reusable, sent))),
                        _ => Poll::Pending,
                    }
                });
                let answer: Result<_, Reason> = answer.await;
                answer.map(|answer| (answer, receiver.park(), head))
            }
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok(((body, reusable, sent), parked, head)) => {
                return Ok(Answer { lease, parked, body, reusable, head, report, sent, _retrying: retrying });
            }
            Err(Reason::Reset | Reason::Refused | Reason::Unseen) if reused && !fresh => {
                fresh = true;
                // It may be asked again: the connection was to blame.
                tried.borrow_mut().pop();
            }
            Err(reason) => {
                report.failed(reason);
                return Err(reason);
            }
        }
    }
}
