//! A worker's handles of one cluster: connections, tries, health.

use std::cell::OnceCell;
use std::time::Duration;

use outrigger_telemetry::{Counter, CounterFamily, Gauge, Histogram};
use outrigger_traffic::{Criticality, Failure, Withheld};
use rustls::HandshakeKind;

use super::Families;

impl Families {
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
            connecting: OnceCell::new(),
        }
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
    connecting: OnceCell<Box<[Histogram; 2]>>,
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

/// What connecting to an endpoint is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Tcp,
    Tls,
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

    /// Takes what a stage of connecting to an endpoint took that succeeded.
    pub(crate) fn connecting(&self, stage: Stage, took: Duration) {
        let of = |stage| self.families.connecting.with(&[&self.name, stage]);
        self.connecting.get_or_init(|| Box::new(["tcp", "tls"].map(of)))[stage as usize].observe_duration(took);
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

    /// Counts one that succeeded, and takes how long it took.
    pub(crate) fn shook_hands(&self, kind: Option<HandshakeKind>, took: Duration) {
        self.handshake("ok");
        self.connecting(Stage::Tls, took);
        if kind == Some(HandshakeKind::Resumed) {
            self.resumed.inc();
        }
    }
}
