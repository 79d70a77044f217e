//! A pod's metrics as the demo needs them.
//!
//! In: exposition text from a sidecar's `/metrics`. Out: a few figures. Promise: they are
//! read from the outside, with the same parser and names any user has.

use std::collections::BTreeMap;

use outrigger_telemetry::parse::{self, Sample};

/// What one scrape of a pod says.
#[derive(Debug, Clone, Default)]
pub(super) struct PodMetrics {
    pub(super) inbound_by_peer: BTreeMap<String, u64>,
    pub(super) outbound_requests: u64,
    pub(super) failed: u64,
    /// Cumulative counts of inbound durations by upper bound in seconds.
    pub(super) duration_buckets: BTreeMap<ordered::Bound, u64>,
    pub(super) acknowledged: u64,
    pub(super) dropped: u64,
    pub(super) secret_version: u64,
    pub(super) secret_rendered: f64,
    pub(super) series: usize,
    pub(super) resident_bytes: f64,
}

impl PodMetrics {
    /// Reads a scrape.
    pub(super) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let mut metrics = Self::default();
        for family in parse::parse(text)?.families {
            for sample in &family.samples {
                metrics.series += 1;
                metrics.take(sample);
            }
        }
        Ok(metrics)
    }

    /// Requests the pod's inbound side answered.
    pub(super) fn inbound_requests(&self) -> u64 {
        self.inbound_by_peer.values().sum()
    }

    fn take(&mut self, sample: &Sample) {
        let label = |name: &str| sample.label(name).unwrap_or_default();
        let inbound = label("direction") == "inbound";
        // Counters are whole and far below 2^53.
        let count = sample.value as u64;
        match sample.name.as_str() {
            "outrigger_http_requests_total" if inbound => {
                *self.inbound_by_peer.entry(label("peer").to_owned()).or_default() += count;
                if label("code").starts_with('5') || label("code").starts_with('0') {
                    self.failed += count;
                }
            }
            "outrigger_http_requests_total" => self.outbound_requests += count,
            "outrigger_http_request_duration_seconds_bucket" if inbound => {
                if let Some(bound) = ordered::Bound::parse(label("le")) {
                    *self.duration_buckets.entry(bound).or_default() += count;
                }
            }
            "outrigger_logs_sink_acknowledged_total" => self.acknowledged += count,
            "outrigger_logs_dropped_total" => self.dropped += count,
            "outrigger_secret_version" => self.secret_version = count,
            "outrigger_secret_rendered_timestamp_seconds" => self.secret_rendered = sample.value,
            "process_resident_memory_bytes" => self.resident_bytes = sample.value,
            _ => {}
        }
    }
}

/// A histogram's upper bound, ordered so that it can be a key.
pub(super) mod ordered {
    /// An upper bound in seconds.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub(crate) struct Bound(pub(crate) f64);

    impl Bound {
        pub(super) fn parse(text: &str) -> Option<Self> {
            if text == "+Inf" { Some(Self(f64::INFINITY)) } else { text.parse().ok().map(Self) }
        }
    }
    impl Eq for Bound {}
    impl PartialOrd for Bound {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Bound {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            self.0.total_cmp(&other.0)
        }
    }
}
