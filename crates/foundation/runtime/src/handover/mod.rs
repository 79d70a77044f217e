//! Hand-over of listening sockets from one process to the next, by way of a keeper.
//!
//! In: the sockets of a worker that stops. Out: the same sockets in the worker that
//! starts. Promise: a socket that was handed over is open at every moment in between, so
//! that a client's connection waits in its backlog and is never refused; a worker that
//! dies before it is ready leaves the sockets with the keeper, for the one after it.
//!
//! # The protocol
//!
//! A client connects to the keeper's unix stream socket. Each message is a length (four
//! bytes, big-endian, at most 64 KiB) and a JSON object with a `protocol` of 1 and a
//! `type`; unknown members and unknown members of a socket's description are ignored, and
//! passed on. Descriptors (`SCM_RIGHTS`) come with the message's first byte, one for each
//! of its `sockets` and in their order, at most 64 a message and 1024 in all.
//!
//! | from | `type` | members | answer |
//! |---|---|---|---|
//! | worker | `give` | `from`, `sockets`, `more`: further messages follow | `kept` after the last one, or `refused` |
//! | worker | `take` | `from` | `sockets` (with `more`) until all are sent, `empty`, or `refused` |
//! | worker | `ready` | | none; the keeper lets go of its copies |
//! | keeper | `refused` | `reason` | the connection ends |
//!
//! A socket is described as `{"kind": "tcp" | "udp" | "unix", "address": "127.0.0.1:80",
//! "owner": "listener `in`"}`; all sockets of a `SO_REUSEPORT` group are handed over. `ready` comes on the connection of the `take`: when
//! that ends without it, the keeper still has everything. Both sides check the other's user (`SO_PEERCRED`): the same
//! one, or root. Half a message, or rubbish, ends the connection after five seconds at the latest, and no other.
//!
//! Beside the socket lies `PATH.lock`, on which every running worker holds a shared lock
//! ([flock(2)]): a worker that finds the keeper empty learns from it whether there is
//! another one whose sockets are worth waiting for; the kernel frees it however a worker ends.
//!
//! [flock(2)]: https://man7.org/linux/man-pages/man2/flock.2.html

mod channel;
mod client;
pub(crate) mod keeper;
mod message;
mod presence;
mod stop_signals;
mod worker;

pub(crate) use worker::{Handover, Interrupted};

/// Sockets in one hand-over: more than any config has; a bound on what the keeper holds for anybody.
const MOST_SOCKETS: usize = 1024;

/// How long the other side may take to send a whole message, or to take one.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
