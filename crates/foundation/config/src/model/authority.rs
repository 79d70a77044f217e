//! Section `authority`: a certificate authority for the workloads of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, TrustDomain, VaultAuth};

/// A certificate authority for workloads: X.509-SVIDs `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` for whoever
/// shows a token of that service account, over Istio's `CreateCertificate` API. Exactly one of `roots`, `issuer` and `vault`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authority {
    /// The trust domain that it signs for.
    pub trust_domain: TrustDomain,
    /// Where workloads ask for certificates.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The DNS names and IP addresses under which workloads reach it. Its own certificate, which it signs itself, is for them.
    #[schemars(length(min = 1, max = 64))]
    pub names: Vec<String>,
    /// Lifetime of a certificate whose workload asks for none.
    #[serde(default = "default_ttl")]
    pub ttl: Duration,
    /// The longest lifetime that a workload gets.
    #[serde(default = "default_ttl")]
    pub max_ttl: Duration,
    /// Roots of its own, made when there are none and changed ahead of their end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roots: Option<AuthorityRoots>,
    /// An authority that somebody else keeps, such as cert-manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<AuthorityIssuer>,
    /// An authority in Vault or OpenBao, below which this one signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<AuthorityVault>,
    /// The API server that tells whose a token is.
    #[serde(default)]
    pub kubernetes: AuthorityKubernetes,
    /// How often a pod may ask.
    #[serde(default)]
    pub rate_limit: AuthorityRateLimit,
    /// Writes the trust bundle into each namespace that opted in to injection, where pods mount it. The replica that leads
    /// does it, so this goes with a section `controller`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundles: Option<AuthorityTrustBundles>,
    /// The file that every decision is appended to, as a line of JSON; absent means standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub audit_log: Option<PathBuf>,
}

/// Roots that the authority makes and changes by itself. Exactly one place: `directory` or `secret`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityRoots {
    /// A folder that holds them, with the bundle beside them (`bundle.pem`); made when absent. Several authorities may share
    /// one on one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub directory: Option<PathBuf>,
    /// A Kubernetes Secret that holds them; made when absent. Several authorities may share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretName>,
    /// How long a root lives. The next one is made when a tenth of it is left, and the time for the change.
    #[serde(default = "default_lifetime")]
    pub lifetime: Duration,
    /// How long a new root is in all bundles before it signs; longer than `maxTtl`. Absent means two hours more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Duration>,
}

/// The name of a Kubernetes Secret.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: crate::Name,
    /// Its name.
    pub name: crate::Name,
}

/// An authority that somebody else keeps: PEM files, read again when they change. The layout is that of cert-manager's
/// secrets.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityIssuer {
    /// The certificate that signs, then those above it (`tls.crt`).
    #[schemars(extend("format" = "path"))]
    pub certificate: PathBuf,
    /// Its private key (`tls.key`).
    #[schemars(extend("format" = "path"))]
    pub key: PathBuf,
    /// The roots that workloads are to trust (`ca.crt`). A new root has to stand here, beside the old one, for longer than
    /// `maxTtl` before `certificate` is replaced by one below it.
    #[schemars(extend("format" = "path"))]
    pub trust_bundle: PathBuf,
}

/// An authority in a PKI secrets engine of Vault or OpenBao. It signs an intermediate whose key is made here and never leaves
/// memory; the intermediate signs workloads' certificates, so that Vault is asked twice in its life and not for each pod.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityVault {
    /// `http://` or `https://`, without a path.
    #[schemars(extend("format" = "http-origin"))]
    pub address: String,
    /// How we log in. The policy has to allow `update` on `MOUNT/root/sign-intermediate`, or with `issuer` on
    /// `MOUNT/issuer/ISSUER/sign-intermediate`.
    pub auth: VaultAuth,
    /// Sent as `X-Vault-Namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// PEM bundle for `https://`; absent means the public authorities built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub ca_file: Option<PathBuf>,
    /// Time for one request.
    #[serde(default = "default_vault_timeout")]
    pub timeout: Duration,
    /// Where the PKI secrets engine is mounted.
    #[serde(default = "default_pki_mount")]
    pub mount: String,
    /// The issuer in it that signs, by name or ID; absent means the engine's default. The roots of all its issuers are in
    /// the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The lifetime of an intermediate, at least twice `maxTtl`; Vault may give less. The next one is asked for after half of it.
    #[serde(default = "default_intermediate_lifetime")]
    pub lifetime: Duration,
}

fn default_vault_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_pki_mount() -> String {
    "pki".to_owned()
}

fn default_intermediate_lifetime() -> Duration {
    Duration::from_secs(30 * 86400)
}

/// The API server that tells whose a token is.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorityKubernetes {
    /// Its URL.
    pub server: String,
    /// The authorities its certificate must chain to, as PEM; read again when they change.
    #[schemars(extend("format" = "path"))]
    pub ca_file: PathBuf,
    /// The token we show it; read again for each request. It needs `create` on `tokenreviews`, `get` on `pods`, and for
    /// `roots.secret` `create`, `get` and `update` on that Secret.
    #[schemars(extend("format" = "path"))]
    pub token_file: PathBuf,
    /// The audience that workloads' tokens must be for.
    pub audience: String,
    /// Time for one request.
    pub timeout: Duration,
}

impl Default for AuthorityKubernetes {
    fn default() -> Self {
        Self {
            server: "https://kubernetes.default.svc".to_owned(),
            ca_file: "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt".into(),
            token_file: "/var/run/secrets/kubernetes.io/serviceaccount/token".into(),
            audience: "outrigger".to_owned(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// Where pods find whom to trust at first. Written anew when the roots change, or somebody else changes it; removed when its
/// namespace opts out and no pod with a sidecar is left there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorityTrustBundles {
    /// The ConfigMap, whose key `ca.crt` is the bundle as PEM.
    pub config_map: crate::Name,
}

impl Default for AuthorityTrustBundles {
    fn default() -> Self {
        Self { config_map: crate::Name::literal("outrigger-ca-root-cert") }
    }
}

/// How often one pod may ask for a certificate.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorityRateLimit {
    /// So many times.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In this time.
    pub per: Duration,
}

impl Default for AuthorityRateLimit {
    fn default() -> Self {
        Self { requests: 20, per: Duration::from_secs(60) }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 15012))
}

fn default_ttl() -> Duration {
    Duration::from_secs(86400)
}

fn default_lifetime() -> Duration {
    Duration::from_secs(365 * 86400)
}

impl Authority {
    /// How long a new root is in all bundles before it signs.
    pub fn propagation(&self) -> std::time::Duration {
        let given = self.roots.as_ref().and_then(|roots| roots.propagation);
        given.map_or(self.max_ttl.0 + std::time::Duration::from_secs(7200), |given| given.0)
    }
}
