//! A client's bytes on their way to and from the HTTP library.
//!
//! Promise: every byte is judged before the library sees it; the first byte of a request
//! starts its clock; a client that does not take its answer is noticed; one that was refused
//! is listened to for a while, so that it can read why.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::judge::Judge;
use crate::watch::{Phase, Watched};
use crate::write;

/// A client is listened to for so many bytes after it was refused.
const MOST_LINGERED: usize = 1024 * 1024;

/// What a client's bytes come over.
pub(crate) trait Transport: Read + Write + Unpin + 'static {
    /// The TCP connection below.
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TokioIo<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.inner()
    }
}

impl Transport for TokioIo<TlsStream<TcpStream>> {
    fn tcp(&self) -> &TcpStream {
        self.inner().get_ref().0
    }
}

/// A client's connection as the HTTP library sees it.
pub(crate) struct ClientIo<I: Transport> {
    io: I,
    watched: Rc<Watched>,
    judge: Judge,
    /// Bytes thrown away since our side was closed; `None` before that.
    lingered: Option<usize>,
}

impl<I: Transport> ClientIo<I> {
    pub(crate) fn new(io: I, watched: Rc<Watched>, longest_line: usize) -> Self {
        Self { io, watched, judge: Judge::new(longest_line), lingered: None }
    }

    /// Reads what a refused client still sends. Closing before that would reset the connection, and the reset
    /// may overtake the answer ([RFC 9112], 9.6). The header timeout bounds it.
    ///
    /// [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waste = [MaybeUninit::uninit(); 4096];
        loop {
            let mut buffer = ReadBuf::uninit(&mut waste);
            let outcome = ready!(Pin::new(&mut self.io).poll_read(cx, buffer.unfilled()));
            let read = buffer.filled().len();
            let lingered = self.lingered.get_or_insert(0);
            *lingered += read;
            if outcome.is_err() || read == 0 || *lingered > MOST_LINGERED {
                return Poll::Ready(());
            }
        }
    }

    fn note_write<T>(&self, outcome: Poll<T>) -> Poll<T> {
        self.watched.wait_to_write(outcome.is_pending());
        outcome
    }
}

impl<I: Transport> Read for ClientIo<I> {
    #[expect(unsafe_code, reason = "a cursor's bytes can be seen only through a buffer made over them")]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // SAFETY: nothing is de-initialised: `buffer` is only ever written to, from its beginning.
        let mut buffer = ReadBuf::uninit(unsafe { into.as_mut() });
        ready!(Pin::new(&mut this.io).poll_read(cx, buffer.unfilled()))?;
        let read = buffer.filled();
        if this.watched.phase() == Phase::Idle {
            this.watched.enter(Phase::Head, Instant::now());
        }
        this.judge.look(read);
        if this.watched.verdict.get().is_none() {
            this.watched.verdict.set(this.judge.verdict());
        }
        let count = read.len();
        // SAFETY: `count` bytes from the beginning were filled, as `buffer` tells.
        unsafe { into.advance(count) };
        Poll::Ready(Ok(()))
    }
}

impl<I: Transport> Write for ClientIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note_write(outcome)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS writes its records here.
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.note_write(outcome)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingered.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            let unread = self.watched.phase() == Phase::Head || self.watched.answered_early.get();
            if !unread {
                return Poll::Ready(Ok(()));
            }
            self.watched.enter(Phase::Head, Instant::now());
            self.lingered = Some(0);
        }
        self.poll_linger(cx).map(Ok)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = write::poll_write(&mut self.io, cx, bufs);
        self.note_write(outcome)
    }
}

impl<I: Transport> Drop for ClientIo<I> {
    fn drop(&mut self) {
        if self.watched.reset.get() {
            let _ = self.io.tcp().set_zero_linger();
        }
    }
}
