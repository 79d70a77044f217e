//! One try of a request: on one connection, to the response's end.
//!
//! In: a connection, a request's head and its body as it comes. Out: the endpoint's response at
//! the client, or a tunnel. Promise: what breaks off is never ended as if it were whole; a
//! try is given up for another only while the endpoint cannot have acted on it.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Instant;

use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Head};

use super::note::{grpc_status, is_grpc};
use super::{After, Exchange, Incoming, Try};
use crate::body::{Broken, Sink, Source, Waiting, poll_pump};
use crate::error::Reason;
use crate::pool::{Lease, Report};
use crate::upstream::{Ask, Got, Receiver, Up};
use crate::watch::Order;
use crate::{headers, upgrade};

impl Exchange {
    /// Sends the request on one connection and gives the client what comes back.
    pub(super) async fn attempt(
        &mut self,
        lease: &mut Lease,
        incoming: &mut Incoming<'_>,
        framing: Framing,
        ask: Ask,
        response: &mut Head,
    ) -> Result<Try, Reason> {
        let reused = lease.reused;
        // Only the access log tells it, and asking for the time costs.
        let began = self.at.map(|_| Instant::now());
        let (secure, report) = (lease.is_secure(), lease.report());
        if self.chose_http2 {
            headers::tell_protocol(incoming.request, lease.is_kin());
        }
        let (link, keep) = lease.parts();
        *keep = false;
        let Up { mut sink, mut receiver } = match link.open(incoming.request, framing, secure, ask) {
            // The connection ended just now, so nothing of the request went out.
            Err(Reason::Reset) => return Ok(Try::Unseen),
            up => up?,
        };
        let over_http2 = matches!(receiver, Receiver::H2 { .. });
        if !matches!(framing, Framing::Empty) && (over_http2 || (reused && may_be_repeated(incoming.request))) {
            incoming.source.keep();
        }
        // What a client sends before its upgrade was agreed to must not reach the endpoint as a request.
        let mut sending = if ask == Ask::Answer { Sending::On } else { Sending::Held };
        let head = poll_fn(|cx| self.poll_answer(cx, incoming, &mut sink, &mut receiver, &mut sending, response)).await;
        let (body, mut reusable) = match head {
            Ok(head) => head,
            // Should the endpoint close a kept connection just now, a request that may be repeated ([RFC 9110], 9.2.2)
            // is sent again, as long as its body is in hand. One that was refused was surely not acted on.
            Err(reason @ (Reason::Reset | Reason::Refused))
                if (reason == Reason::Refused || (reused && may_be_repeated(incoming.request)))
                    && (self.received == 0 || incoming.source.rewind()) =>
            {
                self.received = 0;
                return Ok(Try::Stale(reason));
            }
            Err(Reason::Unseen) if self.received == 0 || incoming.source.rewind() => {
                self.received = 0;
                return Ok(Try::Unseen);
            }
            Err(reason) => {
                report.failed(reason);
                return Err(reason);
            }
        };
        self.upstream = began.map(|began| began.elapsed());
        report.answered(response, is_grpc(response));
        if self.tries.is_some() && self.look_at_answer(incoming, response) {
            // The connection is kept when the rest of this answer came with its head; nobody waits for it.
            let mut rest = receiver.into_source();
            let (mut nowhere, mut none) = (Sink::Ended, None);
            let drained = poll_fn(|cx| Poll::Ready(poll_pump(cx, &mut rest, &mut nowhere, |_| {}, &mut none)));
            reusable &= matches!(drained.await, Poll::Ready(Ok(()))) && sending == Sending::Done;
            drop((rest, sink));
            *lease.parts().1 = reusable;
            return Ok(Try::Asked);
        }
        self.watched.begin_answer();
        self.code = response.status();

        if ask != Ask::Answer && upgrade::is_agreed(ask, over_http2, response.status()) {
            upgrade::translate(incoming.request, ask, over_http2, incoming.responder.is_http2(), response);
            return self.tunnel(sink, receiver, incoming, response).await;
        }
        let begun = Begun { source: receiver.into_source(), sink, sending, body, reusable };
        let (after, reusable) = self.pass_on(begun, incoming, ask, response, &report).await?;
        *lease.parts().1 = reusable;
        Ok(Try::Done(after))
    }

    /// Gives the client an answer whose head has come, while the rest of the request goes on. Returns what becomes of the
    /// client's connection, and whether the endpoint's may carry another request.
    pub(super) async fn pass_on(
        &mut self,
        begun: Begun<'_>,
        incoming: &mut Incoming<'_>,
        ask: Ask,
        response: &mut Head,
        report: &Report,
    ) -> Result<(After, bool), Reason> {
        let Begun { mut source, mut sink, mut sending, mut body, reusable } = begun;
        self.leave_crowd();
        if response.status() == 101 {
            return Err(Reason::Protocol("it switched protocols unasked"));
        }
        // What must be upgraded to is what 426 tells ([RFC 9110], 15.5.22); upgrades pass us, so it is true.
        let needed = if response.status() == 426 { response.get(FieldId::Upgrade).map(<[u8]>::to_vec) } else { None };
        headers::strip_hop_by_hop(response);
        if let Some(needed) = needed {
            response.push("Connection", b"Upgrade");
            response.push("Upgrade", &needed);
        }
        headers::via(response, &self.snapshot.forwarded, response.version());
        if self.tries.is_some() {
            self.tell_limits(response);
        }
        if let Some(heads) = self.line.as_mut().and_then(|line| line.heads.as_mut()) {
            source = heads.tap_response(source);
        }
        if self.filtered.any {
            self.change_response(incoming.request, response);
            (body, source) = self.code_answer(incoming.request, response, body, source);
        }
        if self.session.is_some() {
            self.tell_session(response);
        }
        self.keep_response(response);
        self.answered = true;
        // A drained connection ends with this response, and so does one on which bytes of a tunnel may have been sent.
        let mut keep_client = self.watched.order() == Order::None && ask != Ask::Connect;
        let mut down = incoming.responder.respond(response, body, &mut keep_client).map_err(|_| Reason::ClientGone)?;
        let mut relay = |this: &mut Self, cx: &mut Context<'_>| {
            let mut waiting = None;
            let outcome = poll_pump(cx, &mut source, &mut down, |count| this.sent += count as u64, &mut waiting);
            this.watched.answer_waits(waiting.filter(|_| outcome.is_pending()), this.received + this.sent);
            match outcome {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(Broken::Gone)) => return Poll::Ready(Err(Reason::Reset)),
                Poll::Ready(Err(Broken::Invalid(why))) => return Poll::Ready(Err(Reason::Protocol(why))),
                Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::ClientGone)),
                Poll::Pending => {}
            }
            if down.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientGone));
            }
            if sending == Sending::Done {
                return incoming.source.poll_gone(cx).map(|()| Err(Reason::ClientGone));
            }
            if sending == Sending::On
                && let Poll::Ready(Err(reason)) = this.poll_send(cx, incoming, &mut sink, &mut sending)
            {
                return Poll::Ready(Err(reason));
            }
            Poll::Pending
        };
        let outcome = poll_fn(|cx| match relay(self, cx) {
            Poll::Pending if self.tries.is_some() => self.mind_idle(),
            outcome => outcome,
        })
        .await;
        self.watched.answer_waits(None, self.received + self.sent);
        if let Err(reason) = outcome {
            down.abort(h2::Reason::INTERNAL_ERROR);
            self.reason = Some(reason);
            report.failed(reason);
            if let Sink::H1(_) = down {
                // What came is given to the client, but no end.
                let _ = self.in_time(pin!(poll_fn(|cx| down.poll_flush(cx)))).await;
            }
            return Err(reason);
        }
        self.grpc_status = grpc_status(response, &source);
        report.ended(self.grpc_status);
        let whole = sending == Sending::Done || (sending == Sending::Held && incoming.source.is_ended());
        let after = match (whole, keep_client) {
            (false, _) => After::Linger,
            (true, true) => After::Go,
            (true, false) => After::Close,
        };
        Ok((after, reusable && whole))
    }

    /// Sends the request and waits for the response's head.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming<'_>,
        sink: &mut Sink<'_>,
        receiver: &mut Receiver<'_>,
        sending: &mut Sending,
        response: &mut Head,
    ) -> Poll<Result<(Framing, bool), Reason>> {
        if self.watched.has_timed_out() {
            // Whose turn was it?
            let client = self.watched.is_request_awaited();
            return Poll::Ready(Err(if client { Reason::ClientSlow } else { Reason::Timeout }));
        }
        self.watched.keep_waker(cx.waker());
        if *sending == Sending::Held {
            let _ = sink.poll_flush(cx);
        }
        if *sending == Sending::On
            && let Poll::Ready(Err(reason)) = self.poll_send(cx, incoming, sink, sending)
        {
            return Poll::Ready(Err(reason));
        }
        loop {
            match receiver.poll_head(cx, response) {
                Poll::Ready(Ok(Got::Response(framing, keep))) => return Poll::Ready(Ok((framing, keep))),
                Poll::Ready(Ok(Got::Informational)) => {
                    headers::strip_hop_by_hop(response);
                    incoming.responder.inform(response);
                }
                Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                Poll::Pending => break,
            }
        }
        let _ = incoming.responder.poll_flush(cx);
        if incoming.responder.poll_reset(cx).is_ready()
            || (*sending == Sending::Done && incoming.source.poll_gone(cx).is_ready())
        {
            return Poll::Ready(Err(Reason::ClientGone));
        }
        Poll::Pending
    }

    /// Sends what there is of the request's body.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        incoming: &mut Incoming<'_>,
        sink: &mut Sink<'_>,
        sending: &mut Sending,
    ) -> Poll<Result<(), Reason>> {
        let mut waiting = None;
        let moved = |count| self.received += count as u64;
        let outcome = poll_pump(cx, &mut incoming.source, sink, moved, &mut waiting);
        self.watched.request_waits(waiting.filter(|_| outcome.is_pending()), self.received + self.sent);
        if self.is_too_large(self.received) {
            return Poll::Ready(Err(Reason::BodyTooLarge));
        }
        match outcome {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                *sending = Sending::Done;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Broken::Gone)) => Poll::Ready(Err(Reason::ClientGone)),
            Poll::Ready(Err(Broken::Invalid(why))) => Poll::Ready(Err(Reason::BadRequest(why))),
            Poll::Ready(Err(Broken::Refused)) => {
                // The endpoint takes no more, but may have answered; reading tells.
                *sending = Sending::Refused;
                Poll::Pending
            }
        }
    }

    /// Makes the exchange a tunnel.
    async fn tunnel(
        &mut self,
        sink: Sink<'_>,
        receiver: Receiver<'_>,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<Try, Reason> {
        let after = self.carry(sink.into_tunnel(), receiver.into_tunnel(), incoming, response).await?;
        Ok(Try::Done(after))
    }

    /// Tells the client that it has a tunnel, and carries bytes both ways until both ends have ended their direction.
    /// What breaks off on one side is broken off on the other.
    pub(super) async fn carry(
        &mut self,
        mut up: Sink<'_>,
        mut from_endpoint: Source<'_>,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<After, Reason> {
        self.leave_crowd();
        self.answered = true;
        let mut down = incoming.responder.tunnel(response).map_err(|_| Reason::ClientGone)?;
        self.code = response.status();
        self.keep_response(response);
        incoming.source.become_tunnel();
        let (mut there, mut back) = (false, false);
        if let Some(about) = self.watched.about() {
            about.tunnels();
        }
        self.watched.be_patient();
        let outcome = poll_fn(|cx| {
            let (mut on_endpoint, mut on_client) = (None, None);
            if !there {
                let moved = |count| {
                    self.received += count as u64;
                    self.watched.be_patient();
                };
                match poll_pump(cx, &mut incoming.source, &mut up, moved, &mut on_endpoint) {
                    Poll::Ready(Ok(())) => there = true,
                    Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::Reset)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Pending => {}
                }
            }
            if !back {
                let moved = |count| {
                    self.sent += count as u64;
                    self.watched.be_patient();
                };
                match poll_pump(cx, &mut from_endpoint, &mut down, moved, &mut on_client) {
                    Poll::Ready(Ok(())) => back = true,
                    Poll::Ready(Err(Broken::Refused)) => return Poll::Ready(Err(Reason::ClientGone)),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::Reset)),
                    Poll::Pending => {}
                }
            }
            self.watched.hold([on_endpoint, on_client].contains(&Some(Waiting::ForSink)));
            if there && back { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await;
        let Err(reason) = outcome else { return Ok(After::Close) };
        self.reason = Some(reason);
        up.break_off();
        down.break_off();
        Ok(After::BreakOff)
    }
}

/// An answer whose head has come, and the request it is for.
pub(super) struct Begun<'a> {
    /// Where the answer comes from, and how it is framed.
    pub(super) source: Source<'a>,
    pub(super) body: Framing,
    /// Where the request goes, and how far it is.
    pub(super) sink: Sink<'a>,
    pub(super) sending: Sending,
    /// The connection may carry another request.
    pub(super) reusable: bool,
}

/// How far the request's sending is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    On,
    Done,
    /// It waits for the endpoint's consent.
    Held,
    /// The endpoint takes no more.
    Refused,
}

/// Whether sending a request twice does what sending it once does: by its method, or because its sender says that the
/// receiver will know it again.
pub(super) fn may_be_repeated(request: &Head) -> bool {
    request.method().is_idempotent()
        || request.get_named("idempotency-key").is_some()
        || request.get_named("x-idempotency-key").is_some()
}
