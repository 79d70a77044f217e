//! Whose a token is, by the API server's word ([TokenReview]) and the pod it names.
//!
//! In: a token. Out: the caller. Promise: only a token for our audience counts, bound to a pod
//! that is there, has that UID, runs as that service account, on that node, and has not ended.
//!
//! [TokenReview]: https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/

use outrigger_config::Secret;
use outrigger_kubernetes::resources::{PODS, TOKEN_REVIEWS};
use outrigger_kubernetes::{ApiError, Write};
use outrigger_runtime::BoxFuture;
use serde_json::{Value, json};

use super::Api;
use crate::caller::{Caller, Disbelief, TokenReview};
use crate::request::shown;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks an API server.
#[derive(Clone)]
pub struct KubernetesReview(Api);

impl KubernetesReview {
    /// Asks this one.
    pub fn new(api: Api) -> Self {
        Self(api)
    }

    async fn judge(&self, token: &Secret) -> Result<Caller, Disbelief> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token.expose(), "audiences": [self.0.audience] },
        });
        let answer = self.0.client.create(TOKEN_REVIEWS.all(), &review, Write::Real).await?;
        let caller = attested(&answer["status"], &self.0.audience)?;
        self.check_pod(&caller).await?;
        Ok(caller)
    }

    /// The API server looks at pods from a cache when it judges a token; this asks for the pod itself.
    async fn check_pod(&self, caller: &Caller) -> Result<(), Disbelief> {
        let Caller { namespace, pod, .. } = caller;
        match self.0.client.find(PODS.named(namespace, pod)).await? {
            Some(found) => same_pod(caller, &found),
            None => {
                Err(Disbelief::refused("pod_gone", format!("the pod `{pod}` of `{namespace}` is not there any more")))
            }
        }
    }
}

impl TokenReview for KubernetesReview {
    fn review<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Result<Caller, Disbelief>> {
        Box::pin(self.judge(token))
    }
}

impl From<ApiError> for Disbelief {
    fn from(error: ApiError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// What the status of a TokenReview proves.
fn attested(status: &Value, audience: &str) -> Result<Caller, Disbelief> {
    if status["authenticated"] != true {
        let said = status["error"].as_str().unwrap_or("it says not why");
        return Err(Disbelief::refused("token", format!("the API server does not accept the token: {}", shown(said))));
    }
    // An API server that knows nothing of audiences would answer without them.
    let audiences = status["audiences"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !audiences.iter().any(|found| found == audience) {
        return Err(Disbelief::refused("audience", format!("the token is not for the audience `{audience}`")));
    }
    let user = &status["user"];
    let account = user["username"].as_str().and_then(|name| name.strip_prefix("system:serviceaccount:"));
    let Some((namespace, service_account)) = account.and_then(|account| account.split_once(':')) else {
        return Err(Disbelief::refused("no_service_account", "the token is not one of a service account"));
    };
    let extra = |key: &str| user["extra"][key][0].as_str();
    let (Some(pod), Some(pod_uid)) = (extra(POD_NAME), extra(POD_UID)) else {
        return Err(Disbelief::refused("unbound", "the token is not bound to a pod; use a projected one"));
    };
    let fit = |name: &str| {
        (1..=253).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
    };
    if ![namespace, service_account, pod].into_iter().all(fit) {
        return Err(Disbelief::refused("name", "the token names what cannot be a name"));
    }
    Ok(Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.to_owned(),
        pod_uid: pod_uid.to_owned(),
        node: extra(NODE_NAME).map(str::to_owned),
    })
}

/// Whether the pod that is there is the one that the token was made for.
fn same_pod(caller: &Caller, found: &Value) -> Result<(), Disbelief> {
    let Caller { namespace, pod, .. } = caller;
    let refused =
        |reason, what: &str| Err(Disbelief::refused(reason, format!("the pod `{pod}` of `{namespace}` {what}")));
    if found["metadata"]["uid"] != caller.pod_uid.as_str() {
        return refused("pod_other", "is another one than the token was made for");
    }
    if found["spec"]["serviceAccountName"] != caller.service_account.as_str() {
        return refused("pod_other", "runs as another service account");
    }
    if caller.node.as_deref().is_some_and(|node| found["spec"]["nodeName"] != node) {
        return refused("node", "runs on another node than the token was made for");
    }
    if matches!(found["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return refused("pod_over", "has ended");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["outrigger"],
            "user": {
                "username": "system:serviceaccount:shop:frontend",
                "extra": { POD_NAME: ["web-1"], POD_UID: ["u-1"], NODE_NAME: ["n-1"] },
            },
        })
    }

    fn pod() -> Value {
        json!({
            "metadata": { "uid": "u-1" },
            "spec": { "serviceAccountName": "frontend", "nodeName": "n-1" },
            "status": { "phase": "Running" },
        })
    }

    fn reason(disbelief: Disbelief) -> &'static str {
        match disbelief {
            Disbelief::Refused { reason, .. } => reason,
            Disbelief::Unavailable(_) => "unavailable",
        }
    }

    #[test]
    fn only_a_token_of_a_pod_for_our_audience_proves_anything() {
        let caller = attested(&review(), "outrigger").unwrap();
        let id = caller.spiffe_id(&"shop.example".parse().unwrap()).unwrap();
        assert_eq!(id.as_str(), "spiffe://shop.example/ns/shop/sa/frontend");
        for (pointer, value, expected) in [
            ("/authenticated", json!(false), "token"),
            ("/audiences", json!(["vault"]), "audience"),
            ("/audiences", Value::Null, "audience"),
            ("/user/username", json!("system:node:n-1"), "no_service_account"),
            ("/user/extra", json!({}), "unbound"),
            ("/user/username", json!("system:serviceaccount:shop:a/../b"), "name"),
            ("/user", Value::Null, "no_service_account"),
        ] {
            let mut review = review();
            *review.pointer_mut(pointer).unwrap() = value;
            assert_eq!(reason(attested(&review, "outrigger").unwrap_err()), expected, "{pointer}");
        }
        assert_eq!(reason(attested(&Value::Null, "outrigger").unwrap_err()), "token");
    }

    #[test]
    fn the_pod_must_be_the_very_one() {
        let caller = attested(&review(), "outrigger").unwrap();
        assert_eq!(same_pod(&caller, &pod()), Ok(()));
        let nowhere = Caller { node: None, ..caller.clone() };
        for (pointer, value, expected) in [
            ("/metadata/uid", json!("u-2"), "pod_other"),
            ("/spec/serviceAccountName", json!("admin"), "pod_other"),
            ("/spec/nodeName", json!("n-2"), "node"),
            ("/status/phase", json!("Succeeded"), "pod_over"),
            ("/status/phase", json!("Failed"), "pod_over"),
        ] {
            let mut pod = pod();
            *pod.pointer_mut(pointer).unwrap() = value;
            assert_eq!(reason(same_pod(&caller, &pod).unwrap_err()), expected, "{pointer}");
            assert_eq!(same_pod(&nowhere, &pod).is_ok(), expected == "node", "{pointer}");
        }
    }
}
