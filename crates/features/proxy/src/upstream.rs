//! A connection to an endpoint, and one request's use of it.
//!
//! In: a request's head, and the framing of its body. Out: where the body goes, and where
//! the response comes from. Promise: a response is read strictly; what comes after a
//! message that ended the connection's use is never taken for another.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use outrigger_wire::h1::{self, BodyDecoder, Framing, Limits, Parsed};
use outrigger_wire::head::{FieldId, Head, Method};

use crate::body::{Sink, Source};
use crate::buffer::Buffer;
use crate::error::Reason;
use crate::h2::guard::Expected;
use crate::h2::headers::{from_response, to_request};
use crate::shared::OpenStream;
use crate::transport::{Output, Transport};

/// What an endpoint may send with a response; beyond it 502.
const RESPONSE_LIMITS: Limits = Limits { max_bytes: 256 * 1024, max_fields: 256 };
/// What may come behind a chunked body.
pub(crate) const TRAILER_LIMITS: Limits = Limits { max_bytes: 16 * 1024, max_fields: 64 };
/// Why an endpoint's connection was cut off.
pub(crate) const FLOODS: &str = "it floods its HTTP/2 connection";
/// Interim responses before the one that counts.
const MOST_INFORMATIONAL: u8 = 16;

/// An HTTP/1 connection to an endpoint.
pub(crate) struct H1Connection {
    pub(crate) io: Transport,
    pub(crate) input: Buffer,
    output: Output,
    decoder: BodyDecoder,
    /// Requests it has carried.
    pub(crate) carried: u64,
    pub(crate) born: Instant,
    /// The endpoint is an Outrigger too.
    pub(crate) kin: bool,
}

impl H1Connection {
    pub(crate) fn new(io: Transport, kin: bool) -> Box<Self> {
        Box::new(Self {
            io,
            input: Buffer::default(),
            output: Output::default(),
            decoder: BodyDecoder::new(Framing::Empty, TRAILER_LIMITS),
            carried: 0,
            born: Instant::now(),
            kin,
        })
    }

    /// Whether it can carry another request: nothing has come, not even the end. `surely` asks the kernel.
    pub(crate) fn is_good(&self, surely: bool) -> bool {
        self.input.is_empty() && self.io.is_quiet() && (!surely || self.io.is_surely_quiet())
    }

    /// Holds no more memory than it must.
    pub(crate) fn rest(&mut self) {
        self.input.rest();
        self.output.rest();
    }

    fn open(&mut self, request: &Head, framing: Framing) -> Up<'_> {
        self.carried += 1;
        h1::write_request_head(request, self.output.bytes());
        Up {
            sink: Sink::h1(&self.io, &mut self.output, framing),
            receiver: Receiver::H1(H1Receiver {
                io: &self.io,
                input: &mut self.input,
                decoder: &mut self.decoder,
                method: request.method(),
                seen: 0,
                informational: 0,
            }),
        }
    }
}

/// What a request is sent with.
pub(crate) enum Link {
    H1(Box<H1Connection>),
    H2(SendRequest<Bytes>, OpenStream),
}

/// What a request wants beyond an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Nothing.
    Answer,
    /// To change to the protocol in its `Upgrade`.
    Upgrade,
    /// A tunnel to its target.
    Connect,
}

/// What is spoken on a connection to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Http1,
    Http2,
    Tcp,
}

impl Link {
    /// Sends a request's head. The body goes to the sink; what is gathered there must be flushed.
    pub(crate) fn open(&mut self, request: &Head, framing: Framing, secure: bool, ask: Ask) -> Result<Up<'_>, Reason> {
        match self {
            Self::H1(connection) => Ok(connection.open(request, framing)),
            Self::H2(sender, place) => {
                let kin = place.is_kin();
                let message = to_request(request, secure, ask, kin)?;
                let ends = matches!(framing, Framing::Empty) && ask == Ask::Answer;
                let (response, stream) = sender.send_request(message, ends).map_err(|error| {
                    if error.is_go_away() || error.is_io() {
                        place.give_up();
                    }
                    Reason::Reset
                })?;
                let expected = place.guard().asked(stream.stream_id().as_u32());
                let sink = if ends { Sink::Ended } else { Sink::h2(stream) };
                let response = Some(response);
                Ok(Up { sink, receiver: Receiver::H2 { response, body: None, informational: 0, kin, expected } })
            }
        }
    }
}

impl Link {
    /// The body of a response whose head has come on this connection.
    pub(crate) fn resume(&mut self, parked: Parked) -> Source<'_> {
        match (self, parked) {
            (_, Parked::H2(body)) => body.map_or(Source::Empty, |body| Source::h2(body, None)),
            (Self::H1(connection), Parked::H1) => {
                Source::h1(&connection.io, &mut connection.input, &mut connection.decoder)
            }
            (Self::H2(..), Parked::H1) => Source::Empty,
        }
    }
}

/// One request's use of a connection.
pub(crate) struct Up<'a> {
    pub(crate) sink: Sink<'a>,
    pub(crate) receiver: Receiver<'a>,
}

/// What came.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Got {
    /// An interim response; another will come.
    Informational,
    /// The response, whose body is framed so. The second is whether the connection may carry another request.
    Response(Framing, bool),
}

/// The rest of a response whose head has come, apart from its connection.
pub(crate) enum Parked {
    /// It is read from the connection.
    H1,
    /// It is a stream of its own, if there is any.
    H2(Option<h2::RecvStream>),
}

/// Where a response comes from.
pub(crate) enum Receiver<'a> {
    H1(H1Receiver<'a>),
    H2 {
        response: Option<ResponseFuture>,
        body: Option<h2::RecvStream>,
        informational: u8,
        kin: bool,
        expected: Expected,
    },
}

pub(crate) struct H1Receiver<'a> {
    io: &'a Transport,
    input: &'a mut Buffer,
    decoder: &'a mut BodyDecoder,
    method: Method,
    seen: usize,
    informational: u8,
}

impl<'a> Receiver<'a> {
    /// Waits for a head.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<Got, Reason>> {
        match self {
            Self::H1(receiver) => receiver.poll_head(cx, head),
            Self::H2 { response, body, informational, kin, expected } => {
                let Some(future) = response else { return Poll::Ready(Err(Reason::Reset)) };
                if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(cx) {
                    *informational += 1;
                    if *informational > MOST_INFORMATIONAL {
                        return Poll::Ready(Err(Reason::Protocol("too many interim responses")));
                    }
                    if interim.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(Err(Reason::Protocol("HTTP/2 knows no 101")));
                    }
                    from_response(&interim, head, *kin);
                    return Poll::Ready(Ok(Got::Informational));
                }
                let outcome = ready!(std::pin::Pin::new(future).poll(cx));
                let answer = outcome.map_err(|error| match expected.is_cut() {
                    true => Reason::Protocol(FLOODS),
                    false => h2_reason(&error),
                })?;
                from_response(&answer, head, *kin);
                let stream = answer.into_body();
                let framing = if stream.is_end_stream() {
                    Framing::Empty
                } else if head.contains(FieldId::Trailer) {
                    // To a client of HTTP/1 a body with a length could have none.
                    Framing::Chunked
                } else {
                    head.get(FieldId::ContentLength)
                        .and_then(|length| str::from_utf8(length).ok()?.parse().ok())
                        .map_or(Framing::Chunked, Framing::Length)
                };
                *body = Some(stream);
                *response = None;
                Poll::Ready(Ok(Got::Response(framing, true)))
            }
        }
    }

    /// The response's body.
    pub(crate) fn into_source(self) -> Source<'a> {
        match self {
            Self::H1(receiver) => Source::h1(receiver.io, receiver.input, receiver.decoder),
            Self::H2 { body, expected, .. } => h2_source(body, expected),
        }
    }

    /// Lets go of the connection once the head has come; [`Link::resume`] goes on.
    pub(crate) fn park(self) -> Parked {
        match self {
            Self::H1(_) => Parked::H1,
            Self::H2 { body, .. } => Parked::H2(body),
        }
    }

    /// Everything that comes from here on, as it comes: the connection is a tunnel.
    pub(crate) fn into_tunnel(self) -> Source<'a> {
        match self {
            Self::H1(receiver) => {
                *receiver.decoder = BodyDecoder::new(Framing::UntilClose, TRAILER_LIMITS);
                Source::h1(receiver.io, receiver.input, receiver.decoder)
            }
            Self::H2 { body, expected, .. } => h2_source(body, expected),
        }
    }
}

fn h2_source<'a>(body: Option<h2::RecvStream>, expected: Expected) -> Source<'a> {
    body.map_or(Source::Empty, |body| Source::h2(body, expected.into_guard()))
}

fn h2_reason(error: &h2::Error) -> Reason {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Reason::Refused,
        // It ends the connection, and says that this stream was none of those it looked at.
        Some(h2::Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => Reason::Unseen,
        // What the library gives a connection or a stream up for is the endpoint's breach, whichever it is.
        Some(_) if error.is_library() => Reason::Protocol("invalid HTTP/2"),
        _ => Reason::Reset,
    }
}

impl H1Receiver<'_> {
    fn poll_head(&mut self, cx: &mut Context<'_>, head: &mut Head) -> Poll<Result<Got, Reason>> {
        loop {
            if !self.input.is_empty() {
                let parsed = h1::parse_response(self.input.filled(), self.seen, RESPONSE_LIMITS, head);
                match parsed.map_err(|error| Reason::Protocol(error.as_str()))? {
                    Parsed::Complete(length) => {
                        self.input.consume(length);
                        self.seen = 0;
                        return Poll::Ready(self.judge(head));
                    }
                    Parsed::Partial => self.seen = self.input.len(),
                }
            }
            match ready!(self.io.poll_fill(cx, self.input)) {
                Ok(0) if self.input.is_empty() => return Poll::Ready(Err(Reason::Reset)),
                Ok(0) => return Poll::Ready(Err(Reason::Protocol("its head was cut short"))),
                Ok(_) => {}
                Err(_) => return Poll::Ready(Err(Reason::Reset)),
            }
        }
    }

    fn judge(&mut self, head: &mut Head) -> Result<Got, Reason> {
        let status = head.status();
        if (100..200).contains(&status) && status != 101 {
            self.informational += 1;
            if self.informational > MOST_INFORMATIONAL {
                return Err(Reason::Protocol("too many interim responses"));
            }
            return Ok(Got::Informational);
        }
        let both = head.contains(FieldId::TransferEncoding) && head.contains(FieldId::ContentLength);
        let framing = h1::response_framing(head, self.method).map_err(|error| Reason::Protocol(error.as_str()))?;
        // Where a length and a coding disagree the coding holds ([RFC 9112], 6.3), but nothing behind it is trusted.
        let keep = !both && h1::persists(head) && !matches!(framing, Framing::UntilClose);
        *self.decoder = BodyDecoder::new(framing, TRAILER_LIMITS);
        Ok(Got::Response(framing, keep))
    }
}
