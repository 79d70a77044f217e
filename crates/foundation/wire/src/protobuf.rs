//! Protobuf's wire format ([encoding]), as far as a few small messages need it.
//!
//! In: values, or a message's bytes. Out: bytes, or fields by number. Promise: a message that breaks off, or that no
//! encoder writes, ends the fields and allocates nothing; what is not known is skipped, as it must be.
//!
//! [encoding]: https://protobuf.dev/programming-guides/encoding/

/// A field's value; which type it has is for the reader to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, a flag or an enumeration.
    Number(u64),
    /// A text, bytes or another message.
    Bytes(&'a [u8]),
}

/// A message's fields in the order they came, up to where it breaks off. Those of fixed length are skipped.
pub fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        loop {
            let tag = read_varint(&mut message)?;
            let value = match tag & 7 {
                0 => Value::Number(read_varint(&mut message)?),
                1 => {
                    message = message.get(8..)?;
                    continue;
                }
                2 => {
                    let length = usize::try_from(read_varint(&mut message)?).ok()?;
                    let (value, rest) = message.split_at_checked(length)?;
                    message = rest;
                    Value::Bytes(value)
                }
                5 => {
                    message = message.get(4..)?;
                    continue;
                }
                _ => return None,
            };
            return Some((tag >> 3, value));
        }
    })
}

fn read_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Writes a number's field.
pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, value);
}

/// Writes the field of a text, of bytes or of a message.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_varint(out, (u64::from(field) << 3) | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        put_number(&mut message, 1, 259);
        put_bytes(&mut message, 16, b"no");
        put_number(&mut message, 3, u64::MAX);
        let expected = [(1, Value::Number(259)), (16, Value::Bytes(b"no")), (3, Value::Number(u64::MAX))];
        assert_eq!(fields(&message).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn fixed_fields_are_skipped_and_a_broken_message_ends() {
        let message = [0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x15, 1, 2, 3, 4, 0x08, 7];
        assert_eq!(fields(&message).collect::<Vec<_>>(), [(1, Value::Number(7))]);
        for (name, bytes) in [
            ("empty", &[][..]),
            ("a tag alone", &[0x08]),
            ("a length beyond the end", &[0x0a, 5, 1]),
            ("a group", &[0x0b]),
            ("a number that does not end", &[0xff; 40]),
        ] {
            assert_eq!(fields(bytes).next(), None, "{name}");
        }
    }
}
