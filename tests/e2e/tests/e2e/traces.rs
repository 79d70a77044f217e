//! Traces, as a collector receives them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use outrigger_e2e::{
    Application, Otelcol, Outrigger, Prometheus, Span, eventually, free_port, request, start_outrigger,
    start_outrigger_with,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// An application that calls itself: out by one listener, in by the other.
struct Pod {
    outrigger: Outrigger,
    application: Application,
    out: u16,
}

fn config(out: u16, inside: u16, application: &Application, tracing: &str) -> String {
    format!(
        r#"telemetry:
  tracing:
    serviceName: shop
    resource: {{ deployment.environment: test }}
    interval: 50ms
{tracing}
proxy:
  listeners:
    - {{ name: out, direction: outbound, address: "127.0.0.1:{out}", routes: [{{ name: to-shop, backendRefs: [{{ name: self }}] }}, {{ name: nowhere, matches: [{{ path: {{ value: /gone }} }}], backendRefs: [{{ name: gone }}] }}] }}
    - {{ name: in, direction: inbound, address: "127.0.0.1:{inside}", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}
  clusters:
    - {{ name: self, endpoints: ["127.0.0.1:{inside}"] }}
    - {{ name: app, endpoints: ["{}"] }}
    - {{ name: gone, endpoints: ["127.0.0.1:{}"] }}
"#,
        application.address,
        free_port()
    )
}

impl Pod {
    fn start(folder: &Path, tracing: &str) -> Self {
        let (application, out, inside) = (Application::start(), free_port(), free_port());
        let outrigger = start_outrigger(folder, &config(out, inside, &application, tracing));
        Self { outrigger, application, out }
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        request("GET", &format!("http://127.0.0.1:{}{path}", self.out), headers, "").expect("an answer").status
    }

    /// A field of the last request that the application saw.
    fn seen(&self, name: &str) -> Option<String> {
        let seen = self.application.seen();
        seen.last()?.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone())
    }
}

/// The spans of both listeners, of one request each.
fn pair(spans: &[Span]) -> Result<(Span, Span)> {
    let of = |listener: &str| -> Result<Span> {
        let found: Vec<_> =
            spans.iter().filter(|span| span.attribute("outrigger.listener").as_deref() == Some(listener)).collect();
        ensure!(found.len() == 1, "{} spans of `{listener}`: {spans:#?}", found.len());
        Ok(found[0].clone())
    };
    Ok((of("out")?, of("in")?))
}

fn http(collector: &Otelcol, more: &str) -> String {
    format!("    otlp: {{ endpoint: \"http://127.0.0.1:{}\" }}\n{more}", collector.http)
}

fn grpc(collector: &Otelcol, more: &str) -> String {
    format!("    otlp: {{ endpoint: \"http://127.0.0.1:{}\", protocol: grpc }}\n{more}", collector.grpc)
}

#[test]
fn spans_hang_together_over_http_and_grpc() {
    for way in [http, grpc] {
        let folder = tempfile::tempdir().unwrap();
        let collector = Otelcol::start(folder.path());
        let pod = Pod::start(folder.path(), &way(&collector, "    sampling: { ratio: 0 }"));
        let traceparent = format!("00-{TRACE}-{CALLER}-01");
        assert_eq!(pod.get("/cart?secret=1", &[("traceparent", &traceparent), ("tracestate", "v=1")]), 200);
        let (out, inside) = eventually("both spans", || pair(&collector.spans()?));
        for span in [&out, &inside] {
            assert_eq!((span.field("traceId"), span.service.as_str()), (TRACE, "shop"));
            assert_eq!(span.attribute("http.request.method").as_deref(), Some("GET"));
            assert_eq!(span.attribute("url.path").as_deref(), Some("/cart"), "without the query");
            assert_eq!(span.attribute("http.response.status_code").as_deref(), Some("200"));
            assert!(!span.json.to_string().contains("secret"));
        }
        assert_eq!((out.field("parentSpanId"), out.json["kind"].as_u64()), (CALLER, Some(3)), "client");
        assert_eq!(
            (inside.field("parentSpanId"), inside.json["kind"].as_u64()),
            (out.field("spanId"), Some(2)),
            "server"
        );
        assert_eq!((out.field("name"), inside.field("name")), ("GET to-shop", "GET all"));
        let own = format!("00-{TRACE}-{}-01", inside.field("spanId"));
        assert_eq!(pod.seen("traceparent"), Some(own), "the application's own spans belong below ours");
        assert_eq!(pod.seen("tracestate").as_deref(), Some("v=1"));
        eventually("the count", || {
            let sent = pod.outrigger.metric("outrigger_trace_spans_sent_total")?;
            ensure!(sent == 2.0, "{sent}");
            Ok(())
        });
    }
}

#[test]
fn each_try_of_a_request_has_its_span() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Otelcol::start(folder.path());
    let (application, out, inside) = (Application::start(), free_port(), free_port());
    // The first try is refused by the other listener, the second one gets through.
    let retry = "retry: { codes: [503], attempts: 2, backoff: 1ms, attemptCount: true }";
    let refused = "{ name: first, matches: [{ headers: [{ name: x-envoy-attempt-count, value: \"1\" }] }], \
                   filters: [{ type: DirectResponse, directResponse: { statusCode: 503 } }] }, ";
    let config = config(out, inside, &application, &http(&collector, "    sampling: { ratio: 0, errors: false }"))
        .replace(
            "name: to-shop, backendRefs: [{ name: self }]",
            &format!("name: to-shop, backendRefs: [{{ name: self }}], {retry}"),
        )
        .replace("routes: [{ name: all,", &format!("routes: [{refused}{{ name: all,"));
    let pod = Pod { outrigger: start_outrigger(folder.path(), &config), application, out };
    assert_eq!(pod.get("/cart", &[("traceparent", &format!("00-{TRACE}-{CALLER}-01"))]), 200);
    let spans = eventually("all five spans", || {
        let spans = collector.spans()?;
        ensure!(spans.len() == 5, "{} spans: {spans:#?}", spans.len());
        Ok(spans)
    });
    let below = |parent: &str, name: &str| -> Vec<Span> {
        spans
            .iter()
            .filter(|span| span.field("parentSpanId") == parent && span.field("name") == name)
            .cloned()
            .collect()
    };
    let whole = below(CALLER, "GET to-shop");
    assert_eq!(whole.len(), 1, "{spans:#?}");
    assert_eq!(whole[0].attribute("http.request.resend_count").as_deref(), Some("1"));
    let own = whole[0].field("spanId");
    let tries = below(own, "GET to-shop");
    let told = |span: &Span| {
        ["http.response.status_code", "http.request.resend_count", "network.peer.port"].map(|key| span.attribute(key))
    };
    let mut kinds: Vec<_> = tries.iter().map(told).collect();
    kinds.sort();
    let text = |text: &str| Some(text.to_owned());
    let port = Some(inside.to_string());
    assert_eq!(kinds, [[text("200"), text("1"), port.clone()], [text("503"), None, port]], "{spans:#?}");
    // What the other listener did of each stands below what it was told: the request's span, then that of the second try.
    assert_eq!(below(own, "GET first").len(), 1, "{spans:#?}");
    let second = tries.iter().find(|span| span.attribute("http.request.resend_count").is_some()).unwrap();
    let inner = below(second.field("spanId"), "GET all");
    assert_eq!(inner.len(), 1, "{spans:#?}");
    let traceparent = format!("00-{TRACE}-{}-01", inner[0].field("spanId"));
    assert_eq!(pod.seen("traceparent"), Some(traceparent));
}

#[test]
fn only_what_failed_is_kept_of_what_is_not_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Otelcol::start(folder.path());
    let pod = Pod::start(folder.path(), &http(&collector, "    sampling: { ratio: 0, slow: 60s }"));
    assert_eq!(pod.get("/fine", &[]), 200);
    assert!(pod.seen("traceparent").is_some_and(|told| told.ends_with("-00")), "carried on, and not kept");
    assert_eq!(pod.get("/gone/for-good", &[]), 503);
    assert_eq!(pod.get("/fine", &[("traceparent", "00-broken"), ("tracestate", "v=1")]), 200);
    assert!(pod.seen("tracestate").is_none(), "it is of a trace that nobody can tell");
    let spans = eventually("the failed one's span", || {
        let spans = collector.spans()?;
        ensure!(!spans.is_empty(), "none");
        Ok(spans)
    });
    assert_eq!(spans.len(), 1, "{spans:#?}");
    let failed = &spans[0];
    assert_eq!(failed.attribute("outrigger.route").as_deref(), Some("nowhere"));
    assert_eq!(failed.json["status"]["code"], 2, "{failed:?}");
    assert_eq!(failed.attribute("error.type").as_deref(), Some("UF"));
    assert_eq!(failed.field("parentSpanId"), "");
}

#[test]
fn slow_requests_are_kept_on_every_hop_and_b3_is_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Otelcol::start(folder.path());
    let tracing = "    sampling: { ratio: 0, errors: false, slow: 1us }\n    propagators: [b3, b3multi]";
    let pod = Pod::start(folder.path(), &http(&collector, tracing));
    assert_eq!(pod.get("/slow", &[("x-b3-traceid", TRACE), ("x-b3-spanid", CALLER), ("x-b3-sampled", "0")]), 200);
    let (out, inside) = eventually("both spans", || pair(&collector.spans()?));
    assert_eq!((out.field("traceId"), inside.field("traceId")), (TRACE, TRACE));
    assert_eq!((out.field("parentSpanId"), inside.field("parentSpanId")), (CALLER, out.field("spanId")));
    assert_eq!(pod.seen("b3"), Some(format!("{TRACE}-{}-0", inside.field("spanId"))));
    assert_eq!(pod.seen("x-b3-spanid").as_deref(), Some(inside.field("spanId")));
}

#[test]
fn spans_wait_for_a_collector_that_is_away_within_their_bound() {
    let folder = tempfile::tempdir().unwrap();
    let (port, other) = (free_port(), free_port());
    let tracing = format!(
        "    otlp: {{ endpoint: \"http://127.0.0.1:{port}\" }}\n    buffer: 64KiB\n    sampling: {{ ratio: 1, maxPerSecond: 1000000 }}"
    );
    let pod = Pod::start(folder.path(), &tracing);
    let dropped = "outrigger_trace_spans_dropped_total{reason=\"buffer_full\"}";
    let mut requests = 0;
    eventually("the buffer to be full", || {
        assert_eq!(pod.get("/", &[("user-agent", &"x".repeat(900))]), 200, "requests do not wait for it");
        requests += 1;
        let count = pod.outrigger.metric(dropped)?;
        ensure!(count > 0.0, "none dropped");
        Ok(())
    });
    let ready = pod.outrigger.get("/readyz?verbose").unwrap();
    assert!(ready.status == 200 && ready.body.contains("spans wait"), "{}", ready.body);
    let collector = Otelcol::start_on(folder.path(), port, other);
    // A request has two spans. A worker's share of 64 KiB has room for more than ten that long, whichever fills first.
    eventually("all that waited", || {
        let count = collector.spans()?.len();
        let lost = pod.outrigger.metric(dropped)? as usize;
        ensure!(count > 10 && count + lost == 2 * requests, "{count} spans of {requests} requests, {lost} dropped");
        Ok(())
    });
}

#[test]
fn what_waits_is_sent_at_the_stop_and_a_refusal_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Otelcol::start(folder.path());
    let (application, out, inside) = (Application::start(), free_port(), free_port());
    let text = config(out, inside, &application, &http(&collector, "    sampling: { ratio: 1 }"));
    let mut outrigger = start_outrigger_with(folder.path(), &text.replace("interval: 50ms", "interval: 1h"), &[]);
    outrigger.wait_ready();
    // The first look, with which an interval begins, is over.
    eventually("requests to be traced", || {
        request("GET", &format!("http://127.0.0.1:{out}/"), &[], "")?.ok()?;
        let waiting = outrigger.metric("outrigger_trace_buffer_bytes")?;
        ensure!(waiting > 0.0, "nothing waits");
        Ok(())
    });
    let status = outrigger.process.stop();
    assert!(status.success(), "{status}");
    let spans = eventually("the last spans", || {
        let spans = collector.spans()?;
        if spans.is_empty() { bail!("none") } else { Ok(spans) }
    });
    assert!(spans.iter().all(|span| span.service == "shop"));

    // Nobody there speaks OTLP: the application answers anything with 200, so its own path must not.
    let folder = tempfile::tempdir().unwrap();
    let wrong = format!(
        "    otlp: {{ endpoint: \"http://127.0.0.1:{}/v1/logs\" }}\n    sampling: {{ ratio: 1 }}",
        collector.http
    );
    let pod = Pod::start(folder.path(), &wrong);
    assert_eq!(pod.get("/", &[]), 200);
    eventually("the refusal", || {
        let count = pod.outrigger.metric("outrigger_trace_spans_dropped_total{reason=\"refused\"}")?;
        ensure!(count > 0.0, "none");
        let log = pod.outrigger.process.log();
        log.contains("spans dropped").then_some(()).context(log)
    });
}

#[test]
fn durations_have_exemplars_that_prometheus_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Otelcol::start(folder.path());
    let pod = Pod::start(folder.path(), &http(&collector, "    sampling: { ratio: 0 }"));
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    assert_eq!(pod.get("/", &[("traceparent", &traceparent)]), 200);
    let target = pod.outrigger.admin.trim_start_matches("http://").to_owned();
    let prometheus = Prometheus::start(folder.path(), &target);
    let found = eventually("an exemplar", || {
        ensure!(prometheus.last_error()?.is_empty(), "{}", prometheus.last_error()?);
        let found = prometheus.exemplars("outrigger_http_request_duration_seconds_bucket")?;
        if found.is_empty() { bail!("none yet") } else { Ok(found) }
    });
    assert!(found.iter().all(|trace| trace == TRACE), "{found:?}");
}
