//! The head of a response: what we take, httparse takes with the same fields, and where the bytes were cut never matters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::h1::{self, Limits, Parsed};
use outrigger_wire::head::{FieldId, Head, Method, Version};

const LIMITS: Limits = Limits { max_bytes: 8192, max_fields: 64 };

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let mut head = Head::default();
    let outcome = h1::parse_response(bytes, 0, LIMITS, &mut head);
    let cut = usize::from(cut).min(bytes.len());
    let mut again = Head::default();
    let in_pieces = match h1::parse_response(&bytes[..cut], 0, LIMITS, &mut again) {
        Ok(Parsed::Partial) => h1::parse_response(bytes, cut, LIMITS, &mut again),
        decided => decided,
    };
    assert_eq!(in_pieces, outcome);
    let Ok(Parsed::Complete(length)) = outcome else { return };
    assert!(head.fields().eq(again.fields()));

    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Response::new(&mut fields);
    match other.parse(bytes) {
        Ok(status) => {
            assert_eq!(status, httparse::Status::Complete(length));
            assert_eq!(other.code, Some(head.status()));
            assert_eq!(other.headers.len(), head.len());
            for (field, other) in head.fields().zip(other.headers.iter()) {
                assert_eq!((field.name, field.value), (other.name, other.value));
            }
        }
        Err(error) => {
            let later = error == httparse::Error::Version && head.version() == Version::Http11;
            assert!(later, "httparse refuses it: {error}");
        }
    }
    for method in [Method::Get, Method::Head, Method::Connect] {
        again.copy_from(&head);
        if h1::response_framing(&mut again, method).is_ok() {
            let both = again.contains(FieldId::ContentLength) && again.contains(FieldId::TransferEncoding);
            assert!(!both && again.get_all(FieldId::ContentLength).count() <= 1, "settled");
        }
    }
});
