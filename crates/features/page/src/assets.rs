//! The page's files, and how they are sent.
//!
//! In: a request for one of them. Out: the file, or 304 when the browser has it. Promise: every
//! answer carries the policy that keeps foreign scripts, styles and frames out; browsers ask
//! again each time, so that a new version is never mixed with an old one.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use outrigger_runtime::{AdminRequest, AdminResponse, AdminRoutes};

/// A file of the page.
pub(crate) struct Asset {
    /// Behind `/ui/`; the page itself has none.
    pub(crate) name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! assets {
    ($($name:literal $file:literal $type:expr;)*) => {
        [$(Asset { name: $name, content_type: $type, content: include_bytes!(concat!("../assets/", $file)) }),*]
    };
}

/// All files.
pub(crate) static ASSETS: [Asset; 19] = assets! {
    "" "index.html" HTML;
    "page.css" "page.css" CSS;
    "icon.svg" "icon.svg" SVG;
    "main.js" "main.js" JS;
    "dom.js" "dom.js" JS;
    "data.js" "data.js" JS;
    "figures.js" "figures.js" JS;
    "format.js" "format.js" JS;
    "chart.js" "chart.js" JS;
    "table.js" "table.js" JS;
    "words.js" "words.js" JS;
    "views/overview.js" "views/overview.js" JS;
    "views/topology.js" "views/topology.js" JS;
    "views/routes.js" "views/routes.js" JS;
    "views/endpoints.js" "views/endpoints.js" JS;
    "views/tap.js" "views/tap.js" JS;
    "views/logs.js" "views/logs.js" JS;
    "views/secrets.js" "views/secrets.js" JS;
    "views/config.js" "views/config.js" JS;
};

/// What the browser may do with the page. Nothing is inline, and nothing comes from elsewhere.
const POLICY: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Answers a `GET` of a file.
pub(crate) fn answer(asset: &Asset, request: &AdminRequest) -> AdminResponse {
    let tag = tag(asset.content);
    let mut response = if has(&request.headers, &tag) {
        AdminRoutes::response(StatusCode::NOT_MODIFIED, asset.content_type, &[][..])
    } else {
        AdminRoutes::response(StatusCode::OK, asset.content_type, asset.content)
    };
    let headers = response.headers_mut();
    for (name, value) in POLICY {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// Leads `/ui` to `/ui/`; relative, for there may be a path in front of ours.
pub(crate) fn redirect() -> AdminResponse {
    let mut response = AdminRoutes::text(StatusCode::PERMANENT_REDIRECT, "the page is at ui/\n");
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("ui/"));
    response
}

/// The same for the same content; a tenth of a millisecond, which is why nothing is kept.
fn tag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Whether the browser says that it has this one.
fn has(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|value| value.split(',')).any(|one| one.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn ask(name: &str, headers: &[(HeaderName, &str)]) -> AdminResponse {
        let asset = ASSETS.iter().find(|asset| asset.name == name).unwrap();
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        answer(asset, &AdminRequest { query: String::new(), headers: headers.collect() })
    }

    #[test]
    fn a_browser_that_has_a_file_is_told_so() {
        let first = ask("main.js", &[]);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(
            (first.status(), &first.headers()[header::CACHE_CONTROL]),
            (StatusCode::OK, &"no-cache".parse().unwrap())
        );
        for (known, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (format!("\"other\", W/{tag}"), StatusCode::NOT_MODIFIED),
            ("\"other\"".to_owned(), StatusCode::OK),
        ] {
            let again = ask("main.js", &[(header::IF_NONE_MATCH, &known)]);
            assert_eq!(again.status(), status, "{known}");
            assert!(again.headers().contains_key(header::CONTENT_SECURITY_POLICY));
            assert_eq!(again.into_body().whole().unwrap().is_empty(), status == StatusCode::NOT_MODIFIED);
        }
    }

    #[test]
    fn every_file_is_served_and_they_are_small() {
        fn files(folder: &Path, prefix: &str, all: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                match entry.file_type().unwrap().is_dir() {
                    true => files(&entry.path(), &format!("{name}/"), all),
                    false => all.push(name),
                }
            }
        }
        let mut there = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets"), "", &mut there);
        let mut served: Vec<String> = ASSETS
            .iter()
            .map(|asset| if asset.name.is_empty() { "index.html" } else { asset.name }.to_owned())
            .collect();
        there.sort();
        served.sort();
        assert_eq!(there, served);
        let bytes: usize = ASSETS.iter().map(|asset| asset.content.len()).sum();
        assert!(bytes < 150_000, "{bytes} bytes");
    }

    /// The policy forbids these anyway; here they are found before a browser does.
    #[test]
    fn nothing_is_inline_and_no_text_becomes_markup() {
        for asset in &ASSETS {
            let text = std::str::from_utf8(asset.content).unwrap();
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=",
                "https://",
            ] {
                assert!(!text.contains(forbidden), "{}: {forbidden}", asset.name);
            }
        }
        let html = std::str::from_utf8(ASSETS[0].content).unwrap();
        assert!(!html.contains("<script>") && !html.contains("<style"), "scripts and styles are files");
    }
}
