//! Which pages of other origins may read answers ([Fetch], CORS protocol).
//!
//! In: a browser's request with its `Origin`. Out: the fields that its answer needs, or the whole
//! answer to a preflight request. Promise: with credentials nothing is told by `*`, and the
//! origin `null`, which any sandboxed page has, is never allowed.
//!
//! [Fetch]: https://fetch.spec.whatwg.org/#http-cors-protocol

use outrigger_config::Cors as CorsConfig;
use outrigger_wire::head::{FieldId, Head, Method};

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const ALLOW_METHODS: &str = "access-control-allow-methods";
const ALLOW_HEADERS: &str = "access-control-allow-headers";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";
const MAX_AGE: &str = "access-control-max-age";
const REQUEST_METHOD: &str = "access-control-request-method";
const REQUEST_HEADERS: &str = "access-control-request-headers";

/// What a route allows.
#[derive(Debug)]
pub struct Cors {
    any: bool,
    exact: Vec<Box<str>>,
    /// Of `https://*.shop.example:8443`: what stands before the star, and behind it.
    wildcards: Vec<(Box<str>, Box<str>)>,
    methods: Words,
    headers: Words,
    expose: Words,
    credentials: bool,
    max_age: String,
}

/// A list as it is told, and whether it is `*`.
#[derive(Debug)]
struct Words {
    text: String,
    any: bool,
}

impl Words {
    fn of(words: &[String]) -> Self {
        Self { text: words.join(", "), any: words.iter().any(|word| word == "*") }
    }

    /// What is told: with credentials `*` would mean a star, so what is asked for stands for it.
    fn told<'a>(&'a self, credentials: bool, asked: Option<&'a [u8]>) -> &'a [u8] {
        match (self.any, credentials) {
            (true, true) => asked.unwrap_or_default(),
            (true, false) => b"*",
            (false, _) => self.text.as_bytes(),
        }
    }
}

impl Cors {
    pub(super) fn of(config: &CorsConfig) -> Self {
        let (mut exact, mut wildcards, mut any) = (Vec::new(), Vec::new(), false);
        for origin in &config.allow_origins {
            let origin = origin.to_ascii_lowercase();
            match origin.split_once('*') {
                Some(("", "")) => any = true,
                Some((before, behind)) => wildcards.push((before.into(), behind.into())),
                None => exact.push(origin.into()),
            }
        }
        Self {
            any,
            exact,
            wildcards,
            methods: Words::of(&config.allow_methods),
            headers: Words::of(&config.allow_headers),
            expose: Words::of(&config.expose_headers),
            credentials: config.allow_credentials,
            max_age: std::time::Duration::from(config.max_age).as_secs().to_string(),
        }
    }

    /// Whether a request asks for permission, and nothing else.
    pub fn is_preflight(request: &Head) -> bool {
        request.method() == Method::Options
            && request.contains(FieldId::Origin)
            && request.get_named(REQUEST_METHOD).is_some()
    }

    fn allows(&self, origin: &[u8]) -> bool {
        let Ok(origin) = str::from_utf8(origin) else { return false };
        if self.any && !(self.credentials && origin == "null") {
            return true;
        }
        self.exact.iter().any(|one| one.eq_ignore_ascii_case(origin))
            || self.wildcards.iter().any(|(before, behind)| below(origin, before, behind))
    }

    /// Tells in a preflight request's answer what is allowed. `false`, and nothing told, when its origin is not.
    pub fn answer_preflight(&self, request: &Head, response: &mut Head) -> bool {
        if !self.tell_origin(request, response) {
            return false;
        }
        let asked = |name| request.get_named(name);
        for (name, words, asked) in [
            (ALLOW_METHODS, &self.methods, asked(REQUEST_METHOD)),
            (ALLOW_HEADERS, &self.headers, asked(REQUEST_HEADERS)),
        ] {
            let told = words.told(self.credentials, asked);
            if !told.is_empty() {
                response.set(name, told);
            }
        }
        response.set(MAX_AGE, self.max_age.as_bytes());
        true
    }

    /// Tells in an answer whether the page that asked may read it. What the application says of allowed origins gives way.
    pub fn change_response(&self, request: &Head, response: &mut Head) {
        if request.contains(FieldId::Origin) && self.tell_origin(request, response) && !self.expose.text.is_empty() {
            // Here a star means all, but with credentials means a field of that name; then all that there are is told.
            if self.expose.any && self.credentials {
                let names: Vec<_> = response.fields().map(|field| field.name.to_ascii_lowercase()).collect();
                response.set(EXPOSE_HEADERS, names.join(", ").as_bytes());
            } else {
                response.set(EXPOSE_HEADERS, self.expose.told(false, None));
            }
        } else if !self.is_the_same_for_all() {
            vary(response);
        }
    }

    /// Whether all origins get the same answer.
    fn is_the_same_for_all(&self) -> bool {
        self.any && !self.credentials
    }

    fn tell_origin(&self, request: &Head, response: &mut Head) -> bool {
        let Some(origin) = request.get(FieldId::Origin).filter(|origin| self.allows(origin)) else { return false };
        if self.is_the_same_for_all() {
            response.set(ALLOW_ORIGIN, b"*");
        } else {
            response.set(ALLOW_ORIGIN, origin);
            vary(response);
        }
        if self.credentials {
            response.set(ALLOW_CREDENTIALS, b"true");
        } else {
            response.remove_named(ALLOW_CREDENTIALS);
        }
        true
    }
}

/// Caches must not give one origin's answer to another.
fn vary(response: &mut Head) {
    let told = response.get_all_named("vary").any(|value| {
        let Ok(value) = str::from_utf8(value) else { return false };
        value.split(',').map(str::trim).any(|name| name == "*" || name.eq_ignore_ascii_case("origin"))
    });
    if !told {
        response.push("vary", b"origin");
    }
}

/// Whether an origin's host has labels where the star is.
fn below(origin: &str, before: &str, behind: &str) -> bool {
    let lowered = origin.to_ascii_lowercase();
    let star = lowered.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
    star.is_some_and(|labels| {
        !labels.is_empty()
            && labels.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], credentials: bool, words: &str) -> Cors {
        let words: Vec<String> = if words.is_empty() { vec![] } else { vec![words.to_owned()] };
        Cors::of(&CorsConfig {
            allow_origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
            allow_methods: words.clone(),
            allow_headers: words.clone(),
            expose_headers: words,
            allow_credentials: credentials,
            max_age: outrigger_config::Duration::from_secs(60),
        })
    }

    fn head(method: &str, fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        head.set_method(method);
        fields.iter().for_each(|(name, value)| head.push(name, value.as_bytes()));
        head
    }

    fn told(head: &Head) -> String {
        let lines: Vec<_> =
            head.fields().map(|field| format!("{}: {}", field.name, String::from_utf8_lossy(field.value))).collect();
        lines.join("; ")
    }

    #[test]
    fn origins() {
        let ours = cors(&["https://shop.example", "https://*.shop.example", "http://*.dev:8080"], true, "");
        for (origin, allowed) in [
            ("https://shop.example", true),
            ("https://a.shop.example", true),
            ("https://a.b.shop.example", true),
            ("http://a.shop.example", false),
            ("https://a.shop.example:444", false),
            ("https://.shop.example", false),
            ("https://evil/.shop.example", false),
            ("https://x@a.shop.example", false),
            ("https://shop.example.evil", false),
            ("http://x.dev:8080", true),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(ours.allows(origin.as_bytes()), allowed, "{origin}");
        }
        assert!(cors(&["*"], false, "").allows(b"null") && !cors(&["*"], true, "").allows(b"null"));
    }

    #[test]
    fn a_preflight_is_told_what_is_allowed() {
        let fields = [
            ("origin", "https://a.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a,x-b"),
        ];
        let request = head("OPTIONS", &fields);
        assert!(Cors::is_preflight(&request));
        assert!(!Cors::is_preflight(&head("OPTIONS", &fields[..1])) && !Cors::is_preflight(&head("GET", &fields)));
        let mut response = Head::default();
        assert!(cors(&["*"], false, "*").answer_preflight(&request, &mut response));
        let all = "access-control-allow-origin: *; access-control-allow-methods: *; access-control-allow-headers: *; access-control-max-age: 60";
        assert_eq!(told(&response), all);
        response.clear();
        assert!(cors(&["*"], true, "*").answer_preflight(&request, &mut response));
        let asked = "access-control-allow-origin: https://a.example; vary: origin; access-control-allow-credentials: true; access-control-allow-methods: PUT; access-control-allow-headers: x-a,x-b; access-control-max-age: 60";
        assert_eq!(told(&response), asked);
        response.clear();
        assert!(!cors(&["https://b.example"], true, "*").answer_preflight(&request, &mut response));
        assert_eq!(told(&response), "");
    }

    #[test]
    fn an_answer_is_readable_by_those_who_may() {
        let request = head("GET", &[("origin", "https://a.example")]);
        for (name, cors, expected) in [
            (
                "all",
                cors(&["*"], false, "x-id"),
                "x-id: 1; access-control-allow-origin: *; access-control-expose-headers: x-id",
            ),
            (
                "one, all fields",
                cors(&["https://a.example"], true, "*"),
                "x-id: 1; access-control-allow-origin: https://a.example; vary: origin; access-control-allow-credentials: true; access-control-expose-headers: x-id, access-control-allow-origin, vary, access-control-allow-credentials",
            ),
            ("another", cors(&["https://b.example"], true, "*"), "x-id: 1; vary: origin"),
        ] {
            let mut response = head("", &[("x-id", "1")]);
            cors.change_response(&request, &mut response);
            assert_eq!(told(&response), expected, "{name}");
        }
        let mut response = head("", &[("access-control-allow-origin", "https://evil"), ("vary", "Accept, Origin")]);
        cors(&["https://a.example"], false, "").change_response(&request, &mut response);
        assert_eq!(told(&response), "access-control-allow-origin: https://a.example; vary: Accept, Origin");
    }
}
