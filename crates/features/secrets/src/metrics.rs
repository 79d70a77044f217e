//! The series of this pillar.
//!
//! Promise: labels are paths and names of the config, never what is read.

use std::time::SystemTime;

use outrigger_telemetry::{Counter, CounterFamily, Gauge, GaugeFamily, Registry};

/// All families. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    version: GaugeFamily,
    rendered: GaugeFamily,
    renders: CounterFamily,
    requests: CounterFamily,
}

/// The gauges of one file or variable, held while the config names it.
pub(crate) struct OutputMetrics {
    version: Gauge,
    rendered: Gauge,
    written: Counter,
    unchanged: Counter,
    failed: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            version: registry.gauge(
                "outrigger_secret_version",
                "Version of the secret in a file (or variable, env:NAME): KV metadata, else changes counted from 1.",
                &["path"],
            ),
            rendered: registry.gauge(
                "outrigger_secret_rendered_timestamp_seconds",
                "When a secret was last rendered into its file.",
                &["path"],
            ),
            renders: registry.counter(
                "outrigger_secret_renders_total",
                "Renderings of secrets into files, by result: written, unchanged or failed.",
                &["path", "result"],
            ),
            requests: registry.counter(
                "outrigger_vault_requests_total",
                "Requests to Vault, by operation and result: a status, or where the request failed.",
                &["provider", "operation", "result"],
            ),
        }
    }

    pub(crate) fn output(&self, label: &str) -> OutputMetrics {
        let renders = |result| self.renders.with(&[label, result]);
        OutputMetrics {
            version: self.version.with(&[label]),
            rendered: self.rendered.with(&[label]),
            written: renders("written"),
            unchanged: renders("unchanged"),
            failed: renders("failed"),
        }
    }

    /// Takes the series of a file or variable away, once the config no longer names it.
    pub(crate) fn forget(&self, label: &str) {
        self.version.remove(&[label]);
        self.rendered.remove(&[label]);
        for result in ["written", "unchanged", "failed"] {
            self.renders.remove(&[label, result]);
        }
    }

    pub(crate) fn request(&self, provider: &str, operation: &str, result: &str) {
        self.requests.with(&[provider, operation, result]).inc();
    }
}

impl OutputMetrics {
    pub(crate) fn succeeded(&self, written: bool, version: u64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.version.set(version as f64);
        self.rendered.set(now.as_secs_f64());
        if written { self.written.inc() } else { self.unchanged.inc() }
    }

    pub(crate) fn failed(&self) {
        self.failed.inc();
    }
}
