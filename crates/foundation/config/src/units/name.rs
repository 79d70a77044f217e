//! Names: of things in the config, of workloads, of trust domains.

use std::fmt;
use std::str::FromStr;

use super::{InvalidScalar, string_scalar};

/// The name of a listener, cluster, source, …: what metrics, logs and references use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// A default of ours.
    pub(crate) fn literal(text: &'static str) -> Self {
        Self(text.into())
    }

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
            Ok(Self(text.into()))
        } else {
            let help = "use 1 to 63 of a-z, 0-9, `-`, `.` and `_`, beginning and ending with a letter or digit";
            Err(InvalidScalar::new(text, "is not a name", help))
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
    "name",
    "^[a-z0-9]([-a-z0-9._]{0,61}[a-z0-9])?$",
    "A name: 1 to 63 of a-z, 0-9, `-`, `.` and `_`, beginning and ending with a letter or digit."
);

/// The name of SRV records ([RFC 2782]): `_SERVICE._PROTOCOL.DOMAIN`.
///
/// [RFC 2782]: https://www.rfc-editor.org/rfc/rfc2782
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SrvName(String);

impl SrvName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SrvName {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let labels: Vec<&str> = name.split('.').collect();
        let named = |index: usize| labels.get(index).is_some_and(|label| label.len() > 1 && label.starts_with('_'));
        if name.len() <= 253 && labels.len() > 2 && named(0) && named(1) && labels.iter().all(|one| label(one)) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        let help = "write `_SERVICE._PROTOCOL.DOMAIN` such as `_http._tcp.orders.shop.svc.cluster.local`";
        Err(InvalidScalar::new(text, "is not a name of SRV records", help))
    }
}

impl fmt::Display for SrvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_scalar!(
    SrvName,
    "srv-name",
    "^_[-_A-Za-z0-9]+\\._[-_A-Za-z0-9]+\\..+$",
    "A name of SRV records: `_SERVICE._PROTOCOL.DOMAIN`."
);

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
            let help = "write `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`";
            InvalidScalar::new(text, format!("is not a SPIFFE ID: {why}"), help)
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
    "spiffe-id",
    "^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*$",
    "A SPIFFE ID: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`."
);

/// SPIFFE IDs that are expected: one, or with `*` for a segment many of a kind. The last segment's `*` stands for all
/// that may follow, any other for exactly one segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffePattern(String);

impl SpiffePattern {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        let rest = &self.0["spiffe://".len()..];
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }

    /// Whether it stands for this ID.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        self.stands_for(id.as_str())
    }

    /// The same for the text of an ID that is known to be one.
    pub fn stands_for(&self, id: &str) -> bool {
        if !self.0.contains('*') {
            return self.0 == id;
        }
        let mut segments = id.split('/');
        let mut expected = self.0.split('/').peekable();
        while let Some(segment) = expected.next() {
            let Some(found) = segments.next() else { return false };
            if segment == "*" && expected.peek().is_none() {
                return true;
            }
            if segment != "*" && segment != found {
                return false;
            }
        }
        segments.next().is_none()
    }
}

impl From<SpiffeId> for SpiffePattern {
    fn from(id: SpiffeId) -> Self {
        Self(id.0)
    }
}

impl FromStr for SpiffePattern {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        // What a star stands for is a segment, and the rest is an ID.
        let path = text.strip_prefix("spiffe://").and_then(|rest| rest.find('/')).map(|at| at + "spiffe://".len());
        let (domain, path) = text.split_at(path.unwrap_or(text.len()));
        let segments: Vec<&str> = path.split('/').map(|segment| if segment == "*" { "x" } else { segment }).collect();
        match format!("{domain}{}", segments.join("/")).parse::<SpiffeId>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) if path.contains('*') => {
                let help = "write `*` as a whole segment, such as `spiffe://TRUST-DOMAIN/ns/NAMESPACE/*`";
                Err(InvalidScalar::new(text, "is no pattern of SPIFFE IDs", help))
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_scalar!(
    SpiffePattern,
    "spiffe-pattern",
    "^spiffe://[a-z0-9._-]{1,255}(/([A-Za-z0-9._-]+|[*]))*$",
    "A SPIFFE ID, such as `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, or with `*` for a segment many of a kind: the last segment's stands for all that may follow, as in `spiffe://TRUST-DOMAIN/ns/NAMESPACE/*`."
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
            let help = "use 1 to 255 of a-z, 0-9, `-`, `.` and `_`, such as `cluster.local`";
            Err(InvalidScalar::new(text, "is not a trust domain", help))
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

string_scalar!(TrustDomain, "trust-domain", "^[a-z0-9._-]{1,255}$", "A SPIFFE trust domain, such as `cluster.local`.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for text in ["a", "to-backend", "v1.2_x", &"x".repeat(63)] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        for text in ["", "A", "-a", "a-", "a b", "é", "a/b", &"x".repeat(64)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn spiffe_patterns() {
        let rows = [
            ("spiffe://td/ns/shop/sa/a", &["ns/shop/sa/a"][..], &["ns/shop/sa/b", "ns/shop/sa/a/x", "ns/shop/sa"][..]),
            (
                "spiffe://td/ns/shop/*",
                &["ns/shop/sa/a", "ns/shop/x"],
                &["ns/shop", "ns/shopping/sa/a", "ns/other/sa/a"],
            ),
            ("spiffe://td/ns/*/sa/a", &["ns/shop/sa/a", "ns/x/sa/a"], &["ns/shop/sa/b", "ns/a/b/sa/a", "ns/sa/a"]),
            ("spiffe://td/*", &["x", "ns/shop/sa/a"], &[]),
        ];
        for (pattern, matching, others) in rows {
            let pattern: SpiffePattern = pattern.parse().unwrap();
            let matches = |path: &&str| pattern.matches(&format!("spiffe://td/{path}").parse().unwrap());
            assert!(matching.iter().all(matches), "{pattern}");
            assert!(!others.iter().any(matches), "{pattern}");
            assert!(!pattern.matches(&"spiffe://other/ns/shop/sa/a".parse().unwrap()), "{pattern}");
            assert!(!pattern.matches(&"spiffe://td".parse().unwrap()), "{pattern}");
        }
        for text in ["spiffe://*/x", "spiffe://td/ns/shop*", "spiffe://td/**", "spiffe://td/*/", "td/*"] {
            assert!(text.parse::<SpiffePattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn spiffe_ids() {
        let id: SpiffeId = "spiffe://shop.example/ns/shop/sa/frontend".parse().unwrap();
        assert_eq!(id.trust_domain(), "shop.example");
        assert_eq!("spiffe://shop.example".parse::<SpiffeId>().unwrap().trust_domain(), "shop.example");
        let rows = [
            ("https://shop.example/x", "scheme"),
            ("spiffe://", "trust domain"),
            ("spiffe://Shop/x", "trust domain"),
            ("spiffe://shop:80/x", "trust domain"),
            ("spiffe://shop/", "segment"),
            ("spiffe://shop/a//b", "segment"),
            ("spiffe://shop/a/../b", "segment"),
            ("spiffe://shop/a?b", "segment"),
        ];
        for (text, why) in rows {
            let error = text.parse::<SpiffeId>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
