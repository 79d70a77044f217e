//! A client's HTTP/2 connection: its streams are requests like any other.
//!
//! In: a connection that speaks HTTP/2. Out: requests for the exchange, all of them in the connection's task, so that
//! what several answer at once goes out in one write. Promise: streams, resets and frames without use are bounded
//! (`guard.rs` tells by whom); a client that floods is cut off, counted and named; on drain the client is told twice
//! (GOAWAY with the highest stream, then with the last one served), so that no request is lost.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{CatchUnwind, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::RecvStream;
use h2::server::{Builder, SendResponse};
use outrigger_wire::h1::Framing;
use outrigger_wire::head::{FieldId, Method};

use crate::body::Source;
use crate::connection::{Downstream, until_cut};
use crate::error::Reason;
use crate::exchange::{Exchange, Incoming};
use crate::h1::server::Heads;
use crate::h2::guard::{Guard, Guarded};
use crate::h2::headers::from_request;
use crate::h2::wire::Wire;
use crate::limits;
use crate::respond::Responder;
use crate::snapshot::ListenerSnapshot;
use crate::transport::Replay;
use crate::watch::{Order, Phase, Watched};

/// Bytes of a stream that may come before the endpoint takes them.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of all streams of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes for a stream that wait to be written.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were reset and are still remembered, and such that we have not even looked at.
const MOST_RESETS: usize = 50;
const MOST_PENDING_RESETS: usize = 20;
/// Errors of the client's making that cost it a stream each, until they cost it the connection.
const MOST_ERRORS: usize = 100;
/// A drained client without requests has so long to say that it heard of it.
const GOODBYE: Duration = Duration::from_secs(1);
/// A client that floods is told so, if it listens.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a connection ends before its time.
enum Ending {
    Flood(&'static str),
    Failed(h2::Error),
}

/// Serves a connection to its end.
pub(crate) async fn serve(downstream: Rc<Downstream>, watched: &Rc<Watched>, snapshot: &ListenerSnapshot, io: Replay) {
    if let Some(about) = watched.about() {
        // Where it was not agreed on, the first bytes told.
        about.knows(&downstream, "HTTP/2");
    }
    let bounds = &snapshot.limits;
    let local = &downstream.local;
    let guard = Guard::new(bounds.max_control_frames);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(bounds.max_streams)
        .max_header_list_size(limits::header_list_size(bounds))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(MOST_RESETS)
        .max_pending_accept_reset_streams(MOST_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MOST_ERRORS))
        .enable_connect_protocol();
    let wire = Rc::new(Wire::new(io.io));
    let io = Guarded::new(Rc::clone(&wire), io.ahead, Rc::clone(&guard));
    let mut connection = match builder.handshake::<_, Bytes>(io).await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(component = "proxy", listener = local.shared.name, remote = %downstream.remote, %error, "HTTP/2 not begun");
            return;
        }
    };
    wire.begin_driving();
    watched.says_goodbye.set(true);
    let mut streams = FuturesUnordered::new();
    let mut draining = false;
    let outcome = poll_fn(|cx| {
        loop {
            if watched.order() == Order::Drain && !draining {
                draining = true;
                watched.draining_soon.set(true);
                connection.graceful_shutdown();
                if streams.is_empty() {
                    watched.set_deadline(Instant::now().checked_add(GOODBYE));
                }
            }
            // First those that are there, so that what they answer goes out with this look at the connection.
            poll_streams(cx, &mut streams, watched);
            let before = streams.len();
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        if streams.is_empty() {
                            watched.enter(Phase::Busy, Instant::now());
                        }
                        watched.handled.set(watched.handled.get() + 1);
                        // On the heap, for it is large and would be moved about.
                        let serving = Box::pin(stream(Rc::clone(&downstream), Rc::clone(&guard), request, respond));
                        streams.push(AssertUnwindSafe(serving).catch_unwind());
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Ending::Failed(error))),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            if let Some(kind) = guard.flood() {
                return Poll::Ready(Err(Ending::Flood(kind.as_str())));
            }
            // New ones are begun before we rest, and so is hearing of it when the connection broke.
            if streams.len() == before && wire.poll_settle(cx) {
                return Poll::Pending;
            }
        }
    })
    .await;
    let (listener, remote) = (&local.shared.name, downstream.remote);
    let peer = downstream.peer.as_ref().map_or("", |peer| peer.id.as_str());
    match outcome {
        Ok(()) => {}
        Err(Ending::Flood(frames)) => {
            local.metrics.cut("http2_flood");
            tracing::warn!(component = "proxy", listener, %remote, peer, frames, "client floods its HTTP/2 connection and is cut off");
            streams.clear();
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            let _ = tokio::time::timeout(FAREWELL, poll_fn(|cx| connection.poll_closed(cx))).await;
        }
        Err(Ending::Failed(error)) if is_flood(&error) => {
            local.metrics.cut("http2_flood");
            tracing::warn!(component = "proxy", listener, %remote, peer, %error, "client floods its HTTP/2 connection and is cut off");
        }
        Err(Ending::Failed(error)) if error.is_library() => {
            local.metrics.cut("http2_protocol");
            tracing::info!(component = "proxy", listener, %remote, peer, %error, "client breaks HTTP/2 and is cut off");
        }
        Err(Ending::Failed(error)) => {
            tracing::debug!(component = "proxy", listener, %remote, peer, %error, "HTTP/2 connection failed");
        }
    }
}

/// Whether the `h2` crate gave a connection up because of what the client does to it.
fn is_flood(error: &h2::Error) -> bool {
    error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

/// A request that is being answered. Should it panic, the others go on.
type Serving<F> = CatchUnwind<AssertUnwindSafe<Pin<Box<F>>>>;

/// Goes on with the streams that can, and forgets those that have ended; a connection without any is at rest.
fn poll_streams<F: Future<Output = ()>>(
    cx: &mut Context<'_>,
    streams: &mut FuturesUnordered<Serving<F>>,
    watched: &Watched,
) {
    while let Poll::Ready(Some(ended)) = streams.poll_next_unpin(cx) {
        if ended.is_err() {
            tracing::error!(component = "proxy", "a request panicked; the others go on");
        }
        if streams.is_empty() {
            let now = Instant::now();
            watched.enter(Phase::Idle, now);
            if watched.draining_soon.get() {
                watched.set_deadline(now.checked_add(GOODBYE));
            }
        }
    }
}

/// One request.
///
/// [RFC 8441]: https://www.rfc-editor.org/rfc/rfc8441
async fn stream(
    downstream: Rc<Downstream>,
    guard: Rc<Guard>,
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let started = Instant::now();
    let local = Rc::clone(&downstream.local);
    let snapshot = local.snapshot();
    let registered = local.worker.clock.register(local.shared.id, &snapshot.limits, started);
    let watched = &registered.watched;
    watched.begin(started);
    let mut heads = Heads::lend();
    let (mut parts, body) = request.into_parts();
    let protocol = parts.extensions.remove::<h2::ext::Protocol>();
    if protocol.is_some() {
        // Extended CONNECT ([RFC 8441]): what HTTP/1.1 says as GET with Upgrade.
        parts.method = http::Method::GET;
    }
    let request = http::Request::from_parts(parts, ());
    if let Err(reason) = from_request(&request, &mut heads.request, downstream.kin) {
        tracing::debug!(component = "proxy", listener = local.shared.name, %reason, "request refused");
        guard.ended(body.stream_id().as_u32());
        local.metrics.refused(reason, downstream.peer_number);
        respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        return;
    }
    if protocol.as_ref().is_some_and(|protocol| protocol.as_str() == "websocket") {
        // HTTP/2 does without the key, HTTP/1.1 does not.
        let key = local.worker.websocket_key();
        heads.request.set("sec-websocket-key", key.as_bytes());
    }
    let is_tunnel = protocol.is_some() || heads.request.method() == Method::Connect;
    let framing = if body.is_end_stream() || is_tunnel {
        Framing::Empty
    } else if heads.request.contains(FieldId::Trailer) {
        // To an endpoint that speaks HTTP/1 a body with a length could have none.
        heads.request.remove(FieldId::ContentLength);
        Framing::Chunked
    } else {
        let length = heads.request.get(FieldId::ContentLength);
        length.and_then(|length| str::from_utf8(length).ok()?.parse().ok()).map_or(Framing::Chunked, Framing::Length)
    };
    let upgrade = protocol.map(|protocol| protocol.as_str().to_owned());
    let Heads { request, response } = &mut *heads;
    let (source, responder) = (Source::h2(body, Some(guard)), Responder::H2(respond, downstream.kin));
    let incoming = Incoming { request, framing, source, responder, upgrade };
    let exchange = Exchange::new(&downstream, watched, started);
    let peer = downstream.peer.as_ref().map_or("", |peer| peer.id.as_str());
    until_cut(&local, watched, downstream.remote, peer, pin!(exchange.run(incoming, response))).await;
    Heads::take_back(heads);
}

impl crate::metrics::ListenerMetrics {
    /// Counts a request that was refused before it was looked at.
    fn refused(&self, reason: Reason, peer: u64) {
        let code = reason.status().as_u16();
        let key = crate::metrics::RequestKey { route: u64::MAX, cluster: u64::MAX, code, peer };
        let names = crate::metrics::RequestNames { route: "", cluster: "", peer: "" };
        self.request(key, &names, std::time::Duration::ZERO, None);
    }
}
