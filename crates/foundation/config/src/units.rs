//! Scalars of the config that carry a unit or a form.
//!
//! In: a YAML scalar. Out: a value that cannot be malformed. Promise: parser, JSON
//! Schema (`format`, `pattern`) and printed form agree, because they stand side by side.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a scalar was refused: what is wrong with it and what is allowed, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidScalar(pub String);

/// Implements serde and schemars for a type that is written as one string.
macro_rules! string_scalar {
    ($type:ident, $schema_name:literal, $format:literal, $pattern:expr, $description:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $schema_name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string", "format": $format, "pattern": $pattern, "description": $description,
                })
            }
        }
    };
}

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
}

impl From<Duration> for std::time::Duration {
    fn from(value: Duration) -> Self {
        value.0
    }
}

const DURATION_UNITS: [(&str, u64); 5] =
    [("h", 3_600_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("m", 60_000_000_000), ("s", 1_000_000_000)];

impl FromStr for Duration {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let invalid = || {
            InvalidScalar(format!(
                "`{text}` is not a duration; write a whole number with a unit (us, ms, s, m, h), such as `250ms`, `30s` or `1m30s`"
            ))
        };
        if text == "0" {
            return Ok(Self(std::time::Duration::ZERO));
        }
        let mut rest = text;
        let mut nanos: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let (unit, scale) = DURATION_UNITS
                .into_iter()
                .find(|(unit, _)| rest.strip_prefix(unit).is_some_and(|r| !r.starts_with(|c: char| c.is_alphabetic())))
                .ok_or_else(invalid)?;
            rest = &rest[unit.len()..];
            nanos = number.checked_mul(scale).and_then(|n| nanos.checked_add(n)).ok_or_else(invalid)?;
        }
        if text.is_empty() { Err(invalid()) } else { Ok(Self(std::time::Duration::from_nanos(nanos))) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in
            [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)]
        {
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
    "Duration",
    "duration",
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
        let invalid = || {
            InvalidScalar(format!(
                "`{text}` is not a size; write a whole number with a unit (B, KiB, MiB, GiB, KB, MB, GB), such as `16MiB`"
            ))
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
        let scale: u64 = match &text[digits..] {
            "" | "B" => 1,
            "KiB" | "Ki" => 1 << 10,
            "MiB" | "Mi" => 1 << 20,
            "GiB" | "Gi" => 1 << 30,
            "KB" | "k" => 1_000,
            "MB" | "M" => 1_000_000,
            "GB" | "G" => 1_000_000_000,
            _ => return Err(invalid()),
        };
        number.checked_mul(scale).map(Self).ok_or_else(invalid)
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

/// The name of a listener, cluster, source, …: what metrics, logs and references use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | '_');
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let valid =
            (1..=63).contains(&text.len()) && text.chars().all(inner) && text.starts_with(edge) && text.ends_with(edge);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidScalar(format!(
                "`{text}` is not a name; use 1 to 63 of a-z, 0-9, `-`, `.` and `_`, beginning and ending with a letter or digit"
            )))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_scalar!(
    Name,
    "Name",
    "name",
    "^[a-z0-9]([-a-z0-9._]{0,61}[a-z0-9])?$",
    "A name: 1 to 63 of a-z, 0-9, `-`, `.` and `_`, beginning and ending with a letter or digit."
);

/// Where we listen: `IP:PORT`, or `unix:/path` for a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A TCP (or UDP) address.
    Ip(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        text.parse().map(Self::Ip).map_err(|_| {
            InvalidScalar(format!(
                "`{text}` is not an address to listen on; write `IP:PORT` such as `127.0.0.1:15000` or `[::]:15006`, or `unix:/path`"
            ))
        })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

string_scalar!(
    ListenAddress,
    "ListenAddress",
    "listen-address",
    "^(unix:/.+|.+:[0-9]{1,5})$",
    "An address to listen on: `IP:PORT`, or `unix:/path`."
);

/// A peer to connect to: `HOST:PORT`, where the host is a DNS name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let invalid = || {
            InvalidScalar(format!(
                "`{text}` is not an endpoint; write `HOST:PORT` such as `backend.shop:8080`, `10.0.0.7:80` or `[::1]:80`"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.len() <= 253
                    && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
            }
        };
        let host = bracketed.unwrap_or(host).to_owned();
        if valid { Ok(Self { host, port }) } else { Err(invalid()) }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

string_scalar!(HostPort, "HostPort", "host-port", "^.+:[0-9]{1,5}$", "A peer to connect to: `HOST:PORT`.");

/// A SPIFFE ID ([SPIFFE-ID], section 2): `spiffe://trust-domain/path`.
///
/// [SPIFFE-ID]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(String);

impl SpiffeId {
    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        let rest = &self.0["spiffe://".len()..];
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let invalid = |why: &str| {
            InvalidScalar(format!(
                "`{text}` is not a SPIFFE ID: {why}; write `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`"
            ))
        };
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| invalid("the scheme must be `spiffe://`"))?;
        if text.len() > 2048 {
            return Err(invalid("it is longer than 2048 bytes"));
        }
        let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
        domain.parse::<TrustDomain>().map_err(|_| invalid("its trust domain may hold only a-z, 0-9, `-`, `.`, `_`"))?;
        let segment = |s: &str| {
            !s.is_empty()
                && !matches!(s, "." | "..")
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        if path.is_some_and(|path| !path.split('/').all(segment)) {
            return Err(invalid(
                "each path segment holds letters, digits, `-`, `.`, `_`, and is neither empty nor a dot segment",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_scalar!(
    SpiffeId,
    "SpiffeId",
    "spiffe-id",
    "^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*$",
    "A SPIFFE ID: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`."
);

/// The name of a SPIFFE trust domain, such as `shop.example`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let valid = (1..=255).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_'));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidScalar(format!(
                "`{text}` is not a trust domain; use 1 to 255 of a-z, 0-9, `-`, `.` and `_`, such as `cluster.local`"
            )))
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_scalar!(
    TrustDomain,
    "TrustDomain",
    "trust-domain",
    "^[a-z0-9._-]{1,255}$",
    "A SPIFFE trust domain, such as `cluster.local`."
);

/// Permission bits of a file, written in octal and quoted: `\"0400\"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let octal = (3..=4).contains(&text.len()).then(|| u32::from_str_radix(text, 8).ok()).flatten();
        octal.filter(|mode| *mode <= 0o777).map(Self).ok_or_else(|| {
            InvalidScalar(format!(
                "`{text}` is not a file mode; write three or four octal digits in quotes, such as \"0400\""
            ))
        })
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

string_scalar!(FileMode, "FileMode", "file-mode", "^[0-7]{3,4}$", "Permission bits in octal, in quotes: \"0400\".");
