//! What is to be asked.
//!
//! In: the variable's text: by path on our port, a probe as Kubernetes writes it. Out: probes that
//! can be asked. Promise: what cannot be asked is refused at the start, with its path.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Kubernetes' default.
const DEFAULT_TIMEOUT: u64 = 1;
/// Hooks have no time of their own but the pod's grace period.
const HOOK_TIMEOUT: Duration = Duration::from_secs(28);
/// Beyond it no kubelet waits for us.
const MOST_TIMEOUT: u64 = 3600;

/// Every probe.
#[derive(Debug, Default)]
pub struct Plan {
    pub(crate) probes: Vec<(String, Probe)>,
}

/// One question.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) question: Question,
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone)]
pub(crate) enum Question {
    Http { tls: bool, port: u16, path: Uri, headers: Vec<(HeaderName, HeaderValue)> },
    Tcp { port: u16 },
    Grpc { port: u16, service: String },
}

/// Why a probe cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError(String);

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "OUTRIGGER_PROBES: {}; inject the pod again, or set `outrigger.dev/rewrite-probes` to `false`",
            self.0
        )
    }
}

impl std::error::Error for PlanError {}

// As lenient as to servers: Kubernetes may add fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct TcpSocket {
    port: u16,
}

#[derive(Deserialize)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: Option<String>,
}

impl Plan {
    /// Reads the variable's text.
    ///
    /// # Errors
    /// What cannot be asked.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let all: Map<String, Value> = serde_json::from_str(text).map_err(|error| PlanError(error.to_string()))?;
        let probe = |(path, value): (String, Value)| {
            if !path.starts_with("/app-health/") {
                return Err(PlanError(format!("`{path}` does not begin with /app-health/")));
            }
            let written = serde_json::from_value(value).map_err(|error| PlanError(format!("{path}: {error}")))?;
            let probe = Probe::of(written, &path).map_err(|why| PlanError(format!("{path}: {why}")))?;
            Ok((path, probe))
        };
        Ok(Self { probes: all.into_iter().map(probe).collect::<Result<_, _>>()? })
    }
}

impl Probe {
    fn of(written: Written, path: &str) -> Result<Self, String> {
        let question = match (written.http_get, written.tcp_socket, written.grpc) {
            (Some(get), None, None) => get.question()?,
            (None, Some(socket), None) => Question::Tcp { port: socket.port },
            (None, None, Some(grpc)) => Question::Grpc { port: grpc.port, service: grpc.service.unwrap_or_default() },
            _ => return Err("exactly one of httpGet, tcpSocket and grpc is asked".to_owned()),
        };
        let hook = path.ends_with("/poststart") || path.ends_with("/prestop");
        let timeout = match written.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT).clamp(1, MOST_TIMEOUT) {
            _ if hook => HOOK_TIMEOUT,
            // A tenth earlier than the kubelet gives up, so that it learns why.
            seconds => Duration::from_millis(seconds * 900),
        };
        Ok(Self { question, timeout })
    }
}

impl HttpGet {
    fn question(self) -> Result<Question, String> {
        let tls = match self.scheme.as_str() {
            "" | "HTTP" => false,
            "HTTPS" => true,
            other => return Err(format!("the scheme `{other}` is neither HTTP nor HTTPS")),
        };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{}", self.path);
        let path = path.parse().map_err(|_| format!("`{path}` is no path"))?;
        let header = |Header { name, value }: Header| {
            let pair = (HeaderName::try_from(&name), HeaderValue::try_from(&value));
            match pair {
                (Ok(name), Ok(value)) => Ok((name, value)),
                _ => Err(format!("`{name}` is no header that can be sent")),
            }
        };
        let headers = self.http_headers.into_iter().map(header).collect::<Result<_, _>>()?;
        Ok(Question::Http { tls, port: self.port, path, headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_as_kubernetes_writes_them() {
        let text = r#"{
            "/app-health/a/livez": {"httpGet": {"path": "live?x=1", "port": 80, "scheme": "HTTPS", "httpHeaders": [{"name": "A", "value": "b"}], "future": 1}, "timeoutSeconds": 2},
            "/app-health/a/readyz": {"tcpSocket": {"port": 1}},
            "/app-health/a/prestop": {"httpGet": {"port": 2}},
            "/app-health/b/startupz": {"grpc": {"port": 3, "service": null}}
        }"#;
        let plan = Plan::parse(text).unwrap();
        let of = |path: &str| &plan.probes.iter().find(|(known, _)| known == path).unwrap().1;
        let live = of("/app-health/a/livez");
        assert!(
            matches!(&live.question, Question::Http { tls: true, port: 80, path, headers } if path == "/live?x=1" && headers.len() == 1)
        );
        assert_eq!(live.timeout, Duration::from_millis(1800));
        assert_eq!(of("/app-health/a/readyz").timeout, Duration::from_millis(900));
        assert_eq!(of("/app-health/a/prestop").timeout, HOOK_TIMEOUT);
        for (text, part) in [
            ("[]", "expected a map"),
            ("{\"/readyz\": {}}", "does not begin"),
            ("{\"/app-health/a/livez\": {}}", "exactly one"),
            ("{\"/app-health/a/livez\": {\"tcpSocket\": {\"port\": 70000}}}", "/app-health/a/livez: "),
            ("{\"/app-health/a/livez\": {\"httpGet\": {\"port\": 1, \"scheme\": \"ftp\"}}}", "neither HTTP nor HTTPS"),
            (
                "{\"/app-health/a/livez\": {\"httpGet\": {\"port\": 1, \"httpHeaders\": [{\"name\": \"a b\"}]}}}",
                "no header",
            ),
        ] {
            let error = Plan::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
