//! Streams of messages in both directions, over one gRPC call: the server's end.
//!
//! In: a call's body, an answer message by message. Out: the messages that came, frames. Promise: no message is larger than
//! the bound, and no more is read than is asked for; the next answer is asked for when the one before has gone to the
//! connection, so a client that does not read costs one message and holds nobody back; what many streams send is
//! not copied for each.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use hyper::body::{Body, Incoming};
use outrigger_config::SpiffeId;

use crate::connection::silent;
use crate::grpc::PREFIX;
use crate::server::{GrpcCode, GrpcStatus};

/// Parts of a message that are smaller are copied together; larger ones go as they are.
const COPIED: usize = 8 << 10;

/// A stream that a client opened.
pub struct GrpcOpened {
    /// The method, such as `/package.Service/Method`.
    pub method: String,
    /// What the client sent beside messages.
    pub metadata: HeaderMap,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The SPIFFE ID in its certificate.
    pub identity: Option<SpiffeId>,
    /// What it sends. To be polled from within [`GrpcAnswers::poll_next`]: nobody else is woken when something comes.
    pub messages: GrpcMessages,
}

/// The answers of a stream, each a message in parts, which may be shared with other streams. It ends with a status.
pub trait GrpcAnswers: Send {
    /// The next message; `None` is the end. Asked only when the one before has been taken by the connection.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<Bytes>, GrpcStatus>>>;
}

/// The messages of one direction of a call.
pub struct GrpcMessages {
    coming: Coming,
    read: BytesMut,
    limit: usize,
    ended: bool,
}

/// Where messages come from.
enum Coming {
    /// A client's, with what came behind the last message.
    Answer(Incoming, Option<HeaderMap>),
    /// A server's.
    Call(RecvStream),
}

impl Coming {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        match self {
            Self::Answer(body, trailers) => loop {
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => return Poll::Ready(Some(Ok(data))),
                        Err(frame) => *trailers = frame.into_trailers().ok(),
                    },
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.to_string()))),
                    None => return Poll::Ready(None),
                }
            },
            Self::Call(body) => Poll::Ready(match ready!(body.poll_data(&mut silent())) {
                Some(Ok(data)) => {
                    // What it is made room for is bounded by the messages' size.
                    let _ = body.flow_control().release_capacity(data.len());
                    Some(Ok(data))
                }
                Some(Err(error)) => Some(Err(error.to_string())),
                None => None,
            }),
        }
    }
}

impl GrpcMessages {
    pub(crate) fn of_answer(body: Incoming, limit: usize) -> Self {
        Self { coming: Coming::Answer(body, None), read: BytesMut::new(), limit, ended: false }
    }

    pub(crate) fn of_call(body: RecvStream, limit: usize) -> Self {
        Self { coming: Coming::Call(body), read: BytesMut::new(), limit, ended: false }
    }

    /// The next message; `None` when the sender has ended. After an error there is nothing more.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, GrpcStatus>>> {
        loop {
            match split(&mut self.read, self.limit) {
                Ok(Some(message)) => {
                    if self.read.is_empty() {
                        // Between messages nothing is held.
                        self.read = BytesMut::new();
                    }
                    return Poll::Ready(Some(Ok(message)));
                }
                Ok(None) => {}
                Err(status) => {
                    self.ended = true;
                    self.read = BytesMut::new();
                    return Poll::Ready(Some(Err(status)));
                }
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.coming.poll_data(cx)) {
                Some(Ok(data)) => self.read.extend_from_slice(&data),
                Some(Err(error)) => {
                    self.ended = true;
                    self.read = BytesMut::new();
                    return Poll::Ready(Some(Err(GrpcStatus::new(GrpcCode::Unavailable, error))));
                }
                None => {
                    self.ended = true;
                    if !self.read.is_empty() {
                        self.read = BytesMut::new();
                        let status = GrpcStatus::new(GrpcCode::InvalidArgument, "the stream ended within a message");
                        return Poll::Ready(Some(Err(status)));
                    }
                }
            }
        }
    }

    /// What came behind the last message.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match &self.coming {
            Coming::Answer(_, trailers) => trailers.as_ref(),
            Coming::Call(_) => None,
        }
    }
}

/// Takes a whole message off what was read.
fn split(read: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, GrpcStatus> {
    let Some((head, _)) = read.split_at_checked(PREFIX) else { return Ok(None) };
    if head[0] != 0 {
        return Err(GrpcStatus::new(GrpcCode::Unimplemented, "compressed messages are not taken"));
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > limit {
        let message = format!("the message is larger than {limit} bytes");
        return Err(GrpcStatus::new(GrpcCode::ResourceExhausted, message));
    }
    if read.len() < PREFIX + length {
        return Ok(None);
    }
    read.advance(PREFIX);
    Ok(Some(read.split_to(length).freeze()))
}

/// Frames a message: small parts together, large ones as they are.
pub(crate) fn framed(parts: Vec<Bytes>, out: &mut VecDeque<Bytes>) {
    let length: usize = parts.iter().map(Bytes::len).sum();
    let mut run = BytesMut::with_capacity(PREFIX + length.min(COPIED));
    run.put_u8(0);
    run.put_u32(length as u32);
    for part in parts {
        if part.len() < COPIED {
            run.extend_from_slice(&part);
            continue;
        }
        out.extend((!run.is_empty()).then(|| std::mem::take(&mut run).freeze()));
        out.push_back(part);
    }
    out.extend((!run.is_empty()).then(|| run.freeze()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_as_they_were_framed() {
        let small = |byte: u8, length: usize| Bytes::from(vec![byte; length]);
        let messages = [
            vec![small(1, 3), small(2, 5)],
            vec![],
            vec![small(3, 7), small(4, COPIED), small(5, COPIED + 1), small(6, 2)],
            vec![small(7, COPIED)],
        ];
        let mut queue = VecDeque::new();
        let whole: Vec<Vec<u8>> = messages.iter().map(|parts| parts.concat()).collect();
        messages.into_iter().for_each(|parts| framed(parts, &mut queue));
        for step in [1, 2, 7, 100_000] {
            let (mut read, mut seen) = (BytesMut::new(), Vec::new());
            let bytes: Vec<u8> = queue.iter().flatten().copied().collect();
            for chunk in bytes.chunks(step) {
                read.extend_from_slice(chunk);
                while let Some(message) = split(&mut read, 1 << 20).unwrap() {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(seen, whole, "{step}");
            assert!(read.is_empty());
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut read = BytesMut::from(&[1, 0, 0, 0, 0][..]);
        assert_eq!(split(&mut read, 10).unwrap_err().code, GrpcCode::Unimplemented, "compressed");
        let mut read = BytesMut::from(&[0, 0, 0, 0, 11][..]);
        assert_eq!(split(&mut read, 10).unwrap_err().code, GrpcCode::ResourceExhausted, "too large");
        let mut read = BytesMut::from(&[0, 0, 0, 0, 10, 1][..]);
        assert_eq!(split(&mut read, 10).unwrap(), None, "not whole yet");
    }
}
