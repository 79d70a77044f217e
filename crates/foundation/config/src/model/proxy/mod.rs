//! Section `proxy`: listeners, routes and clusters. Route fields carry the names of the
//! Gateway API's HTTPRoute ([GEP-1426] and the v1 reference); the rest takes Envoy's terms.
//!
//! [GEP-1426]: https://gateway-api.sigs.k8s.io/reference/spec/

mod access_log;
mod balancing;
mod cluster;
mod discovery;
mod endpoint;
mod filter;
mod global_limit;
mod listener;
mod protection;
mod resilience;
mod route;

pub use access_log::*;
pub use balancing::*;
pub use cluster::*;
pub use discovery::*;
pub use endpoint::*;
pub use filter::*;
pub use global_limit::*;
pub use listener::*;
pub use protection::*;
pub use resilience::*;
pub use route::*;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Name, Secret};

/// The data plane.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proxy {
    /// Where traffic comes in.
    #[schemars(length(min = 1))]
    pub listeners: Vec<Listener>,
    /// Named sets of endpoints that routes send traffic to.
    #[serde(default)]
    pub clusters: Vec<Cluster>,
    /// Where this process runs, such as `eu-central-1a`: what `trafficDistribution` compares endpoints' zones with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Who knows the endpoints of clusters that have `discovery`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<DiscoverySource>,
    /// Who counts requests for many proxies, where listeners or routes have `globalRateLimits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_service: Option<RateLimitService>,
    /// One line per request, when present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Header fields whose values `outrigger tap` masks, as names in which `*` stands for any text. Always masked are
    /// `authorization`, `proxy-authorization`, `cookie`, `set-cookie`, `x-api-key`, `x-forwarded-client-cert` and names
    /// with `token`, `secret`, `password`, `api-key`, `apikey` or `session` in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask_headers: Vec<String>,
    /// Secrets that seal the sessions of `sessionPersistence`, 16 characters or more each, such as `${SESSION_KEY}`: the first
    /// seals, all unseal. All replicas must have the same. Without any a key is made that only this process has: its
    /// sessions end with it, and other replicas do not know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub session_keys: Vec<Secret>,
    /// Bounds on what all clients may use together.
    #[serde(default)]
    pub limits: ProxyLimits,
}

impl Proxy {
    /// Whether a listener may send something to a cluster: by a route, or because that is where it was to go anyway.
    pub fn may_send(&self, listener: &Listener, cluster: &Cluster) -> bool {
        names(listener, cluster)
            || (listener.redirected && !cluster.virtual_addresses.is_empty())
            || (listener.redirected && listener.direction == Direction::Outbound && self.is_elsewhere(cluster))
    }

    /// Whether a listener's routes ask a cluster how much may pass.
    pub fn may_ask(&self, listener: &Listener, cluster: &Cluster) -> bool {
        let named = self.rate_limit_service.as_ref().is_some_and(|service| service.backend_ref.name == cluster.name);
        named && listener.asks_rate_limit_service()
    }

    /// Whether an application may call the cluster's endpoints; those that only inbound listeners send to are itself.
    pub(crate) fn is_elsewhere(&self, cluster: &Cluster) -> bool {
        let named_by = |direction| self.listeners.iter().any(|one| one.direction == direction && names(one, cluster));
        !cluster.virtual_addresses.is_empty() || named_by(Direction::Outbound) || !named_by(Direction::Inbound)
    }
}

fn names(listener: &Listener, cluster: &Cluster) -> bool {
    listener.backend_refs().map(|backend| &backend.name).chain(listener.mirrors()).any(|name| *name == cluster.name)
}

/// Bounds on what all clients may use together.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyLimits {
    /// Memory for bytes on their way, over all listeners; each worker has its share. When nearly all of a share is in
    /// use, new requests on that worker get 503; beyond it, the clients that hold memory longest without going on are cut.
    pub max_buffer_bytes: ByteSize,
    /// Open connections over all listeners; more wait in the kernel's backlog. Each may take two file descriptors.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: u32,
    /// Bodies that are compressed or decompressed at once. Beyond it, or when buffers are short, answers go as they are,
    /// and requests that are to be decompressed get 503. Each holds memory, counted in `maxBufferBytes`: compressed with
    /// gzip a third of a MiB, with zstd 1.2 MiB, with br 4 MiB.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_coded_bodies: u32,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self { max_buffer_bytes: ByteSize::mib(64), max_connections: 20_000, max_coded_bodies: 32 }
    }
}
