//! Looks after a cluster as time goes on: one task for each that needs it, on the main thread.
//!
//! In: what workers counted of its endpoints, and time. Out: endpoints ejected and taken back, weights of new ones raised,
//! a new plan where any of it changed. Promise: whatever takes longer than a look is done here and not by requests; what
//! is ejected comes back, also when the config changes meanwhile.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use outrigger_config::OutlierDetection;
use outrigger_traffic::outlier::{Cause, Ejections, Limits, SuccessRate};

use crate::cluster::Cluster;
use crate::members::{EJECTED, Peer};
use crate::metrics::{CareMetrics, Families};

/// How often the weights of endpoints that are new are raised.
const SLOW_START_STEP: Duration = Duration::from_secs(1);

/// What is known of a cluster from one look to the next.
#[derive(Default)]
pub(crate) struct Care {
    ejections: Ejections<SocketAddr>,
    /// When success rates are compared next.
    interval: Option<Instant>,
}

impl Cluster {
    /// Looks after a cluster until it is gone. Cancel-safe; of several such tasks one works.
    pub(crate) async fn care_for(cluster: Weak<Self>, families: Families) {
        let Some((care, metrics)) = cluster.upgrade().map(|this| (Arc::clone(&this.care), families.care(&this.name)))
        else {
            return;
        };
        let mut care = care.lock().await;
        loop {
            let Some(this) = cluster.upgrade() else { return };
            let next = this.look_after(&mut care, &metrics, Instant::now());
            let alarm = Arc::clone(&this.alarm);
            drop(this);
            match next {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), alarm.notified()).await;
                }
                None => alarm.notified().await,
            }
        }
    }

    /// Does what is due; returns when it is to be called again.
    fn look_after(&self, care: &mut Care, metrics: &CareMetrics, now: Instant) -> Option<Instant> {
        let terms = self.terms();
        let members = self.members();
        let starting = members.starting_until(&terms.balancing).filter(|until| *until + SLOW_START_STEP > now);
        let mut changed = self.is_stale() | starting.is_some();
        let mut next = starting.map(|_| now + SLOW_START_STEP);
        match &terms.outliers {
            Some(config) => {
                changed |= self.judge(care, config, &members.peers, metrics, now);
                next = next.into_iter().chain(care.interval).chain(care.ejections.next_end()).min();
            }
            None => {
                care.interval = None;
                let back = care.ejections.clear();
                changed |= !back.is_empty();
                take_back(&members.peers, &back);
            }
        }
        if changed {
            self.plan();
        }
        let members = self.members();
        metrics.ejected(care.ejections.count());
        metrics.endpoints(members.peers.len(), members.peers.iter().filter(|peer| peer.is_usable()).count());
        metrics.panic(members.plan.is_panic());
        next
    }

    /// Ejects who failed and takes back whose time is over. Returns whether anything changed.
    fn judge(
        &self,
        care: &mut Care,
        config: &OutlierDetection,
        peers: &[Arc<Peer>],
        metrics: &CareMetrics,
        now: Instant,
    ) -> bool {
        let limits = Limits {
            base: config.base_ejection_time.into(),
            longest: config.max_ejection_time.into(),
            most: f64::from(config.max_ejection_percent) / 100.0,
        };
        let back = care.ejections.end(now);
        take_back(peers, &back);
        for address in &back {
            tracing::info!(component = "proxy", cluster = self.name, %address, "an ejected endpoint is back");
        }
        let mut changed = !back.is_empty();
        let mut eject = |peer: &Peer, cause: Cause, asked: Option<Duration>| {
            if !care.ejections.eject(&peer.address, cause, asked, peers.len(), &limits, now) {
                return;
            }
            peer.set(EJECTED, true);
            let ejection = care.ejections.of(&peer.address);
            peer.ejection.store(ejection.map(Arc::new));
            let seconds = ejection.map_or(0.0, |ejection| (ejection.until - now).as_secs_f64());
            let (address, cause) = (peer.address, cause.as_str());
            tracing::warn!(component = "proxy", cluster = self.name, %address, cause, seconds, "an endpoint is ejected");
            metrics.ejection(cause);
            changed = true;
        };
        for peer in peers {
            for cause in peer.tally.take_causes() {
                let rest = peer.tally.rest(now).min(config.max_retry_after.into());
                eject(peer, cause, (cause == Cause::RetryAfter).then_some(rest));
            }
        }
        if care.interval.is_none_or(|at| at <= now) {
            let volumes: Vec<_> = peers.iter().map(|peer| peer.tally.take_volume()).collect();
            if let Some(rate) = config.success_rate.as_ref().filter(|_| care.interval.is_some()) {
                let rate = SuccessRate {
                    minimum_hosts: rate.minimum_hosts as usize,
                    request_volume: rate.request_volume.into(),
                    deviations: f64::from(rate.stdev_factor) / 1000.0,
                };
                rate.outliers(&volumes).into_iter().for_each(|index| eject(&peers[index], Cause::SuccessRate, None));
            }
            care.ejections.forgive(|address| peers.iter().any(|peer| peer.address == *address));
            care.interval = now.checked_add(config.interval.into());
        }
        changed
    }
}

fn take_back(peers: &[Arc<Peer>], back: &[SocketAddr]) {
    for peer in peers.iter().filter(|peer| back.contains(&peer.address)) {
        peer.tally.forget();
        peer.ejection.store(None);
        peer.set(EJECTED, false);
    }
}
