//! Writes JSON lines to standard output.
//!
//! Promise: a reader that does not read holds back this sink alone, not the process and not
//! its stop; what a failed write has put out already is not put out again. Lines go out in
//! pieces that a pipe takes whole, so that they do not mix with what others write to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use outrigger_runtime::Backoff;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::{RETRY, SinkParts};
use crate::queue::Piece;

/// What a pipe takes whole, and takes without waiting when it is writable at all (`PIPE_BUF` of [pipe(7)]).
///
/// [pipe(7)]: https://man7.org/linux/man-pages/man7/pipe.7.html
const ATOMIC: usize = 4096;
/// How long one wait for the reader lasts before we look whether we are to end.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A standard output sink before it runs.
pub(crate) struct StdoutSink {
    pub(crate) parts: SinkParts,
}

impl StdoutSink {
    /// Takes batches until the sources have ended.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(batch) = self.parts.batches.next().await {
            let mut batch = Arc::new(batch);
            let mut done = 0;
            loop {
                let (lines, abort) = (Arc::clone(&batch), self.parts.abort.clone());
                let writing = tokio::task::spawn_blocking(move || {
                    let outcome = write(io::stdout().as_fd(), &lines, &mut done, &abort);
                    (outcome, done)
                });
                let Ok((outcome, so_far)) = writing.await else { return };
                done = so_far;
                match outcome {
                    Ok(true) => {
                        self.parts.acknowledge(std::mem::take(Arc::get_mut(&mut batch).expect("the write is over")));
                        backoff.reset();
                        break;
                    }
                    Ok(false) => return,
                    Err(error) => {
                        self.parts.metrics.retries.inc();
                        let reason = format!("cannot write to standard output: {error}");
                        self.parts.problems.tell(&self.parts.owner, reason);
                        if !self.parts.pause(backoff.next()).await {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// Writes what is left of a batch after its first `done` bytes; false when it was told to end before.
fn write(to: BorrowedFd<'_>, batch: &[Piece], done: &mut usize, abort: &CancellationToken) -> io::Result<bool> {
    let mut begin = 0;
    for piece in batch {
        let data = piece.data.as_bytes();
        while *done < begin + data.len() {
            if abort.is_cancelled() {
                return Ok(false);
            }
            let mut writable = [PollFd::new(&to, PollFlags::OUT)];
            match rustix::event::poll(&mut writable, Some(&LOOK_UP)) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match rustix::io::write(to, whole_lines(&data[*done - begin..])) {
                Ok(written) => *done += written,
                // Somebody else filled the pipe first.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        begin += data.len();
    }
    Ok(true)
}

/// As many whole lines as are taken at once; of a line that is longer, its beginning.
fn whole_lines(data: &[u8]) -> &[u8] {
    let most = &data[..data.len().min(ATOMIC)];
    memchr::memrchr(b'\n', most).map_or(most, |feed| &most[..=feed])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_not_torn_where_they_fit() {
        assert_eq!(whole_lines(b"a\nb\n"), b"a\nb\n");
        let long = [vec![b'x'; 3000], vec![b'\n'], vec![b'y'; 3000], vec![b'\n']].concat();
        assert_eq!(whole_lines(&long).len(), 3001);
        assert_eq!(whole_lines(&[b'x'; 9000]).len(), ATOMIC);
        assert_eq!(whole_lines(&[vec![b'x'; 10], vec![b'\n'], vec![b'x'; 9000]].concat()).len(), 11);
    }
}
