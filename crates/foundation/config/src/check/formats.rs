//! The forms that a text may have to keep, by their name in the schema (`format`).
//!
//! In: a format's name and a text. Out: whether the text has the form. The formats of our
//! own types are those types' parsers; the rest, for fields that are plain texts, is here.

use std::net::SocketAddr;

use crate::tree::is_variable_name;
use crate::units::{is_host, nearest_address};
use crate::{
    ByteSize, Duration, FileMode, HostPort, InvalidScalar, ListenAddress, LogFilter, LogFormat, Name, SpiffeId,
    SpiffePattern, SrvName, TrustDomain, WorkloadEndpoint,
};

/// Whether `text` has the form `format`; unknown formats allow everything.
pub(super) fn check(format: &str, text: &str) -> Result<(), InvalidScalar> {
    match format {
        "go-duration" => text.parse::<Duration>().map(drop),
        "byte-size" => text.parse::<ByteSize>().map(drop),
        "file-mode" => text.parse::<FileMode>().map(drop),
        "name" => text.parse::<Name>().map(drop),
        "listen-address" => text.parse::<ListenAddress>().map(drop),
        "host-port" => text.parse::<HostPort>().map(drop),
        "spiffe-id" => text.parse::<SpiffeId>().map(drop),
        "spiffe-pattern" => text.parse::<SpiffePattern>().map(drop),
        "srv-name" => text.parse::<SrvName>().map(drop),
        "trust-domain" => text.parse::<TrustDomain>().map(drop),
        "workload-endpoint" => text.parse::<WorkloadEndpoint>().map(drop),
        "log-format" => text.parse::<LogFormat>().map(drop),
        "log-filter" => text.parse::<LogFilter>().map(drop),
        "socket-address" => socket_address(text),
        "route-hostname" => route_hostname(text),
        "http-path" => http_path(text),
        "http-method" => http_method(text),
        "header-name" => header_name(text),
        "http-url" => http_url(text, true),
        "http-origin" => http_url(text, false),
        "variable-name" => variable_name(text),
        "path" => path(text, false),
        "absolute-path" => path(text, true),
        _ => Ok(()),
    }
}

/// A text that has the form.
pub(super) fn stand_in(format: Option<&str>) -> &'static str {
    match format.unwrap_or_default() {
        "go-duration" => "1s",
        "byte-size" => "1MiB",
        "file-mode" => "0400",
        "listen-address" | "socket-address" => "127.0.0.1:0",
        "host-port" => "localhost:1",
        "spiffe-id" | "spiffe-pattern" => "spiffe://stand.in/x",
        "srv-name" => "_stand._in.local",
        "trust-domain" => "stand.in",
        "workload-endpoint" => "unix:///stand-in",
        "http-url" | "http-origin" => "http://localhost",
        "route-hostname" => "localhost",
        "variable-name" => "STAND_IN",
        "http-method" => "GET",
        "log-filter" => "response.code > 0",
        "path" | "absolute-path" | "http-path" => "/stand-in",
        _ => "stand-in",
    }
}

/// An example for the help of a missing key.
pub(super) fn example(format: &str) -> Option<&'static str> {
    Some(match format {
        "go-duration" => "30s",
        "byte-size" => "16MiB",
        "file-mode" => "\"0400\"",
        "name" => "my-name",
        "listen-address" | "socket-address" => "127.0.0.1:15006",
        "host-port" => "backend.shop:8080",
        "spiffe-id" | "spiffe-pattern" => "spiffe://cluster.local/ns/shop/sa/frontend",
        "srv-name" => "_http._tcp.orders.shop.svc.cluster.local",
        "trust-domain" => "cluster.local",
        "workload-endpoint" => "unix:///run/spire/agent-sockets/spire-agent.sock",
        "http-url" => "https://logs.example/ingest",
        "http-origin" => "https://vault.example:8200",
        "route-hostname" => "backend.shop",
        "http-path" => "/",
        "http-method" => "GET",
        "header-name" => "x-version",
        "log-format" => "%RESPONSE_CODE%",
        "log-filter" => "response.code >= 500",
        "variable-name" => "DATABASE_URL",
        "path" | "absolute-path" => "/var/run/outrigger",
        _ => return None,
    })
}

fn socket_address(text: &str) -> Result<(), InvalidScalar> {
    text.parse::<SocketAddr>().map(drop).map_err(|_| {
        let help = match nearest_address(text) {
            Some(address) => format!("write `{address}`"),
            None => "write `IP:PORT`, such as `0.0.0.0:15006`, `127.0.0.1:15001` or `[::]:15006`".to_owned(),
        };
        InvalidScalar::new(text, "is not an address to listen on", help)
    })
}

fn route_hostname(text: &str) -> Result<(), InvalidScalar> {
    let refuse = |problem: &str, help: &str| Err(InvalidScalar::new(text, problem, help));
    let name = text.strip_prefix("*.").unwrap_or(text);
    if text == "*" {
        return refuse("matches every host", "leave `hostnames` out to match every host");
    }
    if name.contains('*') {
        return refuse("has a `*` in the wrong place", "a `*` may stand only for the first label: `*.shop.example`");
    }
    if name.contains(':') {
        return refuse("holds a port", "write the host name alone; ports are not compared");
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return refuse("has capital letters", "write it in small letters; requests match in either case");
    }
    if !is_host(name) || name.ends_with('.') {
        return refuse("is not a host name", "write a DNS name such as `backend.shop`, or `*.shop.example`");
    }
    Ok(())
}

fn http_method(text: &str) -> Result<(), InvalidScalar> {
    if outrigger_wire::h1::is_field_name(text.as_bytes()) && text.bytes().all(|b| !b.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(InvalidScalar::new(text, "is not a method", "write it in capitals, such as `GET` or `POST`"))
}

fn header_name(text: &str) -> Result<(), InvalidScalar> {
    if outrigger_wire::h1::is_field_name(text.as_bytes()) {
        return Ok(());
    }
    let help = "write the name of a header field, such as `x-version`";
    Err(InvalidScalar::new(text, "is not the name of a header field", help))
}

pub(crate) fn http_path(text: &str) -> Result<(), InvalidScalar> {
    let refuse = |problem: &str, help: &str| Err(InvalidScalar::new(text, problem, help));
    if !text.starts_with('/') {
        return refuse("does not begin with `/`", "write a path such as `/items`");
    }
    if text.contains(['?', '#']) {
        return refuse("holds a query or a fragment", "only the path is compared; cut it at the `?` or `#`");
    }
    if text.contains("//") || text.split('/').any(|segment| matches!(segment, "." | "..")) {
        return refuse(
            "holds an empty or a dot segment",
            "write the path as it is after normalisation, such as `/a/b`",
        );
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return refuse(
            "holds a character that a path cannot have",
            "write it percent-encoded, such as `%20` for a space",
        );
    }
    Ok(())
}

fn http_url(text: &str, with_path: bool) -> Result<(), InvalidScalar> {
    let help = if with_path { "write `https://HOST[:PORT]/PATH`" } else { "write `https://HOST[:PORT]`" };
    let refuse = |problem: &str| Err(InvalidScalar::new(text, problem, help));
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return refuse("is not a URL with `http://` or `https://`");
    };
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return refuse("holds a character that a URL cannot have");
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        let help = "take them out of the URL; credentials belong into a header or a file";
        return Err(InvalidScalar::new("the URL", "holds a user name or a password", help));
    }
    if path.contains('#') {
        return refuse("holds a fragment, which is never sent");
    }
    if !with_path && !matches!(path, "" | "/") {
        return refuse("holds a path");
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => (v6.parse::<std::net::Ipv6Addr>().is_ok(), port),
        None => {
            let cut = authority.find(':').unwrap_or(authority.len());
            (is_host(&authority[..cut]), &authority[cut..])
        }
    };
    let port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok_and(|port| port > 0),
    };
    match (host, port) {
        (false, _) => refuse("has no valid host"),
        (_, false) => refuse("has no port between 1 and 65535"),
        _ => Ok(()),
    }
}

fn variable_name(text: &str) -> Result<(), InvalidScalar> {
    if is_variable_name(text) {
        return Ok(());
    }
    let help = "use letters, digits and `_`, beginning with no digit, such as `DATABASE_URL`";
    Err(InvalidScalar::new(text, "is not the name of an environment variable", help))
}

fn path(text: &str, absolute: bool) -> Result<(), InvalidScalar> {
    if text.is_empty() || text.contains('\0') {
        return Err(InvalidScalar::new(text, "is not a path", "write the path of a file or folder"));
    }
    if absolute && !text.starts_with('/') {
        let help = "begin it with `/`, for the application may run in another folder";
        return Err(InvalidScalar::new(text, "is not an absolute path", help));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_and_examples_have_the_form() {
        for format in [
            "go-duration",
            "byte-size",
            "file-mode",
            "name",
            "listen-address",
            "host-port",
            "spiffe-id",
            "spiffe-pattern",
            "srv-name",
            "trust-domain",
            "socket-address",
            "route-hostname",
            "http-path",
            "http-method",
            "header-name",
            "http-url",
            "http-origin",
            "variable-name",
            "path",
            "absolute-path",
        ] {
            assert_eq!(check(format, stand_in(Some(format))), Ok(()), "{format}");
            assert_eq!(check(format, example(format).unwrap().trim_matches('"')), Ok(()), "{format}");
        }
    }

    #[test]
    fn forms() {
        let rows: &[(&str, &str, Option<&str>)] = &[
            ("route-hostname", "*.shop.example", None),
            ("route-hostname", "10.0.0.1", None),
            ("route-hostname", "*", Some("every host")),
            ("route-hostname", "a.*.b", Some("wrong place")),
            ("route-hostname", "*shop", Some("wrong place")),
            ("route-hostname", "shop:80", Some("a port")),
            ("route-hostname", "Shop", Some("capital")),
            ("route-hostname", "", Some("not a host name")),
            ("route-hostname", "a..b", Some("not a host name")),
            ("http-path", "/", None),
            ("http-path", "/a/%20b", None),
            ("http-path", "", Some("begin")),
            ("http-path", "a", Some("begin")),
            ("http-path", "/a?b", Some("query")),
            ("http-path", "/a/../b", Some("dot segment")),
            ("http-path", "/a//b", Some("empty")),
            ("http-path", "/é", Some("character")),
            ("http-method", "GET", None),
            ("http-method", "VERSION-CONTROL", None),
            ("http-method", "get", Some("method")),
            ("http-method", "", Some("method")),
            ("header-name", "X-Version", None),
            ("header-name", ":path", Some("header field")),
            ("header-name", "a b", Some("header field")),
            ("http-url", "http://localhost:9428/logs?x=1", None),
            ("http-url", "https://[::1]:80", None),
            ("http-url", "ftp://x", Some("http://")),
            ("http-url", "localhost:80", Some("http://")),
            ("http-url", "http://", Some("no valid host")),
            ("http-url", "http://:80", Some("no valid host")),
            ("http-url", "http://a b", Some("character")),
            ("http-url", "http://u:p@h/", Some("password")),
            ("http-url", "http://h:0", Some("no port")),
            ("http-url", "http://h:", Some("no port")),
            ("http-url", "http://h/#x", Some("fragment")),
            ("http-url", "http://[::1]x", Some("no port")),
            ("http-origin", "http://127.0.0.1:8200", None),
            ("http-origin", "http://vault/", None),
            ("http-origin", "http://vault/v1", Some("path")),
            ("variable-name", "_A1", None),
            ("variable-name", "", Some("name")),
            ("variable-name", "1A", Some("name")),
            ("variable-name", "A-B", Some("name")),
            ("path", "rel/ative", None),
            ("path", "", Some("not a path")),
            ("absolute-path", "rel", Some("absolute")),
        ];
        for (format, text, problem) in rows {
            match (check(format, text), problem) {
                (Ok(()), None) => {}
                (Err(error), Some(problem)) => assert!(error.problem.contains(problem), "{format} {text}: {error}"),
                (result, _) => panic!("{format} {text}: {result:?}"),
            }
        }
        assert!(!check("http-url", "http://u:hunter2@h/").unwrap_err().to_string().contains("hunter2"));
    }
}
