//! `outrigger keeper`: holds the listening sockets while a worker is replaced.
//!
//! In: where it listens, and how long. Out: an exit code that says what became of the
//! sockets. The work, and the protocol, is in the runtime's `handover`.

use outrigger_config::{OwnLog, OwnLogFormat};
use outrigger_runtime::KeeperOptions;

use crate::cli::{Format, KeeperArgs};

/// Keeps sockets until they are handed over, or its time is over; gives the exit code.
pub(crate) fn keep(args: KeeperArgs) -> u8 {
    let format = match args.log_format {
        Format::Text => OwnLogFormat::Text,
        Format::Json => OwnLogFormat::Json,
    };
    let options = KeeperOptions {
        socket: args.socket,
        wait: args.wait,
        idle: args.idle,
        log: OwnLog { format, ..OwnLog::default() },
    };
    // Reading the command line took most of the memory that it would wait with.
    crate::give_back();
    u8::try_from(outrigger_runtime::keep(options)).unwrap_or(1)
}
