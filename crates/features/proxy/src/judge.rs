//! What a request is for, told in one way only.
//!
//! In: a request's head as it came. Out: the same in origin form, with one host. Promise:
//! what two readers may understand differently is refused before any rule looks at it, and
//! what is forwarded is what was judged.

use outrigger_wire::h1::{Target, check_target};
use outrigger_wire::head::{FieldId, Head, Method, Version};
use outrigger_wire::path::{self, PathPolicy};

use crate::error::Reason;

/// Judges a request's target, and makes an absolute one an origin one ([RFC 9112], 3.2).
///
/// [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112
pub(crate) fn target(head: &mut Head, policy: &PathPolicy) -> Result<(), Reason> {
    if !head.target().starts_with('/') && head.target() != "*" {
        to_origin_form(head)?;
    }
    one_host(head)?;
    // `*` is what OPTIONS may ask for; only a route for every path takes it.
    if head.target() == "*" && head.method() != Method::Options {
        return Err(Reason::BadRequest("the target is neither a path nor a URI"));
    }
    let mut normal = String::new();
    match path::normalise(policy, head.target(), &mut normal) {
        Ok(false) => {}
        Ok(true) => head.set_target(&normal),
        Err(error) => return Err(Reason::BadRequest(error.as_str())),
    }
    Ok(())
}

/// Judges the target of a CONNECT; its host, without brackets, and port ([RFC 9110], 9.3.6).
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub(crate) fn authority(head: &Head) -> Result<(String, u16), Reason> {
    const NONE: Reason = Reason::BadRequest("CONNECT needs a host and a port");
    if head.version() != Version::Http2 {
        one_host(head)?;
    }
    let Ok(Target::Authority(authority)) = check_target(head) else { return Err(NONE) };
    let (host, port) = authority.rsplit_once(':').ok_or(NONE)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match port.parse() {
        Ok(0) | Err(_) => Err(NONE),
        Ok(_) if host.is_empty() => Err(NONE),
        Ok(port) => Ok((host.to_owned(), port)),
    }
}

/// The path, without the query.
pub(crate) fn path(head: &Head) -> &str {
    let target = head.target();
    let target = match target.find("://") {
        // Told before it was judged, for the access log.
        Some(scheme) if !target.starts_with('/') => {
            let behind = &target[scheme + 3..];
            behind.find('/').map_or("/", |slash| &behind[slash..])
        }
        _ => target,
    };
    target.split('?').next().unwrap_or_default()
}

fn one_host(head: &Head) -> Result<(), Reason> {
    let mut hosts = head.get_all(FieldId::Host);
    let first = hosts.next();
    if hosts.next().is_some() || (first.is_none() && head.version() != Version::Http10) {
        return Err(Reason::BadRequest("none or more than one Host"));
    }
    let host = first.map_or(Ok(""), |host| str::from_utf8(host).map_err(|_| Reason::BadRequest("invalid Host")))?;
    if host.bytes().any(|byte| matches!(byte, b'/' | b'@' | b'?' | b'#' | b' ' | b',' | b'\\') || byte >= 0x80) {
        return Err(Reason::BadRequest("invalid Host"));
    }
    Ok(())
}

/// Makes an absolute target an origin one, and its authority the `Host` ([RFC 9112], 3.2.2).
fn to_origin_form(head: &mut Head) -> Result<(), Reason> {
    const NEITHER: Reason = Reason::BadRequest("the target is neither a path nor a URI");
    let target = head.target();
    let (scheme, rest) = target.split_once("://").ok_or(NEITHER)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(NEITHER);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains('@') {
        return Err(Reason::BadRequest("invalid authority"));
    }
    let authority = authority.to_owned();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    // A request without any Host, or with several, is wrong even so.
    if head.get_all(FieldId::Host).count() > 1 || (!head.contains(FieldId::Host) && head.version() == Version::Http11) {
        return Err(Reason::BadRequest("none or more than one Host"));
    }
    head.set("Host", authority.as_bytes());
    head.set_target(&path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use outrigger_traffic::route::Request;

    use super::*;

    fn request(target: &str, hosts: &[&str]) -> Head {
        let mut head = Head::default();
        head.set_version(Version::Http11);
        head.set_method("GET");
        head.set_target(target);
        for host in hosts {
            head.push("Host", host.as_bytes());
        }
        head
    }

    #[test]
    fn the_target_is_told_in_one_form() {
        for (given, hosts, expected) in [
            ("/a?b=/../c", &["shop"][..], Ok(("shop", "/a", "/a?b=/../c"))),
            ("http://other:81/x", &["shop"], Ok(("other", "/x", "/x"))),
            ("HTTP://other", &["shop"], Ok(("other", "/", "/"))),
            ("http://other?q", &["shop"], Ok(("other", "/", "/?q"))),
            ("http://[::1]:8080/x", &["shop"], Ok(("[::1]", "/x", "/x"))),
            ("http://user@other/", &["shop"], Err("authority")),
            ("ftp://other/", &["shop"], Err("neither")),
            ("*", &["shop"], Err("neither")),
            ("a/b", &["shop"], Err("neither")),
            ("/a/../b%41", &["shop"], Ok(("shop", "/bA", "/bA"))),
            ("/../b", &["shop"], Err("above the root")),
            ("/a/..;x/b", &["shop"], Err("dots")),
            ("http://other/a/..", &["shop"], Ok(("other", "/", "/"))),
            ("/", &[], Err("Host")),
            ("/", &["a", "b"], Err("Host")),
            ("http://other/", &["a", "b"], Err("Host")),
            ("/", &["a b"], Err("Host")),
            ("/", &["a@b"], Err("Host")),
            ("/", &["[::1]"], Ok(("[::1]", "/", "/"))),
            ("/", &["[::1]:80"], Ok(("[::1]", "/", "/"))),
        ] {
            let mut head = request(given, hosts);
            match (target(&mut head, &PathPolicy::default()), expected) {
                (Ok(()), Ok(expected)) => {
                    assert_eq!((Request::of(&head, None).host, path(&head), head.target()), expected, "{given}")
                }
                (Err(reason), Err(why)) => assert!(reason.to_string().contains(why), "{given}: {reason}"),
                (got, _) => panic!("{given} {hosts:?}: {got:?}"),
            }
        }
    }
}
