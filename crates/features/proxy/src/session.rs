//! What seals the sessions that clients carry.
//!
//! In: `proxy.sessionKeys`, or chance. Out: sealed sessions, and what they hold when they come back. Promise: what a client
//! holds says nothing to it, cannot be made or changed by it, and is of no use on another route.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_config::Secret;
use outrigger_traffic::session::Session;

/// No sealed session is longer than that: nonce, the longest session and tag.
const LONGEST: usize = 128;

/// Keys, of which the first seals and all unseal.
pub(crate) struct SessionKeys(Vec<RandomizedNonceKey>);

impl SessionKeys {
    /// Keys of the config; `None` when they cannot be made, which has no reason.
    pub(crate) fn of(secrets: &[Secret]) -> Option<Arc<Self>> {
        let keys = secrets.iter().map(|secret| digest::digest(&digest::SHA256, secret.expose().as_bytes()));
        Self::made(keys.map(|key| key.as_ref().to_vec()))
    }

    /// One that only this process has.
    pub(crate) fn random() -> Option<Arc<Self>> {
        let mut key = vec![0; 32];
        rand::fill(&mut key).ok()?;
        Self::made(std::iter::once(key))
    }

    fn made(keys: impl Iterator<Item = Vec<u8>>) -> Option<Arc<Self>> {
        let keys: Option<Vec<_>> = keys.map(|key| RandomizedNonceKey::new(&AES_256_GCM_SIV, &key).ok()).collect();
        keys.filter(|keys| !keys.is_empty()).map(|keys| Arc::new(Self(keys)))
    }

    /// A session as its client carries it.
    pub(crate) fn seal(&self, session: &Session, context: impl AsRef<[u8]>) -> Option<String> {
        let mut bytes = session.to_bytes();
        let nonce = self.0.first()?.seal_in_place_append_tag(Aad::from(context), &mut bytes).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&nonce.as_ref()[..], &bytes].concat()))
    }

    /// What a client brought, if it is one of ours.
    pub(crate) fn open(&self, brought: &[u8], context: impl AsRef<[u8]>) -> Option<Session> {
        if brought.len() > LONGEST {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(brought).ok()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        self.0.iter().find_map(|key| {
            let mut bytes = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            Session::of_bytes(key.open_in_place(nonce, Aad::from(context.as_ref()), &mut bytes).ok()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secrets: &[&str]) -> Arc<SessionKeys> {
        let secrets: Vec<_> = secrets.iter().map(|secret| Secret::new((*secret).to_owned())).collect();
        SessionKeys::of(&secrets).unwrap()
    }

    #[test]
    fn only_what_was_sealed_here_comes_back() {
        for endpoint in ["192.0.2.77:8080", "[2001:db8::77]:8080"] {
            let session = Session { began: 1, told: 2, cluster: 3, endpoint: endpoint.parse().unwrap() };
            let (old, new) = (keys(&["the old secret"]), keys(&["the new secret", "the old secret"]));
            let sealed = old.seal(&session, "route a").unwrap();
            assert!(sealed.len() <= LONGEST, "{}", sealed.len());
            assert_eq!(old.open(sealed.as_bytes(), "route a"), Some(session));
            assert_eq!(new.open(sealed.as_bytes(), "route a"), Some(session), "keys may change in turn");
            assert_eq!(old.open(new.seal(&session, "route a").unwrap().as_bytes(), "route a"), None);
            assert_eq!(old.open(sealed.as_bytes(), "route b"), None, "it is bound to its route");
            assert_eq!(SessionKeys::random().unwrap().open(sealed.as_bytes(), "route a"), None);
            for index in 0..sealed.len() {
                let mut forged = sealed.clone().into_bytes();
                forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
                assert_eq!(old.open(&forged, "route a"), None, "changed at {index}");
            }
            assert_ne!(sealed, old.seal(&session, "route a").unwrap(), "the same says nothing twice");
        }
        let all = keys(&["a secret of some length"]);
        for nonsense in ["", "!", "QUJD", &"A".repeat(100), &"A".repeat(5000)] {
            assert_eq!(all.open(nonsense.as_bytes(), "x"), None);
        }
    }
}
