//! An explanation, as data.

use outrigger_config::{Direction, Listener, ListenerProtocol};
use outrigger_wire::head::{FieldId, Head};
use serde::{Deserialize, Serialize};

/// What becomes of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// Who takes it.
    pub listener: ListenerTold,
    /// What is asked for.
    pub request: RequestTold,
    /// The target after normalisation, when that changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalised: Option<String>,
    /// What is worth knowing beside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Matches that count more than the one that takes it, in their order.
    pub nearer: Vec<NearerTold>,
    /// So many more that are not told.
    pub more: usize,
    /// The route that takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteTold>,
    /// What its filters do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// How its client stays with an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTold>,
    /// The route's `timeouts.request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// What the rate limit service is asked, a descriptor each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub global_rate_limits: Vec<String>,
    /// The request after the filters; fields that the proxy itself adds or removes are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<RequestTold>,
    /// Where it may go.
    pub backends: Vec<BackendTold>,
    /// The answer, when a filter gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<ResponseTold>,
    /// Why it goes nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// Whether this is how things are in a process that runs.
    pub live: bool,
}

impl Explanation {
    /// The status of an answer of our own.
    pub fn own_status(&self) -> Option<u16> {
        let refused = self.refused.as_ref().map(|refused| refused.status);
        self.response.as_ref().map(|response| response.status).or(refused)
    }
}

/// A listener.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are the config's")]
pub struct ListenerTold {
    pub name: String,
    pub direction: String,
    pub address: String,
    pub protocol: String,
}

impl ListenerTold {
    pub(super) fn of(listener: &Listener) -> Self {
        Self {
            name: listener.name.to_string(),
            direction: match listener.direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            }
            .to_owned(),
            address: listener.address.to_string(),
            protocol: match listener.protocol {
                ListenerProtocol::Http => "http",
                ListenerProtocol::Auto => "auto",
                ListenerProtocol::Tcp => "tcp",
                ListenerProtocol::Tls => "tls",
            }
            .to_owned(),
        }
    }
}

/// A request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestTold {
    /// Its method.
    pub method: String,
    /// Its host, with the port if there is one.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// All other fields.
    pub headers: Vec<(String, String)>,
}

impl RequestTold {
    pub(super) fn of(head: &Head) -> Self {
        Self {
            method: head.method_text().to_owned(),
            host: head.get(FieldId::Host).map(text).unwrap_or_default(),
            path: super::target(head),
            headers: fields(head),
        }
    }
}

/// A match that does not take the request, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NearerTold {
    /// Its route.
    pub route: String,
    /// Which of the route's `matches`, from 0.
    #[serde(rename = "match")]
    pub number: usize,
    /// The host it is for.
    pub host: String,
    /// The path it is for.
    pub path: String,
    /// What does not match: `host`, `path`, `method`, `header`, `queryParam` or `peer`.
    pub mismatch: String,
    /// The same in a sentence.
    pub reason: String,
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTold {
    /// Its name.
    pub name: String,
    /// What kind of route it is.
    pub kind: RouteKind,
    /// Which of its `matches`, from 0.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// The host it matched.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The path it matched.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// A kind of route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteKind {
    /// One of `routes`.
    #[default]
    Http,
    /// One of `grpcRoutes`.
    Grpc,
    /// The `tcpRoute`.
    Tcp,
    /// One of `tlsRoutes`.
    Tls,
    /// A cluster's `virtualAddresses` hold where it wanted to go.
    VirtualAddress,
    /// It wanted to go to an endpoint of the cluster.
    Endpoint,
    /// It goes where it wanted to go, which nobody told us of.
    UnknownDestination,
}

impl RouteKind {
    /// As a person reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP route",
            Self::Grpc => "gRPC route",
            Self::Tcp => "TCP route",
            Self::Tls => "TLS route",
            Self::VirtualAddress => "virtual address of a cluster",
            Self::Endpoint => "endpoint's own address",
            Self::UnknownDestination => "unknown destination",
        }
    }
}

/// How a client stays with an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionTold {
    /// `Cookie` or `Header`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The name of the cookie or the header field.
    pub name: String,
    /// The request brings one along.
    pub brought: bool,
    /// Until when it holds, in words.
    pub ends: String,
    /// The endpoint that it names; only a process that runs knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// A cluster that the request may go to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTold {
    /// Its name.
    pub cluster: String,
    /// Its weight in the route.
    pub weight: u32,
    /// Its share of the route's traffic, in percent.
    pub share: f64,
    /// How its endpoints are spoken to.
    pub tls: String,
    /// What filters of the backend do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// The endpoint is where the request wanted to go.
    #[serde(default)]
    pub original_destination: bool,
    /// Its endpoints.
    pub endpoints: Vec<EndpointTold>,
}

/// An endpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are the config's")]
pub struct EndpointTold {
    pub address: String,
    pub weight: u32,
    pub priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// How it is; only a process that runs knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// An answer of our own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponseTold {
    /// Its status.
    pub status: u16,
    /// Its fields, but for those that every answer has.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl ResponseTold {
    pub(super) fn of(head: &Head, body: &str) -> Self {
        Self { status: head.status(), headers: fields(head), body: body.to_owned() }
    }
}

/// Why a request goes nowhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// The status that the client gets; 0 for a connection that is closed.
    pub status: u16,
    /// Why.
    pub reason: String,
}

fn fields(head: &Head) -> Vec<(String, String)> {
    let others = head.fields().filter(|field| field.id != FieldId::Host);
    others.map(|field| (field.name.to_owned(), text(field.value))).collect()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}
