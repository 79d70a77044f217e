//! What our own objects in a cluster are called, in one place for those who make them and those who look for them.

/// The namespace of the controller.
pub const NAMESPACE: &str = "outrigger-system";
/// The controller's Deployment, Service, ServiceAccount and Lease.
pub const CONTROLLER: &str = "outrigger-controller";
/// The MutatingWebhookConfiguration that has pods injected. The controller writes its `caBundle`.
pub const WEBHOOK_CONFIGURATION: &str = "outrigger-injector";
/// The webhook in it.
pub const WEBHOOK: &str = "inject.outrigger.dev";
/// Where the webhook is served.
pub const WEBHOOK_PATH: &str = "/inject";
/// The port where the controller serves the webhook.
pub const WEBHOOK_PORT: u16 = 15017;
/// The Secret with the authorities of the webhook's certificate.
pub const WEBHOOK_SECRET: &str = "outrigger-webhook";
/// The label of namespaces and pods that asks for injection, with the value `enabled`.
pub const INJECT_LABEL: &str = "outrigger.dev/inject";
/// What injected pods are annotated with.
pub const STATUS_ANNOTATION: &str = "outrigger.dev/status";
/// Where the controller judges profiles that are made or changed.
pub const PROFILE_PATH: &str = "/validate-profile";
/// The ValidatingWebhookConfiguration that has profiles judged. The controller writes its `caBundle`.
pub const PROFILE_CONFIGURATION: &str = "outrigger-profiles";
