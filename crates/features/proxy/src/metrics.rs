//! Golden metrics, and per worker the handles that make them cheap.
//!
//! Promise: on a request's path a handle is found by numbers; label values are put
//! together only the first time a combination is seen by a worker.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use outrigger_telemetry::trace::TraceId;
use outrigger_telemetry::{Buckets, Counter, CounterFamily, Gauge, GaugeFamily, Histogram, HistogramFamily, Registry};
use outrigger_traffic::{Criticality, Failure, Withheld};
use rustls::HandshakeKind;

/// All families of the data plane.
#[derive(Clone)]
pub(crate) struct Families {
    requests: CounterFamily,
    durations: HistogramFamily,
    grpc: CounterFamily,
    flags: CounterFamily,
    buffers: GaugeFamily,
    pipes: GaugeFamily,
    buffer_limit: GaugeFamily,
    buffer_cuts: CounterFamily,
    taps: GaugeFamily,
    coded_active: GaugeFamily,
    coded: CounterFamily,
    coded_received: CounterFamily,
    coded_sent: CounterFamily,
    coded_skipped: CounterFamily,
    tap_missed: CounterFamily,
    tcp: CounterFamily,
    tcp_received: CounterFamily,
    tcp_sent: CounterFamily,
    in_flight: GaugeFamily,
    connections: GaugeFamily,
    connections_total: CounterFamily,
    connections_cut: CounterFamily,
    accept_errors: CounterFamily,
    handshakes: CounterFamily,
    resumed: CounterFamily,
    upstream_handshakes: CounterFamily,
    upstream_resumed: CounterFamily,
    upstream_total: CounterFamily,
    upstream: GaugeFamily,
    upstream_http2: GaugeFamily,
    upstream_streams: GaugeFamily,
    upstream_ahead: CounterFamily,
    refusals: CounterFamily,
    ejections: CounterFamily,
    ejected: GaugeFamily,
    endpoints: GaugeFamily,
    panic: GaugeFamily,
    checks: CounterFamily,
    upstream_cut: CounterFamily,
    retries: CounterFamily,
    again: CounterFamily,
    again_withheld: CounterFamily,
    again_succeeded: CounterFamily,
    hedges: CounterFamily,
    mirrored: CounterFamily,
    rate_limits: CounterFamily,
    rate_limit_evictions: CounterFamily,
    rate_limit_fullness: GaugeFamily,
    global_rate_limits: CounterFamily,
    concurrency_limit: GaugeFamily,
    concurrency: GaugeFamily,
    shed: CounterFamily,
    shed_limit: GaugeFamily,
}

impl Families {
    pub(crate) fn new(registry: &Registry) -> Self {
        Self {
            requests: registry.counter(
                "outrigger_http_requests_total",
                "Requests answered; code 0 means the client got no answer.",
                &["direction", "listener", "route", "cluster", "code", "peer"],
            ),
            durations: registry.histogram(
                "outrigger_http_request_duration_seconds",
                "From the request's headers to the response's last byte.",
                &["direction", "listener", "route", "cluster"],
                Buckets::request_seconds(),
            ),
            grpc: registry.counter(
                "outrigger_grpc_requests_total",
                "gRPC calls answered, by the status in their trailers.",
                &["direction", "listener", "route", "cluster", "grpc_status", "peer"],
            ),
            flags: registry.counter(
                "outrigger_http_response_flags_total",
                "Requests that the application did not answer, or that ended early, by the response flag that says why.",
                &["direction", "listener", "route", "cluster", "flag"],
            ),
            buffers: registry.gauge(
                "outrigger_proxy_buffer_bytes",
                "Memory of the data plane's buffers: lent to connections, and kept for the next.",
                &["state"],
            ),
            pipes: registry.gauge(
                "outrigger_proxy_pipes",
                "Pipes through which the kernel moves TCP connections' bytes: lent to connections, and kept for the next.",
                &["state"],
            ),
            buffer_limit: registry.gauge(
                "outrigger_proxy_buffer_limit_bytes",
                "What may be lent of it (`proxy.limits.maxBufferBytes`).",
                &[],
            ),
            buffer_cuts: registry.counter(
                "outrigger_proxy_buffer_reclaims_total",
                "Times that a worker had lent all it may, and cut the connections that held it longest.",
                &[],
            ),
            taps: registry.gauge("outrigger_taps_active", "Operators who are told of requests as they end.", &[]),
            coded_active: registry.gauge(
                "outrigger_coded_bodies_active",
                "Bodies that are being compressed or decompressed.",
                &[],
            ),
            coded: registry.counter(
                "outrigger_coded_bodies_total",
                "Bodies that were compressed or decompressed.",
                &["listener", "route", "work", "coding"],
            ),
            coded_received: registry.counter(
                "outrigger_coded_bodies_in_bytes_total",
                "Bytes of them as they came.",
                &["listener", "route", "work", "coding"],
            ),
            coded_sent: registry.counter(
                "outrigger_coded_bodies_out_bytes_total",
                "Bytes of them as they went on.",
                &["listener", "route", "work", "coding"],
            ),
            coded_skipped: registry.counter(
                "outrigger_coded_bodies_skipped_total",
                "Bodies that went on as they were, or requests refused, because `maxCodedBodies` or memory was reached.",
                &["listener", "route", "work"],
            ),
            tap_missed: registry.counter(
                "outrigger_tap_missed_total",
                "Requests that a tap was to be told of and was not, because its reader did not keep up.",
                &[],
            ),
            tcp: registry.counter(
                "outrigger_tcp_connections_closed_total",
                "TCP connections that were carried, at their end; flags tell why one broke off.",
                &["direction", "listener", "route", "cluster", "flags", "peer"],
            ),
            tcp_received: registry.counter(
                "outrigger_tcp_received_bytes_total",
                "Bytes from clients over TCP connections that have ended.",
                &["direction", "listener", "route", "cluster"],
            ),
            tcp_sent: registry.counter(
                "outrigger_tcp_sent_bytes_total",
                "Bytes to clients over TCP connections that have ended.",
                &["direction", "listener", "route", "cluster"],
            ),
            in_flight: registry.gauge("outrigger_http_requests_in_flight", "Requests being answered.", &["listener"]),
            connections: registry.gauge("outrigger_downstream_connections_active", "Open connections.", &["listener"]),
            connections_total: registry.counter(
                "outrigger_downstream_connections_total",
                "Connections accepted.",
                &["listener"],
            ),
            connections_cut: registry.counter(
                "outrigger_downstream_connections_cut_total",
                "Connections cut by us, by reason.",
                &["listener", "reason"],
            ),
            accept_errors: registry.counter(
                "outrigger_downstream_accept_errors_total",
                "Connections that could not be accepted, by reason.",
                &["listener", "reason"],
            ),
            handshakes: registry.counter(
                "outrigger_tls_handshakes_total",
                "TLS handshakes of clients, by result.",
                &["listener", "result"],
            ),
            resumed: registry.counter(
                "outrigger_tls_sessions_resumed_total",
                "TLS handshakes of clients that resumed a session, and so cost little; they are among the `ok` ones.",
                &["listener"],
            ),
            upstream_handshakes: registry.counter(
                "outrigger_upstream_tls_handshakes_total",
                "TLS handshakes with endpoints, by result.",
                &["cluster", "result"],
            ),
            upstream_resumed: registry.counter(
                "outrigger_upstream_tls_sessions_resumed_total",
                "TLS handshakes with endpoints that resumed a session; they are among the `ok` ones.",
                &["cluster"],
            ),
            upstream_total: registry.counter(
                "outrigger_upstream_connections_total",
                "Connections to endpoints, by result.",
                &["cluster", "result"],
            ),
            upstream: registry.gauge(
                "outrigger_upstream_connections_active",
                "Open connections to endpoints.",
                &["cluster"],
            ),
            upstream_http2: registry.gauge(
                "outrigger_upstream_http2_connections_active",
                "Open connections to endpoints that many requests share.",
                &["cluster"],
            ),
            upstream_streams: registry.gauge(
                "outrigger_upstream_http2_streams_active",
                "Requests under way on connections to endpoints that many share.",
                &["cluster"],
            ),
            upstream_cut: registry.counter(
                "outrigger_upstream_connections_cut_total",
                "HTTP/2 connections that were cut off for what the endpoint did on them, by reason.",
                &["cluster", "reason"],
            ),
            upstream_ahead: registry.counter(
                "outrigger_upstream_connections_ahead_total",
                "Connections to endpoints that were made before a request wanted them.",
                &["cluster"],
            ),
            refusals: registry.counter(
                "outrigger_circuit_breaker_refusals_total",
                "Requests refused because a cluster's endpoints had too much at once, by what it was too much of.",
                &["cluster", "breaker"],
            ),
            ejections: registry.counter(
                "outrigger_outlier_ejections_total",
                "Endpoints taken out for a while, by cause.",
                &["cluster", "cause"],
            ),
            ejected: registry.gauge(
                "outrigger_outlier_ejections_active",
                "Endpoints that are taken out now.",
                &["cluster"],
            ),
            endpoints: registry.gauge(
                "outrigger_cluster_endpoints",
                "Endpoints of clusters whose health is watched: all, and those that are healthy.",
                &["cluster", "state"],
            ),
            checks: registry.counter(
                "outrigger_health_checks_total",
                "Health checks of endpoints, by result.",
                &["cluster", "result"],
            ),
            panic: registry.gauge(
                "outrigger_cluster_panic",
                "1 while so few endpoints are healthy that the others are used too.",
                &["cluster"],
            ),
            retries: registry.counter(
                "outrigger_upstream_retries_total",
                "Requests sent again because a kept connection had gone stale.",
                &["cluster"],
            ),
            again: registry.counter(
                "outrigger_retries_total",
                "Requests sent again by a route's `retry`, by how the try before failed.",
                &["cluster", "reason"],
            ),
            again_withheld: registry.counter(
                "outrigger_retries_withheld_total",
                "Requests that failed so that `retry` asks for another try, and got none, by what stood in its way.",
                &["cluster", "reason"],
            ),
            again_succeeded: registry.counter(
                "outrigger_retries_succeeded_total",
                "Requests that were answered after more than one try, and well.",
                &["cluster"],
            ),
            hedges: registry.counter(
                "outrigger_hedges_total",
                "Requests sent beside one whose answer let itself be waited for: sent, won, or withheld by the budget.",
                &["cluster", "result"],
            ),
            mirrored: registry.counter(
                "outrigger_mirrored_requests_total",
                "Copies of requests for a cluster: sent, failed, or not made because the body was too large or too many were under way.",
                &["cluster", "result"],
            ),
            rate_limits: registry.counter(
                "outrigger_rate_limit_requests_total",
                "Requests that a rate limit looked at, by what it said; the listener's own has no route.",
                &["listener", "route", "limit", "result"],
            ),
            rate_limit_evictions: registry.counter(
                "outrigger_rate_limit_evictions_total",
                "Keys forgotten while they were limited, for want of room (`maxKeys`).",
                &["listener", "route", "limit"],
            ),
            rate_limit_fullness: registry.gauge(
                "outrigger_rate_limit_table_fullness_ratio",
                "The share of a rate limit's room that keys with less than their burst take.",
                &["listener", "route", "limit"],
            ),
            global_rate_limits: registry.counter(
                "outrigger_global_rate_limit_requests_total",
                "Requests that the rate limit service was asked about, by what it said; error means that it did not answer.",
                &["listener", "route", "result"],
            ),
            concurrency_limit: registry.gauge(
                "outrigger_concurrency_limit_requests",
                "How many requests may wait for a cluster's answer at once (`adaptiveConcurrency`).",
                &["cluster"],
            ),
            concurrency: registry.gauge(
                "outrigger_concurrency_requests",
                "How many do.",
                &["cluster"],
            ),
            shed: registry.counter(
                "outrigger_concurrency_shed_total",
                "Requests refused because too many waited for the cluster's answer.",
                &["cluster", "priority"],
            ),
            shed_limit: registry.gauge(
                "outrigger_overload_limit_requests",
                "How many requests may wait for a cluster's answer while clients give up (`limits.shedOverload`), over all workers; 0 while nothing is limited.",
                &["cluster"],
            ),
        }
    }

    /// Tells how many bytes of buffers a worker has more, or less, than at the last time.
    pub(crate) fn buffers(&self, lent: f64, kept: f64) {
        self.buffers.with(&["lent"]).add(lent);
        self.buffers.with(&["kept"]).add(kept);
    }

    /// Tells how many pipes a worker has more, or less, than at the last time.
    pub(crate) fn pipes(&self, lent: f64, kept: f64) {
        self.pipes.with(&["lent"]).add(lent);
        self.pipes.with(&["kept"]).add(kept);
    }

    /// Tells the limit of what may be lent.
    pub(crate) fn limit_buffers(&self, bytes: usize) {
        self.buffer_limit.with(&[]).set(bytes as f64);
    }

    /// A tap more, or less.
    pub(crate) fn taps(&self, more: f64) {
        self.taps.with(&[]).add(more);
    }

    /// A body that is being compressed or decompressed: listener, route, what is done, and the coding.
    pub(crate) fn coded(&self, labels: &[&str; 4]) -> CodedMetrics {
        let active = self.coded_active.with(&[]);
        active.inc();
        let counters = [self.coded.with(labels), self.coded_received.with(labels), self.coded_sent.with(labels)];
        CodedMetrics(Some((active, counters)))
    }

    /// Counts one that is not, for want of room: listener, route, and what was to be done.
    pub(crate) fn coded_skipped(&self, labels: &[&str; 3]) {
        self.coded_skipped.with(labels).inc();
    }

    /// Counts a request that a tap's reader had no room for.
    pub(crate) fn tap_missed(&self) {
        self.tap_missed.with(&[]).inc();
    }

    /// Counts a time that all was lent.
    pub(crate) fn reclaimed(&self) {
        self.buffer_cuts.with(&[]).inc();
    }

    /// Counts a health check.
    pub(crate) fn checked(&self, cluster: &str, good: bool) {
        self.checks.with(&[cluster, if good { "success" } else { "failure" }]).inc();
    }

    pub(crate) fn care(&self, name: &str) -> CareMetrics {
        CareMetrics {
            ejections: self.ejections.clone(),
            ejected: self.ejected.with(&[name]),
            all: self.endpoints.with(&[name, "all"]),
            healthy: self.endpoints.with(&[name, "healthy"]),
            panic: self.panic.with(&[name]),
            name: name.to_owned(),
        }
    }

    /// The counter of a rate limit's decisions: listener, route, limit, result.
    pub(crate) fn rate_limit(&self, labels: &[&str; 4]) -> Counter {
        self.rate_limits.with(labels)
    }

    /// What the rate limit service said of a route's requests.
    pub(crate) fn global_rate_limit(&self, labels: &[&str; 3]) -> Counter {
        self.global_rate_limits.with(labels)
    }

    /// The counter of a rate limit's forgotten keys: listener, route, limit.
    pub(crate) fn rate_limit_evictions(&self, labels: &[&str; 3]) -> Counter {
        self.rate_limit_evictions.with(labels)
    }

    /// Tells how full a rate limit's table is.
    pub(crate) fn rate_limit_fullness(&self, [listener, route, limit]: &[String; 3], fullness: f64) {
        self.rate_limit_fullness.with(&[listener, route, limit]).set(fullness);
    }

    /// Tells a cluster's limit on requests at once, and how many there are.
    pub(crate) fn concurrency(&self, cluster: &str, (limit, under_way): (u32, u32)) {
        self.concurrency_limit.with(&[cluster]).set(limit.into());
        self.concurrency.with(&[cluster]).set(under_way.into());
    }

    pub(crate) fn cluster(&self, name: &str) -> ClusterMetrics {
        ClusterMetrics {
            connected: self.upstream_total.with(&[name, "ok"]),
            failed: self.upstream_total.with(&[name, "failed"]),
            overflow: self.upstream_total.with(&[name, "overflow"]),
            open: self.upstream.with(&[name]),
            http2: self.upstream_http2.with(&[name]),
            streams: self.upstream_streams.with(&[name]),
            ahead: self.upstream_ahead.with(&[name]),
            retries: self.retries.with(&[name]),
            refusals: self.refusals.clone(),
            handshakes: self.upstream_handshakes.clone(),
            resumed: self.upstream_resumed.with(&[name]),
            name: name.to_owned(),
            families: self.clone(),
            retry: OnceCell::new(),
            shed: OnceCell::new(),
            mirrored: OnceCell::new(),
        }
    }
}

/// What is told of a body that is compressed or decompressed.
pub(crate) struct CodedMetrics(Option<(Gauge, [Counter; 3])>);

impl CodedMetrics {
    /// Nothing is told.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// So many bytes came, and so many went on.
    pub(crate) fn ended(&mut self, received: u64, sent: u64) {
        if let Some((active, [bodies, came, went])) = self.0.take() {
            active.dec();
            bodies.inc();
            came.add(received);
            went.add(sent);
        }
    }
}

/// Handles of one cluster on one worker.
pub(crate) struct ClusterMetrics {
    pub(crate) connected: Counter,
    pub(crate) failed: Counter,
    pub(crate) overflow: Counter,
    pub(crate) open: Gauge,
    /// Those of the open ones that many requests share, and the requests on them.
    pub(crate) http2: Gauge,
    pub(crate) streams: Gauge,
    /// Connections made ahead of requests.
    pub(crate) ahead: Counter,
    pub(crate) retries: Counter,
    refusals: CounterFamily,
    handshakes: CounterFamily,
    resumed: Counter,
    name: String,
    families: Families,
    retry: OnceCell<Box<RetryMetrics>>,
    shed: OnceCell<Box<[Counter; 3]>>,
    mirrored: OnceCell<Box<[Counter; 4]>>,
}

impl ClusterMetrics {
    /// Counts a connection that was cut off.
    pub(crate) fn cut(&self, reason: &str) {
        self.families.upstream_cut.with(&[&self.name, reason]).inc();
    }
}

/// Handles of a cluster's retries on one worker.
pub(crate) struct RetryMetrics {
    made: [Counter; FAILURES.len()],
    withheld: [Counter; WITHHELD.len()],
    pub(crate) succeeded: Counter,
    hedges: [Counter; 3],
}

/// What came of a request's copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mirrored {
    Sent,
    Failed,
    BodyTooLarge,
    TooMany,
}

/// What came of a request beside another one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hedged {
    Sent,
    Won,
    Withheld,
}

const FAILURES: [&str; 6] = ["connect-failure", "refused-stream", "reset", "timeout", "code", "grpc-code"];
const WITHHELD: [&str; 6] = ["attempts", "budget", "body", "deadline", "asked", "overflow"];

impl RetryMetrics {
    /// Counts a try after one that failed so.
    pub(crate) fn made(&self, failure: Failure) {
        count(&self.made, &FAILURES, failure.as_str());
    }

    /// Counts a request beside another one.
    pub(crate) fn hedged(&self, result: Hedged) {
        self.hedges[result as usize].inc();
    }

    /// Counts one that was not made.
    pub(crate) fn withheld(&self, why: Withheld) {
        count(&self.withheld, &WITHHELD, why.as_str());
    }
}

fn count(counters: &[Counter], names: &[&str], name: &str) {
    if let Some(index) = names.iter().position(|one| *one == name) {
        counters[index].inc();
    }
}

/// What is told of a cluster that is looked after.
pub(crate) struct CareMetrics {
    ejections: CounterFamily,
    ejected: Gauge,
    all: Gauge,
    healthy: Gauge,
    panic: Gauge,
    name: String,
}

impl CareMetrics {
    /// Counts an ejection.
    pub(crate) fn ejection(&self, cause: &str) {
        self.ejections.with(&[&self.name, cause]).inc();
    }

    /// How many are ejected now.
    pub(crate) fn ejected(&self, count: usize) {
        self.ejected.set(count as f64);
    }

    /// How many there are, and how many of them are healthy.
    pub(crate) fn endpoints(&self, all: usize, healthy: usize) {
        self.all.set(all as f64);
        self.healthy.set(healthy as f64);
    }

    /// Whether the others are used too.
    pub(crate) fn panic(&self, on: bool) {
        self.panic.set(f64::from(u8::from(on)));
    }
}

impl Drop for CareMetrics {
    fn drop(&mut self) {
        [&self.ejected, &self.all, &self.healthy, &self.panic].into_iter().for_each(|gauge| gauge.set(0.0));
    }
}

impl ClusterMetrics {
    /// Counts a request that a circuit breaker refused.
    pub(crate) fn refused(&self, breaker: &str) {
        self.refusals.with(&[&self.name, breaker]).inc();
    }

    /// Counts a copy of a request.
    pub(crate) fn mirrored(&self, result: Mirrored) {
        let of = |result| self.families.mirrored.with(&[&self.name, result]);
        let counters = self.mirrored.get_or_init(|| Box::new(["sent", "failed", "body", "busy"].map(of)));
        counters[result as usize].inc();
    }

    /// Counts a request that was refused because too many waited.
    pub(crate) fn shed(&self, criticality: Criticality) {
        let of = |priority| self.families.shed.with(&[&self.name, priority]);
        let counters = self.shed.get_or_init(|| Box::new(["critical", "standard", "sheddable"].map(of)));
        counters[criticality as usize].inc();
    }

    /// Tells how much the limit on those that wait is more, or less, than at the last time.
    pub(crate) fn shed_limit(&self, more: f64) {
        self.families.shed_limit.with(&[&self.name]).add(more);
    }

    /// Handles of retries, made when they are first needed.
    pub(crate) fn retry(&self) -> &RetryMetrics {
        self.retry.get_or_init(|| {
            Box::new(RetryMetrics {
                made: FAILURES.map(|reason| self.families.again.with(&[&self.name, reason])),
                withheld: WITHHELD.map(|reason| self.families.again_withheld.with(&[&self.name, reason])),
                succeeded: self.families.again_succeeded.with(&[&self.name]),
                hedges: ["sent", "won", "withheld"].map(|result| self.families.hedges.with(&[&self.name, result])),
            })
        })
    }

    /// Counts a TLS handshake with an endpoint.
    pub(crate) fn handshake(&self, result: &str) {
        self.handshakes.with(&[&self.name, result]).inc();
    }

    /// Counts one that succeeded.
    pub(crate) fn shook_hands(&self, kind: Option<HandshakeKind>) {
        self.handshake("ok");
        if kind == Some(HandshakeKind::Resumed) {
            self.resumed.inc();
        }
    }
}

/// Handles of one listener on one worker.
pub(crate) struct ListenerMetrics {
    families: Families,
    direction: &'static str,
    listener: String,
    pub(crate) in_flight: Gauge,
    connections: Gauge,
    connections_total: Counter,
    resumed: Counter,
    requests: RefCell<HashMap<RequestKey, Counter, BuildHasherDefault<NumberHasher>>>,
    grpc: RefCell<HashMap<RequestKey, Counter, BuildHasherDefault<NumberHasher>>>,
    durations: RefCell<HashMap<(u64, u64), Histogram, BuildHasherDefault<NumberHasher>>>,
    /// By route, cluster and flag.
    flags: RefCell<HashMap<(u64, u64, &'static str), Counter>>,
}

/// Which counter a request belongs to; peers are numbered per worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestKey {
    pub(crate) route: u64,
    pub(crate) cluster: u64,
    pub(crate) code: u16,
    pub(crate) peer: u64,
}

/// The names behind a key, for the first time it is seen.
pub(crate) struct RequestNames<'a> {
    pub(crate) route: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) peer: &'a str,
}

/// A worker forgets its handles when it holds so many; the registry's budget is the real bound.
const MOST_HANDLES: usize = 4096;

impl ListenerMetrics {
    pub(crate) fn new(families: &Families, direction: &'static str, listener: &str) -> Rc<Self> {
        Rc::new(Self {
            families: families.clone(),
            direction,
            listener: listener.to_owned(),
            in_flight: families.in_flight.with(&[listener]),
            connections: families.connections.with(&[listener]),
            connections_total: families.connections_total.with(&[listener]),
            resumed: families.resumed.with(&[listener]),
            requests: RefCell::default(),
            grpc: RefCell::default(),
            durations: RefCell::default(),
            flags: RefCell::default(),
        })
    }

    /// Counts a request and its duration; `traced` is the trace that is kept of it, and when it began.
    pub(crate) fn request(
        &self,
        key: RequestKey,
        names: &RequestNames<'_>,
        duration: Duration,
        traced: Option<(TraceId, SystemTime)>,
    ) {
        let mut requests = self.requests.borrow_mut();
        if requests.len() >= MOST_HANDLES {
            requests.clear();
        }
        requests
            .entry(key)
            .or_insert_with(|| {
                let code = key.code.to_string();
                let labels = [self.direction, &self.listener, names.route, names.cluster, &code, names.peer];
                self.families.requests.with(&labels)
            })
            .inc();
        let mut durations = self.durations.borrow_mut();
        if durations.len() >= MOST_HANDLES {
            durations.clear();
        }
        let durations = durations.entry((key.route, key.cluster)).or_insert_with(|| {
            self.families.durations.with(&[self.direction, &self.listener, names.route, names.cluster])
        });
        durations.observe_duration(duration);
        if let Some((trace, at)) = traced {
            durations.exemplar(duration.as_secs_f64(), trace, at);
        }
    }

    /// Counts a request by the flag that says why it was not answered, or not to its end.
    pub(crate) fn flag(&self, key: RequestKey, names: &RequestNames<'_>, flag: &'static str) {
        let mut flags = self.flags.borrow_mut();
        if flags.len() >= MOST_HANDLES {
            flags.clear();
        }
        flags
            .entry((key.route, key.cluster, flag))
            .or_insert_with(|| {
                let labels = [self.direction, &self.listener, names.route, names.cluster, flag];
                self.families.flags.with(&labels)
            })
            .inc();
    }

    /// Counts a gRPC call by its status.
    pub(crate) fn grpc(&self, key: RequestKey, names: &RequestNames<'_>, status: u8) {
        let mut calls = self.grpc.borrow_mut();
        if calls.len() >= MOST_HANDLES {
            calls.clear();
        }
        calls
            .entry(RequestKey { code: status.into(), ..key })
            .or_insert_with(|| {
                let status = status.to_string();
                let labels = [self.direction, &self.listener, names.route, names.cluster, &status, names.peer];
                self.families.grpc.with(&labels)
            })
            .inc();
    }

    /// Counts a TCP connection that has ended.
    pub(crate) fn tcp(&self, names: &RequestNames<'_>, flags: &str, received: u64, sent: u64) {
        let place = [self.direction, &self.listener, names.route, names.cluster];
        let labels = [self.direction, &self.listener, names.route, names.cluster, flags, names.peer];
        self.families.tcp.with(&labels).inc();
        self.families.tcp_received.with(&place).add(received);
        self.families.tcp_sent.with(&place).add(sent);
    }

    /// Counts a TLS handshake.
    pub(crate) fn handshake(&self, result: &str) {
        self.families.handshakes.with(&[&self.listener, result]).inc();
    }

    /// Counts one that succeeded.
    pub(crate) fn shook_hands(&self, kind: Option<HandshakeKind>) {
        self.handshake("ok");
        if kind == Some(HandshakeKind::Resumed) {
            self.resumed.inc();
        }
    }

    /// Counts a connection, which is open until the result is dropped.
    pub(crate) fn connection(&self) -> CountedConnection {
        self.connections.inc();
        self.connections_total.inc();
        CountedConnection(self.connections.clone())
    }

    /// Counts a connection that could not be accepted.
    pub(crate) fn accept_failed(&self, reason: &str) {
        self.families.accept_errors.with(&[&self.listener, reason]).inc();
    }

    /// Counts a connection we cut.
    pub(crate) fn cut(&self, reason: &str) {
        self.families.connections_cut.with(&[&self.listener, reason]).inc();
    }
}

/// An open connection in the count.
pub(crate) struct CountedConnection(Gauge);

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Hashes small numbers that we made ourselves: no defence against chosen keys is needed.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
