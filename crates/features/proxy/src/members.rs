//! A cluster's endpoints as all workers know them.
//!
//! In: lists of endpoints, from the config or from discovery, and what is found out about them. Out: an immutable plan
//! that workers balance by. Promise: an endpoint that stays in the list stays the same object, whatever else changes;
//! a worker sees at a glance whether anything changed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use outrigger_config::{CircuitBreakers, HashPolicyType, LoadBalancing, LoadBalancingPolicy};
use outrigger_traffic::balance::{Member, Plan, Policy, Settings, hash};
use outrigger_traffic::endpoints::Endpoint;
use outrigger_traffic::outlier::Ejection;
use outrigger_traffic::session::cookie;
use outrigger_wire::head::Head;

use crate::cluster::Terms;
use crate::outlier::{Tally, Thresholds};

/// Why an endpoint is not used, as bits: it failed too often.
pub(crate) const EJECTED: u32 = 1;
/// Whoever knows of it says that it cannot serve.
pub(crate) const TOLD: u32 = 2;
/// A health check failed; each check has its bit.
pub(crate) const UNHEALTHY: u32 = 0xff00;

/// An endpoint.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    weight: AtomicU32,
    priority: AtomicU32,
    zone: ArcSwapOption<String>,
    /// When it was first seen, or was healthy again, in the process's milliseconds; 0 for those there from the start.
    since: AtomicU64,
    /// Why it is not used.
    flags: AtomicU32,
    pub(crate) tally: Tally,
    /// Until when it is ejected, and why.
    pub(crate) ejection: ArcSwapOption<Ejection>,
    /// What a health check found.
    pub(crate) unhealthy: ArcSwapOption<String>,
}

/// Milliseconds since the process's first look at the clock, and one.
pub(crate) fn millis(at: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    at.saturating_duration_since(*START).as_millis() as u64 + 1
}

impl Peer {
    fn new(listed: Endpoint, since: u64) -> Self {
        let Endpoint { address, weight, priority, zone, healthy, .. } = listed;
        Self {
            address,
            weight: weight.into(),
            priority: priority.into(),
            zone: ArcSwapOption::from_pointee(zone),
            since: since.into(),
            flags: AtomicU32::new(if healthy { 0 } else { TOLD }),
            tally: Tally::default(),
            ejection: ArcSwapOption::empty(),
            unhealthy: ArcSwapOption::empty(),
        }
    }

    /// Takes on what is listed of it now; whether that is something else.
    pub(crate) fn take(&self, listed: Endpoint) -> bool {
        let Endpoint { weight, priority, zone, healthy, .. } = listed;
        let mut changed = self.is_told_unhealthy() == healthy;
        self.set(TOLD, !healthy);
        changed |= self.weight.swap(weight, Relaxed) != weight;
        changed |= self.priority.swap(priority, Relaxed) != priority;
        if self.zone.load().as_deref() != zone.as_ref() {
            changed = true;
            self.zone.store(zone.map(Arc::new));
        }
        changed
    }

    /// Notes a reason not to use it, or that it is over.
    pub(crate) fn set(&self, flag: u32, on: bool) {
        if on {
            self.flags.fetch_or(flag, Relaxed);
            return;
        }
        let before = self.flags.fetch_and(!flag, Relaxed);
        if before != 0 && before & !flag == 0 {
            self.since.store(millis(Instant::now()), Relaxed);
        }
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    pub(crate) fn priority(&self) -> u32 {
        self.priority.load(Relaxed)
    }

    pub(crate) fn zone(&self) -> Option<String> {
        self.zone.load().as_ref().map(|zone| zone.as_str().to_owned())
    }

    /// Whether its source says that it cannot serve.
    pub(crate) fn is_told_unhealthy(&self) -> bool {
        self.flags.load(Relaxed) & TOLD != 0
    }

    /// Whether nothing is known that speaks against it.
    pub(crate) fn is_usable(&self) -> bool {
        self.flags.load(Relaxed) == 0
    }
}

/// How a worker judges answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measure {
    /// Latencies are of interest.
    pub(crate) latency: bool,
    pub(crate) decay: Duration,
    pub(crate) penalty: Duration,
    /// How often an endpoint may fail in a row, where it is ejected for that.
    pub(crate) outlier: Option<Thresholds>,
}

/// The endpoints at one time, and how requests are shared among them.
#[derive(Default)]
pub(crate) struct Members {
    pub(crate) peers: Arc<[Arc<Peer>]>,
    pub(crate) plan: Plan,
    pub(crate) measure: Measure,
    pub(crate) breakers: CircuitBreakers,
    /// What makes a request's key, where there is one.
    keys: Arc<[KeyOf]>,
}

#[derive(Debug)]
enum KeyOf {
    Header(String),
    Cookie(String),
    Source,
}

impl Members {
    /// Plans anew, for peers as they are now.
    pub(crate) fn plan(peers: Arc<[Arc<Peer>]>, terms: &Terms, now: Instant) -> Self {
        let balancing = &terms.balancing;
        let zone = terms.zone.as_deref().filter(|_| balancing.traffic_distribution.is_some());
        let by_key = matches!(balancing.policy, LoadBalancingPolicy::RingHash | LoadBalancingPolicy::Maglev);
        let members: Vec<Member> = peers
            .iter()
            .map(|peer| Member {
                weight: f64::from(peer.weight()) * started(balancing, peer, now),
                priority: peer.priority(),
                near: zone.is_none_or(|zone| peer.zone.load().as_ref().is_some_and(|of| of.as_str() == zone)),
                healthy: peer.is_usable(),
                // To write an address takes longer than the rest, and only these policies ask for it.
                key: if by_key { hash(peer.address.to_string().as_bytes()) } else { 0 },
            })
            .collect();
        let several = peers.len() > 1;
        Self {
            plan: Plan::new(&members, &settings(balancing)),
            peers,
            measure: Measure {
                latency: several && balancing.policy == LoadBalancingPolicy::PeakEwma,
                decay: balancing.peak_ewma.decay.into(),
                penalty: balancing.peak_ewma.failure_penalty.into(),
                outlier: terms.outliers.as_ref().map(Into::into),
            },
            breakers: terms.breakers.clone(),
            keys: if several && by_key { keys(balancing) } else { Arc::default() },
        }
    }

    /// The key of a request; `None` where nobody asks for it, or it has none.
    pub(crate) fn key(&self, request: Option<&Head>, source: IpAddr) -> Option<u64> {
        self.keys.iter().find_map(|key| match key {
            KeyOf::Header(name) => request?.get_named(name).map(hash),
            KeyOf::Cookie(name) => cookie(request?, name).map(hash),
            KeyOf::Source => Some(match source.to_canonical() {
                IpAddr::V4(address) => hash(&address.octets()),
                IpAddr::V6(address) => hash(&address.octets()),
            }),
        })
    }

    /// The peers that a new list makes of these; `None` when nothing changed.
    pub(crate) fn listed(&self, list: Vec<Endpoint>, now: Instant) -> Option<Arc<[Arc<Peer>]>> {
        if list.len() == self.peers.len()
            && list.iter().zip(self.peers.iter()).all(|(one, peer)| one.address == peer.address)
        {
            // The usual case of a long list: at most weights changed, and workers keep what they have at each place.
            let changed =
                list.into_iter().zip(self.peers.iter()).fold(false, |changed, (one, peer)| peer.take(one) | changed);
            return changed.then(|| Arc::clone(&self.peers));
        }
        let known: HashMap<SocketAddr, &Arc<Peer>> = self.peers.iter().map(|peer| (peer.address, peer)).collect();
        let since = if self.peers.is_empty() { 0 } else { millis(now) };
        let mut seen = HashSet::with_capacity(list.len());
        let mut changed = false;
        let peers: Arc<[Arc<Peer>]> = list
            .into_iter()
            .filter(|one| seen.insert(one.address))
            .map(|one| {
                let Some(peer) = known.get(&one.address) else {
                    changed = true;
                    return Arc::new(Peer::new(one, since));
                };
                changed |= peer.take(one);
                Arc::clone(peer)
            })
            .collect();
        let moved = peers.len() != self.peers.len()
            || peers.iter().zip(self.peers.iter()).any(|(new, old)| !Arc::ptr_eq(new, old));
        match (changed, moved) {
            (false, false) => None,
            // Only weights changed: workers keep what they have at each place.
            (true, false) => Some(Arc::clone(&self.peers)),
            (_, true) => Some(peers),
        }
    }

    /// Until when a new endpoint has not its whole weight yet.
    pub(crate) fn starting_until(&self, balancing: &LoadBalancing) -> Option<Instant> {
        let window = Duration::from(balancing.slow_start.as_ref()?.window);
        let now = Instant::now();
        let since = self.peers.iter().map(|peer| peer.since.load(Relaxed)).filter(|since| *since > 0).max()?;
        let age = Duration::from_millis(millis(now).saturating_sub(since));
        now.checked_add(window)?.checked_sub(age)
    }
}

/// The part of its weight that an endpoint has, by its age.
fn started(balancing: &LoadBalancing, peer: &Peer, now: Instant) -> f64 {
    let (Some(slow), since) = (&balancing.slow_start, peer.since.load(Relaxed)) else { return 1.0 };
    if since == 0 {
        return 1.0;
    }
    let age = millis(now).saturating_sub(since) as f64 / Duration::from(slow.window).as_millis().max(1) as f64;
    let least = f64::from(slow.min_weight_percent) / 100.0;
    if age >= 1.0 { 1.0 } else { age.powf(1.0 / slow.aggression).max(least) }
}

fn settings(balancing: &LoadBalancing) -> Settings {
    let ring = &balancing.ring_hash;
    Settings {
        policy: match balancing.policy {
            LoadBalancingPolicy::PeakEwma => Policy::PeakEwma,
            LoadBalancingPolicy::LeastRequest => Policy::LeastRequest,
            LoadBalancingPolicy::RoundRobin => Policy::RoundRobin,
            LoadBalancingPolicy::Random => Policy::Random,
            LoadBalancingPolicy::RingHash => {
                Policy::RingHash(ring.minimum_ring_size as usize, ring.maximum_ring_size as usize)
            }
            LoadBalancingPolicy::Maglev => Policy::Maglev(balancing.maglev.table_size as usize),
        },
        overprovisioning: f64::from(balancing.overprovisioning_factor) / 100.0,
        panic_threshold: f64::from(balancing.healthy_panic_threshold) / 100.0,
        balance_factor: balancing.hash_balance_factor.map(|percent| percent as f32 / 100.0),
    }
}

fn keys(balancing: &LoadBalancing) -> Arc<[KeyOf]> {
    let name =
        |name: &Option<outrigger_config::HashName>| name.as_ref().map(|name| name.name.clone()).unwrap_or_default();
    let key = |one: &outrigger_config::HashPolicy| match one.kind {
        HashPolicyType::Header => KeyOf::Header(name(&one.header)),
        HashPolicyType::Cookie => KeyOf::Cookie(name(&one.cookie)),
        HashPolicyType::SourceAddress => KeyOf::Source,
    };
    balancing.hash_policy.iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut head = Head::default();
        head.push("Cookie", b"xsid=1; sid=2;other=3");
        assert_eq!(cookie(&head, "sid"), Some(&b"2"[..]));
        assert_eq!(cookie(&head, "other"), Some(&b"3"[..]));
        assert_eq!(cookie(&head, "id"), None);
    }

    #[test]
    fn a_new_endpoint_starts_slowly() {
        let balancing: LoadBalancing = serde_json::from_value(serde_json::json!({
            "slowStart": { "window": "100s", "aggression": 1.0, "minWeightPercent": 10 }
        }))
        .unwrap();
        let now = Instant::now();
        let listed = Endpoint::new("127.0.0.1:1".parse().unwrap());
        let peer = |since: Option<Instant>| Peer::new(listed.clone(), since.map_or(0, millis));
        for (since, after, expected) in
            [(None, 0, 1.0), (Some(now), 0, 0.1), (Some(now), 5, 0.1), (Some(now), 50, 0.5), (Some(now), 100, 1.0)]
        {
            let part = started(&balancing, &peer(since), now + Duration::from_secs(after));
            assert!((part - expected).abs() < 1e-9, "{after}: {part}");
        }
    }
}
