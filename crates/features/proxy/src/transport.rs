//! A byte stream: TCP, or TLS over it.
//!
//! Promise: reading and writing go on side by side in one task without a lock; a plain
//! stream costs no allocation. Only one task may wait for each direction.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::buffer::{self, Buffer};
use crate::socket::OwnCall;

/// What the bytes go over.
enum Kind {
    Plain(TcpStream),
    Accepted(Box<server::TlsStream<Replay>>),
    Connected(Box<client::TlsStream<TcpStream>>),
}

/// A byte stream that can be read and written through a shared reference.
pub(crate) struct Transport(
    RefCell<Kind>,
    #[expect(dead_code, reason = "held for what its drop does")] Option<Box<OwnCall>>,
    Stuck,
);

/// What TLS may hold that its peer does not take: rustls encrypts no more than that ahead.
const MOST_STUCK: usize = 64 * 1024;

/// Whether TLS holds bytes that its peer does not take, counted as memory while it does.
#[derive(Default)]
struct Stuck(Cell<bool>);

impl Stuck {
    fn is(&self, stuck: bool) {
        match (self.0.replace(stuck), stuck) {
            (false, true) => buffer::hold(MOST_STUCK),
            (true, false) => buffer::give_back(MOST_STUCK),
            _ => {}
        }
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.is(false);
    }
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Self {
        Self(RefCell::new(Kind::Plain(stream)), None, Stuck::default())
    }
}

impl From<server::TlsStream<Replay>> for Transport {
    fn from(stream: server::TlsStream<Replay>) -> Self {
        Self(RefCell::new(Kind::Accepted(Box::new(stream))), None, Stuck::default())
    }
}

impl From<client::TlsStream<TcpStream>> for Transport {
    fn from(stream: client::TlsStream<TcpStream>) -> Self {
        Self(RefCell::new(Kind::Connected(Box::new(stream))), None, Stuck::default())
    }
}

/// Runs `$body` with `$stream` pinned to whichever stream there is.
macro_rules! with_stream {
    ($transport:expr, $stream:ident => $body:expr) => {
        match &mut *$transport.0.borrow_mut() {
            Kind::Plain(stream) => {
                let $stream = Pin::new(stream);
                $body
            }
            Kind::Accepted(stream) => {
                let $stream = Pin::new(&mut **stream);
                $body
            }
            Kind::Connected(stream) => {
                let $stream = Pin::new(&mut **stream);
                $body
            }
        }
    };
}

impl Transport {
    /// Keeps it known as ours as long as it is open.
    pub(crate) fn known_as(self, call: Option<Box<OwnCall>>) -> Self {
        Self(self.0, call, self.2)
    }

    /// Reads behind what waits in `buffer`; 0 is the end. Holds no memory while nothing comes.
    pub(crate) fn poll_fill(&self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        let mut into = ReadBuf::new(buffer.space());
        let outcome = with_stream!(self, stream => stream.poll_read(cx, &mut into));
        let count = into.filled().len();
        buffer.filled_by(count);
        if outcome.is_pending() {
            buffer.rest();
        }
        outcome.map_ok(|()| count)
    }

    /// Whether nothing has come, not even the end, on a stream that should be at rest. Costs no system call.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [0; 1];
        let mut into = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        with_stream!(self, stream => stream.poll_read(&mut cx, &mut into)).is_pending()
    }

    /// The same, asked of the kernel, so that an end that came a moment ago is not missed. Costs a system call.
    pub(crate) fn is_surely_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let peeked = self.with_tcp(|stream| SockRef::from(stream).peek(&mut byte));
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads what has come, for those who have a place for it.
    pub(crate) fn poll_read_into(&self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_read(cx, into))
    }

    /// Writes some of the pieces.
    pub(crate) fn poll_write_pieces(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let outcome = with_stream!(self, stream => stream.poll_write_vectored(cx, pieces));
        self.count_stuck();
        outcome
    }

    /// Counts what TLS holds, after each write.
    fn count_stuck(&self) {
        match &*self.0.borrow() {
            Kind::Plain(_) => {}
            Kind::Accepted(stream) => self.2.is(stream.get_ref().1.wants_write()),
            Kind::Connected(stream) => self.2.is(stream.get_ref().1.wants_write()),
        }
    }

    /// Writes some of `bytes`.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = with_stream!(self, stream => stream.poll_write(cx, bytes));
        self.count_stuck();
        outcome
    }

    /// Writes some of `first`, then of `second`.
    pub(crate) fn poll_write_two(&self, cx: &mut Context<'_>, first: &[u8], second: &[u8]) -> Poll<io::Result<usize>> {
        if first.is_empty() {
            return self.poll_write(cx, second);
        }
        self.poll_write_pieces(cx, &[IoSlice::new(first), IoSlice::new(second)])
    }

    /// Sends what TLS still holds.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = with_stream!(self, stream => stream.poll_flush(cx));
        self.count_stuck();
        outcome
    }

    /// Ends our direction.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_shutdown(cx))
    }

    /// The TCP connection below.
    pub(crate) fn with_tcp<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> R {
        match &*self.0.borrow() {
            Kind::Plain(stream) => look(stream),
            Kind::Accepted(stream) => stream.get_ref().0.io.with_tcp(look),
            Kind::Connected(stream) => look(stream.get_ref().0),
        }
    }

    /// Whether there is nothing but TCP.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(&*self.0.borrow(), Kind::Plain(_))
    }

    /// Makes the end of the connection a reset, so that it cannot be taken for the end of a message.
    pub(crate) fn reset(&self) {
        let _ = self.with_tcp(TcpStream::set_zero_linger);
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with_stream!(self, stream => stream.poll_read(cx, into))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(&self, cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(&self, cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_shutdown(&self, cx)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_pieces(cx, bufs)
    }
}

/// Bytes to be written, gathered while they are few.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    written: usize,
    /// Written bytes that TLS may still hold.
    unflushed: bool,
}

/// Up to so many bytes are put together before a write: copying them costs less than a second vector.
const SMALL: usize = 4096;

impl Output {
    /// Bytes are appended here by those who make heads and frames.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes some of `data`: gathers it when it is small, else writes it with what is gathered.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, io: &Transport, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.bytes.len() - self.written + data.len() <= SMALL {
            self.bytes.extend_from_slice(data);
            return Poll::Ready(Ok(data.len()));
        }
        loop {
            let waiting = &self.bytes[self.written..];
            let ahead = waiting.len();
            let count = ready!(io.poll_write_two(cx, waiting, data))?;
            self.unflushed = true;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if count < ahead {
                self.written += count;
                continue;
            }
            self.clear();
            if count > ahead {
                return Poll::Ready(Ok(count - ahead));
            }
        }
    }

    /// Writes all that is gathered.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, io: &Transport) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            let count = ready!(io.poll_write(cx, &self.bytes[self.written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            self.unflushed = true;
        }
        self.clear();
        if self.unflushed {
            ready!(io.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Frees the memory; nothing waits.
    pub(crate) fn rest(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }
}

/// A stream of which some bytes were read already, for those who must see them all.
pub(crate) struct Replay {
    pub(crate) io: Transport,
    pub(crate) ahead: Buffer,
}

impl AsyncRead for Replay {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, into);
        }
        let count = self.ahead.len().min(into.remaining());
        into.put_slice(&self.ahead.filled()[..count]);
        self.ahead.consume(count);
        self.ahead.rest();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replay {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io.poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_that_the_runtime_has_not_heard_of_is_seen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().unwrap();
        let transport = Transport::from(stream);
        assert!(transport.is_quiet() && transport.is_surely_quiet());
        drop(peer);
        // The runtime has not looked since; the kernel knows as soon as the segment has come.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while transport.is_surely_quiet() {
            assert!(std::time::Instant::now() < deadline);
        }
        assert!(transport.is_quiet(), "else this test proves nothing");
    }
}
