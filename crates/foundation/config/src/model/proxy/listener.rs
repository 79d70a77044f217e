//! `proxy.listeners`: where traffic comes in, and what a client may use.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BackendRef, ByteSize, ConnectRoute, Duration, GlobalRateLimit, GrpcRoute, Name, RateLimit, Route, SpiffePattern,
    TcpRoute, TlsRoute,
};

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
    /// Which gRPC calls go where, in one table with `routes`; of two that fit equally well the gRPC one wins. For `http` and `auto`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc_routes: Vec<GrpcRoute>,
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
    /// How many requests pass in a time, over all routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// What `proxy.rateLimitService` is asked about each request of any route, in one question with what the route asks, after
    /// all `rateLimits`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub global_rate_limits: Vec<GlobalRateLimit>,
}

impl Listener {
    /// All backends that its routes of any kind name.
    pub fn backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        self.carrying_backend_refs().chain(self.connect_routes.iter().flat_map(|route| &route.backend_refs))
    }

    /// Clusters that get copies of requests.
    pub fn mirrors(&self) -> impl Iterator<Item = &Name> {
        let filters = self.routes.iter().flat_map(|route| &route.filters);
        filters.filter_map(|filter| Some(&filter.request_mirror.as_ref()?.backend_ref.name))
    }

    /// Whether it or a route of it has `globalRateLimits`.
    pub fn asks_rate_limit_service(&self) -> bool {
        !self.global_rate_limits.is_empty()
            || self.routes.iter().any(|route| !route.global_rate_limits.is_empty())
            || self.grpc_routes.iter().any(|route| !route.global_rate_limits.is_empty())
    }

    /// All backends but those of CONNECT, whose destination is in the request.
    pub fn carrying_backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        let http = self.routes.iter().map(|route| &route.backend_refs);
        let http = http.chain(self.grpc_routes.iter().map(|route| &route.backend_refs));
        let tcp = self.tcp_route.iter().map(|route| &route.backend_refs);
        http.chain(tcp).chain(self.tls_routes.iter().map(|route| &route.backend_refs)).flatten()
    }
}

pub(super) fn default_tcp_keepalive() -> Duration {
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
    /// `x-outrigger-reason` in answers of our own: the response flag that says why. It tells clients how the inside is made.
    pub reason: bool,
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
    /// On inbound listeners: while clients give up waiting for the application, and answers take several times as long as
    /// without a crowd, what goes beyond what the application works on at once gets 503 at once, what matters least first
    /// (`priority` of routes). While clients wait for their answers nobody is refused.
    pub shed_overload: bool,
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
            shed_overload: true,
            max_streams: 100,
            max_control_frames: 400,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(3600),
        }
    }
}
