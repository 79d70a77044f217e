//! The exporter: the application's metrics, gathered and exposed beside our own.
//!
//! In: StatsD datagrams and metrics of the application's own, scrapes from Prometheus. Out: one
//! `/metrics` that holds everything the process knows. Promise: neither a flood of
//! datagrams nor a peer that sends nonsense costs more than the registry's budget;
//! what is refused is counted with its reason.

mod component;
mod merge;
mod scrape;
mod statsd;

pub use component::MetricsComponent;
pub use statsd::{Refusal, Sample, Tags, Value, parse_datagram};
