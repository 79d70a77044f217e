//! The ports of a cluster: free ones, chosen at its start and written down.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

/// A port for each part that listens.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
    pub(super) controllers: u16,
    pub(super) scheduler: u16,
    pub(super) kubelet: u16,
    pub(super) kubelet_health: u16,
    pub(super) proxy_health: u16,
    pub(super) proxy_metrics: u16,
    pub(super) dns: u16,
}

const COUNT: usize = 10;

/// Below the range from which the kernel takes the ports of outgoing connections (32768 on): a part that is started
/// again finds its port still free. Tests take their own from 18000 on.
const FIRST: u16 = 10_000;
const RANGE: u16 = 8_000;

/// The next port to look at.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// Free ports, none of them twice in one process.
fn free() -> impl Iterator<Item = TcpListener> {
    // Processes that run at the same time begin at different places.
    let start = u16::try_from(std::process::id() % 97).unwrap_or(0) * 82;
    let next = move |_| FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % RANGE;
    (0..RANGE).map(next).filter_map(|port| TcpListener::bind(("0.0.0.0", port)).ok())
}

impl Ports {
    /// Finds free ones.
    pub(super) fn choose(state: &Path) -> Result<Self> {
        // All are held at once, or one could be found twice.
        let held: Vec<_> = free().take(COUNT).collect();
        let numbers: Vec<_> = held.iter().map(|socket| Ok(socket.local_addr()?.port())).collect::<Result<_>>()?;
        let words: Vec<_> = numbers.iter().map(u16::to_string).collect();
        fs::write(state.join("ports"), words.join(" "))?;
        Self::of(&numbers).context("as many ports as were asked for")
    }

    /// Those of a cluster that was started.
    pub(super) fn read(state: &Path) -> Result<Self> {
        let file = state.join("ports");
        let text =
            fs::read_to_string(&file).with_context(|| format!("no cluster was started in {}", state.display()))?;
        let numbers: Vec<u16> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Self::of(&numbers)
            .with_context(|| format!("{} is damaged; `cargo xtask cluster down`, then `up`", file.display()))
    }

    fn of(numbers: &[u16]) -> Option<Self> {
        let &[api, etcd, etcd_peer, controllers, scheduler, kubelet, kubelet_health, proxy_health, proxy_metrics, dns] =
            numbers
        else {
            return None;
        };
        Some(Self {
            api,
            etcd,
            etcd_peer,
            controllers,
            scheduler,
            kubelet,
            kubelet_health,
            proxy_health,
            proxy_metrics,
            dns,
        })
    }
}
