//! The application's probes, asked by us in place of the kubelet.
//!
//! In: what to ask, in the variable `OUTRIGGER_PROBES` that the injector sets; the kubelet's requests
//! at `/app-health/CONTAINER/livez` of our health port. Out: the application's answer. Promise: a probe
//! means what it meant before; the kubelet needs no certificate, and its calls pass no listener.

mod ask;
mod component;
mod plan;
mod verifier;

pub use component::ProbesComponent;
pub use plan::{Plan, PlanError};
