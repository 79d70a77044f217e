//! `proxy.discovery`: who knows clusters' endpoints, and how they are asked.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cluster::ClusterTls;
use crate::{ByteSize, Duration, HostPort};

/// Who knows the endpoints of clusters that have `discovery`: servers of Envoy's delta ADS (v3), such as Outrigger's own
/// (section `discovery`). While none of them answers, what was told before holds on.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoverySource {
    /// `HOST:PORT` of the servers, all of which know the same; one is asked, another one when it fails.
    #[schemars(length(min = 1, max = 8))]
    pub servers: Vec<HostPort>,
    /// TLS to them: mTLS with the workload's identity (`spiffeIds`), or ordinary TLS (`serverName`). Absent means plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// Time to connect, TLS handshake included.
    #[serde(default = "default_timeout")]
    pub connect_timeout: Duration,
    /// The longest wait between two tries to connect. Waits grow up to it, and are spread by chance.
    #[serde(default = "default_backoff")]
    pub max_backoff: Duration,
    /// A folder that keeps what was told, so that a restart finds it before a server answers; below an `emptyDir` with
    /// `medium: Memory`, for example. It is made where it is missing. Absent means that it is kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub state_directory: Option<PathBuf>,
    /// Bytes of a message from a server, and of all that is kept. More is refused, and what was told before holds on.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
    /// Destinations of redirected connections that no cluster has are asked for when they are first seen; absent means that
    /// they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<OnDemand>,
}

/// How unknown destinations are asked for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OnDemand {
    /// How long a connection waits for the answer. After it, and while no server can be reached, the listener's
    /// `unknownDestinations` holds.
    pub wait: Duration,
    /// Services that are known at once; beyond it `unknownDestinations` holds for further ones.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_services: u32,
    /// Destinations that are remembered to be no service's; the oldest are forgotten.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_unknown: u32,
    /// How long a destination is remembered to be no service's.
    pub unknown_ttl: Duration,
}

impl Default for OnDemand {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(1),
            max_services: 256,
            max_unknown: 1024,
            unknown_ttl: Duration::from_secs(30),
        }
    }
}

fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_backoff() -> Duration {
    Duration::from_secs(10)
}

fn default_max_bytes() -> ByteSize {
    ByteSize::mib(8)
}

/// Endpoints that `proxy.discovery` knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterDiscovery {
    /// The service's name there, such as `orders.shop.svc.cluster.local:80`.
    pub service: HostPort,
}
