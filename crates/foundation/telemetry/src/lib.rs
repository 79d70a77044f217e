//! What Outrigger says of itself: metrics, and its own log.
//!
//! In: writes from every pillar. Out: exposition text, and events on standard error.
//! Promise: bounded memory whatever labels and events arrive, and a cost on the request
//! path of one uncontended atomic addition per metric.
//!
//! Nanoseconds per write with one thread and with two, each on its shard, on a 2-core cloud
//! VM: `Counter::inc` 8 and 8, `Gauge::inc` 12 and 13, `Histogram::observe` with 14 classic
//! buckets 18 and 19, with native ones 24 and 25. That the second thread costs nothing shows
//! that nothing is shared. An encode of 1900 counters as OpenMetrics takes 0.33 ms. Measured with
//! `cargo run --release -p outrigger-telemetry --example registry_cost`.

mod cells;
mod encode;
mod exponential;
mod family;
pub mod log;
mod names;
mod native;
pub mod parse;
mod process;
mod quantile;
mod registry;
mod series;
mod snapshot;
pub mod trace;

pub use cells::set_shard;
pub use encode::Format;
pub use family::{CounterFamily, FloatCounterFamily, GaugeFamily, HistogramFamily};
pub use names::RegistryError;
pub use native::{NativeSnapshot, ZERO_THRESHOLD};
pub use process::{register_build_info, register_process_metrics};
pub use quantile::quantile;
pub use registry::Registry;
pub use series::{Buckets, Counter, FloatCounter, Gauge, Histogram};
pub use snapshot::{FamilySnapshot, SeriesSnapshot, Value};
