//! The head of a request: what we take, httparse takes with the same fields, and where the bytes were cut never matters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::h1::{self, Limits, Parsed};
use outrigger_wire::head::{Head, Version};

const LIMITS: Limits = Limits { max_bytes: 8192, max_fields: 64 };

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let mut head = Head::default();
    let outcome = h1::parse_request(bytes, 0, LIMITS, &mut head);
    let cut = usize::from(cut).min(bytes.len());
    let mut again = Head::default();
    let in_pieces = match h1::parse_request(&bytes[..cut], 0, LIMITS, &mut again) {
        Ok(Parsed::Partial) => h1::parse_request(bytes, cut, LIMITS, &mut again),
        decided => decided,
    };
    assert_eq!(in_pieces, outcome);
    let Ok(Parsed::Complete(length)) = outcome else { return };
    assert!(head.fields().eq(again.fields()));
    let _ = (h1::request_framing(&head), h1::authority(&head), h1::persists(&head));

    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Request::new(&mut fields);
    match other.parse(bytes) {
        Ok(status) => assert_eq!(status, httparse::Status::Complete(length)),
        // It knows two minor versions only; we read higher ones as the higher of them.
        Err(error) => {
            let later = error == httparse::Error::Version && head.version() == Version::Http11;
            assert!(later, "httparse refuses it: {error}");
            return;
        }
    }
    assert_eq!((other.method, other.path), (Some(head.method_text()), Some(head.target())));
    assert_eq!(other.headers.len(), head.len());
    for (field, other) in head.fields().zip(other.headers.iter()) {
        assert_eq!((field.name, field.value), (other.name, other.value));
    }
});
