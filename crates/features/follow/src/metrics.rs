//! What is counted.

use outrigger_telemetry::{Counter, Gauge, Registry};

/// Handles of all metrics.
pub(crate) struct Metrics {
    pub(crate) connected: Gauge,
    pub(crate) connections: Counter,
    pub(crate) taken: Counter,
    pub(crate) refused: Counter,
    services: Gauge,
    unknown: Gauge,
    bytes: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let gauge = |name: &'static str, help: &'static str| registry.gauge(name, help, &[]).with(&[]);
        let counter = |name: &'static str, help: &'static str| registry.counter(name, help, &[]).with(&[]);
        let updates = registry.counter(
            "outrigger_discovery_client_updates_total",
            "Answers of discovery servers, by what became of them (taken or refused).",
            &["result"],
        );
        Self {
            connected: gauge(
                "outrigger_discovery_client_connected",
                "Whether a discovery server is connected (1) or not (0).",
            ),
            connections: counter(
                "outrigger_discovery_client_connections_total",
                "Connections made to discovery servers.",
            ),
            taken: updates.with(&["taken"]),
            refused: updates.with(&["refused"]),
            services: gauge("outrigger_discovery_client_services", "Services whose endpoints are followed."),
            unknown: gauge(
                "outrigger_discovery_client_unknown_destinations",
                "Destinations that are remembered to be no service's.",
            ),
            bytes: gauge("outrigger_discovery_client_state_bytes", "Bytes of what servers told and is kept."),
        }
    }

    pub(crate) fn sizes(&self, (services, unknown, bytes): (usize, usize, usize)) {
        self.services.set(services as f64);
        self.unknown.set(unknown as f64);
        self.bytes.set(bytes as f64);
    }
}
