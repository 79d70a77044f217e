//! `proxy.clusters[].endpoints`: whom a cluster's requests go to.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{HostPort, Name};

/// An endpoint of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// `HOST:PORT`; a DNS name stands for all its addresses, each an endpoint of its own.
    pub address: HostPort,
    /// Its part of the requests beside other endpoints': twice the weight, twice the requests. 0 gives it none.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 0, max = 10_000))]
    pub weight: u32,
    /// 0 is used first; a higher one as far as those before it have too few healthy endpoints.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 127))]
    pub priority: u32,
    /// Where it runs, such as `eu-central-1a`; compared with `proxy.zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// What a cluster's `loadBalancing.subset` selects by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl From<HostPort> for Endpoint {
    fn from(address: HostPort) -> Self {
        Self { address, weight: 1, priority: 0, zone: None, labels: BTreeMap::new() }
    }
}

impl Endpoint {
    /// The bounds that the schema tells of its numbers.
    pub(crate) const MOST_WEIGHT: u32 = 10_000;
    pub(crate) const LAST_PRIORITY: u32 = 127;

    /// Whether they are equal; what differs most often is looked at first, and labels only where there are any.
    pub fn is_same(&self, other: &Self) -> bool {
        let numbers = |one: &Self| (one.weight, one.priority, one.address.port);
        numbers(self) == numbers(other)
            && self.address.host == other.address.host
            && self.zone == other.zone
            && (self.labels.is_empty() && other.labels.is_empty() || self.labels == other.labels)
    }

    /// As a file would write it.
    pub(crate) fn written(&self) -> impl Serialize + use<'_> {
        Written(self)
    }
}

fn one() -> u32 {
    1
}
fn is_one(number: &u32) -> bool {
    *number == 1
}
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// All endpoints of a cluster. There may be thousands, so copies of a config share them.
#[derive(Debug, Clone, Default)]
pub struct Endpoints(Arc<Vec<Endpoint>>);

impl Endpoints {
    /// Whether both are the very same list.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        endpoints.into_iter().collect::<Vec<_>>().into()
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    /// Without a copy of them, where there is no room to spare.
    fn from(mut endpoints: Vec<Endpoint>) -> Self {
        endpoints.shrink_to_fit();
        Self(Arc::new(endpoints))
    }
}

impl Deref for Endpoints {
    type Target = [Endpoint];
    fn deref(&self) -> &[Endpoint] {
        &self.0
    }
}

impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, another): (&Endpoint, &Endpoint)| one.is_same(another);
        self.is_same(other) || (self.len() == other.len() && self.iter().zip(other.iter()).all(same))
    }
}

impl Serialize for Endpoints {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Written))
    }
}

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let endpoints: Vec<Read> = Vec::deserialize(deserializer)?;
        Ok(endpoints.into_iter().map(|endpoint| endpoint.0).collect())
    }
}

impl JsonSchema for Endpoints {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Endpoints".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        // The mapping first: the reference lists its keys.
        let (full, short) = (generator.subschema_for::<Endpoint>(), generator.subschema_for::<HostPort>());
        json_schema!({ "type": "array", "items": { "anyOf": [full, short] } })
    }
}

/// As it is written: `HOST:PORT` when there is no more to say.
struct Written<'a>(&'a Endpoint);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Endpoint { address, weight, priority, zone, labels } = self.0;
        if (*weight, *priority) == (1, 0) && zone.is_none() && labels.is_empty() {
            return address.serialize(serializer);
        }
        self.0.serialize(serializer)
    }
}

/// As it may be read: a text or a mapping.
struct Read(Endpoint);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Read;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`HOST:PORT`, or a mapping")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Read, E> {
                text.parse::<HostPort>().map(|address| Read(address.into())).map_err(E::custom)
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Read, A::Error> {
                Endpoint::deserialize(MapAccessDeserializer::new(map)).map(Read)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
