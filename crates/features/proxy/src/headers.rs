//! Which header fields pass a proxy ([RFC 9110], sections 7.6.1 and 5.3).
//!
//! In: the headers of a message. Out: the same without those that belong to one
//! connection. Promise: a field that `Connection` names is removed too, and the identity
//! of a peer is only ever told by us.
//!
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};

/// Who called us, as Envoy tells it.
pub(crate) const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Whether a client asks for another protocol that it cannot do without. HTTP/2 and TLS are offers a server is free to
/// ignore ([RFC 9110], 7.8), and some clients make them with every request.
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub(crate) fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        && tokens(headers, UPGRADE).any(|protocol| {
            let name = protocol.split('/').next().unwrap_or_default();
            !name.eq_ignore_ascii_case("h2c") && !name.eq_ignore_ascii_case("tls")
        })
}

/// What is wrong with how an endpoint says where its response ends; mends what can be read in one way only. The
/// second value is whether the connection may carry another request.
pub(crate) fn settle_framing(headers: &mut HeaderMap) -> Result<bool, &'static str> {
    let mut keep = true;
    if let Some(coding) = headers.get(TRANSFER_ENCODING) {
        if headers.get_all(TRANSFER_ENCODING).iter().count() > 1 || !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        {
            return Err("its Transfer-Encoding is not `chunked`");
        }
        // The coding decides ([RFC 9112], 6.3); the length must not travel on.
        keep = headers.remove(CONTENT_LENGTH).is_none();
    }
    if headers.contains_key(CONTENT_LENGTH) && headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
        // The library has refused lengths that differ; of equal ones we pass on one.
        if let Some(length) = headers.get(CONTENT_LENGTH).cloned() {
            headers.insert(CONTENT_LENGTH, length);
        }
    }
    Ok(keep)
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes what belongs to the connection a message came on.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have no `Connection` at all, or one that names only itself.
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, CONNECTION)
            .filter(|name| !matches!(*name, "close" | "keep-alive"))
            .filter_map(|name| name.parse::<HeaderName>().ok())
            // A client must not make us drop fields that say where the message ends or goes.
            .filter(|name| !matches!(name.as_str(), "host" | "content-length" | "x-forwarded-client-cert"))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if headers.contains_key(TE) {
        let trailers = headers.get_all(TE).iter().any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
        headers.remove(TE);
        // The one value that may pass, for we pass trailers on ([RFC 9110], 10.1.4).
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    // One look over the few fields there are costs less than a lookup for each that might be.
    if headers.keys().any(is_hop_by_hop) {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS] {
            headers.remove(name);
        }
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "http2-settings")
}

/// Replaces whatever a client claims about its identity by what its certificate says.
pub(crate) fn tell_peer(headers: &mut HeaderMap, peer: Option<&HeaderValue>) {
    match peer {
        Some(value) => {
            headers.insert(FORWARDED_CLIENT_CERT, value.clone());
        }
        None => {
            headers.remove(FORWARDED_CLIENT_CERT);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap())).collect()
    }

    #[test]
    fn connection_fields_do_not_pass() {
        for (name, given, expected) in [
            ("nothing to do", &[("a", "1")][..], &[("a", "1")][..]),
            ("named by connection", &[("connection", "close, X-Hop"), ("x-hop", "1"), ("a", "1")], &[("a", "1")]),
            ("te trailers stays", &[("te", "trailers")], &[("te", "trailers")]),
            ("other te goes", &[("te", "gzip")], &[]),
            ("classics", &[("keep-alive", "5"), ("proxy-connection", "x"), ("upgrade", "h2c")], &[]),
            (
                "framing cannot be named away",
                &[("connection", "content-length"), ("content-length", "3")],
                &[("content-length", "3")],
            ),
        ] {
            let mut map = headers(given);
            strip_hop_by_hop(&mut map);
            assert_eq!(map, headers(expected), "{name}");
        }
    }

    #[test]
    fn offers_to_change_the_protocol_may_be_ignored() {
        for (name, fields, asks) in [
            ("websocket", &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")][..], true),
            ("not nominated", &[("upgrade", "websocket")], false),
            ("h2c", &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")], false),
            ("tls", &[("connection", "upgrade"), ("upgrade", "TLS/1.2, HTTP/1.1")], true),
            ("both", &[("connection", "upgrade"), ("upgrade", "h2c, websocket")], true),
            ("none", &[("connection", "close")], false),
        ] {
            assert_eq!(asks_for_upgrade(&headers(fields)), asks, "{name}");
        }
    }

    #[test]
    fn a_response_says_once_where_it_ends() {
        for (name, given, expected) in [
            ("length", &[("content-length", "3")][..], Ok((&[("content-length", "3")][..], true))),
            (
                "twice the same",
                &[("content-length", "3"), ("content-length", "3")],
                Ok((&[("content-length", "3")], true)),
            ),
            (
                "both",
                &[("content-length", "3"), ("transfer-encoding", "chunked")],
                Ok((&[("transfer-encoding", "chunked")], false)),
            ),
            ("a coding we cannot undo", &[("transfer-encoding", "gzip, chunked")], Err(())),
            ("coded twice", &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Err(())),
        ] {
            let mut map: HeaderMap = HeaderMap::new();
            for (field, value) in given {
                map.append(field.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            let outcome = settle_framing(&mut map).map(|keep| (map, keep)).map_err(|_| ());
            assert_eq!(outcome, expected.map(|(fields, keep)| (headers(fields), keep)), "{name}");
        }
    }

    #[test]
    fn a_forged_identity_is_replaced() {
        let mut map = headers(&[("x-forwarded-client-cert", "URI=spiffe://forged/a")]);
        tell_peer(&mut map, Some(&HeaderValue::from_static("URI=spiffe://real/b")));
        assert_eq!(map[FORWARDED_CLIENT_CERT], "URI=spiffe://real/b");
        tell_peer(&mut map, None);
        assert!(map.is_empty());
    }

    proptest! {
        #[test]
        fn no_named_field_survives(names in prop::collection::vec("[a-z]{1,6}", 0..5), value in "[a-z, ]{0,20}") {
            let mut map = HeaderMap::new();
            for name in &names {
                map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
            }
            map.insert(CONNECTION, value.parse().unwrap());
            strip_hop_by_hop(&mut map);
            for named in value.split(',').map(str::trim).filter(|name| *name != "host" && *name != "te") {
                prop_assert!(named.is_empty() || named.contains(' ') || !map.contains_key(named));
            }
        }
    }
}
