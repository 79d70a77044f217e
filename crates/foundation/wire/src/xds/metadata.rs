//! Metadata of clusters and endpoints: by a filter's name, a structure of names and values.
//!
//! In: texts and lists of texts. Out: protobuf's `Struct`. Promise: what is neither is passed over.

use super::{inner, inner_text};
use crate::protobuf::{Value, fields, put_bytes};

/// What Outrigger says of clusters and endpoints that Envoy's messages have no field for.
pub(super) const OUTRIGGER: &str = "outrigger.dev";
/// Where Envoy's subsets find labels.
pub(super) const LABELS: &str = "envoy.lb";

/// Writes the entry of a text.
pub(super) fn put_text(out: &mut Vec<u8>, name: &str, value: &str) {
    let mut wrapped = Vec::with_capacity(value.len() + 4);
    put_bytes(&mut wrapped, 3, value.as_bytes());
    put_entry(out, name, &wrapped);
}

/// Writes the entry of a list of texts.
pub(super) fn put_texts(out: &mut Vec<u8>, name: &str, values: impl Iterator<Item = impl AsRef<str>>) {
    let (mut list, mut one) = (Vec::new(), Vec::new());
    for value in values {
        one.clear();
        put_bytes(&mut one, 3, value.as_ref().as_bytes());
        put_bytes(&mut list, 1, &one);
    }
    let mut wrapped = Vec::with_capacity(list.len() + 4);
    put_bytes(&mut wrapped, 6, &list);
    put_entry(out, name, &wrapped);
}

/// An entry of a map: its key and its value.
pub(super) fn put_entry(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let mut entry = Vec::with_capacity(name.len() + value.len() + 8);
    put_bytes(&mut entry, 1, name.as_bytes());
    put_bytes(&mut entry, 2, value);
    put_bytes(out, 1, &entry);
}

/// The entries that `Metadata` holds for a filter.
pub(super) fn of_filter<'a>(metadata: &'a [u8], filter: &'a str) -> impl Iterator<Item = (&'a str, &'a [u8])> {
    entries(metadata).filter(move |(name, _)| *name == filter).flat_map(|(_, structure)| entries(structure))
}

fn entries(message: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    fields(message).filter_map(|(field, value)| match value {
        Value::Bytes(entry) if field == 1 => Some((inner_text(entry, 1), inner(entry, 2))),
        _ => None,
    })
}

/// A value that is a text; anything else is an empty one.
pub(super) fn as_text(value: &[u8]) -> &str {
    inner_text(value, 3)
}

/// A value that is a list of texts.
pub(super) fn as_texts(value: &[u8]) -> impl Iterator<Item = &str> {
    fields(inner(value, 6)).filter_map(|(field, value)| match value {
        Value::Bytes(one) if field == 1 => Some(as_text(one)),
        _ => None,
    })
}
