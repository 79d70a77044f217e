//! Section `metrics`: the exporter.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, Name};

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
    /// Metrics that the application serves itself: fetched at each scrape, and served together with ours, as text 0.0.4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub scrape: Vec<ScrapeTarget>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15020)), statsd: None, scrape: Vec::new() }
    }
}

/// Metrics that the application serves itself. While they cannot be had, `outrigger_scrape_target_up` is 0 and ours are
/// served alone; a family that both have is the application's.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScrapeTarget {
    /// Unique among targets; the label `target` of `outrigger_scrape_target_up`.
    pub name: Name,
    /// Where they are, such as `http://127.0.0.1:8080/metrics`.
    #[schemars(extend("format" = "http-url"))]
    pub url: String,
    /// Time for one answer; keep it below Prometheus' `scrape_timeout`.
    #[serde(default = "default_scrape_timeout")]
    pub timeout: Duration,
    /// An answer with more bytes is not taken.
    #[serde(default = "default_scrape_limit")]
    pub max_bytes: ByteSize,
}

fn default_scrape_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_scrape_limit() -> ByteSize {
    ByteSize::mib(4)
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
