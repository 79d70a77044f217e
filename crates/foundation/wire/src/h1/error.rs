//! What may be wrong with a head.

/// What is wrong with a head. The text says it in few words, for a 400's body and the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
#[expect(missing_docs, reason = "as_str says what each means")]
pub enum HeadError {
    TooLarge,
    TooManyFields,
    BadRequestLine,
    BadMethod,
    BadTarget,
    BadVersion,
    NotHttp,
    BadStatusLine,
    BareCr,
    BareLf,
    Folded,
    BadFieldName,
    BadFieldValue,
    BadContentLength,
    RepeatedContentLength,
    BadTransferEncoding,
    RepeatedTransferEncoding,
    LengthAndCoding,
    CodingInHttp10,
    MissingHost,
    RepeatedHost,
    BadHost,
    BadAuthority,
    TargetNotForMethod,
}

impl HeadError {
    /// Its text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "the head is too large",
            Self::TooManyFields => "too many header fields",
            Self::BadRequestLine => "not an HTTP/1 request line",
            Self::BadMethod => "invalid method",
            Self::BadTarget => "invalid character in the request target",
            Self::BadVersion => "not HTTP/1.0 or HTTP/1.1",
            Self::NotHttp => "not HTTP",
            Self::BadStatusLine => "not an HTTP/1 status line",
            Self::BareCr => "carriage return without line feed",
            Self::BareLf => "line feed without carriage return",
            Self::Folded => "folded header line",
            Self::BadFieldName => "invalid header name",
            Self::BadFieldValue => "invalid character in a header value",
            Self::BadContentLength => "Content-Length is no number",
            Self::RepeatedContentLength => "more than one Content-Length",
            Self::BadTransferEncoding => "Transfer-Encoding is not `chunked`",
            Self::RepeatedTransferEncoding => "more than one Transfer-Encoding",
            Self::LengthAndCoding => "both Content-Length and Transfer-Encoding",
            Self::CodingInHttp10 => "Transfer-Encoding in HTTP/1.0",
            Self::MissingHost => "no Host",
            Self::RepeatedHost => "more than one Host",
            Self::BadHost => "invalid Host",
            Self::BadAuthority => "invalid authority in the request target",
            Self::TargetNotForMethod => "a request target of this form is not for this method",
        }
    }

    /// Whether the head is beyond the limits, rather than wrong.
    pub fn is_too_large(self) -> bool {
        matches!(self, Self::TooLarge | Self::TooManyFields)
    }
}
