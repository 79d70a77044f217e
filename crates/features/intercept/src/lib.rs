//! Redirects a pod's TCP connections to Outrigger, by nftables rules of its own.
//!
//! In: who the proxy is and what to leave out ([`Settings`]). Out: the table `inet outrigger` in
//! the kernel, written over netlink without any other program; the same rules as text. Promise: the
//! table is replaced in one transaction, so that no connection meets half of it; a table of that name
//! that somebody else made is not touched; nothing but TCP is looked at.
//!
//! # Which connections go where
//!
//! | from | to | |
//! |---|---|---|
//! | the application | another address | to the outbound listener |
//! | the application | an address of the pod, loopback or not | as it is |
//! | the proxy | another address | as it is, or it would call itself for ever |
//! | the proxy | an address of the pod | to the inbound listener, as when a peer calls: the pod called its own Service |
//! | the proxy, from a loopback address | an address of the pod | as it is: the inbound listener calls the application |
//! | outside | the application's ports | to the inbound listener |
//! | outside | Outrigger's own ports | as it is, so that the kubelet and Prometheus reach it |
//!
//! The proxy is told by its user (and group), which is why it must run as another user than the application.

mod error;
mod kernel;
mod netlink;
mod nft;
mod rules;
mod settings;
mod verify;

pub use error::Error;
pub use kernel::{Installed, install, is_installed, remove};
pub use netlink::fuzz_replies;
pub use nft::text;
pub use rules::{Ruleset, TABLE};
pub use settings::{Cidr, Filter, Inbound, Interface, InvalidSetting, Outbound, Ports, Settings};
pub use verify::{Outcome, Proof, verify};
