//! The webhook configuration's `caBundle`: what it is, and how it is written.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What matters of a MutatingWebhookConfiguration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configured {
    version: String,
    /// Of each webhook in it.
    bundles: Vec<String>,
}

impl Configured {
    pub(crate) fn of(configuration: &Value) -> Self {
        let bundle = |webhook: &Value| {
            let encoded = webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
            let decoded = STANDARD.decode(encoded).unwrap_or_default();
            String::from_utf8_lossy(&decoded).into_owned()
        };
        Self {
            version: configuration["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned(),
            bundles: configuration["webhooks"].as_array().into_iter().flatten().map(bundle).collect(),
        }
    }

    /// Whether the API server trusts certificates of this authority, in every webhook.
    pub(crate) fn trusts(&self, certificate: &str) -> bool {
        !self.bundles.is_empty() && self.bundles.iter().all(|bundle| bundle.contains(certificate.trim()))
    }

    /// The JSON Patch that has all webhooks trust this bundle; `None` when they do. Whoever else changed the object in
    /// between makes it fail.
    pub(crate) fn patch(&self, bundle: &str) -> Option<Value> {
        let wrong = self.bundles.iter().enumerate().filter(|(_, found)| *found != bundle);
        let encoded = STANDARD.encode(bundle);
        let mut operations: Vec<Value> = wrong
            .map(|(at, _)| json!({ "op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": encoded }))
            .collect();
        if operations.is_empty() {
            return None;
        }
        operations.insert(0, json!({ "op": "test", "path": "/metadata/resourceVersion", "value": self.version }));
        Some(Value::Array(operations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_only_over_what_was_seen() {
        let encoded = STANDARD.encode("A\nB\n");
        let configuration = json!({
            "metadata": { "resourceVersion": "7" },
            "webhooks": [{ "clientConfig": { "caBundle": encoded } }, { "clientConfig": {} }],
        });
        let configured = Configured::of(&configuration);
        assert!(!configured.trusts("A\n"), "the second trusts nobody");
        let patch = configured.patch("A\nB\n").unwrap();
        assert_eq!(patch[0], json!({ "op": "test", "path": "/metadata/resourceVersion", "value": "7" }));
        assert_eq!(
            (patch.as_array().unwrap().len(), &patch[1]["path"]),
            (2, &json!("/webhooks/1/clientConfig/caBundle"))
        );
        let both = json!({ "metadata": {}, "webhooks": [{ "clientConfig": { "caBundle": encoded } }] });
        assert!(Configured::of(&both).trusts("A\n") && Configured::of(&both).patch("A\nB\n").is_none());
        assert!(!Configured::of(&json!({})).trusts(""), "without webhooks nobody is asked");
    }
}
