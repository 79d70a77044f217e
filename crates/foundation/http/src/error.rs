//! Why a request failed: where on its way, and whether another try may help.

use std::fmt;

use http::Method;

/// How far a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The request itself cannot be sent: a bad URL, or headers that HTTP/1.1 does not allow.
    Request,
    /// The host's name was not resolved.
    Resolve,
    /// No address accepted a connection.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The request was not sent, or not whole.
    Send,
    /// There was no response, or a broken one, or one that is too large.
    Receive,
    /// The time for the whole request ran out.
    Timeout,
}

impl Stage {
    /// The stage in one word, fit for a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a request failed. Its text is whole, in one line: `POST http://loki:3100/push: cannot connect to 10.0.0.7:3100:
/// Connection refused`. It never holds a query, credentials, headers or a body.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{method} {url}: {detail}")]
pub struct HttpError {
    method: Method,
    url: String,
    detail: String,
    stage: Stage,
    retryable: bool,
    sent: bool,
}

impl HttpError {
    pub(crate) fn new(method: &Method, url: &str, failure: Failure) -> Self {
        let Failure { stage, detail, retryable, sent } = failure;
        Self { method: method.clone(), url: url.to_owned(), detail, stage, retryable, sent }
    }

    /// The URL without credentials and query.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What went wrong, without method and URL.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// How far the request came.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether the same request may succeed at another time: true for what time or the other side can mend (no
    /// address, no connection, a reset, a timeout), false for what will be the same again (a bad URL, a certificate we
    /// do not accept, a response that is too large or no HTTP).
    pub fn retryable(&self) -> bool {
        self.retryable
    }

    /// Whether the server may have seen the request, so that repeating one that is not idempotent may do it twice.
    pub fn maybe_sent(&self) -> bool {
        self.sent
    }
}

/// A failure before it is known which request it is of.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) detail: String,
    pub(crate) retryable: bool,
    pub(crate) sent: bool,
}

impl Failure {
    /// Nothing reached the server; another try may help.
    pub(crate) fn before_sending(stage: Stage, detail: impl Into<String>) -> Self {
        Self { stage, detail: detail.into(), retryable: true, sent: false }
    }

    /// Nothing reached the server, and nothing ever will.
    pub(crate) fn for_good(stage: Stage, detail: impl Into<String>) -> Self {
        Self { stage, detail: detail.into(), retryable: false, sent: false }
    }

    /// The server may have seen the request.
    pub(crate) fn after_sending(stage: Stage, detail: impl Into<String>, retryable: bool) -> Self {
        Self { stage, detail: detail.into(), retryable, sent: true }
    }
}
