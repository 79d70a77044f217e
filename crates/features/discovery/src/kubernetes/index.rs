//! Which Service, slices and pods belong together.
//!
//! In: what is kept of an object, or that it is gone. Out: changes for what that touched, and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::projection::{KeptPod, KeptService, KeptSlice, project};
use crate::feed::Change;

/// A namespace and a name.
pub type ObjectName = (String, String);

/// A cluster's services, as far as its objects are known.
pub struct Index {
    /// What services' names end in, such as `cluster.local`.
    domain: String,
    trust_domain: String,
    services: HashMap<ObjectName, Arc<KeptService>>,
    slices: HashMap<ObjectName, Arc<KeptSlice>>,
    pods: HashMap<ObjectName, Arc<KeptPod>>,
    /// The slices of each Service, whether there is such a one or not.
    of_service: HashMap<ObjectName, BTreeSet<String>>,
    /// The slices that name a pod.
    naming: HashMap<ObjectName, BTreeSet<String>>,
    /// What was told of each Service, by name.
    told: HashMap<ObjectName, Vec<String>>,
    /// Services to look at again.
    touched: BTreeSet<ObjectName>,
}

impl Index {
    /// Knows nothing yet.
    pub fn new(domain: &str, trust_domain: &str) -> Self {
        Self {
            domain: domain.to_owned(),
            trust_domain: trust_domain.to_owned(),
            services: HashMap::new(),
            slices: HashMap::new(),
            pods: HashMap::new(),
            of_service: HashMap::new(),
            naming: HashMap::new(),
            told: HashMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// A Service as it is now.
    pub fn service(&mut self, name: &ObjectName, now: Option<Arc<KeptService>>) {
        put(&mut self.services, name, now);
        self.touched.insert(name.clone());
    }

    /// An EndpointSlice as it is now.
    pub fn slice(&mut self, name: &ObjectName, now: Option<Arc<KeptSlice>>) {
        let (namespace, slice) = name;
        if let Some(before) = self.slices.remove(name) {
            let service = (namespace.clone(), before.service.clone());
            leave(&mut self.of_service, &service, slice);
            for pod in before.pods() {
                leave(&mut self.naming, &(namespace.clone(), pod.to_owned()), slice);
            }
            self.touched.insert(service);
        }
        let Some(now) = now else { return };
        let service = (namespace.clone(), now.service.clone());
        self.of_service.entry(service.clone()).or_default().insert(slice.clone());
        for pod in now.pods() {
            self.naming.entry((namespace.clone(), pod.to_owned())).or_default().insert(slice.clone());
        }
        self.touched.insert(service);
        self.slices.insert(name.clone(), now);
    }

    /// A pod as it is now.
    pub fn pod(&mut self, name: &ObjectName, now: Option<Arc<KeptPod>>) {
        put(&mut self.pods, name, now);
        for slice in self.naming.get(name).into_iter().flatten() {
            if let Some(slice) = self.slices.get(&(name.0.clone(), slice.clone())) {
                self.touched.insert((name.0.clone(), slice.service.clone()));
            }
        }
    }

    /// What has changed since the last time.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            let slices = self.of_service.get(&name).into_iter().flatten();
            let slices = slices.filter_map(|slice| self.slices.get(&(name.0.clone(), slice.clone())).map(Arc::as_ref));
            let pod = |pod: &str| self.pods.get(&(name.0.clone(), pod.to_owned())).map(Arc::as_ref);
            let service = self.services.get(&name).map(Arc::as_ref);
            let slices: Vec<&KeptSlice> = slices.collect();
            let now = project((&name.0, &name.1), service, &slices, pod, (&self.domain, &self.trust_domain));
            let names: Vec<String> = now.iter().map(|service| service.name.clone()).collect();
            let before = match names.is_empty() {
                true => self.told.remove(&name),
                false => self.told.insert(name, names.clone()),
            };
            let gone = before.unwrap_or_default().into_iter().filter(|one| !names.contains(one));
            changes.extend(gone.map(Change::Removed));
            changes.extend(now.into_iter().map(Change::Set));
        }
        changes
    }
}

fn put<T>(objects: &mut HashMap<ObjectName, Arc<T>>, name: &ObjectName, now: Option<Arc<T>>) {
    match now {
        Some(now) => drop(objects.insert(name.clone(), now)),
        None => drop(objects.remove(name)),
    }
}

fn leave(sets: &mut HashMap<ObjectName, BTreeSet<String>>, name: &ObjectName, member: &str) {
    if let Some(set) = sets.get_mut(name) {
        set.remove(member);
        if set.is_empty() {
            sets.remove(name);
        }
    }
}
