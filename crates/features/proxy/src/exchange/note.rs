//! What is noted of a request at its end: metrics, and a line of the access log.
//!
//! Promise: every request is noted once, also one that is dropped under way; without a log
//! nothing is copied for it, and with one a line's memory is used again by the next.

use std::cell::RefCell;
use std::time::Instant;

use outrigger_wire::head::{FieldId, Head, Version};

use super::Exchange;
use crate::access_log::{AccessLog, Entry, Kept};
use crate::body::Source;
use crate::error::Reason;
use crate::judge;
use crate::metrics::{RequestKey, RequestNames};
use crate::route::Route;
use crate::tap::Heads;
use crate::watch::{Order, Phase};

impl Exchange {
    pub(super) fn note(&mut self, now: Instant) {
        self.noted = true;
        self.reason = match (self.reason, self.watched.order()) {
            // It did not go by itself.
            (Some(Reason::ClientGone), Order::Cut("drain")) => Some(Reason::Stopped),
            (Some(Reason::ClientGone), Order::Cut("memory")) => Some(Reason::MemoryShort),
            (Some(Reason::ClientGone), Order::Cut(_)) => Some(Reason::ClientSlow),
            (reason, _) => reason,
        };
        if self.awaits {
            self.end_in_crowd(now);
        }
        let local = &self.downstream.local;
        local.metrics.in_flight.dec();
        self.place = None;
        self.watched.enter(Phase::Idle, now);
        let duration = now - self.started;
        // A client that went away before the response's headers has seen no code: 0.
        let code = if self.reason == Some(Reason::ClientGone) && !self.answered { 0 } else { self.code };
        let key = RequestKey {
            route: self.route().map_or(u64::MAX, |route| route.id),
            cluster: self.pool.as_ref().map_or(u64::MAX, |pool| pool.cluster.id),
            code,
            peer: self.peer_number(),
        };
        let names = RequestNames { route: self.route_name(), cluster: self.cluster_name(), peer: self.peer_name() };
        let traced = self.end_trace(duration, code);
        local.metrics.request(key, &names, duration, traced.zip(self.at));
        if let Some(flag) = self.reason.map(Reason::flag).filter(|flag| !flag.is_empty()) {
            local.metrics.flag(key, &names, flag);
        }
        if let Some(status) = self.grpc_status {
            local.metrics.grpc(key, &names, status);
        }
        let tapped = self.snapshot.taps.are_on();
        if let (Some(line), Some(at)) = (&self.line, self.at)
            && (tapped || self.snapshot.access_log.is_some())
        {
            let entry = Entry {
                started: at,
                duration,
                upstream: self.upstream,
                direction: local.shared.direction,
                listener: &local.shared.name,
                method: &line.method,
                host: &line.host,
                // Without the query: tokens and names are found there.
                path: &line.path,
                protocol: line.version.as_str(),
                code,
                reason: self.reason,
                bytes_received: self.received,
                bytes_sent: self.sent,
                route: self.route_name(),
                cluster: self.cluster_name(),
                endpoint: self.endpoint,
                peer: self.peer_name(),
                downstream: self.downstream.remote,
                request_id: &line.request_id,
                user_agent: &line.user_agent,
                retried: self.retried,
                attempts: self.tries.as_ref().map_or(0, |tries| tries.attempts + tries.hedges),
                withheld: self.tries.as_ref().and_then(|tries| tries.withheld),
                trace: self.trace.as_ref().map(|traced| traced.trace),
                grpc_status: self.grpc_status,
                kept: &line.kept,
                names: self
                    .snapshot
                    .access_log
                    .as_ref()
                    .map_or((&[], &[]), |log| (&log.request_fields, &log.response_fields)),
                chance: local.worker.random(),
            };
            if tapped {
                self.snapshot.taps.tell(&local.worker, &entry, line.heads.as_deref());
            }
            if let Some(log) = &self.snapshot.access_log {
                local.worker.log(log, &entry);
            }
        }
        if let Some(line) = self.line.take() {
            Line::take_back(line);
        }
    }

    /// Keeps what the access log tells of the response's head, just before it goes.
    pub(super) fn keep_response(&mut self, response: &Head) {
        if let (Some(line), Some(log)) = (&mut self.line, &self.snapshot.access_log)
            && !log.response_fields.is_empty()
        {
            let from = line.kept.len() - log.response_fields.len();
            for (kept, name) in line.kept[from..].iter_mut().zip(&log.response_fields) {
                kept.set(response.get_named(name));
            }
        }
    }

    pub(super) fn route(&self) -> Option<&Route> {
        self.snapshot.routes.route(self.route?)
    }
    pub(super) fn route_name(&self) -> &str {
        self.route().map_or("", |route| route.name.as_str())
    }
    pub(super) fn cluster_name(&self) -> &str {
        self.pool.as_ref().map_or("", |pool| pool.cluster.name.as_str())
    }
    /// The other side: who calls the application, or whom it calls.
    pub(super) fn peer_name(&self) -> &str {
        match (&self.downstream.peer, &self.endpoint_peer) {
            (Some(peer), _) => &peer.id,
            (None, Some(peer)) => peer,
            (None, None) => "",
        }
    }
    fn peer_number(&self) -> u64 {
        match (&self.downstream.peer, &self.endpoint_peer) {
            (Some(_), _) | (None, None) => self.downstream.peer_number,
            (None, Some(peer)) => self.downstream.local.worker.peer_number(peer),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Reached unnoted when the connection is cut, or its client goes away, while the endpoint is still asked.
        if !self.noted {
            self.reason = self.reason.or(Some(Reason::ClientGone));
            self.note(Instant::now());
        }
    }
}

/// What the access log, spans and taps say of a request's head; kept only when there is one, and used again by the next
/// request.
#[derive(Default)]
pub(super) struct Line {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: Vec<u8>,
    pub(super) request_id: Vec<u8>,
    pub(super) user_agent: Vec<u8>,
    pub(super) version: Version,
    /// Both heads, while somebody watches who needs them.
    pub(super) heads: Option<Box<Heads>>,
    /// Fields that the log needs: the request's, then the response's.
    kept: Vec<Kept>,
}

/// Lines a worker keeps for the next request.
const MOST_LINES: usize = 64;

thread_local! {
    #[expect(clippy::vec_box, reason = "lines are handed out and taken back without being moved")]
    static LINES: RefCell<Vec<Box<Line>>> = const { RefCell::new(Vec::new()) };
}

impl Line {
    pub(super) fn of(request: &Head, secure: bool, log: Option<&AccessLog>) -> Box<Self> {
        let mut line = LINES.with_borrow_mut(Vec::pop).unwrap_or_default();
        line.method.clear();
        line.method.push_str(request.method_text());
        line.path.clear();
        line.path.push_str(judge::path(request));
        for (kept, id) in [
            (&mut line.host, FieldId::Host),
            (&mut line.request_id, FieldId::XRequestId),
            (&mut line.user_agent, FieldId::UserAgent),
        ] {
            kept.clear();
            kept.extend_from_slice(request.get(id).unwrap_or_default());
        }
        line.version = request.version();
        let (wanted, answered) = log.map_or((&[][..], &[][..]), |log| (&log.request_fields, &log.response_fields));
        line.kept.resize_with(wanted.len() + answered.len(), Kept::default);
        let (asked, answer) = line.kept.split_at_mut(wanted.len());
        for (kept, name) in asked.iter_mut().zip(wanted) {
            kept.set(match name.as_str() {
                ":method" => Some(request.method_text().as_bytes()),
                ":path" => Some(request.target().as_bytes()),
                ":authority" => request.get(FieldId::Host),
                ":scheme" => Some(if secure { b"https" } else { b"http" }),
                name => request.get_named(name),
            });
        }
        answer.iter_mut().for_each(|kept| kept.set(None));
        line
    }

    /// Keeps the response's head beside the request's, if that was kept and this is the one that was sent.
    pub(super) fn keep_response(&mut self, response: &Head, code: u16) {
        if let Some(heads) = &mut self.heads
            && response.status() == code
        {
            heads.response.get_or_insert_default().copy_from(response);
        }
    }

    fn take_back(mut line: Box<Self>) {
        line.heads = None;
        // While the thread ends there is nobody to keep it for.
        let _ = LINES.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < MOST_LINES {
                kept.push(line);
            }
        });
    }
}

/// The status of a gRPC call, in the trailers or, when there is no message, in the head.
pub(super) fn grpc_status(response: &Head, source: &Source<'_>) -> Option<u8> {
    if !is_grpc(response) {
        return None;
    }
    let status = source.grpc_status().or_else(|| response.get(FieldId::GrpcStatus))?;
    str::from_utf8(status).ok()?.parse().ok()
}

/// Whether a message is gRPC's, which needs HTTP/2 all the way; gRPC-Web is made to do without.
pub(crate) fn is_grpc(head: &Head) -> bool {
    let kind = head.get(FieldId::ContentType).unwrap_or_default();
    kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web")
}
