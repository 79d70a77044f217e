//! Bodies on their way: where they come from, where they go, and the pump between.
//!
//! In: HTTP/1 connections and HTTP/2 streams, any with any. Out: the same bytes, framed as
//! the receiver needs it, trailers too. Promise: one run of bytes is in hand at a time and
//! goes on before more is read, so memory is bounded and each side feels the other's pace; a
//! body that did not come whole is never ended as if it had.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue};
use outrigger_wire::h1::{self, BodyDecoder, Framing};
use outrigger_wire::head::{FieldId, Head};

use crate::buffer::{self, Buffer};
use crate::coded::CodedSource;
use crate::h2::guard::Guard;
use crate::h2::headers::{clean_trailers, from_header_map, to_header_map};
use crate::tapped::TappedSource;
use crate::transport::{Output, Transport};
use crate::upstream::FLOODS;
use crate::upstream::TRAILER_LIMITS;

/// One frame of HTTP/2 takes so many bytes of a body.
const MOST_PER_FRAME: usize = 16 * 1024;

/// A body's first bytes may be handed to the crate before the receiver has room for them: a stream of a request is only
/// open once its head is written, and most messages are small. So they go in one write with the head.
const MOST_UNASKED: usize = 4 * 1024;

/// Bytes of requests to come that are read while one is answered.
const MOST_AHEAD: usize = 4 * 1024;

/// Why a body did not come, or go, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The sender ended before the body did.
    Gone,
    /// What the sender sent breaks the protocol.
    Invalid(&'static str),
    /// The receiver takes no more.
    Refused,
}

/// A body that comes on an HTTP/1 connection.
pub(crate) struct H1Source<'a> {
    io: &'a Transport,
    buffer: &'a mut Buffer,
    decoder: &'a mut BodyDecoder,
    /// Bytes of the body at the buffer's front, and bytes of framing behind them.
    run: usize,
    behind: usize,
    /// The body's beginning, where it may have to be sent again, and how much of it has gone on.
    kept: Vec<u8>,
    again: usize,
    /// More than that has gone on.
    beyond: bool,
}

/// A body that comes on an HTTP/2 stream.
pub(crate) struct H2Source {
    stream: RecvStream,
    data: Bytes,
    data_ended: bool,
    /// The trailers as they came, until they are asked for in the other form.
    map: Option<HeaderMap>,
    trailers: Option<Box<Head>>,
    grpc_status: Option<HeaderValue>,
    /// The body's beginning, where it may have to be sent again, and whether it is in hand again.
    keeps: bool,
    kept: Bytes,
    again: bool,
    /// More than that has gone on.
    beyond: bool,
    /// Who counts what the connection holds.
    guard: Option<Rc<Guard>>,
}

/// A body that is kept as it goes on, so that all of it can be sent again.
pub(crate) struct KeptSource<'a> {
    inner: Source<'a>,
    /// What has gone on, and how much of it has gone on again.
    kept: Vec<u8>,
    again: usize,
    /// So much is kept; beyond it nothing is.
    most: usize,
    beyond: bool,
}

/// A whole body that was kept, counted until dropped.
pub(crate) struct KeptBody(Vec<u8>);

impl KeptBody {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for KeptBody {
    fn drop(&mut self) {
        buffer::give_back(self.0.capacity());
    }
}

/// Where a body comes from.
pub(crate) enum Source<'a> {
    /// There is none.
    Empty,
    H1(H1Source<'a>),
    H2(Box<H2Source>),
    /// One of our own.
    Own(&'a [u8]),
    /// One that can begin again.
    Kept(Box<KeptSource<'a>>),
    /// One that is compressed or decompressed.
    Coded(Box<CodedSource<'a>>),
    /// One whose beginning is copied.
    Tapped(Box<TappedSource<'a>>),
}

impl<'a> Source<'a> {
    /// A body on an HTTP/1 connection.
    pub(crate) fn h1(io: &'a Transport, buffer: &'a mut Buffer, decoder: &'a mut BodyDecoder) -> Self {
        let (kept, again) = (Vec::new(), 0);
        Self::H1(H1Source { io, buffer, decoder, run: 0, behind: 0, kept, again, beyond: false })
    }

    /// A body on an HTTP/2 stream.
    pub(crate) fn h2(stream: RecvStream, guard: Option<Rc<Guard>>) -> Self {
        if stream.is_end_stream() {
            if let Some(guard) = guard {
                guard.ended(stream.stream_id().as_u32());
            }
            return Self::Empty;
        }
        let (data, data_ended) = (Bytes::new(), false);
        let (map, trailers, grpc_status) = (None, None, None);
        let (keeps, kept, again, beyond) = (false, Bytes::new(), false, false);
        let source =
            H2Source { stream, data, data_ended, map, trailers, grpc_status, keeps, kept, again, beyond, guard };
        Self::H2(Box::new(source))
    }

    /// Whether there is nothing to come.
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Own(bytes) => bytes.is_empty(),
            Self::H1(source) => source.run == 0 && source.again == source.kept.len() && source.decoder.is_done(),
            Self::H2(source) => source.data.is_empty() && source.stream.is_end_stream(),
            Self::Kept(source) => source.again == source.kept.len() && source.inner.is_ended(),
            Self::Coded(source) => source.is_ended(),
            Self::Tapped(source) => source.inner.is_ended(),
        }
    }

    /// Whether all of it has come from the client, whether it has gone on or not.
    pub(crate) fn is_read(&self) -> bool {
        match self {
            Self::Kept(source) => source.inner.is_read(),
            Self::Coded(source) => source.inner.is_read(),
            Self::Tapped(source) => source.inner.is_read(),
            other => other.is_ended(),
        }
    }

    /// The body as it comes from the connection.
    pub(crate) fn innermost(&mut self) -> &mut Self {
        match self {
            Self::Kept(source) => source.inner.innermost(),
            Self::Coded(source) => source.inner.innermost(),
            Self::Tapped(source) => source.inner.innermost(),
            other => other,
        }
    }

    /// Whether the sender of a whole body has gone, which it tells on an HTTP/1 connection by closing it. What else
    /// it sends is kept for later.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let source = match self {
            Self::H1(source) => source,
            Self::Kept(source) if source.inner.is_read() => return source.inner.poll_gone(cx),
            Self::Coded(source) if source.inner.is_read() => return source.inner.poll_gone(cx),
            Self::Tapped(source) => return source.inner.poll_gone(cx),
            _ => return Poll::Pending,
        };
        while source.buffer.len() < MOST_AHEAD {
            match ready!(source.io.poll_fill(cx, source.buffer)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Keeps what has come of the body, so that it can be sent again; more than a buffer it cannot be.
    pub(crate) fn keep(&mut self) {
        match self {
            Self::H1(source) if !source.beyond && source.run == 0 && source.kept.is_empty() => source.keep(),
            Self::H2(source) => source.keeps = true,
            Self::Tapped(source) => source.inner.keep(),
            _ => {}
        }
    }

    /// Keeps up to `most` bytes of the body as it goes on, so that all of it can be sent again.
    pub(crate) fn keep_all(&mut self, most: usize) {
        if let Self::Kept(source) = self {
            source.most = source.most.max(most);
            return;
        }
        let inner = std::mem::replace(self, Self::Empty);
        *self = Self::Kept(Box::new(KeptSource { inner, kept: Vec::new(), again: 0, most, beyond: false }));
    }

    /// Takes all of the body out of what was kept; `None` when it did not come whole, or is larger.
    pub(crate) fn take_kept(&mut self) -> Option<KeptBody> {
        match self {
            Self::Kept(source) if !source.beyond && source.inner.is_ended() => {
                source.beyond = true;
                source.again = 0;
                Some(KeptBody(std::mem::take(&mut source.kept)))
            }
            Self::Kept(_) => None,
            _ => Some(KeptBody(Vec::new())),
        }
    }

    /// What was kept of the body, and where the rest of it comes from.
    pub(crate) fn parts(&mut self) -> (&[u8], &mut Self) {
        match self {
            Self::Kept(source) => {
                let KeptSource { inner, kept, .. } = &mut **source;
                (kept, inner)
            }
            other => (&[], other),
        }
    }

    /// Whether all of the body can be sent again.
    pub(crate) fn is_kept(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(source) => !source.beyond,
            Self::H2(source) => source.is_kept(),
            Self::Kept(source) => !source.beyond,
            Self::Tapped(source) => source.inner.is_kept(),
            _ => false,
        }
    }

    /// Begins the body again. Whether it can: false when more has gone on than was kept.
    pub(crate) fn rewind(&mut self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(source) if !source.beyond => {
                source.again = 0;
                true
            }
            Self::H2(source) if source.is_kept() => {
                source.rewind();
                true
            }
            Self::Kept(source) if !source.beyond => {
                source.again = 0;
                true
            }
            Self::Tapped(source) => source.rewind(),
            _ => false,
        }
    }

    /// Everything that comes from here on is data, until the sender ends its direction.
    pub(crate) fn become_tunnel(&mut self) {
        if let Self::H1(source) = self {
            *source.decoder = BodyDecoder::new(Framing::UntilClose, TRAILER_LIMITS);
        } else if let Self::Tapped(source) = self {
            source.inner.become_tunnel();
        } else if let Self::Kept(_) = self {
            // Nothing of a tunnel is sent again.
            let Self::Kept(source) = std::mem::replace(self, Self::Empty) else { return };
            *self = source.into_inner();
            self.become_tunnel();
        }
    }

    /// Waits for the next run of bytes; false is the body's whole end.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        match self {
            Self::Empty => Poll::Ready(Ok(false)),
            Self::Own(bytes) => Poll::Ready(Ok(!bytes.is_empty())),
            Self::H1(source) => source.poll_ready(cx),
            Self::H2(source) => source.poll_ready(cx),
            Self::Kept(source) if source.again < source.kept.len() => Poll::Ready(Ok(true)),
            Self::Kept(source) => source.inner.poll_ready(cx),
            Self::Coded(source) => source.poll_ready(cx),
            Self::Tapped(source) => source.poll_ready(cx),
        }
    }

    /// The run of bytes in hand.
    pub(crate) fn data(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Own(bytes) => bytes,
            Self::H1(source) if source.again < source.kept.len() => &source.kept[source.again..],
            Self::H1(source) => &source.buffer.filled()[..source.run],
            Self::H2(source) => &source.data,
            Self::Kept(source) if source.again < source.kept.len() => &source.kept[source.again..],
            Self::Kept(source) => source.inner.data(),
            Self::Coded(source) => source.data(),
            Self::Tapped(source) => source.inner.data(),
        }
    }

    /// The first `count` bytes in hand have gone on.
    pub(crate) fn advance(&mut self, count: usize) {
        match self {
            Self::Empty => {}
            Self::Own(bytes) => *bytes = &bytes[count..],
            Self::H1(source) => source.advance(count),
            Self::H2(source) => source.advance(count),
            Self::Kept(source) => source.advance(count),
            Self::Coded(source) => source.advance(count),
            Self::Tapped(source) => source.advance(count),
        }
    }

    /// Whether the run in hand is the last, and nothing comes behind it; false when that is not known yet.
    fn is_last(&self) -> bool {
        match self {
            Self::Empty | Self::Kept(_) | Self::Coded(_) => false,
            Self::Tapped(source) => source.inner.is_last(),
            Self::Own(_) => true,
            Self::H1(source) => {
                source.again == source.kept.len() && source.decoder.is_done() && source.trailers().is_none()
            }
            Self::H2(source) => source.stream.is_end_stream(),
        }
    }

    /// The trailers, after the end.
    fn trailers(&mut self) -> Option<&Head> {
        match self {
            Self::Empty | Self::Own(_) => None,
            Self::H1(source) => source.trailers(),
            Self::H2(source) => source.trailers(),
            Self::Kept(source) => source.inner.trailers(),
            Self::Coded(source) => source.inner.trailers(),
            Self::Tapped(source) => source.inner.trailers(),
        }
    }

    /// The trailers as HTTP/2 has them, if that is how they came. They are there no more afterwards.
    fn take_trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Self::H2(source) => {
                let map = source.map.take();
                source.beyond |= map.is_some();
                map
            }
            Self::Kept(source) => source.inner.take_trailers(),
            Self::Coded(source) => source.inner.take_trailers(),
            Self::Tapped(source) => source.inner.take_trailers(),
            _ => None,
        }
    }

    /// The status of a gRPC call in the trailers, after the end.
    pub(crate) fn grpc_status(&self) -> Option<&[u8]> {
        match self {
            Self::Empty | Self::Own(_) => None,
            Self::H1(source) => source.trailers()?.get(FieldId::GrpcStatus),
            Self::H2(source) => source.grpc_status.as_ref().map(HeaderValue::as_bytes),
            Self::Kept(source) => source.inner.grpc_status(),
            Self::Coded(source) => source.inner.grpc_status(),
            Self::Tapped(source) => source.inner.grpc_status(),
        }
    }
}

impl<'a> KeptSource<'a> {
    fn advance(&mut self, count: usize) {
        if self.again < self.kept.len() {
            self.again += count;
            return;
        }
        if !self.beyond && (self.kept.len() + count > self.most || buffer::is_short()) {
            self.beyond = true;
            self.forget();
        }
        if !self.beyond {
            let before = self.kept.capacity();
            self.kept.extend_from_slice(&self.inner.data()[..count]);
            buffer::hold(self.kept.capacity() - before);
            self.again = self.kept.len();
        }
        self.inner.advance(count);
    }

    fn forget(&mut self) {
        buffer::give_back(self.kept.capacity());
        self.kept = Vec::new();
        self.again = 0;
    }

    /// What is to come, without what was kept.
    fn into_inner(mut self) -> Source<'a> {
        std::mem::replace(&mut self.inner, Source::Empty)
    }
}

impl Drop for KeptSource<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

impl H1Source<'_> {
    fn keep(&mut self) {
        while !self.buffer.is_empty() && !self.decoder.is_done() {
            // A body that is wrong is told when it is read on.
            let Ok(decoded) = self.decoder.decode(self.buffer.filled()) else { return };
            self.kept.extend_from_slice(&self.buffer.filled()[decoded.data]);
            self.buffer.consume(decoded.consumed);
            if decoded.consumed == 0 {
                return;
            }
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if self.run > 0 || self.again < self.kept.len() {
                return Poll::Ready(Ok(true));
            }
            if self.decoder.is_done() {
                return Poll::Ready(Ok(false));
            }
            if !self.buffer.is_empty() {
                let decoded =
                    self.decoder.decode(self.buffer.filled()).map_err(|error| Broken::Invalid(error.as_str()))?;
                self.run = decoded.data.len();
                self.behind = decoded.consumed - decoded.data.end;
                let before = if self.run == 0 { decoded.consumed } else { decoded.data.start };
                if self.run == 0 {
                    self.behind = 0;
                }
                self.buffer.consume(before);
                if self.run > 0 || self.decoder.is_done() || decoded.consumed > 0 {
                    continue;
                }
            }
            match ready!(self.io.poll_fill(cx, self.buffer)) {
                Ok(0) => return Poll::Ready(self.decoder.finish().map(|()| false).map_err(|_| Broken::Gone)),
                Ok(_) => {}
                Err(_) => return Poll::Ready(Err(Broken::Gone)),
            }
        }
    }

    fn trailers(&self) -> Option<&Head> {
        self.decoder.trailers().filter(|trailers| !trailers.is_empty())
    }

    fn advance(&mut self, count: usize) {
        if self.again < self.kept.len() {
            self.again += count;
            return;
        }
        self.beyond = true;
        self.run -= count;
        self.buffer.consume(count);
        if self.run == 0 {
            self.buffer.consume(std::mem::take(&mut self.behind));
        }
    }
}

impl H2Source {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if !self.data.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.data_ended {
                let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|error| self.broken(&error))?;
                if let Some(mut map) = trailers {
                    clean_trailers(&mut map);
                    self.grpc_status = map.get(FieldId::GrpcStatus.name()).cloned();
                    self.map = Some(map);
                }
                return Poll::Ready(Ok(false));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => self.data = data,
                Some(Err(error)) => return Poll::Ready(Err(self.broken(&error))),
                None => self.data_ended = true,
            }
        }
    }

    fn trailers(&mut self) -> Option<&Head> {
        if let Some(map) = self.map.take() {
            let mut head = Box::new(Head::default());
            from_header_map(&map, &mut head);
            self.trailers = Some(head);
        }
        self.trailers.as_deref()
    }

    fn broken(&self, error: &h2::Error) -> Broken {
        match &self.guard {
            Some(guard) if guard.flood().is_some() => Broken::Invalid(FLOODS),
            _ => broken(error),
        }
    }

    /// Whether what has gone on is kept, and nothing that comes behind it is in hand yet.
    fn is_kept(&self) -> bool {
        !self.beyond && (self.kept.is_empty() || self.data.is_empty() || self.again)
    }

    fn rewind(&mut self) {
        if !self.kept.is_empty() {
            self.data = self.kept.clone();
            self.again = true;
        }
    }

    fn advance(&mut self, count: usize) {
        if self.again {
            let _ = self.data.split_to(count);
            self.again = !self.data.is_empty();
            return;
        }
        if !self.beyond {
            let all = count == self.data.len() && count <= MOST_UNASKED;
            self.beyond = !self.keeps || !self.kept.is_empty() || !all;
            self.kept = if self.beyond { Bytes::new() } else { Bytes::copy_from_slice(&self.data) };
        }
        let _ = self.data.split_to(count);
        let _ = self.stream.flow_control().release_capacity(count);
        if let Some(guard) = &self.guard {
            guard.taken(self.stream.stream_id().as_u32(), count);
        }
    }
}

impl Drop for H2Source {
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            guard.ended(self.stream.stream_id().as_u32());
        }
    }
}

fn broken(error: &h2::Error) -> Broken {
    match error.reason() {
        // The peer's framing is at odds with its own content-length, for example.
        Some(h2::Reason::PROTOCOL_ERROR) if error.is_library() => Broken::Invalid("invalid HTTP/2 stream"),
        _ => Broken::Gone,
    }
}

/// A body that goes out on an HTTP/1 connection.
pub(crate) struct H1Sink<'a> {
    io: &'a Transport,
    output: &'a mut Output,
    framing: Framing,
    /// Bytes still owed to the chunk that is open.
    chunk: usize,
    /// The end of the body is the end of our direction of the connection.
    half_close: bool,
}

/// A body that goes out on an HTTP/2 stream.
pub(crate) struct H2Sink {
    stream: SendStream<Bytes>,
    /// So many bytes may go without asking for room.
    unasked: usize,
}

/// Where a body goes.
pub(crate) enum Sink<'a> {
    H1(H1Sink<'a>),
    H2(H2Sink),
    /// Nowhere: there is none, and its head has said so.
    Ended,
}

impl<'a> Sink<'a> {
    /// A body on an HTTP/1 connection, whose head is in `output` already.
    pub(crate) fn h1(io: &'a Transport, output: &'a mut Output, framing: Framing) -> Self {
        Self::H1(H1Sink { io, output, framing, chunk: 0, half_close: false })
    }

    /// A body on an HTTP/2 stream, whose head has been sent.
    pub(crate) fn h2(stream: SendStream<Bytes>) -> Self {
        Self::H2(H2Sink { stream, unasked: MOST_UNASKED })
    }

    /// Bytes as they come, until the sender ends its direction; then ours is ended too.
    pub(crate) fn tunnel(io: &'a Transport, output: &'a mut Output) -> Self {
        Self::H1(H1Sink { io, output, framing: Framing::UntilClose, chunk: 0, half_close: true })
    }

    /// The same way out for bytes as they come.
    pub(crate) fn into_tunnel(self) -> Self {
        match self {
            Self::H1(sink) => Self::tunnel(sink.io, sink.output),
            other => other,
        }
    }

    /// Takes some of `data`; `last` is whether the body ends with it, which is told along with it where that is cheaper.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], last: bool) -> Poll<Result<usize, Broken>> {
        match self {
            Self::H1(sink) => sink.poll_send(cx, data).map_err(|_| Broken::Refused),
            Self::H2(sink) => {
                let count = ready!(sink.poll_room(cx, data.len().min(MOST_PER_FRAME)))?;
                if count == 0 {
                    // The window shrank under us; the next capacity wakes us.
                    return Poll::Pending;
                }
                let ends = last && count == data.len();
                let data = buffer::counted(&data[..count]);
                sink.stream.send_data(data, ends).map_err(|_| Broken::Refused)?;
                if ends {
                    *self = Self::Ended;
                }
                Poll::Ready(Ok(count))
            }
            Self::Ended => Poll::Ready(Ok(data.len())),
        }
    }

    /// Sends what is gathered.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match self {
            Self::H1(sink) => sink.output.poll_flush(cx, sink.io).map_err(|_| Broken::Refused),
            // The connection's own task sends.
            Self::H2(_) | Self::Ended => Poll::Ready(Ok(())),
        }
    }

    /// Sends what is gathered, and ends our direction where that is the body's end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        ready!(self.poll_flush(cx))?;
        match self {
            Self::H1(sink) if sink.half_close => sink.io.poll_shutdown(cx).map_err(|_| Broken::Refused),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Says that the body is whole. What is gathered must be flushed yet.
    fn finish(&mut self, source: &mut Source<'_>) -> Result<(), Broken> {
        match self {
            Self::H1(sink) => {
                if matches!(sink.framing, Framing::Chunked) {
                    h1::write_last_chunk(source.trailers(), sink.output.bytes());
                }
                sink.framing = Framing::Empty;
            }
            Self::H2(H2Sink { stream, .. }) => {
                let trailers = source.take_trailers().or_else(|| source.trailers().map(to_header_map));
                let outcome = match trailers {
                    Some(trailers) => stream.send_trailers(trailers),
                    None => stream.send_data(Bytes::new(), true),
                };
                outcome.map_err(|_| Broken::Refused)?;
                *self = Self::Ended;
            }
            Self::Ended => {}
        }
        Ok(())
    }

    /// Ends a body that is not whole so that the receiver knows.
    pub(crate) fn abort(&mut self, reason: h2::Reason) {
        // An HTTP/1 connection is closed without the body's end, by its owner.
        if let Self::H2(sink) = self {
            sink.stream.send_reset(reason);
            *self = Self::Ended;
        }
    }

    /// Ends a tunnel whose other side broke off, so that the receiver sees that too.
    pub(crate) fn break_off(&mut self) {
        match self {
            Self::H1(sink) => sink.io.reset(),
            _ => self.abort(h2::Reason::CONNECT_ERROR),
        }
    }

    /// Whether the receiver has gone, or wants no more; registers for it.
    pub(crate) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(sink) => sink.stream.poll_reset(cx).map(|_| ()),
            _ => Poll::Pending,
        }
    }
}

impl H2Sink {
    /// How many of so many bytes there is room for.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>> {
        if wanted <= self.unasked {
            self.unasked -= wanted;
            return Poll::Ready(Ok(wanted));
        }
        self.unasked = 0;
        if self.stream.capacity() == 0 {
            self.stream.reserve_capacity(wanted);
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                _ => return Poll::Ready(Err(Broken::Refused)),
            }
        }
        Poll::Ready(Ok(self.stream.capacity().min(wanted)))
    }
}

impl H1Sink<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if !matches!(self.framing, Framing::Chunked) {
            return self.output.poll_send(cx, self.io, data);
        }
        if self.chunk == 0 {
            h1::write_chunk_head(data.len(), self.output.bytes());
            self.chunk = data.len();
        }
        let count = ready!(self.output.poll_send(cx, self.io, &data[..self.chunk.min(data.len())]))?;
        self.chunk -= count;
        if self.chunk == 0 {
            self.output.bytes().extend_from_slice(h1::CHUNK_END);
        }
        Poll::Ready(Ok(count))
    }
}

/// What a pump waits for, for those who watch the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    ForSource,
    ForSink,
}

/// Moves what can be moved; ready when the body has gone whole. `moved` hears of bytes, `waiting` of waits.
///
/// All state is in the source and the sink: it can be left and taken up again at any time.
pub(crate) fn poll_pump(
    cx: &mut Context<'_>,
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    mut moved: impl FnMut(usize),
    waiting: &mut Option<Waiting>,
) -> Poll<Result<(), Broken>> {
    let mut ended = false;
    loop {
        let more = if ended { Poll::Ready(false) } else { source.poll_ready(cx)? };
        let Poll::Ready(more) = more else {
            // What was taken must not wait for what is to come.
            *waiting = Some(Waiting::ForSink);
            ready!(sink.poll_flush(cx))?;
            *waiting = Some(Waiting::ForSource);
            return Poll::Pending;
        };
        *waiting = Some(Waiting::ForSink);
        if !more {
            if !matches!(sink, Sink::Ended) {
                sink.finish(source)?;
            }
            ready!(sink.poll_end(cx))?;
            *waiting = None;
            *sink = Sink::Ended;
            return Poll::Ready(Ok(()));
        }
        let (length, last) = (source.data().len(), source.is_last());
        let count = ready!(sink.poll_send(cx, source.data(), last))?;
        ended = last && count == length;
        source.advance(count);
        moved(count);
    }
}
