//! Reads bodies.
//!
//! In: bytes, in whatever pieces. Out: runs of the body's bytes within them, and its end.
//! Promise: chunks are read strictly (hexadecimal digits, a bounded extension, CRLF), and a
//! body that is cut short is never taken for whole.

use std::ops::Range;

use memchr::memchr;

use super::{Framing, Limits, Parsed, parse_fields};
use crate::head::{FieldId, FieldRef, Head};

/// A chunk's first line may have so many bytes, extension included.
const LONGEST_CHUNK_LINE: usize = 256;
/// The extensions of one body may have so many bytes in all; nobody uses them, but attackers.
const MOST_EXTENSION_BYTES: usize = 16 * 1024;

/// What is wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
#[expect(missing_docs, reason = "as_str says what each means")]
pub enum BodyError {
    BadChunkSize,
    BadChunkEnd,
    ChunkLineTooLong,
    TooManyExtensions,
    BadTrailer,
    TrailersTooLarge,
    CutShort,
}

impl BodyError {
    /// Its text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadChunkSize => "invalid chunk size",
            Self::BadChunkEnd => "a chunk does not end where it should",
            Self::ChunkLineTooLong => "a chunk's first line is too long",
            Self::TooManyExtensions => "too many bytes of chunk extensions",
            Self::BadTrailer => "invalid trailers",
            Self::TrailersTooLarge => "the trailers are too large",
            Self::CutShort => "the body was cut short",
        }
    }
}

/// What a step of decoding found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input that are done with, the body's among them. 0 means that more must come.
    pub consumed: usize,
    /// Where in the input the body's bytes are; may be empty.
    pub data: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Done,
    /// So many bytes to come.
    Length(u64),
    UntilClose,
    ChunkSize,
    /// So many bytes of a chunk to come.
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

/// Decodes one body.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
    extensions: usize,
    /// Bytes of trailers that were looked at in vain.
    seen: usize,
    limits: Limits,
    trailers: Option<Box<Head>>,
}

impl BodyDecoder {
    /// A decoder for a body framed so.
    pub fn new(framing: Framing, trailers: Limits) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0, seen: 0, limits: trailers, trailers: None }
    }

    /// Whether the body is whole.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many bytes are to come, where the framing tells.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The trailers, once the body is whole.
    pub fn trailers(&self) -> Option<&Head> {
        self.trailers.as_deref().filter(|_| self.is_done())
    }

    /// Looks at the next bytes, of which there is at least one. Called again with what it did not consume.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, BodyError> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.state {
                State::Done => return Ok(nothing(at)),
                State::UntilClose => return Ok(Decoded { consumed: input.len(), data: at..input.len() }),
                State::Length(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Decoded { consumed: at + taken, data: at..at + taken });
                }
                State::Chunk(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - taken as u64;
                    let data = at..at + taken;
                    at += taken;
                    if left > 0 {
                        self.state = State::Chunk(left);
                        return Ok(Decoded { consumed: at, data });
                    }
                    self.state = State::ChunkEnd;
                    // What frames the next chunk is taken along when it is there.
                    if input[at..].starts_with(b"\r\n") {
                        at += 2;
                        self.state = State::ChunkSize;
                    }
                    return Ok(Decoded { consumed: at, data });
                }
                State::ChunkEnd => match rest {
                    [] | [b'\r'] => return Ok(nothing(at)),
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::ChunkSize;
                    }
                    _ => return Err(BodyError::BadChunkEnd),
                },
                State::ChunkSize => {
                    let window = &rest[..rest.len().min(LONGEST_CHUNK_LINE + 2)];
                    let Some(end) = memchr(b'\n', window) else {
                        check_line(window)?;
                        return Ok(nothing(at));
                    };
                    let size = self.chunk_size(&window[..end])?;
                    at += end + 1;
                    self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                }
                State::Trailers => {
                    match rest {
                        [] | [b'\r'] => return Ok(nothing(at)),
                        // Nearly all bodies end so, and need no room for trailers.
                        [b'\r', b'\n', ..] => at += 2,
                        _ => match self.read_trailers(rest)? {
                            Parsed::Partial => return Ok(nothing(at)),
                            Parsed::Complete(length) => at += length,
                        },
                    }
                    self.state = State::Done;
                    return Ok(nothing(at));
                }
            }
        }
    }

    /// The sender has ended its direction: whether the body is whole.
    pub fn finish(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyError::CutShort),
        }
    }

    fn read_trailers(&mut self, bytes: &[u8]) -> Result<Parsed, BodyError> {
        let head = self.trailers.get_or_insert_default();
        let parsed = parse_fields(bytes, self.seen, self.limits, head).map_err(|error| match error.is_too_large() {
            true => BodyError::TrailersTooLarge,
            false => BodyError::BadTrailer,
        })?;
        match parsed {
            Parsed::Partial => self.seen = bytes.len(),
            Parsed::Complete(_) => {
                head.retain(|field| !is_forbidden_trailer(field));
                if head.is_empty() {
                    self.trailers = None;
                }
            }
        }
        Ok(parsed)
    }

    /// The size in a chunk's first line, which ends with the byte before a line feed.
    fn chunk_size(&mut self, line: &[u8]) -> Result<u64, BodyError> {
        check_line(line)?;
        let line = line.strip_suffix(b"\r").ok_or(BodyError::BadChunkSize)?;
        let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extension) = line.split_at(end);
        if digits.is_empty() || digits.len() > 16 {
            return Err(BodyError::BadChunkSize);
        }
        if !extension.is_empty() {
            // Blanks before the semicolon are bad whitespace that a recipient may take ([RFC 9112], 7.1.1).
            let behind = extension.trim_ascii_start();
            if behind.first() != Some(&b';') || !super::is_field_value(extension) {
                return Err(BodyError::BadChunkSize);
            }
            self.extensions += extension.len();
            if self.extensions > MOST_EXTENSION_BYTES {
                return Err(BodyError::TooManyExtensions);
            }
        }
        let value = |digit: &u8| u64::from(char::from(*digit).to_digit(16).unwrap_or(0));
        Ok(digits.iter().fold(0, |sum, digit| sum << 4 | value(digit)))
    }
}

/// Refuses what cannot become a chunk's first line, before its end comes.
fn check_line(beginning: &[u8]) -> Result<(), BodyError> {
    match beginning.first() {
        Some(first) if !first.is_ascii_hexdigit() => Err(BodyError::BadChunkSize),
        // Its carriage return is not counted.
        _ if beginning.len() > LONGEST_CHUNK_LINE + 1 => Err(BodyError::ChunkLineTooLong),
        _ => Ok(()),
    }
}

fn nothing(consumed: usize) -> Decoded {
    Decoded { consumed, data: consumed..consumed }
}

/// Whether a field must not come behind a body ([RFC 9110], 6.5.1): what frames, routes, authenticates, or says how
/// to read what came before; and what a proxy says itself.
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub fn is_forbidden_trailer(field: FieldRef<'_>) -> bool {
    const NAMED: [&str; 16] = [
        "age",
        "authentication-info",
        "cache-control",
        "content-encoding",
        "content-range",
        "expires",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "range",
        "vary",
        "warning",
        "www-authenticate",
    ];
    match field.id {
        FieldId::ContentLength
        | FieldId::TransferEncoding
        | FieldId::Host
        | FieldId::Connection
        | FieldId::Te
        | FieldId::Trailer
        | FieldId::Upgrade
        | FieldId::KeepAlive
        | FieldId::ProxyConnection
        | FieldId::Http2Settings
        | FieldId::Expect
        | FieldId::Date
        | FieldId::RetryAfter
        | FieldId::Authorization
        | FieldId::Cookie
        | FieldId::SetCookie
        | FieldId::ContentType
        | FieldId::Forwarded
        | FieldId::XForwardedFor
        | FieldId::XForwardedProto
        | FieldId::XForwardedHost
        | FieldId::XForwardedClientCert => true,
        FieldId::Other => NAMED.iter().any(|name| name.eq_ignore_ascii_case(field.name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { max_bytes: 512, max_fields: 8 };

    /// Decodes pieces as a connection would; gives the body, and what was left behind it.
    fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, BodyDecoder), BodyError> {
        let mut decoder = BodyDecoder::new(framing, LIMITS);
        let (mut waiting, mut body) = (Vec::new(), Vec::new());
        for piece in pieces {
            waiting.extend_from_slice(piece);
            while !waiting.is_empty() && !decoder.is_done() {
                let decoded = decoder.decode(&waiting)?;
                body.extend_from_slice(&waiting[decoded.data]);
                if decoded.consumed == 0 {
                    break;
                }
                waiting.drain(..decoded.consumed);
            }
        }
        Ok((body, waiting, decoder))
    }

    #[test]
    fn chunks_are_read_strictly() {
        use BodyError::*;
        for (text, expected) in [
            ("5\r\nhello\r\n0\r\n\r\nnext", Ok("hello")),
            ("3;a=\"b\"\r\nabc\r\nA \t;x\r\n0123456789\r\n000\r\n\r\n", Ok("abc0123456789")),
            ("0\r\nX: y\r\nHost: evil\r\n\r\n", Ok("")),
            ("5\nhello\r\n0\r\n\r\n", Err(BadChunkSize)),
            (" 5\r\nhello\r\n", Err(BadChunkSize)),
            ("0x5\r\nhello\r\n", Err(BadChunkSize)),
            ("-5\r\n", Err(BadChunkSize)),
            ("5 \r\nhello\r\n", Err(BadChunkSize)),
            ("\r\n", Err(BadChunkSize)),
            (";a\r\n", Err(BadChunkSize)),
            ("5;a\0\r\n", Err(BadChunkSize)),
            ("5;a\rb\r\n", Err(BadChunkSize)),
            ("11111111111111111\r\n", Err(BadChunkSize)),
            ("5\r\nhelloX\r\n", Err(BadChunkEnd)),
            ("5\r\nhello\n0\r\n\r\n", Err(BadChunkEnd)),
            ("0\r\nX : y\r\n\r\n", Err(BadTrailer)),
            ("0\r\nX: y\n\r\n", Err(BadTrailer)),
            ("zz", Err(BadChunkSize)),
        ] {
            let outcome = decode(Framing::Chunked, &[text.as_bytes()]);
            match (outcome, expected) {
                (Ok((body, ..)), Ok(expected)) => assert_eq!(body, expected.as_bytes(), "{text:?}"),
                (Err(error), Err(expected)) => assert_eq!(error, expected, "{text:?}"),
                (outcome, _) => panic!("{text:?}: {outcome:?}"),
            }
        }
        let line = |length: usize| format!("1;{}\r\nx\r\n", "e".repeat(length - 2));
        assert!(decode(Framing::Chunked, &[line(256).as_bytes()]).is_ok());
        assert_eq!(decode(Framing::Chunked, &[line(257).as_bytes()]).map(|_| ()), Err(ChunkLineTooLong));
        let endless = format!("1;{}", "x".repeat(300));
        assert_eq!(decode(Framing::Chunked, &[endless.as_bytes()]).map(|_| ()), Err(ChunkLineTooLong));
        let many = format!("1;{}\r\nx\r\n", "x".repeat(200)).repeat(100);
        assert_eq!(decode(Framing::Chunked, &[many.as_bytes()]).map(|_| ()), Err(TooManyExtensions));
    }

    #[test]
    fn trailers_come_behind_but_none_that_frames_or_routes() {
        let (_, left, decoder) =
            decode(Framing::Chunked, &[b"0\r\nX-Sum: 1\r\nContent-Length: 5\r\nHost: evil\r\n\r\nGET"]).unwrap();
        let fields: Vec<_> = decoder.trailers().unwrap().fields().map(|field| field.name.to_owned()).collect();
        assert_eq!((fields, left), (vec!["X-Sum".to_owned()], b"GET".to_vec()));
    }

    #[test]
    fn what_is_cut_short_is_not_whole() {
        for (framing, text, whole) in [
            (Framing::Length(3), "abc", true),
            (Framing::Length(4), "abc", false),
            (Framing::UntilClose, "abc", true),
            (Framing::Chunked, "3\r\nabc\r\n", false),
            (Framing::Chunked, "3\r\nabc\r\n0\r\n", false),
            (Framing::Chunked, "3\r\nabc\r\n0\r\n\r\n", true),
        ] {
            let (.., mut decoder) = decode(framing, &[text.as_bytes()]).unwrap();
            assert_eq!(decoder.finish().is_ok(), whole, "{framing:?} {text:?}");
        }
    }

    proptest! {
        /// However the bytes are cut into pieces, the same body comes out, and what follows stays.
        #[test]
        fn pieces_do_not_matter(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..30), 0..6),
            cuts in prop::collection::vec(1..9_usize, 1..40),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x};e\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\nT: v\r\n\r\nGET /");
            let mut pieces = Vec::new();
            let mut rest = text.as_slice();
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let (body, left, decoder) = decode(Framing::Chunked, &pieces).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(left, b"GET /".to_vec());
            prop_assert!(decoder.trailers().is_some_and(|trailers| trailers.get_named("t") == Some(b"v")));
        }
    }
}
