//! What Outrigger says of itself: metrics, and its own log.
//!
//! In: writes from every pillar. Out: exposition text, and events on standard error.
//! Promise: bounded memory whatever labels and events arrive, and a cost on the request
//! path of one uncontended atomic addition per metric. Measured with
//! `cargo run --release -p outrigger-telemetry --example registry_cost`.

mod cells;
mod encode;
mod exponential;
mod family;
pub mod log;
mod native;
pub mod parse;
mod process;
mod quantile;
mod registry;
mod series;
mod snapshot;

pub use cells::set_shard;
pub use encode::Format;
pub use family::{CounterFamily, FloatCounterFamily, GaugeFamily, HistogramFamily};
pub use native::{NativeSnapshot, ZERO_THRESHOLD};
pub use process::{register_build_info, register_process_metrics};
pub use quantile::quantile;
pub use registry::{Registry, RegistryError};
pub use series::{Buckets, Counter, FloatCounter, Gauge, Histogram};
pub use snapshot::{FamilySnapshot, SeriesSnapshot, Value};
