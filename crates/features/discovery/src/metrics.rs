//! What is counted.

use std::sync::{Arc, LazyLock};

use outrigger_config::MetricsRegistry;
use outrigger_telemetry::{Counter, Gauge, Registry};

use crate::catalogue::Kind;

/// Handles of all metrics.
pub(crate) struct Metrics {
    pub(crate) streams: Gauge,
    pub(crate) subscriptions: Gauge,
    answers: [Counter; 2],
    taken: [Counter; 2],
    refused: [Counter; 2],
    pub(crate) resources: [Gauge; 2],
    pub(crate) changes: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Arc<Self> {
        let streams = registry.gauge("outrigger_discovery_streams", "Proxies that are connected.", &[]);
        let help = "Names that proxies have asked for, over all of them.";
        let subscriptions = registry.gauge("outrigger_discovery_subscriptions", help, &[]);
        let answers = registry.counter("outrigger_discovery_answers_total", "Answers to proxies, by type.", &["type"]);
        let help = "What became of answers: taken (ack) or refused (nack), by type.";
        let acknowledged = registry.counter("outrigger_discovery_acknowledgements_total", help, &["type", "result"]);
        let help = "What there is to be told, by type; a virtual address counts as a cluster.";
        let resources = registry.gauge("outrigger_discovery_resources", help, &["type"]);
        let changes =
            registry.counter("outrigger_discovery_changes_total", "Services that came, changed or went.", &[]);
        Arc::new(Self {
            streams: streams.with(&[]),
            subscriptions: subscriptions.with(&[]),
            answers: Kind::ALL.map(|kind| answers.with(&[kind.label()])),
            taken: Kind::ALL.map(|kind| acknowledged.with(&[kind.label(), "ack"])),
            refused: Kind::ALL.map(|kind| acknowledged.with(&[kind.label(), "nack"])),
            resources: Kind::ALL.map(|kind| resources.with(&[kind.label()])),
            changes: changes.with(&[]),
        })
    }

    /// For streams that nobody counts.
    pub(crate) fn unregistered() -> Arc<Self> {
        // One for all: what a registry has given out lives as long as the process.
        static ONE: LazyLock<Arc<Metrics>> =
            LazyLock::new(|| Metrics::new(&Registry::new(&MetricsRegistry::default(), 1)));
        Arc::clone(&ONE)
    }

    pub(crate) fn told(&self, kind: Kind) {
        self.answers[kind as usize].inc();
    }

    pub(crate) fn acknowledged(&self, kind: Kind, taken: bool) {
        let counters = if taken { &self.taken } else { &self.refused };
        counters[kind as usize].inc();
    }
}
