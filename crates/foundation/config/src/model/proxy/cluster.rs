//! `proxy.clusters`: named sets of endpoints, and how they are reached.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::balancing::LoadBalancing;
use super::discovery::ClusterDiscovery;
use super::endpoint::Endpoints;
use super::listener::default_tcp_keepalive;
use super::protection::{CircuitBreakers, HealthCheck, OutlierDetection};
use super::resilience::{AdaptiveConcurrency, RetryConstraint};
use crate::{CertificatePair, Duration, HostPort, Name, SpiffePattern, SrvName, TlsVersion};

/// A named set of endpoints.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: Name,
    /// `HOST:PORT` each, or a mapping that says more; a DNS name stands for all its addresses, of both families, each an
    /// endpoint of its own. One that does not answer within 250 ms is passed by for another that does. Exactly one of this,
    /// `srv`, `discovery` and `originalDestination`.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub endpoints: Endpoints,
    /// A name whose SRV records tell the endpoints: hosts, ports, priorities and weights. A headless Service of Kubernetes has
    /// one for each named port. Asked for as it is, without search domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srv: Option<SrvName>,
    /// A service whose endpoints `proxy.discovery` knows and follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<ClusterDiscovery>,
    /// The endpoint is where the client wanted to go before it was redirected to the listener.
    #[serde(default)]
    pub original_destination: bool,
    /// `IP:PORT` that stand for this cluster, such as a Service's: redirected connections to them that no route takes go
    /// to its endpoints. Those to the address of an endpoint itself need no mention: they go to that very endpoint, by
    /// this cluster's rules (of several clusters that have the endpoint, by those of the first in the file).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "socket_addresses")]
    pub virtual_addresses: Vec<SocketAddr>,
    /// An endpoint that sends nothing for so long is probed (TCP keepalive); `0s` turns it off.
    #[serde(default = "default_tcp_keepalive")]
    pub tcp_keepalive: Duration,
    /// A connection on which sent bytes stay unacknowledged for so long is given up (`TCP_USER_TIMEOUT`); `0s` leaves it
    /// to the kernel, which tries for some 15 minutes.
    #[serde(default = "default_tcp_user_timeout")]
    pub tcp_user_timeout: Duration,
    /// TLS to the endpoints; absent means plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClusterTls>,
    /// Time to connect, TLS handshake included.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Duration,
    /// What is spoken with the endpoints.
    #[serde(default)]
    pub protocol: ClusterProtocol,
    /// A PROXY protocol header before everything else, which tells endpoints the client's address. Connections are not
    /// shared by clients then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Which endpoint gets a request.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// Endpoints that fail are taken out for a while; absent means that only those that cannot be connected to are passed
    /// over, for some seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Endpoints are checked before a request finds out. One that fails a check gets no requests, unless too few are left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub health_checks: Vec<HealthCheck>,
    /// What its endpoints may have at once.
    #[serde(default)]
    pub circuit_breakers: CircuitBreakers,
    /// Connections kept for the next request.
    #[serde(default)]
    pub pool: Pool,
    /// How many requests may be sent again, for routes with `retry`.
    #[serde(default)]
    pub retry_constraint: RetryConstraint,
    /// A limit on requests at once that finds itself by latency; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
}

fn is_empty(endpoints: &Endpoints) -> bool {
    endpoints.is_empty()
}

impl Cluster {
    /// A plain cluster with these endpoints and the default for everything else.
    pub fn new(name: Name, endpoints: Vec<HostPort>) -> Self {
        Self {
            name,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            srv: None,
            discovery: None,
            original_destination: false,
            virtual_addresses: Vec::new(),
            tcp_keepalive: default_tcp_keepalive(),
            tcp_user_timeout: default_tcp_user_timeout(),
            tls: None,
            connect_timeout: default_connect_timeout(),
            protocol: ClusterProtocol::default(),
            proxy_protocol: None,
            load_balancing: LoadBalancing::default(),
            outlier_detection: None,
            health_checks: Vec::new(),
            circuit_breakers: CircuitBreakers::default(),
            pool: Pool::default(),
            retry_constraint: RetryConstraint::default(),
            adaptive_concurrency: None,
        }
    }
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
}

/// What is spoken with a cluster's endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClusterProtocol {
    /// HTTP/2 for gRPC, which needs it, HTTP/1.1 for everything else, whatever the client speaks; between two Outriggers
    /// with many requests at once HTTP/2 too (`pool.multiplexAbove`).
    #[default]
    Auto,
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always, in plain text with prior knowledge: many requests share few connections. Upgrades (WebSocket) are
    /// extended CONNECT where the endpoint allows it, else HTTP/1.1 on a connection of their own.
    Http2,
}

fn default_tcp_user_timeout() -> Duration {
    Duration::from_secs(30)
}

fn socket_addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "format": "socket-address" } })
}

fn default_connect_timeout() -> Duration {
    Duration::from_secs(2)
}

/// TLS to a cluster's endpoints: mTLS with the workload's identity, or ordinary TLS. Exactly one of `spiffeIds` and
/// `serverName`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClusterTls {
    /// mTLS: identities an endpoint may have, by SPIFFE ID or pattern; one of them must be in its certificate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spiffe_ids: Vec<SpiffePattern>,
    /// Ordinary TLS: the DNS name that is asked for and must be in the endpoint's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Ordinary TLS: a PEM bundle of authorities; absent means the public ones. Read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub ca: Option<PathBuf>,
    /// Ordinary TLS: what we present to servers that ask for a certificate; absent means nothing. Read again when a file
    /// changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<CertificatePair>,
    /// The oldest version of TLS that is spoken.
    pub min_version: TlsVersion,
}

/// Connections kept for the next request, per worker.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pool {
    /// Idle connections made ahead of requests, per worker and endpoint: after the start, when endpoints come or their
    /// connections go, and when our certificate is renewed. With `protocol: http2` one shared connection, if not 0.
    #[schemars(range(min = 0, max = 100))]
    pub min_idle: u32,
    /// Idle connections kept per worker and endpoint. When more requests were under way at once in the last seconds, as
    /// many are kept as they needed. 0 keeps none.
    #[schemars(range(min = 0, max = 10_000))]
    pub max_idle: u32,
    /// An idle connection is closed after so long.
    pub idle_timeout: Duration,
    /// A connection this old is not used for another request, so that traffic follows endpoints that move behind one
    /// address; `0s` turns it off.
    pub max_age: Duration,
    /// A connection is closed after so many requests; 0 turns it off.
    pub max_requests: u64,
    /// Requests at once on one HTTP/2 connection, as far as the endpoint allows as many; beyond it another is opened.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_streams: u32,
    /// Between two Outriggers with mTLS and `protocol: auto`: while more requests than this are under way per worker and
    /// endpoint, those that find no kept connection share HTTP/2 connections instead of opening one each. That saves
    /// handshakes and descriptors, and costs CPU per request. 0 shares from the second connection on; the first finds
    /// out who the endpoint is.
    #[schemars(range(min = 0, max = 100_000))]
    pub multiplex_above: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            min_idle: 0,
            max_idle: 100,
            idle_timeout: Duration::from_secs(60),
            max_age: Duration::from_secs(0),
            max_requests: 0,
            max_streams: 100,
            multiplex_above: 32,
        }
    }
}
