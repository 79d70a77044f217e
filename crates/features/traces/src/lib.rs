//! Spans to a collector, by OTLP.
//!
//! In: spans that wait in the one queue, whoever made them. Out: batches at a collector,
//! over HTTP or gRPC. Promise: nothing waits for the collector; while it is away spans wait
//! within their bound, and what does not fit, or waits too long, is dropped and counted; at
//! the stop what waits is sent.

mod component;
mod exporter;

pub use component::TracesComponent;
