//! Envoy's discovery service, incremental and aggregated ([xDS], delta ADS, v3): its messages.
//!
//! In: what is asked for, resources; a message's bytes. Out: bytes; what they say. Promise: fields of other versions are
//! passed over, a message that breaks off says as much as it holds, nothing panics, and what is read borrows from the
//! message, so that it takes no more room than came.
//!
//! [xDS]: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol

mod assignment;
mod cluster;
mod metadata;

pub use assignment::{Assigned, read_assignment, write_assignment};
pub use cluster::{Discovered, read_cluster, write_cluster};

use crate::protobuf::{Value, fields, put_bytes, put_number};

/// The method of delta ADS.
pub const DELTA_ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// The type of clusters.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// The type of clusters' endpoints.
pub const ASSIGNMENT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// A `DeltaDiscoveryRequest`: what a client wants to know of one type, and what it has taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Who asks (`node.id`).
    pub node: &'a str,
    /// The type.
    pub type_url: &'a str,
    /// Names to be told of from now on; `*` means all.
    pub subscribe: Vec<&'a str>,
    /// Names to be told of no longer.
    pub unsubscribe: Vec<&'a str>,
    /// Versions that the client has from before it connected, by name.
    pub versions: Vec<(&'a str, &'a str)>,
    /// The answer that this one is about; empty for none.
    pub nonce: &'a str,
    /// Why that answer was not taken.
    pub error: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// Reads one.
    pub fn read(message: &'a [u8]) -> Self {
        let mut read = Self::default();
        for (field, value) in fields(message) {
            let Value::Bytes(bytes) = value else { continue };
            match field {
                1 => read.node = inner_text(bytes, 1),
                2 => read.type_url = text(bytes),
                3 => read.subscribe.push(text(bytes)),
                4 => read.unsubscribe.push(text(bytes)),
                5 => read.versions.push((inner_text(bytes, 1), inner_text(bytes, 2))),
                6 => read.nonce = text(bytes),
                7 => read.error = Some(inner_text(bytes, 2)),
                _ => {}
            }
        }
        read
    }

    /// Writes it.
    pub fn write(&self, out: &mut Vec<u8>) {
        if !self.node.is_empty() {
            let mut node = Vec::new();
            put_bytes(&mut node, 1, self.node.as_bytes());
            put_bytes(&mut node, 6, b"outrigger");
            put_bytes(out, 1, &node);
        }
        put_bytes(out, 2, self.type_url.as_bytes());
        self.subscribe.iter().for_each(|name| put_bytes(out, 3, name.as_bytes()));
        self.unsubscribe.iter().for_each(|name| put_bytes(out, 4, name.as_bytes()));
        let mut entry = Vec::new();
        for (name, version) in &self.versions {
            entry.clear();
            put_bytes(&mut entry, 1, name.as_bytes());
            put_bytes(&mut entry, 2, version.as_bytes());
            put_bytes(out, 5, &entry);
        }
        if !self.nonce.is_empty() {
            put_bytes(out, 6, self.nonce.as_bytes());
        }
        if let Some(error) = self.error {
            let mut status = Vec::new();
            // INVALID_ARGUMENT
            put_number(&mut status, 1, 3);
            put_bytes(&mut status, 2, error.as_bytes());
            put_bytes(out, 7, &status);
        }
    }
}

/// A resource in an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The type of what it holds.
    pub type_url: &'a str,
    /// What it holds.
    pub value: &'a [u8],
}

impl<'a> Resource<'a> {
    /// Reads one, without the field that it is in.
    pub fn read(message: &'a [u8]) -> Self {
        let mut read = Self::default();
        for (field, value) in fields(message) {
            match (field, value) {
                (1, Value::Bytes(version)) => read.version = text(version),
                (2, Value::Bytes(any)) => {
                    read.type_url = inner_text(any, 1);
                    read.value = inner(any, 2);
                }
                (3, Value::Bytes(name)) => read.name = text(name),
                _ => {}
            }
        }
        read
    }

    /// Writes it as the field of an answer: what many answers hold is written once.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut any = Vec::with_capacity(self.type_url.len() + self.value.len() + 16);
        put_bytes(&mut any, 1, self.type_url.as_bytes());
        put_bytes(&mut any, 2, self.value);
        let mut resource = Vec::with_capacity(any.len() + self.name.len() + self.version.len() + 16);
        put_bytes(&mut resource, 1, self.version.as_bytes());
        put_bytes(&mut resource, 2, &any);
        put_bytes(&mut resource, 3, self.name.as_bytes());
        put_bytes(out, 2, &resource);
    }
}

/// A `DeltaDiscoveryResponse`: what is new of one type, and what is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response<'a> {
    /// The type.
    pub type_url: &'a str,
    /// Says which answer this is.
    pub nonce: &'a str,
    /// New ones, and those that are different now.
    pub resources: Vec<Resource<'a>>,
    /// Names of what is gone, or never was.
    pub removed: Vec<&'a str>,
}

impl<'a> Response<'a> {
    /// Reads one.
    pub fn read(message: &'a [u8]) -> Self {
        let mut read = Self::default();
        for (field, value) in fields(message) {
            let Value::Bytes(bytes) = value else { continue };
            match field {
                2 => read.resources.push(Resource::read(bytes)),
                4 => read.type_url = text(bytes),
                5 => read.nonce = text(bytes),
                6 => read.removed.push(text(bytes)),
                _ => {}
            }
        }
        read
    }

    /// Writes everything but the resources, which are fields that may stand before or behind it.
    pub fn write_rest(&self, out: &mut Vec<u8>) {
        put_bytes(out, 4, self.type_url.as_bytes());
        put_bytes(out, 5, self.nonce.as_bytes());
        self.removed.iter().for_each(|name| put_bytes(out, 6, name.as_bytes()));
    }
}

/// A text; one that is no UTF-8 is none.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

/// A field of a message in a field; the last one counts.
fn inner(message: &[u8], field: u64) -> &[u8] {
    let found = fields(message).filter_map(|(number, value)| match value {
        Value::Bytes(bytes) if number == field => Some(bytes),
        _ => None,
    });
    found.last().unwrap_or_default()
}

fn inner_text(message: &[u8], field: u64) -> &str {
    text(inner(message, field))
}

#[cfg(test)]
mod tests;
