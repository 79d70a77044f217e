//! What the controller asks about pods; the binary joins it to the injector.

use std::any::Any;
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
    /// Judges one; the profiles are all that may mean it.
    fn judge(&self, pod: &Value, namespace: &NamespaceFacts, profiles: &[ParsedProfile]) -> Verdict;

    /// Judges a profile that is to be made or changed.
    fn judge_profile(&self, object: &Value) -> ProfileVerdict;

    /// Judges one that is there.
    fn judge_parsed(&self, profile: &ParsedProfile) -> ProfileVerdict;

    /// What a running pod is to be told now; `None` when it is none of ours.
    fn deliver(&self, pod: &Value, namespace: &NamespaceFacts, profiles: &[ParsedProfile]) -> Option<Deliver>;
}

/// What a running pod is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliver {
    /// Which of the profiles mean it.
    pub meant: Vec<usize>,
    /// What it is to be told.
    pub what: Delivered,
}

/// What becomes of a running pod's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// It is as it should be.
    Current,
    /// It should be told this.
    Tell(Telling),
    /// What it should be takes a pod that is made anew: why.
    Anew(String),
    /// No pod may be so: why.
    Refused(String),
}

/// What is told to a running pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// Annotations that change, and to what; `None` where one goes.
    pub annotations: Vec<(&'static str, Option<String>)>,
    /// The sidecar's config with them.
    pub config: String,
    /// What has to be waited for.
    pub when: When,
    /// Whether the pod then is as it should be; otherwise there is another step.
    pub last: bool,
}

/// What a change of a running pod has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing.
    Now,
    /// Its sidecar has taken over the config that it was told last.
    Taken,
    /// Others have heard what was changed of the pod before.
    Heard,
}

/// A profile, as who reads it keeps it.
pub type ParsedProfile = Arc<dyn Any + Send + Sync>;

/// What is to be said of a profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProfileVerdict {
    /// Why it must not be, each with its path; none lets it pass.
    pub problems: Vec<String>,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// Makes injectors of profiles.
pub trait Profiles: Send + Sync {
    /// Reads a profile, or takes the defaults. Pods of namespaces in `never` are left alone.
    ///
    /// # Errors
    /// What is wrong with the profile.
    fn read(&self, profile: Option<&str>, never: &[String]) -> Result<Arc<dyn Injector>, String>;

    /// Reads a ClusterSidecarProfile (`is_cluster`) or a SidecarProfile; what is wrong with it is told to the pods that it means.
    fn parse(&self, is_cluster: bool, object: &Value) -> ParsedProfile;
}
