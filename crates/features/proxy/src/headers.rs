//! Which header fields pass a proxy ([RFC 9110], sections 7.6.1 and 5.3).
//!
//! In: the head of a message. Out: the same without those fields that belong to one
//! connection. Promise: a field that `Connection` names is removed too, and the identity
//! of a peer is only ever told by us.
//!
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110

use std::net::IpAddr;

use outrigger_config::{ForwardedClientCert, ForwardedFor, ForwardedHeaders};
use outrigger_wire::head::{FieldId, Head, Method, Version};

use crate::error::Reason;

/// Who called us, as Envoy tells it.
const FORWARDED_CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Fields that belong to one connection, but for `Connection` and `TE`.
const HOP_BY_HOP: [FieldId; 5] =
    [FieldId::KeepAlive, FieldId::ProxyConnection, FieldId::TransferEncoding, FieldId::Upgrade, FieldId::Http2Settings];

/// The protocol a client asks to change to and cannot do without. HTTP/2 and TLS are offers a server is free to
/// ignore ([RFC 9110], 7.8), and some clients make them with every request.
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub(crate) fn asked_upgrade(head: &Head) -> Option<&str> {
    if !head.contains(FieldId::Upgrade)
        || !tokens(head, FieldId::Connection).any(|token| token.eq_ignore_ascii_case("upgrade"))
    {
        return None;
    }
    tokens(head, FieldId::Upgrade).find(|protocol| {
        let name = protocol.split('/').next().unwrap_or_default();
        !name.is_empty() && !name.eq_ignore_ascii_case("h2c") && !name.eq_ignore_ascii_case("tls")
    })
}

fn tokens(head: &Head, id: FieldId) -> impl Iterator<Item = &str> {
    let values = head.get_all(id).filter_map(|value| str::from_utf8(value).ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes what belongs to the connection a message came on.
pub(crate) fn strip_hop_by_hop(head: &mut Head) {
    // Most messages have no `Connection` at all, or one that names only itself.
    if head.contains(FieldId::Connection) {
        let named: Vec<String> = tokens(head, FieldId::Connection)
            .filter(|name| {
                !name.is_empty() && !["close", "keep-alive"].iter().any(|word| name.eq_ignore_ascii_case(word))
            })
            // A client must not make us drop fields that say where the message ends or goes.
            .filter(|name| {
                !["host", "content-length", FORWARDED_CLIENT_CERT, "te"]
                    .iter()
                    .any(|word| name.eq_ignore_ascii_case(word))
            })
            .map(str::to_owned)
            .collect();
        for name in named {
            head.remove_named(&name);
        }
        head.remove(FieldId::Connection);
    }
    if head.contains(FieldId::Te) {
        let trailers = tokens(head, FieldId::Te).any(|te| te.eq_ignore_ascii_case("trailers"));
        head.remove(FieldId::Te);
        // The one value that may pass, for we pass trailers on ([RFC 9110], 10.1.4).
        if trailers {
            head.push("te", b"trailers");
        }
    }
    for id in HOP_BY_HOP {
        if head.contains(id) {
            head.remove(id);
        }
    }
}

/// Counts the forwards that are left to OPTIONS and TRACE ([RFC 9110], 7.6.2).
///
/// # Errors
/// When none is left, for then the answer is ours.
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub(crate) fn max_forwards(head: &mut Head) -> Result<(), Reason> {
    if !matches!(head.method(), Method::Options | Method::Trace) {
        return Ok(());
    }
    let left = head.get_named("max-forwards").and_then(|left| str::from_utf8(left).ok()?.parse::<u32>().ok());
    match (left, head.method()) {
        (Some(0), Method::Trace) => Err(Reason::Unsupported),
        (Some(0), _) => Err(Reason::LastForward),
        (Some(left), _) => {
            head.set("max-forwards", itoa::Buffer::new().format(left - 1).as_bytes());
            Ok(())
        }
        (None, _) => Ok(()),
    }
}

/// Tells who called, as the listener's config wants it. What a client without a certificate claims is removed.
pub(crate) fn tell_peer(head: &mut Head, policy: ForwardedClientCert, peer: Option<&str>) {
    let Some(peer) = peer.filter(|_| policy != ForwardedClientCert::Remove) else {
        return head.remove(FieldId::XForwardedClientCert);
    };
    match policy {
        ForwardedClientCert::Append if head.contains(FieldId::XForwardedClientCert) => {
            let mut told = Vec::new();
            for value in head.get_all(FieldId::XForwardedClientCert).filter(|value| !value.is_empty()) {
                told.extend_from_slice(value);
                told.push(b',');
            }
            told.extend_from_slice(peer.as_bytes());
            head.set(FORWARDED_CLIENT_CERT, &told);
        }
        ForwardedClientCert::Keep => {}
        ForwardedClientCert::Set | ForwardedClientCert::Append | ForwardedClientCert::Remove => {
            head.remove(FieldId::XForwardedClientCert);
            head.push(FORWARDED_CLIENT_CERT, peer.as_bytes());
        }
    }
}

/// Says who called and how, as the listener's config wants it.
pub(crate) fn forwarded(head: &mut Head, policy: &ForwardedHeaders, client: IpAddr, secure: bool) {
    let scheme: &[u8] = if secure { b"https" } else { b"http" };
    match policy.x_forwarded_for {
        ForwardedFor::Keep => {}
        ForwardedFor::Append => {
            let mut told = Vec::new();
            for value in head.get_all(FieldId::XForwardedFor).filter(|value| !value.is_empty()) {
                told.extend_from_slice(value);
                told.extend_from_slice(b", ");
            }
            told.extend_from_slice(client.to_canonical().to_string().as_bytes());
            head.set("x-forwarded-for", &told);
            if !head.contains(FieldId::XForwardedProto) {
                head.push("x-forwarded-proto", scheme);
            }
        }
        ForwardedFor::Set => {
            head.set("x-forwarded-for", client.to_canonical().to_string().as_bytes());
            head.set("x-forwarded-proto", scheme);
        }
        ForwardedFor::Remove => {
            head.remove(FieldId::XForwardedFor);
            head.remove(FieldId::XForwardedProto);
        }
    }
}

/// Tells another Outrigger that the client itself spoke HTTP/2, whatever is spoken between us.
pub(crate) fn tell_protocol(request: &mut Head, kin: bool) {
    request.remove(FieldId::OutriggerProtocol);
    if kin {
        request.push_known(FieldId::OutriggerProtocol, b"HTTP/2");
    }
}

/// Takes out what another Outrigger told, or a client claims.
pub(crate) fn take_protocol(request: &mut Head) -> bool {
    let told = request.contains(FieldId::OutriggerProtocol);
    if told {
        request.remove(FieldId::OutriggerProtocol);
    }
    told
}

/// Adds us to the proxies that a message passed ([RFC 9110], 7.6.3); `version` is what it came in.
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub(crate) fn via(head: &mut Head, policy: &ForwardedHeaders, version: Version) {
    let Some(name) = &policy.via else { return };
    let version = version.as_str().trim_start_matches("HTTP/");
    head.push("via", format!("{version} {name}").as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        for (name, value) in fields {
            head.push(name, value.as_bytes());
        }
        head
    }

    fn fields(head: &Head) -> Vec<(String, String)> {
        head.fields()
            .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()))
            .collect()
    }

    fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn connection_fields_do_not_pass() {
        for (name, given, expected) in [
            ("nothing to do", &[("a", "1")][..], &[("a", "1")][..]),
            ("named by connection", &[("connection", "close, X-Hop"), ("x-hop", "1"), ("a", "1")], &[("a", "1")]),
            ("te trailers stays", &[("te", "trailers")], &[("te", "trailers")]),
            ("trailers of a list stays", &[("te", "gzip, trailers"), ("connection", "te")], &[("te", "trailers")]),
            ("other te goes", &[("te", "gzip")], &[]),
            ("classics", &[("keep-alive", "5"), ("proxy-connection", "x"), ("upgrade", "h2c")], &[]),
            (
                "framing cannot be named away",
                &[("connection", "content-length"), ("content-length", "3")],
                &[("content-length", "3")],
            ),
        ] {
            let mut head = head(given);
            strip_hop_by_hop(&mut head);
            assert_eq!(fields(&head), pairs(expected), "{name}");
        }
    }

    #[test]
    fn offers_to_change_the_protocol_may_be_ignored() {
        for (name, given, asked) in [
            ("websocket", &[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")][..], Some("websocket")),
            ("not nominated", &[("upgrade", "websocket")], None),
            ("h2c", &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")], None),
            ("tls", &[("connection", "upgrade"), ("upgrade", "TLS/1.2, HTTP/1.1")], Some("HTTP/1.1")),
            ("both", &[("connection", "upgrade"), ("upgrade", "h2c, websocket")], Some("websocket")),
            ("none", &[("connection", "close")], None),
        ] {
            assert_eq!(asked_upgrade(&head(given)), asked, "{name}");
        }
    }

    #[test]
    fn who_called_is_told_as_the_policy_says() {
        let given = &[("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")][..];
        for (policy, given, expected) in [
            (ForwardedFor::Keep, given, given),
            (
                ForwardedFor::Append,
                given,
                &[("x-forwarded-for", "1.1.1.1, 2.2.2.2, 9.9.9.9"), ("x-forwarded-proto", "http")],
            ),
            (ForwardedFor::Append, &[], &[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "http")]),
            (
                ForwardedFor::Set,
                &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https")],
                &[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-proto", "http")],
            ),
            (ForwardedFor::Remove, given, &[]),
        ] {
            let mut head = head(given);
            let policy = ForwardedHeaders { x_forwarded_for: policy, ..Default::default() };
            forwarded(&mut head, &policy, "::ffff:9.9.9.9".parse().unwrap(), false);
            let expected: Vec<_> =
                pairs(expected).into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
            assert_eq!(fields(&head), expected, "{policy:?}");
        }
        let mut head = head(&[("via", "1.0 fred")]);
        via(&mut head, &ForwardedHeaders { via: Some("shop".parse().unwrap()), ..Default::default() }, Version::Http2);
        assert_eq!(fields(&head), pairs(&[("via", "1.0 fred"), ("via", "2 shop")]));
    }

    #[test]
    fn a_forged_identity_is_replaced() {
        use ForwardedClientCert::{Append, Keep, Remove, Set};
        let (claimed, real) = ("URI=spiffe://a", "By=spiffe://us;Hash=00;URI=spiffe://b");
        let both = format!("{claimed},{claimed},{real}");
        for (policy, with_certificate, first) in [
            (Set, &[real][..], &[real][..]),
            (Append, &[&both], &[real]),
            (Keep, &[claimed, claimed], &[]),
            (Remove, &[], &[]),
        ] {
            let told = |given: &[(&str, &str)], peer| {
                let mut head = head(given);
                tell_peer(&mut head, policy, peer);
                fields(&head).into_iter().map(|(_, value)| value).collect::<Vec<_>>()
            };
            let given = [("X-Forwarded-Client-Cert", claimed), ("x-forwarded-client-cert", claimed)];
            assert_eq!(told(&given, Some(real)), with_certificate, "{policy:?}");
            assert_eq!(told(&[], Some(real)), first, "{policy:?}: the first of several proxies");
            assert_eq!(told(&given, None), [""; 0], "{policy:?}: whoever has no certificate is not believed");
        }
    }

    proptest! {
        #[test]
        fn no_named_field_survives(names in prop::collection::vec("[a-z]{1,6}", 0..5), value in "[a-z, ]{0,20}") {
            let mut head = Head::default();
            for name in &names {
                head.push(name, b"1");
            }
            head.push("connection", value.as_bytes());
            strip_hop_by_hop(&mut head);
            for named in value.split(',').map(str::trim).filter(|name| *name != "host" && *name != "te") {
                prop_assert!(named.is_empty() || named.contains(' ') || head.get_named(named).is_none());
            }
        }
    }
}
