//! Bodies on their way through: streamed, counted, and watched for their end.
//!
//! Promise: the end of a response is noted exactly once, whether it was read to its last
//! byte, broken off upstream, or left by the client; a break upstream stays an error.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::error::Reason;
use crate::forward::Exchange;
use crate::watch::Watched;

/// A request's body, counted for the access log and watched for a client that does not go on.
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    watched: Rc<Watched>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, watched: Rc<Watched>) -> Self {
        let inner = if inner.is_end_stream() { None } else { Some(inner) };
        Self { inner, watched }
    }

    /// The body of a request that has none.
    pub(crate) fn empty(watched: Rc<Watched>) -> Self {
        Self { inner: None, watched }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = Pin::new(&mut *inner).poll_frame(cx);
        let ended = inner.is_end_stream();
        self.watched.wait_to_read(frame.is_pending());
        let frame = ready!(frame);
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.watched.received.set(self.watched.received.get() + length as u64);
                self.watched.body_ended.set(ended);
            }
            Some(Err(error)) => self.watched.body_broken.set(Some(why_broken(error))),
            None => self.watched.body_ended.set(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A body that was wrong is the client's mistake; one that was cut off is the client's going.
fn why_broken(error: &hyper::Error) -> Reason {
    let kind = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => Reason::BadRequest("invalid chunk"),
        _ => Reason::ClientGone,
    }
}

/// A response's body; owns what is noted when it ends.
pub(crate) struct ResponseBody {
    inner: Inner,
    exchange: Option<Box<Exchange>>,
}

enum Inner {
    Upstream(Incoming),
    Own(Option<Bytes>),
}

impl ResponseBody {
    /// A body from an endpoint.
    pub(crate) fn upstream(body: Incoming, exchange: Box<Exchange>) -> Self {
        let mut this = Self { inner: Inner::Upstream(body), exchange: Some(exchange) };
        // Nothing to come: the connection is free at once, before the response is even written.
        if this.is_end_stream() {
            this.finish(None);
        }
        this
    }

    /// A body of our own.
    pub(crate) fn own(text: String, exchange: Box<Exchange>) -> Self {
        Self { inner: Inner::Own(Some(text.into())), exchange: Some(exchange) }
    }

    fn finish(&mut self, reason: Option<Reason>) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(reason);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut self.inner {
            Inner::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
            Inner::Own(text) => text.take().map(|text| Ok(Frame::data(text))),
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(exchange)) = (frame.data_ref(), &mut self.exchange) {
                    exchange.sent += data.len() as u64;
                }
                if self.is_end_stream() {
                    self.finish(None);
                }
            }
            Some(Err(_)) => self.finish(Some(Reason::Reset)),
            None => self.finish(None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Upstream(body) => body.is_end_stream(),
            Inner::Own(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Upstream(body) => body.size_hint(),
            Inner::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let reason = if self.is_end_stream() { None } else { Some(Reason::ClientGone) };
        self.finish(reason);
    }
}
