//! The PROXY protocol, versions 1 and 2 ([its text]): who connected to the balancer before us.
//!
//! In: the first bytes of a connection, or two addresses. Out: the addresses, and what else
//! came with them, or the bytes to send. Promise: it is read strictly and within bounds; a
//! checksum that comes along is checked; what is not ours to know (`UNKNOWN`, `LOCAL`, other
//! families) leaves the connection's own addresses in force.
//!
//! [its text]: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use memchr::memchr;

use crate::bytes::Reader;

/// What a header of version 2 begins with.
pub const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// A line of version 1 has so many bytes at most, its end included.
const LONGEST_LINE: usize = 107;
/// A header of version 2 behind its first 16 bytes; the text allows 64 KiB, but a client's certificate fits.
const LONGEST_V2: usize = 16 * 1024;

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;
const UNIQUE_ID: u8 = 0x05;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_COMMON_NAME: u8 = 0x22;

/// What is wrong with a preamble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
#[expect(missing_docs, reason = "as_str says what each means")]
pub enum PreambleError {
    NotProxy,
    BadLine,
    BadAddress,
    BadVersion,
    BadCommand,
    BadFamily,
    TooShort,
    TooLong,
    BadTlv,
    BadChecksum,
}

impl PreambleError {
    /// Its text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotProxy => "no PROXY protocol",
            Self::BadLine => "not a line of the PROXY protocol",
            Self::BadAddress => "invalid address or port in the PROXY line",
            Self::BadVersion => "neither version 1 nor 2 of the PROXY protocol",
            Self::BadCommand => "unknown command of the PROXY protocol",
            Self::BadFamily => "unknown address family of the PROXY protocol",
            Self::TooShort => "the PROXY header is too short for its addresses",
            Self::TooLong => "the PROXY header is too long",
            Self::BadTlv => "a TLV of the PROXY header is cut off or invalid",
            Self::BadChecksum => "wrong checksum of the PROXY header",
        }
    }
}

/// How far a preamble is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// It has not come whole.
    Partial,
    /// It is there.
    Complete(Preamble<'a>),
}

/// Who connected to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The balancer itself, to see whether we live; the connection's own addresses hold.
    Local,
    /// Not told, or by other means than IP; the connection's own addresses hold.
    Unknown,
    /// A client.
    Proxied {
        /// The client's address.
        source: SocketAddr,
        /// The address it connected to.
        destination: SocketAddr,
    },
}

/// What stands before a connection's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble<'a> {
    /// The bytes it took.
    pub consumed: usize,
    /// Who connected to whom.
    pub origin: Origin,
    /// Known to be well formed.
    tlvs: &'a [u8],
}

/// What the balancer says about the client's TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ssl<'a> {
    /// Whether the client came by TLS.
    pub tls: bool,
    /// Whether it showed a certificate, now or earlier in the session.
    pub certificate: bool,
    /// Whether that certificate was verified.
    pub verified: bool,
    /// As it is written, such as `TLSv1.3`.
    pub version: Option<&'a str>,
    /// The common name in the client's certificate.
    pub common_name: Option<&'a str>,
}

impl<'a> Preamble<'a> {
    /// All that came behind the addresses: types and values.
    pub fn tlvs(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        Tlvs(Reader::new(self.tlvs)).filter_map(Result::ok)
    }

    /// The first value of a type.
    pub fn tlv(&self, kind: u8) -> Option<&'a [u8]> {
        self.tlvs().find(|(own, _)| *own == kind).map(|(_, value)| value)
    }

    /// The host name that the client asked for by SNI.
    pub fn authority(&self) -> Option<&'a str> {
        self.tlv(AUTHORITY).and_then(|text| str::from_utf8(text).ok())
    }

    /// The protocol that was agreed on by ALPN.
    pub fn alpn(&self) -> Option<&'a [u8]> {
        self.tlv(ALPN)
    }

    /// The balancer's name for this connection.
    pub fn unique_id(&self) -> Option<&'a [u8]> {
        self.tlv(UNIQUE_ID)
    }

    /// What is known of the client's TLS.
    pub fn ssl(&self) -> Option<Ssl<'a>> {
        let mut reader = Reader::new(self.tlv(SSL)?);
        let flags = reader.u8()?;
        let verify = reader.u32()?;
        let inner = Preamble { tlvs: reader.rest(), ..*self };
        let text = |kind| inner.tlv(kind).and_then(|text| str::from_utf8(text).ok());
        let certificate = flags & 0b110 != 0;
        Some(Ssl {
            tls: flags & 1 != 0,
            certificate,
            verified: certificate && verify == 0,
            version: text(SSL_VERSION),
            common_name: text(SSL_COMMON_NAME),
        })
    }
}

/// Reads the preamble, of either version, at the beginning of `bytes`.
///
/// # Errors
/// When it is none, or a wrong one. That of a connection whose peer must send one ends the connection.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, PreambleError> {
    if bytes.first() == Some(&b'P') { parse_v1(bytes) } else { parse_v2(bytes) }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed<'_>, PreambleError> {
    const BEGIN: &[u8] = b"PROXY ";
    if !bytes.iter().zip(BEGIN).all(|(byte, expected)| byte == expected) {
        return Err(PreambleError::NotProxy);
    }
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = memchr(b'\n', window) else {
        return if bytes.len() < LONGEST_LINE { Ok(Parsed::Partial) } else { Err(PreambleError::TooLong) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(PreambleError::BadLine)?;
    let line = str::from_utf8(&line[BEGIN.len().min(line.len())..]).map_err(|_| PreambleError::BadLine)?;
    let preamble = |origin| Ok(Parsed::Complete(Preamble { consumed: end + 1, origin, tlvs: &[] }));
    let (family, rest) = line.split_once(' ').unwrap_or((line, ""));
    let is_four = match family {
        "TCP4" => true,
        "TCP6" => false,
        // Whatever follows is to be ignored.
        "UNKNOWN" => return preamble(Origin::Unknown),
        _ => return Err(PreambleError::BadLine),
    };
    let mut words = rest.split(' ');
    let mut word = || words.next().ok_or(PreambleError::BadLine);
    let (source, destination) = (address(word()?, is_four)?, address(word()?, is_four)?);
    let (source_port, destination_port) = (port(word()?)?, port(word()?)?);
    if words.next().is_some() {
        return Err(PreambleError::BadLine);
    }
    preamble(Origin::Proxied {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

fn address(text: &str, is_four: bool) -> Result<IpAddr, PreambleError> {
    let parsed = if is_four { text.parse().map(IpAddr::V4) } else { text.parse().map(IpAddr::V6) };
    parsed.map_err(|_| PreambleError::BadAddress)
}

/// Digits without a sign or a leading zero.
fn port(text: &str) -> Result<u16, PreambleError> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain).ok_or(PreambleError::BadAddress)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed<'_>, PreambleError> {
    if !bytes.iter().zip(SIGNATURE_V2).all(|(byte, expected)| byte == expected) {
        return Err(PreambleError::NotProxy);
    }
    // What is wrong is refused with its first byte.
    let command = match bytes.get(12) {
        Some(0x20) => Some(false),
        Some(0x21) => Some(true),
        Some(byte) if byte >> 4 == 2 => return Err(PreambleError::BadCommand),
        Some(_) => return Err(PreambleError::BadVersion),
        None => None,
    };
    let Some([family, high, low]) = bytes.get(13..16) else { return Ok(Parsed::Partial) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > LONGEST_V2 {
        return Err(PreambleError::TooLong);
    }
    let Some(body) = bytes.get(16..16 + length) else { return Ok(Parsed::Partial) };
    let mut reader = Reader::new(body);
    let origin = match (command, *family) {
        (Some(true), 0x11) => addresses_v4(&mut reader),
        (Some(true), 0x21) => addresses_v6(&mut reader),
        // Datagrams do not come by a stream: the addresses are not this connection's.
        (Some(true), 0x12) => addresses_v4(&mut reader).map(|_| Origin::Unknown),
        (Some(true), 0x22) => addresses_v6(&mut reader).map(|_| Origin::Unknown),
        (Some(true), 0x31 | 0x32) => reader.take(216).map(|_| Origin::Unknown),
        // The rest of these is to be skipped, whatever it is.
        (Some(true), 0x00) => return Ok(whole(length, Origin::Unknown)),
        (Some(true), _) => return Err(PreambleError::BadFamily),
        _ => return Ok(whole(length, Origin::Local)),
    };
    let origin = origin.ok_or(PreambleError::TooShort)?;
    let tlvs = reader.rest();
    check_tlvs(&bytes[..16 + length], tlvs)?;
    Ok(Parsed::Complete(Preamble { consumed: 16 + length, origin, tlvs }))
}

fn whole<'a>(length: usize, origin: Origin) -> Parsed<'a> {
    Parsed::Complete(Preamble { consumed: 16 + length, origin, tlvs: &[] })
}

fn addresses_v4(reader: &mut Reader<'_>) -> Option<Origin> {
    let (source, destination) = (Ipv4Addr::from(reader.u32()?), Ipv4Addr::from(reader.u32()?));
    Some(Origin::Proxied {
        source: SocketAddr::new(source.into(), reader.u16()?),
        destination: SocketAddr::new(destination.into(), reader.u16()?),
    })
}

fn addresses_v6(reader: &mut Reader<'_>) -> Option<Origin> {
    let mut address = || reader.array::<16>().map(Ipv6Addr::from);
    let (source, destination) = (address()?, address()?);
    Some(Origin::Proxied {
        source: SocketAddr::new(source.into(), reader.u16()?),
        destination: SocketAddr::new(destination.into(), reader.u16()?),
    })
}

/// Types and values, or that one is cut off.
struct Tlvs<'a>(Reader<'a>);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8]), PreambleError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut tlv = || {
            let kind = self.0.u8()?;
            let length = self.0.u16()?;
            Some((kind, self.0.take(length.into())?))
        };
        let tlv = tlv();
        if tlv.is_none() {
            self.0 = Reader::new(&[]);
        }
        Some(tlv.ok_or(PreambleError::BadTlv))
    }
}

fn check_tlvs(header: &[u8], tlvs: &[u8]) -> Result<(), PreambleError> {
    let mut checked = false;
    let mut all = Tlvs(Reader::new(tlvs));
    while let Some(tlv) = all.next() {
        let (kind, value) = tlv?;
        match kind {
            CRC32C => {
                let given: [u8; 4] = value.try_into().map_err(|_| PreambleError::BadTlv)?;
                if std::mem::replace(&mut checked, true) {
                    return Err(PreambleError::BadTlv);
                }
                // It is made over the whole header, with zeros in its own place.
                let behind = all.0.rest();
                let before = &header[..header.len() - behind.len() - given.len()];
                if checksum(&[before, &[0; 4], behind]) != u32::from_be_bytes(given) {
                    return Err(PreambleError::BadChecksum);
                }
            }
            AUTHORITY if str::from_utf8(value).is_err() => return Err(PreambleError::BadTlv),
            // At most 128 bytes, says the text.
            UNIQUE_ID if value.len() > 128 => return Err(PreambleError::BadTlv),
            SSL => {
                let inner = value.get(5..).ok_or(PreambleError::BadTlv)?;
                Tlvs(Reader::new(inner)).try_for_each(|tlv| tlv.map(|_| ()))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// CRC-32C of these bytes one after the other. One header per connection: a table would cost more than it saves.
fn checksum(parts: &[&[u8]]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = u32::MAX;
    for byte in parts.iter().copied().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// What may be told beside the addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras<'a> {
    /// The host name that the client asked for.
    pub authority: Option<&'a str>,
    /// A name for this connection, of at most 128 bytes.
    pub unique_id: Option<&'a [u8]>,
    /// Whether a checksum goes along.
    pub checksum: bool,
}

/// Writes a line of version 1.
pub fn encode_v1(source: SocketAddr, destination: SocketAddr, out: &mut Vec<u8>) {
    let (from, to) = same_family(source.ip(), destination.ip());
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port());
    out.extend_from_slice(line.as_bytes());
}

/// Writes a header of version 2.
///
/// # Errors
/// When the extras are too long; nothing is written then.
pub fn encode_v2(
    source: SocketAddr,
    destination: SocketAddr,
    extras: Extras<'_>,
    out: &mut Vec<u8>,
) -> Result<(), PreambleError> {
    if extras.unique_id.is_some_and(|id| id.len() > 128) || extras.authority.is_some_and(|name| name.len() > 255) {
        return Err(PreambleError::TooLong);
    }
    let start = out.len();
    out.extend_from_slice(SIGNATURE_V2);
    let (from, to) = same_family(source.ip(), destination.ip());
    out.extend_from_slice(&[0x21, if from.is_ipv4() { 0x11 } else { 0x21 }, 0, 0]);
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
        }
    }
    for port in [source.port(), destination.port()] {
        out.extend_from_slice(&port.to_be_bytes());
    }
    let mut tlv = |kind: u8, value: &[u8]| {
        out.push(kind);
        out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        out.extend_from_slice(value);
    };
    if let Some(name) = extras.authority {
        tlv(AUTHORITY, name.as_bytes());
    }
    if let Some(id) = extras.unique_id {
        tlv(UNIQUE_ID, id);
    }
    if extras.checksum {
        tlv(CRC32C, &[0; 4]);
    }
    let length = (out.len() - start - 16) as u16;
    out[start + 14..start + 16].copy_from_slice(&length.to_be_bytes());
    if extras.checksum {
        let crc = checksum(&[&out[start..]]);
        let end = out.len();
        out[end - 4..].copy_from_slice(&crc.to_be_bytes());
    }
    Ok(())
}

/// Writes what a balancer says on a connection of its own: version 2, `LOCAL`.
pub fn encode_local(out: &mut Vec<u8>) {
    out.extend_from_slice(SIGNATURE_V2);
    out.extend_from_slice(&[0x20, 0, 0, 0]);
}

/// Both as IPv4 when both are, be it mapped into IPv6 (as sockets for both show it); else both as IPv6.
fn same_family(source: IpAddr, destination: IpAddr) -> (IpAddr, IpAddr) {
    let widen = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    };
    match (source.to_canonical(), destination.to_canonical()) {
        both @ (IpAddr::V4(_), IpAddr::V4(_)) => both,
        (source, destination) => (widen(source), widen(destination)),
    }
}

#[cfg(test)]
mod tests {
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
            let expected =
                Ssl { tls: true, certificate, verified, version: Some("TLSv1.3"), common_name: Some("shop") };
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
}
