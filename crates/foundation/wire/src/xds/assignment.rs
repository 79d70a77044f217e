//! `ClusterLoadAssignment`: the endpoints of a cluster.
//!
//! In: endpoints. Out: protobuf, grouped by zone and priority as Envoy wants them; endpoints again. Promise: an endpoint
//! whose address is no IP address is left out, a weight is at least 1.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::metadata::{LABELS, OUTRIGGER, as_text, of_filter, put_entry, put_text};
use super::{inner, inner_text};
use crate::protobuf::{Value, fields, put_bytes, put_number};

const IDENTITY: &str = "spiffeId";

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned<'a> {
    /// Where it is.
    pub address: SocketAddr,
    /// Its part of the requests beside others'.
    pub weight: u32,
    /// 0 is used first.
    pub priority: u32,
    /// Where it runs; empty when nobody knows.
    pub zone: &'a str,
    /// Whether it can serve.
    pub healthy: bool,
    /// The SPIFFE ID in its certificate; empty for one that takes plain text.
    pub identity: &'a str,
}

/// Writes the endpoints of a cluster, with labels for each.
pub fn write_assignment<'a, L>(cluster: &str, endpoints: impl Iterator<Item = (Assigned<'a>, L)>, out: &mut Vec<u8>)
where
    L: Iterator<Item = (&'a str, &'a str)>,
{
    put_bytes(out, 1, cluster.as_bytes());
    let mut localities: BTreeMap<(u32, &str), Vec<u8>> = BTreeMap::new();
    let mut one = Vec::new();
    for (endpoint, labels) in endpoints {
        one.clear();
        write_endpoint(&endpoint, labels, &mut one);
        put_bytes(localities.entry((endpoint.priority, endpoint.zone)).or_default(), 2, &one);
    }
    for ((priority, zone), mut endpoints) in localities {
        if !zone.is_empty() {
            let mut locality = Vec::new();
            put_bytes(&mut locality, 2, zone.as_bytes());
            put_bytes(&mut endpoints, 1, &locality);
        }
        if priority > 0 {
            put_number(&mut endpoints, 5, priority.into());
        }
        put_bytes(out, 2, &endpoints);
    }
}

fn write_endpoint<'a>(endpoint: &Assigned<'a>, labels: impl Iterator<Item = (&'a str, &'a str)>, out: &mut Vec<u8>) {
    let (mut socket, mut address, mut place) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut socket, 2, endpoint.address.ip().to_string().as_bytes());
    put_number(&mut socket, 3, endpoint.address.port().into());
    put_bytes(&mut address, 1, &socket);
    put_bytes(&mut place, 1, &address);
    put_bytes(out, 1, &place);
    // HEALTHY, UNHEALTHY
    put_number(out, 2, if endpoint.healthy { 1 } else { 2 });
    let (mut metadata, mut structure) = (Vec::new(), Vec::new());
    if !endpoint.identity.is_empty() {
        put_text(&mut structure, IDENTITY, endpoint.identity);
        put_entry(&mut metadata, OUTRIGGER, &structure);
    }
    structure.clear();
    labels.for_each(|(name, value)| put_text(&mut structure, name, value));
    if !structure.is_empty() {
        put_entry(&mut metadata, LABELS, &structure);
    }
    if !metadata.is_empty() {
        put_bytes(out, 3, &metadata);
    }
    if endpoint.weight != 1 {
        let mut weight = Vec::new();
        put_number(&mut weight, 1, endpoint.weight.max(1).into());
        put_bytes(out, 4, &weight);
    }
}

/// Reads the endpoints of a cluster, and calls `each` with every one and its labels. Gives the cluster's name.
pub fn read_assignment<'a>(
    message: &'a [u8],
    mut each: impl FnMut(Assigned<'a>, &mut dyn Iterator<Item = (&'a str, &'a str)>),
) -> &'a str {
    for (field, value) in fields(message) {
        let (2, Value::Bytes(locality)) = (field, value) else { continue };
        let place = inner(locality, 1);
        let zone = Some(inner_text(place, 2)).filter(|zone| !zone.is_empty()).unwrap_or_else(|| inner_text(place, 1));
        let priority = fields(locality).find_map(|field| match field {
            (5, Value::Number(priority)) => u32::try_from(priority).ok(),
            _ => None,
        });
        for (field, value) in fields(locality) {
            let (2, Value::Bytes(one)) = (field, value) else { continue };
            if let Some((endpoint, metadata)) = read_endpoint(one, zone, priority.unwrap_or(0)) {
                let labels = of_filter(metadata, LABELS).map(|(name, value)| (name, as_text(value)));
                each(endpoint, &mut labels.filter(|(_, value)| !value.is_empty()));
            }
        }
    }
    inner_text(message, 1)
}

fn read_endpoint<'a>(message: &'a [u8], zone: &'a str, priority: u32) -> Option<(Assigned<'a>, &'a [u8])> {
    let socket = inner(inner(inner(message, 1), 1), 1);
    let ip: IpAddr = inner_text(socket, 2).parse().ok()?;
    let number = |message: &[u8], wanted: u64| {
        fields(message).find_map(|(field, value)| match value {
            Value::Number(number) if field == wanted => Some(number),
            _ => None,
        })
    };
    let port = u16::try_from(number(socket, 3)?).ok().filter(|port| *port > 0)?;
    // UNHEALTHY, DRAINING, TIMEOUT
    let healthy = !matches!(number(message, 2), Some(2..=4));
    let weight = number(inner(message, 4), 1).unwrap_or(1);
    let metadata = inner(message, 3);
    let mut said = of_filter(metadata, OUTRIGGER);
    let identity = said.find(|(name, _)| *name == IDENTITY).map(|(_, value)| as_text(value)).unwrap_or_default();
    let weight = u32::try_from(weight).unwrap_or(u32::MAX).max(1);
    Some((Assigned { address: SocketAddr::new(ip, port), weight, priority, zone, healthy, identity }, metadata))
}
