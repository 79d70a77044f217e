//! `Cluster`: a named set of endpoints, which an assignment of the same or another name lists.
//!
//! In: a cluster's name and what else a client has to know of it. Out: protobuf that Envoy takes too; the same again.
//! Promise: of a cluster whose endpoints come in another way nothing is read but its name.

use std::net::SocketAddr;

use super::metadata::{OUTRIGGER, as_text, as_texts, of_filter, put_entry, put_text, put_texts};
use super::{inner, inner_text};
use crate::protobuf::{Value, fields, put_bytes, put_number};

const SPIFFE_IDS: &str = "spiffeIds";
const VIRTUAL_ADDRESSES: &str = "virtualAddresses";
const PROTOCOL: &str = "protocol";
const HTTP2: &str = "http2";
/// How Envoy is told that endpoints want HTTP/2.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Time for Envoy to connect, in seconds; ours stands in the config.
const CONNECT_TIMEOUT: u64 = 2;

/// A cluster whose endpoints are asked for by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovered<'a> {
    /// Its name.
    pub name: &'a str,
    /// The name of its assignment.
    pub assignment: &'a str,
    /// Identities that its endpoints may have; empty for plain text.
    pub spiffe_ids: Vec<&'a str>,
    /// Addresses that stand for it, such as a Service's.
    pub virtual_addresses: Vec<SocketAddr>,
    /// Its endpoints want HTTP/2, with prior knowledge.
    pub http2: bool,
}

/// Writes it, as one whose endpoints come over the same stream.
pub fn write_cluster(cluster: &Discovered<'_>, out: &mut Vec<u8>) {
    put_bytes(out, 1, cluster.name.as_bytes());
    // EDS
    put_number(out, 2, 3);
    let (mut source, mut eds) = (Vec::new(), Vec::new());
    put_bytes(&mut source, 3, &[]);
    // V3
    put_number(&mut source, 6, 2);
    put_bytes(&mut eds, 1, &source);
    put_bytes(&mut eds, 2, cluster.assignment.as_bytes());
    put_bytes(out, 3, &eds);
    let mut timeout = Vec::new();
    put_number(&mut timeout, 1, CONNECT_TIMEOUT);
    put_bytes(out, 4, &timeout);
    let mut structure = Vec::new();
    if !cluster.spiffe_ids.is_empty() {
        put_texts(&mut structure, SPIFFE_IDS, cluster.spiffe_ids.iter());
    }
    if !cluster.virtual_addresses.is_empty() {
        put_texts(&mut structure, VIRTUAL_ADDRESSES, cluster.virtual_addresses.iter().map(ToString::to_string));
    }
    if cluster.http2 {
        put_text(&mut structure, PROTOCOL, HTTP2);
    }
    if !structure.is_empty() {
        let mut metadata = Vec::new();
        put_entry(&mut metadata, OUTRIGGER, &structure);
        put_bytes(out, 25, &metadata);
    }
    if cluster.http2 {
        let (mut explicit, mut options, mut any, mut entry) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        put_bytes(&mut explicit, 2, &[]);
        put_bytes(&mut options, 3, &explicit);
        put_bytes(&mut any, 1, format!("type.googleapis.com/{HTTP_OPTIONS}").as_bytes());
        put_bytes(&mut any, 2, &options);
        put_bytes(&mut entry, 1, HTTP_OPTIONS.as_bytes());
        put_bytes(&mut entry, 2, &any);
        put_bytes(out, 36, &entry);
    }
}

/// Reads one; `None` when its endpoints do not come from an assignment.
pub fn read_cluster(message: &[u8]) -> Option<Discovered<'_>> {
    let eds = fields(message).any(|field| field == (2, Value::Number(3)));
    let name = Some(inner_text(message, 1)).filter(|name| eds && !name.is_empty())?;
    let assignment = Some(inner_text(inner(message, 3), 2)).filter(|name| !name.is_empty()).unwrap_or(name);
    let mut cluster = Discovered { name, assignment, ..Discovered::default() };
    for (name, value) in of_filter(inner(message, 25), OUTRIGGER) {
        match name {
            SPIFFE_IDS => cluster.spiffe_ids = as_texts(value).filter(|id| !id.is_empty()).collect(),
            VIRTUAL_ADDRESSES => {
                cluster.virtual_addresses = as_texts(value).filter_map(|address| address.parse().ok()).collect();
            }
            PROTOCOL => cluster.http2 = as_text(value) == HTTP2,
            _ => {}
        }
    }
    Some(cluster)
}
