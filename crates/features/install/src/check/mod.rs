//! How a cluster is: what it has, beside what it should have.
//!
//! In: what the API server answered (`facts`). Out: findings, each with its state and, where it is not green, what to do. Promise:
//! what could not be looked at is told as that, never as good; judging is pure, asking is `ask`'s alone.

mod after;
mod ask;
mod before;
mod drift;
mod facts;
mod finding;
mod trust;

pub use ask::{Check, look};
pub use finding::{Finding, Report, State};
