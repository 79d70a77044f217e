//! Other places for a request: rewritten on its way, or told to the client.
//!
//! Promise: what takes the place of a whole path or of whole leading segments is a normalised
//! path itself, so the result is one too; the query goes along as it is.

use outrigger_config::{PathModifier, RedirectScheme, RequestRedirect, UrlRewrite};
use outrigger_wire::head::{FieldId, Head};

use crate::route::{split_target, without_port};

/// What a request asks for instead.
#[derive(Debug)]
pub struct Rewrite {
    host: Option<Box<str>>,
    path: Option<PathChange>,
}

impl Rewrite {
    pub(super) fn of(config: &UrlRewrite) -> Self {
        Self { host: config.hostname.as_deref().map(Into::into), path: config.path.as_ref().and_then(PathChange::of) }
    }

    pub(super) fn apply(&self, request: &mut Head, matched: u32) {
        if let Some(host) = &self.host {
            request.set("Host", host.as_bytes());
        }
        if let Some(change) = &self.path {
            let path = split_target(request.target()).0;
            // `*` is no path.
            if path.starts_with('/') {
                let (end, by) = change.of_path(path, matched);
                request.replace_target_start(end, by);
            }
        }
    }

    /// Whether it changes the path.
    pub fn changes_path(&self) -> bool {
        self.path.is_some()
    }
}

#[derive(Debug)]
enum PathChange {
    Full(Box<str>),
    /// Without a slash at its end.
    Prefix(Box<str>),
}

impl PathChange {
    fn of(config: &PathModifier) -> Option<Self> {
        match (&config.replace_full_path, &config.replace_prefix_match) {
            (Some(path), _) => Some(Self::Full(path.as_str().into())),
            (_, Some(prefix)) => Some(Self::Prefix(prefix.trim_end_matches('/').into())),
            _ => None,
        }
    }

    /// How many bytes of a path are replaced, and by what.
    fn of_path(&self, path: &str, matched: u32) -> (usize, &str) {
        match self {
            Self::Full(whole) => (path.len(), whole),
            Self::Prefix(prefix) => {
                let end = (matched as usize).min(path.len());
                let nothing = prefix.is_empty() && end == path.len();
                (end, if nothing { "/" } else { prefix })
            }
        }
    }
}

/// Where a client is sent.
#[derive(Debug)]
pub struct Redirect {
    /// The status of the answer.
    pub status: u16,
    scheme: Option<RedirectScheme>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: Option<PathChange>,
}

impl Redirect {
    pub(super) fn of(config: &RequestRedirect) -> Self {
        Self {
            status: config.status_code,
            scheme: config.scheme,
            host: config.hostname.as_deref().map(Into::into),
            port: config.port,
            path: config.path.as_ref().and_then(PathChange::of),
        }
    }

    /// The URL for `Location`. `secure` is whether the request came encrypted.
    pub fn location(&self, request: &Head, matched: u32, secure: bool) -> String {
        let asked = request.get(FieldId::Host).and_then(|host| str::from_utf8(host).ok()).unwrap_or_default();
        let name = without_port(asked);
        let asked_port = asked[name.len()..].strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
        let scheme = match self.scheme {
            Some(scheme) => scheme.as_str(),
            None if secure => "https",
            None => "http",
        };
        // A sidecar's own port is not the one that its clients know.
        let port = self.port.or(if self.scheme.is_none() { asked_port } else { None });
        let usual = if scheme == "https" { 443 } else { 80 };
        let port = port.filter(|port| *port != usual).map(|port| format!(":{port}")).unwrap_or_default();
        let host = self.host.as_deref().unwrap_or(name);
        let (path, _) = split_target(request.target());
        let (end, by) = self.path.as_ref().map_or((0, ""), |change| change.of_path(path, matched));
        let rest = &request.target()[end..];
        format!("{scheme}://{host}{port}{by}{rest}")
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::PathModifierType;
    use outrigger_wire::path::{PathPolicy, normalise};
    use proptest::prelude::*;

    use super::*;

    fn prefix(by: &str) -> PathModifier {
        PathModifier {
            kind: PathModifierType::ReplacePrefixMatch,
            replace_full_path: None,
            replace_prefix_match: Some(by.to_owned()),
        }
    }

    fn full(by: &str) -> PathModifier {
        PathModifier {
            kind: PathModifierType::ReplaceFullPath,
            replace_full_path: Some(by.to_owned()),
            replace_prefix_match: None,
        }
    }

    fn rewritten(target: &str, matched: usize, path: PathModifier) -> String {
        let mut head = Head::default();
        head.set_target(target);
        head.push("host", b"h:80");
        let rewrite = Rewrite::of(&UrlRewrite { hostname: Some("new".to_owned()), path: Some(path) });
        rewrite.apply(&mut head, matched as u32);
        assert_eq!(head.get(FieldId::Host), Some(&b"new"[..]));
        head.target().to_owned()
    }

    /// The rows are those of the Gateway API's `HTTPPathModifier`.
    #[test]
    fn prefixes_are_replaced_as_the_specification_says() {
        for (target, matched, by, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo?q=/foo", "/foo", "/", "/?q=/foo"),
            ("/foo/bar?q", "", "/xyz", "/xyz/foo/bar?q"),
            ("/", "", "/xyz", "/xyz/"),
            ("*", "", "/xyz", "*"),
        ] {
            assert_eq!(rewritten(target, matched.len(), prefix(by)), expected, "{target} {by}");
        }
        assert_eq!(rewritten("/foo/bar?q", 4, full("/x")), "/x?q");
    }

    #[test]
    fn clients_are_sent_where_the_config_says() {
        let none = RequestRedirect::default;
        let https = || RequestRedirect { scheme: Some(RedirectScheme::Https), ..none() };
        for (config, host, target, secure, expected) in [
            (https(), "shop.example", "/a?b", false, "https://shop.example/a?b"),
            (https(), "shop.example:8080", "/a", false, "https://shop.example/a"),
            (RequestRedirect { port: Some(8443), ..https() }, "h", "/", false, "https://h:8443/"),
            (RequestRedirect { port: Some(443), ..https() }, "h", "/", false, "https://h/"),
            (
                RequestRedirect { hostname: Some("new".to_owned()), ..none() },
                "h:8080",
                "/x",
                false,
                "http://new:8080/x",
            ),
            (RequestRedirect { hostname: Some("new".to_owned()), ..none() }, "h:443", "/x", true, "https://new/x"),
            (
                RequestRedirect { path: Some(prefix("/new")), ..none() },
                "[::1]:81",
                "/old/x?q",
                false,
                "http://[::1]:81/new/x?q",
            ),
            (RequestRedirect { path: Some(full("/new")), ..none() }, "h", "/old/x?q", false, "http://h/new?q"),
        ] {
            let mut head = Head::default();
            head.set_target(target);
            head.push("Host", host.as_bytes());
            assert_eq!(Redirect::of(&config).location(&head, 4, secure), expected, "{config:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What is normalised before is normalised after, so nobody finds dots in it.
        #[test]
        fn a_rewritten_path_is_a_normal_one(
            path in "(/([a.;~-]|%2F|%5C){0,4}){1,4}", cut in 0..4_usize, by in "((/[a-c.]{1,3}){0,2}/?)?", whole in any::<bool>(),
        ) {
            let policy = PathPolicy::default();
            let mut normal = String::new();
            prop_assume!(normalise(&policy, &path, &mut normal) == Ok(false));
            prop_assume!(by.is_empty() || normalise(&policy, &by, &mut normal) == Ok(false));
            let slashes: Vec<_> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
            let matched = slashes[cut.min(slashes.len() - 1)];
            let change = if whole && by.starts_with('/') { full(&by) } else { prefix(&by) };
            let result = rewritten(&path, matched, change);
            prop_assert_eq!(normalise(&policy, &result, &mut normal), Ok(false), "{} of {}", result, path);
        }
    }
}
