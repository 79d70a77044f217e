//! What can be chosen about an installation.
//!
//! In: a values file, which `outrigger install -f` and `helm install -f` read alike, then flags. Out: one typed set of
//! choices. Promise: unknown keys are refused; the defaults suit a cluster with more than one node.

use std::collections::BTreeMap;

use outrigger_config::{LogLevel, TrustDomain};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use outrigger_kubernetes::names;

/// What can be chosen; all of it has a default.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// The namespace that the controller runs in.
    #[schemars(regex(pattern = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"))]
    pub namespace: String,
    /// Whether that namespace is among the objects, with the Pod Security level `restricted`. Helm makes none by itself:
    /// there the default is `false`.
    pub create_namespace: bool,
    /// The image of controller and sidecars.
    #[schemars(length(min = 1))]
    pub image: String,
    /// When nodes fetch it: `Always`, `IfNotPresent` or `Never`; absent leaves it to the cluster.
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets of the controller's namespace with which its image is fetched.
    pub image_pull_secrets: Vec<String>,
    /// How many controllers run. Any of them answers; one of them, by a lease, does what is done once.
    #[schemars(range(min = 1, max = 9))]
    pub replicas: u32,
    /// The trust domain of all identities: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub trust_domain: TrustDomain,
    /// How connections come to the sidecars: `init` (an init container redirects them), `self` (the sidecar does, and gives
    /// every privilege up), `none` (applications call it by address; passes Pod Security `restricted`).
    pub interception: Interception,
    /// What connections to the ports of pods with a sidecar must be: `permissive` (mTLS from other sidecars, plain text from all
    /// others), `strict` (mTLS alone) or `disabled`. A pod says otherwise by `outrigger.dev/mtls`.
    pub mtls: Mtls,
    /// More about the sidecars: the keys of a profile, as `outrigger inject --profile` takes them.
    #[schemars(extend("type" = ["object", "null"]))]
    pub profile: Option<Value>,
    /// What becomes of new pods of namespaces that opted in while no controller answers: `Fail` (they wait) or `Ignore`
    /// (they start without a sidecar). Other namespaces are never held up.
    pub failure_policy: FailurePolicy,
    /// What becomes of pods that run without the sidecar although their namespace asks for it: `report` (an Event and a
    /// metric), `evict` (they are made anew as their disruption budgets allow, too) or `"off"` (in quotes, for Helm).
    pub repair: Repair,
    /// How long the API server waits for an answer about a pod, in seconds.
    #[schemars(range(min = 1, max = 30))]
    pub webhook_timeout_seconds: u8,
    /// Who makes the webhook's certificate: `own` (the controller, which renews it and tells the API server) or
    /// `certManager`.
    pub webhook_certificate: WebhookCertificate,
    /// cert-manager's issuer of that certificate; absent makes one that signs itself. Only with `certManager`.
    pub cert_manager_issuer: Option<IssuerRef>,
    /// A secret in the controller's namespace with an authority of yours that signs workloads' certificates (`tls.crt`,
    /// `tls.key`, `ca.crt`, as cert-manager makes it); absent means roots of Outrigger's own.
    pub authority_secret: Option<String>,
    /// What each controller asks for.
    pub resources: Resources,
    /// Labels of the nodes that controllers run on.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that controllers tolerate, as in a pod.
    #[schemars(extend("items" = { "type": "object" }))]
    pub tolerations: Vec<Value>,
    /// The controllers' priority class, such as `system-cluster-critical`.
    pub priority_class_name: Option<String>,
    /// The level of the controllers' own log: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: names::NAMESPACE.to_owned(),
            create_namespace: true,
            image: format!("outrigger:{}", env!("CARGO_PKG_VERSION")),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            replicas: 2,
            trust_domain: "cluster.local".parse().expect("it is one"),
            interception: Interception::Init,
            mtls: Mtls::Permissive,
            profile: None,
            failure_policy: FailurePolicy::Fail,
            repair: Repair::Report,
            webhook_timeout_seconds: 5,
            webhook_certificate: WebhookCertificate::Own,
            cert_manager_issuer: None,
            authority_secret: None,
            resources: Resources::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class_name: None,
            log_level: LogLevel::Info,
        }
    }
}

/// When the kubelet fetches the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never; the node must have it.
    Never,
}

/// How connections come to the sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interception {
    /// An init container with NET_ADMIN redirects them.
    Init,
    /// The sidecar redirects them itself, and gives every capability up before it reads a byte.
    #[serde(rename = "self")]
    Own,
    /// The application calls the sidecar by address.
    None,
}

/// What connections to pods must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    /// mTLS from other sidecars, plain text from all others.
    Permissive,
    /// mTLS from workloads of the trust domain, and nothing else.
    Strict,
    /// Plain text.
    Disabled,
}

/// What becomes of pods while no controller answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum FailurePolicy {
    /// They are not made; who makes them tries again.
    Fail,
    /// They start without a sidecar.
    Ignore,
}

/// What becomes of pods that missed their sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Repair {
    /// Nobody looks.
    Off,
    /// An Event, and a metric.
    Report,
    /// They are evicted, too.
    Evict,
}

/// Who makes the webhook's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum WebhookCertificate {
    /// The controller.
    Own,
    /// cert-manager.
    CertManager,
}

/// An issuer of cert-manager.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerRef {
    /// `Issuer` (in the controller's namespace) or `ClusterIssuer`.
    #[serde(default = "IssuerRef::default_kind")]
    #[schemars(regex(pattern = "^(Cluster)?Issuer$"))]
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl IssuerRef {
    fn default_kind() -> String {
        "Issuer".to_owned()
    }
}

/// Requests and limits, as Kubernetes writes quantities.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
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
        Self { cpu_request: some("50m"), cpu_limit: None, memory_request: some("64Mi"), memory_limit: some("512Mi") }
    }
}

impl Settings {
    /// Reads a values file.
    ///
    /// # Errors
    /// What is wrong with it, and where as far as that is known.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        let value: Value = serde_saphyr::from_str(text).map_err(|error| match error.location() {
            Some(at) => format!("line {}, column {}: {}", at.line(), at.column(), error.without_snippet()),
            None => error.without_snippet().to_string(),
        })?;
        Self::from_json(value)
    }

    /// Takes what a values file holds; null is an empty one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(mut value: Value) -> Result<Self, String> {
        match &mut value {
            Value::Null => return Ok(Self::default()),
            // As in Helm, null is what stands there when nothing does.
            Value::Object(map) => map.retain(|_, value| !value.is_null()),
            _ => {}
        }
        let settings: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        settings.check()?;
        Ok(settings)
    }

    /// What no type can say.
    ///
    /// # Errors
    /// The first mistake, with how to mend it.
    pub fn check(&self) -> Result<(), String> {
        let label = |text: &str| {
            (1..=63).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !text.starts_with('-')
                && !text.ends_with('-')
        };
        if !label(&self.namespace) {
            return Err(format!(
                "`namespace` is `{}`; a namespace has up to 63 of a-z, 0-9 and `-`, such as `outrigger-system`",
                self.namespace
            ));
        }
        if names::SYSTEM_NAMESPACES.contains(&self.namespace.as_str()) || self.namespace == "default" {
            return Err(format!(
                "`namespace` is `{}`, which others share: pods there are never injected, and the controller's rights hold \
                 there; give it one of its own",
                self.namespace
            ));
        }
        if self.image.trim().is_empty() || self.image.contains(char::is_whitespace) {
            return Err(format!(
                "`image` is `{}`; write it as a pod has it: `registry.example/outrigger:0.1.0`",
                self.image
            ));
        }
        if !(1..=9).contains(&self.replicas) {
            return Err(format!(
                "`replicas` is {}; 1 to 9 may run, and 2 or more outlive the loss of a node",
                self.replicas
            ));
        }
        if !(1..=30).contains(&self.webhook_timeout_seconds) {
            return Err(format!(
                "`webhookTimeoutSeconds` is {}; Kubernetes takes 1 to 30",
                self.webhook_timeout_seconds
            ));
        }
        if let Some(issuer) = &self.cert_manager_issuer {
            if self.webhook_certificate != WebhookCertificate::CertManager {
                return Err(
                    "`certManagerIssuer` needs `webhookCertificate: certManager`; set that, or remove it".to_owned()
                );
            }
            if issuer.kind != "Issuer" && issuer.kind != "ClusterIssuer" {
                return Err(format!(
                    "`certManagerIssuer.kind` is `{}`; it is `Issuer` or `ClusterIssuer`",
                    issuer.kind
                ));
            }
        }
        if self.profile.as_ref().is_some_and(|profile| !profile.is_object() && !profile.is_null()) {
            return Err("`profile` is no map of keys such as `config:`".to_owned());
        }
        for key in ["image", "imagePullPolicy", "interception", "mesh", "mtls", "namespaces", "excludedNamespaces"] {
            if self.profile.as_ref().is_some_and(|profile| !profile[key].is_null()) {
                return Err(format!("`profile.{key}` follows from the other settings; remove it there"));
            }
        }
        if let Some(taint) = self.tolerations.iter().find(|taint| !taint.is_object()) {
            return Err(format!("`tolerations` holds {taint}, which is no map of `key`, `operator`, `effect`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_values_file_changes_what_it_names() {
        let settings =
            Settings::from_yaml("replicas: 3\ninterception: self\nresources: { cpuLimit: \"1\" }\n").unwrap();
        assert_eq!((settings.replicas, settings.interception), (3, Interception::Own));
        assert_eq!(settings.resources.cpu_limit.as_deref(), Some("1"));
        assert_eq!(settings.resources.memory_limit.as_deref(), Some("512Mi"), "what is not named keeps its default");
        assert_eq!(Settings::from_yaml("").unwrap(), Settings::default());
        assert_eq!(Settings::from_yaml("namespace: null").unwrap(), Settings::default());
        assert_eq!(Settings::from_yaml("# nothing\n").unwrap(), Settings::default());
    }

    #[test]
    fn what_is_written_reads_back() {
        let settings = Settings { replicas: 1, image: "r/o:1".to_owned(), ..Settings::default() };
        assert_eq!(Settings::from_json(serde_json::to_value(&settings).unwrap()).unwrap(), settings);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("imgae: x", "unknown field `imgae`"),
            ("replicas: 0", "`replicas` is 0"),
            ("replicas: many", "invalid type"),
            ("namespace: kube-system", "which others share"),
            ("namespace: Not_One", "a namespace has"),
            ("image: ''", "`image` is ``"),
            ("trustDomain: UP", "is not a trust domain"),
            ("interception: magic", "unknown variant `magic`"),
            ("mtls: maybe", "unknown variant `maybe`"),
            ("profile: { mesh: {} }", "`profile.mesh` follows"),
            ("webhookTimeoutSeconds: 31", "Kubernetes takes 1 to 30"),
            ("certManagerIssuer: { name: x }", "needs `webhookCertificate: certManager`"),
            ("{ webhookCertificate: certManager, certManagerIssuer: { name: x, kind: X } }", "`Issuer` or"),
            ("profile: [a]", "no map of keys"),
            ("profile: { image: x }", "`profile.image` follows"),
            ("tolerations: [a]", "which is no map"),
            ("a: [", "line "),
        ] {
            let error = Settings::from_yaml(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
