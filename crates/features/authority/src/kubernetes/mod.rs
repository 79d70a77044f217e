//! The Kubernetes API, as far as an authority needs it.
//!
//! In: requests as JSON. Out: answers as JSON, or whose fault it is that there is none. Promise: the
//! token is read again for each request and shown nowhere; every request ends within its time.

mod review;
mod secret;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use outrigger_config::{AuthorityKubernetes, Secret};
use outrigger_http::{Client, ClientOptions, Resolver, Stage, client_tls};
use serde_json::Value;

pub use review::KubernetesReview;
pub use secret::SecretStore;

/// Pods and secrets are smaller: etcd takes no more than 1.5 MiB.
const MAX_ANSWER: usize = 4 << 20;
/// A token is below 2 KiB.
const MAX_TOKEN: u64 = 64 << 10;

/// Why the API server gave no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ApiError(pub(crate) String);

/// One API server.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    settings: AuthorityKubernetes,
    resolver: Resolver,
    /// Made with the authorities as the file had them; made anew when a certificate is not trusted.
    client: tokio::sync::Mutex<Option<Client>>,
}

impl Api {
    /// The API server that the settings name; nothing is read or connected yet.
    pub fn new(settings: AuthorityKubernetes, resolver: Resolver) -> Self {
        Self(Arc::new(Inner { settings, resolver, client: tokio::sync::Mutex::default() }))
    }

    fn audience(&self) -> &str {
        &self.0.settings.audience
    }

    /// Sends a request; gives the status with the answer, which is null when it is no JSON.
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), ApiError> {
        let settings = &self.0.settings;
        let token = read_token(settings.token_file.clone()).await?;
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
            ApiError(format!("the token in {} holds what no token holds", settings.token_file.display()))
        })?;
        bearer.set_sensitive(true);
        let url = format!("{}{path}", settings.server.trim_end_matches('/'));
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| ApiError(error.to_string()))?;
        let response = match self.client().await?.send(request).await {
            Ok(response) => response,
            Err(error) => {
                if error.stage() == Stage::Tls {
                    *self.0.client.lock().await = None;
                }
                return Err(ApiError(error.to_string()));
            }
        };
        let status = response.status();
        let answer: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS)
            || status.is_server_error()
        {
            let said = answer["message"].as_str().unwrap_or("it says no more");
            return Err(ApiError(format!("the API server answered {status}: {}", crate::request::shown(said))));
        }
        Ok((status, answer))
    }

    async fn client(&self) -> Result<Client, ApiError> {
        let mut client = self.0.client.lock().await;
        if let Some(client) = client.as_ref() {
            return Ok(client.clone());
        }
        let settings = &self.0.settings;
        let tls = client_tls(settings.ca_file.clone()).await.map_err(ApiError)?;
        let timeout = settings.timeout.into();
        let options = ClientOptions {
            tls: Some(tls),
            timeout,
            max_response: MAX_ANSWER,
            max_idle: 16,
            ..ClientOptions::default()
        };
        let fresh = Client::new(options, self.0.resolver.clone());
        *client = Some(fresh.clone());
        Ok(fresh)
    }
}

/// The token in a file, off the async threads.
async fn read_token(path: PathBuf) -> Result<Secret, ApiError> {
    let read = tokio::task::spawn_blocking(move || {
        let failed = |error: std::io::Error| ApiError(format!("cannot read the token in {}: {error}", path.display()));
        if std::fs::metadata(&path).map_err(failed)?.len() > MAX_TOKEN {
            return Err(failed(std::io::Error::other("it is too large for one")));
        }
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(&path).map_err(failed)?);
        Ok(Secret::new(text.trim().to_owned()))
    });
    read.await.unwrap_or_else(|error| Err(ApiError(error.to_string())))
}
