//! YAML as Kubernetes' tools read it, to JSON and back.
//!
//! In: one document. Out: a JSON value; or, the other way, text that every reader of YAML 1.1
//! and 1.2 understands alike. Promise: `0644` is the number that kubectl takes it for, and no
//! string becomes a number, a boolean or a date on its way out.

mod read;
mod write;

pub(crate) use read::{Dialect, read};
pub(crate) use write::write;
