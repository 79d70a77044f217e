//! Pods that are called by their own address: those of headless Services, such as `web-0.web` of a StatefulSet.
//!
//! In: what headless Services have as endpoints. Out: a service for each pod's port, with the pod's address as the one that stands
//! for it, so that a sidecar that is called there is spoken to by mTLS. Promise: a pod of several such Services is told once, whatever
//! order they come in; pods without a sidecar that takes mTLS are not told of, and are called as ever. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::index::ObjectName;
use crate::feed::{Change, Service, ServiceEndpoint};

/// A pod's port, as a headless Service has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    endpoint: ServiceEndpoint,
    http2: bool,
}

/// The pods' ports of all headless Services.
#[derive(Default)]
pub(crate) struct Alone {
    /// By namespace and address, what each Service has there; the first one's counts.
    claims: HashMap<(String, SocketAddr), BTreeMap<String, Claim>>,
    /// What each Service has.
    of_service: HashMap<ObjectName, Vec<SocketAddr>>,
}

impl Alone {
    /// Takes a Service as it is now, by the services that it stands for: none when it is gone, or has an address of its own.
    pub(crate) fn take(&mut self, name: &ObjectName, now: &[Service], domain: &str, changes: &mut Vec<Change>) {
        let (namespace, service) = name;
        let mut fresh: BTreeMap<SocketAddr, Claim> = BTreeMap::new();
        for of in now.iter().filter(|one| one.virtual_addresses.is_empty()) {
            for endpoint in of.endpoints.iter().filter(|one| !one.identity.is_empty()) {
                let claim = Claim { endpoint: endpoint.clone(), http2: of.http2 };
                // Two ports of a Service may lead to one of a pod.
                fresh.entry(endpoint.address).or_insert(claim);
            }
        }
        let before = self.of_service.remove(name).unwrap_or_default();
        let gone = before.into_iter().filter(|address| !fresh.contains_key(address)).map(|address| (address, None));
        let gone: Vec<_> = gone.collect();
        if !fresh.is_empty() {
            self.of_service.insert(name.clone(), fresh.keys().copied().collect());
        }
        for (address, claim) in gone.into_iter().chain(fresh.into_iter().map(|(address, claim)| (address, Some(claim))))
        {
            let key = (namespace.clone(), address);
            let claims = self.claims.entry(key.clone()).or_default();
            let told = claims.values().next().cloned();
            match claim {
                Some(claim) => drop(claims.insert(service.clone(), claim)),
                None => drop(claims.remove(service)),
            }
            match claims.values().next() {
                None => {
                    self.claims.remove(&key);
                    changes.push(Change::Removed(pod_name(namespace, address, domain)));
                }
                Some(claim) if told.as_ref() != Some(claim) => changes.push(Change::Set(Service {
                    name: pod_name(namespace, address, domain),
                    virtual_addresses: vec![address],
                    http2: claim.http2,
                    endpoints: vec![claim.endpoint.clone()],
                })),
                Some(_) => {}
            }
        }
    }
}

/// As the cluster's DNS names a pod by its address: `10-0-0-7.shop.pod.cluster.local:5432`.
fn pod_name(namespace: &str, address: SocketAddr, domain: &str) -> String {
    let ip = address.ip().to_string().replace(['.', ':'], "-");
    format!("{}.{namespace}.pod.{domain}:{}", ip.trim_matches('-'), address.port())
}
