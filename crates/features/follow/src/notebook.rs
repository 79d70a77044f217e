//! What is asked for, and what was told of it.
//!
//! In: names and addresses that are wanted, answers of a server. Out: names to ask for, endpoints for those who follow
//! them, services found by address. Promise: an answer is taken whole or refused with a reason; what is wanted by nobody
//! is forgotten; addresses that are no service's are remembered for a while, the oldest are forgotten first. No I/O.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::{DiscoverySource, OnDemand};
use outrigger_traffic::directory::{FoundService, Known};
use outrigger_traffic::endpoints::{Endpoint, MOST_TOLD};
use outrigger_wire::xds::{self, Resource, Response, read_assignment, read_cluster};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Clusters and their endpoints.
pub(crate) const KINDS: [&str; 2] = [xds::CLUSTER, xds::ASSIGNMENT];

/// What those who follow a service see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// `None` until somebody told.
    pub(crate) endpoints: Option<Arc<[Endpoint]>>,
    /// Why nothing new is told now.
    pub(crate) problem: Option<Arc<str>>,
}

/// What is asked for and known. Cheap to clone; any thread may hold it.
#[derive(Clone)]
pub struct Notebook(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Counts changes of what is asked for.
    wanted: watch::Sender<u64>,
    /// Counts changes of what is known of addresses.
    found: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// Endpoints by the service's name.
    assignments: HashMap<Arc<str>, Assignment>,
    /// What was asked for by address.
    addresses: HashMap<SocketAddr, Address>,
    /// Addresses that are no service's, the oldest first.
    unknown: VecDeque<(Instant, SocketAddr)>,
    found: Arc<[FoundService]>,
    on_demand: Option<OnDemand>,
    /// The config was heard of, and what a process before us kept is here.
    begun: bool,
    most_bytes: usize,
    connected: bool,
    problem: Option<Arc<str>>,
    /// What a process before us was told, and nobody wants yet.
    remembered: HashMap<String, Kept>,
}

/// A resource as it came.
#[derive(Debug, Clone, Default)]
struct Kept {
    version: String,
    value: Vec<u8>,
}

struct Assignment {
    followers: usize,
    /// Addresses whose service it is.
    addresses: usize,
    kept: Option<Kept>,
    told: watch::Sender<Told>,
}

enum Address {
    Asked,
    /// Told of, and its endpoints are asked for.
    Cluster {
        kept: Kept,
        service: FoundService,
    },
    Unknown,
}

impl Default for Notebook {
    fn default() -> Self {
        let inner = Inner { most_bytes: usize::MAX, ..Inner::default() };
        Self(Arc::new(Shared { inner: inner.into(), wanted: watch::channel(0).0, found: watch::channel(0).0 }))
    }
}

impl Notebook {
    /// Takes on what the config allows.
    pub fn allow(&self, section: &DiscoverySource) {
        let mut inner = self.0.inner.lock();
        inner.most_bytes = section.max_bytes.as_usize();
        inner.on_demand.clone_from(&section.on_demand);
        inner.begun = true;
        if inner.on_demand.is_none() {
            let gone: Vec<SocketAddr> = inner.addresses.keys().copied().collect();
            gone.into_iter().for_each(|address| inner.forget(address));
            inner.unknown.clear();
            inner.find();
        } else {
            inner.recall_addresses();
        }
        drop(inner);
        self.wants();
        self.finds();
    }

    /// Whether an address was found, asked for or neither; asks for it when nothing is known.
    pub fn ask(&self, address: SocketAddr, now: Instant) -> Known {
        let mut inner = self.0.inner.lock();
        if !inner.begun {
            // Listeners may be quicker than we are.
            return Known::Asked;
        }
        let Some(on_demand) = inner.on_demand.clone() else { return Known::Not };
        inner.forget_unknown(&on_demand, now);
        match inner.addresses.get(&address) {
            Some(Address::Cluster { service, .. }) => {
                let told = inner
                    .assignments
                    .get(service.name.as_str())
                    .is_some_and(|one| one.told.borrow().endpoints.is_some());
                return if told { Known::Found } else { inner.awaited() };
            }
            Some(Address::Asked) => return inner.awaited(),
            Some(Address::Unknown) => return Known::Not,
            None => {}
        }
        let asked = inner.addresses.len() - inner.unknown.len();
        if !inner.is_hopeful() || asked >= on_demand.max_services as usize {
            return Known::Not;
        }
        inner.addresses.insert(address, Address::Asked);
        drop(inner);
        self.wants();
        Known::Asked
    }

    /// Services found by address.
    pub fn found(&self) -> (u64, Arc<[FoundService]>) {
        let inner = self.0.inner.lock();
        (*self.0.found.borrow(), Arc::clone(&inner.found))
    }

    /// Waits until more is known of an address. Cancel-safe.
    pub async fn changed(&self, since: u64) {
        let _ = self.0.found.subscribe().wait_for(|number| *number != since).await;
    }

    /// Follows a service's endpoints; [`Self::unfollow`] is to be called at the end.
    pub(crate) fn follow(&self, service: &str) -> watch::Receiver<Told> {
        let mut inner = self.0.inner.lock();
        let one = inner.assignment(service);
        one.followers += 1;
        let told = one.told.subscribe();
        drop(inner);
        self.wants();
        told
    }

    pub(crate) fn unfollow(&self, service: &str) {
        let mut inner = self.0.inner.lock();
        if let Some(one) = inner.assignments.get_mut(service) {
            one.followers -= 1;
        }
        inner.tidy(service);
        drop(inner);
        self.wants();
    }

    /// Tells of changes of what is asked for.
    pub(crate) fn wanted(&self) -> watch::Receiver<u64> {
        self.0.wanted.subscribe()
    }

    /// All that is asked for of a type, with the versions that are known (empty for none).
    pub(crate) fn names(&self, type_url: &str) -> HashMap<String, String> {
        let inner = self.0.inner.lock();
        let version = |kept: Option<&Kept>| kept.map(|kept| kept.version.clone()).unwrap_or_default();
        match type_url {
            xds::ASSIGNMENT => {
                inner.assignments.iter().map(|(name, one)| (name.to_string(), version(one.kept.as_ref()))).collect()
            }
            _ => {
                let asked = inner.addresses.iter().filter_map(|(address, state)| match state {
                    Address::Asked => Some((address.to_string(), String::new())),
                    Address::Cluster { kept, .. } => Some((address.to_string(), kept.version.clone())),
                    Address::Unknown => None,
                });
                asked.collect()
            }
        }
    }

    /// Takes an answer of a server.
    ///
    /// # Errors
    /// Why it is not taken; what was told before holds on.
    pub fn take(&self, response: &Response<'_>, now: Instant) -> Result<(), String> {
        let mut inner = self.0.inner.lock();
        inner.check(response)?;
        match response.type_url {
            xds::ASSIGNMENT => {
                response.resources.iter().for_each(|resource| inner.take_assignment(resource));
                response.removed.iter().for_each(|name| inner.lose_assignment(name));
            }
            _ => {
                response.resources.iter().for_each(|resource| inner.take_cluster(resource));
                response
                    .removed
                    .iter()
                    .filter_map(|name| name.parse().ok())
                    .for_each(|one| inner.lose_address(one, now));
            }
        }
        inner.find();
        drop(inner);
        // Endpoints alone change nothing of what is asked for; a cluster found has endpoints to be asked for.
        if response.type_url != xds::ASSIGNMENT {
            self.wants();
        }
        self.finds();
        Ok(())
    }

    /// A server is connected, or why none is.
    pub(crate) fn connected(&self, state: Result<(), String>) {
        let mut inner = self.0.inner.lock();
        inner.connected = state.is_ok();
        inner.problem = state.err().map(Into::into);
        let problem = inner.problem.clone();
        for one in inner.assignments.values() {
            one.told.send_modify(|told| told.problem.clone_from(&problem));
        }
        // Whoever waits for an answer need not any more.
        inner.addresses.retain(|_, state| !matches!(state, Address::Asked) || problem.is_none());
        drop(inner);
        self.finds();
    }

    /// Why no server is connected.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        self.0.inner.lock().problem.clone()
    }

    /// Whether a server is connected, and all that is followed was told.
    pub fn is_current(&self) -> bool {
        let inner = self.0.inner.lock();
        inner.connected && inner.assignments.values().all(|one| one.told.borrow().endpoints.is_some())
    }

    /// Whether a service's endpoints, or that there are none, were told.
    pub(crate) fn knows(&self, service: &str) -> bool {
        self.0.inner.lock().assignments.get(service).is_some_and(|one| one.told.borrow().endpoints.is_some())
    }

    /// Services that are known, addresses that are no service's, and the bytes of what is kept.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let inner = self.0.inner.lock();
        (inner.assignments.len(), inner.unknown.len(), inner.bytes())
    }

    /// All that was told, as answers that [`Self::remember`] takes.
    pub fn written(&self) -> Vec<u8> {
        let inner = self.0.inner.lock();
        let mut out = Vec::with_capacity(inner.bytes() + 1024);
        for (name, one) in &inner.assignments {
            if let Some(Kept { version, value }) = &one.kept {
                Resource { name, version, type_url: xds::ASSIGNMENT, value }.write(&mut out);
            }
        }
        for (address, state) in &inner.addresses {
            if let Address::Cluster { kept: Kept { version, value }, .. } = state {
                Resource { name: &address.to_string(), version, type_url: xds::CLUSTER, value }.write(&mut out);
            }
        }
        out
    }

    /// Takes on what a process before us was told: for those who want it already, and who will.
    pub fn remember(&self, written: &[u8]) {
        let mut inner = self.0.inner.lock();
        let response = Response::read(written);
        for resource in response.resources.iter().filter(|one| KINDS.contains(&one.type_url)) {
            let kept = Kept { version: resource.version.to_owned(), value: resource.value.to_vec() };
            inner.remembered.insert(format!("{} {}", resource.type_url, resource.name), kept);
        }
        let wanted: Vec<Arc<str>> = inner.assignments.keys().cloned().collect();
        wanted.iter().for_each(|name| inner.recall(name));
        inner.recall_addresses();
        drop(inner);
        self.wants();
        self.finds();
    }

    /// What nobody wanted by now is not wanted.
    pub(crate) fn forget_remembered(&self) {
        self.0.inner.lock().remembered = HashMap::new();
    }

    fn wants(&self) {
        self.0.wanted.send_modify(|number| *number += 1);
    }

    fn finds(&self) {
        self.0.found.send_modify(|number| *number += 1);
    }
}

impl Inner {
    /// What to say of an address that was asked for.
    fn awaited(&self) -> Known {
        if self.is_hopeful() { Known::Asked } else { Known::Not }
    }

    /// Whether an answer may come: a server is connected, or the first one is being connected to.
    fn is_hopeful(&self) -> bool {
        self.connected || self.problem.is_none()
    }

    fn assignment(&mut self, service: &str) -> &mut Assignment {
        if !self.assignments.contains_key(service) {
            let name: Arc<str> = service.into();
            let told = Told { endpoints: None, problem: self.problem.clone() };
            let one = Assignment { followers: 0, addresses: 0, kept: None, told: watch::channel(told).0 };
            self.assignments.insert(Arc::clone(&name), one);
            self.recall(&name);
        }
        self.assignments.get_mut(service).expect("it was put there")
    }

    /// Forgets a service that nobody wants.
    fn tidy(&mut self, service: &str) {
        if self.assignments.get(service).is_some_and(|one| one.followers == 0 && one.addresses == 0) {
            self.assignments.remove(service);
        }
    }

    fn bytes(&self) -> usize {
        let size = |kept: &Kept| kept.value.len() + kept.version.len();
        let assignments = self.assignments.values().filter_map(|one| one.kept.as_ref());
        let clusters = self.addresses.values().filter_map(|state| match state {
            Address::Cluster { kept, .. } => Some(kept),
            _ => None,
        });
        assignments.chain(clusters).map(size).sum()
    }

    /// Whether an answer can be taken at all.
    fn check(&self, response: &Response<'_>) -> Result<(), String> {
        if !KINDS.contains(&response.type_url) {
            return Err(format!("`{}` was not asked for", response.type_url.chars().take(100).collect::<String>()));
        }
        for resource in &response.resources {
            if resource.type_url != response.type_url {
                return Err(format!("`{}` is of another type than its answer", resource.name));
            }
            if response.type_url == xds::CLUSTER && read_cluster(resource.value).is_none() {
                return Err(format!(
                    "the endpoints of the cluster `{}` do not come by this stream (EDS)",
                    resource.name
                ));
            }
        }
        let more: usize = response.resources.iter().map(|one| one.value.len()).sum();
        if self.bytes() + more > self.most_bytes {
            return Err(format!("more than `maxBytes` ({} bytes) is told", self.most_bytes));
        }
        Ok(())
    }

    fn take_assignment(&mut self, resource: &Resource<'_>) {
        let Some(one) = self.assignments.get_mut(resource.name) else { return };
        one.take(Kept { version: resource.version.to_owned(), value: resource.value.to_vec() });
    }

    fn lose_assignment(&mut self, name: &str) {
        let Some(one) = self.assignments.get_mut(name) else { return };
        if one.kept.take().is_some() {
            tracing::warn!(
                component = "discovery",
                service = name,
                "the service is gone, and has no endpoints any more"
            );
        }
        one.told.send_modify(|told| told.endpoints = Some(Arc::default()));
    }

    fn take_cluster(&mut self, resource: &Resource<'_>) {
        let Ok(address) = resource.name.parse::<SocketAddr>() else { return };
        if !matches!(self.addresses.get(&address), Some(Address::Asked | Address::Cluster { .. })) {
            return;
        }
        let kept = Kept { version: resource.version.to_owned(), value: resource.value.to_vec() };
        self.put_cluster(address, kept);
    }

    fn put_cluster(&mut self, address: SocketAddr, kept: Kept) {
        let Some(cluster) = read_cluster(&kept.value) else { return };
        let service = FoundService {
            name: cluster.assignment.to_owned(),
            addresses: vec![address],
            spiffe_ids: cluster.spiffe_ids.iter().map(ToString::to_string).collect(),
            http2: cluster.http2,
        };
        // In this order, for it may be the same service.
        self.assignment(&service.name).addresses += 1;
        self.forget(address);
        self.addresses.insert(address, Address::Cluster { kept, service });
    }

    fn lose_address(&mut self, address: SocketAddr, now: Instant) {
        if !self.addresses.contains_key(&address) || matches!(self.addresses.get(&address), Some(Address::Unknown)) {
            return;
        }
        self.forget(address);
        self.addresses.insert(address, Address::Unknown);
        self.unknown.push_back((now, address));
    }

    fn forget(&mut self, address: SocketAddr) {
        if let Some(Address::Cluster { service, .. }) = self.addresses.remove(&address) {
            if let Some(one) = self.assignments.get_mut(service.name.as_str()) {
                one.addresses -= 1;
            }
            self.tidy(&service.name);
        }
    }

    fn forget_unknown(&mut self, on_demand: &OnDemand, now: Instant) {
        let ttl = Duration::from(on_demand.unknown_ttl);
        while let Some((since, address)) = self.unknown.front().copied() {
            let many = self.unknown.len() > on_demand.max_unknown as usize;
            if !many && now.saturating_duration_since(since) < ttl {
                return;
            }
            self.unknown.pop_front();
            self.addresses.remove(&address);
        }
    }

    /// Lists the services whose endpoints are known.
    fn find(&mut self) {
        let mut by_name: HashMap<&str, FoundService> = HashMap::new();
        for state in self.addresses.values() {
            let Address::Cluster { service, .. } = state else { continue };
            if self.assignments.get(service.name.as_str()).is_none_or(|one| one.told.borrow().endpoints.is_none()) {
                continue;
            }
            by_name
                .entry(&service.name)
                .and_modify(|one| one.addresses.extend(&service.addresses))
                .or_insert_with(|| service.clone());
        }
        let mut found: Vec<FoundService> = by_name.into_values().collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        found.iter_mut().for_each(|one| one.addresses.sort_unstable());
        if *found != *self.found {
            self.found = found.into();
        }
    }

    /// Has a service begin with what a process before us knew.
    fn recall(&mut self, service: &str) {
        let Some(kept) = self.remembered.remove(&format!("{} {service}", xds::ASSIGNMENT)) else { return };
        if let Some(one) = self.assignments.get_mut(service).filter(|one| one.kept.is_none()) {
            one.take(kept);
        }
    }

    fn recall_addresses(&mut self) {
        let Some(on_demand) = &self.on_demand else { return };
        let most = on_demand.max_services as usize;
        let prefix = format!("{} ", xds::CLUSTER);
        let addresses: Vec<SocketAddr> =
            self.remembered.keys().filter_map(|key| key.strip_prefix(&prefix)?.parse().ok()).take(most).collect();
        for address in addresses {
            let kept = self.remembered.remove(&format!("{prefix}{address}"));
            let known = matches!(self.addresses.get(&address), Some(Address::Cluster { .. }));
            if let Some(kept) = kept.filter(|_| !known) {
                self.put_cluster(address, kept);
            }
        }
        self.find();
    }
}

impl Assignment {
    fn take(&mut self, kept: Kept) {
        let mut endpoints = Vec::new();
        read_assignment(&kept.value, |one, labels| {
            if endpoints.len() >= MOST_TOLD {
                return;
            }
            endpoints.push(Endpoint {
                weight: one.weight,
                priority: one.priority,
                zone: (!one.zone.is_empty()).then(|| one.zone.to_owned()),
                labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                healthy: one.healthy,
                ..Endpoint::new(one.address)
            });
        });
        self.kept = Some(kept);
        self.told.send_modify(|told| told.endpoints = Some(endpoints.into()));
    }
}

#[cfg(test)]
mod tests;
