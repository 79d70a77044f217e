//! Section `metrics`: the exporter.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration};

/// The exporter: the application's metrics, gathered and exposed beside our own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metrics {
    /// Where Prometheus scrapes `/metrics`.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// Takes StatsD datagrams from the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statsd: Option<Statsd>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15020)), statsd: None }
    }
}

/// A StatsD listener: counters, gauges and timers, with DogStatsD tags.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Statsd {
    /// UDP address to listen on.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// Put before each metric name.
    pub prefix: String,
    /// Upper bounds, in seconds, of the histogram that timers become.
    pub buckets: Vec<f64>,
    /// A StatsD series nobody sent for so long is forgotten; `0s` keeps the registry's `seriesTtl`.
    pub ttl: Duration,
    /// The kernel's receive buffer; it decides how large a burst is taken without loss.
    pub receive_buffer: ByteSize,
}

impl Default for Statsd {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8125)),
            prefix: String::new(),
            buckets: vec![0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            ttl: Duration::from_secs(0),
            receive_buffer: ByteSize::mib(1),
        }
    }
}
