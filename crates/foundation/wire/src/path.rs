//! Makes a path the same for every reader, before any rule looks at it.
//!
//! In: a request-target in origin form, and the policy. Out: the target that is judged and
//! forwarded, or why it is refused. Promise: what comes out stays as it is when it goes in
//! again; its escapes are needed ones, in capitals; under every policy but [`DotSegments::Keep`]
//! no reader finds a dot segment in it, be it escaped, before a parameter (`..;x`) or between
//! escaped slashes. The query is nobody's path and is kept to the byte.

/// What happens to `.` and `..` as segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum DotSegments {
    /// They are resolved ([RFC 3986], 5.2.4); what would lead above the root is refused.
    ///
    /// [RFC 3986]: https://www.rfc-editor.org/rfc/rfc3986
    #[default]
    Resolve,
    /// They are refused.
    Refuse,
    /// They stay, and no look is taken at them.
    Keep,
}

/// What happens to escaped slashes (`%2F`) and backslashes (`%5C`); Envoy's `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum EscapedSlashes {
    /// They stay escaped and separate nothing: applications carry names with slashes so.
    #[default]
    Keep,
    /// Slashes become plain, before dots are resolved; backslashes are refused, as plain ones are.
    Unescape,
    /// They are refused.
    Refuse,
}

/// How paths are made the same. The default is Istio's `BASE`, but that backslashes are refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PathPolicy {
    /// `.` and `..`.
    pub dot_segments: DotSegments,
    /// Whether slashes that follow one another become one, after dots were resolved (as Envoy does).
    pub merge_slashes: bool,
    /// `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
#[expect(missing_docs, reason = "as_str says what each means")]
pub enum PathError {
    NotAPath,
    BadByte,
    BadEscape,
    Nul,
    Backslash,
    EscapedSlash,
    DotSegment,
    HiddenDotSegment,
    AboveRoot,
}

impl PathError {
    /// Its text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAPath => "the path does not begin with a slash",
            Self::BadByte => "invalid character in the path",
            Self::BadEscape => "a `%` in the path without two hexadecimal digits",
            Self::Nul => "NUL in the path",
            Self::Backslash => "backslash in the path",
            Self::EscapedSlash => "escaped slash in the path",
            Self::DotSegment => "dot segment in the path",
            Self::HiddenDotSegment => "a segment of the path that some readers take for dots",
            Self::AboveRoot => "the path leads above the root",
        }
    }
}

/// Makes a path the same for every reader. Gives `false` when it is so already, and leaves `out` empty; else `out`
/// holds the new one. `*`, which is no path, is as it should be.
///
/// # Errors
/// What every reader would understand in its own way, and what the policy refuses.
pub fn normalise(policy: &PathPolicy, path_and_query: &str, out: &mut String) -> Result<bool, PathError> {
    out.clear();
    if path_and_query == "*" {
        return Ok(false);
    }
    let end = path_and_query.find('?').unwrap_or(path_and_query.len());
    let (path, query) = path_and_query.split_at(end);
    if !path.starts_with('/') {
        return Err(PathError::NotAPath);
    }
    if is_plain(path.as_bytes()) {
        return Ok(false);
    }
    let done = rewrite(policy, path.as_bytes(), out);
    if done.is_err() || out.as_str() == path {
        out.clear();
        return done.map(|()| false);
    }
    out.push_str(query);
    Ok(true)
}

/// Nearly all paths have nothing that any policy looks at, and need no second look.
fn is_plain(path: &[u8]) -> bool {
    let mut slash = false;
    path.iter().all(|byte| {
        let before = std::mem::replace(&mut slash, *byte == b'/');
        match byte {
            b'%' | b'\\' | b'#' | 0..=b' ' | 0x7f.. => false,
            b'.' | b'/' => !before,
            _ => true,
        }
    })
}

fn rewrite(policy: &PathPolicy, path: &[u8], out: &mut String) -> Result<(), PathError> {
    // Where in `out` the segment under way begins, behind its slash.
    let mut segment = 1;
    out.push('/');
    let mut rest = &path[1..];
    while let [first, behind @ ..] = rest {
        rest = behind;
        match first {
            b'%' => {
                let (byte, behind) = unescape(behind)?;
                rest = behind;
                match escaped(policy, byte, out)? {
                    Some(b'/') => segment = end_segment(policy, segment, true, out)?,
                    Some(plain) => out.push(char::from(plain)),
                    None => {}
                }
            }
            b'/' => segment = end_segment(policy, segment, true, out)?,
            b'\\' => return Err(PathError::Backslash),
            0 => return Err(PathError::Nul),
            b'#' | 1..=b' ' | 0x7f.. => return Err(PathError::BadByte),
            plain => out.push(char::from(*plain)),
        }
    }
    end_segment(policy, segment, false, out)?;
    if policy.merge_slashes {
        let mut before = ' ';
        out.retain(|c| std::mem::replace(&mut before, c) != '/' || c != '/');
    }
    Ok(())
}

/// The byte behind a `%`, and what follows.
fn unescape(behind: &[u8]) -> Result<(u8, &[u8]), PathError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    match behind {
        [high, low, rest @ ..] => {
            let (high, low) = digit(*high).zip(digit(*low)).ok_or(PathError::BadEscape)?;
            Ok((high << 4 | low, rest))
        }
        _ => Err(PathError::BadEscape),
    }
}

/// What an escaped byte becomes: itself when its escape was not needed, else the escape in capitals, put to `out`.
fn escaped(policy: &PathPolicy, byte: u8, out: &mut String) -> Result<Option<u8>, PathError> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    match (byte, policy.escaped_slashes) {
        (0, _) => return Err(PathError::Nul),
        (b'/' | b'\\', EscapedSlashes::Refuse) => return Err(PathError::EscapedSlash),
        (b'/', EscapedSlashes::Unescape) => return Ok(Some(byte)),
        (b'\\', EscapedSlashes::Unescape) => return Err(PathError::Backslash),
        // The unreserved ones of [RFC 3986], 2.3.
        (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~', _) => return Ok(Some(byte)),
        _ => {}
    }
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
    Ok(None)
}

/// Ends the segment that begins at `start`, with or without a slash behind it; gives where the next begins.
fn end_segment(policy: &PathPolicy, start: usize, slash: bool, out: &mut String) -> Result<usize, PathError> {
    let segment = &out[start..];
    match (policy.dot_segments, segment) {
        (DotSegments::Keep, _) => {}
        (DotSegments::Refuse, "." | "..") => return Err(PathError::DotSegment),
        (DotSegments::Resolve, ".") => {
            out.truncate(start);
            return Ok(start);
        }
        (DotSegments::Resolve, "..") => {
            let parent = out[..start - 1].rfind('/').ok_or(PathError::AboveRoot)? + 1;
            out.truncate(parent);
            return Ok(parent);
        }
        _ if hides_dots(segment) => return Err(PathError::HiddenDotSegment),
        _ => {}
    }
    if slash {
        out.push('/');
    }
    Ok(out.len())
}

/// Whether a reader that unescapes slashes, or cuts parameters off, finds a dot segment in this one.
fn hides_dots(segment: &str) -> bool {
    // Escapes are in capitals by now.
    segment.contains('.')
        && segment
            .split("%2F")
            .flat_map(|part| part.split("%5C"))
            .filter_map(|part| part.split(';').next().and_then(|part| part.split("%3B").next()))
            .any(|part| matches!(part, "." | ".."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(policy: PathPolicy, path: &str) -> Result<String, PathError> {
        let mut out = "left over".to_owned();
        normalise(&policy, path, &mut out).map(|changed| {
            assert_eq!(changed, !out.is_empty(), "{path}");
            assert!(!changed || out != path, "{path}");
            if changed { out } else { path.to_owned() }
        })
    }

    #[test]
    fn the_usual_policy() {
        use PathError::*;
        for (path, expected) in [
            ("/", Ok("/")),
            ("*", Ok("*")),
            ("/a/b?x=/../%2e\\", Ok("/a/b?x=/../%2e\\")),
            ("/%61%2d%7e%41", Ok("/a-~A")),
            ("/a%20%c3%a9?%c3", Ok("/a%20%C3%A9?%c3")),
            ("/a/./b", Ok("/a/b")),
            ("/a/../b?q", Ok("/b?q")),
            ("/a/b/..", Ok("/a/")),
            ("/a/.", Ok("/a/")),
            ("/a/%2e%2E/b", Ok("/b")),
            ("/a/..b/.c/...", Ok("/a/..b/.c/...")),
            ("/a//../b", Ok("/a/b")),
            ("//a", Ok("//a")),
            ("/a%2fb", Ok("/a%2Fb")),
            ("/a%5cb", Ok("/a%5Cb")),
            ("/%252e%252e/", Ok("/%252e%252e/")),
            ("/a;v=1.0/b", Ok("/a;v=1.0/b")),
            ("/a%3F%23b", Ok("/a%3F%23b")),
            ("/..", Err(AboveRoot)),
            ("/a/../../b", Err(AboveRoot)),
            ("/a/..%2fb", Err(HiddenDotSegment)),
            ("/a%2F%2e%2e", Err(HiddenDotSegment)),
            ("/a/..%5cb", Err(HiddenDotSegment)),
            ("/a/..;x=1/b", Err(HiddenDotSegment)),
            ("/a/%2e%3b/b", Err(HiddenDotSegment)),
            ("/a\\b", Err(Backslash)),
            ("/a%00", Err(Nul)),
            ("/a\0", Err(Nul)),
            ("/a%", Err(BadEscape)),
            ("/a%2", Err(BadEscape)),
            ("/a%2?x", Err(BadEscape)),
            ("/a%g0", Err(BadEscape)),
            ("/a%+1", Err(BadEscape)),
            ("/a b", Err(BadByte)),
            ("/a#b", Err(BadByte)),
            ("/\u{e9}", Err(BadByte)),
            ("/a\x7f", Err(BadByte)),
            ("", Err(NotAPath)),
            ("?a", Err(NotAPath)),
            ("a/b", Err(NotAPath)),
        ] {
            assert_eq!(run(PathPolicy::default(), path), expected.map(str::to_owned), "{path:?}");
        }
    }

    #[test]
    fn other_policies() {
        use PathError::*;
        let refuse = PathPolicy { dot_segments: DotSegments::Refuse, ..PathPolicy::default() };
        let keep = PathPolicy { dot_segments: DotSegments::Keep, ..PathPolicy::default() };
        let merge = PathPolicy { merge_slashes: true, ..PathPolicy::default() };
        let plain = PathPolicy { escaped_slashes: EscapedSlashes::Unescape, ..PathPolicy::default() };
        let strict = PathPolicy { escaped_slashes: EscapedSlashes::Refuse, ..PathPolicy::default() };
        for (name, policy, path, expected) in [
            ("refuse", refuse, "/a/./b", Err(DotSegment)),
            ("refuse", refuse, "/a/%2e%2e", Err(DotSegment)),
            ("refuse", refuse, "/a/..;", Err(HiddenDotSegment)),
            ("refuse", refuse, "/.a/%62", Ok("/.a/b")),
            ("keep", keep, "/a/../%2e/..;x", Ok("/a/.././..;x")),
            ("merge", merge, "//a///b//?c//d", Ok("/a/b/?c//d")),
            ("merge", merge, "/a//../b", Ok("/a/b")),
            ("merge", merge, "/a/.//b", Ok("/a/b")),
            ("plain", plain, "/a%2fb%2F..%2fc", Ok("/a/c")),
            ("plain", plain, "/a%5cb", Err(Backslash)),
            ("strict", strict, "/a%2fb", Err(EscapedSlash)),
            ("strict", strict, "/a%5Cb", Err(EscapedSlash)),
            ("strict", strict, "/a?%2f", Ok("/a?%2f")),
        ] {
            assert_eq!(run(policy, path), expected.map(str::to_owned), "{name}: {path}");
        }
    }

    fn any_policy() -> impl Strategy<Value = PathPolicy> {
        let dots = prop_oneof![Just(DotSegments::Resolve), Just(DotSegments::Refuse), Just(DotSegments::Keep)];
        let slashes =
            prop_oneof![Just(EscapedSlashes::Keep), Just(EscapedSlashes::Unescape), Just(EscapedSlashes::Refuse)];
        (dots, any::<bool>(), slashes).prop_map(|(dot_segments, merge_slashes, escaped_slashes)| PathPolicy {
            dot_segments,
            merge_slashes,
            escaped_slashes,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What comes out is what comes out again; and no reader finds dots in it.
        #[test]
        fn what_is_normal_stays(
            policy in any_policy(),
            path in "/([a./;%?]|%2[eEfF5]|%5[cC]|%3b|\\.\\.|//|%[4-7][0-9a-f]){0,12}",
        ) {
            let Ok(normal) = run(policy, &path) else { return Ok(()) };
            prop_assert_eq!(run(policy, &normal), Ok(normal.clone()), "{}", path);
            let (path, query) = normal.split_once('?').map_or((normal.as_str(), None), |(path, query)| (path, Some(query)));
            prop_assert_eq!(query, normal.find('?').map(|at| &normal[at + 1..]));
            let decoded = path.replace("%2F", "/").replace("%5C", "/");
            if policy.dot_segments != DotSegments::Keep {
                prop_assert!(decoded.split(['/']).all(|part| !matches!(part.split(';').next(), Some("." | ".."))));
            }
            if policy.merge_slashes {
                prop_assert!(!path.contains("//"));
            }
        }
    }
}
