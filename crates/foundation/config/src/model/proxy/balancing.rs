//! `proxy.clusters[].loadBalancing`: which endpoint gets a request. The terms are Envoy's.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// Which endpoint gets a request.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancing {
    /// How an endpoint is chosen.
    pub policy: LoadBalancingPolicy,
    /// With `PeakEwma`: how latencies are judged.
    pub peak_ewma: PeakEwma,
    /// With `RingHash` and `Maglev`: what makes the key of a request. The first that a request has counts; one that has
    /// none goes to any endpoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hash_policy: Vec<HashPolicy>,
    /// With `RingHash`: how many points the ring has.
    pub ring_hash: RingHash,
    /// With `Maglev`: how large the table is.
    pub maglev: Maglev,
    /// With `RingHash` and `Maglev`, in percent: an endpoint that has so much more than the average under way, on a
    /// worker, passes its keys on to the next one. Absent means that it never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 10_000))]
    pub hash_balance_factor: Option<u32>,
    /// New endpoints get their whole weight by and by. It has no effect on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// In percent: a priority, or the own zone, keeps all its requests until its healthy endpoints times this are too few;
    /// 140 means while 72 % of them are healthy.
    #[schemars(range(min = 100, max = 1000))]
    pub overprovisioning_factor: u32,
    /// In percent: when fewer of a priority's endpoints than this are healthy, and other priorities cannot take over, all
    /// are used again, for an overload of the few would be worse. 0 turns it off.
    #[schemars(range(min = 0, max = 100))]
    pub healthy_panic_threshold: u32,
    /// Whether endpoints of the own zone (`proxy.zone`) come first, as for a Kubernetes Service. When they are too few
    /// that are healthy, those of other zones get the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Labels that an endpoint must have, all of them, to be used at all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subset: BTreeMap<String, String>,
}

impl Default for LoadBalancing {
    fn default() -> Self {
        Self {
            policy: LoadBalancingPolicy::default(),
            peak_ewma: PeakEwma::default(),
            hash_policy: Vec::new(),
            ring_hash: RingHash::default(),
            maglev: Maglev::default(),
            hash_balance_factor: None,
            slow_start: None,
            overprovisioning_factor: 140,
            healthy_panic_threshold: 50,
            traffic_distribution: None,
            subset: BTreeMap::new(),
        }
    }
}

/// How an endpoint is chosen. All honour weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum LoadBalancingPolicy {
    /// Of two at random the better one, by latency (an average that rises at once and falls slowly) times requests under
    /// way. A failure counts as a slow answer.
    #[default]
    PeakEwma,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By a key, on a ring: few keys move when endpoints come and go.
    RingHash,
    /// By a key, from a table: spread more evenly than by a ring, and a little more keys move.
    Maglev,
}

/// How latencies are judged.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PeakEwma {
    /// After so long, a third is left of what is known of a latency.
    pub decay: Duration,
    /// A failure (5xx, no answer, no connection) counts as an answer that took so long.
    pub failure_penalty: Duration,
}

impl Default for PeakEwma {
    fn default() -> Self {
        Self { decay: Duration::from_secs(10), failure_penalty: Duration::from_secs(1) }
    }
}

/// What makes the key of a request.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashPolicy {
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: HashPolicyType,
    /// With `type: Header`: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HashName>,
    /// With `type: Cookie`: which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<HashName>,
}

/// What a key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HashPolicyType {
    /// A header's value.
    Header,
    /// A cookie's value.
    Cookie,
    /// The client's IP address.
    SourceAddress,
}

/// The name of a header or a cookie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashName {
    /// A header's in any case, a cookie's as it is.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// How many points a ring has.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RingHash {
    /// At least so many; an endpoint has 128 or more in any case. More spread keys more evenly, but of fewer than
    /// `minimumRingSize / 128` endpoints more keys move when one comes or goes.
    #[schemars(range(min = 1, max = 8_388_608))]
    pub minimum_ring_size: u32,
    /// At most about so many, at 12 bytes each.
    #[schemars(range(min = 1, max = 8_388_608))]
    pub maximum_ring_size: u32,
}

impl Default for RingHash {
    fn default() -> Self {
        Self { minimum_ring_size: 1024, maximum_ring_size: 8_388_608 }
    }
}

/// How large a table is.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Maglev {
    /// Entries, a prime, at 4 bytes each; a hundred times the endpoints spread keys within a percent.
    #[schemars(range(min = 2, max = 5_000_011))]
    pub table_size: u32,
}

impl Default for Maglev {
    fn default() -> Self {
        Self { table_size: 65_537 }
    }
}

/// New endpoints get their whole weight by and by.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStart {
    /// How long it takes, from when an endpoint is first seen or is healthy again. Those there from the start are not new.
    pub window: Duration,
    /// 1 raises the weight evenly; more raises it faster at first.
    #[serde(default = "SlowStart::default_aggression")]
    pub aggression: f64,
    /// The weight it begins with, in percent of its own.
    #[serde(default = "SlowStart::default_min_weight_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub min_weight_percent: u32,
}

impl SlowStart {
    fn default_aggression() -> f64 {
        1.0
    }
    fn default_min_weight_percent() -> u32 {
        10
    }
}

/// Which endpoints come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TrafficDistribution {
    /// Those of the own zone.
    PreferSameZone,
}
