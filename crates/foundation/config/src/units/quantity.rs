//! Quantities: spans of time, numbers of bytes, permission bits.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{InvalidScalar, string_scalar};

/// A span of time, written as in Go and Kubernetes: `250ms`, `30s`, `1m30s`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// `n` milliseconds.
    pub const fn from_millis(n: u64) -> Self {
        Self(std::time::Duration::from_millis(n))
    }
    /// `n` seconds.
    pub const fn from_secs(n: u64) -> Self {
        Self(std::time::Duration::from_secs(n))
    }
    /// Whether it is `0s`.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        value.0
    }
}

/// Units and their nanoseconds, the longest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];

impl FromStr for Duration {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        if text == "0" {
            return Ok(Self(std::time::Duration::ZERO));
        }
        let mut rest = text;
        let mut nanos: u64 = 0;
        loop {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
            let scale = DURATION_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
            let (Ok(number), Some(scale)) = (number.parse::<u64>(), scale) else {
                return Err(refuse_duration(text));
            };
            nanos = number
                .checked_mul(scale)
                .and_then(|n| nanos.checked_add(n))
                .ok_or_else(|| InvalidScalar::new(text, "is too long a time", "at most 5124095h"))?;
            rest = &rest[digits + letters..];
            if rest.is_empty() {
                return Ok(Self(std::time::Duration::from_nanos(nanos)));
            }
        }
    }
}

fn refuse_duration(text: &str) -> InvalidScalar {
    let number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if number && text.len() < 16 {
        return InvalidScalar::new(
            text,
            "has no unit",
            format!("write `{text}s` for seconds or `{text}ms` for milliseconds"),
        );
    }
    let help = "write whole numbers with a unit (us, ms, s, m, h), such as `250ms`, `30s` or `1m30s`";
    InvalidScalar::new(text, "is not a duration", help)
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if nanos < 1_000 {
            return f.write_str("0s");
        }
        for (unit, scale) in DURATION_UNITS {
            if nanos / scale > 0 {
                write!(f, "{}{unit}", nanos / scale)?;
                nanos %= scale;
            }
        }
        Ok(())
    }
}

string_scalar!(
    Duration,
    "go-duration",
    "^(0|([0-9]+(us|ms|s|m|h))+)$",
    "A span of time: whole numbers with a unit (us, ms, s, m, h), such as `250ms` or `1m30s`."
);

/// A number of bytes, written as in Kubernetes: `512`, `64KiB`, `16MiB`, `1GiB` (also `Ki`, `Mi`, `Gi`, `KB`, `MB`, `GB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }
    /// The size as `usize`, for buffers (the supported targets are 64-bit).
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let scale: Option<u64> = match &text[digits..] {
            "" | "B" => Some(1),
            "KiB" | "Ki" => Some(1 << 10),
            "MiB" | "Mi" => Some(1 << 20),
            "GiB" | "Gi" => Some(1 << 30),
            "KB" | "k" => Some(1_000),
            "MB" | "M" => Some(1_000_000),
            "GB" | "G" => Some(1_000_000_000),
            _ => None,
        };
        let (Some(scale), true) = (scale, digits > 0) else {
            let help = "write a whole number with a unit (B, KiB, MiB, GiB, KB, MB, GB), such as `16MiB`";
            return Err(InvalidScalar::new(text, "is not a size", help));
        };
        let bytes = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
        bytes.map(Self).ok_or_else(|| InvalidScalar::new(text, "is too large a size", "it must be below 16 EiB"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, scale) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= scale && self.0.is_multiple_of(scale) {
                return write!(f, "{}{unit}", self.0 / scale);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as `16MiB`")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(n))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"], "format": "byte-size", "minimum": 0,
            "pattern": "^[0-9]+(B|[KMG]i?B|[KMG]i|[kMG])?$",
            "description": "A number of bytes: a whole number with a unit (B, KiB, MiB, GiB, KB, MB, GB), such as `16MiB`.",
        })
    }
}

/// Permission bits of a file, written in octal and quoted: `\"0400\"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let form = (3..=4).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        let mode = form.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| {
            let help = "write three or four octal digits in quotes, at most \"0777\", such as \"0400\"";
            InvalidScalar::new(text, "is not a file mode", help)
        })
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

string_scalar!(FileMode, "file-mode", "^0?[0-7]{3}$", "Permission bits in octal, in quotes: \"0400\".");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let rows: &[(&str, Option<u64>, &str)] = &[
            ("0", Some(0), "0s"),
            ("0s", Some(0), "0s"),
            ("250us", Some(250), "250us"),
            ("250ms", Some(250_000), "250ms"),
            ("30s", Some(30_000_000), "30s"),
            ("90s", Some(90_000_000), "1m30s"),
            ("1m30s", Some(90_000_000), "1m30s"),
            ("1h0m5ms", Some(3_600_005_000), "1h5ms"),
            ("", None, "is not a duration"),
            ("30", None, "has no unit; write `30s`"),
            ("s", None, "is not a duration"),
            ("1.5s", None, "is not a duration"),
            ("-1s", None, "is not a duration"),
            ("+1s", None, "is not a duration"),
            ("1s ", None, "is not a duration"),
            ("1d", None, "is not a duration"),
            ("1mss", None, "is not a duration"),
            ("5é", None, "is not a duration"),
            ("99999999999h", None, "is too long a time"),
        ];
        for (text, micros, shown) in rows {
            match (text.parse::<Duration>(), micros) {
                (Ok(value), Some(micros)) => {
                    assert_eq!(value.0.as_micros(), u128::from(*micros), "{text}");
                    assert_eq!(value.to_string(), *shown, "{text}");
                }
                (Err(error), None) => assert!(error.to_string().contains(shown), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn sizes() {
        let rows: &[(&str, Option<u64>, &str)] = &[
            ("0", Some(0), "0B"),
            ("512", Some(512), "512B"),
            ("512B", Some(512), "512B"),
            ("64KiB", Some(65_536), "64KiB"),
            ("1Ki", Some(1024), "1KiB"),
            ("1KB", Some(1000), "1000B"),
            ("1k", Some(1000), "1000B"),
            ("16MiB", Some(16 << 20), "16MiB"),
            ("2048MiB", Some(2 << 30), "2GiB"),
            ("", None, "is not a size"),
            ("MiB", None, "is not a size"),
            ("1.5MiB", None, "is not a size"),
            ("16 MiB", None, "is not a size"),
            ("16mib", None, "is not a size"),
            ("-1", None, "is not a size"),
            ("99999999999GiB", None, "is too large a size"),
            ("99999999999999999999", None, "is too large a size"),
        ];
        for (text, bytes, shown) in rows {
            match (text.parse::<ByteSize>(), bytes) {
                (Ok(value), Some(bytes)) => {
                    assert_eq!(value.0, *bytes, "{text}");
                    assert_eq!(value.to_string(), *shown, "{text}");
                }
                (Err(error), None) => assert!(error.to_string().contains(shown), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn file_modes() {
        for (text, mode) in [("400", 0o400), ("0400", 0o400), ("0777", 0o777), ("000", 0)] {
            assert_eq!(text.parse(), Ok(FileMode(mode)), "{text}");
        }
        for text in ["", "4", "0o400", "1777", "+40", "0800", "04000"] {
            assert!(text.parse::<FileMode>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn duration_round_trip(micros in 0u64..18_446_744_073_709_551) {
            let value = Duration(std::time::Duration::from_micros(micros));
            proptest::prop_assert_eq!(value.to_string().parse::<Duration>(), Ok(value));
        }

        #[test]
        fn size_round_trip(bytes: u64) {
            let value = ByteSize(bytes);
            proptest::prop_assert_eq!(value.to_string().parse::<ByteSize>(), Ok(value));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = (text.parse::<Duration>(), text.parse::<ByteSize>(), text.parse::<FileMode>());
        }
    }
}
