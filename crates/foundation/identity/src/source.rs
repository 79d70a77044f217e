//! Where an identity comes from, as the config says: files, an authority elsewhere or in this process, an agent, or the
//! development authority.
//!
//! In: section `identity`. Out: material, when there is something new.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{DevelopmentAuthority, Identity, IdentityFiles, TrustDomain};

use crate::authority::{self, Authority};
use crate::development;
use crate::enrolment::{self, Enrolling, Enrolment};
use crate::error::Error;
use crate::files::{self, Loaded};
use crate::material::Material;
use crate::own::{OwnAuthority, Owning};
use crate::snapshot::Snapshot;
use crate::workload::{Agent, WorkloadApi};

/// What a source has.
pub(crate) struct Found {
    /// `None` when it is what was known already.
    pub(crate) material: Option<Material>,
    /// What is wrong although there is material.
    pub(crate) problem: Option<Error>,
}

/// Who can be asked for certificates.
#[derive(Clone, Default)]
pub(crate) struct Authorities {
    /// Asks over the network.
    pub(crate) enrolment: Option<Arc<dyn Enrolment>>,
    /// The authority of this process.
    pub(crate) own: Option<Arc<dyn OwnAuthority>>,
    /// Listens to agents.
    pub(crate) workload_api: Option<Arc<dyn WorkloadApi>>,
}

/// One source of an identity.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) trust_domain: TrustDomain,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Files(IdentityFiles),
    Authority(Enrolling),
    Own(Owning),
    Agent(Box<Agent>),
    Development(DevelopmentAuthority),
}

impl Source {
    /// The source that a section names.
    pub(crate) fn new(section: &Identity, authorities: &Authorities) -> Result<Self, Error> {
        let kind = if let Some(files) = &section.files {
            Kind::Files(files.clone())
        } else if let Some(settings) = &section.authority {
            let enrolment = authorities.enrolment.as_ref().ok_or(Error::NoEnrolment)?;
            Kind::Authority(Enrolling::new(settings, Arc::clone(enrolment))?)
        } else if let Some(settings) = &section.own_authority {
            Kind::Own(Owning::new(settings, Arc::clone(authorities.own.as_ref().ok_or(Error::NoEnrolment)?)))
        } else if let Some(settings) = &section.workload_api {
            let api = authorities.workload_api.as_ref().ok_or(Error::NoEnrolment)?;
            Kind::Agent(Box::new(Agent::new(settings, Arc::clone(api))?))
        } else if let Some(settings) = &section.development {
            Kind::Development(settings.clone())
        } else {
            return Err(Error::NoSource);
        };
        Ok(Self { trust_domain: section.trust_domain.clone(), kind })
    }

    /// The files that matter to it.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match &self.kind {
            Kind::Files(files) => {
                let vital = [&files.certificate, &files.key, &files.trust_bundle];
                vital.into_iter().chain(&files.crl).cloned().collect()
            }
            Kind::Authority(enrolling) => enrolling.paths(),
            Kind::Own(_) => Vec::new(),
            Kind::Agent(agent) => agent.paths(),
            Kind::Development(settings) => authority::paths(&settings.directory).into(),
        }
    }

    /// Waits until it tells of a change by itself; for ever if it never does. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        match &mut self.kind {
            Kind::Agent(agent) => agent.changed().await,
            Kind::Files(_) | Kind::Authority(_) | Kind::Own(_) | Kind::Development(_) => std::future::pending().await,
        }
    }

    /// What there is now. Cancel-safe.
    pub(crate) async fn load(&mut self, current: Option<&Snapshot>, now: SystemTime) -> Result<Found, Error> {
        match &mut self.kind {
            Kind::Files(files) => {
                let current = current.filter(|current| current.trust_domain == self.trust_domain);
                let before = current.map(|current| &current.material().revocation);
                let Loaded { material, problem } = files::load(files, &self.trust_domain, before, now)?;
                let known = current.is_some_and(|current| material.same_as(current.material()));
                Ok(Found { material: (!known).then_some(material), problem })
            }
            Kind::Authority(enrolling) => {
                let material = enrolling.load(&self.trust_domain, current, now).await?;
                Ok(Found { material, problem: None })
            }
            Kind::Own(owning) => {
                let material = owning.load(&self.trust_domain, current, now).await?;
                Ok(Found { material, problem: None })
            }
            Kind::Agent(agent) => {
                let current = current.filter(|current| current.trust_domain == self.trust_domain);
                let Some(Loaded { material, problem }) = agent.load(&self.trust_domain, current, now).await? else {
                    return Ok(Found { material: None, problem: None });
                };
                let known = current.is_some_and(|current| material.same_as(current.material()));
                Ok(Found { material: (!known).then_some(material), problem })
            }
            Kind::Development(settings) => {
                let material = development::load(settings, &self.trust_domain, current, now).await?;
                Ok(Found { material, problem: None })
            }
        }
    }

    /// When to ask for a new identity although no file has changed.
    pub(crate) fn renew_at(&self, snapshot: &Snapshot) -> Option<SystemTime> {
        match &self.kind {
            Kind::Files(_) | Kind::Agent(_) => None,
            Kind::Authority(_) | Kind::Own(_) => Some(enrolment::renew_at(snapshot)),
            Kind::Development(_) => Some(development::renew_at(snapshot)),
        }
    }

    /// Whether it would give an identity now, without making anything.
    pub(crate) fn check(&self, now: SystemTime) -> Result<(), Error> {
        match &self.kind {
            Kind::Files(files) => files::load(files, &self.trust_domain, None, now).map(drop),
            Kind::Authority(enrolling) => enrolling.check(),
            // Whether it signs is its own status.
            Kind::Own(_) => Ok(()),
            Kind::Agent(agent) => agent.check(),
            Kind::Development(settings) => Authority::read(&settings.directory, &self.trust_domain).map(drop),
        }
    }
}
