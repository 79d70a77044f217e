//! The source `files`: chain, key and trust bundle as PEM, put there by somebody else.
//!
//! In: paths. Out: material that works, or the reason why it does not. Promise: key and
//! chain are taken together or not at all, so a pair that is being written does no harm; a
//! bad revocation list holds up no rotation, and the last good lists stay in force.

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{IdentityFiles, TrustDomain};

use crate::error::{Error, Part};
use crate::material::{Material, Origin, read_certificates, read_key};
use crate::revocation::Revocation;

/// What the files hold, and what is wrong with those that are not vital.
pub(crate) struct Loaded {
    pub(crate) material: Material,
    pub(crate) problem: Option<Error>,
}

/// Reads and checks the files. `before` are the revocation lists in force, if there are any.
pub(crate) fn load(
    files: &IdentityFiles,
    trust_domain: &TrustDomain,
    before: Option<&Arc<Revocation>>,
    now: SystemTime,
) -> Result<Loaded, Error> {
    let chain = read_certificates(Part::Certificate, &files.certificate)?;
    let key = read_key(&files.key)?;
    let bundle = read_certificates(Part::TrustBundle, &files.trust_bundle)?;
    let origin =
        Origin { certificate: files.certificate.clone(), key: files.key.clone(), bundle: files.trust_bundle.clone() };
    let material = Material::new(chain, key, bundle, &origin, trust_domain, now)?;
    let authorities = material.bundle.iter().chain(material.credentials.cert.iter().skip(1));
    let (revocation, problem) = match (Revocation::read(&files.crl, files.crl_required, authorities), before) {
        (Ok(revocation), _) => (Arc::new(revocation), None),
        (Err(error), Some(before)) => (Arc::clone(before), Some(error)),
        (Err(error), None) => return Err(error),
    };
    Ok(Loaded { material: material.revoking(revocation), problem })
}
