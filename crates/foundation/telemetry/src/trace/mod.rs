//! Distributed traces: whose trace a request belongs to, whether it is kept, and the spans of those that are.
//!
//! In: the propagation fields of a request, the policy of the config, the end of the request.
//! Out: fields for the next hop, and spans as OTLP that wait for whoever sends them.
//! Promise: malformed fields begin a new trace and harm nothing; no span waits for the
//! collector; what does not fit is dropped and counted; a request that is not kept costs
//! its ids only.

mod context;
mod propagation;
mod queue;
mod sampling;
mod span;

pub use context::{SpanId, TraceContext, TraceId};
pub use propagation::{Fields, extract, fuzz_propagation, inject};
pub use queue::{Drained, SpanQueue};
pub use sampling::{Decision, Sampler};
pub use span::{Kind, Outcome, SpanWriter, export_request};
