//! The signals sent to this process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// All signals we take. Each is a stream of its own; a signal that comes twice before it is read counts once.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
    user_1: Signal,
    user_2: Signal,
    window: Signal,
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Terminate,
    Interrupt,
    Hangup,
    Quit,
    /// SIGUSR1, SIGUSR2 or SIGWINCH: for the application, not for us.
    Other(i32),
}

impl Signals {
    /// Takes over all signals. From here on none of them ends the process by itself.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.terminate.recv() => Received::Terminate,
            _ = self.interrupt.recv() => Received::Interrupt,
            _ = self.hangup.recv() => Received::Hangup,
            _ = self.quit.recv() => Received::Quit,
            _ = self.user_1.recv() => Received::Other(libc::SIGUSR1),
            _ = self.user_2.recv() => Received::Other(libc::SIGUSR2),
            _ = self.window.recv() => Received::Other(libc::SIGWINCH),
        }
    }
}

impl Received {
    /// What a shell says of a program that this signal ended.
    pub(crate) fn exit_code(self) -> i32 {
        128 + match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::Hangup => libc::SIGHUP,
            Self::Quit => libc::SIGQUIT,
            Self::Other(number) => number,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
            Self::Quit => "SIGQUIT",
            Self::Other(libc::SIGUSR1) => "SIGUSR1",
            Self::Other(libc::SIGUSR2) => "SIGUSR2",
            Self::Other(_) => "SIGWINCH",
        }
    }
}
