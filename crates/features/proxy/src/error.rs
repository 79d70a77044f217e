//! Why a request was not answered by the application.
//!
//! Each reason carries the status the client sees, whose fault it was, and whether sending
//! the request again can do harm. Flags are Envoy's [response flags].
//!
//! [response flags]: https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage

use http::StatusCode;

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Downstream,
    Upstream,
    Us,
}

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    /// The request breaks the protocol, or may mean different things to different readers.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    /// The request's head is larger than the listener's limits.
    #[error("request headers too large")]
    HeadersTooLarge,
    /// The request's target is longer than the listener's limits.
    #[error("request target too long")]
    UriTooLong,
    /// The request's body is larger than the listener's limits.
    #[error("request body too large")]
    BodyTooLarge,
    /// The request's body has a coding that the route's `Decompressor` does not know, or several.
    #[error("the request's content-encoding is not supported here")]
    UnsupportedCoding,
    /// Nothing is configured for this host and path.
    #[error("no route matches this host and path")]
    NoRoute,
    /// A redirected connection to an address that no route and no cluster takes, and unknown ones are denied.
    #[error("no route or cluster is for this destination, and unknown ones are refused (`unknownDestinations: deny`)")]
    UnknownDestination,
    /// It was sent to where it wanted to go, and came here again.
    #[error("the connection is Outrigger's own: it runs as another user than `outrigger init --proxy-uid` was told")]
    Loop,
    /// CONNECT on a listener without routes for it, or TRACE of ourselves.
    #[error("the method is not supported here")]
    Unsupported,
    /// OPTIONS of ourselves: its `Max-Forwards` is 0. No error.
    #[error("no forward is left, so the proxy answers")]
    LastForward,
    /// A CONNECT to what its route does not reach.
    #[error("forbidden: {0}")]
    Forbidden(&'static str),
    /// Every endpoint is unknown (DNS) or there is none.
    #[error("the cluster has no endpoint")]
    NoEndpoint,
    /// One of the cluster's `circuitBreakers` is reached.
    #[error("{0}")]
    Overflow(&'static str),
    /// The listener's `maxRequests` is reached.
    #[error("too many requests under way")]
    Overloaded,
    /// The proxy's `maxBufferBytes` are in use.
    #[error("too much memory in use")]
    MemoryShort,
    /// The process has no file descriptor left for a connection.
    #[error("no file descriptor is left for a connection to the endpoint")]
    NoDescriptor,
    /// No connection could be made.
    #[error("cannot connect to the endpoint")]
    ConnectFailure,
    /// No connection was made within the cluster's `connectTimeout`.
    #[error("connecting to the endpoint took too long")]
    ConnectTimeout,
    /// The TLS handshake failed, or the peer is not whom we expect.
    #[error("cannot establish mTLS with the endpoint")]
    TlsFailure,
    /// The endpoint said that it did not look at the request.
    #[error("the endpoint refused the request unseen")]
    Refused,
    /// The endpoint ended the connection and said that it did not look at the request, several times in a row.
    #[error("the endpoint closed its connections before it looked at the request")]
    Unseen,
    /// The connection ended before a response came.
    #[error("the endpoint closed the connection")]
    Reset,
    /// The endpoint's message breaks the protocol.
    #[error("the endpoint sent an invalid response: {0}")]
    Protocol(&'static str),
    /// No response within the route's `timeouts.request`.
    #[error("the endpoint did not answer in time")]
    Timeout,
    /// The deadline that the caller sent along has passed.
    #[error("the caller's deadline has passed")]
    DeadlinePassed,
    /// A rate limit of the route or the listener.
    #[error("too many requests: a rate limit is reached")]
    RateLimited,
    /// A limit that the rate limit service counts.
    #[error("too many requests: a global rate limit is reached")]
    OverGlobalLimit,
    /// The rate limit service did not answer, and `failureMode: Deny`.
    #[error("the rate limit service does not answer")]
    RateLimitService,
    /// The cluster's `adaptiveConcurrency`.
    #[error("the cluster is overloaded: too many requests wait for it")]
    Shed,
    /// No byte of an answer under way moved within the route's `timeouts.idle`.
    #[error("no byte of the answer moved in time")]
    StreamIdle,
    /// The rest of the request did not come within the route's `timeouts.request`, or the client neither sent nor
    /// took anything for the listener's `idleTimeout`.
    #[error("the client did not go on in time")]
    ClientSlow,
    /// The client went away.
    #[error("the client closed the connection")]
    ClientGone,
    /// A fault that the route's config asks for, as HTTP and as gRPC tell it.
    #[error("fault filter abort")]
    Injected {
        /// For clients that speak HTTP.
        status: u16,
        /// For those that speak gRPC.
        grpc: u8,
    },
    /// It outlived the time a stop has.
    #[error("cut at the end of the shutdown budget")]
    Stopped,
}

impl Reason {
    /// The status for the client. 499 is nginx's, for the log only.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedCoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::LastForward => StatusCode::OK,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NoEndpoint
            | Self::Overflow(_)
            | Self::Overloaded
            | Self::MemoryShort
            | Self::NoDescriptor
            | Self::ConnectFailure
            | Self::ConnectTimeout
            | Self::TlsFailure
            | Self::Refused
            | Self::Unseen
            | Self::Shed
            | Self::Stopped => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset | Self::Protocol(_) | Self::UnknownDestination => StatusCode::BAD_GATEWAY,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Timeout | Self::StreamIdle | Self::DeadlinePassed => StatusCode::GATEWAY_TIMEOUT,
            Self::RateLimited | Self::OverGlobalLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::RateLimitService => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ClientSlow => StatusCode::REQUEST_TIMEOUT,
            Self::ClientGone => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::Injected { status, .. } => StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// The status for a client that speaks gRPC, as its [mapping of HTTP statuses] has it; what is too large is told as
    /// gRPC itself tells it.
    ///
    /// [mapping of HTTP statuses]: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
    pub(crate) fn grpc_status(self) -> u8 {
        const DEADLINE_EXCEEDED: u8 = 4;
        const PERMISSION_DENIED: u8 = 7;
        const RESOURCE_EXHAUSTED: u8 = 8;
        const UNIMPLEMENTED: u8 = 12;
        const INTERNAL: u8 = 13;
        const UNAVAILABLE: u8 = 14;
        match self {
            Self::BadRequest(_) | Self::Loop => INTERNAL,
            Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::BodyTooLarge
            | Self::RateLimited
            | Self::OverGlobalLimit => RESOURCE_EXHAUSTED,
            Self::Forbidden(_) => PERMISSION_DENIED,
            Self::NoRoute | Self::Unsupported | Self::UnsupportedCoding => UNIMPLEMENTED,
            Self::ClientSlow | Self::DeadlinePassed => DEADLINE_EXCEEDED,
            Self::Injected { grpc, .. } => grpc,
            _ => UNAVAILABLE,
        }
    }

    /// The response flag.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::BadRequest(_)
            | Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::BodyTooLarge
            | Self::UnsupportedCoding
            | Self::Unsupported => "DPE",
            Self::Forbidden(_) => "UAEX",
            Self::LastForward => "",
            Self::NoRoute | Self::UnknownDestination => "NR",
            Self::NoEndpoint => "UH",
            Self::Overflow(_) | Self::Shed => "UO",
            Self::RateLimited | Self::OverGlobalLimit => "RL",
            Self::RateLimitService => "RLSE",
            Self::DeadlinePassed => "DT",
            Self::Overloaded | Self::MemoryShort => "OM",
            Self::ConnectFailure | Self::ConnectTimeout | Self::TlsFailure | Self::NoDescriptor | Self::Loop => "UF",
            Self::Reset => "UC",
            Self::Refused | Self::Unseen => "UR",
            Self::Protocol(_) => "UPE",
            Self::Timeout => "UT",
            Self::ClientSlow | Self::StreamIdle => "SI",
            Self::ClientGone => "DC",
            Self::Stopped => "LR",
            Self::Injected { .. } => "FI",
        }
    }

    /// Whose fault it was.
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::BadRequest(_)
            | Self::HeadersTooLarge
            | Self::UriTooLong
            | Self::BodyTooLarge
            | Self::UnsupportedCoding
            | Self::NoRoute
            | Self::UnknownDestination
            | Self::Unsupported
            | Self::Forbidden(_)
            | Self::LastForward
            | Self::DeadlinePassed
            | Self::RateLimited
            | Self::OverGlobalLimit
            | Self::ClientSlow
            | Self::ClientGone => Fault::Downstream,
            Self::Overflow(_)
            | Self::Overloaded
            | Self::MemoryShort
            | Self::NoDescriptor
            | Self::Stopped
            | Self::Loop
            | Self::Shed
            | Self::RateLimitService
            | Self::Injected { .. } => Fault::Us,
            _ => Fault::Upstream,
        }
    }

    /// Whether it was refused for want of room, so that a client does well to hold back.
    pub(crate) fn is_overload(self) -> bool {
        matches!(self, Self::Overflow(_) | Self::Overloaded | Self::MemoryShort | Self::Shed)
    }

    /// Whether the endpoint surely never began to act on the request.
    pub(crate) fn safe_to_retry(self) -> bool {
        matches!(
            self,
            Self::NoEndpoint
                | Self::UnknownDestination
                | Self::Loop
                | Self::Overflow(_)
                | Self::Overloaded
                | Self::RateLimited
                | Self::OverGlobalLimit
                | Self::RateLimitService
                | Self::Shed
                | Self::NoDescriptor
                | Self::ConnectFailure
                | Self::ConnectTimeout
                | Self::TlsFailure
                | Self::Refused
                | Self::Unseen
        )
    }
}

#[cfg(test)]
mod tests {
    /// Operators meet flags in logs and look them up.
    #[test]
    fn every_flag_is_documented() {
        let source = include_str!("error.rs");
        let begin = source.find("pub(crate) fn flag(").expect("it is above");
        let end = begin + source[begin..].find("\n    }\n").expect("it ends");
        let flags = source[begin..end].split('"').skip(1).step_by(2).filter(|flag| !flag.is_empty());
        let documented = include_str!("../../../../docs/observability.md");
        let mut count = 0;
        for flag in flags {
            assert!(documented.contains(&format!("\n| `{flag}` |")), "{flag} is not in docs/observability.md");
            count += 1;
        }
        assert!(count > 10, "{count} flags found");
    }
}
