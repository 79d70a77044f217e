//! Services that nobody configured: asked for when a redirected connection first wants to go to their address.
//!
//! In: addresses that no route knows, services that the directory found. Out: clusters, as if they stood in the config.
//! Promise: a connection waits no longer than the config says, and not at all where no answer can come; a connection
//! to what is known does not come here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::{Cluster as ClusterConfig, ClusterDiscovery, ClusterProtocol, ClusterTls, Name, Proxy};
use outrigger_traffic::directory::{Directory, FoundService, Known};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::listener::LocalListener;

/// How long it may take to reach an endpoint of a service that was found, its TLS handshake included: as for those that nobody told
/// us of. One whose sidecar is being replaced takes a connection at once, and lets it wait until the next one is there; of one that
/// does not answer at all others are tried long before.
const REACH_SECONDS: u64 = 10;
/// The longest name of a cluster.
const LONGEST_NAME: usize = 63;

/// How connections ask.
pub(crate) struct OnDemand {
    directory: Arc<dyn Directory>,
    wait: Duration,
    /// The number of what is found that routes know of.
    applied: watch::Receiver<u64>,
}

impl OnDemand {
    pub(crate) fn new(directory: Arc<dyn Directory>, wait: Duration, applied: watch::Receiver<u64>) -> Self {
        Self { directory, wait, applied }
    }

    /// Waits until the listener's routes know an address, or nobody will tell. Cancel-safe.
    pub(crate) async fn wait(&self, address: SocketAddr, local: &LocalListener) {
        let until = Instant::now() + self.wait;
        let mut applied = self.applied.clone();
        loop {
            let number = *applied.borrow_and_update();
            if local.shared.current.load().routes.knows(address) {
                return;
            }
            match self.directory.ask(address) {
                Known::Not => return,
                // It is one that cannot be a cluster here.
                Known::Found if number == self.directory.found().0 => return,
                Known::Found | Known::Asked => {}
            }
            if !matches!(timeout_at(until, applied.changed()).await, Ok(Ok(()))) {
                tracing::debug!(component = "proxy", %address, "nobody told in time what is at a destination");
                return;
            }
        }
    }
}

/// A config with clusters for services that were found.
pub(crate) fn with_found(proxy: &Proxy, found: &[FoundService]) -> Proxy {
    let mut proxy = proxy.clone();
    for service in found {
        match cluster(&proxy, service) {
            Ok(cluster) => proxy.clusters.push(cluster),
            Err(reason) => {
                let service = &service.name;
                tracing::warn!(component = "proxy", service, reason, "a service that was found cannot be used");
            }
        }
    }
    proxy
}

fn cluster(proxy: &Proxy, found: &FoundService) -> Result<ClusterConfig, String> {
    let service = found.name.parse().map_err(|_| "its name is not HOST:PORT".to_owned())?;
    let configured = proxy.clusters.iter().flat_map(|cluster| &cluster.virtual_addresses);
    let configured: Vec<_> = configured.copied().collect();
    let mut cluster = ClusterConfig::new(name(proxy, &found.name), Vec::new());
    cluster.discovery = Some(ClusterDiscovery { service });
    cluster.connect_timeout = outrigger_config::Duration::from_secs(REACH_SECONDS);
    cluster.virtual_addresses = found.addresses.iter().filter(|one| !configured.contains(one)).copied().collect();
    if !found.spiffe_ids.is_empty() {
        let ids: Result<Vec<_>, _> = found.spiffe_ids.iter().map(|id| id.parse()).collect();
        // Plain text in place of mTLS would be worse than nothing.
        let spiffe_ids = ids.map_err(|_| "an identity of its endpoints is no SPIFFE ID".to_owned())?;
        cluster.tls = Some(ClusterTls { spiffe_ids, ..ClusterTls::default() });
    }
    if found.http2 {
        cluster.protocol = ClusterProtocol::Http2;
    }
    Ok(cluster)
}

/// A cluster's name for a service's: `orders.shop.80` for `orders.shop.svc.cluster.local:80`.
fn name(proxy: &Proxy, service: &str) -> Name {
    let short = service.to_ascii_lowercase().replace(".svc.cluster.local:", ":").replace(':', ".");
    let taken = |name: &Name| proxy.clusters.iter().any(|cluster| cluster.name == *name);
    if let Some(name) = short.parse().ok().filter(|name| !taken(name)) {
        return name;
    }
    let mut hasher = DefaultHasher::new();
    service.hash(&mut hasher);
    let kept: String = short.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let kept: String = kept.trim_matches(['.', '-']).chars().take(LONGEST_NAME - 17).collect();
    let end = format!("{:016x}", hasher.finish());
    let long = format!("{kept}-{end}").parse();
    long.unwrap_or_else(|_| end.parse().expect("hexadecimal digits are a name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy() -> Proxy {
        let text = "proxy:\n  listeners: [{ name: out, direction: outbound, address: \"127.0.0.1:1\", redirected: true, protocol: auto }]\n  \
                    clusters: [{ name: taken.shop.80, endpoints: [\"10.0.0.1:1\"], virtualAddresses: [\"10.96.0.9:80\"] }]\n";
        let parsed = outrigger_config::parse("test.yaml", text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        parsed.config.proxy.unwrap()
    }

    #[test]
    fn names_are_short_where_they_can_be_and_always_differ() {
        let proxy = proxy();
        let named = |service: &str| name(&proxy, service).to_string();
        assert_eq!(named("orders.shop.svc.cluster.local:80"), "orders.shop.80");
        let long = "x".repeat(60);
        let all = [
            named("taken.shop.svc.cluster.local:80"),
            named(&format!("{long}.shop.svc.cluster.local:80")),
            named(&format!("{long}.shop.svc.cluster.local:81")),
            named("-_.:80"),
            named("[fd00::1]:80"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(one.len() <= LONGEST_NAME && !all[..index].contains(one), "{all:?}");
        }
    }

    #[test]
    fn a_service_becomes_a_cluster() {
        let service = FoundService {
            name: "orders.shop.svc.cluster.local:80".to_owned(),
            addresses: vec!["10.96.0.1:80".parse().unwrap(), "10.96.0.9:80".parse().unwrap()],
            spiffe_ids: vec!["spiffe://d/ns/shop/sa/orders".to_owned()],
            http2: true,
        };
        let wrong = FoundService { spiffe_ids: vec!["orders".to_owned()], ..service.clone() };
        let odd = FoundService { name: "outbound|80||orders".to_owned(), ..service.clone() };
        let with = with_found(&proxy(), &[wrong, service, odd]);
        let [_, cluster] = with.clusters.as_slice() else { panic!("{:?}", with.clusters) };
        assert_eq!(cluster.virtual_addresses, ["10.96.0.1:80".parse().unwrap()], "what is configured comes first");
        assert_eq!(cluster.tls.as_ref().unwrap().spiffe_ids[0].as_str(), "spiffe://d/ns/shop/sa/orders");
        assert_eq!(cluster.protocol, ClusterProtocol::Http2);
        assert_eq!(cluster.discovery.as_ref().unwrap().service.to_string(), "orders.shop.svc.cluster.local:80");
    }
}
