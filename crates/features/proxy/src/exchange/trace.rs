//! The trace of a request: carried on to the next hop, and told by a span at the end.
//!
//! In: a request's propagation fields. Out: the same trace with our span as the parent of
//! what follows; a span, when the trace is kept or the end asks for it, and one below it for
//! each try of a request that was sent again. Promise: a slow or failed request has its span
//! on every hop that saw it so, and these spans hang together, for ids are passed on whether
//! a trace is kept or not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outrigger_telemetry::trace::{
    Decision, Fields, Kind, Outcome, SpanId, SpanWriter, TraceContext, TraceId, extract, inject,
};
use outrigger_wire::head::{Head, Version};

use super::Exchange;
use super::note::Line;
use crate::error::{Fault, Reason};

/// A request's place in its trace.
pub(super) struct Traced {
    pub(super) trace: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    keep: bool,
    /// The caller's flags.
    flags: u8,
}

/// What became of one try.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcomes {
    pub(super) code: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) reason: Option<Reason>,
}

/// A try that another one followed.
pub(super) struct TryTold {
    span: SpanId,
    began: Instant,
    took: Duration,
    endpoint: Option<SocketAddr>,
    outcome: Outcomes,
}

/// Statuses of gRPC that tell of the server's failure.
const FAILURES: [u8; 6] = [2, 4, 12, 13, 14, 15];
/// Bytes that an IPv6 address takes as text.
const MOST_ADDRESS: usize = 45;

impl Exchange {
    /// Finds out whose trace the request is of, and tells the next hop.
    pub(super) fn begin_trace(&mut self, request: &mut Head) {
        let Some(tracing) = &self.snapshot.tracing else { return };
        let caller: Option<TraceContext> = extract(&Once(request), &tracing.propagators);
        let trace = caller.map_or_else(TraceId::random, |caller| caller.trace);
        let keep = tracing.sampler.decide(trace, caller.as_ref(), self.started) == Decision::Keep;
        let span = SpanId::random();
        if caller.is_none() && request.get_named("tracestate").is_some() {
            // It is of a trace that nobody can tell.
            request.remove_named("tracestate");
        }
        let flags = caller.map_or(0, |caller| caller.flags);
        inject(trace, span, keep, flags, &tracing.propagators, |name, value| match value {
            Some(value) => request.set(name, value),
            None => request.remove_named(name),
        });
        self.trace = Some(Traced { trace, span, parent: caller.and_then(|caller| caller.parent), keep, flags });
    }

    /// Notes a try that another one follows, and tells the next hop of that one's span. The first try's next hop was told of
    /// the request's own, for nobody knows before that there will be several.
    pub(super) fn trace_next_try(&mut self, request: &mut Head, outcome: Outcomes) {
        let (Some(traced), Some(tracing), Some(tries)) = (&self.trace, &self.snapshot.tracing, &mut self.tries) else {
            return;
        };
        let span = tries.span.replace(SpanId::random()).unwrap_or_else(SpanId::random);
        let (began, took) = (tries.began, tries.began.elapsed());
        tries.told.push(TryTold { span, began, took, endpoint: self.endpoint, outcome });
        if let Some(next) = tries.span {
            inject(traced.trace, next, traced.keep, traced.flags, &tracing.propagators, |name, value| match value {
                Some(value) => request.set(name, value),
                None => request.remove_named(name),
            });
        }
    }

    /// Writes the span, when it is wanted; tells the trace then.
    pub(super) fn end_trace(&self, duration: Duration, code: u16) -> Option<TraceId> {
        let (Some(traced), Some(tracing)) = (&self.trace, &self.snapshot.tracing) else { return None };
        let failed = self.has_failed(code);
        let slow = !tracing.slow.is_zero() && duration >= tracing.slow;
        if traced.keep || (failed && tracing.errors) || slow {
            tracing.queue.push(|out| self.write_span(out, traced, duration, code, failed));
            if let Some(tries) = self.tries.as_ref().filter(|tries| !tries.told.is_empty()) {
                let (began, outcome) =
                    (tries.began, Outcomes { code, grpc_status: self.grpc_status, reason: self.reason });
                let took = (self.started + duration).saturating_duration_since(began);
                let last = tries.span.map(|span| TryTold { span, began, took, endpoint: self.endpoint, outcome });
                for (number, one) in tries.told.iter().chain(&last).enumerate() {
                    tracing.queue.push(|out| self.write_try(out, traced, number as u64, one));
                }
            }
            return Some(traced.trace);
        }
        None
    }

    /// Whether the server's side failed, as OpenTelemetry's conventions for HTTP and gRPC servers have it.
    fn has_failed(&self, code: u16) -> bool {
        code >= 500
            || self.reason.is_some_and(|reason| reason.fault() != Fault::Downstream)
            || self.grpc_status.is_some_and(|status| FAILURES.contains(&status))
    }

    /// The span of one try, below the request's.
    fn write_try(&self, out: &mut Vec<u8>, traced: &Traced, number: u64, one: &TryTold) {
        let (Some(line), Some(at)) = (&self.line, self.at) else { return };
        let name = [line.method.as_str(), self.route_name()];
        let mut span = SpanWriter::begin(out, traced.trace, one.span, Some(traced.span), name, Kind::Client);
        span.times(at + one.began.saturating_duration_since(self.started), one.took);
        span.text("http.request.method", line.method.as_bytes());
        span.text("url.path", line.path.as_bytes());
        if number > 0 {
            span.number("http.request.resend_count", number);
        }
        let Outcomes { code, grpc_status, reason } = one.outcome;
        if code > 0 {
            span.number("http.response.status_code", code.into());
        }
        if let Some(status) = grpc_status {
            span.number("rpc.grpc.status_code", status.into());
        }
        let mut address = [0; MOST_ADDRESS];
        if let Some(endpoint) = one.endpoint {
            span.text("network.peer.address", told(&mut address, endpoint.ip()));
            span.number("network.peer.port", endpoint.port().into());
        }
        span.text("outrigger.cluster", self.cluster_name().as_bytes());
        if let Some(reason) = reason {
            span.text("error.type", reason.flag().as_bytes());
        }
        let failed = code >= 500 || reason.is_some() || grpc_status.is_some_and(|status| FAILURES.contains(&status));
        let outcome = if failed { Outcome::Error } else { Outcome::Unset };
        match reason {
            Some(reason) => span.end(outcome, &reason.to_string()),
            None => span.end(outcome, ""),
        }
    }

    fn write_span(&self, out: &mut Vec<u8>, traced: &Traced, duration: Duration, code: u16, failed: bool) {
        let (Some(line), Some(at)) = (&self.line, self.at) else { return };
        let shared = &self.downstream.local.shared;
        let kind = if shared.direction == "inbound" { Kind::Server } else { Kind::Client };
        let name = [line.method.as_str(), self.route_name()];
        let mut span = SpanWriter::begin(out, traced.trace, traced.span, traced.parent, name, kind);
        span.times(at, duration);
        span.text("http.request.method", line.method.as_bytes());
        span.text("url.scheme", if self.downstream.secure { b"https" } else { b"http" });
        span.text("url.path", line.path.as_bytes());
        span.text("server.address", &line.host);
        span.text("network.protocol.version", version(line));
        span.text("user_agent.original", &line.user_agent);
        if code > 0 {
            span.number("http.response.status_code", code.into());
        }
        if let Some(status) = self.grpc_status {
            span.number("rpc.grpc.status_code", status.into());
        }
        span.number("http.request.body.size", self.received);
        span.number("http.response.body.size", self.sent);
        let mut address = [0; MOST_ADDRESS];
        span.text("client.address", told(&mut address, self.downstream.remote.ip()));
        if let Some(endpoint) = self.endpoint {
            span.text("network.peer.address", told(&mut address, endpoint.ip()));
            span.number("network.peer.port", endpoint.port().into());
        }
        for (key, value) in [
            ("outrigger.listener", shared.name.as_str()),
            ("outrigger.route", self.route_name()),
            ("outrigger.cluster", self.cluster_name()),
            ("outrigger.peer", self.peer_name()),
        ] {
            span.text(key, value.as_bytes());
        }
        span.text("outrigger.request_id", &line.request_id);
        if let Some(upstream) = self.upstream {
            span.number("outrigger.upstream_us", u64::try_from(upstream.as_micros()).unwrap_or(u64::MAX));
        }
        if let Some(again) =
            self.tries.as_ref().map(|tries| tries.attempts.saturating_sub(1)).filter(|again| *again > 0)
        {
            span.number("http.request.resend_count", again.into());
        }
        if let Some(reason) = self.reason {
            span.text("error.type", reason.flag().as_bytes());
        }
        let outcome = if failed { Outcome::Error } else { Outcome::Unset };
        match self.reason.filter(|_| failed) {
            Some(reason) => span.end(outcome, &reason.to_string()),
            None => span.end(outcome, ""),
        }
    }
}

fn version(line: &Line) -> &'static [u8] {
    match line.version {
        Version::Http10 => b"1.0",
        Version::Http11 => b"1.1",
        Version::Http2 => b"2",
    }
}

/// An address as text, without allocating.
fn told(room: &mut [u8; MOST_ADDRESS], address: std::net::IpAddr) -> &[u8] {
    use std::io::Write;
    let mut rest = &mut room[..];
    let _ = write!(rest, "{address}");
    let length = MOST_ADDRESS - rest.len();
    &room[..length]
}

/// A request's fields, of which those that came twice say nothing.
struct Once<'a>(&'a Head);

impl Fields for Once<'_> {
    fn once(&self, name: &'static str) -> Option<&[u8]> {
        let mut values = self.0.get_all_named(name);
        values.next().filter(|_| values.next().is_none())
    }
}
