//! The development authority: a self-signed certificate and its key in a shared folder.
//!
//! In: a folder that several processes may use at once. Out: an authority that issues
//! X.509-SVIDs. Promise: the authority is made once, whoever comes first, and every process
//! sees the same one; its key is readable by its owner only; one that has expired is renewed.
//! It is for development: whoever can read the folder can be anyone.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Part};
use crate::material::{cause, read_certificates, read_pkcs8};
use crate::svid::AuthorityFacts;

/// How long an authority lives: longer than any development setup.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 86400);
/// A machine's clock may be so far behind that of the one that made the authority.
const BACKDATED: Duration = Duration::from_secs(3600);
/// How long we wait for another process that makes the authority; it takes milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
const LOCK: &str = ".lock";

/// The authority of a folder, ready to issue.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    key: OwnKey,
}

/// A key pair that is overwritten when dropped.
struct OwnKey(KeyPair);

impl Drop for OwnKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The files of an authority's folder.
pub(crate) fn paths(directory: &Path) -> [PathBuf; 2] {
    [directory.join(CERTIFICATE), directory.join(KEY)]
}

impl Authority {
    /// Opens the folder's authority; makes the folder and the authority when there is none that lives for `need` yet.
    /// Cancel-safe: it leaves either the old authority or the new one.
    pub(crate) async fn open(
        directory: &Path,
        trust_domain: &TrustDomain,
        need: Duration,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let failed = |action, error: io::Error| failed(directory, action, error);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| failed("create the folder", error))?;
        if let Some(found) = Self::read(directory, trust_domain)?.filter(|found| found.lives(need, now)) {
            return Ok(found);
        }
        let _lock = lock(directory).await?;
        // Another process may have been faster.
        match Self::read(directory, trust_domain)? {
            Some(found) if found.lives(need, now) => return Ok(found),
            Some(_) => {
                tracing::info!(component = "identity", directory = %directory.display(), "development authority has expired and is renewed")
            }
            None => {
                tracing::info!(component = "identity", directory = %directory.display(), "development authority created")
            }
        }
        Self::create(directory, trust_domain, now)
    }

    /// The folder's authority. `None` when there is none, or only the half that a crash left.
    pub(crate) fn read(directory: &Path, trust_domain: &TrustDomain) -> Result<Option<Self>, Error> {
        let [certificate_path, key_path] = paths(directory);
        let unusable = |error: Error| Error::Authority {
            directory: directory.into(),
            action: "use what is there; remove ca.pem and ca.key to have a new authority made",
            source: cause(&error),
        };
        let (chain, key) = match (read_certificates(Part::TrustBundle, &certificate_path), read_pkcs8(&key_path)) {
            (Err(Error::Missing { .. }), _) | (_, Err(Error::Missing { .. })) => return Ok(None),
            (chain, key) => (chain.map_err(unusable)?, key.map_err(unusable)?),
        };
        let bad_key = || unusable(Error::UnusableKey { path: key_path.clone() });
        let key = OwnKey(KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.as_slice())).map_err(|_| bad_key())?);
        let bad = |problem: String| {
            unusable(Error::BadCertificate {
                part: Part::TrustBundle,
                path: certificate_path.clone(),
                number: 1,
                problem,
            })
        };
        let [certificate] = chain.try_into().map_err(|_| bad("there is more than one certificate".to_owned()))?;
        if !belong_together(&certificate, &key.0) {
            return Ok(None);
        }
        let facts = AuthorityFacts::parse(&certificate).map_err(|error| bad(error.to_string()))?;
        if !facts.is_authority {
            return Err(bad("it is not the certificate of an authority".to_owned()));
        }
        match facts.uri.as_deref().and_then(|uri| uri.strip_prefix("spiffe://")) {
            Some(found) if found != trust_domain.as_str() => Err(Error::AuthorityOfAnother {
                directory: directory.into(),
                found: found.to_owned(),
                expected: trust_domain.clone(),
            }),
            _ => Ok(Some(Self { certificate, not_after: facts.not_after, key })),
        }
    }

    /// Makes a new authority and puts it in place; the caller holds the lock.
    fn create(directory: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, Error> {
        let unmade = |error: rcgen::Error| Error::Authority {
            directory: directory.into(),
            action: "make a certificate",
            source: error.to_string().into(),
        };
        let key = OwnKey(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unmade)?);
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LIFETIME).into();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Outrigger");
        params.distinguished_name.push(DnType::CommonName, format!("development authority of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().map_err(unmade)?)];
        let certificate = params.self_signed(&key.0).map_err(unmade)?;

        let [certificate_path, key_path] = paths(directory);
        // The key first: who reads in between finds a pair that does not match, and waits for the lock.
        let key_pem = Zeroizing::new(key.0.serialize_pem());
        replace(&key_path, key_pem.as_bytes(), 0o600).map_err(|error| failed(directory, "write ca.key", error))?;
        replace(&certificate_path, certificate.pem().as_bytes(), 0o644)
            .map_err(|error| failed(directory, "write ca.pem", error))?;
        let not_after = SystemTime::from(params.not_after);
        Ok(Self { certificate: certificate.der().clone(), not_after, key })
    }

    fn lives(&self, need: Duration, now: SystemTime) -> bool {
        now + need < self.not_after
    }

    /// The authority's certificate: the trust bundle.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Issues an X.509-SVID with a key of its own, which never leaves memory.
    pub(crate) fn issue(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, Arc<dyn SigningKey>), rcgen::Error> {
        let key = OwnKey(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let mut params = CertificateParams::default();
        // Peers' clocks differ a little.
        params.not_before = (now - (ttl / 4).min(Duration::from_secs(60))).into();
        params.not_after = (now + ttl).min(self.not_after).into();
        // The ID is in the URI alone; a subject would only be one more name to get wrong.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key.0)?;
        let certificate = params.signed_by(&key.0, &issuer)?;
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.0.serialized_der()));
        let signing = any_supported_type(&der).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok((certificate.der().clone(), signing))
    }
}

fn belong_together(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|parsed| *parsed.subject_public_key_info() == *key.subject_public_key_info())
}

/// Holds off other processes until it is dropped. Cancel-safe.
async fn lock(directory: &Path) -> Result<File, Error> {
    let failed = |error: io::Error| failed(directory, "lock the folder", error);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(directory.join(LOCK));
    let file = file.map_err(failed)?;
    let begin = tokio::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_PATIENCE => tokio::time::sleep(LOCK_PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                return Err(failed(io::Error::other("another process has held the lock for 10s")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Puts a file in place as a whole.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    // What a crash left may have any mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new)?;
    // The umask may have taken more than we want taken.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, path)
}

fn failed(directory: &Path, action: &'static str, error: io::Error) -> Error {
    Error::Authority { directory: directory.into(), action, source: error.into() }
}
