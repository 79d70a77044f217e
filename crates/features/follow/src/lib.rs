//! Follows services' endpoints at a discovery server, over Envoy's delta ADS (v3).
//!
//! In: names that clusters follow, addresses that redirected connections want to go to; what a server tells. Out: their
//! endpoints, as sources; services found by address. Promise: only what is used is asked for; what was told holds on
//! while no server answers, and over a restart where a folder is given; everything kept has a bound; servers that come
//! back are not met by all proxies at once.

mod component;
mod metrics;
mod notebook;
mod source;
mod store;
mod stream;

pub use component::{FollowComponent, follow_always};
pub use notebook::Notebook;
