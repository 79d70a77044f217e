//! Values in bodies that may be secret: members of JSON, and fields of forms, by their names.
//!
//! In: the beginning of a body, which may be cut anywhere, and which names are secret. Out: the same with those values replaced.
//! Promise: all that stands under such a name is replaced, an object or a list as a whole; what is neither JSON
//! nor a form is told as it is.

/// What kind of text a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// Members have names.
    Json,
    /// `name=value&…`
    Form,
    /// No names can be told.
    Other,
}

impl BodyKind {
    /// By its `content-type`.
    pub fn of(content_type: &[u8]) -> Self {
        let kind =
            content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
        match kind.as_slice() {
            b"application/x-www-form-urlencoded" => Self::Form,
            kind if kind.ends_with(b"json") || kind.ends_with(b"ndjson") => Self::Json,
            _ => Self::Other,
        }
    }
}

/// Replaces values whose names `is_secret` by what `mask` makes of them.
pub fn mask_body(
    kind: BodyKind,
    body: &str,
    is_secret: impl Fn(&str) -> bool,
    mask: impl Fn(&str) -> String,
) -> String {
    match kind {
        BodyKind::Other => body.to_owned(),
        BodyKind::Form => {
            let pairs = body.split('&').map(|pair| match pair.split_once('=') {
                Some((name, value)) if is_secret(&name.to_ascii_lowercase()) => format!("{name}={}", mask(value)),
                _ => pair.to_owned(),
            });
            pairs.collect::<Vec<_>>().join("&")
        }
        BodyKind::Json => mask_json(body, is_secret, mask),
    }
}

fn mask_json(body: &str, is_secret: impl Fn(&str) -> bool, mask: impl Fn(&str) -> String) -> String {
    let mut told = String::with_capacity(body.len());
    let mut at = 0;
    while let Some(begin) = body[at..].find('"').map(|begin| at + begin) {
        let end = string_end(body, begin);
        told.push_str(&body[at..end]);
        at = end;
        let name = body[begin + 1..end].trim_end_matches('"').to_ascii_lowercase();
        let blanks = |text: &str| text.len() - text.trim_ascii_start().len();
        let colon = end + blanks(&body[end..]);
        if !body[colon..].starts_with(':') || !is_secret(&name) {
            continue;
        }
        let value = colon + 1 + blanks(&body[colon + 1..]);
        let behind = value_end(body, value);
        if behind > value {
            told.push_str(&body[end..value]);
            told.push('"');
            told.push_str(&mask(body[value..behind].trim_matches('"')));
            told.push('"');
            at = behind;
        }
    }
    told.push_str(&body[at..]);
    told
}

/// Behind a string that begins here; the end of the text when it is cut.
fn string_end(text: &str, begin: usize) -> usize {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(begin + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Behind a value that begins here.
fn value_end(text: &str, begin: usize) -> usize {
    let bytes = text.as_bytes();
    match bytes.get(begin) {
        Some(b'"') => string_end(text, begin),
        Some(b'{' | b'[') => {
            let (mut depth, mut at) = (0_usize, begin);
            while let Some(byte) = bytes.get(at) {
                match byte {
                    b'"' => {
                        at = string_end(text, at);
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return at;
                }
            }
            text.len()
        }
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
            bytes[begin..].iter().position(ends).map_or(text.len(), |length| begin + length)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(kind: BodyKind, body: &str) -> String {
        mask_body(kind, body, |name| name.contains("token") || name == "password", |_| "*".to_owned())
    }

    #[test]
    fn secrets_are_replaced_by_their_names() {
        for (kind, body, expected) in [
            (BodyKind::Json, r#"{"user":"a","password":"b\"c","x":1}"#, r#"{"user":"a","password":"*","x":1}"#),
            (BodyKind::Json, r#"{"a":{"accessToken" : 12.5 },"b":[]}"#, r#"{"a":{"accessToken" : "*" },"b":[]}"#),
            (
                BodyKind::Json,
                r#"[{"token":{"a":["]}"]},"b":1},{"token":null}]"#,
                r#"[{"token":"*","b":1},{"token":"*"}]"#,
            ),
            (BodyKind::Json, r#"{"password":"cut of"#, r#"{"password":"*""#),
            (BodyKind::Json, r#"{"token":[1,2"#, r#"{"token":"*""#),
            (BodyKind::Json, r#"{"password":"#, r#"{"password":"#),
            (BodyKind::Json, r#"{"passw"#, r#"{"passw"#),
            (BodyKind::Json, r#"["password","x"]"#, r#"["password","x"]"#),
            (BodyKind::Json, r#"{"x":"password: y"}"#, r#"{"x":"password: y"}"#),
            (BodyKind::Form, "user=a&password=b%26c&my_token=x&token", "user=a&password=*&my_token=*&token"),
            (BodyKind::Other, "password=x", "password=x"),
        ] {
            assert_eq!(masked(kind, body), expected, "{body}");
        }
    }

    #[test]
    fn kinds() {
        for (text, kind) in [
            ("application/json; charset=utf-8", BodyKind::Json),
            ("Application/Problem+JSON", BodyKind::Json),
            ("application/x-ndjson", BodyKind::Json),
            ("application/x-www-form-urlencoded", BodyKind::Form),
            ("text/plain", BodyKind::Other),
            ("", BodyKind::Other),
        ] {
            assert_eq!(BodyKind::of(text.as_bytes()), kind, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_secret_is_told(secret in "[A-Z]{8}", before in "[a-z:,\\[\\]{} ]{0,10}", cut in 0..200_usize) {
            let body = format!(r#"{{"a":"{before}","token":"{secret}","b":{{"password":["{secret}"]}}}}"#);
            let body = &body[..body.len().min(cut)];
            prop_assert!(!masked(BodyKind::Json, body).contains(&secret));
        }

        #[test]
        fn nothing_panics(body in ".{0,60}") {
            let _ = masked(BodyKind::Json, &body);
            let _ = masked(BodyKind::Form, &body);
        }
    }
}
