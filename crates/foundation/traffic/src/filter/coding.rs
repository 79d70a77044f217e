//! Whether a body is compressed or decompressed on its way, and what its head says then ([RFC 9110], 8.4 and 12.5.3).
//!
//! In: the heads of a request and its answer. Out: the coding, and changed heads. Promise: what is compressed already,
//! must not be changed (`no-transform`, digests, ranges) or is gRPC is left alone; a client gets only what it
//! says that it takes; caches are told that it depends on that.
//!
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110

use outrigger_config::{Compressor as CompressorConfig, ContentCoding, Decompressor as DecompressorConfig};
use outrigger_wire::coding::Coding;
use outrigger_wire::head::{FieldId, Head, Method};

use crate::tap::Glob;

const CONTENT_ENCODING: &str = "content-encoding";
const CACHE_CONTROL: &str = "cache-control";
const VARY: &str = "vary";
const ETAG: &str = "etag";
/// Fields that vouch for the bytes as they are, or say which of them these are.
const BOUND: [&str; 5] = ["content-range", "content-digest", "repr-digest", "digest", "content-md5"];

/// Compresses answers.
#[derive(Debug)]
pub struct Compressor {
    /// The one that is liked best first, with its level.
    codings: Vec<(Coding, u32)>,
    least: u64,
    types: Vec<Glob>,
}

/// Decompresses requests, or answers.
#[derive(Debug)]
pub struct Decompressor {
    codings: Vec<Coding>,
    requests: bool,
    responses: bool,
    /// A body may become so many times as large.
    pub max_ratio: u32,
    /// What a client is told that it may use.
    accepted: String,
}

/// Why a request cannot be decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported;

/// A coding of the config.
pub fn coding(config: ContentCoding) -> Coding {
    match config {
        ContentCoding::Gzip => Coding::Gzip,
        ContentCoding::Br => Coding::Br,
        ContentCoding::Zstd => Coding::Zstd,
    }
}

impl Compressor {
    pub(super) fn of(config: &CompressorConfig) -> Self {
        let levels = &config.levels;
        let level = |coding| match coding {
            Coding::Gzip => levels.gzip,
            Coding::Br => levels.br,
            Coding::Zstd => levels.zstd,
        };
        Self {
            codings: config.algorithms.iter().map(|one| coding(*one)).map(|one| (one, level(one))).collect(),
            least: config.min_content_length.as_usize() as u64,
            types: config.content_types.iter().filter_map(|one| Glob::of(&one.to_ascii_lowercase()).ok()).collect(),
        }
    }

    /// The coding of an answer's body and its level, if it is to have one; `length` is the body's, if that is known. What
    /// the answer tells of itself is changed for it by [`Self::change`].
    pub fn choose(&self, request: &Head, response: &mut Head, length: Option<u64>) -> Option<(Coding, u32)> {
        if request.method() == Method::Head
            || matches!(response.status(), 204 | 206 | 304)
            || length.is_some_and(|length| length < self.least.max(1))
            || !self.is_for(response)
        {
            return None;
        }
        // Also when this client gets it as it is: another one would not.
        vary(response);
        let chosen = preferred(request, self.codings.iter().map(|(coding, _)| *coding))?;
        self.codings.iter().find(|(coding, _)| *coding == chosen).copied().filter(|_| !forbids_change(request))
    }

    /// Whether an answer of this kind is compressed at all.
    fn is_for(&self, response: &Head) -> bool {
        let kind = response.get(FieldId::ContentType).unwrap_or_default();
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
        !kind.starts_with(b"application/grpc")
            && self.types.iter().any(|glob| glob.fits(&kind))
            && response.get_named(CONTENT_ENCODING).is_none_or(|value| value.eq_ignore_ascii_case(b"identity"))
            && !forbids_change(response)
            && !BOUND.iter().any(|name| response.get_named(name).is_some())
    }

    /// Makes an answer's head that of the compressed body.
    pub fn change(response: &mut Head, coding: Coding) {
        response.set(CONTENT_ENCODING, coding.as_str().as_bytes());
        response.remove(FieldId::ContentLength);
        // Ranges of the compressed body are nothing that the application could give.
        response.remove_named("accept-ranges");
        weaken(response);
    }
}

impl Decompressor {
    pub(super) fn of(config: &DecompressorConfig) -> Self {
        let codings: Vec<_> = config.algorithms.iter().map(|one| coding(*one)).collect();
        let names: Vec<_> = codings.iter().map(|coding| coding.as_str()).collect();
        let accepted = names.join(", ");
        Self { codings, requests: config.requests, responses: config.responses, max_ratio: config.max_ratio, accepted }
    }

    /// What a client is told that it may use.
    pub fn accepted(&self) -> &str {
        &self.accepted
    }

    /// The coding to undo of a request's body, whose head is changed for it.
    ///
    /// # Errors
    /// When it has one that is not known, or several.
    pub fn request(&self, request: &mut Head) -> Result<Option<Coding>, Unsupported> {
        if !self.requests {
            return Ok(None);
        }
        let found = self.coding_of(request)?;
        if found.is_some() {
            Self::change(request);
        }
        Ok(found)
    }

    /// The coding to undo of an answer's body because its client does not take it; [`Self::change_response`] changes its
    /// head for that.
    pub fn response(&self, request: &Head, response: &mut Head) -> Option<Coding> {
        if !self.responses
            || request.method() == Method::Head
            || matches!(response.status(), 204 | 206 | 304)
            || forbids_change(response)
            || BOUND.iter().any(|name| response.get_named(name).is_some())
        {
            return None;
        }
        let found = self.coding_of(response).ok().flatten()?;
        vary(response);
        preferred(request, std::iter::once(found)).is_none().then_some(found)
    }

    /// Makes an answer's head that of the decompressed body.
    pub fn change_response(&self, response: &mut Head) {
        Self::change(response);
        weaken(response);
    }

    fn coding_of(&self, head: &Head) -> Result<Option<Coding>, Unsupported> {
        let mut codings = head.get_all_named(CONTENT_ENCODING).flat_map(|value| value.split(|byte| *byte == b','));
        let mut codings = codings
            .by_ref()
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        let Some(first) = codings.next() else { return Ok(None) };
        let known = Coding::of(first).filter(|coding| self.codings.contains(coding)).ok_or(Unsupported)?;
        if codings.next().is_some() { Err(Unsupported) } else { Ok(Some(known)) }
    }

    fn change(head: &mut Head) {
        head.remove_named(CONTENT_ENCODING);
        head.remove(FieldId::ContentLength);
        BOUND[1..].iter().for_each(|name| head.remove_named(name));
    }
}

/// Whether a message says that nobody may transform it.
fn forbids_change(head: &Head) -> bool {
    let mut directives = head.get_all_named(CACHE_CONTROL).flat_map(|value| value.split(|byte| *byte == b','));
    directives.any(|one| one.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
}

/// Another coding means the same, but is not the same byte by byte ([RFC 9110], 8.8.1).
fn weaken(response: &mut Head) {
    if let Some(etag) = response.get_named(ETAG).filter(|etag| !etag.starts_with(b"W/")) {
        let weak = [b"W/", etag].concat();
        response.set(ETAG, &weak);
    }
}

/// Caches must not give one client's answer to another that takes other codings.
fn vary(response: &mut Head) {
    let told = response.get_all_named(VARY).any(|value| {
        let mut names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    });
    if !told {
        response.push(VARY, b"accept-encoding");
    }
}

/// The coding that a client likes best of these; of those that it likes alike the first. `None` when it takes none of
/// them, likes the body as it is better, or does not say what it takes.
pub fn preferred(request: &Head, codings: impl Iterator<Item = Coding>) -> Option<Coding> {
    if !request.contains(FieldId::AcceptEncoding) {
        return None;
    }
    let (mut any, mut identity) = (None, None);
    // Of what is listed twice the better counts.
    let mut known = [None; Coding::ALL.len()];
    let better = |old: &mut Option<u16>, new: u16| *old = Some(old.unwrap_or(0).max(new));
    for item in request.get_all(FieldId::AcceptEncoding).flat_map(|value| value.split(|byte| *byte == b',')) {
        let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| {
            let value = part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q="))?;
            Some(quality(value))
        });
        // A weight that makes no sense is none that could be heeded.
        let Some(weight) = weight.unwrap_or(Some(1000)) else { continue };
        match name {
            b"*" => better(&mut any, weight),
            name if name.eq_ignore_ascii_case(b"identity") => better(&mut identity, weight),
            name => {
                if let Some(coding) = Coding::of(name) {
                    better(&mut known[coding as usize], weight);
                }
            }
        }
    }
    let mut best: Option<(u16, Coding)> = None;
    for coding in codings {
        let weight = known[coding as usize].or(any).unwrap_or(0);
        if weight > best.map_or(0, |(weight, _)| weight) {
            best = Some((weight, coding));
        }
    }
    best.filter(|(weight, _)| identity.is_none_or(|identity| *weight >= identity)).map(|(_, coding)| coding)
}

/// A weight in thousandths ([RFC 9110], 12.4.2).
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
fn quality(text: &[u8]) -> Option<u16> {
    let (whole, rest) = text.split_first()?;
    let digits = match rest {
        [] => &[][..],
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let part = digits.iter().chain(b"000").take(3).fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match whole {
        b'0' => Some(part),
        b'1' if part == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        fields.iter().for_each(|(name, value)| head.push(name, value.as_bytes()));
        head
    }

    fn text(head: &Head) -> String {
        let lines: Vec<_> =
            head.fields().map(|field| format!("{}: {}", field.name, String::from_utf8_lossy(field.value))).collect();
        lines.join("; ")
    }

    fn compressor() -> Compressor {
        Compressor::of(&CompressorConfig::default())
    }

    #[test]
    fn clients_get_what_they_like() {
        use Coding::{Br, Gzip, Zstd};
        for (accepts, expected) in [
            ("gzip", Some(Gzip)),
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, deflate, br", Some(Br)),
            ("x-gzip", Some(Gzip)),
            ("GZIP;Q=0.5 , br;q=0.4", Some(Gzip)),
            ("gzip;q=0, br;q=0.001", Some(Br)),
            ("gzip;q=0", None),
            ("*", Some(Zstd)),
            ("*;q=0", None),
            ("zstd;q=0, *", Some(Br)),
            ("zstd;q=0.1, br;q=0, *;q=0.5", Some(Gzip)),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip;q=0.5", Some(Gzip)),
            ("identity;q=0", None),
            ("gzip;q=1.5", None),
            ("gzip;q=x, br;q=0.1", Some(Br)),
            ("gzip;q=0.0001, br;q=0.1", Some(Br)),
            ("gzip;level=9;q=0.2", Some(Gzip)),
            ("gzip;q=0, gzip", Some(Gzip)),
            ("", None),
            (",;,q=1", None),
            ("deflate", None),
        ] {
            let chosen = preferred(&head(&[("accept-encoding", accepts)]), [Zstd, Br, Gzip].into_iter());
            assert_eq!(chosen, expected, "{accepts}");
        }
        let twice = head(&[("accept-encoding", "br;q=0.1"), ("accept-encoding", "gzip")]);
        assert_eq!(preferred(&twice, [Br, Gzip].into_iter()), Some(Gzip));
        assert_eq!(preferred(&head(&[]), [Gzip].into_iter()), None, "who does not say takes none");
    }

    #[test]
    fn answers_that_are_left_alone() {
        let accepts = ("accept-encoding", "gzip");
        let html = ("content-type", "text/html; charset=utf-8");
        for (name, request, status, response, length, expected) in [
            ("a page", &[accepts][..], 200, &[html][..], Some(5000), true),
            ("of unknown length", &[accepts], 200, &[html], None, true),
            ("an error page", &[accepts], 500, &[html], Some(5000), true),
            ("json", &[accepts], 200, &[("Content-Type", "APPLICATION/problem+JSON")], None, true),
            ("events", &[accepts], 200, &[("content-type", "text/event-stream")], None, true),
            ("short", &[accepts], 200, &[html], Some(1023), false),
            ("empty", &[accepts], 200, &[html], Some(0), false),
            ("an image", &[accepts], 200, &[("content-type", "image/png")], None, false),
            ("no type", &[accepts], 200, &[], None, false),
            ("grpc", &[accepts], 200, &[("content-type", "application/grpc+json")], None, false),
            ("compressed already", &[accepts], 200, &[html, ("content-encoding", "br")], None, false),
            ("identity", &[accepts], 200, &[html, ("content-encoding", "identity")], None, true),
            ("not to be changed", &[accepts], 200, &[html, ("cache-control", "public, No-Transform")], None, false),
            ("asked not to", &[accepts, ("cache-control", "no-transform")], 200, &[html], None, false),
            ("a part", &[accepts], 206, &[html], None, false),
            ("a part, by its field", &[accepts], 200, &[html, ("content-range", "bytes 0-1/2")], None, false),
            ("vouched for", &[accepts], 200, &[html, ("content-digest", "sha-256=:x:")], None, false),
            ("nothing", &[accepts], 204, &[html], None, false),
            ("nothing new", &[accepts], 304, &[html], None, false),
        ] {
            let mut response = head(response);
            response.set_status(status);
            let chosen = compressor().choose(&head(request), &mut response, length);
            assert_eq!(chosen.is_some(), expected, "{name}");
        }
        let mut request = head(&[accepts]);
        request.set_method("HEAD");
        let mut response = head(&[html]);
        response.set_status(200);
        assert_eq!(compressor().choose(&request, &mut response, None), None);
    }

    #[test]
    fn heads_tell_what_became_of_the_body() {
        for (name, accepts, given, expected) in [
            (
                "strong tag",
                "gzip",
                &[
                    ("content-type", "text/css"),
                    ("content-length", "5000"),
                    ("ETag", "\"a\""),
                    ("accept-ranges", "bytes"),
                ][..],
                "content-type: text/css; ETag: W/\"a\"; vary: accept-encoding; content-encoding: gzip",
            ),
            (
                "weak tag, vary",
                "gzip",
                &[("content-type", "text/css"), ("etag", "W/\"a\""), ("vary", "origin, Accept-Encoding")],
                "content-type: text/css; etag: W/\"a\"; vary: origin, Accept-Encoding; content-encoding: gzip",
            ),
            (
                "another client",
                "deflate",
                &[("content-type", "text/css"), ("content-length", "5000"), ("etag", "\"a\"")],
                "content-type: text/css; content-length: 5000; etag: \"a\"; vary: accept-encoding",
            ),
            ("another type", "gzip", &[("content-type", "image/png")], "content-type: image/png"),
        ] {
            let mut response = head(given);
            response.set_status(200);
            let request = head(&[("accept-encoding", accepts)]);
            if let Some((coding, _)) = compressor().choose(&request, &mut response, Some(5000)) {
                Compressor::change(&mut response, coding);
            }
            assert_eq!(text(&response), expected, "{name}");
        }
    }

    #[test]
    fn requests_are_decompressed_or_not_understood() {
        let config =
            DecompressorConfig { algorithms: vec![ContentCoding::Gzip, ContentCoding::Br], ..Default::default() };
        let decompressor = Decompressor::of(&config);
        assert_eq!(decompressor.accepted(), "gzip, br");
        for (encoding, expected) in [
            ("gzip", Ok(Some(Coding::Gzip))),
            ("X-Gzip", Ok(Some(Coding::Gzip))),
            (" , br", Ok(Some(Coding::Br))),
            ("identity", Ok(None)),
            ("identity, br", Ok(Some(Coding::Br))),
            ("zstd", Err(Unsupported)),
            ("gzip, br", Err(Unsupported)),
            ("deflate", Err(Unsupported)),
        ] {
            let mut request = head(&[("content-length", "7"), ("Content-Encoding", encoding), ("digest", "x")]);
            let found = decompressor.request(&mut request);
            assert_eq!(found, expected, "{encoding}");
            if matches!(found, Ok(Some(_))) {
                assert_eq!(text(&request), "", "{encoding}");
            }
        }
        assert_eq!(decompressor.request(&mut head(&[])), Ok(None));
        let off = Decompressor::of(&DecompressorConfig { requests: false, ..Default::default() });
        assert_eq!(off.request(&mut head(&[("content-encoding", "deflate")])), Ok(None));
    }

    #[test]
    fn answers_are_decompressed_for_those_who_do_not_take_them() {
        let decompressor = Decompressor::of(&DecompressorConfig { responses: true, ..Default::default() });
        for (accepts, expected, told) in [
            ("br", Some(Coding::Gzip), "etag: W/\"a\"; vary: accept-encoding"),
            ("gzip", None, "content-encoding: gzip; content-length: 9; etag: \"a\"; vary: accept-encoding"),
        ] {
            let mut response = head(&[("content-encoding", "gzip"), ("content-length", "9"), ("etag", "\"a\"")]);
            response.set_status(200);
            let found = decompressor.response(&head(&[("accept-encoding", accepts)]), &mut response);
            if found.is_some() {
                decompressor.change_response(&mut response);
            }
            assert_eq!((found, text(&response).as_str()), (expected, told), "{accepts}");
        }
    }

    proptest! {
        #[test]
        fn a_slow_reader_agrees(
            items in prop::collection::vec((prop::sample::select(vec!["gzip", "br", "zstd", "*", "identity", "x"]), 0..1001_u16), 0..6)
        ) {
            let mut seen = std::collections::HashSet::new();
            let items: Vec<_> = items.into_iter().filter(|(name, _)| seen.insert(*name)).collect();
            let written: Vec<_> =
                items.iter().map(|(name, weight)| format!("{name};q={}.{:03}", weight / 1000, weight % 1000)).collect();
            let weight = |name: &str| items.iter().find(|(one, _)| *one == name).map(|(_, weight)| *weight);
            let of = |coding: Coding| weight(coding.as_str()).or(weight("*")).unwrap_or(0);
            let order = [Coding::Zstd, Coding::Br, Coding::Gzip];
            let best = order.into_iter().map(of).max().unwrap_or(0);
            let expected = order.into_iter().find(|coding| of(*coding) == best).filter(|_| best > 0);
            let expected = expected.filter(|_| weight("identity").is_none_or(|identity| best >= identity));
            let request = head(&[("accept-encoding", &written.join(","))]);
            prop_assert_eq!(preferred(&request, order.into_iter()), expected);
        }

        #[test]
        fn nothing_panics(text in ".{0,40}") {
            let _ = preferred(&head(&[("accept-encoding", &text)]), Coding::ALL.into_iter());
        }
    }
}
