//! Resources of our own: their CustomResourceDefinitions, as an installation gives them to an API server.
//!
//! Who installs and who follows them are features that do not know one another; both find them here.

mod rollouts;

pub use rollouts::{ROLLOUTS, rollouts, rollouts_spec};
