//! Answers of our own: why a request was not forwarded.
//!
//! In: a reason. Out: a response in the client's terms, plain text or a gRPC status. Promise: a
//! connection on which it is not clear where the next request begins is not used again.

use std::borrow::Cow;
use std::future::poll_fn;
use std::time::Instant;

use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Head, Method, Version};

use super::note::is_grpc;
use super::{After, Exchange, Incoming};
use crate::body::{Source, Waiting, poll_pump};
use crate::error::{Fault, Reason};
use crate::watch::Order;

impl Exchange {
    /// Answers that the request was not forwarded, and why.
    pub(super) async fn refuse(&mut self, reason: Reason, incoming: &mut Incoming<'_>, response: &mut Head) -> After {
        let status = reason.status();
        self.code = status.as_u16();
        self.reason = Some(reason);
        if reason.fault() != Fault::Downstream {
            let (route, cluster) = (self.route_name(), self.cluster_name());
            let endpoint = self.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
            let retry_safe = reason.safe_to_retry();
            tracing::debug!(component = "proxy", route, cluster, endpoint, retry_safe, %reason, "request failed");
        }
        if reason == Reason::ClientGone {
            return After::Reset;
        }
        if reason == Reason::ClientSlow {
            let peer = self.downstream.peer.as_ref().map_or("", |peer| peer.id.as_str());
            self.downstream.local.cut("body_timeout", self.downstream.remote, peer);
        }
        if incoming.responder.is_http2() && is_grpc(incoming.request) {
            return self.refuse_grpc(reason, incoming, response);
        }
        let mut body = format!("{reason}\n").into_bytes();
        let told = self.tries.as_mut().map(|tries| std::mem::take(&mut tries.body));
        let told = told.filter(|told| reason == Reason::OverGlobalLimit && !told.is_empty());
        body = told.unwrap_or(body);
        own_response(response, status, body.len());
        let typed = |(name, _): &(Cow<'static, str>, Vec<u8>)| name.eq_ignore_ascii_case("content-type");
        if self.tries.as_ref().is_some_and(|tries| tries.fields.iter().any(typed)) {
            // The service says what its body is.
            response.remove(FieldId::ContentType);
        }
        if reason.is_overload() {
            self.watched.refused.set(self.watched.refused.get().saturating_add(1));
            response.push("X-Envoy-Overloaded", b"true");
        }
        if reason == Reason::UnsupportedCoding {
            // What may be used instead ([RFC 9110], 15.5.16).
            self.tell_codings(response);
        }
        self.tell_limits(response);
        self.tell_reason(reason, response);
        self.answer(incoming, response, &body, !matches!(reason, Reason::BadRequest(_) | Reason::ClientSlow)).await
    }

    /// Gives the client an answer of our own, whose length stands in its head. `keep` is whether the connection may go on.
    pub(super) async fn answer(
        &mut self,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
        body: &[u8],
        keep: bool,
    ) -> After {
        self.code = response.status();
        self.change_response(incoming.request, response);
        let bytes: &[u8] = if incoming.request.method() == Method::Head { &[] } else { body };
        let framing = if body.is_empty() { Framing::Empty } else { Framing::Length(body.len() as u64) };
        let (mut framing, mut source) = (framing, Source::Own(bytes));
        if self.filtered.any {
            (framing, source) = self.code_answer(incoming.request, response, framing, source);
        }
        self.keep_response(response);
        // Where the body's end is not known, the next request's beginning is not either.
        let whole = incoming.source.is_ended();
        let mut keep =
            keep && incoming.request.method() != Method::Connect && whole && self.watched.order() == Order::None;
        let Ok(mut sink) = incoming.responder.respond(response, framing, &mut keep) else { return After::Reset };
        self.watched.begin(Instant::now());
        self.watched.answer_waits(Some(Waiting::ForSink), 0);
        let sent = poll_fn(|cx| poll_pump(cx, &mut source, &mut sink, |count| self.sent += count as u64, &mut None));
        let sent = sent.await;
        self.watched.answer_waits(None, 0);
        match (sent, whole, keep) {
            (Err(_), ..) => After::Reset,
            // Whom we have waited for long enough we do not wait for any longer.
            (Ok(()), false, _) if self.reason == Some(Reason::ClientSlow) => After::Close,
            (Ok(()), false, _) => After::Linger,
            (Ok(()), true, true) => After::Go,
            (Ok(()), true, false) => After::Close,
        }
    }

    /// Names the reason to the client, where the listener says so.
    fn tell_reason(&self, reason: Reason, response: &mut Head) {
        if self.snapshot.forwarded.reason && !reason.flag().is_empty() {
            response.push("x-outrigger-reason", reason.flag().as_bytes());
        }
    }

    /// Answers in gRPC's own terms: a status in a head that is also the end ([gRPC over HTTP/2], `Trailers-Only`).
    ///
    /// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
    fn refuse_grpc(&mut self, reason: Reason, incoming: &mut Incoming<'_>, response: &mut Head) -> After {
        let status = reason.grpc_status();
        self.code = http::StatusCode::OK.as_u16();
        self.grpc_status = Some(status);
        response.clear();
        response.set_version(Version::Http2);
        response.set_status(self.code);
        response.push("content-type", b"application/grpc");
        response.push("grpc-status", itoa::Buffer::new().format(status).as_bytes());
        // All reasons are plain ASCII without `%`, which the field would need escaped.
        response.push("grpc-message", reason.to_string().as_bytes());
        self.tell_limits(response);
        self.tell_reason(reason, response);
        self.change_response(incoming.request, response);
        self.keep_response(response);
        match incoming.responder.respond(response, Framing::Empty, &mut true) {
            Ok(_) if incoming.source.is_ended() => After::Go,
            Ok(_) => After::Linger,
            Err(_) => After::Reset,
        }
    }
}

/// A response of our own: plain text of so many bytes.
pub(crate) fn own_response(head: &mut Head, status: http::StatusCode, length: usize) {
    head.clear();
    head.set_version(Version::Http11);
    head.set_status(status.as_u16());
    head.set_reason(status.canonical_reason().unwrap_or_default().as_bytes());
    head.push("Content-Type", b"text/plain; charset=utf-8");
    head.push("Content-Length", itoa::Buffer::new().format(length).as_bytes());
}
