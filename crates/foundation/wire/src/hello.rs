//! Looks into a TLS ClientHello ([RFC 8446], 4.1.2; [RFC 5246], 7.4.1.2) without touching it.
//!
//! In: the first bytes of a connection. Out: the server name and the protocols the client
//! asks for, its versions, or that more is needed. Promise: a hello may come in several
//! records, but all of it has at most [`LONGEST`] bytes; what is not well formed has no name;
//! a hello in one record is not copied.
//!
//! [RFC 8446]: https://www.rfc-editor.org/rfc/rfc8446
//! [RFC 5246]: https://www.rfc-editor.org/rfc/rfc5246

use std::borrow::Cow;
use std::ops::Range;

use crate::bytes::Reader;

/// The longest hello; those with post-quantum key shares have 2 KiB.
const LONGEST_MESSAGE: usize = 16 * 1024;
/// The most records it may come in.
const MOST_RECORDS: usize = 64;
/// With so many bytes it is always decided.
pub const LONGEST: usize = LONGEST_MESSAGE + 4 + MOST_RECORDS * 5;
/// A record's content ([RFC 8446], 5.1).
const LONGEST_RECORD: usize = 1 << 14;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// Why it is no ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
#[expect(missing_docs, reason = "as_str says what each means")]
pub enum HelloError {
    NotTls,
    BadRecord,
    NotAHello,
    TooLong,
    Malformed,
    RepeatedExtension,
    BadServerName,
}

impl HelloError {
    /// Its text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotTls => "not TLS",
            Self::BadRecord => "invalid TLS record",
            Self::NotAHello => "TLS that does not begin with a ClientHello",
            Self::TooLong => "the ClientHello is too long",
            Self::Malformed => "the ClientHello is malformed",
            Self::RepeatedExtension => "an extension of the ClientHello comes twice",
            Self::BadServerName => "the server name in the ClientHello is no host name",
        }
    }
}

/// How far a hello is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello<'a> {
    /// It has not come whole.
    Partial,
    /// It is there.
    Complete(ClientHello<'a>),
}

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello<'a> {
    /// The message behind its own header.
    body: Cow<'a, [u8]>,
    /// ASCII, known to be a host name.
    name: Option<Range<usize>>,
    /// Known to be well formed; so the next.
    alpn: Option<Range<usize>>,
    versions: Option<Range<usize>>,
    legacy_version: u16,
}

impl ClientHello<'_> {
    /// The host that the client asks for, in the case it came in, without a dot at its end.
    pub fn sni(&self) -> Option<&str> {
        str::from_utf8(&self.body[self.name.clone()?]).ok()
    }

    /// The protocols that the client offers, the best first.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut reader = Reader::new(self.alpn.clone().map_or(&[], |range| &self.body[range]));
        std::iter::from_fn(move || reader.run8())
    }

    /// The versions that the client offers, such as `0x0304` for TLS 1.3; invented ones (GREASE) among them.
    pub fn versions(&self) -> impl Iterator<Item = u16> {
        let mut reader = Reader::new(self.versions.clone().map_or(&[], |range| &self.body[range]));
        let old = self.versions.is_none().then_some(self.legacy_version);
        old.into_iter().chain(std::iter::from_fn(move || reader.u16()))
    }
}

/// Reads the ClientHello at the beginning of `bytes`.
///
/// # Errors
/// When it is none; as early as the bytes tell.
pub fn parse(bytes: &[u8]) -> Result<Hello<'_>, HelloError> {
    let Some(message) = join_records(bytes)? else { return Ok(Hello::Partial) };
    read(message).map(Hello::Complete)
}

/// The message's body, out of its records, once it has come whole.
fn join_records(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, HelloError> {
    let mut rest = bytes;
    let mut joined: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    for _ in 0..MOST_RECORDS {
        let (content, behind) = match record(rest, bytes.len() == rest.len())? {
            Some((content, behind)) => (content, behind),
            None => return Ok(None),
        };
        if joined.is_empty() {
            joined = Cow::Borrowed(content);
        } else {
            joined.to_mut().extend_from_slice(content);
        }
        if let Some(length) = message_length(&joined)?
            && joined.len() >= 4 + length
        {
            return Ok(Some(match joined {
                Cow::Borrowed(message) => Cow::Borrowed(&message[4..4 + length]),
                Cow::Owned(mut message) => {
                    message.truncate(4 + length);
                    message.drain(..4);
                    Cow::Owned(message)
                }
            }));
        }
        // Part of a record says as much as a whole one, but the next does not follow it.
        match behind {
            Some(behind) => rest = behind,
            None => return Ok(None),
        }
    }
    Err(HelloError::TooLong)
}

/// What has come of the content of the record at the beginning of `bytes`; and what follows when it is whole.
#[expect(clippy::type_complexity, reason = "told above")]
fn record(bytes: &[u8], is_first: bool) -> Result<Option<(&[u8], Option<&[u8]>)>, HelloError> {
    let wrong = if is_first { HelloError::NotTls } else { HelloError::BadRecord };
    for (at, byte) in bytes.iter().take(3).enumerate() {
        let fits = match at {
            0 => *byte == 0x16,
            1 => *byte == 3,
            _ => *byte <= 4,
        };
        if !fits {
            return Err(wrong);
        }
    }
    let Some([_, _, _, high, low]) = bytes.first_chunk::<5>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length == 0 || length > LONGEST_RECORD {
        return Err(HelloError::BadRecord);
    }
    Ok(Some(match bytes[5..].split_at_checked(length) {
        Some((content, behind)) => (content, Some(behind)),
        None => (&bytes[5..], None),
    }))
}

/// The length in the message's header, when that is there.
fn message_length(message: &[u8]) -> Result<Option<usize>, HelloError> {
    if message.first().is_some_and(|kind| *kind != 1) {
        return Err(HelloError::NotAHello);
    }
    let Some([_, high, middle, low]) = message.first_chunk::<4>() else { return Ok(None) };
    let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    if length > LONGEST_MESSAGE { Err(HelloError::TooLong) } else { Ok(Some(length)) }
}

fn read(body: Cow<'_, [u8]>) -> Result<ClientHello<'_>, HelloError> {
    let mut hello = ClientHello { body: Cow::Borrowed(&[]), name: None, alpn: None, versions: None, legacy_version: 0 };
    let mut reader = Reader::new(&body);
    hello.legacy_version = reader.u16().ok_or(HelloError::Malformed)?;
    if hello.legacy_version >> 8 != 3 {
        return Err(HelloError::Malformed);
    }
    let extensions = before_extensions(&mut reader).ok_or(HelloError::Malformed)?;
    let total = body.len();
    let mut reader = Reader::new(extensions);
    while !reader.is_empty() {
        let kind = reader.u16().ok_or(HelloError::Malformed)?;
        let content = reader.run16().ok_or(HelloError::Malformed)?;
        // Extensions are the last of the body, so where they end tells where this one is.
        let end = total - reader.rest().len();
        let place = match kind {
            SERVER_NAME => &mut hello.name,
            ALPN => &mut hello.alpn,
            SUPPORTED_VERSIONS => &mut hello.versions,
            _ => continue,
        };
        if place.is_some() {
            return Err(HelloError::RepeatedExtension);
        }
        *place = Some(match kind {
            SERVER_NAME => server_name(content, end)?,
            ALPN => protocols(content).ok_or(HelloError::Malformed).map(|length| end - length..end)?,
            _ => versions(content).ok_or(HelloError::Malformed).map(|length| end - length..end)?,
        });
    }
    hello.body = body;
    Ok(hello)
}

/// Skips what stands before the extensions, which must be the rest; old clients have none.
fn before_extensions<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    reader.take(32)?;
    let session = reader.run8()?;
    let suites = reader.run16()?;
    let compressions = reader.run8()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    if reader.is_empty() {
        return Some(&[]);
    }
    let extensions = reader.run16()?;
    reader.is_empty().then_some(extensions)
}

/// One host name ([RFC 6066], section 3); `end` is where the extension ends in the body.
///
/// [RFC 6066]: https://www.rfc-editor.org/rfc/rfc6066
fn server_name(content: &[u8], end: usize) -> Result<Range<usize>, HelloError> {
    let mut reader = Reader::new(content);
    let list = reader.run16().filter(|_| reader.is_empty()).ok_or(HelloError::Malformed)?;
    let mut list = Reader::new(list);
    // There is no other kind of name, and one name of each.
    if list.u8() != Some(0) {
        return Err(HelloError::Malformed);
    }
    let name = list.run16().filter(|_| list.is_empty()).ok_or(HelloError::Malformed)?;
    let start = end - name.len();
    let name = name.strip_suffix(b".").unwrap_or(name);
    let is_name = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split(|byte| *byte == b'.').all(is_name) {
        return Err(HelloError::BadServerName);
    }
    Ok(start..start + name.len())
}

/// The length of the list of protocols, which ends with the extension.
fn protocols(content: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(content);
    let list = reader.run16().filter(|list| reader.is_empty() && !list.is_empty())?;
    let mut names = Reader::new(list);
    while !names.is_empty() {
        names.run8().filter(|name| !name.is_empty())?;
    }
    Some(list.len())
}

/// The length of the list of versions, which ends with the extension.
fn versions(content: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(content);
    let list = reader.run8().filter(|_| reader.is_empty())?;
    (!list.is_empty() && list.len() % 2 == 0).then_some(list.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A number's low bytes, as lengths are written.
    fn sized<const N: usize>(content: &[u8]) -> Vec<u8> {
        [&content.len().to_be_bytes()[8 - N..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &sized::<2>(content)].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &sized::<2>(&[&[0][..], &sized::<2>(name)].concat()))
    }

    fn alpn(names: &[&[u8]]) -> Vec<u8> {
        extension(ALPN, &sized::<2>(&names.iter().flat_map(|name| sized::<1>(name)).collect::<Vec<_>>()))
    }

    fn body(extensions: &[Vec<u8>]) -> Vec<u8> {
        [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &sized::<2>(&extensions.concat())].concat()
    }

    fn message(body: &[u8]) -> Vec<u8> {
        [&[1][..], &sized::<3>(body)].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[0x16, 3, 1][..], &sized::<2>(part)].concat()).collect()
    }

    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&message(&body(extensions)), 4096)
    }

    fn name(bytes: &[u8]) -> Result<Option<String>, HelloError> {
        match parse(bytes)? {
            Hello::Complete(hello) => Ok(hello.sni().map(str::to_owned)),
            Hello::Partial => panic!("not whole"),
        }
    }

    #[test]
    fn what_the_client_asks_for() {
        let versions = extension(SUPPORTED_VERSIONS, &[4, 3, 4, 3, 3]);
        let grease = extension(0x0a0a, &[]);
        let bytes = hello(&[grease, sni(b"Shop.example"), alpn(&[b"h2", b"http/1.1"]), versions]);
        let Ok(Hello::Complete(hello)) = parse(&bytes) else { panic!("refused") };
        assert_eq!(hello.sni(), Some("Shop.example"));
        assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert_eq!(hello.versions().collect::<Vec<_>>(), [0x0304, 0x0303]);
        assert!(matches!(hello.body, Cow::Borrowed(_)), "one record is not copied");
    }

    #[test]
    fn an_old_client_asks_for_nothing() {
        let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0, 0x2f], &[1, 0]].concat();
        let bytes = records(&message(&body), 4096);
        let Ok(Hello::Complete(hello)) = parse(&bytes) else { panic!("refused") };
        assert_eq!((hello.sni(), hello.alpn().count(), hello.versions().collect()), (None, 0, vec![0x0303]));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        use HelloError::*;
        let two_names = [&[0][..], &sized::<2>(b"a"), &[0], &sized::<2>(b"b")].concat();
        let mut behind = body(&[]);
        behind.push(0);
        for (what, bytes, expected) in [
            ("fine", hello(&[sni(b"a.b-c.d_e")]), Ok(Some("a.b-c.d_e"))),
            ("a dot at the end", hello(&[sni(b"shop.example.")]), Ok(Some("shop.example"))),
            ("HTTP", b"GET / HTTP/1.1\r\n".to_vec(), Err(NotTls)),
            ("SSL 2", b"\x80\x2e\x01\x03\x01".to_vec(), Err(NotTls)),
            ("an alert", b"\x15\x03\x01\0\x02\x02\x28".to_vec(), Err(NotTls)),
            ("version 4", b"\x16\x04\x01".to_vec(), Err(NotTls)),
            ("an empty record", b"\x16\x03\x01\0\0".to_vec(), Err(BadRecord)),
            ("a large record", b"\x16\x03\x01\x40\x01".to_vec(), Err(BadRecord)),
            ("a ServerHello", records(&[2, 0, 0, 0], 9), Err(NotAHello)),
            ("too long", records(&[1, 0, 0x40, 1], 9), Err(TooLong)),
            ("an alert between", [&b"\x16\x03\x01\0\x01\x01"[..], b"\x15"].concat(), Err(BadRecord)),
            ("nothing in it", records(&message(&[]), 9), Err(Malformed)),
            ("another version", records(&message(&[2, 0]), 9), Err(Malformed)),
            ("more behind", records(&message(&behind), 4096), Err(Malformed)),
            ("extension cut off", hello(&[vec![0, 0, 0, 9, 1]]), Err(Malformed)),
            ("no name", hello(&[sni(b"")]), Err(BadServerName)),
            ("NUL", hello(&[sni(b"shop\0.evil")]), Err(BadServerName)),
            ("blank", hello(&[sni(b"shop evil")]), Err(BadServerName)),
            ("slash", hello(&[sni(b"shop/evil")]), Err(BadServerName)),
            ("dots", hello(&[sni(b"shop..evil")]), Err(BadServerName)),
            ("IPv6", hello(&[sni(b"::1")]), Err(BadServerName)),
            ("not ASCII", hello(&[sni("b\u{fc}ro".as_bytes())]), Err(BadServerName)),
            ("long label", hello(&[sni(&[b'a'; 64])]), Err(BadServerName)),
            ("two names", hello(&[extension(SERVER_NAME, &sized::<2>(&two_names))]), Err(Malformed)),
            ("empty list", hello(&[extension(SERVER_NAME, &[0, 0])]), Err(Malformed)),
            ("name twice", hello(&[sni(b"a"), sni(b"b")]), Err(RepeatedExtension)),
            ("no protocol", hello(&[alpn(&[])]), Err(Malformed)),
            ("empty protocol", hello(&[alpn(&[b"h2", b""])]), Err(Malformed)),
            ("odd versions", hello(&[extension(SUPPORTED_VERSIONS, &[3, 3, 4, 3])]), Err(Malformed)),
        ] {
            assert_eq!(name(&bytes), expected.map(|name| name.map(str::to_owned)), "{what}");
        }
    }

    #[test]
    fn crumbs_do_not_go_on_for_ever() {
        let message = message(&body(&[sni(b"shop.example")]));
        assert_eq!(parse(&records(&message, 1)), Err(HelloError::TooLong));
        assert!(name(&records(&message, 2)).is_ok());
        let long = [&[1, 0, 0x40, 0][..], &vec![0; LONGEST_MESSAGE]].concat();
        assert_eq!(parse(&records(&long, 300)), Err(HelloError::Malformed), "it came whole");
    }

    proptest! {
        /// However the hello is cut into records and pieces, the same comes out.
        #[test]
        fn records_do_not_matter(size in 3..200_usize, host in "[a-z]{1,20}(\\.[a-z]{1,20}){0,3}", more in any::<[u8; 4]>()) {
            let message = message(&body(&[alpn(&[b"h2"]), sni(host.as_bytes())]));
            let mut bytes = records(&message, size);
            for end in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..end]), Ok(Hello::Partial));
            }
            bytes.extend_from_slice(&more);
            prop_assert_eq!(name(&bytes), Ok(Some(host)));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), size in 1..90_usize) {
            let whole = body(&[bytes]);
            if let Ok(Hello::Complete(hello)) = parse(&records(&message(&whole), size)) {
                prop_assert!(hello.alpn().all(|name| !name.is_empty()));
                hello.versions().for_each(drop);
                hello.sni();
            }
        }
    }
}
