//! Bytes that two readers may understand differently, and what becomes of them: refused before the application hears
//! anything, or forwarded as exactly one request that can be read in one way only.

use std::io::Write;

use crate::OK;
use crate::harness::{App, Client, Proxy};
use crate::http2::{END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Answered so, and the connection ends.
    Refused(u16),
    /// The connection ends without a word.
    Closed,
    /// The application sees one request that begins so.
    Forwarded(&'static str),
}
use Fate::{Closed, Forwarded, Refused};

const BAD: Fate = Refused(400);

const HTTP1: &[(&str, &str, Fate)] = &[
    // Lengths.
    ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", BAD),
    ("one length twice", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", BAD),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", BAD),
    ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", BAD),
    ("a negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx", BAD),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", BAD),
    ("a length with a fraction", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1.0\r\n\r\nx", BAD),
    ("a length with a blank in it", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 0\r\n\r\nx", BAD),
    ("a length with an underscore", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\nx", BAD),
    ("no length at all", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nx", BAD),
    ("a length beyond 64 bits", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\nx", BAD),
    (
        "a length with zeros before it",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0001\r\n\r\nx",
        Forwarded("POST / "),
    ),
    (
        "a length with blanks around",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t1 \r\n\r\nx",
        Forwarded("POST / "),
    ),
    ("a length with form feed", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \x0c1\r\n\r\nx", BAD),
    // Codings.
    (
        "both framings",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "both, reversed",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    ("a coding we do not know", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", BAD),
    ("another before chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", BAD),
    ("chunked is not last", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", BAD),
    ("chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", BAD),
    (
        "chunked in two fields",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "identity and chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    ("identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", BAD),
    ("a blank before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", BAD),
    ("a tab before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", BAD),
    (
        "a vertical tab before chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    ("a parameter", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", BAD),
    ("in quotes", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", BAD),
    ("an empty coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", BAD),
    ("a folded coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", BAD),
    (
        "the field behind a bare line feed",
        "POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "the field behind a bare carriage return",
        "POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    (
        "chunked in capitals",
        "POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n",
        Forwarded("POST / "),
    ),
    (
        "a name that is nearly one",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent-Length: 1\r\n\r\nx",
        Forwarded("POST / "),
    ),
    // Chunks.
    ("a size with 0x", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", BAD),
    ("a signed size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n", BAD),
    (
        "a blank before the size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 1\r\nx\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "a size beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n",
        BAD,
    ),
    ("no size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n", BAD),
    (
        "a size behind a bare line feed",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "a chunk longer than its size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "a chunk that ends in a bare line feed",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n",
        BAD,
    ),
    (
        "a line feed in an extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "a carriage return in an extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\rb\r\nx\r\n0\r\n\r\n",
        BAD,
    ),
    (
        "an extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\n\r\n",
        Forwarded("POST / "),
    ),
    (
        "a folded trailer",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n",
        BAD,
    ),
    // Lines and fields.
    ("bare line feeds", "GET / HTTP/1.1\nHost: a\n\n", BAD),
    ("a folded field", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", BAD),
    ("a field folded by a tab", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", BAD),
    ("a blank before the first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", BAD),
    ("a field without a colon", "GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", BAD),
    ("a field without a name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", BAD),
    ("a name with a blank", "GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", BAD),
    ("a name with a bracket", "GET / HTTP/1.1\r\nHost: a\r\nX(Y): z\r\n\r\n", BAD),
    ("a name that is not ASCII", "GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: z\r\n\r\n", BAD),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", BAD),
    ("NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0: z\r\n\r\n", BAD),
    ("a carriage return in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", BAD),
    ("an escape in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[0m\r\n\r\n", BAD),
    ("a value that is not ASCII", "GET / HTTP/1.1\r\nHost: a\r\nX: \u{e9}\r\n\r\n", Forwarded("GET / ")),
    ("two empty lines before it", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("an empty line before it", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET / ")),
    // The first line.
    ("no version", "GET /\r\n\r\n", BAD),
    ("a version we do not know", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", BAD),
    ("a version in small letters", "GET / http/1.1\r\nHost: a\r\n\r\n", BAD),
    ("two blanks behind the method", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("a tab behind the method", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("a blank in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Closed),
    ("a method with a bracket", "G[T / HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("a method of forty letters", "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM / HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("a method in small letters", "get / HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("get / ")),
    ("a fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("a target that is not ASCII", "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("what is not HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n", BAD),
    ("TLS on a plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03\r\n\r\n", BAD),
    // Hosts and authorities.
    ("no Host", "GET / HTTP/1.1\r\n\r\n", BAD),
    ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", BAD),
    ("one Host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", BAD),
    ("a list of Hosts", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", BAD),
    ("a user in Host", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", BAD),
    ("a path in Host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BAD),
    ("a blank in Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", BAD),
    ("a user in the authority", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("no authority", "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("another scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("no slash", "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("a star without OPTIONS", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    (
        "an authority that differs from Host",
        "GET http://a/x HTTP/1.1\r\nHost: b\r\n\r\n",
        Forwarded("GET /x HTTP/1.1\r\nHost: a\r\n"),
    ),
    // Paths, as they are judged by default, and what is forwarded.
    ("dots", "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /b ")),
    ("escaped dots", "GET /a/%2e%2E/b HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /b ")),
    ("dots, one escaped", "GET /a/.%2e/b HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /b ")),
    ("dots above the root", "GET /../b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("escaped dots above the root", "GET /a/%2e%2e/%2e%2e/b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("dots and an escaped slash", "GET /a/%2e%2e%2fb HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("dots with a parameter", "GET /a/..;/b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("dots with a parameter of a value", "GET /a/..;x=y/b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("escaped twice", "GET /a/%252e%252e/b HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /a/%252e%252e/b ")),
    ("two slashes", "GET //a//b HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET //a//b ")),
    ("a backslash", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("an escaped backslash", "GET /a%5Cb HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /a%5Cb ")),
    ("dots and an escaped backslash", "GET /a/..%5cb HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("an escaped NUL", "GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("half an escape", "GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("an escape of no digits", "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n", BAD),
    ("small digits", "GET /%c3%a4 HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /%C3%A4 ")),
    ("an escaped letter", "GET /%61dmin HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /admin ")),
    ("an escaped slash", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /a%2Fb ")),
    ("dots in the query", "GET /a?x=/../b HTTP/1.1\r\nHost: a\r\n\r\n", Forwarded("GET /a?x=/../b ")),
];

#[tokio::test]
async fn http1_is_read_in_one_way_or_not_at_all() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut wrong = Vec::new();
    for (name, bytes, fate) in HTTP1 {
        let before = app.seen().len();
        let mut client = Client::connect(proxy.port);
        // Latin-1, so that a byte is a byte.
        let raw: Vec<u8> = bytes.chars().map(|c| u8::try_from(c as u32).expect("Latin-1")).collect();
        let answer = client.ask_bytes(&raw);
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        // What follows on the connection is its own request, or nothing.
        let goes_on = matches!(fate, Forwarded(_)) && !answer.to_lowercase().contains("connection: close");
        let next = if goes_on {
            client.ask("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        } else {
            let _ = client.socket().shutdown(std::net::Shutdown::Write);
            client.read_to_end()
        };
        let seen: Vec<_> = app.seen().split_off(before);
        // A body is streamed: the head of one that turns out bad may have gone, but never as a whole request.
        let heard: Vec<&str> = seen.iter().map(String::as_str).filter(|one| !one.starts_with("GET /next ")).collect();
        let came = match (code, heard.as_slice()) {
            (Some(200), [one]) => match fate {
                Forwarded(start) if one.starts_with(start) => *fate,
                _ => Forwarded("something else"),
            },
            (Some(code), []) => Refused(code),
            (None, []) => Closed,
            _ => Forwarded("more than one"),
        };
        if came != *fate || goes_on != next.starts_with("HTTP/1.1 200") || (!goes_on && !next.is_empty()) {
            wrong.push(format!("{name}: {came:?} instead of {fate:?}; {answer:?}, then {next:?}; {heard:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(HTTP1.len() > 80, "{} rows", HTTP1.len());
    proxy.stop().await;
}

/// What becomes of a request of HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate2 {
    /// The stream is reset, or the connection ended.
    Broken,
    /// Answered by us with 400.
    Bad,
    Forwarded(&'static str),
}

/// A request's pseudo-header fields, its other fields, its body if it has one, and what becomes of it.
type Row2 = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [(&'static str, &'static str)],
    Option<&'static str>,
    Fate2,
);

const PLAIN: &[(&str, &str)] = &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
const POST: &[(&str, &str)] = &[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

const HTTP2: &[Row2] = &[
    ("an ordinary one", PLAIN, &[("x", "y")], None, Fate2::Forwarded("GET / ")),
    ("a line's end in a value", PLAIN, &[("x", "y\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n")], None, Fate2::Broken),
    ("a line feed in a value", PLAIN, &[("x", "y\nz: 1")], None, Fate2::Broken),
    ("a carriage return in a value", PLAIN, &[("x", "y\rz: 1")], None, Fate2::Broken),
    ("NUL in a value", PLAIN, &[("x", "y\0")], None, Fate2::Broken),
    ("a line's end in a name", PLAIN, &[("x\r\ny", "z")], None, Fate2::Broken),
    ("a colon in a name", PLAIN, &[("x: y", "z")], None, Fate2::Broken),
    ("a blank in a name", PLAIN, &[("x y", "z")], None, Fate2::Broken),
    ("capitals in a name", PLAIN, &[("X", "z")], None, Fate2::Broken),
    ("an empty name", PLAIN, &[("", "z")], None, Fate2::Broken),
    ("blanks around a value", PLAIN, &[("x", " y ")], None, Fate2::Forwarded("GET / ")),
    ("a coding", POST, &[("transfer-encoding", "chunked")], Some("0\r\n\r\n"), Fate2::Broken),
    ("a connection field", PLAIN, &[("connection", "close")], None, Fate2::Broken),
    ("an upgrade", PLAIN, &[("upgrade", "h2c")], None, Fate2::Broken),
    ("te beyond trailers", PLAIN, &[("te", "gzip")], None, Fate2::Broken),
    ("te for trailers", PLAIN, &[("te", "trailers")], None, Fate2::Forwarded("GET / ")),
    ("a length that is too long", POST, &[("content-length", "9")], Some("x"), Fate2::Broken),
    ("a length that is too short", POST, &[("content-length", "1")], Some("xGET /evil"), Fate2::Broken),
    ("a length without a body", POST, &[("content-length", "5")], None, Fate2::Broken),
    ("a length that is no number", POST, &[("content-length", "1x")], Some("x"), Fate2::Broken),
    ("two lengths", POST, &[("content-length", "1"), ("content-length", "2")], Some("x"), Fate2::Broken),
    ("a length that fits", POST, &[("content-length", "1")], Some("x"), Fate2::Forwarded("POST / ")),
    ("no length", POST, &[], Some("x"), Fate2::Forwarded("POST / ")),
    (
        "a blank in the path",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/a b")],
        &[],
        None,
        Fate2::Broken,
    ),
    (
        "a line's end in the path",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/ HTTP/1.1\r\nHost: b")],
        &[],
        None,
        Fate2::Broken,
    ),
    (
        "an empty path",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")],
        &[],
        None,
        Fate2::Broken,
    ),
    ("no path", &[(":method", "GET"), (":scheme", "http"), (":authority", "a")], &[], None, Fate2::Broken),
    ("no method", &[(":scheme", "http"), (":authority", "a"), (":path", "/")], &[], None, Fate2::Broken),
    (
        "a method with a blank",
        &[(":method", "GET /evil"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        &[],
        None,
        Fate2::Broken,
    ),
    (
        "a method with a line's end",
        &[(":method", "GET\r\n"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        &[],
        None,
        Fate2::Broken,
    ),
    (
        "a path twice",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":path", "/b")],
        &[],
        None,
        Fate2::Broken,
    ),
    (
        "a pseudo field nobody knows",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":x", "y")],
        &[],
        None,
        Fate2::Broken,
    ),
    (
        "a pseudo field of responses",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":status", "200")],
        &[],
        None,
        Fate2::Broken,
    ),
    ("a pseudo field behind others", PLAIN, &[("x", "y"), (":path", "/b")], None, Fate2::Broken),
    (
        "an authority with a user",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "u@a"), (":path", "/")],
        &[],
        None,
        Fate2::Bad,
    ),
    (
        "an authority with a line's end",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a\r\nx: y"), (":path", "/")],
        &[],
        None,
        Fate2::Broken,
    ),
    ("a Host that differs", PLAIN, &[("host", "b")], None, Fate2::Broken),
    ("a Host that is the same", PLAIN, &[("host", "a")], None, Fate2::Forwarded("GET / ")),
    (
        "two Hosts",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/")],
        &[("host", "a"), ("host", "b")],
        None,
        Fate2::Broken,
    ),
    (
        "dots above the root",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/%2e%2e/b")],
        &[],
        None,
        Fate2::Bad,
    ),
    (
        "dots",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/a/..%2f/../b")],
        &[],
        None,
        Fate2::Bad,
    ),
    (
        "escaped dots",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/a/%2e%2e/b")],
        &[],
        None,
        Fate2::Forwarded("GET /b "),
    ),
    (
        "a backslash",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/a\\b")],
        &[],
        None,
        Fate2::Bad,
    ),
    (
        "a forged certificate",
        PLAIN,
        &[("x-forwarded-client-cert", "URI=spiffe://x/y")],
        None,
        Fate2::Forwarded("GET / "),
    ),
];

fn block(fields: &[&[(&str, &str)]]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields.iter().copied().flatten() {
        block.extend_from_slice(&[0, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

#[tokio::test]
async fn http2_never_becomes_another_request_in_http1() {
    let app = App::answering(OK);
    let proxy = Proxy::start(&app.plain_config("")).await;
    let mut wrong = Vec::new();
    for (name, pseudo, fields, body, fate) in HTTP2 {
        let before = app.seen().len();
        let (port, bytes) = (proxy.port, block(&[pseudo, fields]));
        let came = tokio::task::spawn_blocking(move || {
            let mut client = Frames::connect(port);
            let ends = if body.is_some() { 0 } else { END_STREAM };
            client.send(HEADERS, END_HEADERS | ends, 1, &bytes);
            if let Some(body) = body {
                client.send(0, END_STREAM, 1, body.as_bytes());
            }
            loop {
                match client.receive() {
                    // `:status 200` and `:status 400` have indexes of their own.
                    Some((HEADERS, _, 1, payload)) if payload[0] == 0x88 => return Fate2::Forwarded(""),
                    Some((HEADERS, _, 1, payload)) if payload[0] == 0x8c => return Fate2::Bad,
                    Some((HEADERS, _, 1, payload)) => panic!("another status: {payload:?}"),
                    Some((RST_STREAM, _, 1, _) | (GOAWAY, ..)) | None => return Fate2::Broken,
                    Some(_) => {}
                }
            }
        });
        let came = came.await.expect("an outcome");
        let seen = app.seen().split_off(before);
        let right = match (fate, &came, seen.as_slice()) {
            (Fate2::Forwarded(start), Fate2::Forwarded(_), [one]) => {
                let once = one.to_lowercase();
                one.starts_with(start) && once.matches("host:").count() == 1 && !once.contains("spiffe://x/y")
            }
            (fate, came, []) => fate == came,
            _ => false,
        };
        if !right {
            wrong.push(format!("{name}: {came:?} instead of {fate:?}; {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut client = Client::connect(proxy.port);
    assert!(client.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 200"), "it serves on");
    assert!(client.socket().write_all(b"\r\n").is_ok());
    proxy.stop().await;
}
