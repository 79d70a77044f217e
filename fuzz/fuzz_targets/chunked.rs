//! A chunked body, cut anywhere: the same body, the same end and the same trailers come out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::h1::{BodyDecoder, BodyError, Framing, Limits};

const LIMITS: Limits = Limits { max_bytes: 1024, max_fields: 16 };

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(decode(bytes, usize::from(step).max(1)), decode(bytes, bytes.len().max(1)));
});

type Outcome = (Vec<u8>, Option<usize>, Option<BodyError>, Vec<(String, Vec<u8>)>);

/// The body, where it ended, what is wrong with it, and its trailers.
fn decode(bytes: &[u8], step: usize) -> Outcome {
    let mut decoder = BodyDecoder::new(Framing::Chunked, LIMITS);
    let (mut at, mut end, mut body) = (0, 0, Vec::new());
    while end < bytes.len() && !decoder.is_done() {
        end = bytes.len().min(end + step);
        while at < end && !decoder.is_done() {
            match decoder.decode(&bytes[at..end]) {
                Ok(decoded) => {
                    assert!(decoded.consumed <= end - at && decoded.data.end <= decoded.consumed);
                    body.extend_from_slice(&bytes[at..end][decoded.data]);
                    at += decoded.consumed;
                    if decoded.consumed == 0 {
                        break;
                    }
                }
                Err(error) => return (body, None, Some(error), Vec::new()),
            }
        }
    }
    let done = decoder.is_done();
    assert_eq!(decoder.finish().is_ok(), done, "what is cut short is not whole");
    let trailers = decoder.trailers().into_iter().flat_map(|trailers| trailers.fields());
    let trailers = trailers.map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
    (body, done.then_some(at), None, trailers)
}
