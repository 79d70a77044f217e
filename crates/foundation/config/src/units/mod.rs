//! Scalars of the config that carry a unit or a form.
//!
//! In: a YAML scalar. Out: a value that cannot be malformed. Promise: parser, JSON
//! Schema (`format`, `pattern`) and printed form agree, because they stand side by side.

mod address;
mod log_filter;
mod log_format;
mod name;
mod quantity;

pub use address::{HostPort, ListenAddress, WorkloadEndpoint};
pub(crate) use address::{UNIX_PATH_MAX, is_host, nearest_address};
pub use log_filter::{Attribute, Fact, Facts, LogFilter};
pub use log_format::{LogField, LogFormat, LogOperator, LogPiece, TimePiece};
pub use name::{Name, SpiffeId, SpiffePattern, SrvName, TrustDomain};
pub use quantity::{ByteSize, Duration, FileMode};

/// Why a scalar was refused. The text itself is kept apart from the reason, for it may
/// come from an environment variable and must then not be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {problem}; {help}")]
pub struct InvalidScalar {
    /// The text that was refused.
    pub text: String,
    /// What is wrong, to be read after the text: `is not a duration`.
    pub problem: String,
    /// What to write instead.
    pub help: String,
}

impl InvalidScalar {
    pub(crate) fn new(text: &str, problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self { text: text.to_owned(), problem: problem.into(), help: help.into() }
    }
}

/// Implements serde and schemars for a type that is written as one string.
macro_rules! string_scalar {
    ($type:ident, $format:literal, $pattern:expr, $description:literal) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string", "format": $format, "pattern": $pattern, "description": $description,
                })
            }
        }
    };
}
use string_scalar;
