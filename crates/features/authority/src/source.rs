//! What the authority signs with: roots of its own, files that somebody else keeps, or an intermediate below Vault's authority.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use outrigger_config::Authority;
use outrigger_http::Resolver;
use outrigger_vault::Observer;

use crate::error::Error;
use crate::given::Given;
use crate::keeper::{Keeper, RootFacts, Signing};
use crate::kubernetes::{Api, SecretStore};
use crate::roots::Timing;
use crate::store::{Folder, Store};
use crate::vault::Vaulted;

/// After a failure a store is asked again so soon.
const RETRY: Duration = Duration::from_secs(2);
/// Files are looked at so often even when nobody tells of a change.
const LOOK: Duration = Duration::from_secs(60);

pub(crate) enum Source {
    Own(Keeper),
    Given(Given),
    Vault(Box<Vaulted>),
}

impl Source {
    /// What a section names. `None` when it names nothing, which the config's rules do not let through. `observer` is told of
    /// requests to Vault.
    pub(crate) fn new(section: &Authority, api: &Api, resolver: &Resolver, observer: Observer) -> Option<Self> {
        if let Some(files) = &section.issuer {
            return Some(Self::Given(Given::new(files.clone(), section.trust_domain.clone())));
        }
        if let Some(vault) = &section.vault {
            let (domain, resolver) = (section.trust_domain.clone(), resolver.clone());
            let vaulted = Vaulted::new(vault, domain, section.max_ttl.into(), resolver, observer);
            return Some(Self::Vault(Box::new(vaulted)));
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
            Self::Vault(vaulted) => vaulted.tend(now).await,
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
            Self::Vault(vaulted) => vaulted.signing(now),
        }
    }

    /// When to do what is due again, unless a file changes before.
    pub(crate) fn look_again(&self, now: SystemTime) -> SystemTime {
        match self {
            Self::Own(keeper) => keeper.look_again(now),
            Self::Given(_) => now + LOOK,
            Self::Vault(vaulted) => vaulted.look_again(now + LOOK),
        }
    }

    /// How long to wait after a failure.
    pub(crate) fn retry(&self, now: SystemTime) -> Duration {
        match self {
            Self::Own(_) | Self::Given(_) => RETRY,
            Self::Vault(vaulted) => vaulted.retry(now),
        }
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Own(_) => Vec::new(),
            Self::Given(given) => given.paths(),
            Self::Vault(vaulted) => vaulted.paths(),
        }
    }

    pub(crate) fn facts(&self, now: SystemTime) -> Vec<RootFacts> {
        match self {
            Self::Own(keeper) => keeper.facts(now),
            Self::Vault(vaulted) => vaulted.facts(now),
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
