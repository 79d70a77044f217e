//! Rate limits that a service counts for many proxies: Envoy's `RateLimitService`, with Envoy's names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, Name};

/// A service that counts requests for many proxies, asked by gRPC
/// (`envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit`). Listeners and routes with `globalRateLimits` ask it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitService {
    /// The cluster that answers. HTTP/2 is spoken to it, whatever its `protocol`; TLS, balancing and health are the cluster's.
    pub backend_ref: RateLimitBackend,
    /// Which of the service's limits hold.
    #[schemars(length(min = 1))]
    pub domain: String,
    /// How long an answer is waited for. Every request of such a route waits as long as the service takes.
    #[serde(default = "default_timeout")]
    pub timeout: Duration,
    /// What becomes of requests that the service does not answer for.
    #[serde(default)]
    pub failure_mode: FailureMode,
    /// Whether clients are told how much is left.
    #[serde(default)]
    pub x_ratelimit_headers: XRatelimitHeaders,
}

fn default_timeout() -> Duration {
    Duration::from_millis(20)
}

/// The cluster of a rate limit service.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitBackend {
    /// Its name.
    pub name: Name,
}

/// What becomes of requests whose service fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum FailureMode {
    /// They go on.
    #[default]
    Allow,
    /// They get 500, or UNAVAILABLE.
    Deny,
}

/// How clients are told of limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum XRatelimitHeaders {
    /// `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset` of the limit that is nearest
    /// (draft-polli-ratelimit-headers-03).
    #[default]
    DraftVersion03,
    /// Not at all.
    Off,
}

/// What the service is asked about a request: one descriptor, put together by `actions` in their order. When one of them
/// has nothing to say of a request, the descriptor is left out.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GlobalRateLimit {
    /// One entry each.
    #[schemars(length(min = 1, max = 16))]
    pub actions: Vec<RateLimitAction>,
}

/// What makes an entry of a descriptor.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitAction {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: RateLimitActionType,
    /// Of `type: GenericKey`: the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic_key: Option<GenericKey>,
    /// Of `type: RequestHeaders`: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<RequestHeaderAction>,
    /// Of `type: MaskedRemoteAddress`: how much of the address counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked_remote_address: Option<MaskedRemoteAddress>,
    /// Of `type: PeerIdentity`: what becomes of requests without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_identity: Option<PeerIdentityAction>,
}

/// What an action is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RateLimitActionType {
    /// (`generic_key` or the key given, a fixed text)
    GenericKey,
    /// (the key given, a header's value)
    RequestHeaders,
    /// (`remote_address`, the client's address)
    RemoteAddress,
    /// (`masked_remote_address`, the client's network as `192.0.2.0/24`)
    MaskedRemoteAddress,
    /// (`destination_cluster`, the cluster that the request goes to)
    DestinationCluster,
    /// (`peer_identity`, the peer's SPIFFE ID); needs mTLS on the listener.
    PeerIdentity,
    /// (`route`, the route's name)
    Route,
}

impl RateLimitActionType {
    /// As the config writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GenericKey => "GenericKey",
            Self::RequestHeaders => "RequestHeaders",
            Self::RemoteAddress => "RemoteAddress",
            Self::MaskedRemoteAddress => "MaskedRemoteAddress",
            Self::DestinationCluster => "DestinationCluster",
            Self::PeerIdentity => "PeerIdentity",
            Self::Route => "Route",
        }
    }
}

/// A fixed entry.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GenericKey {
    /// Its key.
    #[serde(default = "default_generic_key")]
    #[schemars(length(min = 1))]
    pub descriptor_key: String,
    /// Its value.
    #[schemars(length(min = 1))]
    pub descriptor_value: String,
}

fn default_generic_key() -> String {
    "generic_key".to_owned()
}

/// An entry of a header.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestHeaderAction {
    /// Its name. Of one that is repeated the first counts.
    #[schemars(extend("format" = "header-name"))]
    pub header_name: String,
    /// The entry's key.
    #[schemars(length(min = 1))]
    pub descriptor_key: String,
    /// Without the header only this entry is left out, not the whole descriptor.
    #[serde(default)]
    pub skip_if_absent: bool,
}

/// How much of a client's address is in an entry.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MaskedRemoteAddress {
    /// Leading bits of an IPv4 address.
    #[schemars(range(min = 0, max = 32))]
    pub v4_prefix_mask_len: u8,
    /// Leading bits of an IPv6 address.
    #[schemars(range(min = 0, max = 128))]
    pub v6_prefix_mask_len: u8,
}

impl Default for MaskedRemoteAddress {
    fn default() -> Self {
        Self { v4_prefix_mask_len: 32, v6_prefix_mask_len: 128 }
    }
}

/// An entry of the peer's identity.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PeerIdentityAction {
    /// Without a peer only this entry is left out, not the whole descriptor.
    pub skip_if_absent: bool,
}
