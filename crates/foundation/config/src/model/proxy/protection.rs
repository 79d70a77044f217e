//! What keeps a cluster's requests away from endpoints that fail, and its endpoints from too many. The terms are Envoy's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// Endpoints that fail are taken out for a while.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierDetection {
    /// So many answers of 500 and above in a row; 0 turns it off. gRPC's `UNKNOWN`, `INTERNAL`, `DATA_LOSS`,
    /// `UNIMPLEMENTED`, `UNAVAILABLE` and `DEADLINE_EXCEEDED` count as 500, 500, 500, 501, 503 and 504.
    #[serde(rename = "consecutive5xx")]
    pub consecutive_5xx: u32,
    /// So many answers of 502, 503 and 504 in a row; 0 turns it off.
    pub consecutive_gateway_errors: u32,
    /// So many times in a row no connection, no answer, or none in time; 0 turns it off.
    pub consecutive_local_origin_failures: u32,
    /// How often success rates are compared, and past ejections forgiven one by one.
    pub interval: Duration,
    /// The first ejection lasts so long, the second in short succession twice as long, and so on.
    pub base_ejection_time: Duration,
    /// No ejection lasts longer.
    pub max_ejection_time: Duration,
    /// In percent: so many of the endpoints may be ejected at once, but one in any case. 0 ejects nobody.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: u32,
    /// Endpoints that succeed far less often than the others are ejected, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// An endpoint that answers 429 or 503 with `Retry-After` rests for that long, at most for this; `0s` does not heed it.
    pub max_retry_after: Duration,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: 5,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
            success_rate: None,
            max_retry_after: Duration::from_secs(30),
        }
    }
}

/// Endpoints that succeed far less often than the others are ejected.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SuccessRate {
    /// So many endpoints must have had `requestVolume` requests within an interval.
    #[schemars(range(min = 1))]
    pub minimum_hosts: u32,
    /// So many requests within an interval say enough about an endpoint.
    #[schemars(range(min = 1))]
    pub request_volume: u32,
    /// In thousandths: an endpoint is ejected that is so many standard deviations below the mean.
    pub stdev_factor: u32,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { minimum_hosts: 5, request_volume: 100, stdev_factor: 1900 }
    }
}

/// What a cluster's endpoints may have at once, from all workers together. What is beyond is refused with 503.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreakers {
    /// Connections, idle or busy. Each worker may have one in any case.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: u32,
    /// Requests that wait for a connection to be made. Absent means as many as come.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pending_requests: Option<u32>,
    /// Requests under way. Absent means as many as come.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// Requests under way that were sent again (`retry`) or beside another one (`hedge`). One that would be too much is not
    /// made: the answer at hand goes to the client. Absent means that only `retryConstraint` bounds them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_retries: Option<u32>,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self { max_connections: 2048, max_pending_requests: None, max_requests: None, max_retries: None }
    }
}

/// A check of each endpoint, made over the cluster's own TLS. An endpoint that was not checked yet counts as healthy.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// How it is checked.
    #[serde(rename = "type")]
    pub kind: HealthCheckType,
    /// With `type: HTTP`: what is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealthCheck>,
    /// With `type: GRPC`: what is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcHealthCheck>,
    /// With `type: TCP`: what is sent and expected; absent means that a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpHealthCheck>,
    /// From one check of an endpoint to the next.
    #[serde(default = "HealthCheck::default_interval")]
    pub interval: Duration,
    /// In percent: an interval is shorter or longer by up to so much, so that endpoints are not checked all at once.
    #[serde(default = "HealthCheck::default_jitter")]
    #[schemars(range(min = 0, max = 100))]
    pub interval_jitter_percent: u32,
    /// A check that takes longer has failed.
    #[serde(default = "HealthCheck::default_timeout")]
    pub timeout: Duration,
    /// So many successes in a row make an unhealthy endpoint healthy.
    #[serde(default = "HealthCheck::default_healthy")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: u32,
    /// So many failures in a row make a healthy endpoint unhealthy.
    #[serde(default = "HealthCheck::default_unhealthy")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: u32,
    /// The interval while nobody sends requests to the cluster.
    #[serde(default = "HealthCheck::default_no_traffic")]
    pub no_traffic_interval: Duration,
}

impl HealthCheck {
    fn default_interval() -> Duration {
        Duration::from_secs(10)
    }
    fn default_jitter() -> u32 {
        10
    }
    fn default_timeout() -> Duration {
        Duration::from_secs(1)
    }
    fn default_healthy() -> u32 {
        2
    }
    fn default_unhealthy() -> u32 {
        3
    }
    fn default_no_traffic() -> Duration {
        Duration::from_secs(60)
    }
}

/// How an endpoint is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HealthCheckType {
    /// By a request; HTTP/2 where the cluster's `protocol` is `http2`, else HTTP/1.1.
    #[serde(rename = "HTTP")]
    Http,
    /// By the call `grpc.health.v1.Health/Check`.
    #[serde(rename = "GRPC")]
    Grpc,
    /// By a connection.
    #[serde(rename = "TCP")]
    Tcp,
}

/// What a check by HTTP asks.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpHealthCheck {
    /// The path, with a query if it needs one.
    #[schemars(length(min = 1))]
    pub path: String,
    /// The `Host`; absent means the endpoint's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The method.
    pub method: HealthCheckMethod,
    /// Statuses that mean health.
    pub expected_statuses: Vec<u16>,
}

impl Default for HttpHealthCheck {
    fn default() -> Self {
        Self { path: "/".to_owned(), hostname: None, method: HealthCheckMethod::Get, expected_statuses: vec![200] }
    }
}

/// The method of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HealthCheckMethod {
    /// With an answer's body, which is not read.
    Get,
    /// Without one.
    Head,
    /// With an empty body.
    Options,
}

/// What a check by gRPC asks.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcHealthCheck {
    /// The service whose health is asked for; empty means the server's.
    pub service: String,
}

/// What a check by TCP sends and expects.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpHealthCheck {
    /// What is sent once connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// What the answer must contain, within its first 4 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive: Option<String>,
}
