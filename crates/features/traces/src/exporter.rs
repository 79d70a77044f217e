//! One collector, over HTTP or gRPC ([OTLP] 1.x).
//!
//! In: spans. Out: whether the collector took them, how many it did not want, or whether
//! another try may help. Promise: only what the specification calls retryable is retried;
//! header values are shown nowhere, not even when a collector repeats them.
//!
//! [OTLP]: https://opentelemetry.io/docs/specs/otlp/

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode, Uri};
use outrigger_config::{MASK, Otlp, OtlpProtocol, Tracing};
use outrigger_http::{
    Client, ClientOptions, GrpcClient, GrpcError, GrpcOptions, HttpError, Resolver, Stage, client_tls,
};
use outrigger_telemetry::trace::{Drained, export_request};
use outrigger_traffic::retry_after;
use outrigger_wire::protobuf::{Value, fields};

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const PATH: &str = "/v1/traces";
/// An answer is small.
const MAX_ANSWER: usize = 64 << 10;
/// So much of a refusal is shown.
const SHOWN: usize = 200;

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Not now.
    #[error("spans wait: {reason}")]
    Later {
        reason: String,
        /// How long the collector wants us to wait.
        wait: Option<Duration>,
        /// Its certificate is not trusted, which a changed file may mend.
        distrusted: bool,
    },
    /// Never.
    #[error("the collector refuses spans: {0}")]
    Refused(String),
}

/// Spans of a batch that a collector took otherwise, and what it says of them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Refused {
    pub(crate) count: u64,
    pub(crate) message: String,
}

/// A way to the collector.
pub(crate) struct Exporter {
    transport: Transport,
    headers: HeaderMap,
    /// Values that are shown nowhere.
    secrets: Vec<String>,
    resource: Vec<(String, String)>,
}

enum Transport {
    Http { client: Client, url: Uri },
    Grpc(GrpcClient),
}

impl Exporter {
    /// Reads what the way needs; connects with the first spans.
    pub(crate) async fn new(config: &Tracing, resolver: &Resolver) -> Result<Self, Failure> {
        let Otlp { endpoint, protocol, headers, ca_file, timeout } = &config.otlp;
        let tls = match ca_file.clone().filter(|_| endpoint.starts_with("https")) {
            Some(path) => Some(client_tls(path).await.map_err(|reason| Failure::Later {
                reason,
                wait: None,
                distrusted: true,
            })?),
            None => None,
        };
        let url: Uri =
            endpoint.parse().map_err(|error| Failure::Refused(format!("`{endpoint}` is no URL: {error}")))?;
        let timeout = Duration::from(*timeout);
        let transport = match protocol {
            OtlpProtocol::HttpProtobuf => {
                let options = ClientOptions { tls, timeout, max_response: MAX_ANSWER, ..ClientOptions::default() };
                Transport::Http { client: Client::new(options, resolver.clone()), url: with_path(url)? }
            }
            OtlpProtocol::Grpc => {
                let options = GrpcOptions { tls, timeout, max_response: MAX_ANSWER, ..GrpcOptions::default() };
                Transport::Grpc(GrpcClient::new(url, options, resolver.clone()))
            }
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(name.to_ascii_lowercase());
            let value = HeaderValue::try_from(value.expose());
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err(Failure::Refused("a header of `otlp.headers` cannot be sent".to_owned()));
            };
            value.set_sensitive(true);
            map.append(name, value);
        }
        let mut resource = vec![("service.name".to_owned(), config.service_name.clone())];
        resource.extend(config.resource.iter().map(|(key, value)| (key.clone(), value.clone())));
        let secrets = headers.values().map(|value| value.expose().to_owned()).filter(|value| !value.is_empty());
        Ok(Self { transport, headers: map, secrets: secrets.collect(), resource })
    }

    /// Sends spans. Cancel-safe: the collector may have them or not.
    pub(crate) async fn export(&self, spans: &Drained) -> Result<Refused, Failure> {
        let body = export_request(&self.resource, ("outrigger", env!("CARGO_PKG_VERSION")), &spans.spans);
        match &self.transport {
            Transport::Http { client, url } => self.over_http(client, url, body).await,
            Transport::Grpc(client) => match client.call(METHOD, &self.headers, &body).await {
                Ok(answer) => Ok(self.refused(&answer)),
                Err(error) => Err(self.of_grpc(&error)),
            },
        }
    }

    async fn over_http(&self, client: &Client, url: &Uri, body: Vec<u8>) -> Result<Refused, Failure> {
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = url.clone();
        request.headers_mut().extend(self.headers.clone());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let response = client.send(request).await.map_err(|error| self.of_http(&error))?;
        match response.status() {
            status if status.is_success() => Ok(self.refused(response.body())),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let reason = format!("the collector answered {}", response.status());
                Err(Failure::Later { reason, wait: asked_wait(&response), distrusted: false })
            }
            status => {
                let text = self.shown(&String::from_utf8_lossy(response.body()));
                Err(Failure::Refused(format!("{status} {}", text.trim())))
            }
        }
    }

    fn of_http(&self, error: &HttpError) -> Failure {
        let (reason, distrusted) = (self.shown(&error.to_string()), error.stage() == Stage::Tls);
        if error.retryable() || distrusted {
            return Failure::Later { reason, wait: None, distrusted };
        }
        Failure::Refused(reason)
    }

    fn of_grpc(&self, error: &GrpcError) -> Failure {
        match error {
            GrpcError::Http(error) => self.of_http(error),
            error if error.retryable() => {
                Failure::Later { reason: self.shown(&error.to_string()), wait: None, distrusted: false }
            }
            error => Failure::Refused(self.shown(&error.to_string())),
        }
    }

    /// What a collector says of spans that it did not want.
    fn refused(&self, answer: &[u8]) -> Refused {
        let Refused { count, message } = partial_success(answer);
        Refused { count, message: self.shown(&message) }
    }

    /// A text from outside, fit for one line of a log. Masked before it is cut, or half a secret might remain.
    fn shown(&self, text: &str) -> String {
        let masked = self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK));
        masked.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect()
    }
}

/// The URL, with the path that the specification gives it when it has none.
fn with_path(url: Uri) -> Result<Uri, Failure> {
    if url.path() != "/" {
        return Ok(url);
    }
    let mut parts = url.into_parts();
    parts.path_and_query = PATH.parse().ok();
    Uri::from_parts(parts).map_err(|error| Failure::Refused(error.to_string()))
}

fn asked_wait(response: &Response<Bytes>) -> Option<Duration> {
    retry_after(response.headers().get(RETRY_AFTER)?.as_bytes(), SystemTime::now())?.wait()
}

/// What an `ExportTraceServiceResponse` says of spans that were not wanted. One that cannot be read says nothing.
fn partial_success(message: &[u8]) -> Refused {
    let mut refused = Refused::default();
    let Some(partial) = fields(message).find_map(|field| match field {
        (1, Value::Bytes(partial)) => Some(partial),
        _ => None,
    }) else {
        return refused;
    };
    for field in fields(partial) {
        match field {
            (1, Value::Number(count)) => refused.count = count,
            (2, Value::Bytes(text)) => refused.message = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_refused_is_read() {
        assert_eq!(partial_success(b""), Refused::default());
        let answer = [0x0a, 7, 0x08, 0x83, 0x02, 0x12, 2, b'n', b'o'];
        assert_eq!(partial_success(&answer), Refused { count: 259, message: "no".to_owned() });
        for cut in 0..answer.len() {
            partial_success(&answer[..cut]);
        }
        assert_eq!(partial_success(&[0xff; 40]), Refused::default());
    }

    #[tokio::test]
    async fn header_values_are_shown_nowhere_not_even_in_part() {
        let text =
            "otlp: { endpoint: \"http://localhost:4318\", headers: { x-key: s3cret-of-ours } }\nserviceName: shop\n";
        let text = format!("telemetry:\n  tracing:\n    {}", text.trim_end().replace('\n', "\n    "));
        let loaded = outrigger_config::parse("x.yaml", &text, &|_| None).unwrap();
        let tracing = loaded.config.telemetry.tracing.clone().unwrap();
        let exporter = Exporter::new(&tracing, &Resolver::from_system()).await.unwrap();
        for before in SHOWN - 20..SHOWN + 5 {
            let told = format!("{}s3cret-of-ours and on", "x".repeat(before));
            let mut partial = vec![0x12, 0x80 | (told.len() & 0x7f) as u8, (told.len() >> 7) as u8];
            partial.extend_from_slice(told.as_bytes());
            let mut answer = vec![0x0a, 0x80 | (partial.len() & 0x7f) as u8, (partial.len() >> 7) as u8];
            answer.extend_from_slice(&partial);
            let status = GrpcError::Status { method: "/x".to_owned(), code: 3, message: told.clone() };
            for shown in
                [exporter.shown(&told), exporter.refused(&answer).message, exporter.of_grpc(&status).to_string()]
            {
                assert!(shown.contains("xxx") && !shown.contains("s3"), "{shown}");
            }
        }
    }

    #[test]
    fn the_path_is_the_specifications_unless_given() {
        let url = |text: &str| with_path(text.parse().unwrap()).unwrap().to_string();
        assert_eq!(url("http://collector:4318"), "http://collector:4318/v1/traces");
        assert_eq!(url("http://collector:4318/"), "http://collector:4318/v1/traces");
        assert_eq!(url("https://x.example/otlp/v1/traces"), "https://x.example/otlp/v1/traces");
    }
}
