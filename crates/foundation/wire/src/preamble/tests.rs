//! Lines and headers as balancers write them, and near to that.

use proptest::prelude::*;

use super::*;

fn proxied(source: &str, destination: &str) -> Origin {
    Origin::Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn origin(bytes: &[u8]) -> Result<Origin, PreambleError> {
    match parse(bytes)? {
        Parsed::Complete(preamble) => Ok(preamble.origin),
        Parsed::Partial => panic!("not whole: {}", bytes.escape_ascii()),
    }
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [&SIGNATURE_V2[..], &[command, family], &length, body].concat()
}

#[test]
fn lines_are_read_strictly() {
    use PreambleError::*;
    for (line, expected) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", Ok(proxied("192.0.2.1:56324", "198.51.100.2:443"))),
        ("PROXY TCP6 2001:db8::1 ::1 0 65535\r\n", Ok(proxied("[2001:db8::1]:0", "[::1]:65535"))),
        ("PROXY UNKNOWN\r\n", Ok(Origin::Unknown)),
        ("PROXY UNKNOWN ffff::1 ::2 what ever\r\n", Ok(Origin::Unknown)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n", Err(BadLine)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n", Err(BadLine)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n", Err(BadLine)),
        ("PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 192.0.2.256 198.51.100.2 56324 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 ::1 ::2 56324 443\r\n", Err(BadAddress)),
        ("PROXY TCP6 192.0.2.1 198.51.100.2 56324 443\r\n", Err(BadAddress)),
        ("PROXY TCP6 fe80::1%eth0 ::2 56324 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n", Err(BadAddress)),
        ("PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n", Err(BadAddress)),
        ("PROXY TCP5 192.0.2.1 198.51.100.2 1 443\r\n", Err(BadLine)),
        ("PROXY UNKNOWNS\r\n", Err(BadLine)),
        ("PROXY \r\n", Err(BadLine)),
        ("PROXYTCP4\r\n", Err(NotProxy)),
        ("POST / HTTP/1.1\r\n", Err(NotProxy)),
        ("GET / HTTP/1.1\r\n", Err(NotProxy)),
    ] {
        assert_eq!(origin(line.as_bytes()), expected, "{line:?}");
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16));
    assert_eq!(origin(longest.as_bytes()), Ok(Origin::Unknown));
    let longer = longest.replace("UNKNOWN ", "UNKNOWN x");
    assert_eq!(parse(longer.as_bytes()), Err(TooLong));
    assert_eq!(parse(&longer.as_bytes()[..107]), Err(TooLong));
    assert_eq!(parse(&longer.as_bytes()[..106]), Ok(Parsed::Partial));
}

#[test]
fn headers_are_read_strictly() {
    use PreambleError::*;
    let four = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb];
    let unix = [0; 216];
    let with = |tlv: &[u8]| [&four[..], tlv].concat();
    for (name, header, expected) in [
        ("v4", v2(0x21, 0x11, &four), Ok(proxied("192.0.2.1:56324", "198.51.100.2:443"))),
        (
            "v6",
            v2(0x21, 0x21, &[1; 36]),
            Ok(proxied("[101:101:101:101:101:101:101:101]:257", "[101:101:101:101:101:101:101:101]:257")),
        ),
        ("datagrams", v2(0x21, 0x12, &four), Ok(Origin::Unknown)),
        ("unix", v2(0x21, 0x31, &unix), Ok(Origin::Unknown)),
        ("no family", v2(0x21, 0, b"whatever"), Ok(Origin::Unknown)),
        ("local", v2(0x20, 0x11, b"whatever"), Ok(Origin::Local)),
        ("local of old", v2(0x20, 0, b""), Ok(Origin::Local)),
        ("version 1", v2(0x11, 0x11, &four), Err(BadVersion)),
        ("command 2", v2(0x22, 0x11, &four), Err(BadCommand)),
        ("family 4", v2(0x21, 0x41, &four), Err(BadFamily)),
        ("protocol 3", v2(0x21, 0x13, &four), Err(BadFamily)),
        ("short v4", v2(0x21, 0x11, &four[..11]), Err(TooShort)),
        ("short v6", v2(0x21, 0x21, &four), Err(TooShort)),
        ("short unix", v2(0x21, 0x31, &unix[..215]), Err(TooShort)),
        ("cut TLV", v2(0x21, 0x11, &with(&[4, 0])), Err(BadTlv)),
        ("long TLV", v2(0x21, 0x11, &with(&[4, 0, 2, 1])), Err(BadTlv)),
        ("padding", v2(0x21, 0x11, &with(&[4, 0, 1, 0])), Ok(proxied("192.0.2.1:56324", "198.51.100.2:443"))),
        ("no UTF-8", v2(0x21, 0x11, &with(&[2, 0, 1, 0xff])), Err(BadTlv)),
        ("short checksum", v2(0x21, 0x11, &with(&[3, 0, 1, 0])), Err(BadTlv)),
        ("wrong checksum", v2(0x21, 0x11, &with(&[3, 0, 4, 1, 2, 3, 4])), Err(BadChecksum)),
        ("short TLS", v2(0x21, 0x11, &with(&[0x20, 0, 4, 1, 0, 0, 0])), Err(BadTlv)),
        ("cut within TLS", v2(0x21, 0x11, &with(&[0x20, 0, 6, 1, 0, 0, 0, 0, 0x21])), Err(BadTlv)),
        ("long ID", v2(0x21, 0x11, &with(&[&[5, 0, 129][..], &[0; 129]].concat())), Err(BadTlv)),
        ("too long", v2(0x21, 0x11, &vec![0; LONGEST_V2 + 1]), Err(TooLong)),
        ("no signature", b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0".to_vec(), Err(NotProxy)),
    ] {
        assert_eq!(origin(&header), expected, "{name}");
    }
}

/// As HAProxy 3 sends it with `send-proxy-v2-ssl-cn`, `set-proxy-v2-tlv-fmt` left out; the flags mean a
/// certificate on this connection.
#[test]
fn what_is_known_of_the_clients_tls() {
    let inner = [&[1, 0, 0, 0, 0][..], &[0x21, 0, 7], b"TLSv1.3", &[0x22, 0, 4], b"shop"].concat();
    let text = |flags: u8, verify: u8| {
        let mut inner = inner.clone();
        (inner[0], inner[4]) = (flags, verify);
        let tlv = [&[0x20, 0, inner.len() as u8][..], &inner, &[1, 0, 2], b"h2"].concat();
        v2(0x21, 0x11, &[&[0; 12][..], &tlv].concat())
    };
    for (flags, verify, certificate, verified) in
        [(1, 0, false, false), (3, 0, true, true), (5, 0, true, true), (7, 1, true, false)]
    {
        let bytes = text(flags, verify);
        let Ok(Parsed::Complete(preamble)) = parse(&bytes) else { panic!("refused") };
        let expected = Ssl { tls: true, certificate, verified, version: Some("TLSv1.3"), common_name: Some("shop") };
        assert_eq!(preamble.ssl(), Some(expected), "{flags} {verify}");
        assert_eq!((preamble.alpn(), preamble.authority()), (Some(&b"h2"[..]), None));
    }
}

#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(checksum(&[b"12345", b"6789"]), 0xe306_9283);
}

#[test]
fn extras_that_are_too_long_are_refused_and_nothing_is_written() {
    let (address, mut out) = ("192.0.2.1:1".parse().unwrap(), Vec::new());
    let name = "x".repeat(256);
    for extras in [
        Extras { authority: Some(&name), ..Extras::default() },
        Extras { unique_id: Some(&name.as_bytes()[..129]), ..Extras::default() },
    ] {
        assert_eq!(encode_v2(address, address, extras, &mut out), Err(PreambleError::TooLong));
        assert!(out.is_empty());
    }
}

#[test]
fn mapped_addresses_are_told_as_what_they_are() {
    let mut out = Vec::new();
    encode_v1("[::ffff:192.0.2.1]:1".parse().unwrap(), "[::ffff:192.0.2.2]:2".parse().unwrap(), &mut out);
    encode_v1("[2001:db8::1]:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap(), &mut out);
    let text = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nPROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 1 2\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), text);
}

#[test]
fn a_balancers_own_connection() {
    let mut out = Vec::new();
    encode_local(&mut out);
    let whole = Preamble { consumed: 16, origin: Origin::Local, tlvs: &[] };
    assert_eq!(parse(&out), Ok(Parsed::Complete(whole)));
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)], any::<u16>())
        .prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn flipped(bytes: &[u8], at: usize, bit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << bit;
    bytes
}

proptest! {
    /// What is written is read; every beginning of it is one; every bit of it counts.
    #[test]
    fn what_is_written_is_read(
        source in any_address(),
        destination in any_address(),
        name in prop::option::of("[a-z.]{1,40}"),
        id in prop::option::of(prop::collection::vec(any::<u8>(), 0..=128)),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let extras = Extras { authority: name.as_deref(), unique_id: id.as_deref(), checksum: true };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        encode_v1(source, destination, &mut first);
        encode_v2(source, destination, extras, &mut second).unwrap();
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        for bytes in [&mut first, &mut second] {
            for end in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..end]), Ok(Parsed::Partial));
            }
            let length = bytes.len();
            bytes.extend_from_slice(b"GET / ");
            let Ok(Parsed::Complete(preamble)) = parse(bytes) else { panic!("refused") };
            prop_assert_eq!(preamble.consumed, length);
            let Origin::Proxied { source: from, destination: to } = preamble.origin else { panic!("unknown") };
            prop_assert_eq!((canonical(from), canonical(to)), (canonical(source), canonical(destination)));
            bytes.truncate(length);
        }
        let Ok(Parsed::Complete(preamble)) = parse(&second) else { panic!("refused") };
        prop_assert_eq!((preamble.authority(), preamble.unique_id()), (name.as_deref(), id.as_deref()));
        // Bytes of lengths and types may hide the checksum, or make it wait for more; addresses cannot change.
        let changed = flipped(&second, 16 + at.index(12), bit);
        prop_assert_eq!(parse(&changed), Err(PreambleError::BadChecksum));
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), family in any::<u8>()) {
        let bytes = v2(0x21, family, &bytes);
        if let Ok(Parsed::Complete(preamble)) = parse(&bytes) {
            preamble.ssl();
            prop_assert!(preamble.consumed <= bytes.len());
        }
    }
}
