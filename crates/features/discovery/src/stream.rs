//! One proxy's stream: what it asked for, and what it was told ([xDS], incremental).
//!
//! In: its requests, notes that names changed. Out: answers. Promise: an answer holds what changed of what was asked
//! for since the last one, as it is now; a name that nobody knows is answered, too, and told when it comes; an answer is
//! bounded, the rest follows in the next; what a proxy says it has is not told again. No I/O.
//!
//! [xDS]: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use outrigger_http::{GrpcCode, GrpcStatus};
use outrigger_wire::xds::{Request, Response};

use crate::catalogue::{Catalogue, Kind, Mailbox};
use crate::metrics::Metrics;

/// Bytes of an answer, if it holds more than one resource.
const MOST_BYTES: usize = 256 << 10;
/// The longest name: a DNS name and a port.
const LONGEST_NAME: usize = 300;
/// Types that nobody knows here and that a stream may ask for, each once.
const MOST_FOREIGN: usize = 16;
/// A version that no resource has: the proxy was told that there is none.
const ABSENT: u64 = 0;

/// A stream's state.
pub struct Subscriber {
    catalogue: Catalogue,
    metrics: Arc<Metrics>,
    number: u64,
    mailbox: Arc<Mailbox>,
    topics: [Topic; 2],
    /// Answers about types that are not served.
    foreign: Vec<(String, Vec<String>)>,
    foreign_seen: usize,
    most_names: usize,
    answers: u64,
}

/// What a stream has to do with one kind.
#[derive(Default)]
struct Topic {
    /// Names that were asked for or told of, and the version that was told; `None` before that.
    told: HashMap<Arc<str>, Told>,
    /// All are asked for.
    all: bool,
    begun: bool,
    /// An answer is due even if there is nothing to tell.
    owes: bool,
    /// Names to look at.
    open: HashSet<Arc<str>>,
}

#[derive(Clone, Copy)]
struct Told {
    version: Option<u64>,
    /// Asked for by name.
    asked: bool,
}

impl Subscriber {
    /// A stream that has asked for nothing yet, and may ask for so many names of each type.
    pub fn new(catalogue: &Catalogue, most_names: usize) -> Self {
        Self::counted(catalogue, most_names, Metrics::unregistered())
    }

    pub(crate) fn counted(catalogue: &Catalogue, most_names: usize, metrics: Arc<Metrics>) -> Self {
        metrics.streams.inc();
        Self {
            catalogue: catalogue.clone(),
            metrics,
            number: catalogue.number(),
            mailbox: Arc::default(),
            topics: Default::default(),
            foreign: Vec::new(),
            foreign_seen: 0,
            most_names,
            answers: 0,
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// When the proxy asks for more than it may.
    pub fn take(&mut self, request: &Request<'_>) -> Result<(), GrpcStatus> {
        let Some(kind) = Kind::of(request.type_url) else { return self.take_foreign(request) };
        if !request.nonce.is_empty() {
            self.metrics.acknowledged(kind, request.error.is_none());
        }
        if let Some(error) = request.error {
            let error: String = error.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect();
            tracing::warn!(
                component = "discovery",
                node = request.node,
                kind = kind.label(),
                error,
                "a proxy did not take what it was told"
            );
        }
        for name in &request.unsubscribe {
            self.drop_name(kind, name);
        }
        let begun = std::mem::replace(&mut self.topics[kind as usize].begun, true);
        // As it was before names could be asked for: who names nothing at first wants all clusters.
        let legacy = !begun && request.subscribe.is_empty() && request.nonce.is_empty() && kind == Kind::Cluster;
        if legacy {
            self.ask_for_all(kind);
        }
        for name in &request.subscribe {
            match *name {
                "*" => self.ask_for_all(kind),
                name if name.is_empty() || name.len() > LONGEST_NAME => {
                    return Err(GrpcStatus::new(GrpcCode::InvalidArgument, "a name that no resource can have"));
                }
                name => self.ask_for(kind, name)?,
            }
        }
        if !begun {
            for (name, version) in &request.versions {
                self.remember(kind, name, version)?;
            }
        }
        Ok(())
    }

    fn ask_for(&mut self, kind: Kind, name: &str) -> Result<(), GrpcStatus> {
        let topic = &mut self.topics[kind as usize];
        if topic.told.len() >= self.most_names && !topic.told.contains_key(name) {
            let message = format!("more than {} names are asked for", self.most_names);
            return Err(GrpcStatus::new(GrpcCode::ResourceExhausted, message));
        }
        let name = self.catalogue.subscribe(kind, name, self.number, &self.mailbox);
        // Asked for again, it is told again: the proxy may have forgotten it.
        if topic.told.insert(Arc::clone(&name), Told { version: None, asked: true }).is_none_or(|told| !told.asked) {
            self.metrics.subscriptions.inc();
        }
        topic.open.insert(name);
        Ok(())
    }

    fn ask_for_all(&mut self, kind: Kind) {
        let topic = &mut self.topics[kind as usize];
        topic.all = true;
        topic.owes = true;
        topic.open.extend(self.catalogue.subscribe_all(kind, self.number, &self.mailbox));
    }

    /// The proxy has this version from before.
    fn remember(&mut self, kind: Kind, name: &str, version: &str) -> Result<(), GrpcStatus> {
        let topic = &mut self.topics[kind as usize];
        let version = u64::from_str_radix(version, 16).ok().filter(|version| *version != ABSENT);
        let Some(version) = version else { return Ok(()) };
        match topic.told.get_mut(name) {
            Some(told) => told.version = Some(version),
            None if topic.all => {
                if topic.told.len() >= self.most_names {
                    return Err(GrpcStatus::new(
                        GrpcCode::ResourceExhausted,
                        "more versions than names may be asked for",
                    ));
                }
                let name: Arc<str> = name.into();
                topic.open.insert(Arc::clone(&name));
                topic.told.insert(name, Told { version: Some(version), asked: false });
            }
            None => {}
        }
        Ok(())
    }

    fn drop_name(&mut self, kind: Kind, name: &str) {
        let topic = &mut self.topics[kind as usize];
        if name == "*" {
            topic.all = false;
            self.catalogue.unsubscribe_all(kind, self.number);
            topic.told.retain(|_, told| told.asked);
            return;
        }
        let Some(told) = topic.told.get_mut(name).filter(|told| told.asked) else { return };
        self.metrics.subscriptions.dec();
        told.asked = false;
        if !topic.all {
            topic.told.remove(name);
            topic.open.remove(name);
        }
        self.catalogue.unsubscribe(kind, name, self.number);
    }

    /// Somebody asks for a type that is not served: nothing of it is there.
    fn take_foreign(&mut self, request: &Request<'_>) -> Result<(), GrpcStatus> {
        if !request.nonce.is_empty() || (request.subscribe.is_empty() && self.foreign_seen > 0) {
            return Ok(());
        }
        self.foreign_seen += 1;
        if self.foreign_seen > MOST_FOREIGN {
            return Err(GrpcStatus::new(GrpcCode::InvalidArgument, "too many types that are not served here"));
        }
        let names = request.subscribe.iter().filter(|name| **name != "*").map(|name| (*name).to_owned()).collect();
        self.foreign.push((request.type_url.to_owned(), names));
        Ok(())
    }

    /// Whom to wake when there is more to tell.
    pub fn wake(&self, waker: &Waker) {
        self.mailbox.wake(waker);
    }

    /// The next answer, in parts that many streams may share; `None` when there is nothing to tell.
    pub fn answer(&mut self) -> Option<Vec<Bytes>> {
        if let Some((type_url, names)) = self.foreign.pop() {
            let removed = names.iter().map(String::as_str).collect();
            return Some(vec![self.rest(&type_url, removed)]);
        }
        for kind in Kind::ALL {
            let topic = &mut self.topics[kind as usize];
            topic.open.extend(self.mailbox.take(kind));
            if topic.open.is_empty() && !topic.owes {
                continue;
            }
            let (mut parts, mut removed, mut bytes, mut looked_at) = (Vec::new(), Vec::new(), 0, Vec::new());
            for name in &topic.open {
                if bytes >= MOST_BYTES {
                    break;
                }
                looked_at.push(Arc::clone(name));
                let now = self.catalogue.find(kind, name);
                let version = now.as_ref().map_or(ABSENT, |resource| resource.version);
                let told = topic.told.get(name).copied();
                if told.is_none() && !topic.all {
                    continue; // Asked for no longer.
                }
                if told.and_then(|told| told.version).is_some_and(|told| told == version) {
                    continue;
                }
                let asked = told.is_some_and(|told| told.asked);
                match now {
                    Some(resource) => {
                        bytes += resource.encoded.len();
                        parts.push(resource.encoded);
                    }
                    None => {
                        bytes += name.len();
                        removed.push(Arc::clone(name));
                    }
                }
                if version == ABSENT && !asked {
                    topic.told.remove(name);
                } else {
                    topic.told.insert(Arc::clone(name), Told { version: Some(version), asked });
                }
            }
            if looked_at.len() == topic.open.len() {
                topic.open = HashSet::new();
            } else {
                topic.open.retain(|name| !looked_at.contains(name));
            }
            if parts.is_empty() && removed.is_empty() && !std::mem::take(&mut topic.owes) {
                continue;
            }
            topic.owes = false;
            self.metrics.told(kind);
            parts.push(self.rest(kind.type_url(), removed.iter().map(AsRef::as_ref).collect()));
            return Some(parts);
        }
        None
    }

    /// An answer but for its resources.
    fn rest(&mut self, type_url: &str, removed: Vec<&str>) -> Bytes {
        self.answers += 1;
        let nonce = self.answers.to_string();
        let mut out = Vec::with_capacity(type_url.len() + 16);
        Response { type_url, nonce: &nonce, resources: Vec::new(), removed }.write_rest(&mut out);
        out.into()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.metrics.streams.dec();
        for kind in Kind::ALL {
            let topic = std::mem::take(&mut self.topics[kind as usize]);
            if topic.all {
                self.catalogue.unsubscribe_all(kind, self.number);
            }
            for (name, _) in topic.told.iter().filter(|(_, told)| told.asked) {
                self.metrics.subscriptions.dec();
                self.catalogue.unsubscribe(kind, name, self.number);
            }
        }
    }
}
