//! Section `proxy`: listeners, routes and clusters. Route fields carry the names of the
//! Gateway API's HTTPRoute ([GEP-1426] and the v1 reference); the rest takes Envoy's terms.
//!
//! [GEP-1426]: https://gateway-api.sigs.k8s.io/reference/spec/

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, HostPort, Name, SpiffePattern};

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
    /// One line per request, when present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Bounds on what all clients may use together.
    #[serde(default)]
    pub limits: ProxyLimits,
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
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self { max_buffer_bytes: ByteSize::mib(64), max_connections: 20_000 }
    }
}

/// A place where traffic comes in.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Unique among listeners.
    pub name: Name,
    /// As the application sees it: `inbound` is traffic to it, `outbound` is traffic from it. Outbound stays open until the application has exited.
    pub direction: Direction,
    /// `IP:PORT` to listen on.
    #[schemars(extend("format" = "socket-address"))]
    pub address: SocketAddr,
    /// What is spoken on it.
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// TLS on this listener; absent means plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Which requests go where; the most specific match wins, in the Gateway API's order of precedence. For `http` and `auto`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Where connections go that are carried as they come. For `tcp` and `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_route: Option<TcpRoute>,
    /// Where TLS connections go that are carried undecrypted, by the name the client asks for (SNI). For `tls`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls_routes: Vec<TlsRoute>,
    /// Where CONNECT requests go, by the host and port they ask for; the most specific match wins. For `http` and `auto`.
    /// Without any, CONNECT gets 501: a proxy that connects to whatever it is asked for serves whoever can reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connect_routes: Vec<ConnectRoute>,
    /// With `auto`: a client that is silent for so long gets a connection to the cluster at once, for in some
    /// protocols (MySQL, SMTP) the server speaks first. Remembered for a while, so that others need not wait.
    #[serde(default = "default_detect_timeout")]
    pub detect_timeout: Duration,
    /// Whether each connection begins with a PROXY protocol header (v1 or v2) that tells the client's address.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// Whether connections are redirected here (`outrigger init`), so that each has an original destination: a cluster
    /// of that address's `virtualAddresses` takes those that no route does, and clusters with `originalDestination` know it.
    /// Connections that were not redirected are refused then. Wants `protocol: auto`, for anything may come.
    #[serde(default)]
    pub redirected: bool,
    /// With `redirected`: what becomes of connections and requests to addresses that no route and no cluster's
    /// `virtualAddresses` takes.
    #[serde(default)]
    pub unknown_destinations: UnknownDestinations,
    /// How request paths are made the same for all readers before routes look at them; what is forwarded is the result.
    #[serde(default)]
    pub path: PathNormalization,
    /// Header fields that a proxy may add.
    #[serde(default)]
    pub forwarded: ForwardedHeaders,
    /// A client that sends nothing for so long is probed (TCP keepalive); `0s` turns it off.
    #[serde(default = "default_tcp_keepalive")]
    pub tcp_keepalive: Duration,
    /// Bounds on what one client may use.
    #[serde(default)]
    pub limits: ListenerLimits,
}

impl Listener {
    /// All backends that its routes of any kind name.
    pub fn backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        self.carrying_backend_refs().chain(self.connect_routes.iter().flat_map(|route| &route.backend_refs))
    }

    /// All backends but those of CONNECT, whose destination is in the request.
    pub fn carrying_backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        let http = self.routes.iter().map(|route| &route.backend_refs);
        let tcp = self.tcp_route.iter().map(|route| &route.backend_refs);
        http.chain(tcp).chain(self.tls_routes.iter().map(|route| &route.backend_refs)).flatten()
    }
}

fn default_tcp_keepalive() -> Duration {
    Duration::from_secs(60)
}

/// What becomes of connections to addresses that nobody told us of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnknownDestinations {
    /// They go where they wanted to go, unchanged, as route and cluster `passthrough`. On an inbound listener that is
    /// the application.
    #[default]
    Allow,
    /// Requests get 502, other connections are reset.
    Deny,
}

/// How request paths are made the same for all readers. Escapes of unreserved characters are always undone, those that
/// stay have capital digits; backslashes, NUL and broken escapes are always refused ([RFC 3986], 6.2.2).
///
/// [RFC 3986]: https://www.rfc-editor.org/rfc/rfc3986
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathNormalization {
    /// `.` and `..` as segments. Forms that only some readers take for them, such as `..;x`, are refused unless `keep`.
    pub dot_segments: DotSegments,
    /// Whether `//` becomes `/`.
    pub merge_slashes: bool,
    /// `%2F`.
    pub escaped_slashes: EscapedSlashes,
}

/// What happens to `.` and `..` as segments of a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DotSegments {
    /// They are resolved; what would lead above the root gets 400.
    #[default]
    Resolve,
    /// They get 400.
    Refuse,
    /// They stay; routes see them as they are.
    Keep,
}

/// What happens to escaped slashes in a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EscapedSlashes {
    /// They stay escaped and separate no segments.
    #[default]
    Keep,
    /// They become slashes before anything else is looked at.
    Unescape,
    /// They get 400.
    Refuse,
}

/// Header fields that a proxy may add. By default none: a sidecar is part of its application, not a hop of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ForwardedHeaders {
    /// `X-Forwarded-For`, and with it `X-Forwarded-Proto`.
    pub x_forwarded_for: ForwardedFor,
    /// `x-forwarded-client-cert`, by which an application learns who called.
    pub client_cert: ForwardedClientCert,
    /// The name to add to `Via` of requests and responses; absent means that `Via` passes as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Name>,
}

/// What happens to `X-Forwarded-For`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedFor {
    /// It passes as it is.
    #[default]
    Keep,
    /// The client's address is added to it, and `X-Forwarded-Proto` set when there is none: for clients that may be proxies.
    Append,
    /// It is replaced by the client's address, and `X-Forwarded-Proto` by how it came: for an edge, where clients may lie.
    Set,
    /// Both are removed.
    Remove,
}

/// What happens to `x-forwarded-client-cert`, which holds `By=<our SPIFFE ID>;Hash=<the client certificate's
/// SHA-256>;URI=<the client's SPIFFE ID>`, as Envoy writes it. What a client without a certificate says in it is removed
/// in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedClientCert {
    /// It tells of the client alone, whatever the client said in it (Envoy's `SANITIZE_SET`).
    #[default]
    Set,
    /// The client is added to those it names itself: for applications behind several proxies (`APPEND_FORWARD`).
    Append,
    /// What a client with a certificate says in it passes, and nothing is added (`FORWARD_ONLY`).
    Keep,
    /// It is removed (`SANITIZE`).
    Remove,
}

fn default_detect_timeout() -> Duration {
    Duration::from_millis(100)
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// HTTP/1 or HTTP/2, told by ALPN or by the first bytes.
    #[default]
    Http,
    /// HTTP when the first bytes are, else TCP.
    Auto,
    /// Bytes, carried as they come.
    Tcp,
    /// TLS, carried undecrypted and routed by SNI.
    Tls,
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
    /// Time limits; `request` is up to the consent.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
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

/// As the application sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Traffic to the application.
    Inbound,
    /// Traffic from the application.
    Outbound,
}

/// TLS on a listener.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenerTls {
    /// What a client must present.
    pub mode: ListenerTlsMode,
    /// Peers that may connect, by SPIFFE ID or pattern; empty means every peer of the trust domain.
    pub allowed_peers: Vec<SpiffePattern>,
    /// With `simple`: what the listener shows, chosen by the name the client asks for (SNI) among the names in the
    /// certificates; the first one to all others. Read again when a file changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificatePair>,
    /// The oldest version of TLS that is spoken.
    pub min_version: TlsVersion,
}

/// A version of TLS. Older ones are never spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2, with ECDHE and AEAD ciphers only.
    #[default]
    #[serde(rename = "TLSv1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "TLSv1.3")]
    Tls13,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificatePair {
    /// The certificate and what it chains to, as PEM, the certificate itself first.
    #[schemars(extend("format" = "path"))]
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    #[schemars(extend("format" = "path"))]
    pub key: PathBuf,
}

/// What a client must present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListenerTlsMode {
    /// mTLS: a certificate of the trust domain, with a SPIFFE ID.
    #[default]
    Strict,
    /// mTLS from those who speak TLS, plain text from all others: for the time in which clients move to mTLS.
    Permissive,
    /// Ordinary TLS with `certificates`: clients present nothing, so nobody knows who they are.
    Simple,
}

/// Bounds on what one client may use.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Open connections on this listener; more wait in the kernel's backlog.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: u32,
    /// Bytes of request line and headers; beyond it 431.
    pub max_header_bytes: ByteSize,
    /// Bytes of a request's target, which is its path and query; beyond it 414.
    pub max_uri_bytes: ByteSize,
    /// Header fields of a request; beyond it 431.
    #[schemars(range(min = 1, max = 1_000))]
    pub max_headers: u32,
    /// Bytes of a request's body; beyond it 413. `0B` means no limit: bodies are streamed and never held.
    pub max_body_bytes: ByteSize,
    /// Requests under way at once on this listener; beyond it 503 at once, so that those under way are answered in time.
    /// Set it to what the application can work on within the time that clients wait. 0 means no limit of its own.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_requests: u32,
    /// Requests under way at once on one HTTP/2 connection; more wait at the client.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_streams: u32,
    /// HTTP/2 frames a second that are neither requests nor bodies (PING, SETTINGS, PRIORITY, resets, updates of windows
    /// without need), for which a client's connection may ask; ten times as many in a burst. Beyond it the client is cut
    /// off and named in a warning. 0 means no limit.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_control_frames: u32,
    /// Time for a client to send all headers, and to finish a TLS handshake; beyond it 408 or a closed connection.
    pub header_timeout: Duration,
    /// Time in which a client must send more of a request's body before it is answered, or take more of the answer;
    /// beyond it 408 or a cut connection. What trickles must make up for the time it takes, at 240 bytes a second.
    pub body_timeout: Duration,
    /// Time a connection may rest between requests; also a tunnel in which nothing moves, and a request that goes on
    /// while it is answered.
    pub idle_timeout: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_header_bytes: ByteSize::kib(60),
            max_uri_bytes: ByteSize::kib(16),
            max_headers: 100,
            max_body_bytes: ByteSize::kib(0),
            max_requests: 0,
            max_streams: 100,
            max_control_frames: 400,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(3600),
        }
    }
}

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

/// Time limits of a route.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteTimeouts {
    /// From the request's first byte to the response's headers; beyond it 504. `0s` turns it off.
    pub request: Duration,
}

impl Default for RouteTimeouts {
    fn default() -> Self {
        Self { request: Duration::from_secs(15) }
    }
}

/// A named set of endpoints.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// Unique among clusters.
    pub name: Name,
    /// `HOST:PORT` each; a DNS name stands for all its addresses, of both families, each an endpoint of its own. One that
    /// does not answer within 250 ms is passed by for another that does. Exactly one of this and `originalDestination`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<HostPort>,
    /// The endpoint is where the client wanted to go before it was redirected to the listener.
    #[serde(default)]
    pub original_destination: bool,
    /// `IP:PORT` that stand for this cluster, such as a Service's: redirected connections to them that no route takes go
    /// to its endpoints.
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
    /// Connections kept for the next request.
    #[serde(default)]
    pub pool: Pool,
}

impl Cluster {
    /// A plain cluster with these endpoints and the default for everything else.
    pub fn new(name: Name, endpoints: Vec<HostPort>) -> Self {
        Self {
            name,
            endpoints,
            original_destination: false,
            virtual_addresses: Vec::new(),
            tcp_keepalive: default_tcp_keepalive(),
            tcp_user_timeout: default_tcp_user_timeout(),
            tls: None,
            connect_timeout: default_connect_timeout(),
            protocol: ClusterProtocol::default(),
            proxy_protocol: None,
            pool: Pool::default(),
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
    /// Idle connections kept per worker and endpoint.
    #[schemars(range(min = 0, max = 10_000))]
    pub max_idle: u32,
    /// An idle connection is closed after so long.
    pub idle_timeout: Duration,
    /// Connections per worker and cluster, idle or busy; beyond it requests get 503.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_connections: u32,
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
            max_connections: 1024,
            max_age: Duration::from_secs(0),
            max_requests: 0,
            max_streams: 100,
            multiplex_above: 32,
        }
    }
}

/// One JSON line per request.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// A file to append to; absent means standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub path: Option<PathBuf>,
    /// Memory for lines not yet written; beyond it lines are shed and counted, for traffic comes first.
    #[serde(default = "default_access_log_buffer")]
    pub buffer: ByteSize,
}

fn default_access_log_buffer() -> ByteSize {
    ByteSize::kib(256)
}
