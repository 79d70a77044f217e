//! Filters: what is changed of a request or an answer, or answered in an application's stead.
//! As the Gateway API writes them: a `type`, and beside it the member of that name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resilience::RequestMirror;
use crate::{ByteSize, Duration, HeaderMatch};

/// One thing that is done with a route's requests and answers: `type`, and the member of that name.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// What it does.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// Changes fields of requests on their way to the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes fields of answers on their way to the client, ours too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// Changes what requests ask for, after the route was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// Sends the client elsewhere; the route has no backends then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// Lets pages of other origins read the answers (CORS), and answers their browsers' preflight requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Answers by itself; the route has no backends then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<DirectResponse>,
    /// Lets requests wait or fail, to see what their clients make of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultInjection>,
    /// Sends copies of requests to another cluster, whose answers nobody sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// Compresses answers for clients that take that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressor: Option<Compressor>,
    /// Decompresses requests for an application that does not understand compressed ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decompressor: Option<Decompressor>,
}

/// What a filter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum FilterType {
    /// `requestHeaderModifier`.
    RequestHeaderModifier,
    /// `responseHeaderModifier`.
    ResponseHeaderModifier,
    /// `urlRewrite`.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// `requestRedirect`.
    RequestRedirect,
    /// `cors`.
    #[serde(rename = "CORS")]
    Cors,
    /// `directResponse`.
    DirectResponse,
    /// `fault`.
    Fault,
    /// `requestMirror`.
    RequestMirror,
    /// `compressor`.
    Compressor,
    /// `decompressor`.
    Decompressor,
}

impl FilterType {
    /// The key of its member.
    pub fn key(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "requestHeaderModifier",
            Self::ResponseHeaderModifier => "responseHeaderModifier",
            Self::UrlRewrite => "urlRewrite",
            Self::RequestRedirect => "requestRedirect",
            Self::Cors => "cors",
            Self::DirectResponse => "directResponse",
            Self::Fault => "fault",
            Self::RequestMirror => "requestMirror",
            Self::Compressor => "compressor",
            Self::Decompressor => "decompressor",
        }
    }

    /// As it is written in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::UrlRewrite => "URLRewrite",
            Self::RequestRedirect => "RequestRedirect",
            Self::Cors => "CORS",
            Self::DirectResponse => "DirectResponse",
            Self::Fault => "Fault",
            Self::RequestMirror => "RequestMirror",
            Self::Compressor => "Compressor",
            Self::Decompressor => "Decompressor",
        }
    }
}

impl Filter {
    /// Its members, by their keys, and whether they are given.
    pub fn members(&self) -> [(&'static str, bool); 10] {
        [
            ("requestHeaderModifier", self.request_header_modifier.is_some()),
            ("responseHeaderModifier", self.response_header_modifier.is_some()),
            ("urlRewrite", self.url_rewrite.is_some()),
            ("requestRedirect", self.request_redirect.is_some()),
            ("cors", self.cors.is_some()),
            ("directResponse", self.direct_response.is_some()),
            ("fault", self.fault.is_some()),
            ("requestMirror", self.request_mirror.is_some()),
            ("compressor", self.compressor.is_some()),
            ("decompressor", self.decompressor.is_some()),
        ]
    }
}

/// Changes of header fields. Not of those that frame a message, belong to one connection, or tell who called.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeaderModifier {
    /// Fields that get this one value, whatever they had.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderValue>,
    /// Values that are added to what a field has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderValue>,
    /// Names of fields that are removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "header_names")]
    pub remove: Vec<String>,
}

fn header_names(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "type": "string", "format": "header-name" } })
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValue {
    /// Its name.
    #[schemars(extend("format" = "header-name"))]
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What a request asks for instead. What is forwarded is normalised again.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UrlRewrite {
    /// The host, without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "route-hostname"))]
    pub hostname: Option<String>,
    /// The path; the query stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// A change of the path.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// How much of it is replaced.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// The whole new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "http-path"))]
    pub replace_full_path: Option<String>,
    /// What stands for the prefix that the route matched: `/xyz` for `/foo` makes `/xyz/bar` of `/foo/bar`; empty or `/`
    /// cuts the prefix off. Only where all of the route's matches are prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

/// How much of a path is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathModifierType {
    /// All of it: `replaceFullPath`.
    ReplaceFullPath,
    /// The prefix that the route matched: `replacePrefixMatch`.
    ReplacePrefixMatch,
}

/// Where the client is sent. What is not given stays as the request has it, the query in any case.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestRedirect {
    /// `http` or `https`. When given, the port is that scheme's own unless `port` says another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<RedirectScheme>,
    /// The host, without a port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "route-hostname"))]
    pub hostname: Option<String>,
    /// The port; absent and without `scheme` it is the one that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// 301, 302, 303, 307 or 308; the last two keep the method.
    pub status_code: u16,
}

impl Default for RequestRedirect {
    fn default() -> Self {
        Self { scheme: None, hostname: None, port: None, path: None, status_code: 302 }
    }
}

/// A scheme of URLs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the schemes'")]
pub enum RedirectScheme {
    Http,
    Https,
}

impl RedirectScheme {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who may read answers from pages of other origins ([Fetch], CORS protocol).
///
/// [Fetch]: https://fetch.spec.whatwg.org/#http-cors-protocol
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// Origins that may: `https://shop.example`, `https://*.shop.example:8443` for all below, or `*` for all.
    #[schemars(length(min = 1))]
    pub allow_origins: Vec<String>,
    /// Methods they may use, `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_methods: Vec<String>,
    /// Fields they may send, `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_headers: Vec<String>,
    /// Fields of the answer they may read, `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose_headers: Vec<String>,
    /// Whether they may send cookies and other credentials. Not by the origin `null`, and `*` stands for what is asked then.
    #[serde(default)]
    pub allow_credentials: bool,
    /// How long browsers remember it, in whole seconds.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
}

fn default_max_age() -> Duration {
    Duration::from_secs(5)
}

/// An answer of our own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectResponse {
    /// Its status.
    #[schemars(range(min = 200, max = 599))]
    pub status_code: u16,
    /// Its body; text unless `headers` sets `content-type`.
    #[serde(default)]
    pub body: String,
    /// Further fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
}

/// Faults that are put in on purpose; at least one of `delay` and `abort`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FaultInjection {
    /// Lets requests wait before they go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Answers requests with a failure; after the delay, if they have both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
    /// Fields that a request must have to be concerned; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

/// A wait.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// How long; within the route's `timeouts.request`, which goes on meanwhile.
    pub duration: Duration,
    /// Of how many requests, in percent.
    #[serde(default = "default_percentage")]
    #[schemars(range(min = 0, max = 100))]
    pub percentage: f64,
}

/// A failure. Exactly one of `httpStatus` and `grpcStatus`; each client gets it in its own terms.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// The status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<u16>,
    /// The number of the gRPC status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u8>,
    /// Of how many requests, in percent.
    #[serde(default = "default_percentage")]
    #[schemars(range(min = 0, max = 100))]
    pub percentage: f64,
}

fn default_percentage() -> f64 {
    100.0
}

/// Compression of answers, as Envoy's filter of this name does it. Left alone is what has a `content-encoding` or is a part
/// (206), gRPC, what has a digest of its bytes, and what `cache-control: no-transform` forbids. An answer that is compressed,
/// or could be for another client, has `vary: accept-encoding`; its strong `etag` becomes a weak one. When the application
/// pauses, what it sent so far goes to the client at once.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Compressor {
    /// What is used; of those that a client likes alike (`accept-encoding`) the first.
    #[schemars(length(min = 1))]
    pub algorithms: Vec<ContentCoding>,
    /// A shorter answer goes as it is; one whose length is not known is compressed.
    pub min_content_length: ByteSize,
    /// Types of answers that are compressed, in which `*` stands for any text. Not what is compressed in itself, such as
    /// most images.
    #[schemars(length(min = 1))]
    pub content_types: Vec<String>,
    /// How much time is spent on it.
    pub levels: CompressionLevels,
}

impl Default for Compressor {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/json",
            "application/*+json",
            "application/javascript",
            "application/xml",
            "application/*+xml",
            "application/wasm",
            "image/svg+xml",
        ];
        Self {
            algorithms: vec![ContentCoding::Zstd, ContentCoding::Br, ContentCoding::Gzip],
            min_content_length: ByteSize::kib(1),
            content_types: types.map(str::to_owned).into(),
            levels: CompressionLevels::default(),
        }
    }
}

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the codings'")]
pub enum ContentCoding {
    Gzip,
    Br,
    Zstd,
}

/// How much time compression takes: the higher, the more, and the smaller what remains.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CompressionLevels {
    /// Of gzip.
    #[schemars(range(min = 1, max = 9))]
    pub gzip: u32,
    /// Of br. Higher ones hold tens of MiB for each body.
    #[schemars(range(min = 0, max = 5))]
    pub br: u32,
    /// Of zstd. Higher ones hold tens of MiB for each body.
    #[schemars(range(min = 1, max = 6))]
    pub zstd: u32,
}

impl Default for CompressionLevels {
    fn default() -> Self {
        Self { gzip: 4, br: 4, zstd: 3 }
    }
}

/// Decompression, as Envoy's filter of this name does it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Decompressor {
    /// What is understood. A request with another `content-encoding`, or several, gets 415.
    #[schemars(length(min = 1))]
    pub algorithms: Vec<ContentCoding>,
    /// Requests are decompressed for the application. One that is not as it says gets 400.
    pub requests: bool,
    /// Answers are decompressed for clients that do not take their coding.
    pub responses: bool,
    /// A body that becomes more than so many times as large (and larger than 64 KiB) is cut: 400 for a request. The
    /// listener's `limits.maxBodyBytes` counts what it becomes, too.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_ratio: u32,
}

impl Default for Decompressor {
    fn default() -> Self {
        let algorithms = vec![ContentCoding::Gzip, ContentCoding::Br, ContentCoding::Zstd];
        Self { algorithms, requests: true, responses: false, max_ratio: 100 }
    }
}
