//! Bytes that are no text, on their way through an engine that knows only texts.
//!
//! In: what `base64Decode` yields of a keystore, say. Out: a text in which each byte that no
//! text may hold is a character of the last private-use plane, and from that text the very
//! bytes again. Promise: rendering a template that decodes no such bytes changes nothing.

use zeroize::Zeroizing;

/// Stands for the byte 0x00 of those that are disguised; only 0x80 and above ever are.
const FIRST: u32 = 0x10_f700;

pub(super) fn disguised(bytes: &[u8]) -> Zeroizing<String> {
    // Four bytes for one at most, so that it never grows out of its buffer.
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 4));
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().filter_map(|byte| char::from_u32(FIRST + u32::from(*byte))));
    }
    text
}

pub(super) fn bared(text: &str) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut buffer = [0; 4];
    for c in text.chars() {
        match u32::from(c).checked_sub(FIRST).and_then(|byte| u8::try_from(byte).ok()).filter(|byte| *byte >= 0x80) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(&*bared(&disguised(&bytes)), &bytes);
        }
    }
}
