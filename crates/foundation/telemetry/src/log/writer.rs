//! Writes a line to standard error without ever waiting long for its reader.
//!
//! The descriptor is shared with others (a terminal, the container's log pipe), so it cannot
//! be made non-blocking. Instead it is asked first: a pipe that polls writable has room for
//! `PIPE_BUF` bytes, so a line no longer than that is written whole and at once ([pipe(7)]).
//!
//! [pipe(7)]: https://man7.org/linux/man-pages/man7/pipe.7.html

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::write;
use rustix::stdio::stderr;

/// `PIPE_BUF` on Linux.
const MAX_LINE: usize = 4096;

/// How long a full pipe is waited for: a reader that is merely slow loses nothing.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

const CUT: &[u8] = b"...\n";

/// Writes a line, cut to [`MAX_LINE`]; `false` when nobody reads.
pub(super) fn write_line(line: &[u8]) -> bool {
    let mut cut;
    let line = if line.len() > MAX_LINE {
        let text = String::from_utf8_lossy(&line[..MAX_LINE - CUT.len()]);
        cut = text.trim_end_matches('\u{fffd}').as_bytes().to_vec();
        cut.extend_from_slice(CUT);
        &cut
    } else {
        line
    };
    let stderr = stderr();
    let mut descriptors = [PollFd::new(&stderr, PollFlags::OUT)];
    match poll(&mut descriptors, Some(&PATIENCE)) {
        Ok(1..) => write(stderr, line).is_ok_and(|written| written == line.len()),
        _ => false,
    }
}
