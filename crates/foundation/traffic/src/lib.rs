//! Decisions about traffic, without any I/O and without a clock of their own.
//!
//! In: what a request looks like, what is known of endpoints, what time it is. Out: where it
//! goes, what is changed in it, whether it may go at all. Promise: the same question gets the
//! same answer whoever asks, a request or an operator; nothing here waits, locks or, per
//! request, allocates.

pub mod balance;
mod budget;
mod chance;
mod concurrency;
mod deadline;
mod descriptor;
pub mod directory;
pub mod endpoints;
pub mod explain;
pub mod filter;
pub mod health;
mod latency;
mod masking;
pub mod outlier;
mod rate_limit;
mod retry;
pub mod route;
pub mod session;
mod shedding;
pub mod tap;
mod window;

pub use budget::RetryBudget;
pub use chance::Random;
pub use concurrency::{AdaptiveLimit, ConcurrencyBounds, Criticality, Gradient, Sample};
pub use deadline::{read_grpc_timeout, read_milliseconds, read_unix_deadline, write_grpc_timeout};
pub use descriptor::{Subject, descriptor_in_words, descriptors, x_ratelimit_headers};
pub use latency::LatencyQuantile;
pub use masking::{BodyKind, mask_body};
pub use rate_limit::{Decision, Rate, RateLimit};
pub use retry::{Asked, Failure, Question, RetryPolicy, Verdict, Withheld, grpc_pushback, retry_after};
pub use shedding::{Shedding, Turn};
