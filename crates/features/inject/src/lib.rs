//! Injection: a pod in, a pod with the sidecar out.
//!
//! In: a pod as JSON, its namespace, settings. Out: the changed pod with the reason of each change,
//! or why it was left alone or refused; for whole manifests the same, document by document.
//! Promise: a pure function of its arguments, which webhook and command line share; idempotent;
//! [`uninject`] gives back what there was; fields nobody here knows survive.

mod annotations;
mod config;
mod decide;
mod explain;
mod inject;
mod json;
mod known_good;
mod layers;
mod manifests;
mod probes;
mod profile;
mod record;
mod refresh;
mod settings;
mod sidecar;
mod transition;
mod vault;
mod workload;
mod yaml;

pub use annotations::{ANNOTATIONS, Annotation, annotations_reference};
pub use decide::Namespace;
pub use explain::{Explained, explain};
pub use inject::{Injected, Outcome, Reason, inject, uninject};
pub use known_good::KnownGood;
pub use layers::{Layer, Row, Step, rows};
pub use manifests::{Action, ManifestError, Manifests, Report, process};
pub use profile::{
    API_VERSION, Judged, Mistake, Profile, ProfileKind, inject_with, judge, read_manifests, settings_for,
};
pub use refresh::{Refresh, Telling, refresh};
pub use settings::{
    ConfigMapKey, Interception, Mesh, MeshDiscovery, Mtls, Namespaces, PullPolicy, Redirect, Resources, Settings, Vault,
};
pub use transition::When;
pub use workload::ObjectName;

/// The sidecar's container.
pub const SIDECAR: &str = "outrigger";
/// The init container that redirects connections.
pub const INIT: &str = "outrigger-init";
