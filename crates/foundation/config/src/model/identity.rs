//! Section `identity`: the workload's X.509-SVID and its trust bundle.

use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{Duration, HostPort, Name, SpiffeId, TrustDomain, WorkloadEndpoint};

/// Who this workload is. Exactly one source: `files`, `authority`, `ownAuthority`, `workloadApi` or `development`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// The trust domain this workload belongs to, and the only one whose peers it accepts.
    pub trust_domain: TrustDomain,
    /// Certificate, key and trust bundle from PEM files, read again when they change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<IdentityFiles>,
    /// A certificate from an authority that is asked over the network, with a token of the pod's service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<IdentityAuthority>,
    /// A certificate from the authority that this very process is (section `authority`): how a controller has an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_authority: Option<OwnAuthority>,
    /// A certificate, its key and the trust bundle from an agent on this node that serves the SPIFFE Workload API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_api: Option<IdentityWorkloadApi>,
    /// A tiny built-in authority, for development and demos only: whoever reads its folder can be anyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub development: Option<DevelopmentAuthority>,
}

/// Certificate, key and trust bundle from PEM files.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityFiles {
    /// The X.509-SVID, leaf first, then intermediates, as PEM.
    #[schemars(extend("format" = "path"))]
    pub certificate: PathBuf,
    /// The leaf's private key, as PEM (PKCS#8, PKCS#1 or SEC1).
    #[schemars(extend("format" = "path"))]
    pub key: PathBuf,
    /// The authorities peers must chain to, as PEM.
    #[schemars(extend("format" = "path"))]
    pub trust_bundle: PathBuf,
    /// Certificate revocation lists (CRLs), as PEM or DER: a peer on one of them, or under an authority on one of them, is
    /// refused. Each must be issued by an authority in `trustBundle` or above our own certificate. Up to 4 MiB a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "paths")]
    pub crl: Vec<PathBuf>,
    /// Whether a peer is refused when an authority above it has no list in `crl`, or only one whose time is over. Otherwise
    /// such a peer passes, and a list that is too old stays in force.
    #[serde(default)]
    pub crl_required: bool,
}

/// A certificate from an authority that serves Istio's `CreateCertificate` API: Outrigger's own (section `authority`), istiod,
/// or istio-csr. The key is made in memory; the certificate is renewed from half its life on; while the authority is away
/// the last one stays.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityAuthority {
    /// Where it is asked, over TLS.
    pub address: HostPort,
    /// The authorities its own certificate must chain to, as PEM; read again when they change. Those of the trust bundle that
    /// it gave us count, too, so that its root can change.
    #[schemars(extend("format" = "path"))]
    pub ca_file: PathBuf,
    /// The token that proves who we are; read again for each request.
    #[serde(default = "default_token_file")]
    #[schemars(extend("format" = "path"))]
    pub token_file: PathBuf,
    /// The lifetime we ask for. The authority may give less.
    #[serde(default = "default_authority_ttl")]
    pub ttl: Duration,
    /// Time for one request.
    #[serde(default = "default_authority_timeout")]
    pub timeout: Duration,
    /// A folder in memory (tmpfs, such as an `emptyDir` with `medium: Memory`) that keeps certificate and key, so that a
    /// restart while the authority is away finds them. Absent means that they are kept nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub state_directory: Option<PathBuf>,
}

/// A certificate from the authority of the section `authority`, whose trust domain it is of. It is renewed from half its life on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OwnAuthority {
    /// The namespace in this process's SPIFFE ID.
    pub namespace: Name,
    /// The service account in this process's SPIFFE ID.
    pub service_account: Name,
}

fn default_token_file() -> PathBuf {
    "/var/run/secrets/outrigger/tokens/outrigger".into()
}

fn default_authority_ttl() -> Duration {
    Duration::from_secs(86400)
}

fn default_authority_timeout() -> Duration {
    Duration::from_secs(10)
}

/// A certificate, its key and the trust bundle from an agent on this node that serves the SPIFFE Workload API, such as SPIRE's.
/// The agent finds out by itself who asks, and tells of each change; while it is away the last certificate stays.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct IdentityWorkloadApi {
    /// Where it is served. Absent means what the environment variable `SPIFFE_ENDPOINT_SOCKET` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_socket: Option<WorkloadEndpoint>,
    /// Which identity to take when the agent gives several. Absent means the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
    /// The same by the hint that its registration has, such as `internal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub hint: Option<String>,
    /// Time to connect, and for the first answer. Later ones come when something changes.
    pub timeout: Duration,
}

impl Default for IdentityWorkloadApi {
    fn default() -> Self {
        Self { endpoint_socket: None, spiffe_id: None, hint: None, timeout: Duration::from_secs(10) }
    }
}

fn paths(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "format": "path" } })
}

/// A tiny built-in authority, for development and demos only.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DevelopmentAuthority {
    /// Folder that holds the authority; made when absent, shared by all processes that are to trust one another.
    #[schemars(extend("format" = "path"))]
    pub directory: PathBuf,
    /// The namespace in this workload's SPIFFE ID.
    pub namespace: Name,
    /// The service account in this workload's SPIFFE ID.
    pub service_account: Name,
    /// Lifetime of the certificates it issues; a new one is taken after half of it.
    #[serde(default = "default_svid_ttl")]
    pub ttl: Duration,
}

fn default_svid_ttl() -> Duration {
    Duration::from_secs(3600)
}
