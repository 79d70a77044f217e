//! What a route's filters do with a request and its answer.
//!
//! In: a request whose route is found. Out: an answer of ours, a fault, or changed heads.
//! Promise: what is forwarded is normalised again after a rewrite; our own answers, errors
//! too, are changed like an application's, so that pages of other origins can read them.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use outrigger_traffic::filter::{Answer, Cors, Filters};
use outrigger_wire::head::{Head, Version};
use outrigger_wire::path;

use super::{After, Exchange, Incoming};
use crate::error::Reason;

/// What is kept of how a request was routed, for its filters.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Filtered {
    /// The backend's number within its route.
    pub(super) backend: Option<u32>,
    /// So many bytes of the path were matched.
    pub(super) matched: u32,
    /// The route or the backend has filters.
    pub(super) any: bool,
}

impl Exchange {
    pub(super) fn route_filters(&self) -> Option<&Filters> {
        self.route()?.filters.as_deref()
    }

    fn backend_filters(&self) -> Option<&Filters> {
        self.route()?.backend_filters(self.filtered.backend?)
    }

    /// What comes before a request is sent on: an answer of our own, a wait, a failure.
    pub(super) async fn answer_by_filter(
        &mut self,
        incoming: &mut Incoming<'_>,
        response: &mut Head,
    ) -> Result<Option<After>, Reason> {
        let Some(filters) = self.route_filters().filter(|filters| filters.may_answer()) else { return Ok(None) };
        if let Some(cors) = filters.cors.as_ref().filter(|_| Cors::is_preflight(incoming.request)) {
            own(response, 204);
            if !cors.answer_preflight(incoming.request, response) {
                response.set_status(403);
            }
            self.filtered.any = false;
            return Ok(Some(self.answer(incoming, response, b"", true).await));
        }
        let (delay, abort) = match &filters.fault {
            Some(fault) => fault.on(incoming.request, &mut self.downstream.local.worker.chance()),
            None => (None, None),
        };
        if let Some(delay) = delay {
            let mut rest = pin!(tokio::time::sleep(delay));
            let waited = poll_fn(|cx| {
                let gone = incoming.responder.poll_reset(cx).is_ready()
                    || (incoming.source.is_ended() && incoming.source.poll_gone(cx).is_ready());
                if gone { Poll::Ready(Err(Reason::ClientGone)) } else { rest.as_mut().poll(cx).map(Ok) }
            });
            self.in_time(pin!(waited)).await??;
        }
        if let Some(abort) = abort {
            return Err(Reason::Injected { status: abort.status, grpc: abort.grpc_status });
        }
        if self.route_filters().is_none_or(|filters| filters.answer.is_none()) {
            return Ok(None);
        }
        self.limit_answer(incoming.request).await?;
        let Some(answer) = self.route_filters().and_then(|filters| filters.answer.as_ref()) else { return Ok(None) };
        let body = match answer {
            Answer::Redirect(redirect) => {
                own(response, redirect.status);
                let location = redirect.location(incoming.request, self.filtered.matched, self.downstream.secure);
                response.push("Location", location.as_bytes());
                String::new()
            }
            Answer::Direct(direct) => {
                own(response, direct.status_code);
                for header in &direct.headers {
                    response.push(&header.name, header.value.trim().as_bytes());
                }
                if !direct.body.is_empty() {
                    if !direct.headers.iter().any(|header| header.name.eq_ignore_ascii_case("content-type")) {
                        response.push("Content-Type", b"text/plain; charset=utf-8");
                    }
                    response.push("Content-Length", itoa::Buffer::new().format(direct.body.len()).as_bytes());
                }
                direct.body.clone()
            }
        };
        self.tell_limits(response);
        Ok(Some(self.answer(incoming, response, body.as_bytes(), true).await))
    }

    /// Changes a request on its way.
    pub(super) fn change_request(&self, request: &mut Head) -> Result<(), Reason> {
        thread_local! {
            static NORMAL: RefCell<String> = const { RefCell::new(String::new()) };
        }
        if let Some(filters) = self.route_filters() {
            filters.change_request(request, self.filtered.matched);
            if filters.rewrite.as_ref().is_some_and(|rewrite| rewrite.changes_path()) {
                NORMAL.with_borrow_mut(|normal| {
                    match path::normalise(&self.snapshot.path, request.target(), normal) {
                        Ok(true) => request.set_target(normal),
                        Ok(false) => {}
                        Err(error) => return Err(Reason::BadRequest(error.as_str())),
                    }
                    Ok(())
                })?;
            }
        }
        if let Some(filters) = self.backend_filters() {
            filters.change_request(request, self.filtered.matched);
        }
        Ok(())
    }

    /// Changes an answer on its way, an application's or one of our own.
    pub(super) fn change_response(&self, request: &Head, response: &mut Head) {
        if !self.filtered.any {
            return;
        }
        if let Some(filters) = self.backend_filters() {
            filters.change_response(response);
        }
        if let Some(filters) = self.route_filters() {
            filters.change_response(response);
            if let Some(cors) = &filters.cors {
                cors.change_response(request, response);
            }
        }
    }
}

/// Begins an answer of our own.
fn own(head: &mut Head, status: u16) {
    head.clear();
    head.set_version(Version::Http11);
    head.set_status(status);
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    head.set_reason(reason.unwrap_or_default().as_bytes());
}
