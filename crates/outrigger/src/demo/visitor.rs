//! The demo's visitor: a customer of the shop with an identity of its own.
//!
//! In: the frontend's address, a rate. Out: counts and latencies. Promise: each request
//! is counted once it was answered, by status, and goes over mTLS to the frontend alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use outrigger_http::{Client, ClientOptions, Resolver};
use rustls::ClientConfig;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Connections the visitor keeps open.
const CONNECTIONS: u32 = 8;

/// What the visitor has seen so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) sent: AtomicU64,
    pub(super) succeeded: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Connections the demo itself used to wait for the frontend do not count.
    pub(super) first_failure: std::sync::OnceLock<String>,
}

/// A visitor that sends `rate` requests a second.
pub(super) struct Visitor {
    pub(super) frontend: u16,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) rate: u32,
    pub(super) seen: Arc<Seen>,
}

impl Visitor {
    /// Sends requests until `stop`; what is under way then is still answered and counted.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.frontend));
        for index in 0..CONNECTIONS.min(self.rate) {
            // One client each, so that each keeps a connection of its own.
            let options = ClientOptions { tls: Some(Arc::clone(&self.tls)), ..ClientOptions::default() };
            let client = Client::new(options, Resolver::from_system());
            let period = Duration::from_secs(1) * CONNECTIONS.min(self.rate) / self.rate;
            let offset = period * index / CONNECTIONS;
            connections.spawn(visit(client, address, period, offset, Arc::clone(&self.seen), stop.clone()));
        }
        while connections.join_next().await.is_some() {}
    }
}

async fn visit(
    client: Client,
    frontend: SocketAddr,
    period: Duration,
    offset: Duration,
    seen: Arc<Seen>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval_at(Instant::now() + offset, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        let Ok(request) = Request::get(format!("https://{frontend}/")).body(Bytes::new()) else { return };
        seen.sent.fetch_add(1, Relaxed);
        let failure = match client.send(request).await {
            Ok(response) if response.status().is_success() => {
                seen.succeeded.fetch_add(1, Relaxed);
                continue;
            }
            Ok(response) => format!("{}: {}", response.status(), String::from_utf8_lossy(response.body())),
            Err(error) => output_chain(&error),
        };
        seen.failed.fetch_add(1, Relaxed);
        let _ = seen.first_failure.set(failure);
    }
}

fn output_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
