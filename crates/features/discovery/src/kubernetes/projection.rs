//! What a Service, its EndpointSlices and their pods mean: services as proxies are told of them.
//!
//! In: what is kept of objects. Out: one service for each port. Promise: the same objects make the same services, in whatever order
//! they came; objects that lack something, or hold what nobody expects, make fewer endpoints, never an error. No I/O.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use outrigger_kubernetes::names::{MTLS_ANNOTATION, SIDECAR};
use serde_json::Value;

use super::handover::{HandOver, Stage};
use crate::feed::{Service, ServiceEndpoint};

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The sidecar's own ports, metrics and health, where it speaks plain text whatever the application's do.
const OWN_PORTS: [u16; 2] = [15020, 15021];

/// What is kept of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptService {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<KeptPort>,
}

/// A port of a Service, or of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeptPort {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
}

/// What is kept of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptSlice {
    pub(crate) service: String,
    pub(crate) ports: Vec<KeptPort>,
    pub(crate) endpoints: Vec<KeptEndpoint>,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeptEndpoint {
    pub(crate) address: Option<IpAddr>,
    pub(crate) pod: String,
    pub(crate) zone: String,
    /// It takes new requests.
    pub(crate) ready: bool,
    /// It still takes requests, though it is about to end.
    pub(crate) serving: bool,
}

/// What is kept of a pod whose sidecar takes mTLS, or is being replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptPod {
    /// Whose identity its sidecar shows; none where it takes no mTLS.
    pub(crate) service_account: Option<String>,
    pub(crate) hand_over: Option<Box<HandOver>>,
    /// The ports that it sees; absent means all.
    pub(crate) seen: Option<Box<Seen>>,
}

/// Which ports of a pod its sidecar sees, by the annotations that say so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Only these, if there are any.
    only: Vec<(u16, u16)>,
    never: Vec<(u16, u16)>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn port(value: &Value) -> Option<KeptPort> {
    let port = u16::try_from(value["port"].as_u64()?).ok().filter(|port| *port > 0)?;
    let protocol = value["protocol"].as_str().unwrap_or("TCP");
    let application = value["appProtocol"].as_str().unwrap_or_default().to_owned();
    (protocol == "TCP").then(|| KeptPort { name: text(&value["name"]), port, protocol: application })
}

impl KeptService {
    /// What to keep of a Service; nothing of one that leads out of the cluster by a name.
    pub fn of(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        if spec["type"] == "ExternalName" {
            return None;
        }
        let given = list(&spec["clusterIPs"]).iter().chain([&spec["clusterIP"]]);
        let mut addresses: Vec<IpAddr> = given.filter_map(|one| one.as_str()?.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let ports: Vec<KeptPort> = list(&spec["ports"]).iter().filter_map(port).collect();
        (!ports.is_empty()).then_some(Self { addresses, ports })
    }
}

impl KeptSlice {
    /// What to keep of an EndpointSlice.
    pub fn of(object: &Value) -> Option<Self> {
        let service = text(&object["metadata"]["labels"][SERVICE_NAME]);
        if service.is_empty() || object["addressType"] == "FQDN" {
            return None;
        }
        let endpoints = list(&object["endpoints"]).iter().map(|one| {
            let condition = |name: &str, absent: bool| one["conditions"][name].as_bool().unwrap_or(absent);
            let ready = condition("ready", true);
            KeptEndpoint {
                // The API says that only the first one counts.
                address: list(&one["addresses"]).first().and_then(|one| one.as_str()?.parse().ok()),
                pod: if one["targetRef"]["kind"] == "Pod" { text(&one["targetRef"]["name"]) } else { String::new() },
                zone: text(&one["zone"]),
                ready,
                serving: condition("serving", ready),
            }
        });
        // Of one that is not ready its pod may say why.
        let of_use = |one: &KeptEndpoint| one.ready || one.serving || !one.pod.is_empty();
        let endpoints = endpoints.filter(|one| one.address.is_some() && of_use(one)).collect();
        Some(Self { service, ports: list(&object["ports"]).iter().filter_map(port).collect(), endpoints })
    }

    /// The pods that it names.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|one| one.pod.as_str()).filter(|pod| !pod.is_empty())
    }
}

impl KeptPod {
    /// What to keep of a pod; nothing of one without a sidecar of ours.
    pub fn of(object: &Value) -> Option<Self> {
        let mut containers = list(&object["spec"]["initContainers"]).iter().chain(list(&object["spec"]["containers"]));
        if !containers.any(|container| container["name"] == SIDECAR) {
            return None;
        }
        let hand_over = HandOver::of(object).map(Box::new);
        let annotation = |key: &str| object["metadata"]["annotations"][key].as_str();
        if !matches!(annotation(MTLS_ANNOTATION), Some("permissive" | "strict")) {
            return hand_over.is_some().then(|| Self { hand_over, ..Self::default() });
        }
        let service_account = match object["spec"]["serviceAccountName"].as_str() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => "default".to_owned(),
        };
        let ranges = |key: &str| annotation(key).map(ranges).unwrap_or_default();
        let seen = Seen {
            only: ranges("outrigger.dev/include-inbound-ports"),
            never: ranges("outrigger.dev/exclude-inbound-ports"),
        };
        let seen = (seen != Seen::default()).then(|| Box::new(seen));
        Some(Self { service_account: Some(service_account), hand_over, seen })
    }

    /// Whether its sidecar takes mTLS at a port.
    fn sees(&self, port: u16) -> bool {
        let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
        !OWN_PORTS.contains(&port)
            && self
                .seen
                .as_ref()
                .is_none_or(|seen| (seen.only.is_empty() || within(&seen.only)) && !within(&seen.never))
    }
}

/// Ports and ranges, separated by commas; what is neither is passed over, for the injector would have refused it.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    text.split(',').filter_map(range).collect()
}

/// The services that a Service stands for, one for each port; none when there is no such Service. `pod` finds what is kept of a pod of
/// its namespace, and whether its hand-over is believed.
pub(crate) fn project<'a>(
    (namespace, name): (&str, &str),
    service: Option<&KeptService>,
    slices: &[&KeptSlice],
    pod: impl Fn(&str) -> Option<(&'a KeptPod, bool)>,
    (domain, trust_domain): (&str, &str),
) -> Vec<Service> {
    let Some(service) = service else { return Vec::new() };
    let named = |of: &KeptPort| format!("{name}.{namespace}.svc.{domain}:{}", of.port);
    let services = service.ports.iter().map(|of| {
        // By address, so that one that two slices have is told once.
        let mut endpoints: BTreeMap<SocketAddr, ServiceEndpoint> = BTreeMap::new();
        for slice in slices {
            let Some(target) = slice.ports.iter().find(|one| one.name == of.name) else { continue };
            for one in &slice.endpoints {
                let Some(ip) = one.address else { continue };
                let pod = pod(&one.pod);
                let stage = pod.filter(|(_, believed)| *believed).and_then(|(pod, _)| pod.hand_over.as_ref());
                let stage = stage.map(|hand_over| hand_over.stage);
                if !one.ready && !one.serving && stage.is_none() {
                    continue;
                }
                let identity = pod
                    .filter(|(pod, _)| pod.sees(target.port))
                    .and_then(|(pod, _)| pod.service_account.as_ref())
                    .map(|account| format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}"));
                let told = ServiceEndpoint {
                    zone: one.zone.clone(),
                    // While a sidecar is replaced others are called, as long as there are enough of them: it would answer, but only
                    // when the next one is there.
                    healthy: one.ready && stage != Some(Stage::Kept),
                    identity: identity.unwrap_or_default(),
                    ..ServiceEndpoint::new(SocketAddr::new(ip, target.port))
                };
                let kept = endpoints.entry(told.address).or_insert_with(|| told.clone());
                // Two slices may have an endpoint while it moves from one to the other.
                kept.healthy |= told.healthy;
                if kept.identity.is_empty() {
                    kept.identity = told.identity;
                }
                if kept.zone.is_empty() {
                    kept.zone = told.zone;
                }
            }
        }
        Service {
            name: named(of),
            virtual_addresses: service.addresses.iter().map(|ip| SocketAddr::new(*ip, of.port)).collect(),
            http2: is_http2(of),
            endpoints: endpoints.into_values().collect(),
        }
    });
    services.collect()
}

/// Whether a port's application wants HTTP/2, as `appProtocol` or the port's name says.
fn is_http2(port: &KeptPort) -> bool {
    if !port.protocol.is_empty() {
        return matches!(port.protocol.as_str(), "kubernetes.io/h2c" | "grpc" | "http2" | "h2c");
    }
    ["grpc", "http2", "h2c"]
        .iter()
        .any(|kind| port.name.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
}
