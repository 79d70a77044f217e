//! Section `discovery`: tells proxies of services' endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, HostPort, Name, SpiffeId, SpiffePattern};

/// Tells proxies of services' endpoints over Envoy's delta ADS (v3), to Outrigger and Envoy alike: what a controller runs, not
/// a sidecar. Whoever asks must show an X.509-SVID; ours is that of `identity`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Discovery {
    /// Where proxies ask, over mTLS.
    pub listen: SocketAddr,
    /// Who may ask, by SPIFFE ID or pattern; empty means every workload of our trust domain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_peers: Vec<SpiffePattern>,
    /// Services of the Kubernetes cluster; absent means those of `services` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<DiscoveryKubernetes>,
    /// Services that stand here. One that the cluster has, too, is as it stands here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<DiscoveryService>,
    /// The first change after a calm is told at once, those that follow within this time together.
    pub debounce: Duration,
    /// Bounds on what all proxies may use.
    pub limits: DiscoveryLimits,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 15011)),
            allowed_peers: Vec::new(),
            kubernetes: None,
            services: Vec::new(),
            debounce: Duration::from_millis(100),
            limits: DiscoveryLimits::default(),
        }
    }
}

/// Services of a Kubernetes cluster: each port of each Service, named `NAME.NAMESPACE.svc.DOMAIN:PORT`, with the endpoints of its
/// EndpointSlices. Those in pods with a sidecar have the identity of the pod's service account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DiscoveryKubernetes {
    /// What names of services end in: the cluster's domain.
    pub domain: Name,
    /// A kubeconfig. Absent means the pod's own service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig. Absent means its current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Time for one request to the API server.
    pub timeout: Duration,
}

impl Default for DiscoveryKubernetes {
    fn default() -> Self {
        Self {
            domain: Name::literal("cluster.local"),
            kubeconfig: None,
            context: None,
            timeout: Duration::from_secs(15),
        }
    }
}

/// A service: a name that proxies ask for, and where it is.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoveryService {
    /// What it is asked for by, such as `orders.shop.svc.cluster.local:80`.
    pub name: HostPort,
    /// `IP:PORT` that stand for it: proxies that redirect connections may ask for it by these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub virtual_addresses: Vec<SocketAddr>,
    /// Its endpoints want HTTP/2, in plain text with prior knowledge.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http2: bool,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<DiscoveryEndpoint>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoveryEndpoint {
    /// `IP:PORT`.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// Its part of the requests beside other endpoints'.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10_000))]
    pub weight: u32,
    /// 0 is used first; a higher one as far as those before it have too few healthy endpoints.
    #[serde(default)]
    #[schemars(range(min = 0, max = 127))]
    pub priority: u32,
    /// Where it runs, such as `eu-central-1a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// What a cluster's `loadBalancing.subset` selects by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether it can serve; one that cannot gets requests only when too few others are left.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// Who it is. When all endpoints of a service have an identity, proxies that ask on demand speak mTLS with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// Bounds on what proxies may use of the discovery server.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DiscoveryLimits {
    /// Proxies at once; more wait in the kernel's backlog.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: u32,
    /// Names that one proxy may have asked for at once, of each type. Beyond it its stream ends.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_subscriptions: u32,
    /// Bytes of a message from a proxy.
    pub max_request_bytes: ByteSize,
}

impl Default for DiscoveryLimits {
    fn default() -> Self {
        Self { max_connections: 20_000, max_subscriptions: 10_000, max_request_bytes: ByteSize::mib(1) }
    }
}
