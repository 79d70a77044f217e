//! What is known of services, and who tells of it.
//!
//! In: the config's section. Out: services by name. Promise: a feed tells whole services, so that the last word on
//! each is what counts, in whatever order words come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;

use outrigger_config::{DiscoveryEndpoint, DiscoveryService};

/// A service: a name that is asked for, and where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Such as `orders.shop.svc.cluster.local:80`.
    pub name: String,
    /// Addresses that stand for it.
    pub virtual_addresses: Vec<SocketAddr>,
    /// Its endpoints want HTTP/2.
    pub http2: bool,
    /// Where it is.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its part of the requests beside others'.
    pub weight: u32,
    /// 0 is used first.
    pub priority: u32,
    /// Where it runs; empty when nobody knows.
    pub zone: String,
    /// Whether it can serve.
    pub healthy: bool,
    /// The SPIFFE ID in its certificate; empty for one that takes plain text.
    pub identity: String,
    /// What subsets select by.
    pub labels: BTreeMap<String, String>,
}

impl ServiceEndpoint {
    /// An endpoint of which no more is known.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            priority: 0,
            zone: String::new(),
            healthy: true,
            identity: String::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// What a feed tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A service is new, or different now.
    Set(Service),
    /// The service of this name is gone.
    Removed(String),
    /// The feed has told of all that there is at the start.
    Complete,
}

/// The next change of a feed; an error says why there is none now, and what was told before holds on.
pub type NextChange<'a> = Pin<Box<dyn Future<Output = Result<Change, String>> + Send + 'a>>;

/// Somebody who knows services, and tells when they change.
pub trait Feed: Send {
    /// Waits for news. It is called again and again, after an error too, and sees to the waits between tries itself.
    /// Cancel-safe: what was not returned is told the next time.
    fn next(&mut self) -> NextChange<'_>;
}

impl From<&DiscoveryService> for Service {
    fn from(config: &DiscoveryService) -> Self {
        Self {
            name: config.name.to_string(),
            virtual_addresses: config.virtual_addresses.clone(),
            http2: config.http2,
            endpoints: config.endpoints.iter().map(Into::into).collect(),
        }
    }
}

impl From<&DiscoveryEndpoint> for ServiceEndpoint {
    fn from(config: &DiscoveryEndpoint) -> Self {
        Self {
            address: config.address,
            weight: config.weight,
            priority: config.priority,
            zone: config.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
            healthy: config.healthy,
            identity: config.spiffe_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            labels: config.labels.clone(),
        }
    }
}
