//! Sections `runtime`, `admin` and `telemetry`: what every pillar stands on.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, ListenAddress, Tracing};

/// Threads, start and stop.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Runtime {
    /// Data-plane threads, 1 to 64. Default: the CPU limit of the cgroup rounded up, at most 2. Takes effect at the next start.
    #[schemars(range(min = 1, max = 64))]
    pub workers: Option<u32>,
    /// How long a stop may take in all; keep it below the pod's `terminationGracePeriodSeconds`.
    pub shutdown_budget: Duration,
    /// The part of the shutdown budget kept back for flushing logs, pushing metrics and revoking leases after the application has gone.
    pub flush_budget: Duration,
    /// The first wait before a failed component is started again; it doubles, with jitter, up to `restartBackoffMax`.
    pub restart_backoff: Duration,
    /// The longest wait before a failed component is started again.
    pub restart_backoff_max: Duration,
    /// Hand-over of the listening sockets to the next process, by `outrigger keeper`, so that a replacement refuses no connection. Takes effect at the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handover: Option<Handover>,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            workers: None,
            shutdown_budget: Duration::from_secs(25),
            flush_budget: Duration::from_secs(5),
            restart_backoff: Duration::from_millis(200),
            restart_backoff_max: Duration::from_secs(30),
            handover: None,
        }
    }
}

/// Where listening sockets are handed over. When no keeper listens there, a start binds and a stop closes as ever.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Handover {
    /// The unix socket of `outrigger keeper --socket PATH`, in a folder that the process, the keeper and the next process share. A lock file `PATH.lock` is made beside it.
    pub socket: PathBuf,
    /// How long a start waits at the keeper for the sockets of a process that still runs, before it tries to bind them itself.
    #[serde(default = "Handover::default_wait")]
    pub wait: Duration,
}

impl Handover {
    fn default_wait() -> Duration {
        Duration::from_secs(60)
    }
}

/// The admin API and the kubelet's health port.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    /// The admin API: a loopback `IP:PORT`, or `unix:/path`. Takes effect at the next start.
    pub listen: ListenAddress,
    /// The health port for the kubelet, reachable from outside the pod: `/livez`, `/readyz`, `/startupz`. Takes effect at the next start.
    pub health: ListenAddress,
    /// A page for browsers at the admin API, under `/ui/`: `kubectl port-forward POD 15000`, then `http://localhost:15000`. It costs nothing while nobody looks.
    pub page: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: ListenAddress::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000))),
            health: ListenAddress::Ip(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15021))),
            page: true,
        }
    }
}

/// What Outrigger tells of itself and of the requests it carries: its own log, metrics, traces.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Telemetry {
    /// Outrigger's own log, on standard error.
    pub log: OwnLog,
    /// The registry that all pillars write to.
    pub registry: MetricsRegistry,
    /// Distributed traces of requests, when present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
}

/// Outrigger's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OwnLog {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// One event a line, as text for people or as JSON for machines.
    pub format: OwnLogFormat,
    /// Events a second that one place in the code may write; more are counted and summed up in one line. 0 turns the limit off.
    pub rate_limit: u32,
}

impl Default for OwnLog {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: OwnLogFormat::Text, rate_limit: 20 }
    }
}

/// Severity of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing at all.
    Off,
    /// Something failed and needs someone.
    Error,
    /// Something is wrong but handled.
    Warn,
    /// What an operator wants to see.
    Info,
    /// What a developer wants to see.
    Debug,
    /// Everything.
    Trace,
}

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OwnLogFormat {
    /// `2026-01-02T03:04:05.678Z INFO component message field=value`
    Text,
    /// One JSON object a line.
    Json,
}

/// The registry that all pillars write to.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsRegistry {
    /// Series in all; beyond it new label sets share one `overflow` series per family, and `outrigger_metrics_overflow_total` counts them.
    #[schemars(range(min = 100, max = 1_000_000))]
    pub max_series: u32,
    /// Series in one family, within `maxSeries`.
    #[schemars(range(min = 10, max = 1_000_000))]
    pub max_series_per_family: u32,
    /// A series nobody wrote to for so long is forgotten.
    pub series_ttl: Duration,
    /// The longest label value in bytes; longer ones are cut.
    pub max_label_bytes: ByteSize,
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        Self {
            max_series: 10_000,
            max_series_per_family: 2_000,
            series_ttl: Duration::from_secs(3600),
            max_label_bytes: ByteSize(256),
        }
    }
}
