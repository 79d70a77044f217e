//! Keeps web pages out of the admin API.
//!
//! In: the head of a request. Out: a refusal, or nothing. Promise: a page from another
//! site can neither change state (it sends `Origin` or `Sec-Fetch-Site`) nor read through
//! a name that it makes point to loopback (DNS rebinding: `Host` is then that name).

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Version, header};

/// Why a request is refused, if it is. `named` says that the server can be reached by a host name, so over TCP.
pub(super) fn refuse(request: &Parts, named: bool) -> Option<(StatusCode, &'static str)> {
    const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
    let host = match host(request) {
        Ok(host) => host,
        Err(why) => return Some((StatusCode::BAD_REQUEST, why)),
    };
    if named && host.as_deref().is_some_and(|host| !is_local(host)) {
        return Some((FORBIDDEN, "the Host header must be an IP address or localhost\n"));
    }
    if matches!(request.method, Method::GET | Method::HEAD) {
        return None;
    }
    if let Some(site) = one(&request.headers, "sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return Some((FORBIDDEN, "cross-site requests may not change anything\n"));
    }
    if request.headers.contains_key(header::ORIGIN) {
        let origin = one(&request.headers, "origin").and_then(|origin| origin.split_once("://"));
        let authority = origin.map(|(_, authority)| authority);
        let same = authority.is_some() && authority == one(&request.headers, "host");
        if !same || !authority.is_some_and(|authority| is_local(hostname(authority))) {
            return Some((FORBIDDEN, "cross-origin requests may not change anything\n"));
        }
    }
    None
}

/// Whether an answer that goes on is refused: another site's page could not read it, but could take up the few there are.
pub(super) fn refuse_stream(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

/// The host that the request names, without its port.
fn host(request: &Parts) -> Result<Option<String>, &'static str> {
    let mut values = request.headers.get_all(header::HOST).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err("more than one Host header\n");
    }
    let authority = match (request.uri.authority(), value) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(value)) => value.to_str().map_err(|_| "the Host header is not text\n")?,
        // HTTP/1.0 has no Host header, and no browser speaks it.
        (None, None) if request.version == Version::HTTP_10 => return Ok(None),
        (None, None) => return Err("no Host header\n"),
    };
    // An empty Host comes from clients on unix sockets.
    if authority.is_empty() {
        return Ok(Some(String::new()));
    }
    authority.parse::<Authority>().map_err(|_| "the Host header is malformed\n")?;
    Ok(Some(hostname(authority).to_owned()))
}

fn hostname(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    }
}

/// Whether no DNS server can have a say in where the name leads.
fn is_local(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    host.parse::<std::net::IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_foreign_pages_are_refused() {
        type Headers = &'static [(&'static str, &'static str)];
        const LOCAL: (&str, &str) = ("host", "127.0.0.1:15000");
        let rows: [(&str, &str, Headers, Option<u16>); 21] = [
            ("plain get", "GET", &[LOCAL], None),
            ("by name", "GET", &[("host", "localhost:15000")], None),
            ("by a name under localhost", "GET", &[("host", "app.localhost")], None),
            ("by v6", "GET", &[("host", "[::1]:15000")], None),
            ("rebound name", "GET", &[("host", "evil.example:15000")], Some(403)),
            ("a name that begins like ours", "GET", &[("host", "localhost.evil.example")], Some(403)),
            ("no address", "GET", &[("host", "127.0.0.1.evil.example")], Some(403)),
            ("no host", "GET", &[], Some(400)),
            ("empty host", "GET", &[("host", "")], Some(403)),
            ("two hosts", "GET", &[LOCAL, ("host", "evil.example")], Some(400)),
            ("malformed host", "GET", &[("host", "a b")], Some(400)),
            ("a link on a foreign page may read", "GET", &[LOCAL, ("sec-fetch-site", "cross-site")], None),
            ("curl", "POST", &[LOCAL], None),
            (
                "own page",
                "POST",
                &[LOCAL, ("origin", "http://127.0.0.1:15000"), ("sec-fetch-site", "same-origin")],
                None,
            ),
            ("typed by the user", "POST", &[LOCAL, ("sec-fetch-site", "none")], None),
            ("foreign page", "POST", &[LOCAL, ("origin", "https://evil.example")], Some(403)),
            ("sandboxed page", "POST", &[LOCAL, ("origin", "null")], Some(403)),
            ("another port of this machine", "POST", &[LOCAL, ("origin", "http://127.0.0.1:8080")], Some(403)),
            ("cross-site without origin", "POST", &[LOCAL, ("sec-fetch-site", "cross-site")], Some(403)),
            ("same site is not same origin", "PUT", &[LOCAL, ("sec-fetch-site", "same-site")], Some(403)),
            (
                "rebound name with its own origin",
                "POST",
                &[("host", "evil.example"), ("origin", "http://evil.example")],
                Some(403),
            ),
        ];
        for (name, method, headers, expected) in rows {
            let mut request = http::Request::builder().method(method).uri("/");
            for (key, value) in headers {
                request = request.header(*key, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(refuse(&parts, true).map(|(status, _)| status.as_u16()), expected, "{name}");
        }
    }

    #[test]
    fn on_a_unix_socket_any_host_may_be_named() {
        for host in ["", "admin", "localhost"] {
            let (parts, ()) = http::Request::get("/").header("host", host).body(()).unwrap().into_parts();
            assert_eq!(refuse(&parts, false), None, "{host:?}");
        }
    }
}
