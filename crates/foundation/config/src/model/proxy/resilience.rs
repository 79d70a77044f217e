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

use crate::{ByteSize, Duration, Name};

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
    /// Whether callers may shorten `request`.
    pub deadlines: Deadlines,
}

/// Whether deadlines that requests bring along count: `grpc-timeout`, `x-envoy-expected-rq-timeout-ms` and
/// `x-request-deadline` (the Unix time in seconds, with a fraction if need be).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deadlines {
    /// They pass as they come, and bind the endpoint only.
    #[default]
    Ignore,
    /// The first of them bounds the request: one that has passed is refused (504, DEADLINE_EXCEEDED) before it costs the
    /// endpoint anything, and each try is told what is left. A caller can only shorten `request`.
    Honour,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        let off = Duration::from_secs(0);
        Self { request: Duration::from_secs(15), backend_request: off, idle: off, deadlines: Deadlines::default() }
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

/// Requests that are sent to a second endpoint when the first lets its answer be waited for; the first good answer is taken
/// and the others are given up. Only those whose method is idempotent, or that have an `Idempotency-Key`, and within the
/// cluster's `retryConstraint`. A body is taken whole before the first one is sent.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hedge {
    /// How long to wait before each further one: about what all but few answers take. Exactly one of this and `percentile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Duration>,
    /// The same, found out: what so many percent of the route's last few thousand answers took at most. Until a hundred
    /// answers are known there is no further one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 50.0, max = 99.9))]
    pub percentile: Option<f64>,
    /// So many further ones.
    #[serde(default = "default_hedges")]
    #[schemars(range(min = 1, max = 3))]
    pub max: u32,
    /// A request with a longer body is sent once, and so is one with trailers or `Expect`. Counted in
    /// `proxy.limits.maxBufferBytes`.
    #[serde(default = "default_hedged_body")]
    pub max_body_bytes: ByteSize,
}

fn default_hedged_body() -> ByteSize {
    ByteSize::kib(64)
}

fn default_hedges() -> u32 {
    1
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

/// A limit on how many requests pass in a time, for each key on its own. Beyond it 429, or RESOURCE_EXHAUSTED, with
/// `Retry-After`. All workers count together.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Unique within its route or listener; a label of its metrics.
    pub name: Name,
    /// So many requests.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In this time.
    #[serde(default = "default_per")]
    pub per: Duration,
    /// So many may come at once; absent means as many as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// What tells those apart that have a limit each; all parts together are the key. Empty means that all requests share
    /// one.
    #[serde(default)]
    pub key: Vec<RateLimitKey>,
    /// Room for so many keys at once, 8 bytes each. When more are limited, those that are least so are forgotten, and may
    /// come again too early.
    #[serde(default = "default_max_keys")]
    #[schemars(range(min = 8, max = 134_217_728))]
    pub max_keys: u32,
    /// Whether requests beyond it are refused; `false` only counts them.
    #[serde(default = "default_true")]
    pub enforce: bool,
    /// Answers tell what is left, in `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    #[serde(default)]
    pub headers: bool,
}

fn default_per() -> Duration {
    Duration::from_secs(1)
}

fn default_max_keys() -> u32 {
    16_384
}

fn default_true() -> bool {
    true
}

/// A part of a rate limit's key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitKey {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: RateLimitKeyType,
    /// Of `type: Header`: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<RateLimitHeader>,
    /// Of `type: ClientAddress`: how much of it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_address: Option<RateLimitAddress>,
}

/// What a part of a rate limit's key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RateLimitKeyType {
    /// A header's value; requests without it share the empty one.
    Header,
    /// The peer's SPIFFE ID; those without one share the empty one.
    Peer,
    /// The client's address, or its network.
    ClientAddress,
}

/// A header that is a part of a key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitHeader {
    /// Its name.
    #[schemars(extend("format" = "header-name"))]
    pub name: String,
}

/// How much of a client's address is a part of a key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimitAddress {
    /// Leading bits of an IPv4 address.
    #[schemars(range(min = 0, max = 32))]
    pub ipv4_prefix: u8,
    /// Leading bits of an IPv6 address; a customer usually has a whole /64.
    #[schemars(range(min = 0, max = 128))]
    pub ipv6_prefix: u8,
}

impl Default for RateLimitAddress {
    fn default() -> Self {
        Self { ipv4_prefix: 32, ipv6_prefix: 64 }
    }
}

/// How much a route's requests matter when a cluster with `adaptiveConcurrency` cannot answer all.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Priority {
    /// What they are.
    pub level: PriorityLevel,
    /// A header that says it for a single request, by the names of the levels in any case. Callers must be trusted not to
    /// make themselves more important than they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "header-name"))]
    pub header: Option<String>,
}

/// How much a request matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PriorityLevel {
    /// Refused last: it may use all of the limit.
    Critical,
    /// It may use nine tenths of it.
    #[default]
    Standard,
    /// Refused first: it may use seven tenths.
    Sheddable,
}

/// A limit on requests that wait for a cluster's answer at once, which finds itself: it grows while answers come as fast as
/// without load, and shrinks when they come later, for then requests wait. Beyond it 503 (UNAVAILABLE) at once, with
/// `X-Envoy-Overloaded`. All workers count together; a request counts up to its answer's headers.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AdaptiveConcurrency {
    /// It is never lower; so low is it at the start, until fifty answers have told the latency without load.
    #[schemars(range(min = 1, max = 10_000))]
    pub min_concurrency: u32,
    /// It is never higher.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_concurrency: u32,
    /// How far, in percent, latency may be above that without load before the limit shrinks.
    #[schemars(range(min = 1, max = 1000))]
    pub latency_buffer: u32,
    /// How often the latency without load is measured anew, with half of the limit for fifty answers.
    pub measure_interval: Duration,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self {
            min_concurrency: 3,
            max_concurrency: 1000,
            latency_buffer: 25,
            measure_interval: Duration::from_secs(60),
        }
    }
}

/// Copies of requests, sent once the request itself is answered. One with a body beyond 64 KiB is not copied, and no more
/// than 64 at once per worker are under way. Copies do not wait for each other, and are not tried again.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where copies go.
    pub backend_ref: MirrorBackend,
    /// Of how many requests, in percent; absent, like `fraction`, means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Of how many requests, as a fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// The cluster that gets copies.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MirrorBackend {
    /// Its name.
    pub name: Name,
}

/// A share of all.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// So many.
    pub numerator: u32,
    /// Of so many.
    #[serde(default = "default_denominator")]
    #[schemars(range(min = 1))]
    pub denominator: u32,
}

fn default_denominator() -> u32 {
    100
}
