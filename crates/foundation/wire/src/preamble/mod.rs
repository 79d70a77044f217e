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
mod tests;
