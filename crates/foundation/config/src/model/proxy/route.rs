//! Routes: which requests and connections go where.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::filter::Filter;
use super::global_limit::GlobalRateLimit;
use super::resilience::{Hedge, Priority, RateLimit, Retry, RouteTimeouts};
use crate::{Duration, Name, SpiffePattern};

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
    /// What is done with its requests and answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Clusters that take the traffic, by weight. None where a filter answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// Whether failed requests are sent again; absent means that only what no endpoint has seen is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Whether another endpoint is asked, too, when one lets its answer be waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    /// Whether a client stays with the endpoint that answered it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
    /// How many requests pass in a time. All of these must allow a request, and the listener's too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// What `proxy.rateLimitService` is asked about each of its requests, after `rateLimits`. Beyond its limits 429, or
    /// RESOURCE_EXHAUSTED.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub global_rate_limits: Vec<GlobalRateLimit>,
    /// How much its requests matter when a cluster is overloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

impl Route {
    /// A route for every request, with no backend yet.
    pub fn new(name: Name) -> Self {
        Self {
            name,
            hostnames: Vec::new(),
            matches: Vec::new(),
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: RouteTimeouts::default(),
            retry: None,
            hedge: None,
            session_persistence: None,
            rate_limits: Vec::new(),
            global_rate_limits: Vec::new(),
            priority: None,
        }
    }
}

fn hostnames(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "format": "route-hostname" } })
}

/// What a request must look like: all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteMatch {
    /// The path to match; absent means every path.
    pub path: PathMatch,
    /// The method, in capitals; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "http-method"))]
    pub method: Option<String>,
    /// Fields the request must have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Parameters the query must have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<QueryParamMatch>,
    /// Who must have sent it, by SPIFFE ID or pattern; any of them. Needs mTLS on the listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<SpiffePattern>,
}

/// A match on the request's path.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathMatch {
    /// How `value` is compared; a prefix matches whole path segments.
    #[serde(rename = "type")]
    pub kind: PathMatchType,
    /// The path as it is after normalisation, or a regular expression for it.
    #[schemars(length(min = 1))]
    pub value: String,
}

impl Default for PathMatch {
    fn default() -> Self {
        Self { kind: PathMatchType::PathPrefix, value: "/".to_owned() }
    }
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathMatchType {
    /// The whole path, case-sensitive.
    Exact,
    /// Whole leading segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
    /// A regular expression that must match the whole path. Tried after exact paths and before prefixes, the longest
    /// expression first, one after another: a table with hundreds of them costs each request.
    RegularExpression,
}

/// A match on a field of the request.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// How `value` is compared.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// The field's name, in whatever case.
    #[schemars(extend("format" = "header-name"))]
    pub name: String,
    /// What it must be. A field that is repeated is compared as one value, joined by `,`.
    pub value: String,
}

/// A match on a parameter of the query.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryParamMatch {
    /// How `value` is compared.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// The parameter's name, case-sensitive, without escapes.
    #[schemars(length(min = 1))]
    pub name: String,
    /// What it must be, without escapes. Of a parameter that is repeated the first counts.
    pub value: String,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ValueMatchType {
    /// It is the same, byte by byte.
    #[default]
    Exact,
    /// A regular expression that must match the whole value.
    RegularExpression,
}

/// Which gRPC calls go where: requests whose content type begins with `application/grpc`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRoute {
    /// Unique among the listener's `routes` and `grpcRoutes`; a label of its metrics.
    pub name: Name,
    /// Hosts it applies to, exact or `*.suffix`; empty means all.
    #[serde(default)]
    #[schemars(schema_with = "hostnames")]
    pub hostnames: Vec<String>,
    /// Any of these must match; empty means every call.
    #[serde(default)]
    pub matches: Vec<GrpcRouteMatch>,
    /// What is done with its calls and answers: header modifiers and faults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Clusters that take the traffic, by weight.
    #[schemars(length(min = 1))]
    pub backend_refs: Vec<BackendRef>,
    /// Time limits.
    #[serde(default)]
    pub timeouts: RouteTimeouts,
    /// Whether failed calls are sent again; absent means that only what no endpoint has seen is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Whether a client stays with the endpoint that answered it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
    /// How many calls pass in a time. All of these must allow a call, and the listener's too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// What `proxy.rateLimitService` is asked about each of its calls, after `rateLimits`. Beyond its limits 429, or
    /// RESOURCE_EXHAUSTED.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub global_rate_limits: Vec<GlobalRateLimit>,
    /// How much its calls matter when a cluster is overloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

impl GrpcRoute {
    /// The same as an HTTP route, but for what it matches: all that becomes of its requests.
    pub fn as_route(&self) -> Route {
        Route {
            name: self.name.clone(),
            hostnames: self.hostnames.clone(),
            matches: Vec::new(),
            filters: self.filters.clone(),
            backend_refs: self.backend_refs.clone(),
            timeouts: self.timeouts.clone(),
            retry: self.retry.clone(),
            hedge: None,
            session_persistence: self.session_persistence.clone(),
            rate_limits: self.rate_limits.clone(),
            global_rate_limits: self.global_rate_limits.clone(),
            priority: self.priority.clone(),
        }
    }
}

/// What a call must look like: all that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcRouteMatch {
    /// What is called; absent means everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    /// Fields (gRPC's metadata) the call must have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Who must have sent it, by SPIFFE ID or pattern; any of them. Needs mTLS on the listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<SpiffePattern>,
}

/// A match on what is called. At least one of `service` and `method`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcMethodMatch {
    /// How both are compared.
    #[serde(rename = "type")]
    pub kind: ValueMatchType,
    /// The service with its package, such as `shop.v1.Cart`; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub service: Option<String>,
    /// The method, such as `AddItem`; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub method: Option<String>,
}

impl GrpcMethodMatch {
    /// With regular expressions, the one for the path of a call, which is `/SERVICE/METHOD`.
    pub fn pattern(&self) -> String {
        let one = |part: &Option<String>| part.clone().unwrap_or_else(|| "[^/]+".to_owned());
        format!("/(?:{})/(?:{})", one(&self.service), one(&self.method))
    }
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
    /// What is changed of the requests that go there and of their answers: header modifiers of HTTP and gRPC routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

impl BackendRef {
    /// A cluster that takes all of the traffic, as it is.
    pub fn new(name: Name) -> Self {
        Self { name, weight: default_weight(), filters: Vec::new() }
    }
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

/// A client stays with the endpoint that answered it first, as [GEP-1619] has it: the answer gives it a session, which it
/// brings along with later requests. What it carries is sealed with `proxy.sessionKeys`: it tells the client nothing and
/// cannot be made by it. When the endpoint is gone or taken out, another one takes the session over. Of weighted
/// backends the session stays with its own, unless that has a weight of 0 by now.
///
/// [GEP-1619]: https://gateway-api.sigs.k8s.io/geps/gep-1619/
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SessionPersistence {
    /// The name of the cookie or header field; absent means `outrigger-` and the route's name. It is the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "header-name"))]
    pub session_name: Option<String>,
    /// By what a client brings its session.
    #[serde(rename = "type")]
    pub kind: SessionPersistenceType,
    /// A session ends so long after it began; absent means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<Duration>,
    /// A session ends when its client was silent for so long, give or take a tenth; absent means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// With `type: Cookie`: what kind of cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<SessionCookie>,
}

impl SessionPersistence {
    /// The name of the cookie or header field on a route.
    pub fn name_for(&self, route: &str) -> String {
        self.session_name.clone().unwrap_or_else(|| format!("outrigger-{route}"))
    }
}

/// By what a client brings its session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SessionPersistenceType {
    /// A cookie, which browsers keep by themselves. It is for the paths that the route matches, `HttpOnly`, and `Secure`
    /// over TLS.
    #[default]
    Cookie,
    /// A header field of the answer, which the client must send along with further requests.
    Header,
}

/// What kind of cookie a session is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SessionCookie {
    /// How long browsers keep it.
    pub lifetime_type: CookieLifetime,
}

/// How long browsers keep a cookie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CookieLifetime {
    /// Until they are closed.
    #[default]
    Session,
    /// Until `absoluteTimeout`, which must be given.
    Permanent,
}
