//! Section `controller`: what a cluster's controller does.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, Name};

/// A cluster's controller, for `outrigger controller`: what injects pods as they are made, and looks after those that were not.
/// Several replicas may run; one of them, elected by a Lease, does what only one may do.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Controller {
    /// The namespace it runs in, where its Lease and Secrets are.
    pub namespace: Name,
    /// Who this replica is; different for each. Absent means the variable `POD_NAME`, or else the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The API server.
    pub kubernetes: ControllerKubernetes,
    /// Who of the replicas leads.
    pub election: ControllerElection,
    /// The admission webhook that injects pods; absent means off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// Profiles that are objects of the cluster (SidecarProfile, ClusterSidecarProfile) refine the webhook's; absent means that
    /// nobody looks for any. With it pods are injected once all profiles are known, and not before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiles: Option<ControllerProfiles>,
    /// What becomes of pods that run without the sidecar although their namespace asks for it.
    pub repair: Repair,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            namespace: Name::literal("outrigger-system"),
            identity: None,
            kubernetes: ControllerKubernetes::default(),
            election: ControllerElection::default(),
            webhook: None,
            profiles: None,
            repair: Repair::default(),
        }
    }
}

/// The API server of a controller.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControllerKubernetes {
    /// A kubeconfig. Absent means the pod's own service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig. Absent means its current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Time for one request.
    pub timeout: Duration,
}

impl Default for ControllerKubernetes {
    fn default() -> Self {
        Self { kubeconfig: None, context: None, timeout: Duration::from_secs(15) }
    }
}

/// Who of a controller's replicas leads.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControllerElection {
    /// The Lease in the controller's namespace.
    pub lease: Name,
    /// Another replica may lead so long after it saw the last renewal.
    pub duration: Duration,
    /// A leader that could not renew for so long leads no more; shorter than `duration`.
    pub renew_deadline: Duration,
    /// How often it renews, and the others look.
    pub retry: Duration,
}

impl Default for ControllerElection {
    fn default() -> Self {
        Self {
            lease: Name::literal("outrigger-controller"),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// The admission webhook. It never touches pods of `kube-system` and of the controller's own namespace.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhook {
    /// Where the API server reaches it, at the path `/inject`.
    pub listen: SocketAddr,
    /// The Service in the controller's namespace; its certificate is for `SERVICE.NAMESPACE.svc`.
    pub service: Name,
    /// Further DNS names and IP addresses that its certificate is for, such as that of a `url` in the webhook configuration.
    #[schemars(length(max = 16))]
    pub names: Vec<String>,
    /// The MutatingWebhookConfiguration whose `caBundle` the controller keeps.
    pub configuration: Name,
    /// What is injected, as `outrigger inject --profile` takes it; read again when it changes. Absent means the defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub profile: Option<PathBuf>,
    /// Its certificate.
    pub certificate: WebhookCertificate,
    /// Largest AdmissionReview. The API server takes objects of up to 3 MiB, and sends the old one along.
    pub max_body: ByteSize,
    /// Reviews at once; others wait.
    #[schemars(range(min = 1, max = 1024))]
    pub max_reviews: u32,
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 15017)),
            service: Name::literal("outrigger-controller"),
            names: Vec::new(),
            configuration: Name::literal("outrigger-injector"),
            profile: None,
            certificate: WebhookCertificate::default(),
            max_body: ByteSize(8 << 20),
            max_reviews: 32,
        }
    }
}

/// The certificate of the webhook: of authorities of its own, which are kept in a Secret and changed ahead of their end, or from files.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookCertificate {
    /// The Secret in the controller's namespace that holds the authorities; made when absent.
    pub secret: Name,
    /// How long an authority lives. The next one is made when a third of it is left.
    pub lifetime: Duration,
    /// How long a new authority is in the webhook configuration before it signs.
    pub propagation: Duration,
    /// A folder with `tls.crt` and `tls.key` instead, such as a mounted Secret of cert-manager, read again when they change.
    /// cert-manager's own `ca-injector` then keeps the `caBundle`, unless `ca.crt` lies there, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub directory: Option<PathBuf>,
}

impl Default for WebhookCertificate {
    fn default() -> Self {
        Self {
            secret: Name::literal("outrigger-webhook"),
            lifetime: Duration::from_secs(365 * 86400),
            propagation: Duration::from_secs(600),
            directory: None,
        }
    }
}

/// Profiles that are objects of the cluster. They are judged by the webhook, at the path `/validate-profile`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControllerProfiles {
    /// The ValidatingWebhookConfiguration whose `caBundle` the controller keeps.
    pub configuration: Name,
}

impl Default for ControllerProfiles {
    fn default() -> Self {
        Self { configuration: Name::literal("outrigger-profiles") }
    }
}

/// What becomes of pods that run without the sidecar although their namespace asks for it: they were made while the webhook
/// was away, or before the namespace was labelled.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Repair {
    /// What is done.
    pub action: RepairAction,
    /// How old such a pod must be.
    pub after: Duration,
    /// At most one pod is evicted in this time.
    pub pace: Duration,
}

impl Default for Repair {
    fn default() -> Self {
        Self { action: RepairAction::default(), after: Duration::from_secs(30), pace: Duration::from_secs(10) }
    }
}

/// What is done about pods without the sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RepairAction {
    /// Nobody looks.
    Off,
    /// An Event, and a metric.
    #[default]
    Report,
    /// They are also evicted, as their PodDisruptionBudgets allow, so that their owner makes them anew. Pods without an
    /// owner, and of Jobs, are only reported.
    Evict,
}
