//! Answers scrapes.
//!
//! In: HTTP/1.1 connections. Out: the whole registry at `/metrics`, as text 0.0.4 or
//! OpenMetrics, whichever the client prefers. Promise: a bounded number of connections,
//! none of which lives for ever, however slowly its peer sends or reads.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_runtime::Stop;
use outrigger_telemetry::{Format, Registry};
use tokio::net::TcpStream;

use crate::merge::Targets;

/// Open connections; more wait in the kernel's backlog. A Prometheus pair needs two.
pub(crate) const MAX_CONNECTIONS: usize = 64;

/// Time for a request's headers, and for a connection to rest: longer than the usual scrape interval of a minute.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// A connection is closed after its answer when it is so old.
const MAX_AGE: Duration = Duration::from_secs(300);

/// Time to take the last answer of an old connection. Prometheus gives up after ten seconds by default.
const LAST_ANSWER: Duration = Duration::from_secs(15);

/// The same when the process stops: others wait.
const STOP_ANSWER: Duration = Duration::from_secs(1);

/// Time for the first request of a connection that was accepted just before the stop: it is on its way, and hyper
/// would close the connection on it.
const FIRST_REQUEST: Duration = Duration::from_millis(20);

const INDEX: &str =
    "<!doctype html><title>Outrigger</title><h1>Outrigger</h1><p><a href=\"/metrics\">Metrics</a></p>\n";

/// Serves one connection until its peer closes it, it is too old, or the stop is requested.
pub(crate) async fn serve(stream: TcpStream, registry: Registry, targets: Arc<Targets>, stop: Stop) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (registry, targets) = (registry.clone(), Arc::clone(&targets));
        async move {
            let (head, _) = request.into_parts();
            Ok::<_, Infallible>(respond(&registry, &targets, &head.method, head.uri.path(), &head.headers).await)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(MAX_AGE) => finish(connection, LAST_ANSWER).await,
        () = stop.requested() => match tokio::time::timeout(FIRST_REQUEST, connection.as_mut()).await {
            Ok(ended) => ended,
            Err(_) => finish(connection, STOP_ANSWER).await,
        },
    };
    if let Err(error) = ended {
        tracing::debug!(component = "metrics", %error, "scrape connection failed");
    }
}

/// Lets a request that is being answered end, and nothing after it.
async fn finish<C>(mut connection: std::pin::Pin<&mut C>, patience: Duration) -> hyper::Result<()>
where
    C: Graceful,
{
    connection.as_mut().shut_down();
    // After that the connection is simply dropped: its peer sends or reads too slowly.
    tokio::time::timeout(patience, connection).await.unwrap_or(Ok(()))
}

/// hyper's connections, whatever their service is.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn shut_down(self: std::pin::Pin<&mut Self>);
}

impl<S> Graceful for http1::Connection<TokioIo<TcpStream>, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: std::pin::Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn respond(
    registry: &Registry,
    targets: &Targets,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Response<Full<Bytes>> {
    if !matches!(path, "/" | "/metrics") {
        return plain(StatusCode::NOT_FOUND, "not found; the metrics are at /metrics\n");
    }
    // To HEAD, hyper answers with the headers alone.
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed here\n");
        response.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if path == "/" {
        return answer(StatusCode::OK, "text/html; charset=utf-8", INDEX);
    }
    if !targets.is_empty() {
        let body = targets.merged(registry).await;
        return answer(StatusCode::OK, Format::Text.content_type(), body);
    }
    let accept = accepted(headers);
    let format = Format::negotiate(accept.as_deref());
    let mut body = Vec::new();
    registry.encode(format, &mut body);
    answer(StatusCode::OK, format.content_type(), body)
}

/// All `Accept` lines as one list.
fn accepted(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", text)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn registry() -> Registry {
        let registry = Registry::new(&Default::default(), 1);
        registry.counter("test_things_total", "Things.", &[]).with(&[]).add(3);
        registry
    }

    async fn get(method: Method, path: &str, accept: Option<&'static str>) -> (StatusCode, String, String) {
        let mut headers = HeaderMap::new();
        if let Some(accept) = accept {
            headers.insert(ACCEPT, http::HeaderValue::from_static(accept));
        }
        let response = respond(&registry(), &Targets::default(), &method, path, &headers).await;
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn metrics_come_in_the_format_asked_for() {
        let (status, kind, body) = get(Method::GET, "/metrics", None).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, Format::Text.content_type()));
        assert!(body.contains("\ntest_things_total 3\n") && !body.contains("# EOF"), "{body}");
        let (status, kind, body) =
            get(Method::GET, "/metrics", Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, Format::OpenMetrics.content_type()));
        assert!(body.ends_with("# EOF\n"), "{body}");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        assert_eq!(get(Method::GET, "/", None).await.0, StatusCode::OK);
        assert_eq!(get(Method::HEAD, "/metrics", None).await.0, StatusCode::OK);
        assert_eq!(get(Method::GET, "/metrics/", None).await.0, StatusCode::NOT_FOUND);
        assert_eq!(get(Method::POST, "/metrics", None).await.0, StatusCode::METHOD_NOT_ALLOWED);
    }
}
