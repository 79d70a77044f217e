//! A path under every policy: what is normal stays so, and a naive reader finds no dots in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::path::{DotSegments, EscapedSlashes, PathPolicy, normalise};

fuzz_target!(|input: (u8, &str)| {
    let (number, target) = input;
    let policy = PathPolicy {
        dot_segments: [DotSegments::Resolve, DotSegments::Refuse, DotSegments::Keep][usize::from(number % 3)],
        escaped_slashes: [EscapedSlashes::Keep, EscapedSlashes::Unescape, EscapedSlashes::Refuse]
            [usize::from(number / 3 % 3)],
        merge_slashes: number & 128 != 0,
    };
    let mut out = String::new();
    let Ok(changed) = normalise(&policy, target, &mut out) else { return };
    let normal = if changed { out.as_str() } else { target };
    assert_eq!(changed, normal != target);
    let mut again = String::new();
    assert_eq!(normalise(&policy, normal, &mut again), Ok(false), "{target:?} became {normal:?}, then {again:?}");
    if normal == "*" {
        return;
    }
    let query = |text: &str| text.find('?').map(|at| text[at..].to_owned());
    assert_eq!(query(normal), query(target));
    let path = normal.split('?').next().unwrap_or_default();
    assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#')));
    assert!(!(policy.merge_slashes && path.contains("//")));
    if policy.dot_segments != DotSegments::Keep {
        // As one that unescapes all of it, and cuts parameters off, would read it.
        let mut decoded = path.to_owned();
        for (escape, plain) in [("%2E", "."), ("%2F", "/"), ("%5C", "/"), ("%3B", ";")] {
            decoded = decoded.replace(escape, plain);
        }
        for segment in decoded.split('/') {
            assert!(!matches!(segment.split(';').next(), Some("." | "..")), "{target:?} became {normal:?}");
        }
    }
});
