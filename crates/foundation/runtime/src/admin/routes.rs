//! Endpoints that features add to the admin API.
//!
//! In: a path, a line that describes it, and a handler. Out: a guard that takes the
//! endpoint away again. Promise: features can only add `GET`s, and cannot hide a
//! built-in endpoint; answers must hold no secret, and are kept by no cache unless they say so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;

use crate::component::BoxFuture;

/// Where browsers are led to, when a feature answers there.
pub(crate) const PAGE: &str = "/ui/";

/// What a handler sees of a request.
#[derive(Debug, Clone)]
pub struct AdminRequest {
    /// The query, without `?`; empty when there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
}

impl AdminRequest {
    /// The value of a query parameter, as it stands there; `Some("")` for one without a value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then_some(value)
        })
    }

    /// Whether the client asks for JSON.
    pub fn wants_json(&self) -> bool {
        self.accepts("application/json")
    }

    /// Whether the client names this type as one that it takes.
    pub(crate) fn accepts(&self, kind: &str) -> bool {
        let accept = self.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        accept.is_some_and(|accept| accept.contains(kind))
    }
}

/// An answer of the admin API.
pub type AdminResponse = http::Response<AdminBody>;

/// What an answer holds.
pub enum AdminBody {
    /// All of it.
    Whole(Bytes),
    /// Pieces as they come; `None` ends it. It is asked for the next piece only once the client has taken the last, and
    /// dropped when the client goes or the process stops: what waits meanwhile the stream itself must bound.
    Stream(AdminStream),
}

/// Gives the next piece, or notes whom to wake.
pub type AdminStream = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Send>;

impl AdminBody {
    /// All of it, if it is whole.
    pub fn whole(self) -> Option<Bytes> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Stream(_) => None,
        }
    }
}

/// Answers a `GET`.
pub type AdminHandler = Arc<dyn Fn(AdminRequest) -> BoxFuture<'static, AdminResponse> + Send + Sync>;

struct Registered {
    id: u64,
    description: String,
    handler: AdminHandler,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    routes: BTreeMap<String, Registered>,
}

/// Where features register endpoints. Cheap to clone.
#[derive(Clone, Default)]
pub struct AdminRoutes(Arc<Mutex<Table>>);

impl AdminRoutes {
    /// No endpoints.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `GET path`; a second registration of a path replaces the first. The endpoint goes with the guard. One without
    /// a description is not in the index.
    pub fn register<F>(&self, path: impl Into<String>, description: impl Into<String>, handler: F) -> AdminRoute
    where
        F: Fn(AdminRequest) -> BoxFuture<'static, AdminResponse> + Send + Sync + 'static,
    {
        let path = path.into();
        let mut table = self.0.lock();
        table.next_id += 1;
        let id = table.next_id;
        let registered = Registered { id, description: description.into(), handler: Arc::new(handler) };
        table.routes.insert(path.clone(), registered);
        AdminRoute { routes: self.clone(), path, id }
    }

    /// A plain-text answer.
    pub fn text(status: StatusCode, body: impl Into<Bytes>) -> AdminResponse {
        Self::response(status, "text/plain; charset=utf-8", body)
    }

    /// A JSON answer.
    pub fn json(value: &serde_json::Value) -> AdminResponse {
        Self::response(StatusCode::OK, "application/json", format!("{value:#}\n"))
    }

    /// An answer with a content type.
    pub fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> AdminResponse {
        Self::with_body(status, content_type, AdminBody::Whole(body.into()))
    }

    /// An answer that goes on: `stream` gives its pieces. The server allows a few at a time.
    pub fn stream<F>(content_type: &'static str, stream: F) -> AdminResponse
    where
        F: FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Send + 'static,
    {
        Self::with_body(StatusCode::OK, content_type, AdminBody::Stream(Box::new(stream)))
    }

    fn with_body(status: StatusCode, content_type: &'static str, body: AdminBody) -> AdminResponse {
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        response
    }

    /// The handler of a path; features may call it in tests.
    pub fn handler(&self, path: &str) -> Option<AdminHandler> {
        self.0.lock().routes.get(path).map(|registered| Arc::clone(&registered.handler))
    }

    /// Paths and descriptions, sorted by path.
    pub(crate) fn index(&self) -> Vec<(String, String)> {
        self.0.lock().routes.iter().map(|(path, route)| (path.clone(), route.description.clone())).collect()
    }
}

/// Keeps an endpoint registered.
#[must_use = "dropping it takes the endpoint away"]
pub struct AdminRoute {
    routes: AdminRoutes,
    path: String,
    id: u64,
}

impl Drop for AdminRoute {
    fn drop(&mut self) {
        let mut table = self.routes.0.lock();
        if table.routes.get(&self.path).is_some_and(|registered| registered.id == self.id) {
            table.routes.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_goes_with_its_guard_but_not_with_an_older_one() {
        let routes = AdminRoutes::new();
        let answer =
            |_| -> BoxFuture<'static, AdminResponse> { Box::pin(async { AdminRoutes::text(StatusCode::OK, "hello") }) };
        let first = routes.register("/hello", "says hello", answer);
        let second = routes.register("/hello", "says hello again", answer);
        drop(first);
        assert_eq!(routes.index(), [("/hello".to_owned(), "says hello again".to_owned())]);
        drop(second);
        assert!(routes.handler("/hello").is_none());
    }

    #[test]
    fn parameters_are_found_by_name() {
        let request = AdminRequest { query: "verbose&level=debug".to_owned(), headers: HeaderMap::new() };
        assert_eq!(request.parameter("verbose"), Some(""));
        assert_eq!(request.parameter("level"), Some("debug"));
        assert_eq!(request.parameter("lev"), None);
    }
}
