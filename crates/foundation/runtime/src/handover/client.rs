//! A worker's conversations with the keeper; each is over within a few seconds.
//!
//! In: the keeper's path. Out: sockets given or taken. Promise: a keeper that is not
//! there, is somebody else's, or does not answer costs no more than its timeout.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::PATIENCE;
use super::channel::{ChannelError, Inbox, UntrustedPeer, send, trusted_peer};
use super::message::{Message, gather};

/// A socket on its way, with its description.
pub(super) struct Passed {
    pub(super) description: Value,
    pub(super) socket: OwnedFd,
}

/// Why a hand-over failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("nobody listens there")]
    NoKeeper,
    #[error("the keeper cannot be reached: {0}")]
    Connect(io::Error),
    #[error("the keeper is not trusted: {0}")]
    Untrusted(#[from] UntrustedPeer),
    #[error("the keeper refuses: {0}")]
    Refused(String),
    #[error("the keeper does not answer as it should: {0}")]
    Channel(#[from] ChannelError),
    #[error("the keeper does not answer as it should: it says {0:?}")]
    Unexpected(&'static str),
}

/// What a worker got.
pub(super) enum Taken {
    /// The sockets, and the connection on which to say that they are in use.
    Sockets(Vec<Passed>, UnixStream),
    Empty,
}

/// Gives the keeper all of `sockets`; returns when it has them.
pub(super) fn give(path: &Path, from: &str, sockets: &[Passed]) -> Result<(), ClientError> {
    let stream = connect(path)?;
    let descriptions: Vec<Value> = sockets.iter().map(|socket| socket.description.clone()).collect();
    let messages =
        Message::split(&descriptions, |sockets, more| Message::Give { from: from.to_owned(), sockets, more });
    let mut descriptors = sockets.iter().map(|socket| socket.socket.as_fd());
    for message in messages {
        let part: Vec<_> = descriptors.by_ref().take(message.descriptors()).collect();
        say(&stream, &message, &part)?;
    }
    match Inbox::default().receive(&stream)?.0 {
        Message::Kept { sockets: count } if count == sockets.len() => Ok(()),
        other => Err(refusal(other)),
    }
}

/// Asks for the sockets that the keeper has.
pub(super) fn take(path: &Path, from: &str) -> Result<Taken, ClientError> {
    let stream = connect(path)?;
    say(&stream, &Message::Take { from: from.to_owned() }, &[])?;
    let (mut inbox, mut all) = (Inbox::default(), Vec::new());
    loop {
        match inbox.receive(&stream)? {
            (Message::Empty, _) => return Ok(Taken::Empty),
            (Message::Sockets { sockets, more }, descriptors) => {
                let part = sockets.into_iter().zip(descriptors);
                gather(&mut all, part.map(|(description, socket)| Passed { description, socket }))
                    .map_err(ChannelError::Protocol)?;
                if !more {
                    return Ok(Taken::Sockets(all, stream));
                }
            }
            (other, _) => return Err(refusal(other)),
        }
    }
}

/// Tells the keeper that what was taken is in use.
pub(super) fn confirm(link: &UnixStream) -> io::Result<()> {
    send(link, &Message::Ready, &[])
}

/// Sends a message; when the keeper has hung up, it may have said why before.
fn say(stream: &UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
    send(stream, message, descriptors).map_err(|error| {
        let reason = Inbox::default().receive(stream).map(|(answer, _)| refusal(answer));
        reason.unwrap_or_else(|_| ChannelError::Io(error).into())
    })
}

fn refusal(answer: Message) -> ClientError {
    match answer {
        Message::Refused { reason } => ClientError::Refused(reason),
        Message::Kept { .. } => ClientError::Unexpected("kept, of another number of sockets"),
        _ => ClientError::Unexpected("something that is no answer"),
    }
}

fn connect(path: &Path) -> Result<UnixStream, ClientError> {
    let connected = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Also for the connection itself, when the keeper's backlog is full.
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect(&SockAddr::unix(path)?)?;
        io::Result::Ok(UnixStream::from(socket))
    };
    let stream = connected().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoKeeper,
        _ => ClientError::Connect(error),
    })?;
    trusted_peer(&stream)?;
    Ok(stream)
}
