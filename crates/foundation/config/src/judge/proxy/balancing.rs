//! Rules of `proxy.clusters[].loadBalancing`.

use crate::judge::Judge;
use crate::{Cluster, Config, ConfigPath, HashPolicyType, LoadBalancingPolicy};

pub(super) fn rules(config: &Config, cluster: &Cluster, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (balancing, endpoints) = (&cluster.load_balancing, at.key("endpoints"));
    let at = at.key("loadBalancing");
    if !cluster.endpoints.is_empty()
        && cluster.endpoints.iter().all(|endpoint| endpoint.weight == 0)
        && !judge.checked.is_blurred_within(&endpoints)
    {
        let message = "all weights of the cluster are 0, so no endpoint takes its traffic";
        judge.error("value", &endpoints, message, "give at least one endpoint a weight of 1 or more");
    }
    let by_key = matches!(balancing.policy, LoadBalancingPolicy::RingHash | LoadBalancingPolicy::Maglev);
    let policy = at.key("hashPolicy");
    if by_key && balancing.hash_policy.is_empty() && !judge.checked.is_blurred_within(&at) {
        let message = "requests are balanced by a key, and nothing says what makes one";
        let help = "add `hashPolicy`, such as `[{ type: SourceAddress }]`, or choose another `policy`";
        judge.error("missing", &at.key("policy"), message, help);
    }
    if !by_key && !balancing.hash_policy.is_empty() {
        let message = "`hashPolicy` is never asked: the policy does not go by a key";
        judge.warning("unused", &policy, message, "remove it, or use `policy: RingHash` or `Maglev`");
    }
    for (index, hash) in balancing.hash_policy.iter().enumerate() {
        let at = policy.index(index);
        let expected = match hash.kind {
            HashPolicyType::Header => Some("header"),
            HashPolicyType::Cookie => Some("cookie"),
            HashPolicyType::SourceAddress => None,
        };
        for (name, given) in [("header", hash.header.is_some()), ("cookie", hash.cookie.is_some())] {
            match (expected == Some(name), given) {
                (true, false) => {
                    let message = format!("a key of this type needs `{name}`");
                    judge.error("missing", &at.key("type"), message, format!("add `{name}: {{ name: … }}`"));
                }
                (false, true) => {
                    let message = format!("`{name}` does not belong to this `type`");
                    judge.error("conflict", &at.key(name), message, "remove it, or change the `type`");
                }
                _ => {}
            }
        }
    }
    let ring = &balancing.ring_hash;
    if ring.minimum_ring_size > ring.maximum_ring_size {
        let message = "`minimumRingSize` is more than `maximumRingSize`";
        judge.error("conflict", &at.key("ringHash").key("minimumRingSize"), message, "lower it, or raise the other");
    }
    let size = balancing.maglev.table_size;
    if !is_prime(size) {
        let at = at.key("maglev").key("tableSize");
        let message = format!("`{}` is not a prime", judge.shown(&at, &size));
        let next = (size..).find(|number| is_prime(*number)).unwrap_or(65_537);
        judge.error("value", &at, message, format!("the next one is {next}"));
    }
    judge.not_zero(&at.key("peakEwma").key("decay"), balancing.peak_ewma.decay);
    if let Some(slow) = &balancing.slow_start {
        let at = at.key("slowStart");
        judge.not_zero(&at.key("window"), slow.window);
        if slow.aggression <= 0.0 {
            let message = "`aggression` must be more than zero";
            judge.error("value", &at.key("aggression"), message, "write 1.0, or more to begin faster");
        }
        if by_key {
            let message = "`slowStart` has no effect: keys do not move for it";
            judge.warning("unused", &at, message, "remove it");
        }
    }
    if balancing.traffic_distribution.is_some() && config.proxy.as_ref().is_some_and(|proxy| proxy.zone.is_none()) {
        let message = "`trafficDistribution` has no effect: `proxy.zone` does not say where we are";
        judge.warning("unused", &at.key("trafficDistribution"), message, "set `proxy.zone`, or remove it");
    }
    let selected = |labels: &std::collections::BTreeMap<String, String>| {
        balancing.subset.iter().all(|(name, value)| labels.get(name) == Some(value))
    };
    if cluster.srv.is_some() && !balancing.subset.is_empty() {
        let message = "SRV records have no labels that `subset` could select by";
        judge.error("conflict", &at.key("subset"), message, "remove it, or list `endpoints` with `labels`");
    }
    if !cluster.endpoints.is_empty() && !cluster.endpoints.iter().any(|endpoint| selected(&endpoint.labels)) {
        let message = "no endpoint has the labels that `subset` asks for";
        judge.error("reference", &at.key("subset"), message, "correct the labels, here or at the endpoints");
    }
}

fn is_prime(number: u32) -> bool {
    let number = u64::from(number);
    number >= 2 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| number % divisor != 0)
}
