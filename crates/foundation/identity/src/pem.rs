//! Reads PEM ([RFC 7468], and the older forms with headers) into its blocks, and writes it.
//!
//! In: the bytes of a file. Out: blocks in order, or the line that is wrong. Promise: never
//! panics, whatever the file holds; no error repeats a byte of it but the block's label;
//! decoded bytes are overwritten when dropped, for they may be a key.
//!
//! [RFC 7468]: https://www.rfc-editor.org/rfc/rfc7468

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The longest label worth showing.
const LABEL: usize = 64;

/// One PEM block.
pub(crate) struct Block {
    /// What stands between `BEGIN` and the dashes.
    pub(crate) label: String,
    /// It is encrypted in the old way (`Proc-Type: 4,ENCRYPTED`): its bytes are of no use.
    pub(crate) encrypted: bool,
    /// The decoded bytes.
    pub(crate) der: Zeroizing<Vec<u8>>,
}

/// What is wrong with a file, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) problem: &'static str,
}

/// All blocks of a file; text between blocks is skipped.
pub(crate) fn blocks(bytes: &[u8]) -> Result<Vec<Block>, Malformed> {
    let mut blocks = Vec::new();
    let mut lines = bytes.split(|byte| *byte == b'\n').enumerate().map(|(at, line)| (at + 1, line.trim_ascii()));
    while let Some((begin, line)) = lines.next() {
        if let Some(label) = label(line, b"-----BEGIN ") {
            blocks.push(block(label, begin, &mut lines)?);
        }
    }
    Ok(blocks)
}

/// A block as text.
pub fn write_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 2 * label.len() + 64);
    out.extend(["-----BEGIN ", label, "-----\n"]);
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.extend(["-----END ", label, "-----\n"]);
    out
}

/// Whether bytes look like DER: a SEQUENCE whose length fills the file.
pub(crate) fn looks_like_der(bytes: &[u8]) -> bool {
    let (header, length) = match bytes {
        [0x30, short @ ..=0x7f, ..] => (2, usize::from(*short)),
        [0x30, 0x81, a, ..] => (3, usize::from(*a)),
        [0x30, 0x82, a, b, ..] => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        [0x30, 0x83, a, b, c, ..] => (5, u32::from_be_bytes([0, *a, *b, *c]) as usize),
        _ => return false,
    };
    bytes.len() == header + length
}

fn block<'a>(
    label_text: &str,
    begin: usize,
    lines: &mut impl Iterator<Item = (usize, &'a [u8])>,
) -> Result<Block, Malformed> {
    let mut text = Zeroizing::new(Vec::new());
    let mut last = begin;
    let mut encrypted = false;
    // Headers may only stand before the first line of data, which is where a colon cannot be.
    let mut in_headers = true;
    for (at, line) in lines {
        last = at;
        if let Some(end) = label(line, b"-----END ") {
            if end != label_text {
                return Err(Malformed { line: at, problem: "this END does not match the BEGIN before it" });
            }
            let der = if encrypted { Zeroizing::default() } else { decode(&text, begin)? };
            return Ok(Block { label: label_text.to_owned(), encrypted, der });
        }
        if line.starts_with(b"-----BEGIN ") {
            return Err(Malformed { line: at, problem: "a block begins before the one before it has ended" });
        }
        in_headers &= line.is_empty() || line.contains(&b':') || (encrypted && text.is_empty());
        if line.contains(&b':') {
            encrypted |= line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED");
        } else if !encrypted {
            text.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace()));
        }
        if !in_headers && line.contains(&b':') {
            return Err(Malformed { line: at, problem: "a header stands in the middle of the data" });
        }
    }
    Err(Malformed { line: last, problem: "the file ends within a block (is it still being written?)" })
}

fn label<'a>(line: &'a [u8], prefix: &[u8]) -> Option<&'a str> {
    let label = line.strip_prefix(prefix)?.strip_suffix(b"-----")?;
    let label = std::str::from_utf8(label).ok()?;
    (label.len() <= LABEL && label.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')).then_some(label)
}

/// Base64 with the standard alphabet; padding may be absent.
fn decode(text: &[u8], line: usize) -> Result<Zeroizing<Vec<u8>>, Malformed> {
    let not_base64 = Malformed { line, problem: "the block that begins here is not valid base64" };
    let padding = text.iter().rev().take(2).filter(|byte| **byte == b'=').count();
    let data = &text[..text.len() - padding];
    if data.len() % 4 == 1 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return Err(not_base64);
    }
    // Exactly as large as needed: growing would leave copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(data.len() / 4 * 3 + 3));
    for group in data.chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            let Some(six) = six_bits(*byte) else { return Err(not_base64) };
            bits = bits << 6 | six;
        }
        let bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        out.extend_from_slice(&bytes[1..group.len()]);
    }
    if out.is_empty() {
        return Err(Malformed { line, problem: "the block that begins here is empty" });
    }
    Ok(out)
}

fn six_bits(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(text: &str) -> Result<Vec<String>, Malformed> {
        blocks(text.as_bytes()).map(|blocks| blocks.into_iter().map(|block| block.label).collect())
    }

    #[test]
    fn forms_in_the_wild() {
        let plain = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        let rows = [
            ("plain", plain.to_owned()),
            ("CRLF", plain.replace('\n', "\r\n")),
            ("text before, as `openssl x509 -text` writes it", format!("Certificate:\n    Data: x\n{plain}")),
            ("no newline at the end", plain.trim_end().to_owned()),
            ("indented", plain.replace('\n', "\n  ")),
            ("broken into odd lines", plain.replace("AAEC", "A\nAE\nC")),
            ("a byte order mark before a comment", format!("\u{feff}# mine\n{plain}")),
            (
                "attributes before, as `openssl pkcs12` writes them",
                format!("Bag Attributes\n    localKeyID: 01\n{plain}"),
            ),
        ];
        for (name, text) in rows {
            let blocks = blocks(text.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert_eq!(blocks.len(), 1, "{name}");
            assert_eq!(blocks[0].der.as_slice(), [0, 1, 2], "{name}");
        }
    }

    #[test]
    fn padding_of_every_length() {
        for (text, bytes) in [("AA==", &[0][..]), ("AAE=", &[0, 1]), ("AAEC", &[0, 1, 2]), ("AAECAw==", &[0, 1, 2, 3])]
        {
            assert_eq!(decode(text.as_bytes(), 1).unwrap().as_slice(), bytes);
            assert_eq!(decode(text.trim_end_matches('=').as_bytes(), 1).unwrap().as_slice(), bytes);
        }
    }

    #[test]
    fn an_old_encrypted_key_is_recognised() {
        let text = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0011\n\nAAEC\n-----END RSA PRIVATE KEY-----\n";
        let blocks = blocks(text.as_bytes()).unwrap();
        assert!(blocks[0].encrypted);
        assert!(blocks[0].der.is_empty());
    }

    #[test]
    fn mistakes_name_their_line() {
        let rows = [
            ("half-written", "-----BEGIN X-----\nAAEC\n", 3),
            ("half a line", "-----BEGIN X-----\nAAE", 2),
            ("wrong end", "-----BEGIN X-----\nAAEC\n-----END Y-----\n", 3),
            ("nested", "-----BEGIN X-----\nAAEC\n-----BEGIN X-----\n", 3),
            ("not base64", "\n-----BEGIN X-----\nA*EC\n-----END X-----\n", 2),
            ("wrong length", "-----BEGIN X-----\nAAECA\n-----END X-----\n", 1),
            ("padding in the middle", "-----BEGIN X-----\nAA==AAEC\n-----END X-----\n", 1),
            ("empty", "-----BEGIN X-----\n-----END X-----\n", 1),
            ("a late header", "-----BEGIN X-----\nAAEC\nA: b\n-----END X-----\n", 3),
        ];
        for (name, text, line) in rows {
            assert_eq!(labels(text).unwrap_err().line, line, "{name}");
        }
    }

    #[test]
    fn der_is_recognised_by_its_length() {
        assert!(looks_like_der(&[0x30, 0x01, 0x05]));
        assert!(!looks_like_der(&[0x30, 0x02, 0x05]));
        assert!(!looks_like_der(b"0 is a digit"));
        assert!(!looks_like_der(b""));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = blocks(&bytes);
            let _ = looks_like_der(&bytes);
        }

        #[test]
        fn never_panics_near_pem(text in "(-----(BEGIN|END) [AB]-----\n|[A-Za-z0-9+/=:, ]{0,9}\r?\n|Proc-Type: 4,ENCRYPTED\n){0,12}") {
            let _ = blocks(text.as_bytes());
        }

        #[test]
        fn what_was_encoded_comes_back(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            use rustls::pki_types::CertificateDer;
            use rustls::pki_types::pem::PemObject;
            let text = pem_of("CERTIFICATE", &bytes);
            let ours = blocks(text.as_bytes()).unwrap();
            prop_assert_eq!(ours[0].der.as_slice(), bytes.as_slice());
            let theirs = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            prop_assert_eq!(theirs.as_ref(), bytes.as_slice());
        }
    }

    pub(crate) fn pem_of(label: &str, bytes: &[u8]) -> String {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let mut three = [0u8; 3];
            three[..group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
            for at in 0..4 {
                let six = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
                text.push(if at <= group.len() { char::from(six) } else { '=' });
            }
            if text.len() % 65 == 64 {
                text.push('\n');
            }
        }
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }
}
