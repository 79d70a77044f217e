//! The pillar's figures.

use outrigger_telemetry::{Counter, CounterFamily, Gauge, GaugeFamily, Registry};

/// All families of the pillar.
#[derive(Clone)]
pub(crate) struct Metrics {
    lines: CounterFamily,
    bytes: CounterFamily,
    lag: GaugeFamily,
    acknowledged: CounterFamily,
    retries: CounterFamily,
    dropped: CounterFamily,
    buffer: GaugeFamily,
    oddities: CounterFamily,
    pub(crate) checkpoints: CounterFamily,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            lines: registry.counter("outrigger_logs_source_lines_total", "Lines read.", &["source"]),
            bytes: registry.counter("outrigger_logs_source_bytes_total", "Bytes read.", &["source"]),
            lag: registry.gauge(
                "outrigger_logs_source_lag_bytes",
                "Bytes that not every sink has acknowledged, as of the last look.",
                &["source"],
            ),
            acknowledged: registry.counter(
                "outrigger_logs_sink_acknowledged_total",
                "Events a sink has acknowledged.",
                &["sink"],
            ),
            retries: registry.counter("outrigger_logs_sink_retries_total", "Batches sent again.", &["sink"]),
            dropped: registry.counter(
                "outrigger_logs_dropped_total",
                "Events given up by rule, by who and why.",
                &["component", "reason"],
            ),
            buffer: registry.gauge("outrigger_logs_buffer_bytes", "Bytes that wait for a sink.", &["sink"]),
            oddities: registry.counter(
                "outrigger_logs_oddities_total",
                "Lines or files that were not as expected: truncated, invalid_utf8, parse_error, copytruncate.",
                &["component", "kind"],
            ),
            checkpoints: registry.counter("outrigger_logs_checkpoints_total", "Checkpoints written.", &["result"]),
        }
    }

    pub(crate) fn source(&self, name: &str) -> SourceMetrics {
        let oddity = |kind| self.oddities.with(&[name, kind]);
        SourceMetrics {
            lines: self.lines.with(&[name]),
            bytes: self.bytes.with(&[name]),
            lag: self.lag.with(&[name]),
            truncated: oddity("truncated"),
            repaired: oddity("invalid_utf8"),
            parse_errors: oddity("parse_error"),
            copytruncate: oddity("copytruncate"),
            dropped: self.dropped.with(&[name, "parse_error"]),
        }
    }

    pub(crate) fn sink(&self, name: &str) -> SinkMetrics {
        SinkMetrics {
            acknowledged: self.acknowledged.with(&[name]),
            retries: self.retries.with(&[name]),
            rejected: self.dropped.with(&[name, "rejected"]),
        }
    }

    pub(crate) fn buffer(&self, sink: &str) -> Gauge {
        self.buffer.with(&[sink])
    }
}

/// Figures of one source.
#[derive(Clone)]
pub(crate) struct SourceMetrics {
    pub(crate) lines: Counter,
    pub(crate) bytes: Counter,
    pub(crate) lag: Gauge,
    pub(crate) truncated: Counter,
    pub(crate) repaired: Counter,
    pub(crate) parse_errors: Counter,
    pub(crate) copytruncate: Counter,
    pub(crate) dropped: Counter,
}

/// Figures of one sink.
#[derive(Clone)]
pub(crate) struct SinkMetrics {
    pub(crate) acknowledged: Counter,
    pub(crate) retries: Counter,
    pub(crate) rejected: Counter,
}
