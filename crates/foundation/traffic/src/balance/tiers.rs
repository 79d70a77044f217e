//! Which part of the requests goes to which priority, and how much of it stays in the own zone.
//!
//! As Envoy has it ([priority levels], [overprovisioning], [panic threshold]): a priority gets what its healthy part,
//! times the factor, can take; the next one gets the rest. Promise: the parts add up to one while there is an endpoint
//! with a weight.
//!
//! [priority levels]: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority
//! [overprovisioning]: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/overprovisioning
//! [panic threshold]: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/panic_threshold

use std::collections::BTreeMap;

use super::{Member, Settings};

/// A part of all requests, and the endpoints it goes to.
pub(super) struct Share {
    pub(super) part: f64,
    pub(super) members: Vec<u32>,
}

/// The shares, and whether any of them is of a priority in panic. Those without a part are there for when the others
/// cannot be reached.
pub(super) fn shares(members: &[Member], settings: &Settings) -> (Vec<Share>, bool) {
    let mut priorities: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (index, member) in (0..).zip(members).filter(|(_, member)| member.weight > 0.0) {
        priorities.entry(member.priority).or_default().push(index);
    }
    let is_healthy = |index: &u32| members[*index as usize].healthy;
    let healthy_part = |all: &[u32]| all.iter().filter(|index| is_healthy(index)).count() as f64 / all.len() as f64;
    let able = |part: f64| (part * settings.overprovisioning).min(1.0);
    let priorities: Vec<(Vec<u32>, f64)> = priorities
        .into_values()
        .map(|all| {
            let part = healthy_part(&all);
            (all, part)
        })
        .collect();
    let total: f64 = priorities.iter().map(|(_, part)| able(*part)).sum();
    let count: usize = priorities.iter().map(|(all, _)| all.len()).sum();
    let (mut left, mut panic) = (1.0, false);
    let mut shares = Vec::new();
    for (all, healthy) in priorities {
        // When no endpoint at all is healthy, each priority gets as much as it has endpoints.
        let part = if total > 0.0 { able(healthy) / total.min(1.0) } else { all.len() as f64 / count as f64 };
        let part = part.min(left);
        left -= part;
        if part <= 0.0 {
            let healthy: Vec<u32> = all.into_iter().filter(is_healthy).collect();
            shares.extend((!healthy.is_empty()).then_some(Share { part: 0.0, members: healthy }));
            continue;
        }
        let in_panic = total < 1.0 && (total <= 0.0 || healthy < settings.panic_threshold);
        panic |= in_panic;
        if in_panic {
            shares.push(Share { part, members: all });
            continue;
        }
        let is_near = |index: &u32| members[*index as usize].near;
        let (near, far): (Vec<u32>, Vec<u32>) = all.into_iter().partition(is_near);
        let near_part = if near.is_empty() { 0.0 } else { able(healthy_part(&near)) };
        let healthy = |of: Vec<u32>| -> Vec<u32> { of.into_iter().filter(is_healthy).collect() };
        let (near, far) = (healthy(near), healthy(far));
        let near_part = match (near.is_empty(), far.is_empty()) {
            (true, _) => 0.0,
            (false, true) => 1.0,
            _ => near_part,
        };
        for (part, members) in [(part * near_part, near), (part * (1.0 - near_part), far)] {
            if !members.is_empty() {
                shares.push(Share { part, members });
            }
        }
    }
    (shares, panic)
}
