//! What a request is for: the forms of its target, and the authority in force ([RFC 9112], 3.2).
//!
//! In: a head as it was read. Out: the target's form, taken apart, or why it is none. Promise:
//! one authority, checked to the byte, be it in the target or in `Host`; where both say one,
//! the target's holds, and `Host` must be right even so.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

use std::net::Ipv6Addr;

use memchr::memchr2;

use super::HeadError;
use crate::head::{FieldId, Head, Method, Version};

/// A request's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A path, and a query if there is one.
    Origin(&'a str),
    /// A URI.
    Absolute {
        /// Whether its scheme is `https`, else it is `http`.
        https: bool,
        /// The host, and a port if there is one.
        authority: &'a str,
        /// May be empty, or begin with the query: the path is `/` then.
        path_and_query: &'a str,
    },
    /// A host and a port, for `CONNECT`.
    Authority(&'a str),
    /// The server itself, for `OPTIONS`.
    Asterisk,
}

/// Takes a request's target apart.
///
/// # Errors
/// When it has no such form, or one that is not for the method; `user@` before a host is refused.
pub fn check_target(head: &Head) -> Result<Target<'_>, HeadError> {
    let target = head.target();
    if head.method() == Method::Connect {
        let has_port = target.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
        return if is_authority(target.as_bytes()) && has_port {
            Ok(Target::Authority(target))
        } else {
            Err(HeadError::BadAuthority)
        };
    }
    match target.as_bytes() {
        [b'/', ..] => Ok(Target::Origin(target)),
        b"*" if head.method() == Method::Options => Ok(Target::Asterisk),
        b"*" => Err(HeadError::TargetNotForMethod),
        _ => absolute(target),
    }
}

fn absolute(target: &str) -> Result<Target<'_>, HeadError> {
    let (scheme, rest) = target.split_once("://").ok_or(HeadError::BadTarget)?;
    let https = scheme.eq_ignore_ascii_case("https");
    if !https && !scheme.eq_ignore_ascii_case("http") {
        return Err(HeadError::BadTarget);
    }
    let end = memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len());
    let (authority, path_and_query) = rest.split_at(end);
    if authority.is_empty() || !is_authority(authority.as_bytes()) {
        return Err(HeadError::BadAuthority);
    }
    Ok(Target::Absolute { https, authority, path_and_query })
}

/// The authority in force ([RFC 9112], 3.2.2 and 3.2.3); `None` for an old client without `Host`, or an empty one.
///
/// # Errors
/// When `Host` is missing, repeated or wrong, or [`check_target`] refuses the target.
pub fn authority(head: &Head) -> Result<Option<&str>, HeadError> {
    let target = check_target(head)?;
    let mut hosts = head.get_all(FieldId::Host);
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HeadError::RepeatedHost),
        (None, None) if head.version() == Version::Http11 => return Err(HeadError::MissingHost),
        (None, None) => None,
        (Some(host), None) if is_authority(host) => str::from_utf8(host).ok().filter(|host| !host.is_empty()),
        (Some(_), None) => return Err(HeadError::BadHost),
    };
    Ok(match target {
        Target::Absolute { authority, .. } | Target::Authority(authority) => Some(authority),
        Target::Origin(_) | Target::Asterisk => host,
    })
}

/// Whether this is a host with or without a port ([RFC 3986], 3.2): a name, an IPv4 or a bracketed IPv6 address. Empty
/// is a name too. Escapes and commas, which the grammar has, are refused: some readers resolve or split them, others
/// do not.
///
/// [RFC 3986]: https://www.rfc-editor.org/rfc/rfc3986
pub fn is_authority(text: &[u8]) -> bool {
    if let Some(rest) = text.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let is_address = str::from_utf8(&rest[..end]).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok());
        return is_address && (rest.len() == end + 1 || rest[end + 1..].strip_prefix(b":").is_some_and(is_port));
    }
    let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
    let is_name = text[..end].iter().all(|byte| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=')
    });
    is_name && (end == text.len() || (end > 0 && is_port(&text[end + 1..])))
}

/// Digits up to 65535, or nothing, which the grammar allows.
fn is_port(text: &[u8]) -> bool {
    text.len() <= 5
        && text.iter().all(u8::is_ascii_digit)
        && text.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')) <= 65535
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, version: Version, hosts: &[&str]) -> Head {
        let mut head = Head::default();
        head.set_method(method);
        head.set_target(target);
        head.set_version(version);
        for host in hosts {
            head.push("Host", host.as_bytes());
        }
        head
    }

    #[test]
    fn hosts_and_ports() {
        for (text, expected) in [
            ("", true),
            ("shop", true),
            ("shop.example:8080", true),
            ("shop:", true),
            ("a_b~c", true),
            ("192.0.2.1:0", true),
            ("[::1]", true),
            ("[::1]:65535", true),
            ("[::ffff:192.0.2.1]:80", true),
            ("shop:65536", false),
            ("shop:123456", false),
            ("shop:8a", false),
            ("shop:+8", false),
            ("shop:80:80", false),
            (":80", false),
            ("::1", false),
            ("[::1", false),
            ("[::1]80", false),
            ("[::1]]", false),
            ("[shop]", false),
            ("[fe80::1%25eth0]", false),
            ("user@shop", false),
            ("shop/x", false),
            ("shop?x", false),
            ("shop#x", false),
            ("shop\\x", false),
            ("shop evil", false),
            ("shop,evil", false),
            ("sh%6fp", false),
            ("b\u{fc}ro", false),
        ] {
            assert_eq!(is_authority(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn forms_of_targets() {
        use HeadError::*;
        let uri = |https, authority, path_and_query| Ok(Target::Absolute { https, authority, path_and_query });
        for (method, target, expected) in [
            ("GET", "/a?b", Ok(Target::Origin("/a?b"))),
            ("GET", "//a", Ok(Target::Origin("//a"))),
            ("GET", "http://shop/a?b", uri(false, "shop", "/a?b")),
            ("GET", "HTTPS://shop:1", uri(true, "shop:1", "")),
            ("GET", "http://[::1]?b", uri(false, "[::1]", "?b")),
            ("OPTIONS", "*", Ok(Target::Asterisk)),
            ("OPTIONS", "http://shop", uri(false, "shop", "")),
            ("CONNECT", "shop:443", Ok(Target::Authority("shop:443"))),
            ("CONNECT", "[::1]:443", Ok(Target::Authority("[::1]:443"))),
            ("CONNECT", "shop", Err(BadAuthority)),
            ("CONNECT", "shop:", Err(BadAuthority)),
            ("CONNECT", "[::1]", Err(BadAuthority)),
            ("CONNECT", "/x", Err(BadAuthority)),
            ("CONNECT", "http://shop:443", Err(BadAuthority)),
            ("CONNECT", "user@shop:443", Err(BadAuthority)),
            ("GET", "*", Err(TargetNotForMethod)),
            ("GET", "shop:443", Err(BadTarget)),
            ("GET", "a/b", Err(BadTarget)),
            ("GET", "?a", Err(BadTarget)),
            ("GET", "", Err(BadTarget)),
            ("GET", "http:/shop", Err(BadTarget)),
            ("GET", "ftp://shop/", Err(BadTarget)),
            ("GET", "http://", Err(BadAuthority)),
            ("GET", "http:///x", Err(BadAuthority)),
            ("GET", "http://user:pass@shop/", Err(BadAuthority)),
        ] {
            assert_eq!(check_target(&head(method, target, Version::Http11, &[])), expected, "{method} {target}");
        }
    }

    #[test]
    fn one_authority_is_in_force() {
        use HeadError::*;
        use Version::{Http10, Http11};
        for (target, version, hosts, expected) in [
            ("/", Http11, &["shop:80"][..], Ok(Some("shop:80"))),
            ("/", Http11, &[""], Ok(None)),
            ("/", Http10, &[], Ok(None)),
            ("/", Http11, &[], Err(MissingHost)),
            ("/", Http11, &["a", "a"], Err(RepeatedHost)),
            ("/", Http10, &["a", "b"], Err(RepeatedHost)),
            ("/", Http11, &["a b"], Err(BadHost)),
            ("/", Http11, &["a, b"], Err(BadHost)),
            ("http://target/", Http11, &["shop"], Ok(Some("target"))),
            ("http://target/", Http10, &[], Ok(Some("target"))),
            ("http://target/", Http11, &[], Err(MissingHost)),
            ("http://target/", Http11, &["a", "b"], Err(RepeatedHost)),
            ("http://target/", Http11, &["a@b"], Err(BadHost)),
        ] {
            assert_eq!(authority(&head("GET", target, version, hosts)), expected, "{target} {version:?} {hosts:?}");
        }
    }
}
