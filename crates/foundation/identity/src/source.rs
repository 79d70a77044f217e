//! Where an identity comes from, as the config says: files, or the development authority.
//!
//! In: section `identity`. Out: material, when there is something new.

use std::path::PathBuf;
use std::time::SystemTime;

use outrigger_config::{DevelopmentAuthority, Identity, IdentityFiles, TrustDomain};

use crate::authority::{self, Authority};
use crate::error::Error;
use crate::material::Material;
use crate::snapshot::Snapshot;
use crate::{development, files};

/// One source of an identity.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) trust_domain: TrustDomain,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Files(IdentityFiles),
    Development(DevelopmentAuthority),
}

impl Source {
    /// The source that a section names.
    pub(crate) fn new(section: &Identity) -> Result<Self, Error> {
        let kind = match (&section.files, &section.development) {
            (Some(files), _) => Kind::Files(files.clone()),
            (None, Some(settings)) => Kind::Development(settings.clone()),
            (None, None) => return Err(Error::NoSource),
        };
        Ok(Self { trust_domain: section.trust_domain.clone(), kind })
    }

    /// The files that matter to it.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match &self.kind {
            Kind::Files(files) => vec![files.certificate.clone(), files.key.clone(), files.trust_bundle.clone()],
            Kind::Development(settings) => authority::paths(&settings.directory).into(),
        }
    }

    /// New material; `None` when `current` is what the source still gives. Cancel-safe.
    pub(crate) async fn load(&self, current: Option<&Snapshot>, now: SystemTime) -> Result<Option<Material>, Error> {
        match &self.kind {
            Kind::Files(files) => {
                let material = files::load(files, &self.trust_domain, now)?;
                let known = current.is_some_and(|current| {
                    current.trust_domain == self.trust_domain && material.same_as(current.material())
                });
                Ok((!known).then_some(material))
            }
            Kind::Development(settings) => development::load(settings, &self.trust_domain, current, now).await,
        }
    }

    /// When to ask for a new identity although no file has changed.
    pub(crate) fn renew_at(&self, snapshot: &Snapshot) -> Option<SystemTime> {
        match &self.kind {
            Kind::Files(_) => None,
            Kind::Development(_) => Some(development::renew_at(snapshot)),
        }
    }

    /// Whether it would give an identity now, without making anything.
    pub(crate) fn check(&self, now: SystemTime) -> Result<(), Error> {
        match &self.kind {
            Kind::Files(files) => files::load(files, &self.trust_domain, now).map(drop),
            Kind::Development(settings) => Authority::read(&settings.directory, &self.trust_domain).map(drop),
        }
    }
}
