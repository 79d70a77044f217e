//! Streams of messages in both directions, over one gRPC call: the client's end.
//!
//! In: messages to send, what the server answers. Out: its messages, and at last how the stream ended. Promise: few messages
//! wait to be sent, then the sender waits; no message is larger than the bound; whatever ends the stream is told once.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{Method, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::mpsc;

use crate::error::{Failure, HttpError, Stage};
use crate::grpc::{GrpcError, framed, of_http, said, status};
use crate::stream::GrpcMessages;

/// Messages that wait to be sent.
const WAITING: usize = 4;

/// Sends messages; the stream's sending half ends when it is dropped.
pub struct GrpcSender(mpsc::Sender<Bytes>);

/// What goes to the server.
pub(crate) struct Outgoing(mpsc::Receiver<Bytes>);

impl GrpcSender {
    pub(crate) fn new() -> (Self, Outgoing) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), Outgoing(receiver))
    }

    /// Sends a message, once there is room for it. Cancel-safe: it is sent or not.
    ///
    /// # Errors
    /// When the stream is over; the receiver tells why.
    pub async fn send(&self, message: &[u8]) -> Result<(), StreamOver> {
        let message = framed(message).map_err(|_| StreamOver)?;
        self.0.send(message).await.map_err(|_| StreamOver)
    }
}

/// A stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is over")]
pub struct StreamOver;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}

type Beginning = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Failure>> + Send>>;

/// Receives messages.
pub struct GrpcReceiver {
    method: String,
    url: String,
    state: State,
    limit: usize,
}

enum State {
    /// The server has said nothing yet.
    Waiting(Beginning),
    Open(GrpcMessages),
    Over,
}

impl GrpcReceiver {
    pub(crate) fn new(method: &str, url: String, beginning: Beginning, limit: usize) -> Self {
        Self { method: method.to_owned(), url, state: State::Waiting(beginning), limit }
    }

    /// The next message; `None` when the server ended the stream and all is well. Cancel-safe.
    ///
    /// # Errors
    /// Why the stream broke off, or the status that it ended with.
    pub async fn next(&mut self) -> Result<Option<Bytes>, GrpcError> {
        let next = poll_fn(|cx| self.poll_next(cx)).await;
        if !matches!(next, Ok(Some(_))) {
            self.state = State::Over;
        }
        next
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, GrpcError>> {
        loop {
            match &mut self.state {
                State::Waiting(beginning) => {
                    let response = std::task::ready!(beginning.as_mut().poll(cx));
                    let response = response.map_err(|failure| self.failed(failure))?;
                    self.state = State::Open(self.begin(response)?);
                }
                State::Open(messages) => {
                    return Poll::Ready(match std::task::ready!(messages.poll_next(cx)) {
                        Some(Ok(message)) => Ok(Some(message)),
                        Some(Err(status)) => {
                            Err(self.failed(Failure::after_sending(Stage::Receive, status.message, true)))
                        }
                        None => self.end(),
                    });
                }
                State::Over => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Looks at what the server says before its messages.
    fn begin(&self, response: Response<Incoming>) -> Result<GrpcMessages, GrpcError> {
        let (head, body) = response.into_parts();
        if let Some(code) = status(&head.headers).filter(|code| *code != 0) {
            return Err(self.status(code, &head.headers));
        }
        if head.status != StatusCode::OK {
            let detail = format!("the server answered {} without a gRPC status", head.status);
            return Err(self.failed(Failure::after_sending(Stage::Receive, detail, of_http(head.status))));
        }
        if !head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return Err(self.failed(Failure::after_sending(Stage::Receive, "the server does not speak gRPC", false)));
        }
        Ok(GrpcMessages::of_answer(body, self.limit))
    }

    fn end(&self) -> Result<Option<Bytes>, GrpcError> {
        let State::Open(messages) = &self.state else { return Ok(None) };
        let trailers = messages.trailers().cloned().unwrap_or_default();
        match status(&trailers) {
            Some(0) => Ok(None),
            Some(code) => Err(self.status(code, &trailers)),
            None => {
                let detail = "the stream ended without a gRPC status";
                Err(self.failed(Failure::after_sending(Stage::Receive, detail, true)))
            }
        }
    }

    fn status(&self, code: u32, headers: &HeaderMap) -> GrpcError {
        GrpcError::Status { method: self.method.clone(), code, message: said(headers) }
    }

    fn failed(&self, failure: Failure) -> GrpcError {
        HttpError::new(&Method::POST, &self.url, failure).into()
    }
}
