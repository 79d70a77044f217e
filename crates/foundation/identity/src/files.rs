//! The source `files`: chain, key and trust bundle as PEM, put there by somebody else.
//!
//! In: three paths. Out: material that works, or the reason why it does not. Promise: key and
//! chain are taken together or not at all, so a pair that is being written does no harm.

use std::time::SystemTime;

use outrigger_config::{IdentityFiles, TrustDomain};

use crate::error::{Error, Part};
use crate::material::{Material, Origin, read_certificates, read_key};

/// Reads and checks the files.
pub(crate) fn load(files: &IdentityFiles, trust_domain: &TrustDomain, now: SystemTime) -> Result<Material, Error> {
    let chain = read_certificates(Part::Certificate, &files.certificate)?;
    let key = read_key(&files.key)?;
    let bundle = read_certificates(Part::TrustBundle, &files.trust_bundle)?;
    let origin =
        Origin { certificate: files.certificate.clone(), key: files.key.clone(), bundle: files.trust_bundle.clone() };
    Material::new(chain, key, bundle, &origin, trust_domain, now)
}
