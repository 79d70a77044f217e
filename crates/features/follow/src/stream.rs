//! One stream to a discovery server.
//!
//! In: what is asked for, as it changes; the server's answers. Out: requests, acknowledgements, and what the notebook then
//! knows. Promise: a server that does not read is never waited for without reading what it sends; each answer is
//! acknowledged, or refused with the reason.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Uri};
use outrigger_config::{ClusterTls, DiscoverySource, HostPort};
use outrigger_http::{GrpcClient, GrpcError, GrpcOptions, Resolver};
use outrigger_identity::{Identities, ordinary_client_config};
use outrigger_wire::xds::{DELTA_ADS, Request, Response};
use rustls::ClientConfig;

use crate::metrics::Metrics;
use crate::notebook::{KINDS, Notebook};

/// A server from which nothing came for so long is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests that wait for a server that does not read; beyond it the stream is given up.
const MOST_WAITING: usize = 256;
/// How long a change of what is asked for waits for others: a start brings many at once.
const TOGETHER: Duration = Duration::from_millis(2);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("{0}")]
    Tls(String),
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    #[error("the server ended the stream")]
    ByServer,
    #[error("the server does not read what it is asked")]
    Deaf,
}

/// Connects, and follows until the stream ends. Cancel-safe.
pub(crate) async fn follow(
    section: &DiscoverySource,
    server: &HostPort,
    identities: &Identities,
    resolver: &Resolver,
    notebook: &Notebook,
    metrics: &Metrics,
    node: &str,
) -> Ended {
    let mut conversation = Conversation { notebook, node, subscribed: Default::default(), outbox: VecDeque::new() };
    let outcome = async {
        let tls = match &section.tls {
            Some(tls) => Some(tls_config(tls, identities, section.connect_timeout.into()).await.map_err(Ended::Tls)?),
            None => None,
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url: Uri =
            format!("{scheme}://{server}").parse().map_err(|_| Ended::Tls(format!("`{server}` is no address")))?;
        let options = GrpcOptions {
            tls,
            connect_timeout: section.connect_timeout.into(),
            max_response: section.max_bytes.as_usize(),
            keep_alive: Some(KEEP_ALIVE),
            ..GrpcOptions::default()
        };
        let client = GrpcClient::new(url, options, resolver.clone());
        let (sender, mut receiver) = client.open(DELTA_ADS, &HeaderMap::new()).await?;
        let mut wanted = notebook.wanted();
        wanted.mark_changed();
        metrics.connections.inc();
        metrics.connected.set(1.0);
        notebook.connected(Ok(()));
        let mut greeted = false;
        loop {
            tokio::select! {
                answer = receiver.next() => {
                    let message = answer?.ok_or(Ended::ByServer)?;
                    if !std::mem::replace(&mut greeted, true) {
                        tracing::info!(component = "discovery", %server, "discovery server connected");
                    }
                    conversation.hear(&message, metrics);
                }
                sent = async { sender.send(conversation.outbox.front().map(Vec::as_slice).unwrap_or_default()).await },
                    if !conversation.outbox.is_empty() =>
                {
                    if sent.is_err() {
                        // Why, the receiver tells.
                        return Err(receiver.next().await.err().map_or(Ended::ByServer, Ended::Grpc));
                    }
                    conversation.outbox.pop_front();
                }
                changed = wanted.changed() => {
                    if changed.is_ok() {
                        tokio::time::sleep(TOGETHER).await;
                        wanted.mark_unchanged();
                        conversation.ask();
                    }
                }
            }
            if conversation.outbox.len() > MOST_WAITING {
                return Err(Ended::Deaf);
            }
        }
    };
    let outcome: Result<std::convert::Infallible, Ended> = outcome.await;
    match outcome {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn tls_config(tls: &ClusterTls, identities: &Identities, limit: Duration) -> Result<Arc<ClientConfig>, String> {
    let alpn: &[&[u8]] = &[b"h2"];
    if tls.server_name.is_none() {
        let identity = tokio::time::timeout(limit, identities.first()).await.ok().flatten();
        let identity = identity.ok_or("there is no identity to connect with yet")?;
        let config = identity.client_config_since(tls.min_version, &tls.spiffe_ids, alpn);
        return config.map_err(|error| error.to_string());
    }
    let tls = tls.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let own = tls.client_certificate.as_ref().map(|pair| (pair.certificate.as_path(), pair.key.as_path()));
        ordinary_client_config(tls.ca.as_deref(), own, tls.min_version).map(|(config, _)| Arc::new(config))
    });
    reading.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// What is said on a stream.
struct Conversation<'a> {
    notebook: &'a Notebook,
    node: &'a str,
    subscribed: [Option<HashSet<String>>; 2],
    outbox: VecDeque<Vec<u8>>,
}

impl Conversation<'_> {
    /// Asks for what is wanted and was not, and no longer for what is not.
    fn ask(&mut self) {
        for (kind, type_url) in KINDS.into_iter().enumerate() {
            let wanted = self.notebook.names(type_url);
            let begun = self.subscribed[kind].is_some();
            let before = self.subscribed[kind].take().unwrap_or_default();
            let mut subscribe: Vec<&str> =
                wanted.keys().map(String::as_str).filter(|name| !before.contains(*name)).collect();
            subscribe.sort_unstable();
            let unsubscribe: Vec<&str> =
                before.iter().map(String::as_str).filter(|name| !wanted.contains_key(*name)).collect();
            // Who names nothing at first would be told of everything.
            if subscribe.is_empty() && unsubscribe.is_empty() {
                self.subscribed[kind] = begun.then_some(before);
                continue;
            }
            let versions = wanted.iter().filter(|(_, version)| !begun && !version.is_empty());
            let versions = versions.map(|(name, version)| (name.as_str(), version.as_str())).collect();
            let node = if self.subscribed.iter().all(Option::is_none) { self.node } else { "" };
            let request = Request { node, type_url, subscribe, unsubscribe, versions, ..Request::default() };
            let mut message = Vec::new();
            request.write(&mut message);
            self.outbox.push_back(message);
            self.subscribed[kind] = Some(wanted.into_keys().collect());
        }
    }

    /// Takes an answer, and acknowledges it.
    fn hear(&mut self, message: &[u8], metrics: &Metrics) {
        let response = Response::read(message);
        let outcome = self.notebook.take(&response, Instant::now());
        match &outcome {
            Ok(()) => metrics.taken.inc(),
            Err(error) => {
                metrics.refused.inc();
                tracing::warn!(component = "discovery", error, "an answer is not taken; what was told before holds on");
            }
        }
        let error = outcome.as_ref().err().map(String::as_str);
        let request = Request { type_url: response.type_url, nonce: response.nonce, error, ..Request::default() };
        let mut message = Vec::new();
        request.write(&mut message);
        self.outbox.push_back(message);
    }
}
