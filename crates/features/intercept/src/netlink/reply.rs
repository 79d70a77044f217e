//! Reads what the kernel answers.
//!
//! Promise: any bytes are read without a panic, and nothing beyond a length is looked at.

use rustix::io::Errno;

use super::{Kind, NLMSG_DONE, NLMSG_ERROR};

const HEADER: usize = 16;
/// `struct nfgenmsg`, before the attributes.
const FAMILY: usize = 4;
/// Without the flags of nested and network-ordered values.
const KIND_OF_ATTRIBUTE: u16 = 0x3fff;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The request with this number was done, or why not.
    Status { sequence: u32, outcome: Result<(), Errno> },
    /// The number of the rules' last change.
    Generation(u32),
    /// A table that there is.
    Table { name: String, comment: Option<String> },
    /// What nobody asked for.
    Other,
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's answer is cut short or malformed")]
pub(crate) struct Malformed;

/// The answers in a datagram; a malformed one is the last.
pub(crate) fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Result<Reply, Malformed>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((message, rest)) = cut(bytes, HEADER) else {
            bytes = &[];
            return Some(Err(Malformed));
        };
        bytes = rest;
        Some(read(message).ok_or(Malformed))
    })
}

/// The first message, which begins with its length, and what is behind it.
fn cut(bytes: &[u8], shortest: usize) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    if length < shortest {
        return None;
    }
    let message = bytes.get(..length)?;
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn read(message: &[u8]) -> Option<Reply> {
    let kind = u16_at(message, 4)?;
    let sequence = u32_at(message, 8)?;
    let body = message.get(HEADER..)?;
    if kind == NLMSG_DONE {
        return Some(Reply::Status { sequence, outcome: Ok(()) });
    }
    if kind == NLMSG_ERROR {
        let outcome = match u32_at(body, 0)?.cast_signed().checked_neg()? {
            0 => Ok(()),
            // The kernel knows no others.
            errno @ 1..4096 => Err(Errno::from_raw_os_error(errno)),
            _ => return None,
        };
        return Some(Reply::Status { sequence, outcome });
    }
    if kind == Kind::NewGeneration.number() {
        let generation = attribute(body.get(FAMILY..)?, 1)?;
        return Some(Reply::Generation(u32::from_be_bytes(generation.get(..4)?.try_into().ok()?)));
    }
    if kind == Kind::NewTable.number() {
        let attributes = body.get(FAMILY..)?;
        let comment = attribute(attributes, 6).and_then(comment);
        return Some(Reply::Table { name: text(attribute(attributes, 1)?), comment });
    }
    Some(Reply::Other)
}

/// The value of the first attribute of this kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & KIND_OF_ATTRIBUTE;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// The comment among user data, which is type, length and value after one another.
fn comment(mut bytes: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + length)?;
        if kind == 0 {
            return Some(text(value));
        }
        bytes = &bytes[2 + length..];
    }
}

/// Text up to its closing NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{MARK, NFPROTO_INET, Request};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let table = Request::encode(Kind::NewTable, NFPROTO_INET, 7, |attributes| {
            attributes.text(1, "outrigger").number(2, 0).comment(6, MARK);
        });
        let generation = Request::encode(Kind::NewGeneration, 0, 8, |attributes| {
            attributes.number(1, 0x0102_0304);
        });
        let read: Vec<_> = replies(&[table, generation].concat()).collect();
        let expected = Reply::Table { name: "outrigger".to_owned(), comment: Some(MARK.to_owned()) };
        assert_eq!(read, [Ok(expected), Ok(Reply::Generation(0x0102_0304))]);
    }

    #[test]
    fn errors_name_their_request() {
        for (status, expected) in [
            (0, Ok(Reply::Status { sequence: 9, outcome: Ok(()) })),
            (-17, Ok(Reply::Status { sequence: 9, outcome: Err(Errno::EXIST) })),
            (17, Err(Malformed)),
            (-4096, Err(Malformed)),
            (i32::MIN, Err(Malformed)),
        ] {
            let mut message = vec![20, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&i32::to_ne_bytes(status));
            let read: Vec<_> = replies(&message).collect();
            assert_eq!(read, [expected], "{status}");
        }
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let table = Request::encode(Kind::NewTable, NFPROTO_INET, 7, |attributes| {
            attributes.text(1, "outrigger");
        });
        for length in 1..table.len() {
            let read: Vec<_> = replies(&table[..length]).collect();
            assert_eq!(read, [Err(Malformed)], "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(replies(&bytes).count() <= bytes.len());
        }

        #[test]
        fn any_attributes_come_to_an_end(kind in prop::sample::select(vec![Kind::NewTable, Kind::NewGeneration]), body in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Request::encode(kind, 1, 1, |attributes| { attributes.bytes(6, &body); });
            prop_assert_eq!(replies(&bytes).count(), 1);
        }
    }
}
