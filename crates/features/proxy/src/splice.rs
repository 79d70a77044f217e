//! Bytes from one plain TCP connection to another without a copy (`splice(2)`).
//!
//! In: a direction in which much comes at once. Out: the same bytes; the kernel moves its pages
//! from socket to socket by way of a pipe. Promise: a pipe is held only while bytes are on their
//! way; a worker has a bounded number of them, and who gets none copies as before.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::body::Broken;

/// Bytes on their way at once. More saves little (docs/adr/0017-what-the-hot-paths-cost.md), and pipes of all processes of a
/// user together may have 64 MiB (`/proc/sys/fs/pipe-user-pages-soft`).
const SIZE: usize = 256 * 1024;
/// Pipes of a worker, in use and kept for the next. Each takes two descriptors.
const MOST: usize = 64;
const MOST_KEPT: usize = 8;
/// What comes in smaller portions is copied for less than two calls per portion cost.
const LITTLE: usize = 16 * 1024;

thread_local! {
    static KEPT: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static MADE: Cell<usize> = const { Cell::new(0) };
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe that is lent by the worker.
struct Pipe {
    ends: Option<Ends>,
    /// Bytes in it.
    waiting: usize,
}

impl Pipe {
    /// Nothing when there are enough of them, or the kernel gives no more, or only small ones.
    fn lend() -> Option<Self> {
        let ends = match KEPT.with_borrow_mut(Vec::pop) {
            Some(ends) => ends,
            None if MADE.get() < MOST => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                fcntl_setpipe_size(&write, SIZE).ok()?;
                MADE.set(MADE.get() + 1);
                Ends { read, write }
            }
            None => return None,
        };
        Some(Self { ends: Some(ends), waiting: 0 })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let ends = self.ends.take().filter(|_| self.waiting == 0);
        // While the thread ends there is nobody to keep it for.
        let kept = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            let keep = ends.is_some() && kept.len() < MOST_KEPT;
            kept.extend(ends.filter(|_| keep));
            keep
        });
        if !kept.unwrap_or(false) {
            let _ = MADE.try_with(|made| made.set(made.get() - 1));
        }
    }
}

/// How a stretch of splicing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spliced {
    /// The sender has ended its direction, and all it sent has gone on.
    Ended,
    /// Little comes any more, or there is no pipe: copying is better.
    Over,
}

/// One direction's bytes on their way.
#[derive(Default)]
pub(crate) struct Splice {
    pipe: Option<Pipe>,
    /// The last portion was a small one.
    little: bool,
}

impl Splice {
    /// Moves what can be moved. All state is in here: it can be left and taken up again at any time.
    pub(crate) fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        moved: &mut impl FnMut(usize),
    ) -> Poll<Result<Spliced, Broken>> {
        loop {
            while let Some(Pipe { ends: Some(ends), waiting }) = &mut self.pipe
                && *waiting > 0
            {
                ready!(to.poll_write_ready(cx)).map_err(|_| Broken::Refused)?;
                match to.try_io(Interest::WRITABLE, || transfer(&ends.read, to, *waiting)) {
                    Ok(0) => return Poll::Ready(Err(Broken::Refused)),
                    Ok(count) => {
                        *waiting -= count;
                        moved(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Poll::Ready(Err(Broken::Refused)),
                }
            }
            if std::mem::take(&mut self.little) {
                self.pipe = None;
                return Poll::Ready(Ok(Spliced::Over));
            }
            match from.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Gone)),
                Poll::Pending => {
                    // Nothing is on its way.
                    self.pipe = None;
                    return Poll::Pending;
                }
            }
            if self.pipe.is_none() {
                self.pipe = Pipe::lend();
            }
            let Some(Pipe { ends: Some(ends), waiting }) = &mut self.pipe else {
                return Poll::Ready(Ok(Spliced::Over));
            };
            match from.try_io(Interest::READABLE, || transfer(from, &ends.write, SIZE)) {
                Ok(0) => {
                    self.pipe = None;
                    return Poll::Ready(Ok(Spliced::Ended));
                }
                Ok(count) => {
                    *waiting = count;
                    self.little = count < LITTLE;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Broken::Gone)),
            }
        }
    }
}

fn transfer(from: impl std::os::fd::AsFd, to: impl std::os::fd::AsFd, most: usize) -> io::Result<usize> {
    Ok(splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

/// Pipes of this worker that are in use, and that it keeps for the next.
pub(crate) fn held() -> (usize, usize) {
    let kept = KEPT.with_borrow(Vec::len);
    (MADE.get() - kept, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_used_again_and_bounded() {
        let many: Vec<Pipe> = std::iter::from_fn(Pipe::lend).take(MOST + 1).collect();
        assert_eq!((many.len(), held()), (MOST, (MOST, 0)));
        drop(many);
        assert_eq!(held(), (0, MOST_KEPT));
        let mut one = Pipe::lend().unwrap();
        assert_eq!(held(), (1, MOST_KEPT - 1), "a kept one");
        one.waiting = 1;
        drop(one);
        assert_eq!(held(), (0, MOST_KEPT - 1), "one with bytes of somebody else is not used again");
    }
}
