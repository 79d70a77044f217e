//! Section `identity`: the workload's X.509-SVID and its trust bundle.

use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{Duration, Name, TrustDomain};

/// Who this workload is. Exactly one source: `files` or `development`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// The trust domain this workload belongs to, and the only one whose peers it accepts.
    pub trust_domain: TrustDomain,
    /// Certificate, key and trust bundle from PEM files, read again when they change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<IdentityFiles>,
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
