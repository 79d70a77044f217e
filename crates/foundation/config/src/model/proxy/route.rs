//! Routes: which requests and connections go where.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::resilience::{Retry, RouteTimeouts};
use crate::{Duration, Name};

/// Which requests go where.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Unique within its listener; a label of its metrics.
    pub name: Name,
    /// Hosts it applies to, exact or `*.suffix`; empty means all.
    #[serde(default)]
    #[schemars(schema_with = "hostnames")]
    pub hostnames: Vec<String>,
    /// Any of these must match; empty means every path.
    #[serde(default)]
    pub matches: Vec<RouteMatch>,
    /// Clusters that take the traffic, by weight.
    #[schemars(length(min = 1))]
    pub backend_refs: Vec<BackendRef>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// Whether failed requests are sent again; absent means that only what no endpoint has seen is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

fn hostnames(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "format": "route-hostname" } })
}

/// What a request must look like.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMatch {
    /// The path to match.
    pub path: PathMatch,
}

/// A match on the request's path.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// How `value` is compared; a prefix matches whole path segments.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// Begins with `/`.
    #[schemars(extend("format" = "http-path"))]
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathMatchType {
    /// The whole path, case-sensitive.
    Exact,
    /// Whole leading segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
}

/// A cluster and its share of the traffic.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// The cluster's name.
    pub name: Name,
    /// Share relative to the other backends of the route; 0 means none.
    #[serde(default = "default_weight")]
    pub weight: u32,
}

fn default_weight() -> u32 {
    1
}

/// Where TCP connections go.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRoute {
    /// A label of its metrics.
    pub name: Name,
    /// Clusters that take the connections, by weight.
    #[schemars(length(min = 1))]
    pub backend_refs: Vec<BackendRef>,
}

/// Where TLS connections go, by the name the client asks for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRoute {
    /// Unique within its listener; a label of its metrics.
    pub name: Name,
    /// Names asked for (SNI), exact or `*.suffix`; empty means all, also clients that ask for none.
    #[serde(default)]
    #[schemars(schema_with = "hostnames")]
    pub hostnames: Vec<String>,
    /// Clusters that take the connections, by weight.
    #[schemars(length(min = 1))]
    pub backend_refs: Vec<BackendRef>,
}

/// Where CONNECT requests go, by the host and port they ask for.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectRoute {
    /// Unique within its listener; a label of its metrics.
    pub name: Name,
    /// Hosts asked for, exact or `*.suffix`, or IPv4 addresses; empty means all.
    #[serde(default)]
    #[schemars(schema_with = "hostnames")]
    pub hostnames: Vec<String>,
    /// Ports asked for; empty means all.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Whether the tunnel begins here.
    #[serde(default)]
    pub mode: ConnectMode,
    /// Clusters that take the tunnels, by weight. One with `originalDestination` connects to the address asked for: no
    /// names, and no loopback or link-local address unless `hostnames` says that very address.
    #[schemars(length(min = 1))]
    pub backend_refs: Vec<BackendRef>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: ConnectTimeouts,
}

/// Time limits of a route of CONNECT.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectTimeouts {
    /// Up to the consent; beyond it 504. `0s` turns it off.
    pub request: Duration,
}

impl Default for ConnectTimeouts {
    fn default() -> Self {
        Self { request: Duration::from_secs(15) }
    }
}

/// Who makes the connection that a CONNECT asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConnectMode {
    /// We: the client's bytes go to an endpoint of the cluster as they come.
    #[default]
    Terminate,
    /// An endpoint of the cluster, which is a proxy: it gets the CONNECT, over HTTP/1.1 or, with `protocol: http2`, HTTP/2.
    Forward,
}
