//! Writes a line to standard error without ever waiting long for its reader.
//!
//! The descriptor is shared with others (a terminal, the container's log pipe), so it cannot
//! be made non-blocking: they would get errors. Instead each write asks not to wait. A pipe
//! takes a line of up to `PIPE_BUF` bytes whole or not at all ([pipe(7)]), so lines are kept
//! that short. A full pipe is waited for 5 ms, once: until a line gets through again, later
//! ones are dropped at once and counted. Files, terminals, and pipes of kernels before 6.4
//! cannot be asked, so they are polled first; there a full buffer can make us wait only when
//! another process fills it in the moment between.
//!
//! [pipe(7)]: https://man7.org/linux/man-pages/man7/pipe.7.html

use std::borrow::Cow;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2, write};
use rustix::net::{SendFlags, send};

/// `PIPE_BUF` on Linux.
pub(super) const MAX_LINE: usize = 4096;

/// A reader that is merely slow loses nothing.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Writes lines to one descriptor.
pub(super) struct Writer {
    descriptor: BorrowedFd<'static>,
    kind: FileType,
    /// The last line did not get through.
    stalled: AtomicBool,
    /// Only a part of the last line did, which a socket may do.
    torn: AtomicBool,
}

impl Writer {
    pub(super) fn new(descriptor: BorrowedFd<'static>) -> Self {
        let kind = fstat(descriptor).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
        Self { descriptor, kind, stalled: AtomicBool::new(false), torn: AtomicBool::new(false) }
    }

    /// Writes a line of at most [`MAX_LINE`] bytes; `false` when nobody reads.
    pub(super) fn write_line(&self, line: &[u8]) -> bool {
        let line =
            if self.torn.swap(false, Relaxed) { Cow::Owned([b"\n", line].concat()) } else { Cow::Borrowed(line) };
        let mut rest = &*line;
        let mut patient = !self.stalled.load(Relaxed);
        while !rest.is_empty() {
            match self.attempt(rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if std::mem::take(&mut patient) => {
                    let _ = self.has_room(PATIENCE);
                }
                Err(_) => break,
            }
        }
        self.torn.store(!rest.is_empty() && rest.len() < line.len(), Relaxed);
        self.stalled.store(!rest.is_empty(), Relaxed);
        rest.is_empty()
    }

    /// Writes what can be written at once.
    fn attempt(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let outcome = match self.kind {
            // The offset -1 means: none.
            FileType::Fifo => pwritev2(self.descriptor, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT),
            FileType::Socket => send(self.descriptor, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            _ => Err(Errno::OPNOTSUPP),
        };
        match outcome {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if self.has_room(NOT_AT_ALL) => {
                write(self.descriptor, bytes)
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Err(Errno::AGAIN),
            outcome => outcome,
        }
    }

    fn has_room(&self, patience: Timespec) -> bool {
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::OUT)];
        poll(&mut descriptors, Some(&patience)).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    /// The descriptor for as long as the test runs.
    fn for_ever(descriptor: impl Into<OwnedFd>) -> BorrowedFd<'static> {
        let leaked: &'static OwnedFd = Box::leak(Box::new(descriptor.into()));
        leaked.as_fd()
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let (pipe_reader, pipe) = std::io::pipe().unwrap();
        let (socket_reader, socket) = UnixStream::pair().unwrap();
        let pair: [(&str, Box<dyn Read>, OwnedFd); 2] =
            [("pipe", Box::new(pipe_reader), pipe.into()), ("socket", Box::new(socket_reader), socket.into())];
        for (name, mut reader, descriptor) in pair {
            let writer = Writer::new(for_ever(descriptor));
            let line = [vec![b'x'; 999], vec![b'\n']].concat();
            let began = Instant::now();
            let written = (0..2000).filter(|_| writer.write_line(&line)).count();
            assert!((10..1900).contains(&written), "{name}: {written}");
            assert!(began.elapsed() < Duration::from_secs(2), "{name}: {:?}", began.elapsed());
            // What was written is there, whole; and when there is room again, lines get through again.
            let mut room = vec![0; written * line.len()];
            reader.read_exact(&mut room).unwrap();
            assert!(room.chunks(line.len()).all(|chunk| chunk == line), "{name}");
            assert!(writer.write_line(b"again\n"), "{name}");
            let mut again = [0; 6];
            reader.read_exact(&mut again).unwrap();
            assert_eq!(&again, b"again\n", "{name}");
        }
    }

    #[test]
    fn others_that_share_the_descriptor_may_still_wait() {
        let (_reader, pipe) = std::io::pipe().unwrap();
        let descriptor = for_ever(pipe);
        assert!(Writer::new(descriptor).write_line(b"x\n"));
        assert!(!rustix::fs::fcntl_getfl(descriptor).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn files_are_written_and_a_gone_reader_is_noticed() {
        let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(file);
        let writer = Writer::new(for_ever(file.try_clone().unwrap()));
        assert!(writer.write_line(b"one\n") && writer.write_line(b"two\n"));
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
        let (reader, pipe) = std::io::pipe().unwrap();
        drop(reader);
        assert!(!Writer::new(for_ever(pipe)).write_line(b"x\n"));
    }
}
