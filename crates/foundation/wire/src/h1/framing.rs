//! Where a message's body ends ([RFC 9112], section 6), and whether another may follow.

use super::HeadError;
use crate::head::{FieldId, Head, Method, Version};

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes, not 0.
    Length(u64),
    /// In chunks.
    Chunked,
    /// It ends with the connection.
    UntilClose,
}

impl Framing {
    fn of_length(length: u64) -> Self {
        if length == 0 { Self::Empty } else { Self::Length(length) }
    }
}

/// How a request's body is framed; every form that two readers may understand differently is refused.
pub fn request_framing(head: &Head) -> Result<Framing, HeadError> {
    let length = head.contains(FieldId::ContentLength);
    if head.contains(FieldId::TransferEncoding) {
        if head.version() == Version::Http10 {
            return Err(HeadError::CodingInHttp10);
        }
        coding(head)?;
        return if length { Err(HeadError::LengthAndCoding) } else { Ok(Framing::Chunked) };
    }
    if !length {
        return Ok(Framing::Empty);
    }
    let mut lengths = head.get_all(FieldId::ContentLength);
    let first = lengths.next().unwrap_or_default();
    if lengths.next().is_some() {
        return Err(HeadError::RepeatedContentLength);
    }
    digits(first).map(Framing::of_length).ok_or(HeadError::BadContentLength)
}

/// How the body of a response to a request with `method` is framed. Equal lengths that repeat are made one, and a
/// length beside a coding is taken out: the coding holds, but the connection must not be used again.
pub fn response_framing(head: &mut Head, method: Method) -> Result<Framing, HeadError> {
    let status = head.status();
    if head.contains(FieldId::TransferEncoding) {
        // Its framing is faulty, whatever else it says ([RFC 9112], 6.1).
        if head.version() == Version::Http10 {
            return Err(HeadError::CodingInHttp10);
        }
        coding(head)?;
        head.remove(FieldId::ContentLength);
    }
    let mut length = None;
    let mut count = 0;
    for value in head.get_all(FieldId::ContentLength) {
        let number = digits(value).ok_or(HeadError::BadContentLength)?;
        if length.replace(number).is_some_and(|other| other != number) {
            return Err(HeadError::RepeatedContentLength);
        }
        count += 1;
    }
    if count > 1
        && let Some(length) = length
    {
        head.set("Content-Length", itoa::Buffer::new().format(length).as_bytes());
    }
    let bodiless = method == Method::Head
        || (100..200).contains(&status)
        || matches!(status, 204 | 304)
        || (method == Method::Connect && (200..300).contains(&status));
    Ok(match length {
        _ if bodiless => Framing::Empty,
        _ if head.contains(FieldId::TransferEncoding) => Framing::Chunked,
        Some(length) => Framing::of_length(length),
        None => Framing::UntilClose,
    })
}

/// Whether another message may follow on the connection ([RFC 9112], 9.3).
pub fn persists(head: &Head) -> bool {
    let mut keep = head.version() != Version::Http10;
    for value in head.get_all(FieldId::Connection) {
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keep |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keep
}

/// `chunked` and nothing else: what is coded otherwise we could not pass on.
fn coding(head: &Head) -> Result<(), HeadError> {
    let mut codings = head.get_all(FieldId::TransferEncoding);
    let first = codings.next().unwrap_or_default();
    if codings.next().is_some() {
        return Err(HeadError::RepeatedTransferEncoding);
    }
    if first.eq_ignore_ascii_case(b"chunked") { Ok(()) } else { Err(HeadError::BadTransferEncoding) }
}

/// Digits and nothing else: no sign, no blank, no overflow.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: Version, status: u16, fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        head.set_version(version);
        head.set_status(status);
        for (name, value) in fields {
            head.push(name, value.as_bytes());
        }
        head
    }

    const LENGTH: &str = "content-length";
    const CODING: &str = "Transfer-Encoding";

    #[test]
    fn a_request_says_once_where_it_ends() {
        use HeadError::*;
        for (fields, expected) in [
            (&[][..], Ok(Framing::Empty)),
            (&[(LENGTH, "0")], Ok(Framing::Empty)),
            (&[(LENGTH, "12")], Ok(Framing::Length(12))),
            (&[(CODING, "Chunked")], Ok(Framing::Chunked)),
            (&[(LENGTH, "4"), (CODING, "chunked")], Err(LengthAndCoding)),
            (&[(LENGTH, "1"), (LENGTH, "1")], Err(RepeatedContentLength)),
            (&[(LENGTH, "1, 1")], Err(BadContentLength)),
            (&[(LENGTH, "+1")], Err(BadContentLength)),
            (&[(LENGTH, "")], Err(BadContentLength)),
            (&[(LENGTH, "99999999999999999999")], Err(BadContentLength)),
            (&[(CODING, "gzip, chunked")], Err(BadTransferEncoding)),
            (&[(CODING, "chunked, chunked")], Err(BadTransferEncoding)),
            (&[(CODING, "identity")], Err(BadTransferEncoding)),
            (&[(CODING, "chunked"), (CODING, "chunked")], Err(RepeatedTransferEncoding)),
        ] {
            assert_eq!(request_framing(&head(Version::Http11, 0, fields)), expected, "{fields:?}");
        }
        let old = head(Version::Http10, 0, &[(CODING, "chunked")]);
        assert_eq!(request_framing(&old), Err(CodingInHttp10));
    }

    #[test]
    fn a_response_ends_where_its_framing_or_its_status_says() {
        for (method, status, fields, expected, left) in [
            (Method::Get, 200, &[(LENGTH, "3")][..], Ok(Framing::Length(3)), 1),
            (Method::Get, 200, &[(LENGTH, "3"), (LENGTH, "3")], Ok(Framing::Length(3)), 1),
            (Method::Get, 200, &[(LENGTH, "3"), (LENGTH, "4")], Err(HeadError::RepeatedContentLength), 2),
            (Method::Get, 200, &[(LENGTH, "3"), (CODING, "chunked")], Ok(Framing::Chunked), 1),
            (Method::Get, 200, &[(CODING, "gzip, chunked")], Err(HeadError::BadTransferEncoding), 1),
            (Method::Get, 200, &[], Ok(Framing::UntilClose), 0),
            (Method::Head, 200, &[(LENGTH, "3")], Ok(Framing::Empty), 1),
            (Method::Get, 304, &[(LENGTH, "3")], Ok(Framing::Empty), 1),
            (Method::Get, 204, &[], Ok(Framing::Empty), 0),
            (Method::Connect, 200, &[], Ok(Framing::Empty), 0),
        ] {
            let mut head = head(Version::Http11, status, fields);
            assert_eq!(response_framing(&mut head, method), expected, "{status} {fields:?}");
            assert_eq!(head.len(), left, "{fields:?}");
        }
    }

    #[test]
    fn a_response_of_http_1_0_has_no_coding() {
        let mut old = head(Version::Http10, 200, &[(LENGTH, "3"), (CODING, "chunked")]);
        assert_eq!(response_framing(&mut old, Method::Get), Err(HeadError::CodingInHttp10));
    }

    #[test]
    fn a_connection_lasts_as_its_version_and_its_words_say() {
        for (version, fields, expected) in [
            (Version::Http11, &[][..], true),
            (Version::Http11, &[("connection", "close")], false),
            (Version::Http11, &[("connection", "x, Close")], false),
            (Version::Http10, &[], false),
            (Version::Http10, &[("connection", "Keep-Alive")], true),
            (Version::Http10, &[("connection", "keep-alive, close")], false),
        ] {
            assert_eq!(persists(&head(version, 0, fields)), expected, "{version:?} {fields:?}");
        }
    }
}
