//! `proxy.accessLog`: what is written of each request.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, LogFilter, LogFormat};

/// One line per request, when it is through. Without `text` and `json` it is a JSON object with all that is known.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// A file to append to; absent means standard output, or nothing when a source of `logs` takes the lines (`accessLog: {}`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub path: Option<PathBuf>,
    /// Memory for lines not yet written; beyond it lines are shed and counted, for traffic comes first.
    #[serde(default = "default_access_log_buffer")]
    pub buffer: ByteSize,
    /// Only requests of which this is true are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<LogFilter>,
    /// The line as text, in Envoy's operators. What is not known is `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<LogFormat>,
    /// The line as a JSON object of these members. A member that is one operator has a number where it stands for one, and
    /// `null` for what is not known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub json: BTreeMap<String, LogFormat>,
}

fn default_access_log_buffer() -> ByteSize {
    ByteSize::kib(256)
}
