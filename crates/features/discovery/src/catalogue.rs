//! What there is to be told, as it looks on the wire, and who wants to know of what.
//!
//! In: services, subscriptions. Out: resources by name; a note to each stream that a name it asked for changed. Promise:
//! a resource is encoded once per change, its version is a digest of it, so that all servers give the same one and
//! whoever has it is not told again; a stream is woken for what it asked for alone.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use outrigger_wire::xds::{self, Assigned, Discovered};
use parking_lot::Mutex;

use crate::feed::{Service, ServiceEndpoint};

/// The types of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `Cluster`.
    Cluster = 0,
    /// `ClusterLoadAssignment`.
    Assignment = 1,
}

impl Kind {
    /// All of them, in the order in which they are told: a cluster before its endpoints.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Assignment];

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => xds::CLUSTER,
            Self::Assignment => xds::ASSIGNMENT,
        }
    }

    /// The kind of a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Assignment => "endpoints",
        }
    }
}

/// A resource, encoded as a field of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) version: u64,
    pub(crate) encoded: Bytes,
}

/// All that there is to be told. Cheap to clone.
#[derive(Clone, Default)]
pub struct Catalogue(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    kinds: [Shelf; 2],
    /// Which service each virtual address stands for now.
    virtuals: HashMap<Arc<str>, Arc<str>>,
    /// The virtual addresses of each service.
    services: HashMap<Arc<str>, Vec<Arc<str>>>,
    next_stream: u64,
}

/// The resources of one kind.
#[derive(Default)]
struct Shelf {
    entries: HashMap<Arc<str>, Entry>,
    /// Streams that want to know of all.
    all: HashMap<u64, Arc<Mailbox>>,
    resources: usize,
}

#[derive(Default)]
struct Entry {
    resource: Option<Resource>,
    /// It stands for another one, and is told to those alone who ask for it.
    alias: bool,
    /// Streams that asked for it.
    wanted: HashMap<u64, Arc<Mailbox>>,
}

/// What a stream has not looked at yet: at most the names that it asked for.
#[derive(Default)]
pub(crate) struct Mailbox(Mutex<Post>);

#[derive(Default)]
struct Post {
    names: [HashSet<Arc<str>>; 2],
    waker: Option<Waker>,
}

impl Mailbox {
    /// Notes that a name changed.
    pub(crate) fn put(&self, kind: Kind, name: &Arc<str>) {
        let waker = {
            let mut post = self.0.lock();
            post.names[kind as usize].insert(Arc::clone(name));
            post.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes what changed of a kind.
    pub(crate) fn take(&self, kind: Kind) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.0.lock().names[kind as usize])
    }

    /// Whom to wake with the next note.
    pub(crate) fn wake(&self, waker: &Waker) {
        let mut post = self.0.lock();
        if post.names.iter().any(|names| !names.is_empty()) {
            drop(post);
            waker.wake_by_ref();
        } else if !post.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            post.waker = Some(waker.clone());
        }
    }
}

impl Catalogue {
    /// Takes on services as they are now, and forgets those that are gone.
    pub fn apply(&self, set: &[Service], removed: &[String]) {
        // What takes long is done before anybody has to wait.
        let encoded: Vec<_> =
            set.iter().map(|service| (service, encode_cluster(service), encode_endpoints(service))).collect();
        let mut inner = self.0.lock();
        for name in removed {
            inner.remove(name);
        }
        for (service, cluster, endpoints) in encoded {
            let name: Arc<str> = inner.name(&service.name);
            inner.take_virtuals(&name, service, &cluster);
            inner.put(Kind::Cluster, &name, Some(cluster), false);
            inner.put(Kind::Assignment, &name, Some(endpoints), false);
        }
    }

    /// Names of all services.
    pub fn services(&self) -> BTreeSet<String> {
        self.0.lock().services.keys().map(|name| name.as_ref().to_owned()).collect()
    }

    /// How many resources of a kind there are.
    pub fn len(&self, kind: Kind) -> usize {
        self.0.lock().kinds[kind as usize].resources
    }

    /// A number for a stream.
    pub(crate) fn number(&self) -> u64 {
        let mut inner = self.0.lock();
        inner.next_stream += 1;
        inner.next_stream
    }

    /// A stream asks for a name; gives the name as all share it.
    pub(crate) fn subscribe(&self, kind: Kind, name: &str, stream: u64, mailbox: &Arc<Mailbox>) -> Arc<str> {
        let mut inner = self.0.lock();
        let name = inner.name(name);
        let entry = inner.kinds[kind as usize].entries.entry(Arc::clone(&name)).or_default();
        entry.wanted.insert(stream, Arc::clone(mailbox));
        name
    }

    /// A stream asks for a name no longer.
    pub(crate) fn unsubscribe(&self, kind: Kind, name: &str, stream: u64) {
        let mut inner = self.0.lock();
        let entries = &mut inner.kinds[kind as usize].entries;
        let Some(entry) = entries.get_mut(name) else { return };
        entry.wanted.remove(&stream);
        if entry.wanted.is_empty() && entry.resource.is_none() {
            entries.remove(name);
        } else if entry.wanted.len() * 4 < entry.wanted.capacity() {
            entry.wanted.shrink_to_fit();
        }
    }

    /// A stream asks for all of a kind; gives their names.
    pub(crate) fn subscribe_all(&self, kind: Kind, stream: u64, mailbox: &Arc<Mailbox>) -> Vec<Arc<str>> {
        let mut inner = self.0.lock();
        let shelf = &mut inner.kinds[kind as usize];
        shelf.all.insert(stream, Arc::clone(mailbox));
        let told = shelf.entries.iter().filter(|(_, entry)| entry.resource.is_some() && !entry.alias);
        told.map(|(name, _)| Arc::clone(name)).collect()
    }

    pub(crate) fn unsubscribe_all(&self, kind: Kind, stream: u64) {
        self.0.lock().kinds[kind as usize].all.remove(&stream);
    }

    /// Names that are known or asked for, of both kinds.
    #[cfg(test)]
    pub(crate) fn names_known(&self) -> usize {
        self.0.lock().kinds.iter().map(|shelf| shelf.entries.len()).sum()
    }

    /// A resource as it is now.
    pub(crate) fn find(&self, kind: Kind, name: &str) -> Option<Resource> {
        self.0.lock().kinds[kind as usize].entries.get(name)?.resource.clone()
    }
}

impl Inner {
    /// A name, shared with whoever has it already.
    fn name(&self, name: &str) -> Arc<str> {
        let known = self.kinds.iter().find_map(|shelf| shelf.entries.get_key_value(name));
        known.map_or_else(|| name.into(), |(name, _)| Arc::clone(name))
    }

    fn put(&mut self, kind: Kind, name: &Arc<str>, resource: Option<Resource>, alias: bool) {
        let shelf = &mut self.kinds[kind as usize];
        let entry = shelf.entries.entry(Arc::clone(name)).or_default();
        let version = |resource: &Option<Resource>| resource.as_ref().map(|resource| resource.version);
        if version(&entry.resource) == version(&resource) {
            return;
        }
        shelf.resources = shelf.resources + usize::from(resource.is_some()) - usize::from(entry.resource.is_some());
        entry.alias = alias;
        entry.resource = resource;
        entry.wanted.values().for_each(|mailbox| mailbox.put(kind, name));
        if !alias {
            shelf.all.values().for_each(|mailbox| mailbox.put(kind, name));
        }
        if entry.resource.is_none() && entry.wanted.is_empty() {
            shelf.entries.remove(name);
        }
    }

    /// Has a service's virtual addresses stand for it.
    fn take_virtuals(&mut self, name: &Arc<str>, service: &Service, cluster: &Resource) {
        let now: Vec<Arc<str>> = service.virtual_addresses.iter().map(|one| one.to_string().into()).collect();
        let before = self.services.insert(Arc::clone(name), now.clone()).unwrap_or_default();
        for gone in before.iter().filter(|one| !now.contains(one)) {
            self.drop_virtual(name, gone);
        }
        for address in now {
            self.virtuals.insert(Arc::clone(&address), Arc::clone(name));
            let encoded = encode(Kind::Cluster, &address, cluster.version, &cluster_value(service));
            self.put(Kind::Cluster, &address, Some(encoded), true);
        }
    }

    /// An address stands for a service no longer, unless it stands for another one by now.
    fn drop_virtual(&mut self, name: &Arc<str>, address: &Arc<str>) {
        if self.virtuals.get(address).is_some_and(|owner| owner == name) {
            self.virtuals.remove(address);
            self.put(Kind::Cluster, address, None, true);
        }
    }

    fn remove(&mut self, name: &str) {
        let Some((name, virtuals)) = self.services.remove_entry(name) else { return };
        for address in &virtuals {
            self.drop_virtual(&name, address);
        }
        // Endpoints first: whoever hears of the one alone has nowhere to send to, not nowhere to look.
        self.put(Kind::Assignment, &name, None, false);
        self.put(Kind::Cluster, &name, None, false);
    }
}

fn encode(kind: Kind, name: &str, version: u64, value: &[u8]) -> Resource {
    let mut encoded = Vec::new();
    let shown = format!("{version:016x}");
    xds::Resource { name, version: &shown, type_url: kind.type_url(), value }.write(&mut encoded);
    encoded.shrink_to_fit();
    Resource { version, encoded: encoded.into() }
}

/// The version of a value. 0 stands for none.
fn digest(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().max(1)
}

fn cluster_value(service: &Service) -> Vec<u8> {
    let mut identities: Vec<&str> = service.endpoints.iter().map(|one| one.identity.as_str()).collect();
    identities.sort_unstable();
    identities.dedup();
    // One without an identity takes plain text, and a cluster is spoken to in one way.
    if identities.first().is_some_and(|first| first.is_empty()) {
        identities.clear();
    }
    let mut virtual_addresses = service.virtual_addresses.clone();
    virtual_addresses.sort_unstable();
    let (name, http2) = (service.name.as_str(), service.http2);
    let mut value = Vec::new();
    let cluster = Discovered { name, assignment: name, spiffe_ids: identities, virtual_addresses, http2 };
    xds::write_cluster(&cluster, &mut value);
    value
}

fn encode_cluster(service: &Service) -> Resource {
    let value = cluster_value(service);
    encode(Kind::Cluster, &service.name, digest(&value), &value)
}

fn encode_endpoints(service: &Service) -> Resource {
    // In one order, whatever order they came in.
    let mut sorted: Vec<&ServiceEndpoint> = service.endpoints.iter().collect();
    sorted.sort_by_key(|one| one.address);
    let endpoints = sorted.iter().map(|one| {
        let labels = one.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let told = Assigned {
            address: one.address,
            weight: one.weight,
            priority: one.priority,
            zone: &one.zone,
            healthy: one.healthy,
            identity: &one.identity,
        };
        (told, labels)
    });
    let mut value = Vec::new();
    xds::write_assignment(&service.name, endpoints, &mut value);
    encode(Kind::Assignment, &service.name, digest(&value), &value)
}
