//! Events on whoever makes a pod: the Deployment behind its ReplicaSet, the CronJob behind its Job, or what owns it.
//!
//! In: what happened to a pod that is not, or should not be. Out: Events on its owner. Promise: nobody waits for it, and what
//! does not fit is dropped; an owner is looked up once.

use std::collections::HashMap;

use outrigger_kubernetes::resources::{JOBS, REPLICA_SETS};
use outrigger_kubernetes::{Client, Event, Recorder, Regarding};
use serde_json::Value;
use tokio::sync::mpsc;

/// Pods that wait for their owners to be found.
const QUEUE: usize = 64;
/// Owners that are remembered.
const KNOWN: usize = 256;

/// What happened to a pod.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) namespace: String,
    /// The pod's `metadata`.
    pub(crate) metadata: Value,
    pub(crate) reason: &'static str,
    pub(crate) action: &'static str,
    pub(crate) note: String,
}

/// Tells owners. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Owners {
    sender: mpsc::Sender<Told>,
}

/// Finds the owners.
pub(crate) struct OwnerSearch {
    client: Client,
    recorder: Recorder,
    queue: mpsc::Receiver<Told>,
    known: HashMap<String, Regarding>,
}

impl Owners {
    /// And what has to be run for them to be told.
    pub(crate) fn new(client: Client, recorder: Recorder) -> (Self, OwnerSearch) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (Self { sender }, OwnerSearch { client, recorder, queue, known: HashMap::new() })
    }

    /// Tells the owner of a pod; dropped when too many wait.
    pub(crate) fn tell(&self, told: Told) {
        if self.sender.try_send(told).is_err() {
            tracing::debug!("an event on the owner of a pod was dropped: too many wait");
        }
    }
}

impl OwnerSearch {
    /// Tells owners for as long as it is run.
    pub(crate) async fn run(mut self) {
        while let Some(told) = self.queue.recv().await {
            let Some(regarding) = self.regarding(&told).await else { continue };
            let Told { reason, action, note, .. } = told;
            self.recorder.record(Event { regarding, warning: true, reason, action, note });
        }
    }

    async fn regarding(&mut self, told: &Told) -> Option<Regarding> {
        let nearest = match controller_of(&told.metadata, &told.namespace) {
            Some(owner) => owner,
            // A pod that somebody made by hand has an Event of its own, if it is there.
            None => {
                let uid = told.metadata["uid"].as_str().filter(|uid| !uid.is_empty())?.to_owned();
                let name = told.metadata["name"].as_str()?.to_owned();
                let (api_version, kind) = ("v1".to_owned(), "Pod".to_owned());
                return Some(Regarding { api_version, kind, namespace: told.namespace.clone(), name, uid });
            }
        };
        let resource = match nearest.kind.as_str() {
            "ReplicaSet" => REPLICA_SETS,
            "Job" => JOBS,
            _ => return Some(nearest),
        };
        if let Some(known) = self.known.get(&nearest.uid) {
            return Some(known.clone());
        }
        let found = self.client.find(resource.named(&nearest.namespace, &nearest.name)).await.ok().flatten();
        let further = found.and_then(|object| controller_of(&object["metadata"], &nearest.namespace));
        let uid = nearest.uid.clone();
        let owner = further.unwrap_or(nearest);
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(uid, owner.clone());
        Some(owner)
    }
}

/// What made an object, and makes it again.
pub(crate) fn controller_of(metadata: &Value, namespace: &str) -> Option<Regarding> {
    let owners = metadata["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let text = |key: &str| owner[key].as_str().map(str::to_owned);
    Some(Regarding {
        api_version: text("apiVersion")?,
        kind: text("kind")?,
        namespace: namespace.to_owned(),
        name: text("name")?,
        uid: text("uid")?,
    })
}
