//! The roots in a Kubernetes Secret, which several controllers share.
//!
//! In: the Secret's name. Out: the document in `roots.json`, the bundle in `ca.crt`. Promise: the API
//! server compares versions, so of two writers one is told to look again; what others put into the
//! Secret stays.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_config::SecretName;
use outrigger_kubernetes::resources::SECRETS;
use outrigger_kubernetes::{ApiError, Path, Write};
use outrigger_runtime::BoxFuture;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Api;
use crate::store::{Store, StoreError, Stored};

const DOCUMENT: &str = "roots.json";
const BUNDLE: &str = "ca.crt";

/// A Secret that holds the document.
pub struct SecretStore {
    api: Api,
    name: SecretName,
}

impl SecretStore {
    /// The document in this Secret.
    pub fn new(api: Api, name: SecretName) -> Self {
        Self { api, name }
    }

    fn path(&self) -> Path<'_> {
        SECRETS.named(&self.name.namespace, &self.name.name)
    }

    async fn get(&self) -> Result<Option<Value>, StoreError> {
        let failed = |error: ApiError| StoreError { action: "read the Secret", problem: error.to_string() };
        self.api.client.find(self.path()).await.map_err(failed)
    }

    /// Writes a Secret over the version that it names. `false` when that is not there any more.
    async fn put(&self, secret: &Value, exists: bool) -> Result<bool, StoreError> {
        let written = match exists {
            true => self.api.client.update(self.path(), secret, Write::Real).await,
            false => self.api.client.create(self.path(), secret, Write::Real).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            // Removed in between.
            Err(error) if error.is_not_found() && exists => Ok(false),
            Err(error) => Err(StoreError { action: "write the Secret", problem: error.to_string() }),
        }
    }

    async fn replace_with(&self, version: Option<&str>, document: &[u8]) -> Result<bool, StoreError> {
        let found = self.get().await?;
        // A Secret without the document was made by somebody who wants it filled, such as the installer.
        let there = found.as_ref().filter(|secret| secret["data"][DOCUMENT].is_string()).and_then(version_of);
        if there != version {
            return Ok(false);
        }
        let exists = found.is_some();
        let mut secret = found.unwrap_or_else(|| {
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "Opaque",
                "metadata": { "name": self.name.name, "namespace": self.name.namespace },
            })
        });
        secret["data"][DOCUMENT] = Value::String(STANDARD.encode(document));
        self.put(&secret, exists).await
    }

    async fn publish_in(&self, bundle: &str) -> Result<(), StoreError> {
        let encoded = STANDARD.encode(bundle);
        match self.get().await? {
            Some(mut secret) if secret["data"][BUNDLE] != encoded.as_str() => {
                secret["data"][BUNDLE] = Value::String(encoded);
                // Whoever was first writes the same.
                self.put(&secret, true).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}

fn version_of(secret: &Value) -> Option<&str> {
    secret["metadata"]["resourceVersion"].as_str()
}

impl Store for SecretStore {
    fn place(&self) -> String {
        format!("the Secret {}/{}", self.name.namespace, self.name.name)
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            let Some(secret) = self.get().await? else { return Ok(None) };
            let Some(encoded) = secret["data"][DOCUMENT].as_str() else { return Ok(None) };
            let bad = || StoreError { action: "read the Secret", problem: format!("`{DOCUMENT}` is not base64") };
            let document = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| bad())?);
            Ok(Some(Stored { version: version_of(&secret).unwrap_or_default().to_owned(), document }))
        })
    }

    fn replace<'a>(&'a self, version: Option<&'a str>, document: &'a [u8]) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(self.replace_with(version, document))
    }

    fn publish<'a>(&'a self, bundle: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.publish_in(bundle))
    }
}
