//! What protects traffic when endpoints fail or are slow: time limits, retries and their budget.
//!
//! `timeouts` are named as in [GEP-1742], `retry` as in [GEP-1731], `retryConstraint` as in [GEP-3388]; what these
//! lack takes Envoy's terms.
//!
//! [GEP-1742]: https://gateway-api.sigs.k8s.io/geps/gep-1742/
//! [GEP-1731]: https://gateway-api.sigs.k8s.io/geps/gep-1731/
//! [GEP-3388]: https://gateway-api.sigs.k8s.io/geps/gep-3388/

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration};

/// Time limits of a route.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// From the request's first byte to the response's headers, all tries and waits between them included; beyond it 504.
    /// `0s` turns it off.
    pub request: Duration,
    /// The same for one try, connecting included; beyond it the next one begins if `retry` has any left, else 504. At
    /// most `request`; `0s` turns it off.
    pub backend_request: Duration,
    /// Once the answer has begun: how long no byte may move in either direction before both sides are cut. `0s` turns it
    /// off. In tunnels the listener's `limits.idleTimeout` holds.
    pub idle: Duration,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self { request: Duration::from_secs(15), backend_request: Duration::from_secs(0), idle: Duration::from_secs(0) }
    }
}

/// Requests that are sent again when they failed. Nothing is sent again once a byte of the answer went to the client.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Status codes of answers, 400 to 599, after which a request is sent again. The last answer goes to the client.
    pub codes: Vec<u16>,
    /// gRPC statuses after which a call is sent again, when they come at once and without a message. Naming them is to say
    /// that such a call may be repeated, for gRPC knows no idempotent methods.
    pub grpc_codes: Vec<GrpcCode>,
    /// Failures without an answer after which a request is sent again.
    pub on: Vec<RetryOn>,
    /// Tries beyond the first.
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
    /// The shortest wait before the second try. It doubles with each further one and is lengthened by chance, up to twice
    /// as long, so that clients do not come back together.
    pub backoff: Duration,
    /// The longest such wait.
    pub max_backoff: Duration,
    /// An endpoint's own wish (`Retry-After`, `grpc-retry-pushback-ms`) is waited for when it is no longer than this; else
    /// its answer goes to the client.
    pub max_retry_after: Duration,
    /// A request's body is kept up to this size to be sent again; a request with a longer one is not. Counted in
    /// `proxy.limits.maxBufferBytes`, and given up first when that is short.
    pub max_body_bytes: ByteSize,
    /// A request that an endpoint may have acted on is sent again only when its method is idempotent or it has an
    /// `Idempotency-Key`. One that surely no endpoint has seen (`connect-failure`, `refused-stream`) always may be.
    pub only_idempotent: bool,
    /// Endpoints are told which try it is, from 1 on, in `x-envoy-attempt-count`.
    pub attempt_count: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            codes: Vec::new(),
            grpc_codes: Vec::new(),
            on: vec![RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset, RetryOn::Timeout],
            attempts: 1,
            backoff: Duration::from_millis(25),
            max_backoff: Duration::from_millis(250),
            max_retry_after: Duration::from_secs(2),
            max_body_bytes: ByteSize::kib(64),
            only_idempotent: true,
            attempt_count: false,
        }
    }
}

/// How a request fails without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection, or no TLS session, could be made.
    ConnectFailure,
    /// The endpoint said that it did not look at the request (HTTP/2: REFUSED_STREAM, GOAWAY).
    RefusedStream,
    /// The connection broke, or the answer's head broke the protocol.
    Reset,
    /// `timeouts.backendRequest` passed.
    Timeout,
}

/// A status of gRPC other than OK, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names are gRPC's own")]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// How many requests may be sent again to a cluster, over all routes and workers. A further try beyond `budget` and
/// `minRetryRate` is not made.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryConstraint {
    /// The share of retries.
    pub budget: RetryBudget,
    /// Retries that are allowed however few requests there are.
    pub min_retry_rate: RetryRate,
}

/// The share of retries in a cluster's requests.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Retries per hundred requests of routes with `retry`.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
    /// The time over which both are counted.
    pub interval: Duration,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, interval: Duration::from_secs(10) }
    }
}

/// A number of retries in a time.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryRate {
    /// So many retries.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub count: u32,
    /// In this time.
    pub interval: Duration,
}

impl Default for RetryRate {
    fn default() -> Self {
        Self { count: 10, interval: Duration::from_secs(1) }
    }
}
