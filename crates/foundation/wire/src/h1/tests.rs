//! What holds for any bytes: heads and bodies near to good ones, cut anywhere, and read again by another parser.

use proptest::prelude::*;

use super::*;
use crate::head::{Head, Method, Version};

const LIMITS: Limits = Limits { max_bytes: 160, max_fields: 6 };

type Parse = fn(&[u8], usize, Limits, &mut Head) -> Result<Parsed, HeadError>;

/// Pieces of which requests are made, good ones and bad ones.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method =
        prop::sample::select(vec!["GET", "POST", "M-SEARCH", "G(T", "get", "", "\r\nGET", "\r\n\r\nGET", "PRI"]);
    let target =
        prop::sample::select(vec!["/", "/a?b=%20|", "*", "http://a/b", "a:1", "/\u{e9}", "/a#b", "", "/a b", "/\"<>"]);
    let version = prop::sample::select(vec![
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/1.1 ",
        "HTTP/2.0",
        "http/1.1",
        "HTTP/1.",
        "",
        "HTTP/1.10",
    ]);
    (method, target, version, tail())
        .prop_map(|(method, target, version, tail)| [format!("{method} {target} {version}").as_bytes(), &tail].concat())
}

fn response() -> impl Strategy<Value = Vec<u8>> {
    let begin = prop::sample::select(vec!["HTTP/1.1 ", "HTTP/1.0 ", "HTTP/1.1", "HTTP/2 ", "ICY ", "HTTP/1.1  "]);
    let status = prop::sample::select(vec!["200", "404", "099", "20", "2000", "+20", "100", "204"]);
    let reason = prop::sample::select(vec!["", " ", " OK", " Not\tFound", " \u{e9}", " \0", "OK"]);
    (begin, status, reason, tail())
        .prop_map(|(begin, status, reason, tail)| [format!("{begin}{status}{reason}").as_bytes(), &tail].concat())
}

/// What follows a first line.
fn tail() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![
        "\r\nHost: a",
        "\r\nx-Y:z",
        "\r\nE:",
        "\r\nE: \t ",
        "\r\nT:\tv \t",
        "\r\nA: b:c",
        "\r\nContent-Length: 5",
        "\r\nTransfer-Encoding: chunked",
        "\r\nU: \u{e9}",
    ]);
    let bad = prop::sample::select(vec![
        "\nA: b",
        "\rA: b",
        "\r\n A: b",
        "\r\n\tA",
        "\r\nA : b",
        "\r\n: b",
        "\r\nA",
        "\r\nA: b\0",
        "\r\nA: b\rc",
        "\r\nA\u{e9}: b",
        "\r\nA: b\x7f",
        "\r\r\nA: b",
        "\r\nA: b\r",
        "\r\n\rA: b",
    ]);
    let field = prop_oneof![8 => good, 1 => bad].prop_map(str::to_owned);
    let end = prop_oneof![8 => Just("\r\n\r\n"), 1 => Just("\n\n"), 1 => Just("\r\n"), 1 => Just("\r\n\r")];
    (prop::collection::vec(field, 0..9), end, "[a-z\r\n]{0,8}")
        .prop_map(|(fields, end, behind)| format!("{}{end}{behind}", fields.concat()).into_bytes())
}

/// Where text is cut: steps from one cut to the next.
fn steps() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..20_usize, 1..20)
}

fn ends(length: usize, steps: &[usize]) -> Vec<usize> {
    let mut ends: Vec<_> = steps
        .iter()
        .cycle()
        .scan(0, |at, step| {
            *at += step;
            (*at < length).then_some(*at)
        })
        .collect();
    ends.push(length);
    ends
}

/// Parses as a connection does, and as one that has it all at once.
fn in_pieces(parse: Parse, bytes: &[u8], steps: &[usize]) -> (Result<Parsed, HeadError>, Head) {
    let (mut seen, mut head) = (0, Head::default());
    for end in ends(bytes.len(), steps) {
        match parse(&bytes[..end], seen, LIMITS, &mut head) {
            Ok(Parsed::Partial) => seen = end,
            decided => return (decided, head),
        }
    }
    (Ok(Parsed::Partial), head)
}

fn shown(head: &Head) -> String {
    let fields: Vec<_> = head.fields().collect();
    format!(
        "{} {} {:?} {} {} {fields:?}",
        head.method_text(),
        head.target(),
        head.version(),
        head.status(),
        head.reason().escape_ascii()
    )
}

/// That another parser finds the same fields.
fn same_fields(head: &Head, others: &[httparse::Header<'_>]) -> Result<(), TestCaseError> {
    prop_assert_eq!(head.len(), others.len());
    for (field, other) in head.fields().zip(others) {
        prop_assert_eq!((field.name, field.value), (other.name, other.value));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_requests_outcome_does_not_hang_on_its_pieces(bytes in request(), steps in steps()) {
        let mut whole = Head::default();
        let outcome = parse_request(&bytes, 0, LIMITS, &mut whole);
        let (in_pieces, head) = in_pieces(parse_request, &bytes, &steps);
        prop_assert_eq!(in_pieces, outcome);
        if matches!(outcome, Ok(Parsed::Complete(_))) {
            prop_assert_eq!(shown(&head), shown(&whole));
        }
    }

    #[test]
    fn a_responses_outcome_does_not_hang_on_its_pieces(bytes in response(), steps in steps()) {
        let mut whole = Head::default();
        let outcome = parse_response(&bytes, 0, LIMITS, &mut whole);
        let (in_pieces, head) = in_pieces(parse_response, &bytes, &steps);
        prop_assert_eq!(in_pieces, outcome);
        if matches!(outcome, Ok(Parsed::Complete(_))) {
            prop_assert_eq!(shown(&head), shown(&whole));
        }
    }

    /// What we take, another takes too, and finds the same in it; what we send of it is the same again.
    #[test]
    fn a_request_means_the_same_to_another_parser(bytes in request()) {
        let mut head = Head::default();
        let Ok(Parsed::Complete(length)) = parse_request(&bytes, 0, LIMITS, &mut head) else { return Ok(()) };
        let mut fields = [httparse::EMPTY_HEADER; 8];
        let mut other = httparse::Request::new(&mut fields);
        prop_assert_eq!(other.parse(&bytes), Ok(httparse::Status::Complete(length)));
        prop_assert_eq!((other.method, other.path), (Some(head.method_text()), Some(head.target())));
        prop_assert_eq!(other.version, Some(u8::from(head.version() == Version::Http11)));
        same_fields(&head, other.headers)?;
        let (mut out, mut again) = (Vec::new(), Head::default());
        write_request_head(&head, &mut out);
        prop_assert_eq!(parse_request(&out, 0, LIMITS, &mut again), Ok(Parsed::Complete(out.len())));
        prop_assert_eq!(shown(&again), shown(&head));
        prop_assert_eq!(request_framing(&again), request_framing(&head));
    }

    #[test]
    fn a_response_means_the_same_to_another_parser(bytes in response()) {
        let mut head = Head::default();
        let Ok(Parsed::Complete(length)) = parse_response(&bytes, 0, LIMITS, &mut head) else { return Ok(()) };
        let mut fields = [httparse::EMPTY_HEADER; 8];
        let mut other = httparse::Response::new(&mut fields);
        prop_assert_eq!(other.parse(&bytes), Ok(httparse::Status::Complete(length)));
        prop_assert_eq!((other.code, other.version), (Some(head.status()), Some(u8::from(head.version() == Version::Http11))));
        same_fields(&head, other.headers)?;
        if let Ok(framing) = response_framing(&mut head, Method::Get) {
            let (mut out, mut again) = (Vec::new(), Head::default());
            write_response_head(&head, &mut out);
            // A phrase that is put in may lead beyond the limit.
            let limits = Limits { max_bytes: 300, ..LIMITS };
            prop_assert_eq!(parse_response(&out, 0, limits, &mut again), Ok(Parsed::Complete(out.len())));
            prop_assert_eq!(response_framing(&mut again, Method::Get), Ok(framing));
        }
    }

    /// Chunks near to good ones: the same body and the same end, whatever the pieces.
    #[test]
    fn a_bodys_outcome_does_not_hang_on_its_pieces(
        parts in prop::collection::vec(
            prop_oneof![
                4 => Just("3\r\nabc\r\n".to_owned()),
                1 => prop::sample::select(vec!["3", "\r\n", "\r", "\n", "abc", "0", ";x=\"y\"", " ", "g", "T: v\r\n", "T : v"])
                    .prop_map(str::to_owned),
                1 => (250..260_usize).prop_map(|length| format!("1;{}\r\nx\r\n", "e".repeat(length - 2))),
                2 => Just("0\r\n\r\n".to_owned()),
                1 => (0..200_usize).prop_map(|length| format!("0\r\nT: {}\r\n\r\n", "v".repeat(length))),
            ],
            1..8,
        ),
        steps in steps(),
    ) {
        let bytes = parts.concat().into_bytes();
        let whole = body(&bytes, &[bytes.len()]);
        prop_assert_eq!(body(&bytes, &steps), whole);
    }
}

/// The body, whether it is whole, what is wrong with it, and its trailers.
fn body(bytes: &[u8], steps: &[usize]) -> (Vec<u8>, bool, Option<BodyError>, String) {
    let mut decoder = BodyDecoder::new(Framing::Chunked, LIMITS);
    let (mut at, mut body) = (0, Vec::new());
    for end in ends(bytes.len(), steps) {
        while at < end && !decoder.is_done() {
            match decoder.decode(&bytes[at..end]) {
                Ok(decoded) => {
                    body.extend_from_slice(&bytes[at..end][decoded.data]);
                    if decoded.consumed == 0 {
                        break;
                    }
                    at += decoded.consumed;
                }
                Err(error) => return (body, false, Some(error), String::new()),
            }
        }
    }
    let trailers = decoder.trailers().map(shown).unwrap_or_default();
    (body, decoder.is_done(), None, trailers)
}
