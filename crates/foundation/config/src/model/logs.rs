//! Section `logs`: a graph of sources, transforms and sinks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, Name, Secret};

/// Log forwarding.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logs {
    /// Folder for checkpoints: how far each file was acknowledged. It must outlive the process (a volume of the pod).
    #[schemars(extend("format" = "path"))]
    pub state_directory: PathBuf,
    /// Where lines come from.
    #[schemars(length(min = 1))]
    pub sources: Vec<LogSource>,
    /// What happens to them.
    #[serde(default)]
    pub transforms: Vec<LogTransform>,
    /// Where they go.
    #[schemars(length(min = 1))]
    pub sinks: Vec<LogSink>,
}

/// Where lines come from. Exactly one kind: `file` or `accessLog`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogSource {
    /// Unique among sources and transforms.
    pub name: Name,
    /// Tails a file, over rotation by rename.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSource>,
    /// Takes the proxy's access log, straight from the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogSource>,
}

/// Takes the lines of `proxy.accessLog` as they are written there, filtered and formatted. They go to its `path`, too, if it has
/// one, and no longer to standard output. While sinks are slow they wait in its `buffer`; beyond it they are shed. A line
/// that waits when the process is killed is lost.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLogSource {}

/// Tails a file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSource {
    /// The file; it need not exist yet.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
    /// Where to begin in a file never seen before.
    #[serde(default)]
    pub read_from: ReadFrom,
    /// Longer lines are cut and marked `truncated`.
    #[serde(default = "default_max_line")]
    pub max_line: ByteSize,
    /// How long a rotated file is still read after its last line, before it is let go.
    #[serde(default = "default_rotate_wait")]
    pub rotate_wait: Duration,
}

fn default_max_line() -> ByteSize {
    ByteSize::kib(64)
}

fn default_rotate_wait() -> Duration {
    Duration::from_secs(5)
}

/// Where to begin in a file never seen before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadFrom {
    /// At the first line.
    #[default]
    Beginning,
    /// Behind the last line.
    End,
}

/// What happens to lines. Exactly one kind: `json`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogTransform {
    /// Unique among sources and transforms.
    pub name: Name,
    /// Sources or transforms it reads from.
    #[schemars(length(min = 1))]
    pub inputs: Vec<Name>,
    /// Parses the line as a JSON object whose members become the event's fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<JsonTransform>,
}

/// Parses the line as a JSON object.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JsonTransform {
    /// What becomes of a line that is no JSON object.
    pub on_error: OnParseError,
}

/// What becomes of a line that cannot be parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnParseError {
    /// It is kept as text under `message`, and counted.
    #[default]
    Keep,
    /// It is dropped, and counted.
    Drop,
}

/// Where lines go. Exactly one kind: `file`, `stdout` or `http`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LogSink {
    /// Unique among sinks.
    pub name: Name,
    /// Sources or transforms it reads from.
    #[schemars(length(min = 1))]
    pub inputs: Vec<Name>,
    /// Appends JSON lines to a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSink>,
    /// Writes JSON lines to standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<StdoutSink>,
    /// Posts batches of JSON lines; a 2xx answer acknowledges the batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSink>,
    /// When a batch is sent.
    #[serde(default)]
    pub batch: Batch,
    /// Memory for events that wait for this sink; when it is full the sources wait, so nothing is lost.
    #[serde(default = "default_sink_buffer")]
    pub buffer: ByteSize,
}

fn default_sink_buffer() -> ByteSize {
    ByteSize::mib(1)
}

/// Appends JSON lines to a file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSink {
    /// The file; made when absent.
    #[schemars(extend("format" = "path"))]
    pub path: PathBuf,
}

/// Writes JSON lines to standard output.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StdoutSink {}

/// Posts batches of JSON lines (`application/x-ndjson`).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSink {
    /// `http://` or `https://`.
    #[schemars(extend("format" = "http-url"))]
    pub url: String,
    /// Headers sent with each batch; values are masked wherever the config is shown.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// PEM bundle for `https://`; absent means the public authorities built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub ca_file: Option<PathBuf>,
    /// Time for one batch to be acknowledged.
    #[serde(default = "default_http_timeout")]
    pub timeout: Duration,
}

fn default_http_timeout() -> Duration {
    Duration::from_secs(10)
}

/// When a batch is sent: whichever bound is met first.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Batch {
    /// Events in a batch.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_events: u32,
    /// Bytes in a batch, before compression.
    pub max_bytes: ByteSize,
    /// How long the first event of a batch may wait.
    pub timeout: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_events: 1000, max_bytes: ByteSize::kib(256), timeout: Duration::from_millis(200) }
    }
}
