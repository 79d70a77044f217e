//! A cluster's controller: it injects pods as they are made, and looks after those that it missed.
//!
//! In: section `controller`, an [`Injector`] of the binary, the API server. Out: answers to admission reviews, the
//! webhook's certificate, Events, evictions. Promise: pods of `kube-system` and of its own namespace are never touched; a
//! review that is a dry run changes nothing anywhere; what only one replica may do is done by the one that leads; the
//! webhook keeps answering while the API server is away.

mod certificate;
mod component;
mod conditions;
mod delivery;
mod injector;
mod namespaces;
mod owner;
mod profiles;
mod repair;
mod webhook;

pub use component::ControllerComponent;
pub use injector::{
    Deliver, Delivered, Injector, NamespaceFacts, ParsedProfile, ProfileVerdict, Profiles, Telling, Verdict, When,
};
pub use webhook::patch::difference;
pub use webhook::review::{Answer, MalformedReview, Operation, Review};
