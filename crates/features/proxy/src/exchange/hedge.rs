//! Hedging: a request whose answer lets itself be waited for is asked for at another endpoint, too.
//!
//! In: a request without a body that may be repeated. Out: the first good answer. Promise: a further
//! request comes only after its time and within the cluster's retry budget; as soon as one answer is
//! taken the others are given up; an answer that the route would try again is taken only when there
//! is no other to wait for.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use outrigger_traffic::{Failure, RetryPolicy};
use outrigger_wire::h1::Framing;
use outrigger_wire::head::Head;

use super::attempt::{Begun, Sending, may_be_repeated};
use super::{Exchange, Incoming, Sent};
use crate::body::Sink;
use crate::dial::Ends;
use crate::error::Reason;
use crate::metrics::Hedged;
use crate::pool::{Lease, Pool, Report, Way, Wish};
use crate::upstream::{Ask, Got, Parked, Up};

/// A route's `hedge`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hedge {
    /// After so long without an answer another one is asked.
    pub(crate) after: Duration,
    /// So many at most, beyond the first.
    pub(crate) most: u32,
}

/// An answer whose head has come.
struct Answer {
    lease: Lease,
    parked: Parked,
    body: Framing,
    reusable: bool,
    head: Box<Head>,
    report: Report,
}

type Leg<'a> = Pin<Box<dyn Future<Output = Result<Answer, Reason>> + 'a>>;

impl Hedge {
    /// Whether a request is one that may be asked for twice.
    pub(super) fn is_for(request: &Head, framing: Framing, ask: Ask) -> bool {
        ask == Ask::Answer && matches!(framing, Framing::Empty) && may_be_repeated(request)
    }
}

impl Exchange {
    /// Sends the request, again to another endpoint when no answer comes, and gives the client the first good answer.
    pub(super) async fn send_hedged(
        &mut self,
        hedge: Hedge,
        retry: Option<&RetryPolicy>,
        pool: &Rc<Pool>,
        way: Way,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<Sent, Reason> {
        let began = Instant::now();
        let key = pool.key(Some(incoming.request), self.downstream.remote.ip());
        let tried = RefCell::new(self.tries.as_ref().map(|tries| tries.tried.clone()).unwrap_or_default());
        let ends = self.downstream.ends;
        let (mut sent, mut launched) = (0, 0);
        let won = {
            let Incoming { request, source, responder, .. } = &mut *incoming;
            let request: &Head = request;
            let leg = || -> Leg<'_> { Box::pin(ask(pool, way, ends, key, &tried, request)) };
            let mut legs: Vec<(u32, Leg<'_>)> = vec![(0, leg())];
            let mut timer = Box::pin(tokio::time::sleep(hedge.after));
            let is_good =
                |answer: &Answer| !retry.is_some_and(|retry| retry.wants(Failure::Code(answer.head.status()), true));
            poll_fn(|cx| {
                if self.watched.has_timed_out() {
                    return Poll::Ready(Err(Reason::Timeout));
                }
                self.watched.keep_waker(cx.waker());
                if responder.poll_reset(cx).is_ready() || source.poll_gone(cx).is_ready() {
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
                    if sent >= hedge.most || timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let now = Instant::now();
                    if !pool.cluster.retry_budget.try_retry(now) {
                        pool.metrics.retry().hedged(Hedged::Withheld);
                        sent = hedge.most;
                        return Poll::Pending;
                    }
                    pool.metrics.retry().hedged(Hedged::Sent);
                    (sent, launched) = (sent + 1, launched + 1);
                    legs.push((sent, leg()));
                    timer.as_mut().reset((now + hedge.after).into());
                }
            })
            .await
        };
        if let Some(tries) = &mut self.tries {
            tries.tried = tried.into_inner();
            tries.hedges += launched;
        }
        let (number, Answer { mut lease, parked, body, reusable, mut head, report }) = won?;
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
        *lease.parts().1 = reusable;
        lease.settle();
        Ok(Sent::Done(after))
    }
}

/// Asks one endpoint, up to its answer's head. A kept connection that turns out closed is replaced once.
async fn ask(
    pool: &Rc<Pool>,
    way: Way,
    ends: Ends,
    key: Option<u64>,
    tried: &RefCell<Vec<SocketAddr>>,
    request: &Head,
) -> Result<Answer, Reason> {
    let mut fresh = false;
    loop {
        let before = tried.borrow().clone();
        let wish = Wish { way, fresh, certain: false, ends, tried: &before, key };
        let mut lease = pool.checkout(wish).await?;
        let (reused, secure, report) = (lease.reused, lease.is_secure(), lease.report());
        tried.borrow_mut().push(lease.address());
        let (link, keep) = lease.parts();
        *keep = false;
        let outcome = match link.open(request, Framing::Empty, secure, Ask::Answer) {
            Ok(Up { mut sink, mut receiver }) => {
                let mut head = Box::new(Head::default());
                let answer = poll_fn(|cx| {
                    let _ = sink.poll_flush(cx);
                    loop {
                        // Interim ones of several answers would be of no use to the client.
                        if let Got::Response(body, reusable) = ready!(receiver.poll_head(cx, &mut head))? {
                            return Poll::Ready(Ok((body, reusable)));
                        }
                    }
                });
                let answer: Result<_, Reason> = answer.await;
                answer.map(|(body, reusable)| (body, reusable, receiver.park(), head))
            }
            Err(reason) => Err(reason),
        };
        match outcome {
            Ok((body, reusable, parked, head)) => return Ok(Answer { lease, parked, body, reusable, head, report }),
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
