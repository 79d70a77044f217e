//! What is injected, where a pod says nothing else.
//!
//! In: a profile file, flags, and a pod's annotations, the later ones counting more. Out: one
//! typed set of choices. Promise: unknown keys are refused; the defaults suit a small pod.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::known_good::KnownGood;
use crate::layers::Layer;
use crate::yaml::{self, Dialect};

/// What is injected. As a profile file it is YAML with these keys in camelCase; what is left out keeps its default.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// The image of Outrigger.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; absent leaves it to the cluster.
    pub image_pull_policy: Option<PullPolicy>,
    /// How connections come to Outrigger.
    pub interception: Interception,
    /// Whether the cluster knows native sidecars (Kubernetes 1.29, or 1.28 with the feature gate).
    pub native_sidecars: bool,
    /// User that Outrigger runs as. No container of the pod may run as it.
    pub run_as_user: u32,
    /// Group that Outrigger runs as.
    pub run_as_group: u32,
    /// What Outrigger asks for.
    pub resources: Resources,
    /// Outrigger's config, as in its file. Pods refine it by annotation.
    pub config: Option<Value>,
    /// A ConfigMap in the pod's namespace that holds Outrigger's config, instead of `config`.
    pub config_map: Option<ConfigMapKey>,
    /// What is redirected, beside the defaults of `outrigger init`.
    pub redirect: Redirect,
    /// Whether probes and HTTP hooks of the application go through Outrigger's health port.
    pub rewrite_probes: bool,
    /// Whether the application's metrics are served together with ours.
    pub merge_metrics: bool,
    /// Whether containers that come after Outrigger wait until it is ready.
    pub hold_application: bool,
    /// How long they wait, in seconds.
    pub start_timeout_seconds: u32,
    /// Folders of log files that the application writes and Outrigger reads.
    pub log_folders: Vec<String>,
    /// Folders that get secrets, beside those that the config names.
    pub secret_folders: Vec<String>,
    /// Audiences of service account tokens for Outrigger.
    pub tokens: Vec<String>,
    /// Who gives sidecars their identity and tells them of services; absent means that the config says it, or nobody.
    pub mesh: Option<Mesh>,
    /// What connections to the pod's ports must be; only with `mesh`.
    pub mtls: Mtls,
    /// How long such a token is valid, in seconds.
    pub token_seconds: u32,
    /// The level of Outrigger's own log.
    pub log_level: Option<String>,
    /// Where pods with annotations for vault-k8s get their secrets.
    pub vault: Vault,
    /// Which namespaces are injected.
    pub namespaces: Namespaces,
    /// Namespaces that are never injected, beside Kubernetes' own.
    pub excluded_namespaces: Vec<String>,
    /// What refines `config`: profiles of the cluster, then the pod's annotation.
    #[serde(skip)]
    pub layers: Vec<Layer>,
    /// Configs that need no second look.
    #[serde(skip)]
    pub known_good: KnownGood,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: format!("outrigger:{}", env!("CARGO_PKG_VERSION")),
            image_pull_policy: None,
            interception: Interception::Init,
            native_sidecars: true,
            // Not 65532: that is the user of distroless images' applications.
            run_as_user: 15000,
            run_as_group: 15000,
            resources: Resources::default(),
            config: None,
            config_map: None,
            redirect: Redirect::default(),
            rewrite_probes: true,
            merge_metrics: true,
            hold_application: true,
            start_timeout_seconds: 60,
            log_folders: Vec::new(),
            secret_folders: Vec::new(),
            tokens: Vec::new(),
            mesh: None,
            mtls: Mtls::Permissive,
            token_seconds: 3600,
            log_level: None,
            vault: Vault::default(),
            namespaces: Namespaces::All,
            excluded_namespaces: vec!["outrigger-system".to_owned()],
            layers: Vec::new(),
            known_good: KnownGood::default(),
        }
    }
}

/// When the kubelet fetches the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

/// How connections come to Outrigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interception {
    /// An init container with NET_ADMIN redirects them.
    Init,
    /// The sidecar redirects them itself, and gives every capability up before it reads a byte; no init container.
    #[serde(rename = "self")]
    Own,
    /// The application calls listeners of the config itself; nothing needs a privilege.
    None,
}

impl Interception {
    /// Whether connections come without the application's doing.
    pub(crate) fn redirects(self) -> bool {
        self != Self::None
    }
}

/// What a sidecar needs for mTLS with the other pods of its cluster: an installation's controllers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mesh {
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// `HOST:PORT` of the authority that gives certificates.
    pub authority: String,
    /// The audience of the token that is shown to it.
    #[serde(default = "Mesh::default_audience")]
    pub audience: String,
    /// A ConfigMap in the pod's namespace whose key `ca.crt` says whom to trust at first.
    #[serde(default = "Mesh::default_trust_bundle")]
    pub trust_bundle: String,
    /// Who tells of services; absent means nobody, and calls to others are plain text.
    #[serde(default)]
    pub discovery: Option<MeshDiscovery>,
}

/// Who tells of services.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshDiscovery {
    /// `HOST:PORT` of the server.
    pub server: String,
    /// Its SPIFFE ID.
    pub spiffe_id: String,
}

impl Mesh {
    fn default_audience() -> String {
        "outrigger".to_owned()
    }

    fn default_trust_bundle() -> String {
        outrigger_config::AuthorityTrustBundles::default().config_map.to_string()
    }
}

/// What connections to a pod's ports must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    /// mTLS from sidecars, plain text from all others.
    Permissive,
    /// mTLS from workloads of the trust domain, and nothing else.
    Strict,
    /// Plain text.
    Disabled,
}

impl Mtls {
    /// As it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
            Self::Disabled => "disabled",
        }
    }
}

/// Which namespaces are injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespaces {
    /// All that do not opt out.
    All,
    /// Those that opt in.
    Enabled,
}

/// A key of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMapKey {
    /// The ConfigMap.
    pub name: String,
    /// The key.
    #[serde(default = "ConfigMapKey::default_key")]
    pub key: String,
}

impl ConfigMapKey {
    pub(crate) fn default_key() -> String {
        "outrigger.yaml".to_owned()
    }
}

/// Requests and limits, as Kubernetes writes quantities.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// CPU that is reserved.
    pub cpu_request: Option<String>,
    /// CPU at most.
    pub cpu_limit: Option<String>,
    /// Memory that is reserved.
    pub memory_request: Option<String>,
    /// Memory at most.
    pub memory_limit: Option<String>,
}

impl Default for Resources {
    fn default() -> Self {
        let some = |text: &str| Some(text.to_owned());
        Self { cpu_request: some("10m"), cpu_limit: None, memory_request: some("32Mi"), memory_limit: some("128Mi") }
    }
}

/// What is redirected; each is a flag of `outrigger init`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redirect {
    /// Only connections to these ports.
    pub include_outbound_ports: Vec<String>,
    /// Not connections to these ports.
    pub exclude_outbound_ports: Vec<String>,
    /// Only connections to these networks.
    pub include_outbound_cidrs: Vec<String>,
    /// Not connections to these networks.
    pub exclude_outbound_cidrs: Vec<String>,
    /// Not connections of these users.
    pub exclude_outbound_uids: Vec<String>,
    /// Only connections to these ports of the application.
    pub include_inbound_ports: Vec<String>,
    /// Not connections to these ports of the application.
    pub exclude_inbound_ports: Vec<String>,
    /// DNS over TCP, too.
    pub redirect_dns: bool,
}

impl Redirect {
    pub(crate) fn flags(&self) -> Vec<String> {
        let lists = [
            ("--include-outbound-ports", &self.include_outbound_ports),
            ("--exclude-outbound-ports", &self.exclude_outbound_ports),
            ("--include-outbound-cidrs", &self.include_outbound_cidrs),
            ("--exclude-outbound-cidrs", &self.exclude_outbound_cidrs),
            ("--exclude-outbound-uids", &self.exclude_outbound_uids),
            ("--include-inbound-ports", &self.include_inbound_ports),
            ("--exclude-inbound-ports", &self.exclude_inbound_ports),
        ];
        let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let mut flags: Vec<String> = given.map(|(flag, list)| format!("{flag}={}", list.join(","))).collect();
        flags.extend(self.redirect_dns.then(|| "--redirect-dns".to_owned()));
        flags
    }
}

/// Where pods with `vault.hashicorp.com/*` annotations get their secrets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Vault {
    /// Address of Vault or OpenBao, where `vault.hashicorp.com/service` names none.
    pub address: Option<String>,
    /// Where its Kubernetes auth method is mounted.
    pub auth_path: String,
    /// Role, where `vault.hashicorp.com/role` names none.
    pub role: Option<String>,
    /// Namespace of Vault Enterprise.
    pub namespace: Option<String>,
    /// Audience of the token that is shown to Vault; absent means the API server's.
    pub audience: Option<String>,
}

impl Default for Vault {
    fn default() -> Self {
        Self { address: None, auth_path: "auth/kubernetes".to_owned(), role: None, namespace: None, audience: None }
    }
}

impl Settings {
    /// Reads a profile file.
    ///
    /// # Errors
    /// What is wrong with it, and where as far as that is known.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        let value = yaml::read(text, Dialect::Config).map_err(|mistake| mistake.to_string())?;
        if value.is_null() {
            return Ok(Self::default());
        }
        let settings: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        settings.check()?;
        Ok(settings)
    }

    /// What no type can say.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.image.trim().is_empty() {
            return Err("`image` is empty".to_owned());
        }
        if self.run_as_user == 0 || self.run_as_group == 0 {
            return Err("`runAsUser` and `runAsGroup` must not be 0: Outrigger needs no root".to_owned());
        }
        if self.config.is_some() && self.config_map.is_some() {
            return Err("`config` and `configMap` exclude one another; keep one of them".to_owned());
        }
        if let Some(mesh) = &self.mesh {
            let texts = [("trustDomain", &mesh.trust_domain), ("authority", &mesh.authority)];
            let more = [("audience", &mesh.audience), ("trustBundle", &mesh.trust_bundle)];
            if let Some((key, _)) = texts.into_iter().chain(more).find(|(_, text)| text.is_empty()) {
                return Err(format!("`mesh.{key}` is empty"));
            }
        }
        if self.token_seconds < 600 {
            return Err("`tokenSeconds` is below 600, the least that Kubernetes takes".to_owned());
        }
        Ok(())
    }
}
