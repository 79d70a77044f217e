//! Certificates for the tests, good and bad, and the tests that need several of the crate's parts.

mod authority;
mod enrolment;
mod files;
mod handshake;
mod revocation;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{IdentityFiles, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::material::{Material, Origin};
use crate::snapshot::Snapshot;

pub(super) const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";
pub(super) const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";

pub(super) fn shop() -> TrustDomain {
    "shop.example".parse().unwrap()
}

/// An authority for tests.
pub(super) struct Pki {
    pub(super) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(super) struct Pair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

impl Pki {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A good SVID, but for what `change` does to it.
    pub(super) fn svid(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = svid_params(id);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair { chain: vec![certificate.der().clone()], key }
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// An authority below this one.
    pub(super) fn intermediate(&self) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test intermediate");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// The snapshot of a good SVID.
    pub(super) fn snapshot(&self, id: &str) -> Snapshot {
        let pair = self.svid(id, |_| {});
        let origin = Origin { certificate: "c".into(), key: "k".into(), bundle: "b".into() };
        let material = Material::new(
            pair.chain.clone(),
            pair.certified().key.clone(),
            vec![self.certificate.clone()],
            &origin,
            &shop(),
            SystemTime::now(),
        );
        Snapshot::new(material.unwrap_or_else(|e| panic!("{e}")), shop(), 1)
    }
}

impl Pair {
    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialized_der()));
        Arc::new(CertifiedKey::new(self.chain.clone(), any_supported_type(&der).unwrap()))
    }

    /// Writes it into a folder, as `svid.pem` and `svid.key`.
    pub(super) fn write(&self, folder: &Path) {
        let pem: String = self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
        std::fs::write(folder.join("svid.pem"), pem).unwrap();
        std::fs::write(folder.join("svid.key"), self.key.serialize_pem()).unwrap();
    }
}

pub(super) fn svid_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(3600)).into();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    crate::pem::tests::pem_of(label, der)
}

pub(super) fn files_in(folder: &Path) -> IdentityFiles {
    let path = |name: &str| -> PathBuf { folder.join(name) };
    IdentityFiles {
        certificate: path("svid.pem"),
        key: path("svid.key"),
        trust_bundle: path("bundle.pem"),
        crl: Vec::new(),
        crl_required: false,
    }
}
