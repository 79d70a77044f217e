//! `proxy.accessLog`: what is written of each request.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// One JSON line per request.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// A file to append to; absent means standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub path: Option<PathBuf>,
    /// Memory for lines not yet written; beyond it lines are shed and counted, for traffic comes first.
    #[serde(default = "default_access_log_buffer")]
    pub buffer: ByteSize,
}

fn default_access_log_buffer() -> ByteSize {
    ByteSize::kib(256)
}
