//! Signals to stop, for a loop around `poll` without a runtime.
//!
//! Out: a descriptor that is readable once SIGTERM, SIGINT, SIGQUIT or SIGHUP has come. Promise: none of them ends
//! the process by itself any more, also not where it is the first of its container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// What the handler writes to.
static TOLD: AtomicI32 = AtomicI32::new(-1);

/// The signals, taken over until this is dropped; there is one of it at a time.
pub(super) struct StopSignals(OwnedFd);

impl StopSignals {
    pub(super) fn take_over() -> io::Result<Self> {
        let told = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        TOLD.store(told.as_raw_fd(), Ordering::Relaxed);
        let handler: extern "C" fn(libc::c_int) = note;
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
            // SAFETY: the handler does nothing but write(2), which is safe in a signal handler.
            #[expect(unsafe_code, reason = "without a runtime, signals are had from the C library")]
            let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
            if before == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(told))
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        TOLD.store(-1, Ordering::Relaxed);
    }
}

extern "C" fn note(_: libc::c_int) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: the bytes live until the call returns. The descriptor is an eventfd; when that is closed, -1.
    #[expect(unsafe_code, reason = "nothing but bare system calls is allowed in a signal handler")]
    unsafe {
        libc::write(TOLD.load(Ordering::Relaxed), one.as_ptr().cast(), one.len());
    }
}
