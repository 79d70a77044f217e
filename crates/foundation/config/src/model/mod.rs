//! The one config model: what a YAML file may say, section by section.
//!
//! In: a deserialised file. Out: typed sections that features read. Promise: every
//! struct denies unknown fields, every field has a description (it becomes the JSON
//! Schema's) and every bound has a default that suits a small pod.

mod authority;
mod controller;
mod discovery;
mod identity;
mod logs;
mod metrics;
mod proxy;
mod runtime;
mod secrets;
mod test;
mod tracing;

pub use authority::*;
pub use controller::*;
pub use discovery::*;
pub use identity::*;
pub use logs::*;
pub use metrics::*;
pub use proxy::*;
pub use runtime::*;
pub use secrets::*;
pub use test::*;
pub use tracing::*;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Outrigger's configuration. An absent pillar (`identity`, `proxy`, `logs`, `secrets`, `metrics`, `authority`,
/// `discovery`, `controller`) is off and costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Threads, start and stop.
    pub runtime: Runtime,
    /// The admin API and the kubelet's health port.
    pub admin: Admin,
    /// Outrigger's own logs and its metrics registry.
    pub telemetry: Telemetry,
    /// Who this workload is: its X.509-SVID and whom it trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The data plane: listeners, routes and clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// Log forwarding: sources, transforms and sinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<Logs>,
    /// Secrets written to files, or given to the application's environment, before it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Secrets>,
    /// The exporter: the application's metrics, gathered and exposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// A certificate authority for the workloads of a cluster: what a controller runs, not a sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<Authority>,
    /// Tells proxies of services' endpoints: what a controller runs, not a sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// A cluster's controller: the webhook that injects pods, and what repairs those that it missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<Controller>,
    /// What the routes are expected to do, for `outrigger test`; a process that runs does not look at it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<RouteTest>,
}
