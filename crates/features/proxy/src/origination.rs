//! Ordinary TLS towards a cluster: whom we trust and what we present, as files say.
//!
//! In: a cluster's config, and its files. Out: rustls configs, one for each protocol, so that
//! sessions are resumed. Promise: when a file changes, new connections use the new one and
//! those made with the old one carry no new request; a bad file takes nothing away.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use arc_swap::ArcSwapOption;
use outrigger_config::ClusterTls;
use outrigger_identity::{ConfigDigest, ordinary_client_config};
use rustls::ClientConfig;

use crate::tls;
use crate::upstream::Speech;

/// What a cluster's connections are made with now.
#[derive(Default)]
pub(crate) struct Origination {
    current: ArcSwapOption<Made>,
    /// Counts what was read; looked at for each request, so it stands apart.
    generation: AtomicU64,
}

struct Made {
    digest: ConfigDigest,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

impl Origination {
    /// Reads the files; nothing changes when they hold what they held before, or something unusable.
    pub(crate) fn read(&self, tls: &ClusterTls) -> Result<(), outrigger_identity::Error> {
        let own = tls.client_certificate.as_ref().map(|pair| (&*pair.certificate, &*pair.key));
        let own: Option<(&Path, &Path)> = own;
        let (config, digest) = ordinary_client_config(tls.ca.as_deref(), own, tls.min_version)?;
        if self.current.load().as_ref().is_some_and(|made| made.digest == digest) {
            return Ok(());
        }
        let speaking = |speech| {
            let mut config = config.clone();
            config.alpn_protocols = tls::public_offer(speech).iter().map(|protocol| protocol.to_vec()).collect();
            // A clone would share what it remembers of servers with the others.
            config.resumption = rustls::client::Resumption::in_memory_sessions(tls::CLIENT_SESSIONS);
            Arc::new(config)
        };
        let (http1, http2, tcp) = (speaking(Speech::Http1), speaking(Speech::Http2), speaking(Speech::Tcp));
        self.current.store(Some(Arc::new(Made { digest, http1, http2, tcp })));
        self.generation.fetch_add(1, Release);
        Ok(())
    }

    /// Which reading of the files a connection made now belongs to.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// The config for a protocol; `None` while the files were never usable.
    pub(crate) fn config(&self, speech: Speech) -> Option<Arc<ClientConfig>> {
        let made = self.current.load();
        let made = made.as_ref()?;
        Some(Arc::clone(match speech {
            Speech::Http1 => &made.http1,
            Speech::Http2 => &made.http2,
            Speech::Tcp => &made.tcp,
        }))
    }
}
