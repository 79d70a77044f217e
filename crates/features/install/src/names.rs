//! What the parts of an installation are called, and where they listen. Controller, injector and checks go by these.

/// The namespace of the controller, unless settings say another.
pub const NAMESPACE: &str = "outrigger-system";
/// Deployment, Service, ServiceAccount, ConfigMap, roles and lease of the controllers.
pub const CONTROLLER: &str = "outrigger-controller";
/// What the controllers are in the label `app.kubernetes.io/name`.
pub const APPLICATION: &str = "outrigger";
/// The MutatingWebhookConfiguration.
pub const WEBHOOK_CONFIGURATION: &str = "outrigger-injector";
/// Namespaces that are never injected, and whose pods never wait for us.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// The label of namespaces and pods that says whether they are injected.
pub const INJECT_LABEL: &str = "outrigger.dev/inject";
/// The webhook for namespaces that opted in.
pub const NAMESPACE_WEBHOOK: &str = "inject.outrigger.dev";
/// The webhook for single pods that opt in elsewhere.
pub const POD_WEBHOOK: &str = "pods.inject.outrigger.dev";
/// Where the API server sends pods.
pub const WEBHOOK_PATH: &str = "/inject";
/// The secret with the webhook's certificate.
pub const WEBHOOK_SECRET: &str = "outrigger-webhook";
/// The secret with the authority's roots.
pub const ROOTS_SECRET: &str = "outrigger-roots";
/// Where the Service answers the API server.
pub const WEBHOOK_SERVICE_PORT: u16 = 443;
/// Where the controller listens for it.
pub const WEBHOOK_PORT: u16 = 15017;
/// Where workloads ask for certificates.
pub const AUTHORITY_PORT: u16 = 15012;
/// Metrics.
pub const METRICS_PORT: u16 = 15020;
/// Health.
pub const HEALTH_PORT: u16 = 15021;
/// The key of the ConfigMap that tells what the installation was made with.
pub const SETTINGS_KEY: &str = "install.yaml";
