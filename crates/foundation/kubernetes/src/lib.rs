//! The Kubernetes API, as far as the house needs it.
//!
//! In: where the API server is (from within the cluster, or a kubeconfig), objects as JSON. Out: objects as JSON, watched
//! collections of which only what is needed is kept, a leader, events. Promise: every request ends within its time; what
//! the API server refuses comes back as its own typed Status; a watched collection misses nothing over closed, expired and
//! broken watches, and shrinks to what its projection keeps; of two who ask to lead, never both do; tokens are read
//! again for each request and shown nowhere.

mod access;
mod client;
pub mod definitions;
mod duty;
mod election;
mod error;
mod events;
mod exec;
mod informer;
mod kubeconfig;
mod list;
pub mod names;
mod object;
mod watch;

pub use access::{Access, AccessError};
pub use client::{Client, Options, Patch, Write};
pub use duty::{Duty, Leader};
pub use election::{Election, ElectionOptions, Leadership};
pub use error::{ApiError, Forbidden, Status};
pub use events::{Event, Recorder, Regarding, Writer};
pub use informer::{Changes, Informer, Key, Store, informer};
pub use list::Selection;
pub use object::{Path, Resource, resources};
pub use watch::{Change, Watch};
