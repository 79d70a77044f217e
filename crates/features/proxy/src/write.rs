//! Writes as one plain buffer what is small or in one piece.
//!
//! Why: a vectored write costs the kernel more than a plain one, and most messages of HTTP
//! are a head and a small body. Copying a small body to its head is cheaper than the second
//! vector (measured: docs/adr/0005); larger ones are written where they lie.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

/// Up to so many bytes are put together.
const SMALL: usize = 4096;

thread_local! {
    /// One per worker, for a write is over before the next one begins.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes `bufs` in the cheapest way.
pub(crate) fn poll_write<I: Write + Unpin>(
    io: &mut I,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    match bufs {
        [only] => Pin::new(io).poll_write(cx, only),
        _ if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= SMALL => SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            bufs.iter().for_each(|buf| scratch.extend_from_slice(buf));
            Pin::new(io).poll_write(cx, scratch)
        }),
        _ => Pin::new(io).poll_write_vectored(cx, bufs),
    }
}

/// A connection to an endpoint, written to in that way.
pub(crate) struct Coalesced<I>(pub(crate) I);

impl<I: Read + Unpin> Read for Coalesced<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<I: Write + Unpin> Write for Coalesced<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write(&mut self.0, cx, bufs)
    }
}
