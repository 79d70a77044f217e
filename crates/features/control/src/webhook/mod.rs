//! The admission webhook: pods come as the API server is about to make them, and go back as they are to be.

pub(crate) mod patch;
pub(crate) mod review;
mod service;

pub(crate) use service::{Metrics, Parts, SYSTEM, WebhookService};
