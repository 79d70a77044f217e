//! Installation: settings in, the objects of a cluster out, and what is said of a cluster that has them.
//!
//! In: a values file and flags. Out: namespace, service account, rights, controllers, service and webhook, as `kubectl apply`
//! takes them. Promise: a pure function of its settings, whose text is the same each time; the Helm chart in `deploy/chart`
//! renders the same objects from the same values. A check changes nothing.

mod check;
mod objects;
mod reference;
mod settings;
mod yaml;

pub use check::{Check, Finding, Report, State, look};
pub use objects::{Object, ObjectRef, objects, removal};
pub use reference::{chart_values, markdown_reference, values_schema};
pub use settings::{
    FailurePolicy, Interception, IssuerRef, Mtls, PullPolicy, Repair, Resources, Settings, WebhookCertificate,
};
pub use yaml::write;
