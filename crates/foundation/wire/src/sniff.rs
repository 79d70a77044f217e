//! Tells from a connection's first bytes what the client speaks.
//!
//! In: what has come so far. Out: the protocol, or that more is needed. Promise: it decides
//! as soon as the bytes do, never waits for more than [`LONGEST`] of them, and never changes
//! its mind when more come. Only what is plausibly HTTP/1 is called so, for a wrong guess
//! would break a protocol that was none of ours; where rules must hold, the listener says
//! what it speaks instead of asking here.

use crate::preamble::SIGNATURE_V2;

/// With so many bytes it is always decided.
pub const LONGEST: usize = 24;

/// What a client of HTTP/2 says first ([RFC 9113], 3.4).
///
/// [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113
pub const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods of the registry have 17 bytes at most (`UPDATEREDIRECTREF`).
const LONGEST_METHOD: usize = 18;

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sniff {
    /// More bytes are needed.
    Undecided,
    /// A TLS record with a ClientHello.
    Tls,
    /// The beginning of an HTTP/1 request.
    Http1,
    /// The whole preface of HTTP/2.
    Http2Preface,
    /// A line of the PROXY protocol.
    ProxyV1,
    /// A binary header of the PROXY protocol.
    ProxyV2,
    /// None of these.
    Unknown,
}

/// What the first bytes are; see [`Sniff`].
pub fn sniff(bytes: &[u8]) -> Sniff {
    match bytes.first() {
        None => Sniff::Undecided,
        Some(0x16) => tls(bytes),
        Some(b'\r') => behind_line_end(bytes),
        Some(b'P') => preface(bytes),
        Some(b'A'..=b'Z') => http1(bytes),
        Some(_) => Sniff::Unknown,
    }
}

/// A record: 22, version 3.0 to 3.4, a length that is not 0, and in it a message of type 1.
fn tls(bytes: &[u8]) -> Sniff {
    let plausible = |at: usize, byte: u8| match at {
        1 => byte == 3,
        2 => byte <= 4,
        // A record holds 2^14 bytes at most.
        3 => byte <= 0x40,
        4 => byte != 0 || bytes[3] != 0,
        5 => byte == 1,
        _ => true,
    };
    if !bytes.iter().enumerate().take(6).all(|(at, byte)| plausible(at, *byte)) {
        return Sniff::Unknown;
    }
    if bytes.len() < 6 { Sniff::Undecided } else { Sniff::Tls }
}

/// The binary PROXY header begins with line ends; and one may stand before a request ([RFC 9112], 2.2).
///
/// [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112
fn behind_line_end(bytes: &[u8]) -> Sniff {
    if begins(bytes, SIGNATURE_V2) {
        return if bytes.len() < SIGNATURE_V2.len() { Sniff::Undecided } else { Sniff::ProxyV2 };
    }
    match bytes.strip_prefix(b"\r\n") {
        Some(rest) if rest[0].is_ascii_uppercase() => http1(rest),
        _ => Sniff::Unknown,
    }
}

/// `P` begins the preface of HTTP/2, a line of the PROXY protocol, and some methods.
fn preface(bytes: &[u8]) -> Sniff {
    if begins(bytes, HTTP2_PREFACE) {
        return if bytes.len() < HTTP2_PREFACE.len() { Sniff::Undecided } else { Sniff::Http2Preface };
    }
    for line in [&b"PROXY TCP4 "[..], b"PROXY TCP6 ", b"PROXY UNKNOWN"] {
        if begins(bytes, line) {
            return if bytes.len() < line.len() { Sniff::Undecided } else { Sniff::ProxyV1 };
        }
    }
    http1(bytes)
}

/// Whether these bytes and `text` agree as far as both go.
fn begins(bytes: &[u8], text: &[u8]) -> bool {
    bytes.iter().zip(text).all(|(byte, expected)| byte == expected)
}

/// A method in capitals, a blank, and what may begin a target.
fn http1(bytes: &[u8]) -> Sniff {
    let is_method = |byte: &u8| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_' | b'0'..=b'9');
    let length = bytes.iter().position(|byte| !is_method(byte)).unwrap_or(bytes.len());
    if length > LONGEST_METHOD {
        return Sniff::Unknown;
    }
    let (method, rest) = bytes.split_at(length);
    let target = match rest {
        [] => return Sniff::Undecided,
        [b' ', target @ ..] => target,
        _ => return Sniff::Unknown,
    };
    match target.first() {
        None => Sniff::Undecided,
        Some(b'/') => Sniff::Http1,
        // RTSP has this target as well.
        Some(b'*') if method == b"OPTIONS" => as_far_as(target, b"* HTTP/"),
        Some(b'[') if method == b"CONNECT" => Sniff::Http1,
        Some(byte) if method == b"CONNECT" && byte.is_ascii_alphanumeric() => Sniff::Http1,
        // SIP and RTSP have other schemes here; Redis has keys.
        Some(b'h' | b'H') => as_far_as(target, b"http"),
        Some(_) => Sniff::Unknown,
    }
}

/// HTTP/1 when `bytes` begin with `text`, in whatever case.
fn as_far_as(bytes: &[u8], text: &[u8]) -> Sniff {
    if !bytes.iter().zip(text).all(|(byte, expected)| byte.eq_ignore_ascii_case(expected)) {
        return Sniff::Unknown;
    }
    if bytes.len() < text.len() { Sniff::Undecided } else { Sniff::Http1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_bytes_tell_and_as_early_as_they_can() {
        use Sniff::*;
        // What it is, and with how many bytes that is known.
        for (bytes, expected, known) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], Tls, 6),
            (b"\x16\x03\x03\x00\x01\x01\x16\x03", Tls, 6),
            (b"\x16\x03\x05\x02\x00\x01", Unknown, 3),
            (b"\x16\x03\x01\x00\x00\x01", Unknown, 5),
            (b"\x16\x03\x01\x02\x00\x02", Unknown, 6),
            (b"\x16\x02", Unknown, 2),
            (b"\x16\x03\x01\x41\x00\x01", Unknown, 4),
            (b"\x80\x2e\x01\x03\x01", Unknown, 1),
            (b"GET / HTTP/1.1\r\n", Http1, 5),
            (b"\r\nGET / HTTP/1.1\r\n", Http1, 7),
            (b"PUT /x HTTP/1.1\r\n", Http1, 5),
            (b"PROPFIND / HTTP/1.1\r\n", Http1, 10),
            (b"PROXY / HTTP/1.1\r\n", Http1, 7),
            (b"PRI / HTTP/1.1\r\n", Http1, 5),
            (b"VERSION-CONTROL / HTTP/1.1\r\n", Http1, 17),
            (b"GET http://shop/ HTTP/1.1\r\n", Http1, 8),
            (b"OPTIONS * HTTP/1.1\r\n", Http1, 15),
            (b"OPTIONS * RTSP/1.0\r\n", Unknown, 11),
            (b"OPTIONS sip:a@b SIP/2.0\r\n", Unknown, 9),
            (b"CONNECT shop:443 HTTP/1.1\r\n", Http1, 9),
            (b"CONNECT [::1]:443 HTTP/1.1\r\n", Http1, 9),
            (b"CONNECT\naccept-version:1.2\n", Unknown, 8),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Http2Preface, 24),
            (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Unknown, 19),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", ProxyV1, 11),
            (b"PROXY UNKNOWN\r\n", ProxyV1, 13),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", ProxyV2, 12),
            (b"\r\n\r\n\0\r\nQUIX\n\x21\x11", Unknown, 11),
            (b"\r\n\r\nGET / HTTP/1.1", Unknown, 5),
            (b"\rGET / HTTP/1.1", Unknown, 2),
            (b"\nGET / HTTP/1.1", Unknown, 1),
            (b"SSH-2.0-OpenSSH_9.9\r\n", Unknown, 6),
            (b"*1\r\n$4\r\nPING\r\n", Unknown, 1),
            (b"PING\r\n", Unknown, 5),
            (b"GET key\r\n", Unknown, 5),
            (b"EHLO shop\r\n", Unknown, 6),
            (b"EHLO host.example\r\n", Unknown, 7),
            (b"get / HTTP/1.1\r\n", Unknown, 1),
            (b"AMQP\0\0\x09\x01", Unknown, 5),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Unknown, 1),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Unknown, 19),
        ] {
            let text = bytes.escape_ascii();
            assert_eq!(sniff(bytes), expected, "{text}");
            assert_eq!(sniff(&bytes[..known]), expected, "{text}: known with {known} bytes");
            for end in 0..known {
                assert_eq!(sniff(&bytes[..end]), Undecided, "{text}: not known with {end} bytes");
            }
        }
    }

    /// Bytes that come near to what is looked for.
    fn near() -> impl Strategy<Value = Vec<u8>> {
        let begins = prop_oneof![
            Just(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]),
            Just(&b"PROXY TCP6 "[..]),
            Just(&b"\r\n\r\n\0\r\nQUIT\n"[..]),
            Just(&b"\r\nGET http://"[..]),
            Just(&b"OPTIONS * HTTP/1.1"[..]),
            Just(&b"\x16\x03\x01\x01\x01\x01"[..]),
        ];
        (begins, 0..25_usize, prop::collection::vec(prop_oneof![any::<u8>(), b'A'..=b'Z'], 0..30))
            .prop_map(|(begin, cut, rest)| [&begin[..cut.min(begin.len())], &rest].concat())
    }

    proptest! {
        #[test]
        fn it_decides_in_time_and_never_changes_its_mind(bytes in near()) {
            let mut decided = Sniff::Undecided;
            for end in 0..=bytes.len() {
                let now = sniff(&bytes[..end]);
                prop_assert!(decided == Sniff::Undecided || now == decided, "{:?} after {:?}", now, decided);
                prop_assert!(end < LONGEST || now != Sniff::Undecided);
                decided = now;
            }
        }
    }
}
