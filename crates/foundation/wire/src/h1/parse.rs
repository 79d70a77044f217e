//! Reads heads.
//!
//! In: bytes that begin with a head, or with the beginning of one. Out: the head, or that
//! more is needed, or why it is refused. Promise: a head that trickles in is looked at once,
//! however many the pieces.

use std::ops::Range;

use memchr::memchr;

use super::HeadError;
use crate::head::{Head, Version};

/// What a head may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes, from the first line to the empty one.
    pub max_bytes: usize,
    /// Fields.
    pub max_fields: usize,
}

/// How far a head is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// It has not come whole.
    Partial,
    /// It took so many bytes.
    Complete(usize),
}

/// The longest method; those of the registry have 17 bytes at most.
const LONGEST_METHOD: usize = 32;

/// A byte that a token may have ([RFC 9110], 5.6.2).
const TOKEN: u8 = 1;
/// A byte that a request-target may have: visible ASCII but the `#`, which some readers split at.
const TARGET: u8 = 2;

const CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        let is_token = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        if is_token {
            table[byte] |= TOKEN;
        }
        // Some that no URI has, browsers and tools send unescaped; every reader takes them for themselves.
        if b > b' ' && b < 0x7f && b != b'#' {
            table[byte] |= TARGET;
        }
        byte += 1;
    }
    table
}

fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().all(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

/// Whether this is a field's name: a token.
pub fn is_field_name(name: &[u8]) -> bool {
    !name.is_empty() && all(name, TOKEN)
}

/// Whether this may be a field's value: no control byte but the tab.
pub fn is_field_value(value: &[u8]) -> bool {
    // Without a way out in the middle the compiler makes it look at many bytes at once.
    value.iter().fold(true, |fine, byte| fine & ((*byte >= b' ' && *byte != 0x7f) | (*byte == b'\t')))
}

/// Reads a request's head. `seen` is how many of the bytes an earlier call looked at in vain.
pub fn parse_request(bytes: &[u8], seen: usize, limits: Limits, head: &mut Head) -> Result<Parsed, HeadError> {
    // One empty line before a request is what some clients send behind a body ([RFC 9112], 2.2).
    let skipped = match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\r'] => return Ok(Parsed::Partial),
        _ => 0,
    };
    let bytes = &bytes[skipped..];
    // What cannot become a request is refused at once, not when its end comes.
    if let Some(first) = bytes.first()
        && CLASSES[usize::from(*first)] & TOKEN == 0
    {
        return Err(HeadError::BadRequestLine);
    }
    let Some(length) = find_end(bytes, seen.saturating_sub(skipped), limits)? else { return Ok(Parsed::Partial) };
    head.begin(&bytes[..length]);
    let rest = request_line(&bytes[..length], head)?;
    fields(&bytes[..length], rest, limits, head)?;
    Ok(Parsed::Complete(skipped + length))
}

/// Reads a response's head. `seen` is how many of the bytes an earlier call looked at in vain.
pub fn parse_response(bytes: &[u8], seen: usize, limits: Limits, head: &mut Head) -> Result<Parsed, HeadError> {
    let start = bytes.len().min(5);
    if bytes[..start] != b"HTTP/"[..start] {
        return Err(HeadError::BadStatusLine);
    }
    let Some(length) = find_end(bytes, seen, limits)? else { return Ok(Parsed::Partial) };
    head.begin(&bytes[..length]);
    let rest = status_line(&bytes[..length], head)?;
    fields(&bytes[..length], rest, limits, head)?;
    Ok(Parsed::Complete(length))
}

/// Reads fields up to an empty line: trailers.
pub fn parse_fields(bytes: &[u8], seen: usize, limits: Limits, head: &mut Head) -> Result<Parsed, HeadError> {
    if bytes.starts_with(b"\r\n") {
        head.clear();
        return Ok(Parsed::Complete(2));
    }
    let Some(length) = find_end(bytes, seen, limits)? else { return Ok(Parsed::Partial) };
    head.begin(&bytes[..length]);
    fields(&bytes[..length], 0, limits, head)?;
    Ok(Parsed::Complete(length))
}

/// The length of a head, its empty line included, when all of it is there. Line ends are judged on the way.
fn find_end(bytes: &[u8], seen: usize, limits: Limits) -> Result<Option<usize>, HeadError> {
    // What lies beyond the limit is not looked at, so that it does not matter how much has come.
    let bytes = &bytes[..bytes.len().min(limits.max_bytes)];
    // A line's end is judged by what stands before it, be that seen or not.
    let mut at = seen.min(bytes.len());
    while let Some(found) = memchr(b'\n', &bytes[at..]) {
        let end = at + found;
        if end == 0 || bytes[end - 1] != b'\r' {
            return Err(HeadError::BareLf);
        }
        if end >= 3 && bytes[end - 2] == b'\n' {
            return Ok(Some(end + 1));
        }
        at = end + 1;
    }
    if bytes.len() >= limits.max_bytes { Err(HeadError::TooLarge) } else { Ok(None) }
}

/// The line from `start`, without its end, and where the next begins. Ends are known to be CRLF.
fn line(bytes: &[u8], start: usize) -> Range<usize> {
    let end = memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |end| start + end);
    start..end.saturating_sub(1).max(start)
}

fn request_line(bytes: &[u8], head: &mut Head) -> Result<usize, HeadError> {
    let range = line(bytes, 0);
    let text = &bytes[range.clone()];
    let method = memchr(b' ', text).ok_or(HeadError::BadRequestLine)?;
    if method == 0 || method > LONGEST_METHOD || !all(&text[..method], TOKEN) {
        return Err(HeadError::BadMethod);
    }
    let rest = &text[method + 1..];
    let target = memchr(b' ', rest).ok_or(HeadError::BadRequestLine)?;
    if target == 0 {
        return Err(HeadError::BadRequestLine);
    }
    if !all(&rest[..target], TARGET) {
        return Err(HeadError::BadTarget);
    }
    let target = method + 1..method + 1 + target;
    let version = version(&text[target.end + 1..])?;
    head.place_request(0..method, target, version);
    Ok(range.end + 2)
}

fn version(text: &[u8]) -> Result<Version, HeadError> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        // A higher minor version is read as the highest known one ([RFC 9110], 2.5).
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => Ok(Version::Http11),
        _ if text.len() < 5 || !text[..5].eq_ignore_ascii_case(b"HTTP/") => Err(HeadError::NotHttp),
        _ => Err(HeadError::BadVersion),
    }
}

fn status_line(bytes: &[u8], head: &mut Head) -> Result<usize, HeadError> {
    let range = line(bytes, 0);
    let text = &bytes[range.clone()];
    let (Some(version_text), Some(rest)) = (text.get(..8), text.get(8..)) else {
        return Err(HeadError::BadStatusLine);
    };
    let version = version(version_text).map_err(|_| HeadError::BadStatusLine)?;
    let digits = match rest {
        [b' ', a, b, c] => [*a, *b, *c],
        [b' ', a, b, c, b' ', ..] => [*a, *b, *c],
        _ => return Err(HeadError::BadStatusLine),
    };
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' {
        return Err(HeadError::BadStatusLine);
    }
    let status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    let reason = (8 + 5).min(text.len())..text.len();
    if !is_field_value(&text[reason.clone()]) {
        return Err(HeadError::BadStatusLine);
    }
    head.place_status(version, status, reason);
    Ok(range.end + 2)
}

/// Reads the fields from `start` to the empty line, with which `bytes` end.
fn fields(bytes: &[u8], start: usize, limits: Limits, head: &mut Head) -> Result<(), HeadError> {
    let mut at = start;
    loop {
        let range = line(bytes, at);
        if range.is_empty() {
            return Ok(());
        }
        let text = &bytes[range.clone()];
        if matches!(text[0], b' ' | b'\t') {
            return Err(HeadError::Folded);
        }
        if head.len() >= limits.max_fields {
            return Err(HeadError::TooManyFields);
        }
        let colon = memchr(b':', text).ok_or(HeadError::BadFieldName)?;
        if !is_field_name(&text[..colon]) {
            return Err(HeadError::BadFieldName);
        }
        let value = trim(text, colon + 1);
        if !is_field_value(&text[value.clone()]) {
            let cr = text[value].contains(&b'\r');
            return Err(if cr { HeadError::BareCr } else { HeadError::BadFieldValue });
        }
        head.place_field(at..at + colon, at + value.start..at + value.end);
        at = range.end + 2;
    }
}

/// What is left of `text` from `start` without blanks and tabs around it.
fn trim(text: &[u8], start: usize) -> Range<usize> {
    let (mut from, mut to) = (start, text.len());
    while from < to && matches!(text[from], b' ' | b'\t') {
        from += 1;
    }
    while to > from && matches!(text[to - 1], b' ' | b'\t') {
        to -= 1;
    }
    from..to
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_bytes: 1024, max_fields: 4 };

    fn request(text: &str) -> Result<(Parsed, Head), HeadError> {
        let mut head = Head::default();
        parse_request(text.as_bytes(), 0, LIMITS, &mut head).map(|parsed| (parsed, head))
    }

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let text = "\r\nPOST /a?b=%20 HTTP/1.1\r\nHost: a:1\r\nX-Y:\t z \r\nEmpty:\r\n\r\nbody";
        let (parsed, head) = request(text).unwrap();
        assert_eq!(parsed, Parsed::Complete(text.len() - 4));
        assert_eq!((head.method_text(), head.target(), head.version()), ("POST", "/a?b=%20", Version::Http11));
        let fields: Vec<_> = head.fields().map(|field| (field.name, field.value)).collect();
        assert_eq!(fields, [("Host", &b"a:1"[..]), ("X-Y", b"z"), ("Empty", b"")]);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        use HeadError::*;
        for (text, error) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", BareLf),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", BareLf),
            ("GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", BareCr),
            ("GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", Folded),
            ("GET / HTTP/1.1\r\n X: a\r\n\r\n", Folded),
            ("GET / HTTP/1.1\r\nX : a\r\n\r\n", BadFieldName),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", BadFieldName),
            ("GET / HTTP/1.1\r\nX\r\n\r\n", BadFieldName),
            ("GET / HTTP/1.1\r\nX\u{e9}: a\r\n\r\n", BadFieldName),
            ("GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", BadFieldValue),
            ("GET / HTTP/1.1\r\nX: a\x7fb\r\n\r\n", BadFieldValue),
            ("GET  / HTTP/1.1\r\n\r\n", BadRequestLine),
            ("GET /  HTTP/1.1\r\n\r\n", NotHttp),
            ("INVALID CONNECTION PREFACE\r\n\r\n", NotHttp),
            ("GET / HTTP/1.1 \r\n\r\n", BadVersion),
            ("GET / HTTP/2.0\r\n\r\n", BadVersion),
            ("GET / http/1.1\r\n\r\n", BadVersion),
            ("GET / HTTP/1.10\r\n\r\n", BadVersion),
            ("GET /\r\n\r\n", BadRequestLine),
            ("GET\r\n\r\n", BadRequestLine),
            ("G\tT / HTTP/1.1\r\n\r\n", BadMethod),
            ("G(T / HTTP/1.1\r\n\r\n", BadMethod),
            ("GET /\u{e9} HTTP/1.1\r\n\r\n", BadTarget),
            ("GET /\x01 HTTP/1.1\r\n\r\n", BadTarget),
            ("GET /a#b HTTP/1.1\r\n\r\n", BadTarget),
            ("\r\n\r\nGET / HTTP/1.1\r\n\r\n", BadRequestLine),
            ("\x16\x03\x01", BadRequestLine),
            ("GET / HTTP/1.1\r\na: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\n\r\n", TooManyFields),
        ] {
            assert_eq!(request(text).map(|(parsed, _)| parsed), Err(error), "{text:?}");
        }
        let method = |length| format!("{} / HTTP/1.7\r\n\r\n", "M".repeat(length));
        assert_eq!(request(&method(32)).map(|(_, head)| head.version()), Ok(Version::Http11), "a higher minor version");
        assert_eq!(request(&method(33)).map(|(parsed, _)| parsed), Err(BadMethod));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2000));
        assert_eq!(request(&long).map(|(parsed, _)| parsed), Err(TooLarge));
        assert_eq!(request(&long[..1500]).map(|(parsed, _)| parsed), Err(TooLarge), "without its end too");
    }

    #[test]
    fn a_response_may_lack_its_phrase_and_nothing_else() {
        let mut head = Head::default();
        for (text, status, reason) in [
            ("HTTP/1.1 200 OK\r\n\r\n", 200, "OK"),
            ("HTTP/1.1 404 Not Found\r\nA: b\r\n\r\n", 404, "Not Found"),
            ("HTTP/1.0 204 \r\n\r\n", 204, ""),
            ("HTTP/1.1 301\r\n\r\n", 301, ""),
        ] {
            let parsed = parse_response(text.as_bytes(), 0, LIMITS, &mut head);
            assert_eq!(parsed, Ok(Parsed::Complete(text.len())), "{text}");
            assert_eq!((head.status(), head.reason()), (status, reason.as_bytes()), "{text}");
        }
        for text in [
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1  200\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 099 x\r\n\r\n",
            "HTTP/1.1200 OK\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
        ] {
            assert!(parse_response(text.as_bytes(), 0, LIMITS, &mut head).is_err(), "{text}");
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = b"GET /x HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\nrest";
        let mut head = Head::default();
        for end in 0..text.len() - 4 {
            assert_eq!(parse_request(&text[..end], end.saturating_sub(1), LIMITS, &mut head), Ok(Parsed::Partial));
        }
        for seen in 0..text.len() - 4 {
            assert_eq!(parse_request(text, seen, LIMITS, &mut head), Ok(Parsed::Complete(text.len() - 4)), "{seen}");
        }
    }
}
