//! Events ([events.k8s.io]): what `kubectl describe` and `kubectl get events` show of an object.
//!
//! In: what happened to which object. Out: Events. Promise: the same thing of the same object is one Event with a count;
//! neither memory nor the API server is flooded: what does not fit is dropped and counted, and nobody waits for an Event.
//!
//! [events.k8s.io]: https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, Patch, Write};
use crate::election::micro_time;
use crate::error::ApiError;
use crate::object::resources::EVENTS;

/// Events that wait to be written.
const QUEUE: usize = 256;
/// Events that are remembered, to be counted up.
const KNOWN: usize = 512;
/// What has not happened again for so long is forgotten, and would be a new Event.
const SPAN: Duration = Duration::from_secs(600);
/// A count is written at most so often.
const COUNT_EVERY: Duration = Duration::from_secs(30);
/// At most so many new Events at once, and one more each second.
const BURST: f64 = 25.0;

/// The object that something happened to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// Such as `apps/v1`.
    pub api_version: String,
    /// Such as `ReplicaSet`.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; `kubectl describe` looks for it.
    pub uid: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// To which object.
    pub regarding: Regarding,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// One word, such as `InjectionRefused`.
    pub reason: &'static str,
    /// What was being done, as one word, such as `Inject`.
    pub action: &'static str,
    /// For people; up to 1,000 bytes of it are kept.
    pub note: String,
}

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
}

/// Writes them.
pub struct Writer {
    client: Client,
    controller: String,
    instance: String,
    queue: tokio::sync::Mutex<mpsc::Receiver<Event>>,
    known: Mutex<HashMap<Event, Known>>,
    dropped: Arc<AtomicU64>,
}

struct Known {
    name: String,
    count: u64,
    told: u64,
    at: Instant,
    written: Instant,
}

impl Recorder {
    /// A recorder, and what has to be run for its events to be written. `controller` is who reports, such as
    /// `outrigger.dev/controller`, and `instance` which process of it.
    pub fn new(client: Client, controller: &str, instance: &str) -> (Self, Writer) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            client,
            controller: controller.to_owned(),
            instance: instance.to_owned(),
            queue: tokio::sync::Mutex::new(receiver),
            known: Mutex::default(),
            dropped: Arc::clone(&dropped),
        };
        (Self { sender, dropped }, writer)
    }

    /// Takes an event; when too many wait, it is dropped and counted.
    pub fn record(&self, event: Event) {
        if self.sender.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Writes events for as long as it is run. Cancel-safe, but for the Event that is being written.
    pub async fn run(&self) {
        let mut queue = self.queue.lock().await;
        let (mut tokens, mut filled) = (BURST, Instant::now());
        while let Some(mut event) = queue.recv().await {
            let now = Instant::now();
            tokens = (tokens + (now - filled).as_secs_f64()).min(BURST);
            filled = now;
            truncate(&mut event.note, 1000);
            let due = self.note(&event, now);
            let result = match due {
                Due::Nothing => continue,
                Due::Count(name, count) => self.count(&event, &name, count).await,
                Due::New if tokens < 1.0 => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Due::New => {
                    tokens -= 1.0;
                    self.create(&event, now).await
                }
            };
            match result {
                Ok(()) => {}
                // Counted up, it has gone in the meantime.
                Err(error) if error.is_not_found() => drop(self.known.lock().remove(&event)),
                Err(error) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, "cannot write an Event");
                }
            }
        }
    }

    /// What is to be done for an event.
    fn note(&self, event: &Event, now: Instant) -> Due {
        let mut known = self.known.lock();
        known.retain(|_, known| now - known.at < SPAN);
        let Some(found) = known.get_mut(event) else { return Due::New };
        found.count += 1;
        found.at = now;
        // The second is written at once, for it makes a series of it.
        if found.count > 2 && now - found.written < COUNT_EVERY {
            return Due::Nothing;
        }
        found.written = now;
        found.told = found.count;
        Due::Count(found.name.clone(), found.count)
    }

    async fn create(&self, event: &Event, now: Instant) -> Result<(), ApiError> {
        let Regarding { api_version, kind, namespace, name, uid } = &event.regarding;
        let at = SystemTime::now();
        let nanos = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let own = format!("{}.{nanos:x}", name.get(..name.len().min(200)).unwrap_or("object"));
        let object = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": own, "namespace": namespace },
            "eventTime": micro_time(at),
            "type": if event.warning { "Warning" } else { "Normal" },
            "reason": event.reason,
            "action": event.action,
            "note": event.note,
            "reportingController": self.controller,
            "reportingInstance": self.instance,
            "regarding": { "apiVersion": api_version, "kind": kind, "namespace": namespace, "name": name, "uid": uid },
        });
        self.client.create(EVENTS.within(namespace), &object, Write::Real).await?;
        let mut known = self.known.lock();
        if known.len() < KNOWN {
            known.insert(event.clone(), Known { name: own, count: 1, told: 1, at: now, written: now });
        }
        Ok(())
    }

    async fn count(&self, event: &Event, name: &str, count: u64) -> Result<(), ApiError> {
        let series: Value = json!({ "series": { "count": count, "lastObservedTime": micro_time(SystemTime::now()) } });
        let path = EVENTS.named(&event.regarding.namespace, name);
        self.client.patch(path, Patch::Merge, &series, Write::Real).await.map(drop)
    }
}

enum Due {
    Nothing,
    New,
    Count(String, u64),
}

fn truncate(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_between_characters() {
        let mut text = "é".repeat(800);
        truncate(&mut text, 1000);
        assert!(text.len() <= 1000 && text.ends_with("é…"), "{}", text.len());
    }
}
