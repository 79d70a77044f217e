//! What a rate limit service is asked about a request, and what a client is told of the answer.
//!
//! In: `globalRateLimits` of a listener and a route, and a request. Out: descriptors as Envoy would send them for the same actions; the
//! fields of draft-polli-ratelimit-headers-03 from a service's answer. Promise: a descriptor is whole or not there at all.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

use outrigger_config::{GlobalRateLimit, RateLimitAction, RateLimitActionType};
use outrigger_wire::head::Head;
use outrigger_wire::rate_limit_service::{Entry, Status};

/// What descriptors are made of.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The request.
    pub request: &'a Head,
    /// Whose it is; `None` stands for any.
    pub client: Option<IpAddr>,
    /// The peer's SPIFFE ID.
    pub peer: Option<&'a str>,
    /// Its route's name.
    pub route: &'a str,
    /// The cluster it goes to; `None` when a filter answers it.
    pub cluster: Option<&'a str>,
}

/// A request's descriptors; those that an action keeps from being whole are left out.
pub fn descriptors<'a>(
    limits: impl IntoIterator<Item = &'a GlobalRateLimit>,
    subject: &Subject<'a>,
) -> Vec<Vec<Entry<'a>>> {
    let of = |limit: &'a GlobalRateLimit| {
        let mut entries = Vec::with_capacity(limit.actions.len());
        for action in &limit.actions {
            match entry(action, subject) {
                Said::Entry(key, value) => entries.push((key.into(), value)),
                Said::Nothing => {}
                Said::NoDescriptor => return None,
            }
        }
        (!entries.is_empty()).then_some(entries)
    };
    limits.into_iter().filter_map(of).collect()
}

/// What an action has to say of a request.
enum Said<'a> {
    Entry(&'a str, Cow<'a, [u8]>),
    /// The descriptor does without.
    Nothing,
    NoDescriptor,
}

fn entry<'a>(action: &'a RateLimitAction, subject: &Subject<'a>) -> Said<'a> {
    let absent = |skip: bool| if skip { Said::Nothing } else { Said::NoDescriptor };
    let text = |key, value: &'a str| Said::Entry(key, value.as_bytes().into());
    let made = |key, value: String| Said::Entry(key, value.into_bytes().into());
    match action.kind {
        RateLimitActionType::GenericKey => match &action.generic_key {
            Some(generic) => text(&generic.descriptor_key, &generic.descriptor_value),
            None => Said::NoDescriptor,
        },
        RateLimitActionType::RequestHeaders => {
            let Some(wanted) = &action.request_headers else { return Said::NoDescriptor };
            match subject.request.get_named(&wanted.header_name) {
                Some(value) => Said::Entry(&wanted.descriptor_key, value.into()),
                None => absent(wanted.skip_if_absent),
            }
        }
        RateLimitActionType::RemoteAddress => match subject.client {
            Some(client) => made("remote_address", client.to_canonical().to_string()),
            None => text("remote_address", "<the client's address>"),
        },
        RateLimitActionType::MaskedRemoteAddress => {
            let lengths = action.masked_remote_address.clone().unwrap_or_default();
            let (network, length) = match subject.client.map(|client| client.to_canonical()) {
                None => return text("masked_remote_address", "<the client's network>"),
                Some(IpAddr::V4(address)) => {
                    let length = lengths.v4_prefix_mask_len.min(32);
                    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                    (IpAddr::V4((address.to_bits() & mask).into()), length)
                }
                Some(IpAddr::V6(address)) => {
                    let length = lengths.v6_prefix_mask_len.min(128);
                    let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                    (IpAddr::V6((address.to_bits() & mask).into()), length)
                }
            };
            made("masked_remote_address", format!("{network}/{length}"))
        }
        RateLimitActionType::DestinationCluster => match subject.cluster {
            Some(cluster) => text("destination_cluster", cluster),
            None => Said::NoDescriptor,
        },
        RateLimitActionType::PeerIdentity => match subject.peer {
            Some(peer) => text("peer_identity", peer),
            None => absent(action.peer_identity.as_ref().is_some_and(|peer| peer.skip_if_absent)),
        },
        RateLimitActionType::Route => text("route", subject.route),
    }
}

/// What a client is told of its limits ([draft 03]), as Envoy writes it: the limit that is nearest, and all of them.
///
/// [draft 03]: https://datatracker.ietf.org/doc/html/draft-polli-ratelimit-headers-03
pub fn x_ratelimit_headers(statuses: &[Status]) -> Option<[(&'static str, String); 3]> {
    // Of several that are as near, the first.
    let nearest = statuses.iter().min_by_key(|status| status.remaining)?;
    let mut limit = nearest.requests.to_string();
    for status in statuses.iter().filter(|status| status.window > 0) {
        let _ = write!(limit, ", {};w={}", status.requests, status.window);
        // What would end the quotes does not belong in a name.
        let name: String = status.name.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).collect();
        if !name.is_empty() {
            let _ = write!(limit, ";name=\"{name}\"");
        }
    }
    Some([
        ("x-ratelimit-limit", limit),
        ("x-ratelimit-remaining", nearest.remaining.to_string()),
        ("x-ratelimit-reset", nearest.reset.to_string()),
    ])
}

/// Descriptors in words: `(remote_address=192.0.2.1, user=ann)`.
pub fn descriptor_in_words(entries: &[Entry<'_>]) -> String {
    let words = entries.iter().map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(value)));
    format!("({})", words.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(limits: &str, headers: &[(&str, &str)], client: &str, peer: Option<&str>) -> Vec<String> {
        let limits: Vec<GlobalRateLimit> = serde_json::from_str(limits).unwrap();
        let mut request = Head::default();
        headers.iter().for_each(|(name, value)| request.push(name, value.as_bytes()));
        let client = Some(client.parse().unwrap());
        let subject = Subject { request: &request, client, peer, route: "items", cluster: Some("app") };
        descriptors(&limits, &subject).iter().map(|entries| descriptor_in_words(entries)).collect()
    }

    #[test]
    fn each_action_says_its_entry() {
        let spiffe = Some("spiffe://shop.example/ns/shop/sa/web");
        for (name, action, client, expected) in [
            ("a fixed text", r#"{"type":"GenericKey","genericKey":{"descriptorValue":"v"}}"#, "::1", "(generic_key=v)"),
            (
                "with a key",
                r#"{"type":"GenericKey","genericKey":{"descriptorKey":"k","descriptorValue":"v"}}"#,
                "::1",
                "(k=v)",
            ),
            (
                "a header, the first of two",
                r#"{"type":"RequestHeaders","requestHeaders":{"headerName":"X-User","descriptorKey":"user"}}"#,
                "::1",
                "(user=ann)",
            ),
            ("an address", r#"{"type":"RemoteAddress"}"#, "::ffff:192.0.2.7", "(remote_address=192.0.2.7)"),
            (
                "a whole address",
                r#"{"type":"MaskedRemoteAddress"}"#,
                "192.0.2.7",
                "(masked_remote_address=192.0.2.7/32)",
            ),
            (
                "a network",
                r#"{"type":"MaskedRemoteAddress","maskedRemoteAddress":{"v4PrefixMaskLen":24}}"#,
                "192.0.2.7",
                "(masked_remote_address=192.0.2.0/24)",
            ),
            (
                "all networks",
                r#"{"type":"MaskedRemoteAddress","maskedRemoteAddress":{"v6PrefixMaskLen":0}}"#,
                "2001:db8::1",
                "(masked_remote_address=::/0)",
            ),
            ("a cluster", r#"{"type":"DestinationCluster"}"#, "::1", "(destination_cluster=app)"),
            ("a peer", r#"{"type":"PeerIdentity"}"#, "::1", "(peer_identity=spiffe://shop.example/ns/shop/sa/web)"),
            ("a route", r#"{"type":"Route"}"#, "::1", "(route=items)"),
        ] {
            let limits = format!(r#"[{{"actions":[{action}]}}]"#);
            assert_eq!(said(&limits, &[("x-user", "ann"), ("x-user", "bob")], client, spiffe), [expected], "{name}");
        }
    }

    #[test]
    fn a_descriptor_is_whole_or_not_there() {
        let header = |skip| {
            format!(
                r#"{{"type":"RequestHeaders","requestHeaders":{{"headerName":"x-user","descriptorKey":"user","skipIfAbsent":{skip}}}}}"#
            )
        };
        let (route, peer) = (r#"{"type":"Route"}"#, r#"{"type":"PeerIdentity"}"#);
        let skipped = r#"{"type":"PeerIdentity","peerIdentity":{"skipIfAbsent":true}}"#;
        for (name, actions, expected) in [
            ("a header is missing", vec![route.to_owned(), header(false)], None),
            ("and passed over", vec![route.to_owned(), header(true)], Some("(route=items)")),
            ("a peer is missing", vec![route.to_owned(), peer.to_owned()], None),
            ("and passed over", vec![route.to_owned(), skipped.to_owned()], Some("(route=items)")),
            ("nothing is left", vec![header(true)], None),
        ] {
            let limits = format!(r#"[{{"actions":[{}]}}]"#, actions.join(","));
            assert_eq!(said(&limits, &[], "::1", None).first().map(String::as_str), expected, "{name}");
        }
        let two = format!(r#"[{{"actions":[{}]}},{{"actions":[{route}]}}]"#, header(false));
        assert_eq!(said(&two, &[], "::1", None), ["(route=items)"], "the others are asked about all the same");
    }

    #[test]
    fn the_nearest_limit_is_told_as_envoy_tells_it() {
        let status = |requests, window, name: &str, remaining, reset| Status {
            requests,
            window,
            name: name.to_owned(),
            remaining,
            reset,
        };
        assert_eq!(x_ratelimit_headers(&[]), None);
        let told = x_ratelimit_headers(&[status(1000, 3600, "", 40, 1200), status(10, 1, "per \"ip\"", 4, 1)]).unwrap();
        let told = told.map(|(_, value)| value);
        assert_eq!(told, ["10, 1000;w=3600, 10;w=1;name=\"perip\"".to_owned(), "4".to_owned(), "1".to_owned()]);
    }
}
