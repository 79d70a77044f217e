//! Which Service, slices and pods belong together.
//!
//! In: what is kept of an object, or that it is gone. Out: changes for what that touched, and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_kubernetes::names::{KEEPER_IDLE, KEEPER_WAIT};

use super::alone::Alone;
use super::handover::{Application, HandOver, Stage};
use super::projection::{KeptPod, KeptService, KeptSlice, project};
use crate::feed::Change;

/// No keeper lives longer. Of one that seems to, the node has not been heard of since.
const KEPT_FOR: Duration = Duration::from_secs(KEEPER_IDLE + KEEPER_WAIT);
/// How long the kubelet may take to find out that a sidecar is ready that has said so.
const TAKEN_FOR: Duration = Duration::from_secs(30);

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
    /// Until when the hand-over of a pod is believed.
    handing_over: HashMap<ObjectName, Instant>,
    /// The slices of each Service, whether there is such a one or not.
    of_service: HashMap<ObjectName, BTreeSet<String>>,
    /// The slices that name a pod.
    naming: HashMap<ObjectName, BTreeSet<String>>,
    /// What was told of each Service, by name.
    told: HashMap<ObjectName, Vec<String>>,
    /// Pods that are called by their own address.
    alone: Alone,
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
            handing_over: HashMap::new(),
            of_service: HashMap::new(),
            naming: HashMap::new(),
            told: HashMap::new(),
            alone: Alone::default(),
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

    /// A pod as it is now, `at` this time.
    pub fn pod(&mut self, name: &ObjectName, now: Option<Arc<KeptPod>>, at: Instant) {
        self.hand_over(name, now.as_ref().and_then(|pod| pod.hand_over.as_deref()), at);
        put(&mut self.pods, name, now);
        self.touch(name);
    }

    /// Hand-overs that have lasted too long are believed no more.
    pub fn expire(&mut self, now: Instant) {
        let over: Vec<ObjectName> =
            self.handing_over.extract_if(|_, until| *until <= now).map(|(name, _)| name).collect();
        over.iter().for_each(|name| self.touch(name));
    }

    /// Notes until when a hand-over is believed: from when it was first seen, so that no clocks are compared.
    fn hand_over(&mut self, name: &ObjectName, now: Option<&HandOver>, at: Instant) {
        let before = self.pods.get(name).and_then(|pod| pod.hand_over.as_deref());
        let Some(now) = now else {
            self.handing_over.remove(name);
            return;
        };
        let same = before.is_some_and(|before| before.keeper == now.keeper);
        if same && before.is_some_and(|before| before.stage == now.stage) {
            return;
        }
        let lasts = match now.stage {
            Stage::Kept => KEPT_FOR,
            Stage::Taken => TAKEN_FOR,
        };
        // It begins with an application that is ready, and goes on with the same.
        if now.application == Application::Ready || (same && self.handing_over.contains_key(name)) {
            self.handing_over.insert(name.clone(), at + lasts);
        } else {
            self.handing_over.remove(name);
        }
    }

    /// Services with a pod are to be looked at again.
    fn touch(&mut self, name: &ObjectName) {
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
            let pod = |pod: &str| {
                let (name, kept) = self.pods.get_key_value(&(name.0.clone(), pod.to_owned()))?;
                let serves = kept.hand_over.as_ref().is_some_and(|one| one.application != Application::Away);
                Some((kept.as_ref(), serves && self.handing_over.contains_key(name)))
            };
            let service = self.services.get(&name).map(Arc::as_ref);
            let slices: Vec<&KeptSlice> = slices.collect();
            let now = project((&name.0, &name.1), service, &slices, pod, (&self.domain, &self.trust_domain));
            self.alone.take(&name, &now, &self.domain, &mut changes);
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
