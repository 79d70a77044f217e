//! An authority that somebody else keeps: certificate, key and roots as PEM files.
//!
//! In: paths, such as those of a secret that cert-manager writes. Out: [`Signing`]. Promise: the three
//! are taken together or not at all, and only when a certificate made with them verifies; what
//! was good stays while the files are not.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{AuthorityIssuer, TrustDomain};
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::document::{authority_ends, belong_together, to_pem};
use crate::error::Error;
use crate::issuer::{Issuer, OwnKey};
use crate::keeper::Signing;

/// No bundle of authorities is nearly as large.
const MAX_FILE: u64 = 4 << 20;

/// Keeps what the files hold.
pub(crate) struct Given {
    files: AuthorityIssuer,
    trust_domain: TrustDomain,
    known: Mutex<Option<(Signing, SystemTime)>>,
}

impl Given {
    pub(crate) fn new(files: AuthorityIssuer, trust_domain: TrustDomain) -> Self {
        Self { files, trust_domain, known: Mutex::new(None) }
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        vec![self.files.certificate.clone(), self.files.key.clone(), self.files.trust_bundle.clone()]
    }

    /// Reads the files; what was known stays when they are no good.
    pub(crate) fn tend(&self, now: SystemTime) -> Result<(), Error> {
        let known = self.load(now)?;
        *self.known.lock() = Some(known);
        Ok(())
    }

    /// Who signs, and when that ends.
    pub(crate) fn signing(&self, now: SystemTime) -> Option<(Signing, SystemTime)> {
        self.known.lock().clone().filter(|(_, not_after)| now < *not_after)
    }

    fn load(&self, now: SystemTime) -> Result<(Signing, SystemTime), Error> {
        let AuthorityIssuer { certificate, key: key_path, trust_bundle } = &self.files;
        let bad = |path: &Path, problem: String| Error::File { path: path.into(), problem };
        let certificates = read_certificates(certificate)?;
        let roots = read_certificates(trust_bundle)?;
        let key = PrivateKeyDer::from_pem_slice(&read(key_path)?)
            .map_err(|_| bad(key_path, "it holds no private key as PEM".to_owned()))?;
        let key = KeyPair::try_from(&key).map_err(|_| {
            bad(
                key_path,
                "the key is damaged or of an unsupported kind; use ECDSA P-256 or P-384, Ed25519, or RSA".to_owned(),
            )
        })?;
        let key = OwnKey(key);
        let signing = &certificates[0];
        if !belong_together(signing, &key) {
            let problem = format!("it does not belong to the first certificate of {}", certificate.display());
            return Err(bad(key_path, problem));
        }
        let mut not_after = authority_ends(signing).map_err(|problem| bad(certificate, problem))?;
        // A root is known to all by the bundle.
        let chain: Vec<_> = certificates.iter().filter(|one| !roots.contains(one)).cloned().collect();
        for above in &chain {
            not_after = not_after.min(authority_ends(above).map_err(|problem| bad(certificate, problem))?);
        }
        if not_after <= now {
            return Err(bad(certificate, "it has expired; issue a new one".to_owned()));
        }
        let issuer = Issuer::new(signing, key, chain, not_after)?;
        issuer.prove(&self.trust_domain, &roots, now).map_err(|error| {
            let bundle = trust_bundle.display();
            let problem = format!(
                "what it signs does not verify by {bundle} ({error}); add its root there, or the missing certificates here"
            );
            bad(certificate, problem)
        })?;
        let signing = Signing { issuer: Arc::new(issuer), bundle_pem: to_pem(&roots).into(), bundle: roots.into() };
        Ok((signing, not_after))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::File { path: path.into(), problem: "it holds no certificates as PEM".to_owned() }),
    }
}

/// Reads a small file in one piece, so that no copy of a key stays behind.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |error: std::io::Error| Error::File { path: path.into(), problem: format!("cannot read it: {error}") };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(failed(std::io::Error::other("it is too large")));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
