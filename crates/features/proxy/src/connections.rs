//! Open connections, for operators (`GET /connections`).
//!
//! In: a question of the admin API. Out: what each worker has open, oldest first.
//! Promise: a worker is asked by a message, answers between two requests, and tells a
//! bounded number; one that does not answer in time is named, and the others' answers are given.

use std::cell::{Cell, OnceCell};
use std::cmp::Reverse;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use http::StatusCode;
use outrigger_runtime::{AdminRequest, AdminResponse, AdminRoutes, BoxFuture, Workers};
use serde_json::{Value, json};

use crate::connection::Downstream;
use crate::watch::Phase;
use crate::worker::Worker;

/// Connections that are told, unless fewer are asked for.
const MOST: usize = 1000;
/// Time for a worker's answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of a client's connection.
pub(crate) struct About {
    since: Instant,
    client: SocketAddr,
    speaks: Cell<&'static str>,
    tunnel: Cell<bool>,
    downstream: OnceCell<Weak<Downstream>>,
}

impl About {
    /// A connection that was accepted just now.
    pub(crate) fn new(client: SocketAddr) -> Box<Self> {
        let (speaks, tunnel) = (Cell::new(""), Cell::new(false));
        Box::new(Self { since: Instant::now(), client, speaks, tunnel, downstream: OnceCell::new() })
    }

    /// Who it is, and what is spoken.
    pub(crate) fn knows(&self, downstream: &Rc<Downstream>, speaks: &'static str) {
        self.speaks.set(speaks);
        // It is known once; a connection that turned out to be HTTP/2 is the same.
        let _ = self.downstream.set(Rc::downgrade(downstream));
    }

    /// It carries bytes as they come from here on.
    pub(crate) fn tunnels(&self) {
        self.tunnel.set(true);
    }

    /// How it is.
    pub(crate) fn state(&self, listener: String, phase: Phase, requests: u64, now: Instant) -> State {
        let downstream = self.downstream.get().and_then(Weak::upgrade);
        State {
            listener,
            client: downstream.as_ref().map_or(self.client, |one| one.remote),
            peer: downstream.as_ref().and_then(|one| one.peer.as_ref()).map(|peer| peer.id.clone()).unwrap_or_default(),
            original: downstream.as_ref().and_then(|one| one.original),
            protocol: self.speaks.get(),
            tls: downstream.as_ref().is_some_and(|one| one.secure),
            age: now.saturating_duration_since(self.since),
            requests,
            state: match phase {
                _ if self.tunnel.get() => "tunnel",
                _ if downstream.is_none() => "handshake",
                Phase::Idle => "idle",
                Phase::Head => "head",
                Phase::Busy => "request",
            },
        }
    }
}

/// One connection, as it is told.
pub(crate) struct State {
    listener: String,
    client: SocketAddr,
    peer: String,
    original: Option<SocketAddr>,
    protocol: &'static str,
    tls: bool,
    age: Duration,
    requests: u64,
    state: &'static str,
}

/// What a worker has open.
pub(crate) struct Open {
    /// How many there are; fewer may be told.
    pub(crate) total: usize,
    pub(crate) told: Vec<State>,
    /// Connections to endpoints, by cluster: open, and of these idle.
    pub(crate) pools: Vec<(String, u32, u32)>,
}

/// The handler of `GET /connections`.
pub(crate) fn handler(
    workers: Workers,
) -> impl Fn(AdminRequest) -> BoxFuture<'static, AdminResponse> + Send + Sync + 'static {
    move |request| Box::pin(answer(workers.clone(), request))
}

async fn answer(workers: Workers, request: AdminRequest) -> AdminResponse {
    let most = match request.parameter("limit").map(str::parse::<usize>) {
        None => MOST,
        Some(Ok(most)) => most.min(MOST),
        Some(Err(_)) => return AdminRoutes::text(StatusCode::BAD_REQUEST, "`limit`: a number is wanted\n"),
    };
    let wanted = request.parameter("listener").filter(|name| !name.is_empty()).map(str::to_owned);
    // All are asked at once.
    let asked: Vec<_> = (0..workers.count())
        .map(|index| {
            let wanted = wanted.clone();
            let ask = async move || Worker::existing().map(|worker| worker.open(wanted.as_deref(), most));
            (index, workers.spawn(index, ask))
        })
        .collect();
    let until = tokio::time::Instant::now() + PATIENCE;
    let (mut all, mut silent) = (Vec::new(), Vec::new());
    for (index, task) in asked {
        match tokio::time::timeout_at(until, task).await {
            Ok(Ok(open)) => all.extend(open.map(|open| (index, open))),
            Ok(Err(_)) | Err(_) => silent.push(index),
        }
    }
    AdminRoutes::json(&report(all, &silent, most))
}

fn report(all: Vec<(usize, Open)>, silent: &[usize], most: usize) -> Value {
    let total: usize = all.iter().map(|(_, open)| open.total).sum();
    let mut pools = std::collections::BTreeMap::<String, (u32, u32)>::new();
    let mut told = Vec::new();
    for (worker, open) in all {
        for (cluster, open, idle) in open.pools {
            let sum = pools.entry(cluster).or_default();
            *sum = (sum.0 + open, sum.1 + idle);
        }
        told.extend(open.told.into_iter().map(|state| (worker, state)));
    }
    told.sort_by_key(|(_, state)| Reverse(state.age));
    told.truncate(most);
    let connection = |(worker, state): (usize, State)| {
        json!({
            "listener": state.listener, "client": state.client.to_string(), "peer": state.peer,
            "originalDestination": state.original.map(|address| address.to_string()),
            "protocol": state.protocol, "tls": state.tls, "ageSeconds": state.age.as_secs_f64(),
            "requests": state.requests, "state": state.state, "worker": worker,
        })
    };
    let pool = |(cluster, (open, idle)): (String, (u32, u32))| json!({"cluster": cluster, "open": open, "idle": idle});
    json!({
        "total": total, "silentWorkers": silent,
        "connections": told.into_iter().map(connection).collect::<Value>(),
        "upstream": pools.into_iter().map(pool).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(age: u64) -> State {
        State {
            listener: "in".to_owned(),
            client: SocketAddr::from(([127, 0, 0, 1], 1)),
            peer: String::new(),
            original: None,
            protocol: "HTTP/1.1",
            tls: false,
            age: Duration::from_secs(age),
            requests: age,
            state: "idle",
        }
    }

    #[test]
    fn the_oldest_are_told_of_all_workers() {
        let open = |ages: &[u64]| Open {
            total: ages.len() + 10,
            told: ages.iter().map(|age| state(*age)).collect(),
            pools: vec![("app".to_owned(), 3, 1)],
        };
        let told = report(vec![(0, open(&[9, 5])), (1, open(&[7, 1]))], &[2], 3);
        let ages: Vec<_> = told["connections"].as_array().unwrap().iter().map(|one| one["requests"].as_u64()).collect();
        assert_eq!(ages, [Some(9), Some(7), Some(5)]);
        assert_eq!((&told["total"], &told["silentWorkers"]), (&24.into(), &json!([2])));
        assert_eq!(told["upstream"], json!([{"cluster": "app", "open": 6, "idle": 2}]));
    }

    #[test]
    fn a_connection_is_in_a_handshake_until_it_is_known() {
        let about = About::new(SocketAddr::from(([127, 0, 0, 1], 7)));
        let state = about.state("in".to_owned(), Phase::Head, 0, Instant::now());
        assert_eq!((state.state, state.client.port(), state.protocol), ("handshake", 7, ""));
        about.tunnels();
        assert_eq!(about.state(String::new(), Phase::Busy, 1, Instant::now()).state, "tunnel");
    }
}
