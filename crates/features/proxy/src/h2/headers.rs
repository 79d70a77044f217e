//! Heads of HTTP/2 messages as our own, and back ([RFC 9113], section 8.3).
//!
//! Promise: `:authority` and `Host` never disagree; cookies that were split are one field
//! again; what HTTP/2 forbids is not sent. Where the other side is an Outrigger too (`kin`),
//! names of fields keep their case.
//!
//! [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113

use std::sync::LazyLock;

use h2::ext::Protocol;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use outrigger_wire::h1;
use outrigger_wire::head::{FieldId, FieldRef, Head, Version};

use crate::error::Reason;
use crate::h2::names;
use crate::upstream::Ask;

/// Makes a head of an HTTP/2 request.
pub(crate) fn from_request(request: &Request<()>, head: &mut Head, kin: bool) -> Result<(), Reason> {
    head.clear();
    head.set_version(Version::Http2);
    head.set_method(request.method().as_str());
    let uri = request.uri();
    if request.method() == Method::CONNECT && uri.path_and_query().is_none_or(|path| path.as_str().is_empty()) {
        head.set_target(uri.authority().map_or("", Authority::as_str));
    } else {
        head.set_target(uri.path_and_query().map_or("/", PathAndQuery::as_str));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let own = hosts.next();
    if hosts.next().is_some() {
        return Err(Reason::BadRequest("more than one Host"));
    }
    match (uri.authority(), own) {
        (Some(authority), Some(host)) if host.as_bytes() != authority.as_str().as_bytes() => {
            return Err(Reason::BadRequest("`:authority` and Host disagree"));
        }
        (Some(authority), _) => head.push("host", authority.as_str().as_bytes()),
        (None, Some(host)) => head.push("host", host.as_bytes()),
        (None, None) => {}
    }
    push_fields(request.headers(), head, true);
    if kin {
        names::restore(request.headers(), head);
    }
    Ok(())
}

/// Makes a head of an HTTP/2 response.
pub(crate) fn from_response(response: &Response<impl Sized>, head: &mut Head, kin: bool) {
    head.clear();
    head.set_version(Version::Http2);
    head.set_status(response.status().as_u16());
    push_fields(response.headers(), head, false);
    if kin {
        names::restore(response.headers(), head);
    }
}

/// Removes what trailers must not hold.
pub(crate) fn clean_trailers(map: &mut HeaderMap) {
    let is_forbidden = |(name, value): (&HeaderName, &HeaderValue)| {
        let name = name.as_str();
        let (id, value) = (FieldId::of(name.as_bytes()), value.as_bytes());
        h1::is_forbidden_trailer(FieldRef { id, name, value })
    };
    while let Some(name) = map.iter().find(|field| is_forbidden(*field)).map(|(name, _)| name.clone()) {
        map.remove(name);
    }
}

/// Makes a head of trailers.
pub(crate) fn from_header_map(map: &HeaderMap, head: &mut Head) {
    head.clear();
    push_fields(map, head, true);
    head.retain(|field| !h1::is_forbidden_trailer(field));
}

fn push_fields(map: &HeaderMap, head: &mut Head, is_request: bool) {
    for (name, value) in map {
        if is_request && (name == header::HOST || name == header::COOKIE) {
            continue;
        }
        head.push(name.as_str(), value.as_bytes());
    }
    if is_request && let Some(first) = map.get(header::COOKIE) {
        let mut cookies = first.as_bytes().to_vec();
        for more in map.get_all(header::COOKIE).iter().skip(1) {
            cookies.extend_from_slice(b"; ");
            cookies.extend_from_slice(more.as_bytes());
        }
        head.push("cookie", &cookies);
    }
}

/// Makes an HTTP/2 request of a head. An upgrade becomes an extended CONNECT ([RFC 8441]).
///
/// [RFC 8441]: https://www.rfc-editor.org/rfc/rfc8441
pub(crate) fn to_request(head: &Head, secure: bool, ask: Ask, kin: bool) -> Result<Request<()>, Reason> {
    let bad = |_| Reason::BadRequest("the request cannot be said in HTTP/2");
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method_text().as_bytes()).map_err(|_| bad(()))?;
    let host = head.get(FieldId::Host).unwrap_or_default();
    let mut parts = http::uri::Parts::default();
    if ask == Ask::Connect {
        parts.authority = Some(Authority::try_from(head.target()).map_err(|_| bad(()))?);
    } else {
        parts.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(Authority::try_from(host).map_err(|_| bad(()))?);
        parts.path_and_query = Some(PathAndQuery::try_from(head.target()).map_err(|_| bad(()))?);
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| bad(()))?;
    *request.version_mut() = http::Version::HTTP_2;
    put_fields(head, request.headers_mut());
    if ask == Ask::Upgrade {
        let protocol = head.get(FieldId::Upgrade).and_then(|protocol| str::from_utf8(protocol).ok()).ok_or(bad(()))?;
        request.extensions_mut().insert(Protocol::from(protocol));
        *request.method_mut() = Method::CONNECT;
        if kin {
            // HTTP/2 does without it ([RFC 8441], 5). Others may need it: Envoy asks its HTTP/1 endpoints with none but this.
            request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
        }
    }
    if kin {
        names::tell(head, request.headers_mut());
    }
    Ok(request)
}

/// Makes an HTTP/2 response of a head.
pub(crate) fn to_response(head: &Head, kin: bool) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.version_mut() = http::Version::HTTP_2;
    put_fields(head, response.headers_mut());
    if kin {
        names::tell(head, response.headers_mut());
    }
    response
}

/// Makes trailers of a head.
pub(crate) fn to_header_map(head: &Head) -> HeaderMap {
    let mut map = HeaderMap::new();
    put_fields(head, &mut map);
    map
}

fn put_fields(head: &Head, map: &mut HeaderMap) {
    map.reserve(head.len());
    for (id, name, value) in head.raw_fields() {
        // Fields of one connection belong to HTTP/1 ([RFC 9113], 8.2.2); the host is told in another way.
        if matches!(
            id,
            FieldId::Host
                | FieldId::TransferEncoding
                | FieldId::Connection
                | FieldId::Upgrade
                | FieldId::KeepAlive
                | FieldId::ProxyConnection
                | FieldId::Http2Settings
        ) {
            continue;
        }
        let known = NAMES.get(id as usize).cloned();
        let name = known.map_or_else(|| HeaderName::from_bytes(name), Ok);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
}

/// Names of fields that are known, by their numbers: nobody has to read them again.
static NAMES: LazyLock<Vec<HeaderName>> =
    LazyLock::new(|| FieldId::ALL.iter().map(|id| HeaderName::from_static(id.name())).collect());
