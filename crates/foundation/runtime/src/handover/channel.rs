//! Messages and descriptors on a unix stream socket.
//!
//! In: bytes and descriptors as the kernel brings them. Out: whole messages, each with
//! its own descriptors. Promise: bounded in both; descriptors that belong to no message
//! are closed, and so are all of a peer that breaks the protocol.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::message::{MOST_IN_ONE, Message, ProtocolError};

/// Bytes of one message.
pub(super) const MOST_BYTES: usize = 64 << 10;
/// Bytes of the length before it.
const PREFIX: usize = 4;
/// Bytes taken at a time.
const CHUNK: usize = 4096;
/// Descriptors that the kernel passes with one read at most (`SCM_MAX_FD`); room for fewer would lose some.
const MOST_AT_ONCE: usize = 253;
/// Descriptors that wait for their messages: those of the message that is coming, and of the next.
const MOST_WAITING: usize = MOST_AT_ONCE + MOST_IN_ONE;

/// Why nothing can be received any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the connection was closed")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What has come and is no whole message yet.
#[derive(Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Waits (as long as the socket's own timeout says) for a message.
    pub(super) fn receive(&mut self, stream: &UnixStream) -> Result<(Message, Vec<OwnedFd>), ChannelError> {
        loop {
            if let Some(message) = self.next()? {
                return Ok(message);
            }
            self.fill(stream)?;
        }
    }

    /// Takes what there is, once.
    pub(super) fn fill(&mut self, stream: &UnixStream) -> Result<(), ChannelError> {
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut chunk)];
        let received = rustix::io::retry_on_intr(|| recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC));
        let received = received.map_err(io::Error::from)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // Out of descriptors, most likely; those that are missing cannot be told.
            return Err(io::Error::other("not all descriptors could be received").into());
        }
        if self.descriptors.len() > MOST_WAITING {
            let found = self.descriptors.len();
            return Err(ProtocolError::Descriptors { expected: MOST_WAITING, found }.into());
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(())
    }

    /// The next whole message, if it has come.
    pub(super) fn next(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, ProtocolError> {
        let Some(prefix) = self.bytes.first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > MOST_BYTES {
            return Err(ProtocolError::TooLong(length));
        }
        let Some(body) = self.bytes.get(PREFIX..PREFIX + length) else { return Ok(None) };
        let message = Message::decode(body)?;
        self.bytes.drain(..PREFIX + length);
        let (expected, found) = (message.descriptors(), self.descriptors.len());
        if found < expected || (expected == 0 && found > 0) {
            return Err(ProtocolError::Descriptors { expected, found });
        }
        Ok(Some((message, self.descriptors.drain(..expected).collect())))
    }

    /// Whether part of a message has come.
    pub(super) fn is_midway(&self) -> bool {
        !self.bytes.is_empty() || !self.descriptors.is_empty()
    }
}

/// Sends a message whole, waiting as long as the socket's own timeout says.
pub(super) fn send(stream: &UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = message.encode();
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MOST_BYTES);
    let mut frame = length.ok_or(io::ErrorKind::InvalidInput)?.to_be_bytes().to_vec();
    frame.extend(body);
    let mut rest = frame.as_slice();
    let mut descriptors = descriptors;
    while !rest.is_empty() {
        let sent = rustix::io::retry_on_intr(|| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_IN_ONE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(rustix::io::Errno::INVAL);
            }
            sendmsg(stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)
        })?;
        // They went with the first byte.
        descriptors = &[];
        rest = &rest[sent..];
    }
    Ok(())
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    /// As it is known here; `None` in a container of its own, whose processes nobody else has numbers for.
    pub(super) pid: Option<u32>,
}

/// The process at the other end, when its user is one we trust: our own, or root.
pub(super) fn trusted_peer(stream: &UnixStream) -> Result<Peer, UntrustedPeer> {
    let peer = peer(stream).map_err(UntrustedPeer::Unknown)?;
    let own = rustix::process::geteuid().as_raw();
    if peer.uid == own || peer.uid == 0 { Ok(peer) } else { Err(UntrustedPeer::Foreign { uid: peer.uid, own }) }
}

fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let mut told = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    #[expect(
        unsafe_code,
        reason = "rustix's type has no room for the process 0, which is what a container's peers have"
    )]
    // SAFETY: the kernel writes at most `length` bytes, into integers that may have any value.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut told).cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { uid: told.uid, pid: u32::try_from(told.pid).ok().filter(|pid| *pid != 0) })
}

/// Why a peer is not trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum UntrustedPeer {
    #[error("it runs as user {uid}, this process as {own}; run both as the same user")]
    Foreign { uid: u32, own: u32 },
    #[error("its user cannot be told: {0}")]
    Unknown(io::Error),
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        for stream in [&a, &b] {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        (a, b)
    }

    fn sockets(count: usize) -> (Message, Vec<OwnedFd>) {
        let all: Vec<OwnedFd> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap().into()).collect();
        let sockets = vec![json!({ "address": "x" }); count];
        (Message::Sockets { sockets, more: false }, all)
    }

    fn local(fd: OwnedFd) -> std::net::SocketAddr {
        TcpListener::from(fd).local_addr().unwrap()
    }

    #[test]
    fn descriptors_arrive_with_their_message_in_their_order() {
        let (ours, theirs) = pair();
        let mut addresses = Vec::new();
        for count in [1, 3, 64] {
            let (message, all) = sockets(count);
            send(&ours, &message, &all.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
            addresses.push(all.into_iter().map(local).collect::<Vec<_>>());
        }
        send(&ours, &Message::Empty, &[]).unwrap();
        drop(ours);
        let mut inbox = Inbox::default();
        for expected in addresses {
            let (message, got) = inbox.receive(&theirs).unwrap();
            assert_eq!(message.descriptors(), expected.len());
            for fd in &got {
                assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            }
            assert_eq!(got.into_iter().map(local).collect::<Vec<_>>(), expected);
        }
        assert_eq!(inbox.receive(&theirs).unwrap().0, Message::Empty);
        assert!(matches!(inbox.receive(&theirs), Err(ChannelError::Closed)));
    }

    #[test]
    fn descriptors_that_nobody_announced_or_too_few_are_refused() {
        let (ours, theirs) = pair();
        let (_, all) = sockets(2);
        let all: Vec<BorrowedFd<'_>> = all.iter().map(AsFd::as_fd).collect();
        send(&ours, &Message::Ready, &all[..1]).unwrap();
        let outcome = Inbox::default().receive(&theirs);
        assert!(matches!(outcome, Err(ChannelError::Protocol(ProtocolError::Descriptors { .. }))));
        let (ours, theirs) = pair();
        send(&ours, &Message::Sockets { sockets: vec![json!({ "address": "x" }); 2], more: false }, &all[..1]).unwrap();
        let outcome = Inbox::default().receive(&theirs);
        assert!(matches!(outcome, Err(ChannelError::Protocol(ProtocolError::Descriptors { .. }))));
    }

    #[test]
    fn a_flood_of_descriptors_is_cut_off() {
        let (ours, theirs) = pair();
        let (_, all) = sockets(1);
        let all = [all[0].as_fd(); MOST_IN_ONE];
        let mut inbox = Inbox::default();
        // A message that never ends, with descriptors at each byte.
        let mut refused = false;
        for _ in 0..8 {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_IN_ONE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&all)));
            sendmsg(&ours, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL).unwrap();
            refused |= inbox.fill(&theirs).is_err();
        }
        assert!(refused);
    }

    #[test]
    fn a_peer_of_our_own_user_is_trusted() {
        let (ours, _theirs) = pair();
        let own = Peer { uid: rustix::process::geteuid().as_raw(), pid: Some(std::process::id()) };
        assert_eq!(trusted_peer(&ours).unwrap(), own);
    }

    proptest! {
        #[test]
        fn rubbish_is_refused_or_waits_for_more_and_stays_bounded(bytes in prop::collection::vec(any::<u8>(), 1..2000)) {
            let (mut ours, theirs) = pair();
            ours.write_all(&bytes).unwrap();
            drop(ours);
            let mut inbox = Inbox::default();
            prop_assert!(inbox.receive(&theirs).is_err());
            prop_assert!(inbox.bytes.len() <= PREFIX + MOST_BYTES + CHUNK);
        }

        #[test]
        fn a_message_arrives_however_it_is_torn(cut in 1usize..60) {
            let (mut ours, theirs) = pair();
            let body = Message::Take { from: "somebody of some version".to_owned() }.encode();
            let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
            frame.extend(body);
            let mut inbox = Inbox::default();
            for part in frame.chunks(cut) {
                prop_assert!(inbox.next().unwrap().is_none());
                ours.write_all(part).unwrap();
                inbox.fill(&theirs).unwrap();
            }
            let arrived = matches!(inbox.next(), Ok(Some((Message::Take { .. }, _))));
            prop_assert!(arrived);
            prop_assert!(!inbox.is_midway());
        }
    }
}
