//! Who knows services, as the data plane sees them: by name, or by an address that a client wants to go to.
//!
//! In: names, addresses. Out: sources of endpoints, services found. Promise: asking for an address costs no wait; whoever
//! implements this bounds what is asked for and remembered.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use crate::endpoints::EndpointSource;

/// A service that was found by an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundService {
    /// What its endpoints are followed by.
    pub name: String,
    /// Addresses that stand for it, those among them that were asked for.
    pub addresses: Vec<SocketAddr>,
    /// Identities that its endpoints may have; empty for plain text.
    pub spiffe_ids: Vec<String>,
    /// Its endpoints want HTTP/2.
    pub http2: bool,
}

/// What is known of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It stands for a service, which is among those found.
    Found,
    /// It was asked for, and the answer has not come yet.
    Asked,
    /// It is no service's, or nobody can be asked.
    Not,
}

/// Something that resolves later.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Somebody who knows services.
pub trait Directory: Send + Sync {
    /// Follows the endpoints of a service, for as long as the source lives.
    fn follow(&self, service: &str) -> Box<dyn EndpointSource>;

    /// Asks for an address, unless it is known. Any thread may.
    fn ask(&self, address: SocketAddr) -> Known;

    /// Services found by addresses, and a number that is another one whenever there is more known of any address.
    fn found(&self) -> (u64, Arc<[FoundService]>);

    /// Waits until that number is another one. Cancel-safe.
    fn changed(&self, since: u64) -> Later<'_, ()>;
}
