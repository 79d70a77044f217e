//! The bytes of an HTTP/2 connection, beneath the `h2` crate.
//!
//! In: what the crate writes: it hands over each frame with a body by itself, and wants it sent before the next. Out: one
//! write for all that one look at the connection brought forth. Promise: at most a block waits here, lent by the worker
//! and counted; once it is full the crate feels the peer's pace; nothing waits while whoever drives the connection rests.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use crate::buffer::{Buffer, LARGE_BLOCK};
use crate::transport::Transport;

/// More than that at once is not copied, but written with what waits.
const MOST_COPIED: usize = 8 * 1024;
/// What waits, and so many pieces behind it, go in one write. The crate hands over a frame's head and its body.
const MOST_PIECES: usize = 4;

/// A byte stream whose writes are gathered until it is flushed.
pub(crate) struct Wire {
    io: Transport,
    waiting: RefCell<Buffer>,
    /// Whoever drives the connection flushes it.
    driven: Cell<bool>,
    /// Written bytes that TLS may still hold.
    unflushed: Cell<bool>,
    /// How a flush failed; the crate hears of it by its next read or write.
    broken: Cell<Option<io::ErrorKind>>,
}

impl Wire {
    pub(crate) fn new(io: Transport) -> Self {
        let (driven, unflushed, broken) = (Cell::new(false), Cell::new(false), Cell::new(None));
        Self { io, waiting: RefCell::new(Buffer::large()), driven, unflushed, broken }
    }

    /// From here on bytes wait until [`Self::poll_settle`].
    pub(crate) fn begin_driving(&self) {
        self.driven.set(true);
    }

    /// Sends what waits, before whoever drives the connection rests; false when it failed, and the connection should be
    /// looked at again to hear why.
    pub(crate) fn poll_settle(&self, cx: &mut Context<'_>) -> bool {
        match self.poll_send_all(cx) {
            Poll::Ready(Err(error)) => self.broken.replace(Some(error.kind())).is_some(),
            _ => true,
        }
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.is_whole()?;
        self.io.poll_read_into(cx, into)
    }

    /// Takes some of the bytes.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.is_whole()?;
        let total = pieces.iter().map(|piece| piece.len()).sum();
        if total <= MOST_COPIED {
            if self.waiting.borrow().len() + total > LARGE_BLOCK {
                ready!(self.poll_send_waiting(cx))?;
            }
            let mut waiting = self.waiting.borrow_mut();
            pieces.iter().for_each(|piece| waiting.put(piece));
            return Poll::Ready(Ok(total));
        }
        let mut waiting = self.waiting.borrow_mut();
        loop {
            let mut all = [IoSlice::new(&[]); MOST_PIECES + 1];
            all[0] = IoSlice::new(waiting.filled());
            let count = pieces.len().min(MOST_PIECES);
            all[1..=count].copy_from_slice(&pieces[..count]);
            let all = if waiting.is_empty() { &all[1..=count] } else { &all[..=count] };
            let written = ready!(self.io.poll_write_pieces(cx, all))?;
            self.unflushed.set(true);
            let ahead = written.min(waiting.len());
            waiting.consume(ahead);
            if written == 0 || written > ahead {
                return Poll::Ready(Ok(written - ahead));
            }
        }
    }

    /// What the crate takes for sent.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.driven.get() { Poll::Ready(Ok(())) } else { self.poll_send_all(cx) }
    }

    /// Ends our direction.
    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_all(cx))?;
        self.io.poll_shutdown(cx)
    }

    fn poll_send_all(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_waiting(cx))?;
        if self.unflushed.get() {
            ready!(self.io.poll_flush(cx))?;
            self.unflushed.set(false);
        }
        self.waiting.borrow_mut().rest();
        Poll::Ready(Ok(()))
    }

    fn poll_send_waiting(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.waiting.borrow_mut();
        while !waiting.is_empty() {
            let count = ready!(self.io.poll_write(cx, waiting.filled()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed.set(true);
            waiting.consume(count);
        }
        Poll::Ready(Ok(()))
    }

    fn is_whole(&self) -> io::Result<()> {
        self.broken.get().map_or(Ok(()), |kind| Err(kind.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;

    use tokio::net::TcpStream;

    use super::*;
    use crate::buffer;

    #[tokio::test]
    async fn what_is_written_waits_for_the_end_of_a_look_and_then_goes_in_order() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let wire = Wire::new(stream.into());
        wire.begin_driving();
        let large = vec![b'l'; MOST_COPIED + 1];
        let mut written = Vec::new();
        for pieces in [&[&b"head"[..], b"body"][..], &[b"more"], &[b"head of ", &large], &[b"end"]] {
            let all = pieces.concat();
            let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let count = poll_fn(|cx| wire.poll_write(cx, &slices)).await.unwrap();
            assert_eq!(count, all.len(), "the kernel has room for it");
            written.extend(all);
        }
        let behind = &written[written.len() - 3..];
        assert_eq!(wire.waiting.borrow().filled(), behind, "a large piece takes along what waited");
        assert!(poll_fn(|cx| wire.poll_flush(cx)).await.is_ok());
        assert_eq!(wire.waiting.borrow().len(), 3, "the crate's flush sends nothing");
        assert!(poll_fn(|cx| Poll::Ready(wire.poll_settle(cx))).await);
        assert_eq!((wire.waiting.borrow().len(), buffer::bytes_held().0), (0, 0), "and nothing is held afterwards");
        drop(wire);
        let mut came = Vec::new();
        peer.read_to_end(&mut came).unwrap();
        assert!(came == written);
    }

    #[tokio::test]
    async fn who_does_not_read_is_not_written_for_without_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().unwrap();
        let wire = Wire::new(stream.into());
        wire.begin_driving();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let piece = [b'x'; 4096];
        let taken = |wire: &Wire, cx: &mut Context<'_>| wire.poll_write(cx, &[IoSlice::new(&piece)]).is_ready();
        let most = (0..100_000).take_while(|_| taken(&wire, &mut cx)).count();
        assert!(most < 100_000);
        assert!(wire.waiting.borrow().len() <= LARGE_BLOCK && buffer::bytes_held().0 == LARGE_BLOCK);
        assert!(wire.poll_settle(&mut cx), "it is only slow");
        drop(peer);
        // That it went away is told once by the flush, and then by whatever the crate does.
        poll_fn(|cx| if wire.poll_settle(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
        assert!(poll_fn(|cx| wire.poll_write(cx, &[IoSlice::new(b"x")])).await.is_err());
        assert!(poll_fn(|cx| wire.poll_read(cx, &mut ReadBuf::new(&mut [0; 9]))).await.is_err());
    }
}
