//! Golden metrics, and per worker the handles that make them cheap.
//!
//! Promise: on a request's path a handle is found by numbers; label values are put
//! together only the first time a combination is seen by a worker.

mod cluster;
mod listener;

use outrigger_telemetry::{Buckets, Counter, CounterFamily, Gauge, GaugeFamily, HistogramFamily, Registry};

pub(crate) use self::cluster::{CareMetrics, ClusterMetrics, Hedged, Mirrored, Stage};
pub(crate) use self::listener::{ListenerMetrics, NumberHasher, RequestKey, RequestNames};

/// From the next pod, a tenth of a millisecond, to another continent or a packet sent again.
const CONNECT_SECONDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0];

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
    connecting: HistogramFamily,
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
            connecting: registry.histogram(
                "outrigger_upstream_connect_duration_seconds",
                "What connecting to endpoints took, where it succeeded: the TCP connection, and the TLS handshake on it.",
                &["cluster", "stage"],
                Buckets::Classic(CONNECT_SECONDS.to_vec()),
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
