//! Writes heads and the framing of chunks.

use crate::head::{Head, Version};

/// What ends a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Most heads fit; growing by steps would copy them.
const USUAL: usize = 1024;

/// Writes a request's head: the names as they are in it, in their order.
pub fn write_request_head(head: &Head, out: &mut Vec<u8>) {
    out.reserve(USUAL);
    out.extend_from_slice(head.method_text().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target().as_bytes());
    out.push(b' ');
    out.extend_from_slice(version(head));
    out.extend_from_slice(b"\r\n");
    write_fields(head, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes a response's head.
pub fn write_response_head(head: &Head, out: &mut Vec<u8>) {
    out.reserve(USUAL);
    out.extend_from_slice(version(head));
    out.push(b' ');
    out.extend_from_slice(itoa::Buffer::new().format(head.status()).as_bytes());
    out.push(b' ');
    let reason = head.reason();
    // HTTP/2 has no phrases; some readers of HTTP/1 miss them.
    out.extend_from_slice(if reason.is_empty() { usual_reason(head.status()) } else { reason });
    out.extend_from_slice(b"\r\n");
    write_fields(head, out);
    out.extend_from_slice(b"\r\n");
}

/// Writes the line before a chunk of `length` bytes, which is not 0.
pub fn write_chunk_head(length: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut line = [0; 18];
    let mut at = 16;
    line[16..].copy_from_slice(b"\r\n");
    let mut rest = length;
    loop {
        at -= 1;
        line[at] = DIGITS[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&line[at..]);
}

/// Writes the end of a chunked body.
pub fn write_last_chunk(trailers: Option<&Head>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        write_fields(trailers, out);
    }
    out.extend_from_slice(b"\r\n");
}

fn version(head: &Head) -> &'static [u8] {
    if head.version() == Version::Http10 { b"HTTP/1.0" } else { b"HTTP/1.1" }
}

fn write_fields(head: &Head, out: &mut Vec<u8>) {
    for (_, name, value) in head.raw_fields() {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

fn usual_reason(status: u16) -> &'static [u8] {
    match status {
        100 => b"Continue",
        101 => b"Switching Protocols",
        103 => b"Early Hints",
        200 => b"OK",
        201 => b"Created",
        202 => b"Accepted",
        204 => b"No Content",
        206 => b"Partial Content",
        301 => b"Moved Permanently",
        302 => b"Found",
        303 => b"See Other",
        304 => b"Not Modified",
        307 => b"Temporary Redirect",
        308 => b"Permanent Redirect",
        400 => b"Bad Request",
        401 => b"Unauthorized",
        403 => b"Forbidden",
        404 => b"Not Found",
        405 => b"Method Not Allowed",
        408 => b"Request Timeout",
        409 => b"Conflict",
        413 => b"Content Too Large",
        415 => b"Unsupported Media Type",
        422 => b"Unprocessable Content",
        429 => b"Too Many Requests",
        431 => b"Request Header Fields Too Large",
        500 => b"Internal Server Error",
        501 => b"Not Implemented",
        502 => b"Bad Gateway",
        503 => b"Service Unavailable",
        504 => b"Gateway Timeout",
        _ => b"",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Limits, Parsed, parse_request};
    use super::*;

    #[test]
    fn what_is_written_is_what_was_read() {
        let text = "PATCH /x?y HTTP/1.1\r\nHOST: a\r\nx-B: c, d\r\nE: \r\n\r\n";
        let mut head = Head::default();
        let limits = Limits { max_bytes: 100, max_fields: 9 };
        assert_eq!(parse_request(text.as_bytes(), 0, limits, &mut head), Ok(Parsed::Complete(text.len())));
        let mut out = Vec::new();
        write_request_head(&head, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn chunks_have_their_length_in_hexadecimal() {
        for (length, line) in
            [(1, "1\r\n"), (0x1f, "1f\r\n"), (65536, "10000\r\n"), (usize::MAX, "ffffffffffffffff\r\n")]
        {
            let mut out = Vec::new();
            write_chunk_head(length, &mut out);
            assert_eq!(out, line.as_bytes());
        }
    }
}
