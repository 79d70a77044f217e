//! Active health checks: endpoints are asked how they are, from one place.
//!
//! In: a cluster's `healthChecks`, and its endpoints as they come and go. Out: flags that keep requests away from those
//! that fail. Promise: one check at a time of each endpoint, at intervals with jitter, seldom while there is no traffic; a
//! check that is gone from the config takes its verdict along.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use outrigger_config::HealthCheck;
use outrigger_identity::Identities;
use outrigger_traffic::Random;
use outrigger_traffic::health::{Health, Thresholds};
use tokio::task::{AbortHandle, JoinSet};

use crate::cluster::Cluster;
use crate::members::{Peer, UNHEALTHY};
use crate::metrics::Families;

/// Checks that a cluster may have: each has a bit.
const MOST_CHECKS: usize = 8;
/// Within it all endpoints are checked first.
const FIRST: Duration = Duration::from_millis(500);

impl Cluster {
    /// Checks its endpoints until the cluster is gone. Cancel-safe; of several such tasks one works.
    pub(crate) async fn check_health(cluster: Weak<Self>, identities: Identities, families: Families) {
        let Some((turn, mut version)) = cluster.upgrade().map(|this| (Arc::clone(&this.checking), this.version()))
        else {
            return;
        };
        let _turn = turn.lock().await;
        let mut checks: Arc<[HealthCheck]> = Arc::default();
        let mut watched: HashMap<SocketAddr, Vec<AbortHandle>> = HashMap::new();
        let mut watching = JoinSet::new();
        loop {
            let Some(this) = cluster.upgrade() else { return };
            version.borrow_and_update();
            let (terms, members) = (this.terms(), this.members());
            if terms.checks != checks {
                watching.abort_all();
                watched.clear();
                checks = Arc::clone(&terms.checks);
                for peer in members.peers.iter() {
                    peer.set(UNHEALTHY, false);
                    peer.unhealthy.store(None);
                }
                this.look_again();
            }
            let known: HashMap<SocketAddr, &Arc<Peer>> =
                members.peers.iter().map(|peer| (peer.address, peer)).collect();
            for (_, gone) in watched.extract_if(|address, _| !known.contains_key(address)) {
                gone.iter().for_each(AbortHandle::abort);
            }
            for peer in members.peers.iter().filter(|_| !checks.is_empty()) {
                watched.entry(peer.address).or_insert_with(|| {
                    let each = (0..checks.len().min(MOST_CHECKS)).map(|index| {
                        let (checks, peer) = (Arc::clone(&checks), Arc::clone(peer));
                        let (identities, families) = (identities.clone(), families.clone());
                        watching.spawn(watch(Weak::clone(&cluster), peer, checks, index, identities, families))
                    });
                    each.collect()
                });
            }
            drop((this, terms, members));
            while watching.try_join_next().is_some() {}
            if version.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Checks one endpoint again and again.
async fn watch(
    cluster: Weak<Cluster>,
    peer: Arc<Peer>,
    checks: Arc<[HealthCheck]>,
    index: usize,
    identities: Identities,
    families: Families,
) {
    let check = &checks[index];
    let thresholds = Thresholds { healthy: check.healthy_threshold, unhealthy: check.unhealthy_threshold };
    let flag = UNHEALTHY & (UNHEALTHY >> (MOST_CHECKS - 1) << index);
    let mut random = Random::new(RandomState::new().hash_one(peer.address));
    let mut health = Health::default();
    let interval = Duration::from(check.interval);
    tokio::time::sleep(part(FIRST.min(interval), &mut random)).await;
    loop {
        let Some(this) = cluster.upgrade() else { return };
        let outcome = tokio::time::timeout(check.timeout.into(), this.probe(peer.address, check, &identities)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {}", check.timeout)));
        families.checked(&this.name, outcome.is_ok());
        if let Some(healthy) = health.observe(outcome.is_ok(), thresholds) {
            let (cluster, address, reason) = (&this.name, peer.address, outcome.err().unwrap_or_default());
            if healthy {
                tracing::info!(component = "proxy", cluster, %address, "an endpoint is healthy again");
                peer.unhealthy.store(None);
            } else {
                tracing::warn!(component = "proxy", cluster, %address, reason, "an endpoint is unhealthy");
                peer.unhealthy.store(Some(Arc::new(reason)));
            }
            peer.set(flag, !healthy);
            this.look_again();
        }
        let quiet = this.pools.load(Relaxed) == 0;
        let interval = if quiet { interval.max(check.no_traffic_interval.into()) } else { interval };
        drop(this);
        let spread = interval * check.interval_jitter_percent / 100;
        tokio::time::sleep(interval.saturating_sub(spread) + part(spread * 2, &mut random)).await;
    }
}

/// Some part of a time.
fn part(of: Duration, random: &mut Random) -> Duration {
    of.mul_f64(f64::from(random.next()) / f64::from(u32::MAX))
}
