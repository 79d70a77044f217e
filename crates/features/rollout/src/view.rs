//! The pods as they are now, our own last changes included.
//!
//! In: what an informer keeps, and what the API server answered to our changes. Out: pods. Promise: a change of ours is
//! never forgotten because the informer has not heard of it yet, so nobody's turn comes twice.

use std::collections::HashMap;

use outrigger_kubernetes::{Key, Store};
use serde_json::Value;

use crate::pod::Pod;

/// Pods that we changed, until the informer knows it.
#[derive(Default)]
pub(crate) struct Ahead(HashMap<Key, Pod>);

impl Ahead {
    /// The API server's answer to a change.
    pub(crate) fn changed(&mut self, key: Key, pod: &Value) {
        // One that has ended in the meantime is told by the informer soon.
        if let Some(pod) = Pod::read(pod) {
            self.0.insert(key, pod);
        }
    }

    /// All pods.
    pub(crate) fn pods(&mut self, store: &Store<Pod>) -> Vec<Pod> {
        let all = store.all();
        let known: HashMap<&Key, &Pod> = all.iter().map(|(key, pod)| (key, &**pod)).collect();
        // What has gone, or came anew under the same name, is what the informer says.
        self.0.retain(|key, ahead| {
            known.get(key).is_some_and(|known| known.uid == ahead.uid && is_older(&known.version, &ahead.version))
        });
        all.iter().map(|(key, pod)| self.0.get(key).unwrap_or(pod).clone()).collect()
    }
}

/// Versions are numbers in all API servers there are; where they were not, the informer's word would count.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}
