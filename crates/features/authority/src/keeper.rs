//! Keeps the roots of a store: makes the first, rotates ahead of time, and says who signs now.
//!
//! In: a store, lifetimes, the time. Out: [`Signing`]: who signs, and the bundle that goes with
//! it. Promise: as `roots` promises, whatever moment a controller is killed at and however many
//! there are: a step is taken by replacing the one version that it was decided on, and a root
//! signs only once that has happened.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::TrustDomain;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use crate::document::{self, Material, to_pem};
use crate::error::Error;
use crate::issuer::Issuer;
use crate::roots::{Roots, Step, Timing};
use crate::store::{Store, StoreError};

/// Steps taken, or lost to others, in one go; a rotation has four.
const MOST_STEPS: usize = 16;

/// Who signs, and whom its callers are to trust.
#[derive(Clone)]
pub struct Signing {
    /// Signs certificates.
    pub issuer: Arc<Issuer>,
    /// All roots, the signing one and those before and after it.
    pub bundle: Arc<[CertificateDer<'static>]>,
    /// The same as PEM.
    pub bundle_pem: Arc<str>,
}

/// The roots as they were last read.
struct Known {
    roots: Roots<Material>,
    bundle: Arc<[CertificateDer<'static>]>,
    bundle_pem: Arc<str>,
    read_at: SystemTime,
}

/// What is told of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFacts {
    /// The SHA-256 of its certificate, in hexadecimal.
    pub hash: String,
    /// When it ends.
    pub not_after: SystemTime,
    /// When it began to sign, or will.
    pub signs_from: SystemTime,
    /// `next`, `signing` or `old`.
    pub state: &'static str,
}

/// Keeps the roots of one store.
pub struct Keeper {
    store: Box<dyn Store>,
    trust_domain: TrustDomain,
    timing: Timing,
    known: Mutex<Option<Known>>,
    /// One reads and steps at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// Keeps the roots of `trust_domain` in `store`.
    pub fn new(store: Box<dyn Store>, trust_domain: TrustDomain, timing: Timing) -> Self {
        Self { store, trust_domain, timing, known: Mutex::new(None), turn: tokio::sync::Mutex::default() }
    }

    /// Reads the roots and takes what steps are due. Cancel-safe: a step is taken whole or not at all.
    ///
    /// # Errors
    /// When the store fails, or what stands there is unusable; what was known stays.
    pub async fn tend(&self, now: SystemTime) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        self.step(now).await
    }

    /// Reads the roots, unless somebody did while we waited for our turn.
    async fn freshen(&self, now: SystemTime) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        if self.is_fresh(now) { Ok(()) } else { self.step(now).await }
    }

    /// A clock that was set back makes everything look old, which does no harm.
    fn is_fresh(&self, now: SystemTime) -> bool {
        self.age(now).is_some_and(|age| age <= self.timing.slack / 4)
    }

    async fn step(&self, now: SystemTime) -> Result<(), Error> {
        let failed = |source: StoreError| Error::Store { place: self.store.place(), source };
        for _ in 0..MOST_STEPS {
            let stored = self.store.read().await.map_err(failed)?;
            let mut roots = match &stored {
                None => Roots(Vec::new()),
                Some(stored) => document::read(&stored.document, &self.trust_domain)
                    .map_err(|problem| Error::Roots { place: self.store.place(), problem })?,
            };
            let step = roots.step(&self.timing, now);
            match step {
                Step::Rest => {
                    let bundle_pem = self.learn(roots, now);
                    return self.store.publish(&bundle_pem).await.map_err(failed);
                }
                Step::Add { signs_from } => {
                    roots.0.push(document::make(&self.trust_domain, self.timing.lifetime, signs_from, now)?);
                }
                Step::DropKey(at) => roots.0[at].drop_key(),
                Step::Remove => drop(roots.0.remove(0)),
            }
            let fresh = document::write(&roots, &self.trust_domain);
            let version = stored.map(|stored| stored.version);
            if self.store.replace(version.as_deref(), &fresh).await.map_err(failed)? {
                tracing::info!(component = "authority", place = %self.store.place(), step = ?step, "roots changed");
            }
            // It is read again in either case: nothing signs that is not surely there.
        }
        Err(Error::Contended { place: self.store.place() })
    }

    /// Who signs now. Reads the roots first when what is known is not fresh.
    ///
    /// # Errors
    /// When they cannot be read, and what is known is too old to go by: another controller may have changed them.
    pub async fn signing(&self, now: SystemTime) -> Result<Signing, Error> {
        if !self.is_fresh(now)
            && let Err(error) = self.freshen(now).await
            && self.age(now).is_none_or(|age| age > self.timing.slack)
        {
            return Err(error);
        }
        let known = self.known.lock();
        let signing = known.as_ref().and_then(|known| {
            let signer = &known.roots.0[known.roots.signer(now)?].material;
            let issuer = signer.issuer.clone()?;
            Some(Signing { issuer, bundle: Arc::clone(&known.bundle), bundle_pem: Arc::clone(&known.bundle_pem) })
        });
        signing.ok_or_else(|| Error::Stale(self.store.place()))
    }

    /// What is known of the roots.
    pub fn facts(&self, now: SystemTime) -> Vec<RootFacts> {
        let known = self.known.lock();
        let Some(known) = known.as_ref() else { return Vec::new() };
        let signer = known.roots.signer(now);
        let facts = known.roots.0.iter().enumerate().map(|(at, root)| RootFacts {
            hash: outrigger_identity::certificate_hash(&root.material.certificate),
            not_after: root.not_after,
            signs_from: root.signs_from,
            state: match signer {
                Some(signer) if at < signer => "old",
                Some(signer) if at == signer => "signing",
                _ => "next",
            },
        });
        facts.collect()
    }

    /// When to look again at the latest.
    pub fn look_again(&self, now: SystemTime) -> SystemTime {
        let known = self.known.lock();
        let change = known.as_ref().and_then(|known| known.roots.next_change(&self.timing, now));
        let fresh = now + self.timing.slack / 4;
        change.map_or(fresh, |change| change.min(fresh))
    }

    fn age(&self, now: SystemTime) -> Option<Duration> {
        let known = self.known.lock();
        now.duration_since(known.as_ref()?.read_at).ok()
    }

    fn learn(&self, roots: Roots<Material>, now: SystemTime) -> Arc<str> {
        if let Some(known) = self.known.lock().as_mut().filter(|known| same(&known.roots, &roots)) {
            // What signs stays the very same, so that nobody takes it for a change.
            known.read_at = now;
            return Arc::clone(&known.bundle_pem);
        }
        let bundle: Arc<[_]> = roots.0.iter().map(|root| root.material.certificate.clone()).collect();
        let bundle_pem: Arc<str> = to_pem(bundle.iter()).into();
        *self.known.lock() = Some(Known { roots, bundle, bundle_pem: Arc::clone(&bundle_pem), read_at: now });
        bundle_pem
    }
}

fn same(one: &Roots<Material>, other: &Roots<Material>) -> bool {
    let facts = |roots: &Roots<Material>| -> Vec<_> {
        let facts = roots.0.iter().map(|root| (root.material.pem.clone(), root.signs_from, root.has_key));
        facts.collect()
    };
    facts(one) == facts(other)
}
