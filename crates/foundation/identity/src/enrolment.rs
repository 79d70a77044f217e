//! The source `authority`: a certificate that an authority signs, over the network, for who our token proves.
//!
//! In: the authority's address, a token, whom to trust at first. Out: fresh material from half of a
//! certificate's life on. Promise: the key is made here and never leaves memory; what comes back is
//! taken only if it is for that key, of our trust domain, and verifies by the bundle beside it;
//! what is kept for a restart is kept in memory, too (tmpfs).
//!
//! How an authority is asked is a feature's: it implements [`Enrolment`].

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{IdentityAuthority, Secret, SpiffeId, TrustDomain};
use outrigger_runtime::{BoxError, BoxFuture};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Part};
use crate::material::{Material, Origin, cause, read_blocks, read_certificates, read_file};
use crate::pem::write_pem as pem_of;
use crate::public::client_config_trusting;
use crate::snapshot::Snapshot;

/// What is kept for a restart.
const KEPT: &str = "identity.pem";
/// Roots are kept beside the chain, under a label of their own.
const ROOT: &str = "TRUSTED CERTIFICATE";
/// The share of a certificate's life over which renewals spread, after half of it.
const JITTER: u32 = 10;

/// What an authority is asked.
pub struct Asked<'a> {
    /// Who it is and how long it may take.
    pub settings: &'a IdentityAuthority,
    /// The certificate signing request, PEM.
    pub request: &'a str,
    /// What proves who we are.
    pub token: &'a Secret,
    /// TLS to it.
    pub tls: Arc<ClientConfig>,
}

/// What an authority gave.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Our certificate, then those between it and the roots.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots.
    pub bundle: Vec<CertificateDer<'static>>,
}

/// Asks an authority for a certificate.
pub trait Enrolment: Send + Sync {
    /// Who a token says we are, as far as it can be read: some authorities want to be asked for just that.
    fn subject(&self, token: &Secret, trust_domain: &TrustDomain) -> Option<SpiffeId>;

    /// One try. Cancel-safe; ends within the time that the settings give.
    fn enrol<'a>(&'a self, asked: Asked<'a>) -> BoxFuture<'a, Result<Enrolled, BoxError>>;
}

/// One authority, and what it gave last.
pub(crate) struct Enrolling {
    settings: IdentityAuthority,
    enrolment: Arc<dyn Enrolment>,
    /// The certificate that came from it: another one that is current came from another source.
    own: Mutex<Option<CertificateDer<'static>>>,
}

impl fmt::Debug for Enrolling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Enrolling").field(&self.settings.address).finish_non_exhaustive()
    }
}

impl Enrolling {
    pub(crate) fn new(settings: &IdentityAuthority, enrolment: Arc<dyn Enrolment>) -> Result<Self, Error> {
        if let Some(folder) = &settings.state_directory {
            check_in_memory(folder)?;
        }
        Ok(Self { settings: settings.clone(), enrolment, own: Mutex::new(None) })
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        vec![self.settings.ca_file.clone(), self.settings.token_file.clone()]
    }

    /// Whether what it takes to ask is there.
    pub(crate) fn check(&self) -> Result<(), Error> {
        read_certificates(Part::CaBundle, &self.settings.ca_file)?;
        self.token().map(drop)
    }

    /// Fresh material; `None` while `current` is still good. Cancel-safe.
    pub(crate) async fn load(
        &self,
        trust_domain: &TrustDomain,
        current: Option<&Snapshot>,
        now: SystemTime,
    ) -> Result<Option<Material>, Error> {
        let ours = |current: &Snapshot| self.own.lock().as_ref() == current.certificates().first();
        if current.is_some_and(|current| ours(current) && now < renew_at(current)) {
            return Ok(None);
        }
        if current.is_none()
            && let Some(kept) = self.restore(trust_domain, now)
        {
            self.remember(&kept);
            return Ok(Some(kept));
        }
        let (material, kept) = self.enrol(trust_domain, current, now).await?;
        self.remember(&material);
        self.keep(&kept);
        Ok(Some(material))
    }

    fn remember(&self, material: &Material) {
        *self.own.lock() = material.credentials.cert.first().cloned();
    }

    async fn enrol(
        &self,
        trust_domain: &TrustDomain,
        current: Option<&Snapshot>,
        now: SystemTime,
    ) -> Result<(Material, Zeroizing<String>), Error> {
        let unmade = |error: rcgen::Error| self.failed("make a signing request", error.to_string().into());
        let token = self.token()?;
        let id = self.enrolment.subject(&token, trust_domain);
        // The bundle that it gave us last knows the root it changes to, which the file may not.
        let mut trusted = read_certificates(Part::CaBundle, &self.settings.ca_file)?;
        let known = current.filter(|current| current.trust_domain == *trust_domain);
        trusted.extend(known.into_iter().flat_map(|current| current.trust_bundle().iter().cloned()));
        let tls = client_config_trusting(&trusted)?;

        let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unmade)?;
        let pkcs8 = Zeroizing::new(pair.serialize_der());
        let key_pem = Zeroizing::new(pair.serialize_pem());
        let request = signing_request(&pair, id.as_ref());
        pair.zeroize();
        let request = request.map_err(unmade)?;
        let asked = Asked { settings: &self.settings, request: &request, token: &token, tls };
        let Enrolled { chain, bundle } =
            self.enrolment.enrol(asked).await.map_err(|error| self.failed("get a certificate", error))?;

        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
        let key = any_supported_type(&key).map_err(Error::Tls)?;
        let mut kept = key_pem;
        chain.iter().for_each(|certificate| kept.push_str(&pem_of("CERTIFICATE", certificate)));
        bundle.iter().for_each(|certificate| kept.push_str(&pem_of(ROOT, certificate)));
        let material = Material::new(chain, key, bundle, &self.origin(), trust_domain, now.max(SystemTime::now()))?;
        Ok((material, kept))
    }

    fn token(&self) -> Result<Secret, Error> {
        let bytes = read_file(Part::Token, &self.settings.token_file)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) if !text.trim().is_empty() => Ok(Secret::new(text.trim().to_owned())),
            _ => Err(Error::EmptyToken { path: self.settings.token_file.clone() }),
        }
    }

    /// For errors: where the certificate is from.
    fn origin(&self) -> Origin {
        let from = PathBuf::from(format!("of {}", self.settings.address));
        Origin { certificate: from.clone(), key: from.clone(), bundle: from }
    }

    fn failed(&self, action: &'static str, source: BoxError) -> Error {
        Error::Enrolment { address: self.settings.address.clone(), action, source }
    }

    /// What was kept before the restart, if it still works.
    fn restore(&self, trust_domain: &TrustDomain, now: SystemTime) -> Option<Material> {
        let path = self.settings.state_directory.as_ref()?.join(KEPT);
        let kept = match self.read_kept(&path, trust_domain, now) {
            Ok(kept) => kept,
            Err(Error::Missing { .. }) => return None,
            Err(error) => {
                tracing::info!(component = "identity", %error, "the certificate of before the restart is of no use");
                return None;
            }
        };
        tracing::info!(component = "identity", path = %path.display(), "certificate of before the restart taken");
        Some(kept)
    }

    fn read_kept(&self, path: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Material, Error> {
        let blocks = read_blocks(Part::Certificate, path)?;
        let of = |label: &'static str| blocks.iter().filter(move |block| block.label == label);
        let certificates =
            |label: &'static str| of(label).map(|block| CertificateDer::from(block.der.to_vec())).collect::<Vec<_>>();
        let key = of("PRIVATE KEY").next().ok_or_else(|| Error::UnusableKey { path: path.into() })?;
        let key = any_supported_type(&PrivatePkcs8KeyDer::from(key.der.as_slice()).into())
            .map_err(|_| Error::UnusableKey { path: path.into() })?;
        let origin = Origin { certificate: path.into(), key: path.into(), bundle: path.into() };
        Material::new(certificates("CERTIFICATE"), key, certificates(ROOT), &origin, trust_domain, now)
    }

    /// Keeps it for a restart. A failure costs no more than that.
    fn keep(&self, kept: &str) {
        let Some(folder) = &self.settings.state_directory else { return };
        let done = check_in_memory(folder).map_err(|error| cause(&error)).and_then(|()| Ok(write(folder, kept)?));
        if let Err(error) = done {
            tracing::warn!(component = "identity", folder = %folder.display(), %error, "the certificate is not kept for a restart");
        }
    }
}

/// When a certificate is renewed: after half its life, and up to a tenth of it later, so that workloads that started
/// together do not come together.
pub(crate) fn renew_at(snapshot: &Snapshot) -> SystemTime {
    let lifetime = snapshot.not_after.duration_since(snapshot.not_before).unwrap_or_default();
    // A certificate's last byte is of its signature, as good as random and the same at each call.
    let drawn = snapshot.certificates().first().and_then(|certificate| certificate.last().copied()).unwrap_or_default();
    snapshot.not_before + lifetime / 2 + lifetime / JITTER * u32::from(drawn) / 255
}

pub(crate) fn signing_request(key: &KeyPair, id: Option<&SpiffeId>) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = id {
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    }
    params.serialize_request(key)?.pem()
}

/// Whether what is written there stays in memory. A key on a disk outlives its pod.
fn check_in_memory(folder: &Path) -> Result<(), Error> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let kind = rustix::fs::statfs(there).map(|facts| facts.f_type);
    match kind {
        Ok(TMPFS | RAMFS) => Ok(()),
        _ => Err(Error::NotInMemory { path: folder.into() }),
    }
}

fn write(folder: &Path, text: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (path, new) = (folder.join(KEPT), folder.join("identity.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}
