//! Whose turn it is.
//!
//! Promise: the order depends on the pods alone, so that everybody who asks gets the same.

use crate::pod::Pod;
use crate::spec::Spec;

/// The pods that are meant, in order: by namespace, and within one a pod of each workload before a second of any.
pub(crate) fn meant<'a>(spec: &Spec, pods: &'a [Pod]) -> Vec<&'a Pod> {
    let place = |namespace: &str| spec.namespaces.iter().position(|one| one == namespace);
    let is_meant = |pod: &&Pod| {
        let there = spec.namespaces.is_empty() || place(&pod.namespace).is_some();
        there && !pod.leaving && spec.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let mut found: Vec<&Pod> = pods.iter().filter(is_meant).collect();
    found.sort_by_key(|pod| (place(&pod.namespace), &pod.namespace, &pod.workload, &pod.name, &pod.uid));
    let mut turn = 0;
    let mut before: Option<&Pod> = None;
    let mut placed: Vec<(usize, &Pod)> = Vec::with_capacity(found.len());
    for pod in found {
        let same = before.is_some_and(|before| before.namespace == pod.namespace && before.workload == pod.workload);
        turn = if same { turn + 1 } else { 0 };
        before = Some(pod);
        placed.push((turn, pod));
    }
    placed.sort_by_key(|(turn, pod)| (place(&pod.namespace), &pod.namespace, *turn, &pod.workload));
    placed.into_iter().map(|(_, pod)| pod).collect()
}
