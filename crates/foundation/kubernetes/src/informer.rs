//! A collection kept at hand: what is needed of each of its objects, always as new as the API server tells it.
//!
//! In: a collection, and a projection that says what to keep of an object, if anything. Out: a [`Store`] to look things up in,
//! and the keys of what changed. Promise: nothing is missed: a watch that ends goes on where it ended, one whose
//! version the API server has forgotten (410, compaction) begins with a list, and what has gone in between is told as
//! gone; a reader that is slow gets each key once, however often its object changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use outrigger_runtime::Backoff;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::client::Client;
use crate::error::ApiError;
use crate::list::Selection;
use crate::object::{Path, Resource};
use crate::watch::Change;

/// A watch is asked for so long, and up to as much again, so that many do not begin anew at once.
const SPAN: Duration = Duration::from_secs(300);
/// A failure is told once it has lasted for so many tries.
const TELL_AFTER: u32 = 2;

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its namespace; empty when it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    fn of(object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
        Self::new(text("namespace"), text("name"))
    }
}

/// What is known of a collection. Cheap to clone.
pub struct Store<T>(Arc<Shared<T>>);

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Moves with each change of what is known, and when the first list is whole.
    version: watch::Sender<u64>,
}

struct State<T> {
    objects: BTreeMap<Key, Arc<T>>,
    synced: bool,
    problem: Option<String>,
    readers: Vec<Weak<Mutex<BTreeSet<Key>>>>,
}

/// What to keep of an object; `None` keeps nothing of it.
type Projection<T> = dyn Fn(&Value) -> Option<T> + Send + Sync;

/// Keeps a store up to date, for as long as it is run.
pub struct Informer<T> {
    client: Client,
    resource: Resource,
    namespace: String,
    selection: Selection,
    project: Box<Projection<T>>,
    store: Store<T>,
}

/// An informer of a collection, and its store. `project` says what to keep of an object; `None` keeps nothing of it.
pub fn informer<T: PartialEq + Send + Sync>(
    client: Client,
    path: Path<'_>,
    selection: Selection,
    project: impl Fn(&Value) -> Option<T> + Send + Sync + 'static,
) -> (Informer<T>, Store<T>) {
    let state = State { objects: BTreeMap::new(), synced: false, problem: None, readers: Vec::new() };
    let store = Store(Arc::new(Shared { state: Mutex::new(state), version: watch::Sender::new(0) }));
    let informer = Informer {
        client,
        resource: path.resource,
        namespace: path.namespace.to_owned(),
        selection,
        project: Box::new(project),
        store: store.clone(),
    };
    (informer, store)
}

impl<T: PartialEq + Send + Sync> Informer<T> {
    /// Keeps the store up to date until it is dropped. Cancel-safe: run again, it lists again.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
        let mut failures = 0;
        loop {
            let error = match self.list().await {
                Ok(version) => {
                    (failures, _) = (0, backoff.reset());
                    self.store.clear_problem();
                    self.follow(version, &mut backoff).await
                }
                Err(error) => error,
            };
            if error.is_gone() {
                // Not a fault: the API server does not remember so far back.
                tracing::debug!(resource = self.resource.plural, "listing again: {error}");
                tokio::time::sleep(backoff.next().min(Duration::from_secs(1))).await;
                continue;
            }
            failures += 1;
            self.failed(&error, failures);
            tokio::time::sleep(backoff.next()).await;
        }
    }

    fn failed(&self, error: &ApiError, failures: u32) {
        if failures >= TELL_AFTER || error.is_forbidden() {
            tracing::warn!(resource = self.resource.plural, problem = %error, "cannot follow what the API server knows");
            self.store.0.state.lock().problem = Some(error.to_string());
            self.store.0.version.send_modify(|version| *version += 1);
        }
    }

    fn path(&self) -> Path<'_> {
        Path { resource: self.resource, namespace: &self.namespace, name: "", subresource: "" }
    }

    async fn list(&self) -> Result<String, ApiError> {
        let seen = Mutex::new(BTreeSet::new());
        let object = |object: Value| {
            let key = Key::of(&object);
            self.store.set(key.clone(), (self.project)(&object));
            seen.lock().insert(key);
        };
        let version = self.client.each(self.path(), &self.selection, || seen.lock().clear(), object).await?;
        self.store.retain(&seen.into_inner());
        Ok(version)
    }

    /// Watches on and on; gives the error that only another list, or waiting, mends.
    async fn follow(&self, mut version: String, backoff: &mut Backoff) -> ApiError {
        let mut failures = 0;
        loop {
            let span = SPAN + Duration::from_secs(backoff_jitter(SPAN.as_secs()));
            let ended = match self.client.watch(self.path(), &self.selection, &version, span).await {
                Err(error) => Err(error),
                Ok(mut watch) => {
                    self.store.clear_problem();
                    let ended = loop {
                        match watch.next().await {
                            Ok(Some(change)) => {
                                (failures, _) = (0, backoff.reset());
                                self.apply(change);
                            }
                            Ok(None) => break Ok(()),
                            Err(error) => break Err(error),
                        }
                    };
                    watch.version().clone_into(&mut version);
                    ended
                }
            };
            match ended {
                // A server that ends each watch at once is not asked in a loop.
                Ok(()) => tokio::time::sleep(backoff.next().min(Duration::from_millis(200))).await,
                Err(error) if error.is_gone() => return error,
                Err(error) if error.may_pass() => {
                    failures += 1;
                    self.failed(&error, failures);
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => return error,
            }
        }
    }

    fn apply(&self, change: Change) {
        match change {
            Change::Set(object) => self.store.set(Key::of(&object), (self.project)(&object)),
            Change::Gone(object) => self.store.set(Key::of(&object), None),
            Change::Bookmark => {}
        }
    }
}

/// A number below `most`; from the waits' own source of chance.
fn backoff_jitter(most: u64) -> u64 {
    let most = Duration::from_secs(most);
    Backoff::new(most, most).next().as_secs()
}

impl<T> Store<T> {
    /// What is kept of an object.
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.0.state.lock().objects.get(key).cloned()
    }

    /// Everything, as it is now.
    pub fn all(&self) -> Vec<(Key, Arc<T>)> {
        self.0.state.lock().objects.iter().map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
    }

    /// Of how many objects something is kept.
    pub fn len(&self) -> usize {
        self.0.state.lock().objects.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first list was whole.
    pub fn is_synced(&self) -> bool {
        self.0.state.lock().synced
    }

    /// Why it may be older than it should be.
    pub fn problem(&self) -> Option<String> {
        self.0.state.lock().problem.clone()
    }

    /// Resolves when the first list is whole. Cancel-safe.
    pub async fn synced(&self) {
        let mut version = self.0.version.subscribe();
        while !self.is_synced() {
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// What changes from now on, beginning with all that is there.
    pub fn changes(&self) -> Changes<T> {
        let mut state = self.0.state.lock();
        let pending: Arc<Mutex<BTreeSet<Key>>> = Arc::new(Mutex::new(state.objects.keys().cloned().collect()));
        state.readers.retain(|reader| reader.strong_count() > 0);
        state.readers.push(Arc::downgrade(&pending));
        Changes { pending, version: self.0.version.subscribe(), store: self.clone() }
    }

    fn clear_problem(&self) {
        let mut state = self.0.state.lock();
        if state.problem.take().is_some() {
            drop(state);
            self.0.version.send_modify(|version| *version += 1);
        }
    }
}

impl<T: PartialEq> Store<T> {
    fn set(&self, key: Key, value: Option<T>) {
        let mut state = self.0.state.lock();
        let same = match (&value, state.objects.get(&key)) {
            (None, None) => true,
            (Some(new), Some(old)) => *new == **old,
            _ => false,
        };
        if same {
            return;
        }
        match value {
            Some(value) => drop(state.objects.insert(key.clone(), Arc::new(value))),
            None => drop(state.objects.remove(&key)),
        }
        state.tell(&key);
        drop(state);
        self.0.version.send_modify(|version| *version += 1);
    }

    /// After a list: what it did not have is gone.
    fn retain(&self, seen: &BTreeSet<Key>) {
        let mut state = self.0.state.lock();
        let gone: Vec<Key> = state.objects.keys().filter(|key| !seen.contains(*key)).cloned().collect();
        for key in &gone {
            state.objects.remove(key);
            state.tell(key);
        }
        state.synced = true;
        drop(state);
        self.0.version.send_modify(|version| *version += 1);
    }
}

impl<T> State<T> {
    fn tell(&mut self, key: &Key) {
        for reader in self.readers.iter().filter_map(Weak::upgrade) {
            reader.lock().insert(key.clone());
        }
    }
}

/// The keys of what changed; never more of them than there are objects, and those that went.
pub struct Changes<T> {
    pending: Arc<Mutex<BTreeSet<Key>>>,
    version: watch::Receiver<u64>,
    store: Store<T>,
}

impl<T> Changes<T> {
    /// Waits until something changed; each object that did, once. Look it up in the store: what is not there has gone.
    /// Cancel-safe.
    pub async fn next(&mut self) -> BTreeSet<Key> {
        loop {
            self.version.borrow_and_update();
            let pending = std::mem::take(&mut *self.pending.lock());
            if !pending.is_empty() {
                return pending;
            }
            // The store is in here, so its sender lives.
            if self.version.changed().await.is_err() {
                return BTreeSet::new();
            }
        }
    }

    /// The store that this is of.
    pub fn store(&self) -> &Store<T> {
        &self.store
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store() -> Store<u64> {
        let state = State { objects: BTreeMap::new(), synced: false, problem: None, readers: Vec::new() };
        Store(Arc::new(Shared { state: Mutex::new(state), version: watch::Sender::new(0) }))
    }

    #[tokio::test]
    async fn readers_are_told_each_key_once_and_what_went() {
        let store = store();
        store.set(Key::new("a", "before"), Some(1));
        let mut changes = store.changes();
        assert_eq!(changes.next().await, BTreeSet::from([Key::new("a", "before")]));
        for number in 0..5 {
            store.set(Key::new("a", "x"), Some(number));
        }
        store.set(Key::new("a", "before"), Some(1));
        assert_eq!(changes.next().await, BTreeSet::from([Key::new("a", "x")]), "what is the same is no change");
        store.retain(&BTreeSet::from([Key::new("a", "x")]));
        assert_eq!(changes.next().await, BTreeSet::from([Key::new("a", "before")]));
        assert!(store.get(&Key::new("a", "before")).is_none() && store.is_synced());
        store.set(Key::new("a", "x"), None);
        assert_eq!((changes.next().await.len(), store.len()), (1, 0));
    }

    #[test]
    fn keys_of_objects() {
        assert_eq!(Key::of(&json!({ "metadata": { "name": "n", "namespace": "s" } })), Key::new("s", "n"));
        assert_eq!(Key::of(&json!({ "metadata": { "name": "n" } })), Key::new("", "n"));
    }
}
