//! The names of header fields as HTTP/1 had them, carried over HTTP/2 between two Outriggers.
//!
//! HTTP/2 writes names in lower case only, and some applications look at the case. So that two
//! sidecars may share a connection without their applications noticing, the names go along in a
//! field of their own. Promise: it says nothing but case and order, never reaches an application,
//! and costs nothing where all names are in lower case. Names that come with every request are
//! one byte in the compressed head.

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_wire::head::Head;

/// The field that carries them; known between Outriggers only.
pub(crate) const FIELD: HeaderName = HeaderName::from_static("outrigger-field-names");

/// Adds the names of a head, if they say more than HTTP/2 does.
pub(crate) fn tell(head: &Head, map: &mut HeaderMap) {
    map.remove(FIELD);
    if !head.fields().any(|field| field.name.bytes().any(|byte| byte.is_ascii_uppercase())) {
        return;
    }
    let mut names = Vec::with_capacity(head.fields().map(|field| field.name.len() + 1).sum());
    for field in head.fields() {
        if !names.is_empty() {
            names.push(b',');
        }
        names.extend_from_slice(field.name.as_bytes());
    }
    if let Ok(names) = HeaderValue::from_maybe_shared(bytes::Bytes::from(names)) {
        map.insert(FIELD, names);
    }
}

/// Gives a head the names back that came with it.
pub(crate) fn restore(map: &HeaderMap, head: &mut Head) {
    if let Some(names) = map.get(FIELD) {
        head.remove_named(FIELD.as_str());
        head.arrange(names.as_bytes().split(|byte| *byte == b','));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::headers::{from_response, to_response};

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        head.set_status(200);
        for (name, value) in fields {
            head.push(name, value.as_bytes());
        }
        head
    }

    #[test]
    fn names_survive_http2_between_outriggers_only() {
        for (given, expected) in [
            (&[("Set-COOKIE", "a"), ("X-y", "1"), ("set-cookie", "b")][..], None),
            (&[("a", "1"), ("b", "2")], None),
            // A client's own such field says nothing.
            (&[("Outrigger-Field-Names", "B"), ("a", "1")], Some(&[("a", "1")][..])),
        ] {
            let message = to_response(&head(given), true);
            assert_eq!(message.headers().contains_key(FIELD), given[0].0 != "a", "{given:?}");
            let mut back = Head::default();
            from_response(&message, &mut back, true);
            let fields: Vec<_> =
                back.fields().map(|field| (field.name, str::from_utf8(field.value).unwrap_or_default())).collect();
            assert_eq!(fields, expected.unwrap_or(given));
            assert!(!to_response(&head(given), false).headers().contains_key(FIELD) || expected.is_some());
        }
    }
}
