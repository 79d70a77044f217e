//! What is going on at clusters' endpoints, for an operator who asks (`/clusters`).
//!
//! In: the clusters there are, and what each worker knows of their endpoints. Out: JSON. Promise: it costs nothing while
//! nobody asks, for workers are asked then; one that does not answer within a second is left out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_runtime::{AdminRoute, AdminRoutes, Workers};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Clusters};
use crate::members::Peer;
use crate::worker::Worker;

/// How long a worker may take to tell.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one worker, or all of them, knows of an endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) under_way: u32,
    pub(crate) open: u32,
    pub(crate) answers: u64,
    pub(crate) failed: u64,
    pub(crate) latency: Option<Duration>,
    /// No connection could be made lately.
    pub(crate) avoided: bool,
}

/// What is seen of endpoints, by the cluster's number and the address.
pub(crate) type Sight = HashMap<(u64, SocketAddr), Seen>;

/// Answers `/clusters` while the result lives.
pub(crate) fn register(admin: &AdminRoutes, clusters: &Arc<Clusters>, workers: &Workers) -> AdminRoute {
    let (clusters, workers) = (Arc::clone(clusters), workers.clone());
    admin.register("/clusters", "clusters and their endpoints, as JSON", move |_| {
        let (clusters, workers) = (Arc::clone(&clusters), workers.clone());
        Box::pin(async move {
            let sight = ask(&workers).await;
            let now = Instant::now();
            let mut all = clusters.all();
            all.sort_by(|one, other| one.name.cmp(&other.name));
            let all: Vec<Value> = all.iter().map(|cluster| tell(cluster, &sight, now)).collect();
            AdminRoutes::json(&json!({ "clusters": all }))
        })
    })
}

/// Asks every worker, and adds up.
async fn ask(workers: &Workers) -> Sight {
    let tasks: Vec<_> = (0..workers.count())
        .map(|index| {
            workers.spawn(index, || async { Worker::existing().map(|worker| worker.sight()).unwrap_or_default() })
        })
        .collect();
    let mut all = Sight::new();
    for task in tasks {
        let Ok(Ok(sight)) = tokio::time::timeout(PATIENCE, task).await else { continue };
        for (key, seen) in sight {
            let sum = all.entry(key).or_default();
            sum.under_way += seen.under_way;
            sum.open += seen.open;
            sum.answers += seen.answers;
            sum.failed += seen.failed;
            // The slowest experience: what keeps requests away.
            sum.latency = sum.latency.max(seen.latency);
            sum.avoided |= seen.avoided;
        }
    }
    all
}

fn tell(cluster: &Cluster, sight: &Sight, now: Instant) -> Value {
    let (members, terms) = (cluster.members(), cluster.terms());
    let resolution = cluster.resolution();
    let problem = resolution.borrow().as_ref().and_then(|outcome| outcome.clone().err());
    let endpoints: Vec<Value> = members
        .peers
        .iter()
        .map(|peer| tell_endpoint(peer, sight.get(&(cluster.id, peer.address)).copied().unwrap_or_default(), now))
        .collect();
    json!({
        "name": cluster.name,
        "service": terms.service,
        "policy": terms.balancing.policy,
        "panic": members.plan.is_panic(),
        "problem": problem,
        "connections": cluster.breakers.connections(),
        "endpoints": endpoints,
    })
}

fn tell_endpoint(peer: &Peer, seen: Seen, now: Instant) -> Value {
    let ejection = peer.ejection.load();
    let ejection = ejection.as_ref();
    let unhealthy = peer.unhealthy.load();
    let (health, reason) = match (&*unhealthy, ejection) {
        (Some(reason), _) => ("unhealthy", Some(reason.to_string())),
        (None, Some(ejection)) => ("ejected", Some(ejection.cause.as_str().to_owned())),
        (None, None) if peer.is_told_unhealthy() => ("unhealthy", Some("its source says so".to_owned())),
        (None, None) if !peer.is_usable() => ("unhealthy", None),
        (None, None) if seen.avoided => ("unreachable", Some("no connection could be made lately".to_owned())),
        (None, None) => ("healthy", None),
    };
    json!({
        "address": peer.address,
        "weight": peer.weight(),
        "priority": peer.priority(),
        "zone": peer.zone(),
        "health": health,
        "reason": reason,
        "backInSeconds": ejection.map(|ejection| ejection.until.saturating_duration_since(now).as_secs_f64().ceil()),
        "requestsUnderWay": seen.under_way,
        "connections": seen.open,
        "latencyMs": seen.latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3),
        "answers": seen.answers,
        "successRate": (seen.answers > 0).then(|| 1.0 - seen.failed as f64 / seen.answers as f64),
    })
}
