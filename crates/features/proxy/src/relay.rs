//! One direction of a connection that is carried as it comes.
//!
//! In: bytes of one side. Out: the same bytes at the other, and its end. Promise: one block is in
//! hand at a time and goes on before more is read; a direction that rests holds no memory;
//! where much comes at once between two plain connections, the kernel moves it without a copy.

use std::task::{Context, Poll, ready};

use crate::body::Broken;
use crate::buffer::Buffer;
use crate::splice::{Splice, Spliced};
use crate::transport::Transport;

/// One direction.
pub(crate) struct Relay<'a> {
    from: &'a Transport,
    to: &'a Transport,
    /// What came and has not gone on.
    buffer: Buffer,
    splice: Splice,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copying,
    Splicing,
    /// The sender has ended its direction.
    Ending,
    Ended,
}

impl<'a> Relay<'a> {
    /// `buffer` holds what was read already.
    pub(crate) fn new(from: &'a Transport, to: &'a Transport, mut buffer: Buffer) -> Self {
        buffer.enlarge();
        Self { from, to, buffer, splice: Splice::default(), phase: Phase::Copying }
    }

    /// Whether it holds bytes that have not gone on.
    pub(crate) fn holds(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Moves what can be moved, and tells `moved` how much; ready when the sender's end has been passed on. It can be
    /// left and taken up again at any time, also after its end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, mut moved: impl FnMut(usize)) -> Poll<Result<(), Broken>> {
        loop {
            match self.phase {
                Phase::Copying => self.phase = ready!(self.poll_copy(cx, &mut moved))?,
                Phase::Splicing => self.phase = ready!(self.poll_splice(cx, &mut moved))?,
                Phase::Ending => {
                    ready!(self.to.poll_shutdown(cx)).map_err(|_| Broken::Refused)?;
                    self.phase = Phase::Ended;
                }
                Phase::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_copy(&mut self, cx: &mut Context<'_>, moved: &mut impl FnMut(usize)) -> Poll<Result<Phase, Broken>> {
        let mut much = false;
        loop {
            while !self.buffer.is_empty() {
                let count = ready!(self.to.poll_write(cx, self.buffer.filled())).map_err(|_| Broken::Refused)?;
                if count == 0 {
                    return Poll::Ready(Err(Broken::Refused));
                }
                self.buffer.consume(count);
                moved(count);
            }
            if much && self.from.is_plain() && self.to.is_plain() {
                self.buffer.rest();
                return Poll::Ready(Ok(Phase::Splicing));
            }
            let Poll::Ready(read) = self.from.poll_fill(cx, &mut self.buffer) else {
                // What was taken must not wait for what is to come.
                ready!(self.to.poll_flush(cx)).map_err(|_| Broken::Refused)?;
                return Poll::Pending;
            };
            match read.map_err(|_| Broken::Gone)? {
                0 => {
                    self.buffer.rest();
                    return Poll::Ready(Ok(Phase::Ending));
                }
                // More than fits came at once.
                _ => much = self.buffer.is_full(),
            }
        }
    }

    fn poll_splice(&mut self, cx: &mut Context<'_>, moved: &mut impl FnMut(usize)) -> Poll<Result<Phase, Broken>> {
        let (splice, to) = (&mut self.splice, self.to);
        let outcome = self.from.with_tcp(|from| to.with_tcp(|to| splice.poll_move(cx, from, to, moved)));
        Poll::Ready(Ok(match ready!(outcome)? {
            Spliced::Ended => Phase::Ending,
            Spliced::Over => Phase::Copying,
        }))
    }
}
