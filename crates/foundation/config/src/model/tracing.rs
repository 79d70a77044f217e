//! `telemetry.tracing`: distributed traces. Names are OpenTelemetry's where it has some.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, Secret};

/// Distributed traces: requests carry on the trace they belong to, and their spans go to a collector.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// Where spans go.
    pub otlp: Otlp,
    /// `service.name` of the spans: what the application is called.
    #[schemars(length(min = 1, max = 255))]
    pub service_name: String,
    /// Further attributes of the resource, such as `deployment.environment`.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// Formats in which requests carry their trace. It is read in the first whose fields are there and right, and written in
    /// all. Empty means that none is read or written, and each hop begins a trace of its own.
    #[serde(default = "default_propagators")]
    pub propagators: Vec<Propagator>,
    /// Which traces are kept.
    #[serde(default)]
    pub sampling: Sampling,
    /// Memory for spans that wait to be sent; beyond it they are dropped and counted.
    #[serde(default = "default_tracing_buffer")]
    pub buffer: ByteSize,
    /// How long a span may wait before it is sent.
    #[serde(default = "default_tracing_interval")]
    pub interval: Duration,
}

fn default_propagators() -> Vec<Propagator> {
    vec![Propagator::TraceContext]
}

fn default_tracing_buffer() -> ByteSize {
    ByteSize::kib(512)
}

fn default_tracing_interval() -> Duration {
    Duration::from_secs(2)
}

/// A collector that speaks OTLP.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Otlp {
    /// `http://` or `https://`. With `http/protobuf` the whole URL, whose path is `/v1/traces` when it has none; with `grpc`
    /// the host and port, usually 4317.
    #[schemars(extend("format" = "http-url"))]
    pub endpoint: String,
    /// How spans are sent.
    #[serde(default)]
    pub protocol: OtlpProtocol,
    /// Headers (gRPC: metadata) sent with each batch; values are masked wherever the config is shown.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// PEM bundle for `https://`; absent means the public authorities built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub ca_file: Option<PathBuf>,
    /// Time for one batch to be acknowledged.
    #[serde(default = "default_otlp_timeout")]
    pub timeout: Duration,
}

fn default_otlp_timeout() -> Duration {
    Duration::from_secs(10)
}

/// How spans are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OtlpProtocol {
    /// Protobuf in HTTP/1.1 requests, usually to port 4318.
    #[default]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
    /// gRPC, usually to port 4317.
    #[serde(rename = "grpc")]
    Grpc,
}

/// A format in which a request carries its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Propagator {
    /// W3C Trace Context: `traceparent`; `tracestate` passes as it is.
    TraceContext,
    /// B3 in the one header `b3`.
    B3,
    /// B3 in `X-B3-TraceId`, `X-B3-SpanId` and their like.
    B3Multi,
}

/// Which traces are kept.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sampling {
    /// A caller's decision is ours too. Off, its trace is carried on, but kept or not by `ratio`.
    pub parent: bool,
    /// Share of the other traces that are kept, from 0 to 1; all sidecars with the same ratio keep the same ones.
    pub ratio: f64,
    /// The most traces that `ratio` keeps a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_per_second: u32,
    /// Spans of failed requests (5xx, no answer, a gRPC status that tells of the server's failure) are kept in any case.
    pub errors: bool,
    /// Spans of requests that took so long are kept in any case; `0s` turns it off.
    pub slow: Duration,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { parent: true, ratio: 0.01, max_per_second: 100, errors: true, slow: Duration::from_secs(1) }
    }
}
