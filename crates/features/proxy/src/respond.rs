//! The answer's way to the client.
//!
//! In: a response's head, and how its body is framed where it comes from. Out: the head as
//! this client's protocol needs it, and where the body goes. Promise: a client of HTTP/1.0
//! is never sent chunks; the end of a body is always told.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use h2::server::SendResponse;
use outrigger_wire::h1::{self, Framing};
use outrigger_wire::head::{FieldId, Head, Method, Version};

use crate::body::{Broken, Sink};
use crate::h2::headers::to_response;
use crate::transport::{Output, Transport};

/// Who gets the answer.
pub(crate) enum Responder<'a> {
    H1(H1Responder<'a>),
    /// The second is whether the client is an Outrigger.
    H2(SendResponse<Bytes>, bool),
    /// It has been given.
    Done,
}

pub(crate) struct H1Responder<'a> {
    pub(crate) io: &'a Transport,
    pub(crate) output: &'a mut Output,
    pub(crate) version: Version,
    pub(crate) method: Method,
    /// The client would send another request on this connection.
    pub(crate) persistent: bool,
}

impl<'a> Responder<'a> {
    /// Whether the client speaks HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::H2(..))
    }

    /// Sends an interim response, to clients that know them.
    pub(crate) fn inform(&mut self, head: &mut Head) {
        match self {
            Self::H1(client) if client.version == Version::Http11 => {
                head.set_version(Version::Http11);
                h1::write_response_head(head, client.output.bytes());
            }
            Self::H2(stream, kin) if head.status() != 101 => {
                let _ = stream.send_informational(to_response(head, *kin));
            }
            _ => {}
        }
    }

    /// What is gathered for the client goes out now.
    pub(crate) fn poll_flush(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        match self {
            Self::H1(client) => client.output.poll_flush(cx, client.io).map(|_| ()),
            _ => std::task::Poll::Ready(()),
        }
    }

    /// Whether the client has given up on this request; registers for it.
    pub(crate) fn poll_reset(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        match self {
            Self::H2(stream, _) => stream.poll_reset(cx).map(|_| ()),
            _ => std::task::Poll::Pending,
        }
    }

    /// Sends the response's head; its body goes to the sink. `keep` is whether the connection may go on, and tells
    /// afterwards whether it does.
    pub(crate) fn respond(&mut self, head: &mut Head, framing: Framing, keep: &mut bool) -> Result<Sink<'a>, Broken> {
        match std::mem::replace(self, Self::Done) {
            Self::H1(client) => Ok(client.respond(head, framing, keep)),
            Self::H2(mut stream, kin) => {
                date(head);
                let ends = matches!(framing, Framing::Empty);
                let body = stream.send_response(to_response(head, kin), ends).map_err(|_| Broken::Refused)?;
                Ok(if ends { Sink::Ended } else { Sink::h2(body) })
            }
            Self::Done => Err(Broken::Refused),
        }
    }

    /// Answers that what was asked for is a tunnel from here on.
    pub(crate) fn tunnel(&mut self, head: &mut Head) -> Result<Sink<'a>, Broken> {
        match std::mem::replace(self, Self::Done) {
            Self::H1(client) => {
                head.set_version(Version::Http11);
                h1::write_response_head(head, client.output.bytes());
                Ok(Sink::tunnel(client.io, client.output))
            }
            Self::H2(mut stream, kin) => {
                head.set_status(200);
                let body = stream.send_response(to_response(head, kin), false).map_err(|_| Broken::Refused)?;
                Ok(Sink::h2(body))
            }
            Self::Done => Err(Broken::Refused),
        }
    }
}

impl<'a> H1Responder<'a> {
    fn respond(self, head: &mut Head, framing: Framing, keep: &mut bool) -> Sink<'a> {
        let old = self.version == Version::Http10;
        let framing = match framing {
            Framing::Chunked | Framing::UntilClose if old => Framing::UntilClose,
            Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        if head.status() == 204 {
            // It neither has a body nor may tell of one ([RFC 9110], 8.6).
            head.remove(FieldId::ContentLength);
        } else if self.method == Method::Head || head.status() == 304 {
            // It has no body, but its head may tell of one.
        } else if matches!(framing, Framing::Chunked) {
            head.remove(FieldId::ContentLength);
            head.push("Transfer-Encoding", b"chunked");
        } else if matches!(framing, Framing::Empty) && !head.contains(FieldId::ContentLength) {
            head.push("Content-Length", b"0");
        }
        *keep &= self.persistent && !matches!(framing, Framing::UntilClose);
        if !*keep {
            head.push("Connection", b"close");
        } else if old {
            head.push("Connection", b"keep-alive");
        }
        date(head);
        head.set_version(Version::Http11);
        h1::write_response_head(head, self.output.bytes());
        Sink::h1(self.io, self.output, framing)
    }
}

/// A response tells when it was made ([RFC 9110], 6.6.1).
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
fn date(head: &mut Head) {
    thread_local! {
        static NOW: RefCell<(Option<Instant>, String)> = const { RefCell::new((None, String::new())) };
    }
    if head.contains(FieldId::Date) {
        return;
    }
    NOW.with_borrow_mut(|(made, text)| {
        let now = Instant::now();
        if made.is_none_or(|made| now.duration_since(made) >= Duration::from_millis(500)) {
            *text = httpdate::fmt_http_date(SystemTime::now());
            *made = Some(now);
        }
        head.push("Date", text.as_bytes());
    });
}
