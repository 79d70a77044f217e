//! What our own objects in a cluster are called, and where they listen, in one place for those who make them and those who
//! look for them.

/// The namespace of the controllers, unless settings say another.
pub const NAMESPACE: &str = "outrigger-system";
/// Deployment, Service, ServiceAccount, ConfigMap, roles and lease of the controllers.
pub const CONTROLLER: &str = "outrigger-controller";
/// What all that is ours is in the label `app.kubernetes.io/name`.
pub const APPLICATION: &str = "outrigger";
/// The MutatingWebhookConfiguration that has pods injected. The controller writes its `caBundle`.
pub const WEBHOOK_CONFIGURATION: &str = "outrigger-injector";
/// The webhook in it for namespaces that opted in.
pub const NAMESPACE_WEBHOOK: &str = "inject.outrigger.dev";
/// The webhook in it for single pods that opt in elsewhere.
pub const POD_WEBHOOK: &str = "pods.inject.outrigger.dev";
/// Where the webhook is served.
pub const WEBHOOK_PATH: &str = "/inject";
/// The Secret with the authorities of the webhook's certificate.
pub const WEBHOOK_SECRET: &str = "outrigger-webhook";
/// The Secret with the authority's roots.
pub const ROOTS_SECRET: &str = "outrigger-roots";
/// The ConfigMap with the trust bundle, in each namespace that opted in.
pub const TRUST_BUNDLE: &str = "outrigger-ca-root-cert";
/// Namespaces that are never injected, and whose pods never wait for us.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// The label of namespaces and pods that asks for injection, with the value `enabled`.
pub const INJECT_LABEL: &str = "outrigger.dev/inject";
/// The sidecar's container.
pub const SIDECAR: &str = "outrigger";
/// What the names of ephemeral containers begin with that keep a sidecar's sockets while it is replaced; a number follows.
pub const KEEPER: &str = "outrigger-keeper-";
/// How long a keeper waits to be given sockets, in seconds. It ends by itself, for nobody can remove it.
pub const KEEPER_IDLE: u64 = 90;
/// How long it holds sockets for the next sidecar, in seconds.
pub const KEEPER_WAIT: u64 = 180;
/// What injected pods are annotated with.
pub const STATUS_ANNOTATION: &str = "outrigger.dev/status";
/// Where the controller judges profiles that are made or changed.
pub const PROFILE_PATH: &str = "/validate-profile";
/// The ValidatingWebhookConfiguration that has profiles judged. The controller writes its `caBundle`.
pub const PROFILE_CONFIGURATION: &str = "outrigger-profiles";
/// What injected pods whose sidecar takes mTLS are annotated with (`permissive` or `strict`).
pub const MTLS_ANNOTATION: &str = "outrigger.dev/mtls";
/// Where the Service answers the API server.
pub const WEBHOOK_SERVICE_PORT: u16 = 443;
/// The port where the controller serves the webhook.
pub const WEBHOOK_PORT: u16 = 15017;
/// Where workloads ask for certificates.
pub const AUTHORITY_PORT: u16 = 15012;
/// Where sidecars ask for services.
pub const DISCOVERY_PORT: u16 = 15011;
/// Metrics.
pub const METRICS_PORT: u16 = 15020;
/// Health.
pub const HEALTH_PORT: u16 = 15021;
/// The key of the controllers' ConfigMap that tells what the installation was made with.
pub const SETTINGS_KEY: &str = "install.yaml";
