//! What the authority signs with: roots of its own, or files that somebody else keeps.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use outrigger_config::Authority;

use crate::error::Error;
use crate::given::Given;
use crate::keeper::{Keeper, RootFacts, Signing};
use crate::kubernetes::{Api, SecretStore};
use crate::roots::Timing;
use crate::store::{Folder, Store};

/// Files are looked at so often even when nobody tells of a change.
const LOOK: Duration = Duration::from_secs(60);

pub(crate) enum Source {
    Own(Keeper),
    Given(Given),
}

impl Source {
    /// What a section names. `None` when it names nothing, which the config's rules do not let through.
    pub(crate) fn new(section: &Authority, api: &Api) -> Option<Self> {
        if let Some(files) = &section.issuer {
            return Some(Self::Given(Given::new(files.clone(), section.trust_domain.clone())));
        }
        let roots = section.roots.as_ref()?;
        let store: Box<dyn Store> = match (&roots.directory, &roots.secret) {
            (Some(directory), _) => Box::new(Folder::new(directory)),
            (None, Some(name)) => Box::new(SecretStore::new(api.clone(), name.clone())),
            (None, None) => return None,
        };
        let timing = Timing::new(roots.lifetime.into(), section.propagation(), section.max_ttl.into());
        Some(Self::Own(Keeper::new(store, section.trust_domain.clone(), timing)))
    }

    /// Does what is due. Cancel-safe.
    pub(crate) async fn tend(&self, now: SystemTime) -> Result<(), Error> {
        match self {
            Self::Own(keeper) => keeper.tend(now).await,
            Self::Given(given) => given.tend(now),
        }
    }

    /// Who signs now.
    pub(crate) async fn signing(&self, now: SystemTime) -> Result<Signing, Error> {
        match self {
            Self::Own(keeper) => keeper.signing(now).await,
            Self::Given(given) => {
                let known = given.signing(now).map(|(signing, _)| signing);
                known.ok_or_else(|| Error::Stale("the files of the authority".to_owned()))
            }
        }
    }

    /// When to do what is due again, unless a file changes before.
    pub(crate) fn look_again(&self, now: SystemTime) -> SystemTime {
        match self {
            Self::Own(keeper) => keeper.look_again(now),
            Self::Given(_) => now + LOOK,
        }
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Own(_) => Vec::new(),
            Self::Given(given) => given.paths(),
        }
    }

    pub(crate) fn facts(&self, now: SystemTime) -> Vec<RootFacts> {
        match self {
            Self::Own(keeper) => keeper.facts(now),
            Self::Given(given) => {
                let known = given.signing(now);
                let facts = known.iter().flat_map(|(signing, not_after)| {
                    signing.bundle.iter().map(|root| RootFacts {
                        hash: outrigger_identity::certificate_hash(root),
                        not_after: *not_after,
                        signs_from: now,
                        state: "given",
                    })
                });
                facts.collect()
            }
        }
    }
}
