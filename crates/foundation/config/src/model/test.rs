//! Section `tests`: what routes are expected to do with requests.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{HeaderValue, SpiffeId};

/// A request, and what is expected to become of it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteTest {
    /// Says what is tested; unique among tests.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The request.
    pub request: TestRequest,
    /// What becomes of it; at least one thing.
    pub expect: TestExpectation,
}

/// A request of a test.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TestRequest {
    /// The method.
    #[serde(default = "get")]
    #[schemars(extend("format" = "http-method"))]
    pub method: String,
    /// `http://HOST[:PORT]/PATH?QUERY`.
    pub url: String,
    /// Its fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
    /// Who sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<SpiffeId>,
    /// The listener it comes in at; may be left out when only one speaks HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// Where it wanted to go before it was redirected to the listener; absent means the address in `url`, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "socket-address"))]
    pub destination: Option<SocketAddr>,
}

fn get() -> String {
    "GET".to_owned()
}

/// What is expected; what is not given may be anything.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TestExpectation {
    /// The name of the route that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// A cluster that may get it: one of the route's with a weight above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The name of the cookie or header field by which its client stays with an endpoint (`sessionPersistence`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// The request as filters leave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<TestForwarded>,
    /// The answer, when the proxy gives it itself: by a filter, or because it refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<TestResponse>,
}

/// A request as filters leave it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TestForwarded {
    /// Path and query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The host, with the port if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Fields it has, with these values; it may have others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
    /// Names of fields it does not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<String>,
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TestResponse {
    /// Its status.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// Fields it has, with these values; it may have others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
}
