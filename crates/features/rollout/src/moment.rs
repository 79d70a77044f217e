//! Times as Kubernetes writes them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A time in whole seconds since the epoch; as text `2026-01-31T12:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// The time that a text tells, if it is one.
    pub fn read(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(at.unix_timestamp()).ok().map(Self)
    }

    /// Seconds from then until now; 0 when it is yet to come.
    pub fn age(self, now: Self) -> u64 {
        now.0.saturating_sub(self.0)
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = i64::try_from(self.0).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        let text = at.and_then(|at| at.format(&Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("9999-12-31T23:59:59Z"))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is no time")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_as_they_went() {
        for (seconds, text) in [(0, "1970-01-01T00:00:00Z"), (1_709_208_000, "2024-02-29T12:00:00Z")] {
            assert_eq!(Moment(seconds).to_string(), text);
            assert_eq!(Moment::read(text), Some(Moment(seconds)));
        }
        assert_eq!(Moment::read("2024-02-29T12:00:00.75+01:00"), Some(Moment(1_709_204_400)));
        for text in ["", "yesterday", "1969-12-31T23:59:59Z", "2024-02-30T00:00:00Z"] {
            assert_eq!(Moment::read(text), None, "{text}");
        }
    }
}
