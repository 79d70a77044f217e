//! When a request becomes a tunnel, and how that is said in each version of HTTP.
//!
//! HTTP/1.1 changes the protocol of a connection with 101 ([RFC 9110], 7.8); HTTP/2 makes a
//! stream a tunnel with any 2xx to an extended CONNECT ([RFC 8441]), and so do both with CONNECT.
//! In: an endpoint's consent. Out: the same as the client's version says it.
//!
//! [RFC 8441]: https://www.rfc-editor.org/rfc/rfc8441
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_wire::head::{FieldId, Head};

use crate::upstream::Ask;

/// What a WebSocket server adds to the client's key ([RFC 6455], 1.3).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Whether this status agrees to what was asked for.
pub(crate) fn is_agreed(ask: Ask, over_http2: bool, status: u16) -> bool {
    match ask {
        Ask::Answer => false,
        Ask::Upgrade if !over_http2 => status == 101,
        Ask::Upgrade | Ask::Connect => (200..300).contains(&status),
    }
}

/// Makes the endpoint's consent what the client expects.
pub(crate) fn translate(request: &Head, ask: Ask, from_http2: bool, to_http2: bool, response: &mut Head) {
    match (ask, from_http2, to_http2) {
        (Ask::Upgrade, true, false) => {
            response.set_status(101);
            response.set_reason(b"");
            response.remove(FieldId::ContentLength);
            let protocol = request.get(FieldId::Upgrade).unwrap_or_default();
            response.push("Connection", b"Upgrade");
            response.push("Upgrade", protocol);
            if let Some(key) = request.get_named("sec-websocket-key")
                && protocol.eq_ignore_ascii_case(b"websocket")
            {
                response.set("Sec-WebSocket-Accept", accept(key).as_bytes());
            }
        }
        // Neither is there in HTTP/2 ([RFC 8441], 5.1).
        (Ask::Upgrade, _, true) => response.remove_named("sec-websocket-accept"),
        (Ask::Connect, ..) => {
            crate::headers::strip_hop_by_hop(response);
            // No framing: what follows is the tunnel ([RFC 9110], 9.3.6).
            response.remove(FieldId::ContentLength);
        }
        _ => {}
    }
}

/// What proves to a client that its WebSocket handshake was understood ([RFC 6455], 4.2.2).
///
/// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
fn accept(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(WEBSOCKET_GUID);
    STANDARD.encode(hash.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_is_that_of_the_standard() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn consent_is_a_matter_of_version_and_wish() {
        for (ask, over_http2, status, agreed) in [
            (Ask::Upgrade, false, 101, true),
            (Ask::Upgrade, false, 200, false),
            (Ask::Upgrade, true, 200, true),
            (Ask::Upgrade, true, 404, false),
            (Ask::Connect, false, 200, true),
            (Ask::Connect, false, 204, true),
            (Ask::Connect, true, 200, true),
            (Ask::Connect, false, 407, false),
            (Ask::Answer, true, 200, false),
        ] {
            assert_eq!(is_agreed(ask, over_http2, status), agreed, "{ask:?} {over_http2} {status}");
        }
    }
}
