//! Requests to an API server.
//!
//! In: a path, an object. Out: an object, or a typed error. Promise: each request ends within its time; one that the
//! server is too busy for (429, or 503 with `Retry-After`) waits as long as it says and is sent again, a few times;
//! nothing else is sent twice that may have been seen. TLS is made anew when files changed and the server is not trusted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use http::{Method, StatusCode};
use outrigger_http::{ClientOptions, HttpError, Resolver, Stage, Streamed};
use outrigger_runtime::Backoff;
use outrigger_telemetry::{CounterFamily, Registry};
use serde_json::Value;

use crate::access::{Access, AccessError};
use crate::error::{ApiError, Status};
use crate::object::{Path, Resource, escape};

/// A page of a list: some hundred objects, each of at most 1.5 MiB in etcd but most of some KiB.
const MAX_ANSWER: usize = 64 << 20;
/// A server that wants to be asked again later than this is too busy for us.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What bounds a client.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time for one request, waiting for a busy server not included.
    pub timeout: Duration,
    /// How often a request is sent again to a server that is too busy.
    pub retries: u32,
    /// Who we are in `managedFields`, and the field manager of server-side apply.
    pub manager: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), retries: 4, manager: "outrigger" }
    }
}

/// How an object is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patch {
    /// [JSON merge patch](https://www.rfc-editor.org/rfc/rfc7386).
    Merge,
    /// [JSON Patch](https://www.rfc-editor.org/rfc/rfc6902): a list of operations.
    Json,
    /// Kubernetes' own merge, which knows the keys of lists.
    Strategic,
    /// Server-side apply: fields that others own are an error.
    Apply,
    /// Server-side apply that takes fields over from others.
    ForceApply,
}

/// Whether a write is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Write {
    /// It is.
    #[default]
    Real,
    /// The API server judges it, with all admission, and writes nothing.
    DryRun,
}

/// A client of one API server. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    access: Access,
    resolver: Resolver,
    options: Options,
    /// Made with the files as they were then; made anew when a certificate is not accepted.
    http: tokio::sync::Mutex<Option<outrigger_http::Client>>,
    requests: Option<CounterFamily>,
}

/// A request, before it has its credentials.
pub(crate) struct Request<'a> {
    pub(crate) verb: &'static str,
    pub(crate) path: Path<'a>,
    /// Where that is no path of objects.
    pub(crate) url: Option<&'static str>,
    pub(crate) method: Method,
    pub(crate) query: String,
    pub(crate) content: &'static str,
    pub(crate) body: Bytes,
    /// Whether 429 means that the server is too busy.
    pub(crate) patient: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn get(verb: &'static str, path: Path<'a>) -> Self {
        let content = "application/json";
        Self {
            verb,
            path,
            url: None,
            method: Method::GET,
            query: String::new(),
            content,
            body: Bytes::new(),
            patient: true,
        }
    }

    fn with(verb: &'static str, path: Path<'a>, method: Method, body: &Value, query: String) -> Self {
        Self { method, body: Bytes::from(body.to_string()), query, ..Self::get(verb, path) }
    }

    fn refused(&self, status: Status) -> ApiError {
        ApiError::Refused { verb: self.verb, what: self.path.to_string(), status: Box::new(status) }
    }

    fn malformed(&self, problem: impl ToString) -> ApiError {
        ApiError::Malformed { verb: self.verb, what: self.path.to_string(), problem: problem.to_string() }
    }
}

impl Client {
    /// Nothing is read or connected yet.
    pub fn new(access: Access, resolver: Resolver, options: Options) -> Self {
        Self(Arc::new(Inner { access, resolver, options, http: tokio::sync::Mutex::default(), requests: None }))
    }

    /// The same, counting requests.
    pub fn counted(access: Access, resolver: Resolver, options: Options, registry: &Registry) -> Self {
        let requests = registry.counter(
            "outrigger_kubernetes_requests_total",
            "Requests to the API server, by what was asked and its answer (a status, or `error` where none came).",
            &["verb", "resource", "code"],
        );
        let requests = Some(requests);
        Self(Arc::new(Inner { access, resolver, options, http: tokio::sync::Mutex::default(), requests }))
    }

    /// How the API server is reached.
    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// What the API server says of its version, such as `gitVersion`.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn version(&self) -> Result<Value, ApiError> {
        self.about("version", "/version").await
    }

    /// The group versions that are served, such as `apps/v1`; `v1` is not among them.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn api_versions(&self) -> Result<Vec<String>, ApiError> {
        let answer = self.about("API groups", "/apis").await?;
        let groups = answer["groups"].as_array().into_iter().flatten();
        let versions = groups.flat_map(|group| group["versions"].as_array().into_iter().flatten());
        Ok(versions.filter_map(|version| Some(version["groupVersion"].as_str()?.to_owned())).collect())
    }

    async fn about(&self, what: &'static str, url: &'static str) -> Result<Value, ApiError> {
        let resource = Resource { group: "", version: "", plural: what, kind: "", namespaced: false };
        self.value(Request { url: Some(url), ..Request::get("get", resource.all()) }).await
    }

    /// An object.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::is_not_found`] when there is none.
    pub async fn get(&self, path: Path<'_>) -> Result<Value, ApiError> {
        self.value(Request::get("get", path)).await
    }

    /// A text that is no object: a log, or what a pod answers through the API server (`part` `proxy/metrics` of `POD:PORT`).
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn text(&self, path: Path<'_>) -> Result<String, ApiError> {
        let body = self.send(Request { patient: false, ..Request::get("get", path) }).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// An object, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn find(&self, path: Path<'_>) -> Result<Option<Value>, ApiError> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object; gives it as it became. `path` names its collection, or a subresource such as `eviction`.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::is_conflict`] when it exists.
    pub async fn create(&self, path: Path<'_>, object: &Value, write: Write) -> Result<Value, ApiError> {
        let path = if path.subresource.is_empty() { path.collection() } else { path };
        self.value(Request::with("create", path, Method::POST, object, self.query(write))).await
    }

    /// Replaces an object, of the version that it names if it names one; gives it as it became.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::is_conflict`] when that version is not the newest.
    pub async fn update(&self, path: Path<'_>, object: &Value, write: Write) -> Result<Value, ApiError> {
        self.value(Request::with("update", path, Method::PUT, object, self.query(write))).await
    }

    /// Changes an object; gives it as it became.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn patch(&self, path: Path<'_>, how: Patch, patch: &Value, write: Write) -> Result<Value, ApiError> {
        let mut query = self.query(write);
        if how == Patch::ForceApply {
            query.push_str("&force=true");
        }
        let content = match how {
            Patch::Merge => "application/merge-patch+json",
            Patch::Json => "application/json-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
            // JSON is YAML.
            Patch::Apply | Patch::ForceApply => "application/apply-patch+yaml",
        };
        self.value(Request { content, ..Request::with("patch", path, Method::PATCH, patch, query) }).await
    }

    /// Removes an object, if it is there; whether it was. With `uid`, only that very one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn delete(&self, path: Path<'_>, uid: Option<&str>, write: Write) -> Result<bool, ApiError> {
        let mut options = serde_json::json!({ "propagationPolicy": "Background" });
        if let Some(uid) = uid {
            options["preconditions"] = serde_json::json!({ "uid": uid });
        }
        let mut query = String::new();
        dry(&mut query, write);
        match self.value(Request::with("delete", path, Method::DELETE, &options, query)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has a pod leave, if its disruption budgets allow it now; [`ApiError::is_too_many`] when they do not.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn evict(&self, namespace: &str, pod: &str, uid: Option<&str>, write: Write) -> Result<(), ApiError> {
        let mut eviction = serde_json::json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "name": pod, "namespace": namespace },
        });
        if let Some(uid) = uid {
            eviction["deleteOptions"] = serde_json::json!({ "preconditions": { "uid": uid } });
        }
        let path = crate::resources::PODS.named(namespace, pod).part("eviction");
        let mut query = String::new();
        dry(&mut query, write);
        let request = Request::with("create", path, Method::POST, &eviction, query);
        self.value(Request { patient: false, ..request }).await.map(drop)
    }

    fn query(&self, write: Write) -> String {
        let mut query = format!("fieldManager={}", self.0.options.manager);
        dry(&mut query, write);
        query
    }

    async fn value(&self, request: Request<'_>) -> Result<Value, ApiError> {
        let (verb, what) = (request.verb, request.path);
        let body = self.send(request).await?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Malformed {
            verb,
            what: what.to_string(),
            problem: format!("it is no JSON: {error}"),
        })
    }

    /// The body of a successful answer.
    pub(crate) async fn send(&self, request: Request<'_>) -> Result<Bytes, ApiError> {
        self.try_send(&request, async |http, message| {
            let response = http.send(message).await?;
            let (head, body) = response.into_parts();
            Ok((head.status, head.headers, Answered::Whole(body)))
        })
        .await
        .map(|answered| match answered {
            Answered::Whole(body) => body,
            Answered::Open(_) => Bytes::new(),
        })
    }

    /// A successful answer that is read as it comes.
    pub(crate) async fn open(&self, request: Request<'_>) -> Result<Streamed, ApiError> {
        let answered = self
            .try_send(&request, async |http, message| {
                let response = http.open(message).await?;
                let (status, headers) = (response.status(), response.headers().clone());
                if status.is_success() {
                    return Ok((status, headers, Answered::Open(Box::new(response))));
                }
                Ok((status, headers, Answered::Whole(response.whole().await?)))
            })
            .await?;
        match answered {
            Answered::Open(response) => Ok(*response),
            Answered::Whole(_) => Err(request.malformed("it ended before it began")),
        }
    }

    async fn try_send(
        &self,
        request: &Request<'_>,
        exchange: impl AsyncFn(
            outrigger_http::Client,
            http::Request<Bytes>,
        ) -> Result<(StatusCode, HeaderMap, Answered), HttpError>,
    ) -> Result<Answered, ApiError> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));
        let (mut tries, mut credentials_tried) = (0, false);
        loop {
            let message = self.message(request).await?;
            let (status, headers, answered) = match exchange(self.http().await?, message).await {
                Ok(answer) => answer,
                Err(error) => {
                    self.count(request, "error");
                    // The authorities may have changed, or the server no longer takes our certificate.
                    if error.stage() == Stage::Tls || error.stage() == Stage::Receive {
                        *self.0.http.lock().await = None;
                    }
                    return Err(error.into());
                }
            };
            self.count(request, status.as_str());
            let body = match answered {
                answered if status.is_success() => return Ok(answered),
                Answered::Whole(body) => body,
                Answered::Open(_) => Bytes::new(),
            };
            let said: Value = serde_json::from_slice(&body).unwrap_or_default();
            let mut refused = Status::of(status.as_u16(), &said);
            if let Some(wait) = retry_after(&headers) {
                refused.retry_after = Some(wait);
            }
            if refused.message.is_empty() && said.is_null() {
                // What is no Status is often a line of text.
                refused.message = crate::error::tidy(&String::from_utf8_lossy(&body));
            }
            if status == StatusCode::UNAUTHORIZED && !credentials_tried && self.0.access.refused() {
                credentials_tried = true;
                *self.0.http.lock().await = None;
                continue;
            }
            let busy = status == StatusCode::TOO_MANY_REQUESTS
                || (status == StatusCode::SERVICE_UNAVAILABLE && refused.retry_after.is_some());
            if !busy || !request.patient || tries >= self.0.options.retries {
                return Err(request.refused(refused));
            }
            tries += 1;
            let asked = refused.retry_after.unwrap_or_default();
            if asked > LONGEST_WAIT {
                return Err(request.refused(refused));
            }
            // Not all that were told so come back at once.
            tokio::time::sleep(asked + backoff.next()).await;
        }
    }

    async fn message(&self, request: &Request<'_>) -> Result<http::Request<Bytes>, ApiError> {
        let path = request.url.map_or_else(|| request.path.url(), str::to_owned);
        let mut url = format!("{}{path}", self.0.access.server);
        if !request.query.is_empty() {
            url.push('?');
            url.push_str(request.query.trim_matches('&'));
        }
        let mut builder =
            http::Request::builder().method(request.method.clone()).uri(url).header(ACCEPT, "application/json");
        if !request.body.is_empty() {
            builder = builder.header(CONTENT_TYPE, request.content);
        }
        if let Some(authorization) = self.0.access.authorization().await? {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        let message = builder.body(request.body.clone());
        message.map_err(|error| {
            let server = &self.0.access.server;
            ApiError::Access(AccessError::new(format!("`{server}` is no URL of an API server: {error}")))
        })
    }

    async fn http(&self) -> Result<outrigger_http::Client, ApiError> {
        let mut http = self.0.http.lock().await;
        if let Some(http) = http.as_ref() {
            return Ok(http.clone());
        }
        let tls = self.0.access.tls().await?;
        let options = ClientOptions {
            tls: Some(tls),
            timeout: self.0.options.timeout,
            max_response: MAX_ANSWER,
            max_idle: 16,
            ..ClientOptions::default()
        };
        let fresh = outrigger_http::Client::new(options, self.0.resolver.clone());
        *http = Some(fresh.clone());
        Ok(fresh)
    }

    fn count(&self, request: &Request<'_>, code: &str) {
        if let Some(requests) = &self.0.requests {
            requests.with(&[request.verb, request.path.resource.plural, code]).inc();
        }
    }
}

enum Answered {
    Whole(Bytes),
    Open(Box<Streamed>),
}

fn dry(query: &mut String, write: Write) {
    if write == Write::DryRun {
        query.push_str("&dryRun=");
        escape(query, "All");
    }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}
