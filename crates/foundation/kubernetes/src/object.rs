//! What a request is about: a collection of a resource, or one object of it.
//!
//! Out: paths of the API. Promise: names that are no names cannot lead to another path.

use std::fmt;

/// A kind of object that the API server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resource {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The name in paths, such as `pods`.
    pub plural: &'static str,
    /// The name in manifests, such as `Pod`.
    pub kind: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// Resources of Kubernetes that we use, and profiles, which several of us do.
pub mod resources {
    use super::Resource;

    macro_rules! resources {
        ($($name:ident = $group:literal $version:literal $plural:literal $kind:literal $namespaced:literal;)*) => {
            $(
                #[doc = concat!("`", $kind, "` of `", $group, "/", $version, "`.")]
                pub const $name: Resource = Resource {
                    group: $group, version: $version, plural: $plural, kind: $kind, namespaced: $namespaced,
                };
            )*
            /// All of them.
            pub const ALL: &[Resource] = &[$($name),*];
        };
    }

    resources! {
        PODS = "" "v1" "pods" "Pod" true;
        NAMESPACES = "" "v1" "namespaces" "Namespace" false;
        NODES = "" "v1" "nodes" "Node" false;
        SECRETS = "" "v1" "secrets" "Secret" true;
        CONFIG_MAPS = "" "v1" "configmaps" "ConfigMap" true;
        SERVICES = "" "v1" "services" "Service" true;
        SERVICE_ACCOUNTS = "" "v1" "serviceaccounts" "ServiceAccount" true;
        ENDPOINT_SLICES = "discovery.k8s.io" "v1" "endpointslices" "EndpointSlice" true;
        DEPLOYMENTS = "apps" "v1" "deployments" "Deployment" true;
        REPLICA_SETS = "apps" "v1" "replicasets" "ReplicaSet" true;
        STATEFUL_SETS = "apps" "v1" "statefulsets" "StatefulSet" true;
        DAEMON_SETS = "apps" "v1" "daemonsets" "DaemonSet" true;
        JOBS = "batch" "v1" "jobs" "Job" true;
        CRON_JOBS = "batch" "v1" "cronjobs" "CronJob" true;
        LEASES = "coordination.k8s.io" "v1" "leases" "Lease" true;
        EVENTS = "events.k8s.io" "v1" "events" "Event" true;
        POD_DISRUPTION_BUDGETS = "policy" "v1" "poddisruptionbudgets" "PodDisruptionBudget" true;
        NETWORK_POLICIES = "networking.k8s.io" "v1" "networkpolicies" "NetworkPolicy" true;
        ROLES = "rbac.authorization.k8s.io" "v1" "roles" "Role" true;
        ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "rolebindings" "RoleBinding" true;
        CLUSTER_ROLES = "rbac.authorization.k8s.io" "v1" "clusterroles" "ClusterRole" false;
        CLUSTER_ROLE_BINDINGS = "rbac.authorization.k8s.io" "v1" "clusterrolebindings" "ClusterRoleBinding" false;
        MUTATING_WEBHOOKS = "admissionregistration.k8s.io" "v1" "mutatingwebhookconfigurations" "MutatingWebhookConfiguration" false;
        VALIDATING_WEBHOOKS = "admissionregistration.k8s.io" "v1" "validatingwebhookconfigurations" "ValidatingWebhookConfiguration" false;
        CUSTOM_RESOURCES = "apiextensions.k8s.io" "v1" "customresourcedefinitions" "CustomResourceDefinition" false;
        SIDECAR_PROFILES = "outrigger.dev" "v1alpha1" "sidecarprofiles" "SidecarProfile" true;
        CLUSTER_SIDECAR_PROFILES = "outrigger.dev" "v1alpha1" "clustersidecarprofiles" "ClusterSidecarProfile" false;
        TOKEN_REVIEWS = "authentication.k8s.io" "v1" "tokenreviews" "TokenReview" false;
        ACCESS_REVIEWS = "authorization.k8s.io" "v1" "selfsubjectaccessreviews" "SelfSubjectAccessReview" false;
    }
}

impl Resource {
    /// `v1`, or `GROUP/VERSION`: what stands in `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// All objects, of every namespace.
    pub fn all(self) -> Path<'static> {
        Path { resource: self, namespace: "", name: "", subresource: "" }
    }

    /// All objects of a namespace.
    pub fn within(self, namespace: &str) -> Path<'_> {
        Path { resource: self, namespace, name: "", subresource: "" }
    }

    /// An object of a namespace.
    pub fn named<'a>(self, namespace: &'a str, name: &'a str) -> Path<'a> {
        Path { resource: self, namespace, name, subresource: "" }
    }

    /// An object that is in no namespace.
    pub fn global(self, name: &str) -> Path<'_> {
        Path { resource: self, namespace: "", name, subresource: "" }
    }
}

/// A collection, or one object. Made by [`Resource`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path<'a> {
    /// Of which resource.
    pub resource: Resource,
    /// Its namespace; empty for all of them, or none.
    pub namespace: &'a str,
    /// Its name; empty for a collection.
    pub name: &'a str,
    /// A part of it, such as `status`; empty for the whole.
    pub subresource: &'a str,
}

impl<'a> Path<'a> {
    /// A part of the object: `status`, `eviction`, `ephemeralcontainers`, `log`, `portforward`.
    pub fn part(self, subresource: &'a str) -> Self {
        Self { subresource, ..self }
    }

    /// The path without its name: where such an object is created.
    pub(crate) fn collection(self) -> Self {
        Self { name: "", subresource: "", ..self }
    }

    /// The path of the API, such as `/api/v1/namespaces/shop/pods/web`.
    pub fn url(&self) -> String {
        let Resource { group, version, plural, namespaced, .. } = self.resource;
        let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        if namespaced && !self.namespace.is_empty() {
            path.push_str("/namespaces/");
            escape(&mut path, self.namespace);
        }
        path.push('/');
        path.push_str(plural);
        for part in [self.name, self.subresource] {
            if !part.is_empty() {
                path.push('/');
                escape(&mut path, part);
            }
        }
        path
    }
}

/// `pods/eviction shop/web`, for errors.
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource.plural)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        match (self.namespace, self.name) {
            ("", "") => Ok(()),
            ("", name) => write!(f, " `{name}`"),
            (namespace, "") => write!(f, " of `{namespace}`"),
            (namespace, name) => write!(f, " `{namespace}/{name}`"),
        }
    }
}

/// Writes a text as one segment of a path, or one value of a query.
pub(crate) fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => out.push(char::from(byte)),
            // A segment of dots alone would lead elsewhere.
            b'.' if text != "." && text != ".." => out.push('.'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::resources::*;

    #[test]
    fn paths() {
        let rows = [
            (PODS.all(), "/api/v1/pods", "pods"),
            (PODS.within("shop"), "/api/v1/namespaces/shop/pods", "pods of `shop`"),
            (
                PODS.named("shop", "web").part("eviction"),
                "/api/v1/namespaces/shop/pods/web/eviction",
                "pods/eviction `shop/web`",
            ),
            (NAMESPACES.global("shop"), "/api/v1/namespaces/shop", "namespaces `shop`"),
            (LEASES.named("a", "b.c"), "/apis/coordination.k8s.io/v1/namespaces/a/leases/b.c", "leases `a/b.c`"),
            (PODS.named("..", "a/../b"), "/api/v1/namespaces/%2E%2E/pods/a%2F..%2Fb", "pods `../a/../b`"),
        ];
        for (path, url, shown) in rows {
            assert_eq!(path.url(), url);
            assert_eq!(path.to_string(), shown);
        }
    }
}
