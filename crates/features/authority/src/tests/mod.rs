//! Tests that need several of the crate's parts.

mod requests;
mod rotation;
mod service;
