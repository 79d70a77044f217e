//! What the controller asks about pods; the binary joins it to the injector.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

/// Where a pod lives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// What is to become of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is to be like this.
    Changed {
        /// The pod, whole.
        pod: Value,
        /// What its owner should know.
        warnings: Vec<String>,
    },
    /// It stays as it is, and is fine so.
    Left(String),
    /// It must not run as it is; each problem says how to mend it.
    Refused(Vec<String>),
}

/// Judges pods. Pure: the same pod in the same namespace gets the same verdict.
pub trait Injector: Send + Sync {
    /// Judges one.
    fn judge(&self, pod: &Value, namespace: &NamespaceFacts) -> Verdict;
}

/// Makes injectors of profiles.
pub trait Profiles: Send + Sync {
    /// Reads a profile, or takes the defaults. Pods of namespaces in `never` are left alone.
    ///
    /// # Errors
    /// What is wrong with the profile.
    fn read(&self, profile: Option<&str>, never: &[String]) -> Result<Arc<dyn Injector>, String>;
}
