//! Judges the framing of requests as they come in, before the HTTP library reads them.
//!
//! In: a client's bytes, in whatever pieces. Out: the first request head that two readers
//! may frame differently. The library behind resolves such heads by its own preference (as
//! [RFC 9112], 6.3 allows) and then hides what it saw; we refuse them instead, for the
//! application and we must never disagree on where a message ends. Promise: linear time,
//! and no more memory than one line of a head.
//!
//! [RFC 9112]: https://www.rfc-editor.org/rfc/rfc9112

/// A request head that must not be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Which head of the connection, counted from 0.
    pub(crate) head: u64,
    /// What is wrong with it.
    pub(crate) why: &'static str,
}

/// Follows the framing of one client's bytes.
#[derive(Debug)]
pub(crate) struct Judge {
    expected: Expected,
    /// Heads that have come whole.
    heads: u64,
    head: Head,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    longest_line: usize,
    verdict: Option<Verdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// A line of a head.
    HeadLine,
    /// So many bytes of a body or chunk.
    Body { left: u64, chunked: bool },
    /// A line that tells a chunk's size.
    ChunkSize,
    /// The empty line behind a chunk.
    ChunkEnd,
    /// A line of the trailers.
    Trailer,
    /// Nothing: the verdict is out, or the library will refuse what comes.
    Nothing,
}

/// What the fields of the current head say about framing.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    length: Option<u64>,
    lengths: u8,
    codings: u8,
    why: Option<&'static str>,
}

impl Judge {
    /// A judge for a new connection; lines longer than `longest_line` are left to the library's limit.
    pub(crate) fn new(longest_line: usize) -> Self {
        Self {
            expected: Expected::HeadLine,
            heads: 0,
            head: Head::default(),
            line: Vec::new(),
            longest_line,
            verdict: None,
        }
    }

    /// The first bad head, once it has come whole.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    /// Looks at bytes as they came.
    pub(crate) fn look(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.expected {
                Expected::Nothing => return,
                Expected::Body { left, chunked } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    if *left == 0 {
                        self.expected = if *chunked { Expected::ChunkEnd } else { Expected::HeadLine };
                    }
                }
                _ => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        self.keep(bytes);
                        return;
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    if self.line.is_empty() {
                        self.line(line);
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.line(&whole);
                        whole.clear();
                        self.line = whole;
                    }
                }
            }
        }
    }

    fn keep(&mut self, beginning: &[u8]) {
        if self.line.len() + beginning.len() > self.longest_line {
            self.line = Vec::new();
            self.expected = Expected::Nothing;
        } else {
            self.line.extend_from_slice(beginning);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.expected {
            Expected::HeadLine => self.head_line(line),
            Expected::ChunkSize => {
                self.expected = match chunk_size(line) {
                    Some(0) => Expected::Trailer,
                    Some(left) => Expected::Body { left, chunked: true },
                    // The library refuses it, and nothing behind it is read.
                    None => Expected::Nothing,
                }
            }
            Expected::ChunkEnd => {
                self.expected = if line.is_empty() { Expected::ChunkSize } else { Expected::Nothing };
            }
            Expected::Trailer if line.is_empty() => self.expected = Expected::HeadLine,
            Expected::Trailer | Expected::Body { .. } | Expected::Nothing => {}
        }
    }

    fn head_line(&mut self, line: &[u8]) {
        if !line.is_empty() {
            if self.head.begun {
                self.head.field(line);
            }
            // The first line is the request's own; empty ones before it are skipped, as the library does.
            self.head.begun = true;
            return;
        }
        if !self.head.begun {
            return;
        }
        let head = std::mem::take(&mut self.head);
        if let Some(why) = head.wrong() {
            self.verdict = Some(Verdict { head: self.heads, why });
            self.expected = Expected::Nothing;
            return;
        }
        self.heads += 1;
        self.expected = match (head.codings, head.length) {
            (0, None | Some(0)) => Expected::HeadLine,
            (0, Some(left)) => Expected::Body { left, chunked: false },
            _ => Expected::ChunkSize,
        };
    }
}

impl Head {
    fn field(&mut self, line: &[u8]) {
        match line[0] {
            b' ' | b'\t' => self.why = Some("folded header line"),
            b'c' | b'C' => {
                if let Some(value) = value_of(line, b"content-length") {
                    self.lengths = self.lengths.saturating_add(1);
                    self.length = parse_digits(value, 10);
                    if self.length.is_none() {
                        self.why = Some("Content-Length is no number");
                    }
                }
            }
            b't' | b'T' => {
                if let Some(value) = value_of(line, b"transfer-encoding") {
                    self.codings = self.codings.saturating_add(1);
                    if !value.eq_ignore_ascii_case(b"chunked") {
                        self.why = Some("Transfer-Encoding is not `chunked`");
                    }
                }
            }
            _ => {}
        }
    }

    fn wrong(&self) -> Option<&'static str> {
        match (self.why, self.lengths, self.codings) {
            (Some(why), ..) => Some(why),
            (None, 1.., 1..) => Some("both Content-Length and Transfer-Encoding"),
            (None, 2.., _) => Some("more than one Content-Length"),
            (None, _, 2..) => Some("more than one Transfer-Encoding"),
            _ => None,
        }
    }
}

/// The value of a field line, when it has this name. A blank before the colon counts as part of no name: such lines
/// are invalid, but must not hide a length from us.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    if !start.eq_ignore_ascii_case(name) {
        return None;
    }
    Some(rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii())
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| matches!(byte, b';' | b' ' | b'\t')).unwrap_or(line.len());
    parse_digits(&line[..end], 16)
}

/// Digits and nothing else: no sign, no blank, no overflow.
fn parse_digits(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = char::from(*digit).to_digit(radix)?;
        sum.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judged(pieces: &[&[u8]]) -> Judge {
        let mut judge = Judge::new(64 * 1024);
        for piece in pieces {
            judge.look(piece);
        }
        judge
    }

    #[test]
    fn what_two_readers_may_frame_differently_is_told() {
        for (name, fields, why) in [
            ("length then coding", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "both"),
            ("coding then length", "Transfer-Encoding: chunked\r\ncontent-length:4\r\n", "both"),
            ("two lengths", "Content-Length: 1\r\nContent-Length: 1\r\n", "more than one Content-Length"),
            ("two codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "more than one Transfer"),
            ("list of codings", "Transfer-Encoding: gzip, chunked\r\n", "not `chunked`"),
            ("hidden coding", "Transfer-Encoding : x\r\n", "not `chunked`"),
            ("list of lengths", "Content-Length: 1, 1\r\n", "no number"),
            ("sign", "Content-Length: +1\r\n", "no number"),
            ("overflow", "Content-Length: 99999999999999999999\r\n", "no number"),
            ("folded", "X: 1\r\n Content-Length: 5\r\n", "folded"),
            ("bare line feeds", "Content-Length: 4\nTransfer-Encoding: chunked\n", "both"),
        ] {
            let head = format!("POST / HTTP/1.1\r\n{fields}\r\n");
            let verdict = judged(&[b"GET / HTTP/1.1\r\n\r\n", head.as_bytes()]).verdict().expect(name);
            assert_eq!(verdict.head, 1, "{name}");
            assert!(verdict.why.contains(why), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn bodies_are_not_taken_for_heads() {
        let evil = "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let sized = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{evil}", evil.len());
        let chunked = format!(
            "\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n{:x};ext=1\r\n{evil}\r\n0\r\nContent-Length: 1\r\n\r\n",
            evil.len()
        );
        let judge = judged(&[sized.as_bytes(), chunked.as_bytes(), sized.as_bytes()]);
        assert_eq!((judge.verdict(), judge.heads), (None, 3));
        assert_eq!(judge.expected, Expected::HeadLine);
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let mut judge = Judge::new(100);
        for _ in 0..1000 {
            judge.look(b"yyyyyyyyyyyyyyyyyyyyyyyy");
        }
        assert_eq!((judge.expected, judge.line.capacity()), (Expected::Nothing, 0));
    }

    proptest! {
        /// However the bytes are cut into pieces, requests are found where they were put.
        #[test]
        fn pieces_do_not_matter(
            requests in prop::collection::vec((0..4_u8, prop::collection::vec(any::<u8>(), 1..40)), 1..6),
            cuts in prop::collection::vec(1..30_usize, 1..60),
        ) {
            let mut bytes = Vec::new();
            let mut bad = None;
            for (number, (kind, body)) in (0..).zip(&requests) {
                bytes.extend_from_slice(b"PUT /x HTTP/1.1\r\nHost: a\r\n");
                match kind {
                    0 => bytes.extend_from_slice(b"\r\n"),
                    1 => {
                        bytes.extend_from_slice(format!("content-LENGTH:  {} \r\n\r\n", body.len()).as_bytes());
                        bytes.extend_from_slice(body);
                    }
                    2 => {
                        bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                        for chunk in body.chunks(7) {
                            bytes.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                            bytes.extend_from_slice(chunk);
                            bytes.extend_from_slice(b"\r\n");
                        }
                        bytes.extend_from_slice(b"0\r\nX: y\r\n\r\n");
                    }
                    _ => {
                        bytes.extend_from_slice(b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
                        bad = bad.or(Some(number));
                    }
                }
            }
            let mut judge = Judge::new(1024);
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                judge.look(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(judge.verdict().map(|verdict| verdict.head), bad);
            if bad.is_none() {
                prop_assert_eq!(judge.heads, requests.len() as u64);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// The library must never serve a request that the judge has not seen as one, whatever the bytes are.
        #[test]
        fn the_library_finds_no_request_that_the_judge_missed(
            requests in prop::collection::vec(
                (0..STARTS.len(), prop::collection::vec(0..FIELDS.len(), 0..3), 0..4_u8, 0..BODIES.len()),
                1..5,
            ),
            noise in prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut bytes = Vec::new();
            for (start, fields, end, body) in requests {
                bytes.extend_from_slice(STARTS[start].as_bytes());
                fields.iter().for_each(|field| bytes.extend_from_slice(FIELDS[*field].as_bytes()));
                bytes.extend_from_slice(if end == 0 { b"\n" } else { b"\r\n" });
                bytes.extend_from_slice(BODIES[body].as_bytes());
            }
            if let Some((at, byte)) = noise {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut judge = Judge::new(64 * 1024);
            judge.look(&bytes);
            let served = served_by_the_library(&bytes);
            if judge.verdict().is_none() {
                prop_assert!(served <= judge.heads, "{served} > {}: {:?}", judge.heads, String::from_utf8_lossy(&bytes));
            }
        }
    }

    /// What requests are made of, well and badly.
    const STARTS: [&str; 5] = [
        "POST / HTTP/1.1\r\n",
        "POST /x HTTP/1.1\n",
        "\r\nGET / HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\n",
        "POST / HTTP/1.0\r\n",
    ];
    const FIELDS: [&str; 10] = [
        "Host: a\r\n",
        "X: y\n",
        "Content-Length: 5\r\n",
        "content-length:\t5 \r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 30\r\n",
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:Chunked\n",
        "Transfer-Encoding : chunked\r\n",
        " folded\r\n",
    ];
    const BODIES: [&str; 8] = [
        "",
        "hello",
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n05 \r\nhello\r\n0\r\n\r\n",
        "0\r\nT: u\r\nContent-Length: 5\r\n\r\n",
        "0\n\r\n",
        "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n",
        "2a\r\nGET /evil HTTP/1.1\r\nHost: a\r\nXXXX: yyyyyy\r\n\r\n\r\n0\r\n\r\n",
    ];

    /// How many requests the HTTP library finds in these bytes.
    fn served_by_the_library(bytes: &[u8]) -> u64 {
        use http_body::Body;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(256 * 1024);
            let served = std::cell::Cell::new(0);
            let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
                served.set(served.get() + 1);
                async {
                    let mut body = request.into_body();
                    while let Some(frame) =
                        std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
                    {
                        frame?;
                    }
                    Ok::<_, hyper::Error>(http::Response::new(String::new()))
                }
            });
            let io = hyper_util::rt::TokioIo::new(server);
            let serving = hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(io, service);
            let client = async {
                client.write_all(bytes).await.unwrap();
                client.shutdown().await.unwrap();
                let _ = client.read_to_end(&mut Vec::new()).await;
            };
            let _ = tokio::join!(serving, client);
            served.get()
        })
    }
}
