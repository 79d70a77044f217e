//! Members of an answer, of whatever shape it is.
//!
//! Promise: what is not as it should be counts as not there.

use std::time::Duration;

use serde_json::Value as Json;

/// A longer time is taken for this long: ten years.
pub(crate) const LONGEST: u64 = 10 * 365 * 24 * 3600;

/// A text, or an empty one.
pub fn text<'a>(json: &'a Json, name: &str) -> &'a str {
    json.get(name).and_then(Json::as_str).unwrap_or_default()
}

/// Whether it is there and `true`.
pub fn flag(json: &Json, name: &str) -> bool {
    json.get(name).and_then(Json::as_bool).unwrap_or_default()
}

/// A number of seconds, ten years at most, or none.
pub fn seconds(json: Option<&Json>) -> Duration {
    Duration::from_secs(json.and_then(Json::as_u64).unwrap_or_default().min(LONGEST))
}
