//! A worker's handles of one listener: requests by where they went, connections.
//!
//! Promise: a request's handles are found by numbers; a worker keeps a bounded count of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use outrigger_telemetry::trace::TraceId;
use outrigger_telemetry::{Counter, Gauge, Histogram};
use rustls::HandshakeKind;

use super::Families;

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
