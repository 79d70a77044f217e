//! The roots as a document: what the store keeps, and what every controller reads.
//!
//! In: roots with their keys, or JSON. Out: JSON, or roots that are known to fit together.
//! Promise: one trust domain's document is never taken for another's; nor is one that a newer
//! version wrote in a way that we do not know.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_config::{Secret, TrustDomain};
use outrigger_identity::write_pem;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize, Serializer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::issuer::{Issuer, OwnKey, random_serial, whole_seconds};
use crate::roots::{Root, Roots};

/// The form below. A newer controller that writes another one raises it.
const FORM: u32 = 1;
/// A machine's clock may be so far behind that of the one that made the root.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A root's certificate, and what signs with its key while there is one.
#[derive(Clone)]
pub(crate) struct Material {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) pem: String,
    key: Option<Secret>,
    pub(crate) issuer: Option<Arc<Issuer>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    form: u32,
    trust_domain: String,
    roots: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    certificate: String,
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
    key: Option<Secret>,
    /// Seconds since the epoch.
    signs_from: u64,
}

/// Where the keys are kept is the one place where they are written.
fn exposed<S: Serializer>(key: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(key) => serializer.serialize_str(key.expose()),
        None => serializer.serialize_none(),
    }
}

/// Reads a document; the text says what is wrong with it.
pub(crate) fn read(document: &[u8], trust_domain: &TrustDomain) -> Result<Roots<Material>, String> {
    // The library's own text might repeat what stands there.
    let Document { form, trust_domain: found, roots } = serde_json::from_slice(document)
        .map_err(|error| format!("line {} column {} is not as expected", error.line(), error.column()))?;
    if form != FORM {
        return Err(format!("they are written in form {form}, and this version reads form {FORM}"));
    }
    if found != trust_domain.as_str() {
        return Err(format!("they are of the trust domain `{found}`, not `{trust_domain}`"));
    }
    let roots = roots.into_iter().enumerate();
    roots
        .map(|(at, entry)| root(entry).map_err(|problem| format!("root {}: {problem}", at + 1)))
        .collect::<Result<_, _>>()
        .map(Roots)
}

fn root(entry: Entry) -> Result<Root<Material>, String> {
    let Entry { certificate: pem, key, signs_from } = entry;
    let certificate =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "its certificate is no PEM".to_owned())?;
    let not_after = authority_ends(&certificate)?;
    let issuer = match &key {
        None => None,
        Some(key) => {
            let pair = KeyPair::from_pem(key.expose()).map_err(|_| "its key is unusable".to_owned())?;
            let pair = OwnKey(pair);
            if !belong_together(&certificate, &pair) {
                return Err("its key does not belong to its certificate".to_owned());
            }
            let issuer = Issuer::new(&certificate, pair, Vec::new(), not_after).map_err(|error| error.to_string())?;
            Some(Arc::new(issuer))
        }
    };
    Ok(Root {
        not_after,
        signs_from: UNIX_EPOCH + Duration::from_secs(signs_from),
        has_key: key.is_some(),
        material: Material { certificate, pem, key, issuer },
    })
}

/// Writes a document.
pub(crate) fn write(roots: &Roots<Material>, trust_domain: &TrustDomain) -> Zeroizing<Vec<u8>> {
    let entry = |root: &Root<Material>| Entry {
        certificate: root.material.pem.clone(),
        key: root.material.key.clone(),
        signs_from: root.signs_from.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    let document = Document {
        form: FORM,
        trust_domain: trust_domain.as_str().to_owned(),
        roots: roots.0.iter().map(entry).collect(),
    };
    // Room for all, so that no shorter copy of a key is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096 * (roots.0.len() + 1)));
    // Writing text and numbers into memory cannot fail.
    let _ = serde_json::to_writer_pretty(&mut *bytes, &document);
    bytes
}

/// Makes a new root.
pub(crate) fn make(
    trust_domain: &TrustDomain,
    lifetime: Duration,
    signs_from: SystemTime,
    now: SystemTime,
) -> Result<Root<Material>, Error> {
    let now = whole_seconds(now);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Sign)?;
    let key = OwnKey(key);
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Outrigger");
    // Two roots must not share a name: verifiers look for an issuer by it.
    let number: String = serial[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("root {number} of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().map_err(Error::Sign)?)];
    let certificate = params.self_signed(&key).map_err(Error::Sign)?;
    let (der, pem) = (certificate.der().clone(), certificate.pem());
    let secret = Secret::new(key.0.serialize_pem());
    let not_after = SystemTime::from(params.not_after);
    let issuer = Arc::new(Issuer::new(&der, key, Vec::new(), not_after)?);
    let material = Material { certificate: der, pem, key: Some(secret), issuer: Some(issuer) };
    Ok(Root { not_after, signs_from: whole_seconds(signs_from), has_key: true, material })
}

impl Root<Material> {
    /// Forgets the key.
    pub(crate) fn drop_key(&mut self) {
        self.has_key = false;
        self.material.key = None;
        self.material.issuer = None;
    }
}

/// When an authority's certificate ends; an error when it is no authority's.
pub(crate) fn authority_ends(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let Ok(([], parsed)) = X509Certificate::from_der(certificate) else {
        return Err("it is no X.509 certificate".to_owned());
    };
    let constraints = parsed.basic_constraints().ok().flatten();
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err("it is not the certificate of an authority".to_owned());
    }
    let usage = parsed.key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its key usage does not allow it to sign certificates".to_owned());
    }
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

pub(crate) fn belong_together(certificate: &CertificateDer<'_>, key: &OwnKey) -> bool {
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|parsed| *parsed.subject_public_key_info() == *key.subject_public_key_info())
}

/// Certificates as PEM, one after the other.
pub(crate) fn to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certificates.into_iter().map(|certificate| write_pem("CERTIFICATE", certificate)).collect()
}
