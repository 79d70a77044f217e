//! What we forward, read by others: a request that we took, written again with its body in chunks, must mean to
//! httparse and to a plain reader of chunks what it meant to us, and nothing may follow it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::h1::{self, BodyDecoder, Framing, Limits, Parsed};
use outrigger_wire::head::{FieldId, Head};

const LIMITS: Limits = Limits { max_bytes: 8192, max_fields: 64 };

fuzz_target!(|bytes: &[u8]| {
    let mut head = Head::default();
    let Ok(Parsed::Complete(length)) = h1::parse_request(bytes, 0, LIMITS, &mut head) else { return };
    let Ok(framing) = h1::request_framing(&head) else { return };
    let mut decoder = BodyDecoder::new(framing, LIMITS);
    let Some(pieces) = body(&mut decoder, &bytes[length..]) else { return };

    // A known length goes on as it is, all else in chunks, as the proxy does it.
    let mut out = Vec::new();
    h1::write_request_head(&head, &mut out);
    for piece in &pieces {
        if framing == Framing::Chunked {
            h1::write_chunk_head(piece.len(), &mut out);
            out.extend_from_slice(piece);
            out.extend_from_slice(h1::CHUNK_END);
        } else {
            out.extend_from_slice(piece);
        }
    }
    if framing == Framing::Chunked {
        h1::write_last_chunk(decoder.trailers(), &mut out);
    }

    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut other = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(start)) = other.parse(&out) else { panic!("the head is refused") };
    assert_eq!((other.method, other.path), (Some(head.method_text()), Some(head.target())));
    for (field, other) in head.fields().zip(other.headers.iter()) {
        assert_eq!((field.name, field.value), (other.name, other.value));
    }
    assert_eq!(head.len(), other.headers.len());
    let named =
        |name: &str| other.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).collect::<Vec<_>>();
    let (lengths, codings) = (named("content-length"), named("transfer-encoding"));
    let rest = &out[start..];
    let (read, trailers) = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => (Vec::new(), Vec::new()),
        ([length], []) => {
            let length: usize = str::from_utf8(length.value).expect("digits").parse().expect("a length");
            assert_eq!(rest.len(), length, "nothing is missing, nothing follows");
            (rest.to_vec(), Vec::new())
        }
        ([], [_]) => chunks(rest),
        both => panic!("two ways to read it: {both:?}"),
    };
    assert_eq!(read, pieces.concat());
    let ours =
        decoder.trailers().map(|trailers| trailers.fields().map(|field| field.name.to_owned()).collect::<Vec<_>>());
    assert_eq!(trailers, ours.unwrap_or_default());
    assert!(decoder.trailers().is_none_or(|trailers| !trailers.contains(FieldId::ContentLength)));
});

/// The runs of a body that is whole.
fn body(decoder: &mut BodyDecoder, mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut pieces = Vec::new();
    while !decoder.is_done() && !bytes.is_empty() {
        let decoded = decoder.decode(bytes).ok()?;
        if !decoded.data.is_empty() {
            pieces.push(bytes[decoded.data].to_vec());
        }
        if decoded.consumed == 0 {
            break;
        }
        bytes = &bytes[decoded.consumed..];
    }
    decoder.is_done().then_some(pieces)
}

/// As plain a reader as can be: the body, the names of the trailers, and nothing behind them.
fn chunks(mut rest: &[u8]) -> (Vec<u8>, Vec<String>) {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a line");
        let size = str::from_utf8(&rest[..end]).expect("text");
        let size = usize::from_str_radix(size, 16).expect("a size and nothing else");
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[..size]);
        assert_eq!(&rest[size..size + 2], b"\r\n");
        rest = &rest[size + 2..];
    }
    let text = rest.strip_suffix(b"\r\n").expect("an empty line");
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let name = |line: &[u8]| String::from_utf8(line.split(|byte| *byte == b':').next().expect("a name").to_vec());
    (body, lines.map(|line| name(line).expect("a name")).collect())
}
