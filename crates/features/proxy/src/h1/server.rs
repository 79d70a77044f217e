//! A client's HTTP/1 connection: request by request to its end.
//!
//! In: bytes. Out: requests for the exchange. Promise: a head that breaks the rules is
//! answered, counted and logged, and nothing behind it is read; between requests a
//! connection holds no buffer; on drain it ends after the request under way.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use outrigger_wire::h1::{self, BodyDecoder, Framing, HeadError, Limits, Parsed};
use outrigger_wire::head::{FieldId, Head, Version};

use crate::access_log::Entry;
use crate::body::{Source, poll_pump};
use crate::buffer::Buffer;
use crate::connection::Downstream;
use crate::error::Reason;
use crate::exchange::{After, Exchange, Incoming, own_response};
use crate::metrics::{RequestKey, RequestNames};
use crate::respond::{H1Responder, Responder};
use crate::snapshot::ListenerSnapshot;
use crate::transport::{Output, Replay, Transport};
use crate::upstream::TRAILER_LIMITS;
use crate::watch::{LAST_MOMENT, Order, Phase, Watched};
use crate::{h2, headers};

/// A client is listened to for so many bytes after it was refused.
pub(crate) const MOST_LINGERED: usize = 1024 * 1024;
/// After a refusal for want of room a client's next request is not looked at for so long, each time twice as long up to
/// the longest: one that asks again at once would else have the time of those who could be served.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(256);
/// Heads a worker keeps for the next request.
const MOST_HEADS: usize = 32;

/// Room for the heads of one exchange.
#[derive(Default)]
pub(crate) struct Heads {
    pub(crate) request: Head,
    pub(crate) response: Head,
}

thread_local! {
    #[expect(clippy::vec_box, reason = "heads are handed out and taken back without being moved")]
    static HEADS: RefCell<Vec<Box<Heads>>> = const { RefCell::new(Vec::new()) };
}

impl Heads {
    pub(crate) fn lend() -> Box<Self> {
        HEADS.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    pub(crate) fn take_back(heads: Box<Self>) {
        HEADS.with_borrow_mut(|kept| {
            if kept.len() < MOST_HEADS {
                kept.push(heads);
            }
        });
    }
}

/// A client's connection.
pub(crate) struct Connection {
    pub(crate) downstream: Rc<Downstream>,
    pub(crate) watched: Rc<Watched>,
    pub(crate) io: Transport,
    /// What came and was not used yet.
    pub(crate) input: Buffer,
    pub(crate) limits: Limits,
    /// Bytes of the head that is coming which were looked at already.
    pub(crate) seen: usize,
}

/// The pause after so many refusals in a row and another one.
fn pause(refused: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << refused.min(16)).min(LONGEST_PAUSE)
}

/// What came of waiting for a head.
enum Next {
    /// It is there; its body is framed so.
    Request(Framing),
    /// It is bad.
    Bad(HeadError),
    /// The client speaks HTTP/2.
    Http2,
    /// The client has gone, or the connection is to end.
    End,
}

/// What a client of HTTP/2 says first ([RFC 9113], 3.4).
///
/// [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Connection {
    /// Serves the connection to its end.
    pub(crate) async fn serve(mut self, snapshot: &ListenerSnapshot) {
        let mut output = Output::default();
        loop {
            let mut heads = None;
            let next = poll_fn(|cx| self.poll_next(cx, &mut output, &mut heads)).await;
            let (next, Some(mut heads)) = (next, heads) else { break };
            let refused = self.watched.refused.get();
            let after = match next {
                Next::End => break,
                Next::Http2 => {
                    // On the heap, so that connections of HTTP/1 do not hold room for it.
                    let io = Replay { io: self.io, ahead: self.input };
                    return Box::pin(h2::server::serve(self.downstream, &self.watched, snapshot, io)).await;
                }
                Next::Request(framing) => self.exchange(framing, &mut output, &mut heads).await,
                Next::Bad(error) => {
                    self.refuse(snapshot, error, &mut output, &mut heads).await;
                    // Who speaks something else altogether would not understand the answer.
                    if error == HeadError::NotHttp { After::Close } else { After::Linger }
                }
            };
            Heads::take_back(heads);
            match after {
                After::Go if self.watched.refused.get() > refused => {
                    self.input.rest();
                    output.rest();
                    // On the heap, so that other connections do not hold room for it.
                    Box::pin(tokio::time::sleep(pause(refused))).await;
                }
                After::Go => self.watched.refused.set(0),
                After::Close => {
                    let _ = poll_fn(|cx| self.io.poll_shutdown(cx)).await;
                    break;
                }
                After::Linger => {
                    self.linger().await;
                    break;
                }
                After::Reset | After::BreakOff => {
                    self.io.reset();
                    break;
                }
            }
        }
    }

    /// Waits for the next request's head.
    fn poll_next(&mut self, cx: &mut Context<'_>, output: &mut Output, heads: &mut Option<Box<Heads>>) -> Poll<Next> {
        loop {
            if !self.input.is_empty() {
                let request = &mut heads.get_or_insert_with(Heads::lend).request;
                if self.input.filled()[0] == PREFACE[0] && self.watched.handled.get() == 0 {
                    self.watched.begin_head();
                    let count = self.input.len().min(PREFACE.len());
                    if count == PREFACE.len() && self.input.filled().starts_with(PREFACE) {
                        return Poll::Ready(Next::Http2);
                    }
                    // `PR` is enough: no method begins so.
                    if count >= 3 && count < PREFACE.len() && self.input.filled() == &PREFACE[..count] {
                        match ready!(self.io.poll_fill(cx, &mut self.input)) {
                            Ok(read) if read > 0 => continue,
                            _ => return Poll::Ready(Next::End),
                        }
                    }
                }
                match h1::parse_request(self.input.filled(), self.seen, self.limits, request) {
                    Ok(Parsed::Complete(length)) => {
                        self.input.consume(length);
                        self.seen = 0;
                        return Poll::Ready(match h1::request_framing(request) {
                            Ok(framing) => Next::Request(framing),
                            Err(error) => {
                                self.watched.begin_head();
                                Next::Bad(error)
                            }
                        });
                    }
                    // One that has come whole is not timed: asking for the time costs.
                    Ok(Parsed::Partial) => {
                        self.watched.begin_head();
                        self.seen = self.input.len();
                    }
                    Err(error) => {
                        self.watched.begin_head();
                        return Poll::Ready(Next::Bad(error));
                    }
                }
            }
            // What has already come is read before an order to drain closes the connection.
            match self.io.poll_fill(cx, &mut self.input) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    if !self.input.is_empty() {
                        tracing::debug!(component = "proxy", remote = %self.downstream.remote, "client left within a head");
                    }
                    return Poll::Ready(Next::End);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    output.rest();
                    if self.input.is_empty() {
                        if let Some(heads) = heads.take() {
                            Heads::take_back(heads);
                        }
                        if self.watched.order() >= Order::Leave && !self.watched.draining_soon.replace(true) {
                            // Its next request may be on its way; closing now would lose it.
                            self.watched.set_deadline(Instant::now().checked_add(LAST_MOMENT));
                        }
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    async fn exchange(&mut self, framing: Framing, output: &mut Output, heads: &mut Heads) -> After {
        let Heads { request, response } = heads;
        self.watched.handled.set(self.watched.handled.get() + 1);
        let mut decoder = BodyDecoder::new(framing, TRAILER_LIMITS);
        let persistent = h1::persists(request);
        let incoming = Incoming {
            upgrade: headers::asked_upgrade(request).map(str::to_owned),
            framing,
            source: Source::h1(&self.io, &mut self.input, &mut decoder),
            responder: Responder::H1(H1Responder {
                io: &self.io,
                output,
                version: request.version(),
                method: request.method(),
                persistent,
            }),
            request,
        };
        let old = incoming.request.version() == Version::Http10;
        let exchange = Exchange::new(&self.downstream, &self.watched, Instant::now());
        // On the heap, so that a connection at rest does not hold room for it.
        let after = Box::pin(exchange.run(incoming, response)).await;
        match after {
            // To a client of HTTP/1.1 a body without its end is clear; to an older one only a reset is.
            After::Reset if !old => After::Close,
            after => after,
        }
    }

    /// Reads what a refused client still sends. Closing before that would reset the connection, and the reset may
    /// overtake the answer ([RFC 9112], 9.6). The header timeout bounds it.
    ///
    /// [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112
    async fn linger(&mut self) {
        if poll_fn(|cx| self.io.poll_shutdown(cx)).await.is_err() {
            return;
        }
        self.watched.enter(Phase::Head, Instant::now());
        let mut lingered = 0;
        poll_fn(|cx| {
            loop {
                self.input.consume(self.input.len());
                match ready!(self.io.poll_fill(cx, &mut self.input)) {
                    Ok(read) if read > 0 && lingered + read <= MOST_LINGERED => lingered += read,
                    _ => return Poll::Ready(()),
                }
            }
        })
        .await;
    }

    fn is_first_line_long(&self, snapshot: &ListenerSnapshot) -> bool {
        let most = snapshot.limits.max_uri_bytes.as_usize();
        memchr::memchr(b'\n', self.input.filled()).is_none_or(|end| end > most)
    }

    /// Answers, counts and logs a request whose head is bad.
    async fn refuse(&mut self, snapshot: &ListenerSnapshot, error: HeadError, output: &mut Output, heads: &mut Heads) {
        let started = Instant::now();
        let reason = match error {
            // No end of its first line within the limits: it is the target that is too long.
            HeadError::TooLarge if self.is_first_line_long(snapshot) => Reason::UriTooLong,
            error if error.is_too_large() => Reason::HeadersTooLarge,
            error => Reason::BadRequest(error.as_str()),
        };
        let local = &self.downstream.local;
        let (listener, remote) = (&local.shared.name, self.downstream.remote);
        tracing::debug!(component = "proxy", listener, %remote, %reason, "request refused by the parser");
        let text = format!("{reason}\n");
        own_response(&mut heads.response, reason.status(), text.len());
        let responder = H1Responder {
            io: &self.io,
            output,
            version: Version::Http11,
            method: heads.request.method(),
            persistent: false,
        };
        let framing = Framing::Length(text.len() as u64);
        let mut sent = 0;
        if error != HeadError::NotHttp
            && let Ok(mut sink) = Responder::H1(responder).respond(&mut heads.response, framing, &mut false)
        {
            let mut source = Source::Own(text.as_bytes());
            let _ = poll_fn(|cx| poll_pump(cx, &mut source, &mut sink, |count| sent += count as u64, &mut None)).await;
        }
        let peer = self.downstream.peer.as_ref().map_or("", |peer| peer.id.as_str());
        let code = reason.status().as_u16();
        let key = RequestKey { route: u64::MAX, cluster: u64::MAX, code, peer: self.downstream.peer_number };
        local.metrics.request(key, &RequestNames { route: "", cluster: "", peer }, started.elapsed(), None);
        if let Some(log) = &snapshot.access_log {
            let request = &heads.request;
            let entry = Entry {
                started: SystemTime::now(),
                code,
                reason: Some(reason),
                direction: local.shared.direction,
                listener,
                method: request.method_text(),
                path: crate::judge::path(request),
                host: request.get(FieldId::Host).unwrap_or_default(),
                bytes_sent: sent,
                peer,
                ..Entry::of(remote)
            };
            local.worker.log(log, &entry);
        }
    }
}
