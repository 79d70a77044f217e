//! Endpoints as whoever knows of them tells: a config, DNS, a control plane.
//!
//! In: whole lists, or what changed of one. Out: the list as it is now. Promise: a source says what it knows and nothing
//! of how requests are shared; whatever order changes come in, the same changes make the same list; an address is in it
//! once; the length is bounded.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use outrigger_config::Endpoint as EndpointConfig;

/// Endpoints that a source may tell of. Whoever answers for a name must not be able to fill our memory.
pub const MOST_TOLD: usize = 10_000;

/// An endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its part of the requests beside others'.
    pub weight: u32,
    /// 0 is used first.
    pub priority: u32,
    /// Where it runs, if that is known.
    pub zone: Option<String>,
    /// What subsets select by.
    pub labels: BTreeMap<String, String>,
    /// Whether the source takes it for able to serve; our own checks come on top.
    pub healthy: bool,
}

impl Endpoint {
    /// An endpoint of which no more is known.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, weight: 1, priority: 0, zone: None, labels: BTreeMap::new(), healthy: true }
    }

    /// What a config says of one, at one of its addresses.
    pub fn of(config: &EndpointConfig, address: IpAddr) -> Self {
        Self {
            address: SocketAddr::new(address, config.address.port),
            weight: config.weight,
            priority: config.priority,
            zone: config.zone.as_ref().map(ToString::to_string),
            labels: config.labels.clone(),
            healthy: true,
        }
    }
}

/// What a source tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// All there are.
    All(Vec<Endpoint>),
    /// What is new or different, and what is gone, since the last time.
    Changed {
        /// New ones, and those that are different now.
        set: Vec<Endpoint>,
        /// Gone ones.
        removed: Vec<SocketAddr>,
    },
}

/// The next update of a source; an error says why there is none now, and what was told before holds on.
pub type NextUpdate<'a> = Pin<Box<dyn Future<Output = Result<Update, String>> + Send + 'a>>;

/// Somebody who knows a cluster's endpoints, and tells when they change.
pub trait EndpointSource: Send {
    /// Waits for news; the first are what is known at the start. It is called again and again, after an error too, and sees
    /// to the waits between tries itself. Cancel-safe: what was not returned is told the next time.
    fn next(&mut self) -> NextUpdate<'_>;
}

/// The endpoints that a source told of, one update after the other.
#[derive(Debug, Default)]
pub struct Listing {
    endpoints: Vec<Endpoint>,
}

impl Listing {
    /// Takes an update; how many endpoints had no room.
    pub fn take(&mut self, update: Update) -> usize {
        match update {
            Update::All(endpoints) => {
                let mut seen = HashSet::with_capacity(endpoints.len());
                self.endpoints = endpoints;
                self.endpoints.retain(|endpoint| seen.insert(endpoint.address));
            }
            Update::Changed { set, removed } => {
                let removed: HashSet<_> = removed.into_iter().collect();
                self.endpoints.retain(|endpoint| !removed.contains(&endpoint.address));
                let mut places: HashMap<_, _> =
                    self.endpoints.iter().enumerate().map(|(place, endpoint)| (endpoint.address, place)).collect();
                for endpoint in set {
                    match places.get(&endpoint.address) {
                        Some(place) => self.endpoints[*place] = endpoint,
                        None => {
                            places.insert(endpoint.address, self.endpoints.len());
                            self.endpoints.push(endpoint);
                        }
                    }
                }
            }
        }
        let beyond = self.endpoints.len().saturating_sub(MOST_TOLD);
        self.endpoints.truncate(MOST_TOLD);
        beyond
    }

    /// As they are now.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

/// An SRV record ([RFC 2782]), with the addresses of its target.
///
/// [RFC 2782]: https://www.rfc-editor.org/rfc/rfc2782
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrvTarget {
    /// The lowest is used first.
    pub priority: u16,
    /// Its part of the requests beside others of the same priority.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// Where it is.
    pub addresses: Vec<IpAddr>,
}

/// What a target of weight 0 gets beside others: "a very small chance".
const FINE: u32 = 100;

/// The endpoints of SRV records. Their priorities are ranked from 0 on; a target's weight is shared by its addresses.
pub fn of_srv(targets: &[SrvTarget]) -> Vec<Endpoint> {
    let mut priorities: Vec<u16> = targets.iter().map(|target| target.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut endpoints = Vec::new();
    for target in targets {
        let peers = targets.iter().filter(|other| other.priority == target.priority);
        let weighted = peers.clone().any(|other| other.weight > 0);
        // Where something is to be split, in small parts.
        let split = peers.clone().any(|other| other.addresses.len() > 1 || (weighted && other.weight == 0));
        let whole = match (weighted, split) {
            (false, false) => 1,
            (false, true) => FINE,
            (true, false) => u32::from(target.weight),
            (true, true) => (u32::from(target.weight) * FINE).max(1),
        };
        let count = u32::try_from(target.addresses.len()).unwrap_or(u32::MAX).max(1);
        let priority = priorities.partition_point(|one| *one < target.priority) as u32;
        let mut addresses = target.addresses.clone();
        addresses.sort_unstable();
        endpoints.extend(addresses.into_iter().map(|address| Endpoint {
            weight: (whole / count).max(1),
            priority,
            ..Endpoint::new(SocketAddr::new(address, target.port))
        }));
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(port: u16, weight: u32) -> Endpoint {
        Endpoint { weight, ..Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port))) }
    }

    fn target(priority: u16, weight: u16, addresses: &[&str]) -> SrvTarget {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        SrvTarget { priority, weight, port: 80, addresses }
    }

    #[test]
    fn priorities_are_ranked_and_weights_shared() {
        let told = |targets: &[SrvTarget]| {
            let told = of_srv(targets).into_iter().map(|one| (one.address.to_string(), one.priority, one.weight));
            told.collect::<Vec<_>>()
        };
        let expected = |all: &[(&str, u32, u32)]| {
            all.iter()
                .map(|(address, priority, weight)| (format!("{address}:80"), *priority, *weight))
                .collect::<Vec<_>>()
        };
        for (name, targets, endpoints) in [
            ("none", vec![], vec![]),
            (
                "no weights",
                vec![target(5, 0, &["10.0.0.1"]), target(5, 0, &["10.0.0.2"])],
                vec![("10.0.0.1", 0, 1), ("10.0.0.2", 0, 1)],
            ),
            (
                "weights",
                vec![target(1, 3, &["10.0.0.1"]), target(1, 1, &["10.0.0.2"])],
                vec![("10.0.0.1", 0, 3), ("10.0.0.2", 0, 1)],
            ),
            (
                "ranks",
                vec![target(20, 7, &["10.0.0.1"]), target(10, 2, &["10.0.0.2"])],
                vec![("10.0.0.1", 1, 7), ("10.0.0.2", 0, 2)],
            ),
            (
                "a small chance",
                vec![target(1, 2, &["10.0.0.1"]), target(1, 0, &["10.0.0.2"])],
                vec![("10.0.0.1", 0, 200), ("10.0.0.2", 0, 1)],
            ),
            (
                "two addresses share, in order",
                vec![target(1, 1, &["10.0.0.3", "10.0.0.1"]), target(1, 1, &["10.0.0.2"])],
                vec![("10.0.0.1", 0, 50), ("10.0.0.3", 0, 50), ("10.0.0.2", 0, 100)],
            ),
        ] {
            assert_eq!(told(&targets), expected(&endpoints), "{name}");
        }
    }

    #[test]
    fn a_list_is_bounded() {
        let mut listing = Listing::default();
        let many = |from: u16| (from..from + 20_000).map(|port| endpoint(port, 1)).collect::<Vec<_>>();
        assert_eq!(listing.take(Update::All(many(1))), 10_000);
        assert_eq!(listing.take(Update::Changed { set: many(30_000), removed: Vec::new() }), 20_000);
        assert_eq!(listing.endpoints().len(), MOST_TOLD);
    }

    proptest! {
        /// Against a map, which is slow and obvious.
        #[test]
        fn changes_make_the_list_they_say(
            updates in prop::collection::vec(
                (any::<bool>(), prop::collection::vec((1_u16..20, 0_u32..5), 0..8), prop::collection::vec(1_u16..20, 0..8)),
                0..8,
            )
        ) {
            let mut listing = Listing::default();
            let mut reference: BTreeMap<u16, u32> = BTreeMap::new();
            for (whole, set, removed) in updates {
                let endpoints = set.iter().map(|(port, weight)| endpoint(*port, *weight)).collect();
                if whole {
                    reference.clear();
                    // Of an address that is told twice the first counts.
                    for (port, weight) in &set {
                        reference.entry(*port).or_insert(*weight);
                    }
                    listing.take(Update::All(endpoints));
                } else {
                    reference.retain(|port, _| !removed.contains(port));
                    reference.extend(set.iter().copied());
                    let removed = removed.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect();
                    listing.take(Update::Changed { set: endpoints, removed });
                }
            }
            let told = listing.endpoints().iter().map(|one| (one.address.port(), one.weight));
            prop_assert_eq!(told.collect::<BTreeMap<_, _>>(), reference.clone());
            prop_assert_eq!(listing.endpoints().len(), reference.len());
        }
    }
}
