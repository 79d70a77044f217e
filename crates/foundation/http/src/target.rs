//! Where a request goes: taken from its absolute URI, and put into HTTP/1.1's form.
//!
//! In: a request as callers write it. Out: scheme, host and port to connect to, a URL that
//! can be shown, and the request as it is sent.

use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};
use http_body_util::Full;

use crate::error::{Failure, Stage};

const AGENT: &str = concat!("outrigger/", env!("CARGO_PKG_VERSION"));

/// The server a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) tls: bool,
    /// Lower case, an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    /// The server of an absolute `http` or `https` URI.
    pub(crate) fn of(uri: &Uri) -> Result<Self, Failure> {
        let bad = |detail: &str| Failure::for_good(Stage::Request, detail);
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(_) => return Err(bad("the scheme must be http or https")),
            None => return Err(bad("the URL must be absolute, such as https://host/path")),
        };
        let authority = uri.authority().ok_or_else(|| bad("the URL names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("credentials do not belong in a URL; send them in a header"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(bad("the URL names no host"));
        }
        let port = match (authority.port(), tls) {
            (Some(port), _) if port.as_u16() == 0 => return Err(bad("the URL's port must not be 0")),
            (Some(port), _) => port.as_u16(),
            // `http` keeps an empty or oversized port in the authority but does not give it out.
            (None, _) if !authority.as_str().ends_with(authority.host()) => {
                return Err(bad("the URL's port must be a number from 1 to 65535"));
            }
            (None, true) => 443,
            (None, false) => 80,
        };
        Ok(Self { tls, host, port })
    }

    /// What goes into the header `Host`: without the port where it is the scheme's own.
    fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// A URL fit to be shown: without credentials and query.
pub(crate) fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match uri.scheme_str() {
        Some(scheme) => format!("{scheme}://{host}{}", uri.path()),
        None => format!("{host}{}", uri.path()),
    }
}

/// The request as it is sent: the path alone in the first line, `Host` and `User-Agent` set.
pub(crate) fn prepare(request: Request<Bytes>, target: &Target) -> Result<Request<Full<Bytes>>, Failure> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Failure::for_good(Stage::Request, "CONNECT is not supported"));
    }
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    if !parts.headers.contains_key(HOST) {
        let host = HeaderValue::try_from(target.host_header());
        let host = host.map_err(|_| Failure::for_good(Stage::Request, "the URL's host is no header value"))?;
        parts.headers.insert(HOST, host);
    }
    parts.headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    Ok(Request::from_parts(parts, Full::new(body)))
}

/// Whether doing it twice is as good as once ([RFC 9110], section 9.2.2).
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2
pub(crate) fn is_idempotent(method: &Method) -> bool {
    method.is_idempotent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let rows = [
            ("http://a/", (false, "a", 80), "a"),
            ("https://A.example", (true, "a.example", 443), "a.example"),
            ("https://a:80/x", (true, "a", 80), "a:80"),
            ("http://[::1]:8200/v1?list=true", (false, "::1", 8200), "[::1]:8200"),
            ("http://[fe80::1]/", (false, "fe80::1", 80), "[fe80::1]"),
            ("http://10.0.0.1:80/", (false, "10.0.0.1", 80), "10.0.0.1"),
        ];
        for (uri, (tls, host, port), header) in rows {
            let target = Target::of(&uri.parse().unwrap()).unwrap();
            assert_eq!((target.tls, target.host.as_str(), target.port), (tls, host, port), "{uri}");
            assert_eq!(target.host_header(), header, "{uri}");
        }
    }

    #[test]
    fn urls_that_cannot_be_used_say_why() {
        let rows = [
            ("/only/a/path", "absolute"),
            ("ftp://a/", "http or https"),
            ("http://user:secret@a/", "credentials"),
            ("http://a:0/", "port"),
            ("http://a:/", "port"),
        ];
        for (uri, why) in rows {
            let failure = Target::of(&uri.parse().unwrap()).unwrap_err();
            assert!(failure.detail.contains(why), "{uri}: {}", failure.detail);
            assert!(!failure.detail.contains("secret") && !failure.retryable);
        }
    }

    #[test]
    fn shown_urls_hold_no_secret() {
        let uri = "https://user:secret@vault:8200/v1/kv?token=secret".parse().unwrap();
        assert_eq!(shown(&uri), "https://vault:8200/v1/kv");
    }

    #[test]
    fn a_prepared_request_is_in_origin_form() {
        let request = Request::get("http://A:81/p?q=1").body(Bytes::new()).unwrap();
        let target = Target::of(request.uri()).unwrap();
        let request = prepare(request, &target).unwrap();
        assert_eq!(request.uri().to_string(), "/p?q=1");
        assert_eq!(request.headers()[HOST], "a:81");
        assert!(request.headers()[USER_AGENT].to_str().unwrap().starts_with("outrigger/"));

        let own = Request::get("http://a").header(USER_AGENT, "x").header(HOST, "y").body(Bytes::new()).unwrap();
        let target = Target::of(own.uri()).unwrap();
        let own = prepare(own, &target).unwrap();
        assert_eq!(
            (own.uri().to_string().as_str(), &own.headers()[HOST], &own.headers()[USER_AGENT]),
            ("/", &HeaderValue::from_static("y"), &HeaderValue::from_static("x"))
        );
    }
}
