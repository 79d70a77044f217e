//! What a request must have beside host and path.
//!
//! Promise: values are compared as they came, piece by piece, so that nothing is copied: a
//! repeated field as if its values were joined by commas ([RFC 9110], 5.3), a parameter of
//! the query with its escapes undone. Of a repeated parameter the first counts.
//!
//! [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110

use outrigger_config::{HeaderMatch, QueryParamMatch, SpiffePattern, ValueMatchType};
use outrigger_wire::head::{FieldId, Head};
use outrigger_wire::pattern::{Pattern, PatternError};

use super::Request;

/// All that must hold.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    pub(crate) method: Option<Box<str>>,
    /// It must be a gRPC call.
    pub(crate) grpc: bool,
    /// The method of a call, whatever the service.
    pub(crate) grpc_method: Option<Box<str>>,
    pub(crate) headers: Box<[FieldCondition]>,
    pub(crate) query: Box<[ParameterCondition]>,
    /// Any of these must have sent it; empty means all.
    pub(crate) peers: Box<[SpiffePattern]>,
}

/// The first thing that does not hold.
#[derive(Debug)]
pub(crate) enum Unmet<'c> {
    Method(&'c str),
    Grpc,
    GrpcMethod(&'c str),
    Field(&'c FieldCondition),
    Parameter(&'c ParameterCondition),
    Peer,
}

impl Conditions {
    pub(crate) fn is_empty(&self) -> bool {
        self.method.is_none()
            && !self.grpc
            && self.grpc_method.is_none()
            && self.headers.is_empty()
            && self.query.is_empty()
            && self.peers.is_empty()
    }

    /// What of it does not hold; `None` when all does.
    pub(crate) fn unmet(&self, request: &Request<'_>) -> Option<Unmet<'_>> {
        if let Some(method) = &self.method
            && request.head.method_text() != &**method
        {
            return Some(Unmet::Method(method));
        }
        if self.grpc && !is_grpc(request.head) {
            return Some(Unmet::Grpc);
        }
        if let Some(method) = &self.grpc_method
            && request.path.rsplit_once('/').is_none_or(|(_, called)| called != &**method)
        {
            return Some(Unmet::GrpcMethod(method));
        }
        if let Some(field) = self.headers.iter().find(|field| !field.holds(request.head)) {
            return Some(Unmet::Field(field));
        }
        if let Some(parameter) = self.query.iter().find(|parameter| !parameter.holds(request.query)) {
            return Some(Unmet::Parameter(parameter));
        }
        if !self.peers.is_empty()
            && !request.peer.is_some_and(|peer| self.peers.iter().any(|pattern| pattern.stands_for(peer)))
        {
            return Some(Unmet::Peer);
        }
        None
    }
}

/// Whether a message is a gRPC call.
fn is_grpc(head: &Head) -> bool {
    head.get(FieldId::ContentType).is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// What a value must be.
#[derive(Debug)]
pub(crate) enum Expected {
    Exact(Box<str>),
    Pattern(Box<Pattern>),
}

impl Expected {
    fn new(kind: ValueMatchType, value: &str) -> Result<Self, PatternError> {
        match kind {
            ValueMatchType::Exact => Ok(Self::Exact(value.into())),
            ValueMatchType::RegularExpression => Pattern::new(value).map(|pattern| Self::Pattern(Box::new(pattern))),
        }
    }

    fn is(&self, value: impl Iterator<Item = u8>) -> bool {
        match self {
            Self::Exact(expected) => value.eq(expected.bytes()),
            Self::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "`{value}`"),
            Self::Pattern(pattern) => write!(f, "like `{}`", pattern.as_str()),
        }
    }
}

/// A field the request must have.
#[derive(Debug)]
pub(crate) struct FieldCondition {
    pub(crate) name: Box<str>,
    id: FieldId,
    pub(crate) expected: Expected,
}

impl FieldCondition {
    pub(crate) fn new(config: &HeaderMatch) -> Result<Self, PatternError> {
        let name = config.name.to_ascii_lowercase();
        Ok(Self {
            id: FieldId::of(name.as_bytes()),
            name: name.into(),
            expected: Expected::new(config.kind, config.value.trim())?,
        })
    }

    pub(crate) fn holds(&self, head: &Head) -> bool {
        if self.id != FieldId::Other {
            return self.id_holds(head.get_all(self.id));
        }
        self.id_holds(head.get_all_named(&self.name))
    }

    fn id_holds<'h>(&self, mut values: impl Iterator<Item = &'h [u8]>) -> bool {
        let Some(first) = values.next() else { return false };
        match values.next() {
            None => match &self.expected {
                Expected::Exact(expected) => first == expected.as_bytes(),
                Expected::Pattern(pattern) => pattern.is_match(first.iter().copied()),
            },
            Some(second) => {
                let others = std::iter::once(second).chain(values);
                let joined = others.flat_map(|value| std::iter::once(b',').chain(value.iter().copied()));
                self.expected.is(first.iter().copied().chain(joined))
            }
        }
    }
}

/// A parameter the query must have.
#[derive(Debug)]
pub(crate) struct ParameterCondition {
    pub(crate) name: Box<str>,
    pub(crate) expected: Expected,
}

impl ParameterCondition {
    pub(crate) fn new(config: &QueryParamMatch) -> Result<Self, PatternError> {
        let expected = Expected::new(config.kind, &config.value)?;
        Ok(Self { name: config.name.as_str().into(), expected })
    }

    fn holds(&self, query: &str) -> bool {
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let first = pairs.find(|(name, _)| Unescaped(name.as_bytes()).eq(self.name.bytes()));
        first.is_some_and(|(_, value)| self.expected.is(Unescaped(value.as_bytes())))
    }
}

/// Bytes with their escapes (`%20`) undone; what is no escape stays, and so does `+`.
struct Unescaped<'a>(&'a [u8]);

impl Iterator for Unescaped<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let (first, rest) = self.0.split_first()?;
        if *first == b'%'
            && let [high, low, behind @ ..] = rest
            && let Some((high, low)) = digit(*high).zip(digit(*low))
        {
            self.0 = behind;
            return Some(high << 4 | low);
        }
        self.0 = rest;
        Some(*first)
    }
}
