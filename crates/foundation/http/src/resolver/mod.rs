//! Resolves names: literals, `/etc/hosts`, then DNS as `/etc/resolv.conf` says.
//!
//! In: a host. Out: its addresses and how long they hold. Promise: one lookup per name at a
//! time, whoever asks; answers are kept for their TTL within bounds; while DNS is down the
//! last good answer stays in use and is marked as stale; both files are read when they are
//! first needed and again when they change.

mod cache;
mod hosts;
mod upstream;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use parking_lot::Mutex;

use cache::{Cache, Lookup};
use hosts::HostsFile;
use upstream::{Answer, Upstream};

/// An answer without a TTL of its own holds so long.
const FOREVER: Duration = Duration::from_secs(365 * 86400);
/// What `/etc/hosts` says is asked again after so long; it is cheap.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// A caller that could have a stale answer waits so long for a fresh one ([RFC 8767], section 5).
///
/// [RFC 8767]: https://www.rfc-editor.org/rfc/rfc8767#section-5
const STALE_PATIENCE: Duration = Duration::from_millis(1800);

/// The addresses of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// At least one, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Until when they hold.
    pub valid_until: Instant,
    /// They hold no longer, but DNS does not answer: the last good ones.
    pub stale: bool,
}

/// A record of where a service is ([RFC 2782]).
///
/// [RFC 2782]: https://www.rfc-editor.org/rfc/rfc2782
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SrvRecord {
    /// The lowest is used first.
    pub priority: u16,
    /// Its part beside others of the same priority.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// The host it runs on.
    pub target: String,
}

/// The records of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedSrv {
    /// At least one, in order.
    pub records: Vec<SrvRecord>,
    /// Until when they hold.
    pub valid_until: Instant,
}

/// Why a host has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// It cannot be a name.
    #[error("`{host}` is not a host name")]
    InvalidName {
        /// What was asked for.
        host: String,
    },
    /// DNS says that there is no such name, or that it has no address.
    #[error("`{host}` has no address: DNS says that there is none")]
    NotFound {
        /// What was asked for.
        host: String,
    },
    /// There is no DNS server to ask.
    #[error("`{host}` cannot be resolved: {problem}, and the hosts file does not name it")]
    NoServer {
        /// What was asked for.
        host: String,
        /// What is wrong with resolv.conf.
        problem: String,
    },
    /// DNS does not answer, or not well.
    #[error("`{host}` cannot be resolved: {problem}")]
    Failed {
        /// What was asked for.
        host: String,
        /// What the servers said or did.
        problem: String,
    },
}

impl ResolveError {
    /// Whether asking again later may help; names come into being, too.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::InvalidName { .. })
    }
}

/// Which files a resolver goes by.
#[derive(Debug, Clone)]
pub struct ResolverOptions {
    /// Servers, search domains and options; missing means that only literals and the hosts file are known.
    pub resolv_conf: PathBuf,
    /// Names known without DNS.
    pub hosts: PathBuf,
    /// The servers' port.
    pub port: u16,
    /// How many names are kept.
    pub cache_size: usize,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53, cache_size: 512 }
    }
}

/// Resolves names. Cheap to clone; clones share the cache. Costs nothing before the first name is asked for.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    hosts: Mutex<HostsFile>,
    upstream: Mutex<Upstream>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Arc<str>, WeakShared<Flight>>>,
}

/// A lookup under way, shared by all who wait for it; it is theirs, and ends when they all give up.
type Flight = Pin<Box<dyn Future<Output = Result<Resolved, ResolveError>> + Send>>;

impl Resolver {
    /// The resolver of this machine: `/etc/hosts` and `/etc/resolv.conf`.
    pub fn from_system() -> Self {
        Self::new(ResolverOptions::default())
    }

    /// A resolver that goes by other files.
    pub fn new(options: ResolverOptions) -> Self {
        Self(Arc::new(Inner {
            hosts: Mutex::new(HostsFile::new(options.hosts)),
            upstream: Mutex::new(Upstream::new(options.resolv_conf, options.port)),
            cache: Mutex::new(Cache::new(options.cache_size)),
            flights: Mutex::default(),
        }))
    }

    /// The addresses of a host: an IP address, or a name in any case. Cancel-safe.
    ///
    /// # Errors
    /// See [`ResolveError`]. It comes at once for a name that was not found a moment ago, and otherwise within the
    /// servers' timeouts.
    pub async fn resolve(&self, host: &str) -> Result<Resolved, ResolveError> {
        if let Some(address) = literal(host) {
            return Ok(Resolved::fixed(vec![address], FOREVER));
        }
        let name = normal(host)?;
        if let Some(addresses) = self.0.hosts.lock().lookup(&name) {
            return Ok(Resolved::fixed(addresses, HOSTS_TTL));
        }
        if is_localhost(&name) {
            return Ok(Resolved::fixed(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], FOREVER));
        }
        let known = self.0.cache.lock().lookup(&name, Instant::now());
        match known {
            Lookup::Known(result) => result,
            Lookup::Unknown => self.flight(&name).await,
            Lookup::Old(old) => match tokio::time::timeout(STALE_PATIENCE, self.flight(&name)).await {
                Ok(result) => result,
                Err(_) => {
                    self.0.cache.lock().failed(&name, Instant::now());
                    Ok(old)
                }
            },
        }
    }

    /// The SRV records of a name such as `_http._tcp.shop.example`, as it is: without search domains. Cancel-safe.
    ///
    /// # Errors
    /// See [`ResolveError`]. Nothing is kept from earlier answers: who asks knows what to do meanwhile.
    pub async fn resolve_srv(&self, name: &str) -> Result<ResolvedSrv, ResolveError> {
        let name = normal(name)?;
        let server = self.0.upstream.lock().current();
        let server = server.map_err(|problem| ResolveError::NoServer { host: name.to_string(), problem })?;
        upstream::ask_srv(&server, &name).await
    }

    /// The lookup of this name that is under way, or a new one.
    fn flight(&self, name: &Arc<str>) -> Shared<Flight> {
        let mut flights = self.0.flights.lock();
        if let Some(flight) = flights.get(name).and_then(WeakShared::upgrade) {
            return flight;
        }
        // Those that everybody gave up on leave their place behind.
        flights.retain(|_, flight| flight.upgrade().is_some());
        let flight: Flight = Box::pin(self.clone().look_up(name.clone()));
        let flight = flight.shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(name.clone(), weak);
        }
        flight
    }

    async fn look_up(self, name: Arc<str>) -> Result<Resolved, ResolveError> {
        let server = self.0.upstream.lock().current();
        let result = match server {
            Ok(server) => upstream::ask(&server, &name).await,
            Err(problem) => Err(ResolveError::NoServer { host: name.to_string(), problem }),
        };
        let result = self.0.cache.lock().learn(&name, result, Instant::now());
        self.0.flights.lock().remove(&name);
        result
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolved {
    fn fixed(addresses: Vec<IpAddr>, ttl: Duration) -> Self {
        Self { addresses, valid_until: Instant::now() + ttl, stale: false }
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bracketed {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse().ok(),
    }
}

/// The name in lower case, or nothing that DNS could know ([RFC 1035], section 2.3.4; underscores are in use).
///
/// [RFC 1035]: https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4
fn normal(host: &str) -> Result<Arc<str>, ResolveError> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    // An address that is none, such as 10.0.0.256, would only be asked for in vain.
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if name.len() <= 253 && !numeric && name.split('.').all(label) {
        return Ok(host.to_ascii_lowercase().into());
    }
    Err(ResolveError::InvalidName { host: host.chars().take(64).flat_map(char::escape_default).collect() })
}

/// [RFC 6761], section 6.3: localhost needs no server.
///
/// [RFC 6761]: https://www.rfc-editor.org/rfc/rfc6761#section-6.3
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests;
