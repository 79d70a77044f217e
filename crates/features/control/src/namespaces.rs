//! What is known of namespaces: the labels that decide about injection.
//!
//! In: the API server's namespaces. Out: facts of one. Promise: a namespace that is younger than what we know is asked for;
//! when the API server cannot be asked, what its own selector says holds, by which it came to us.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_kubernetes::names::INJECT_LABEL;
use outrigger_kubernetes::resources::NAMESPACES;
use outrigger_kubernetes::{Client, Informer, Key, Selection, Store, informer};
use serde_json::Value;
use tokio::time::timeout;

use crate::injector::NamespaceFacts;

/// Labels of others that injection looks at.
const LABELS: &[&str] = &[INJECT_LABEL, "pod-security.kubernetes.io/enforce", "istio-injection", "linkerd.io/inject"];
/// A review has to be answered soon.
const PATIENCE: Duration = Duration::from_secs(1);

/// The labels of a namespace, as far as they matter.
pub(crate) type Labels = BTreeMap<String, String>;

/// Namespaces with labels that matter.
#[derive(Clone)]
pub(crate) struct Namespaces {
    client: Client,
    store: Store<Labels>,
    /// Profiles may select by any label.
    all: bool,
}

impl Namespaces {
    /// And what has to be run for them to be known.
    pub(crate) fn new(client: Client, all: bool) -> (Self, Informer<Labels>) {
        let project = move |namespace: &Value| Some(labels(namespace, all)).filter(|labels| !labels.is_empty());
        let (informer, store) = informer(client.clone(), NAMESPACES.all(), Selection::default(), project);
        (Self { client, store, all }, informer)
    }

    pub(crate) fn store(&self) -> &Store<Labels> {
        &self.store
    }

    /// Whether pods there are to have the sidecar.
    pub(crate) fn asks(&self, name: &str) -> bool {
        let labels = self.store.get(&Key::new("", name));
        labels.is_some_and(|labels| labels.get(INJECT_LABEL).is_some_and(|word| word == "enabled" || word == "true"))
    }

    /// What is known of one whose pods run.
    pub(crate) fn known(&self, name: &str) -> NamespaceFacts {
        let labels = self.store.get(&Key::new("", name)).map(|labels| (*labels).clone()).unwrap_or_default();
        NamespaceFacts { name: name.to_owned(), labels }
    }

    /// What is known of one whose pod the API server asks us about.
    pub(crate) async fn facts(&self, name: &str) -> NamespaceFacts {
        let known = self.store.get(&Key::new("", name)).map(|labels| (*labels).clone());
        let labels = match known {
            Some(labels) if labels.contains_key(INJECT_LABEL) => labels,
            other => match timeout(PATIENCE, self.client.find(NAMESPACES.global(name))).await {
                Ok(Ok(Some(namespace))) => labels(&namespace, self.all),
                // It may be about to be made, or nobody can be asked.
                _ => other.unwrap_or_else(|| Labels::from([(INJECT_LABEL.to_owned(), "enabled".to_owned())])),
            },
        };
        NamespaceFacts { name: name.to_owned(), labels }
    }
}

fn labels(namespace: &Value, all: bool) -> Labels {
    if all {
        let every = namespace["metadata"]["labels"].as_object().into_iter().flatten();
        return every.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    }
    let all = LABELS.iter().filter_map(|key| {
        let value = namespace["metadata"]["labels"][*key].as_str()?;
        Some(((*key).to_owned(), value.to_owned()))
    });
    all.collect()
}
