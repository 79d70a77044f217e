//! The data plane: listeners, routes and clusters.
//!
//! In: HTTP/1.1 connections, plain or mTLS. Out: the same requests at a cluster's
//! endpoints, metrics, and an access log. Promise: bodies are streamed and never held,
//! nothing is shared or locked between workers on a request's path, a message cut short
//! upstream is never a short success downstream, and a reload touches only what changed.

mod access_log;
mod balance;
mod body;
mod cluster;
mod component;
mod connection;
mod dial;
mod error;
mod forward;
mod headers;
mod io;
mod judge;
mod listener;
mod metrics;
mod pool;
mod route;
mod snapshot;
mod tls;
mod watch;
mod worker;
mod write;

pub use component::components;
#[doc(hidden)]
pub use route::fuzz_match;
