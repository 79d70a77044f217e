//! Chains that passed, so that the next handshake with the same peer checks no signature of an authority again.
//!
//! In: a chain as it came. Out: the leaf it was found to have. Promise: an entry stands for these very bytes, for one
//! end of a connection, one trust bundle and one set of revocation lists, and only while all of its certificates, and
//! the lists if they are required, are in their time; that the peer has the leaf's key is proven in every handshake. Entries are bounded.

use std::collections::HashMap;
use std::time::SystemTime;

use aws_lc_rs::digest;
use outrigger_config::SpiffeId;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::handshake::at;
use crate::svid::validity;

/// Peers remembered by each verifier; beyond it all are forgotten. An entry takes some 200 bytes.
const MOST: usize = 1024;

type Digest = [u8; 32];

#[derive(Debug, Default)]
pub(crate) struct KnownChains(Mutex<HashMap<Digest, Known>>);

#[derive(Debug)]
struct Known {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl KnownChains {
    /// Whom a chain names, if it passed before.
    pub(crate) fn find(&self, digest: &Digest, now: UnixTime) -> Option<SpiffeId> {
        let now = at(now.as_secs());
        let known = self.0.lock();
        let found = known.get(digest)?;
        (found.not_before <= now && now <= found.not_after).then(|| found.id.clone())
    }

    /// Remembers a chain that passed, for no longer than `until`.
    pub(crate) fn remember(
        &self,
        digest: Digest,
        id: &SpiffeId,
        chain: &[&CertificateDer<'_>],
        until: Option<SystemTime>,
    ) {
        let mut times = chain.iter().map(|certificate| validity(certificate).ok());
        let narrower = |one: Option<(SystemTime, SystemTime)>, other: Option<(SystemTime, SystemTime)>| {
            let ((from, until), (other_from, other_until)) = (one?, other?);
            Some((from.max(other_from), until.min(other_until)))
        };
        // One that is there for nothing and cannot be read costs only the memory.
        let Some((not_before, not_after)) = times.next().and_then(|first| times.fold(first, narrower)) else { return };
        let not_after = until.map_or(not_after, |until| until.min(not_after));
        let mut known = self.0.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(digest, Known { id: id.clone(), not_before, not_after });
    }
}

/// What a chain is known by, for one end of a connection. Each certificate tells its own length, so that no two chains
/// are alike.
pub(crate) fn digest(chain: &[&CertificateDer<'_>], end: &str) -> Option<Digest> {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(end.as_bytes());
    for certificate in chain {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    context.finish().as_ref().try_into().ok()
}
