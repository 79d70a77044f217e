//! Tells proxies where services are, over Envoy's delta ADS (v3): to Outrigger's sidecars and to Envoy.
//!
//! In: services and their endpoints, from the config and from feeds; streams of proxies, each with names that it asks for.
//! Out: to each stream what changed of what it asked for, and nothing else. Promise: a stream is told of the last state,
//! however many changes lie between; one that does not read holds nobody back and costs no more than what it asked
//! for; what a resource looks like on the wire is written once, for all streams.

mod catalogue;
mod component;
mod feed;
pub mod kubernetes;
mod metrics;
mod service;
mod stream;
#[cfg(test)]
mod tests;

pub use catalogue::{Catalogue, Kind};
pub use component::DiscoveryComponent;
pub use feed::{Change, Feed, NextChange, Service, ServiceEndpoint};
pub use stream::Subscriber;
