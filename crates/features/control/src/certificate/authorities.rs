//! The authorities that sign the webhook's certificates: a small document that all replicas share.
//!
//! In: the document, the time. Out: who signs, whom to trust, and the step that is due. Promise: a new authority is trusted
//! before it signs, and an old one is trusted until nothing of it is shown any more; every replica decides the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_config::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize, Serializer};
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

/// The form below. A newer controller that writes another one raises it.
const FORM: u32 = 1;
/// A machine's clock may be so far behind ours.
const BACKDATED: Duration = Duration::from_secs(3600);
/// A certificate of ours lives no longer, for it is in one process's memory and costs nothing to make.
const LONGEST_LEAF: Duration = Duration::from_secs(7 * 86400);

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    /// An authority.
    pub(crate) lifetime: Duration,
    /// The time between being trusted and signing, and between having signed and being forgotten.
    pub(crate) propagation: Duration,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Another authority, which signs from then on.
    Add { signs_from: SystemTime },
    /// This one is over.
    Remove(usize),
}

/// An authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Authority {
    pub(crate) certificate: String,
    #[serde(serialize_with = "exposed")]
    key: Secret,
    /// Seconds since the epoch, like those below.
    not_after: u64,
    signs_from: u64,
}

/// Where they are kept is the one place where keys are written.
fn exposed<S: Serializer>(key: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.expose())
}

/// All of them, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Authorities(pub(crate) Vec<Authority>);

#[derive(Serialize, Deserialize)]
struct Document {
    form: u32,
    authorities: Vec<Authority>,
}

impl Authorities {
    /// Reads a document; the text says what is wrong with it, and repeats nothing of it.
    pub(crate) fn read(document: &[u8]) -> Result<Self, String> {
        let read = serde_json::from_slice(document);
        let Document { form, authorities } =
            read.map_err(|error| format!("line {} column {} is not as expected", error.line(), error.column()))?;
        if form != FORM {
            return Err(format!("it is written in form {form}, and this version reads form {FORM}"));
        }
        Ok(Self(authorities))
    }

    pub(crate) fn write(&self) -> Zeroizing<Vec<u8>> {
        let document = Document { form: FORM, authorities: self.0.clone() };
        // A map of texts and numbers can always be written.
        Zeroizing::new(serde_json::to_vec(&document).unwrap_or_default())
    }

    /// Whom to trust, as PEM.
    pub(crate) fn bundle(&self) -> String {
        self.0.iter().map(|authority| authority.certificate.as_str()).collect()
    }

    /// What is due.
    pub(crate) fn step(&self, now: SystemTime, timing: Timing) -> Option<Step> {
        let seconds = |span: Duration| span.as_secs();
        let now_seconds = since_epoch(now);
        if let Some(over) = self.0.iter().position(|authority| authority.not_after <= now_seconds) {
            return Some(Step::Remove(over));
        }
        let Some(newest) = self.0.last() else { return Some(Step::Add { signs_from: now }) };
        if newest.not_after < now_seconds + seconds(timing.lifetime / 3) {
            return Some(Step::Add { signs_from: now + timing.propagation });
        }
        // All others have stopped signing when the newest began to.
        let forgotten = newest.signs_from + seconds(timing.propagation) <= now_seconds;
        (self.0.len() > 1 && forgotten).then_some(Step::Remove(0))
    }

    /// With that step taken.
    pub(crate) fn after(&self, step: Step, now: SystemTime, timing: Timing) -> Result<Self, String> {
        let mut all = self.0.clone();
        match step {
            Step::Add { signs_from } => all.push(Authority::make(now, signs_from, timing.lifetime)?),
            Step::Remove(at) => drop(all.remove(at)),
        }
        Ok(Self(all))
    }

    /// Who signs now: the newest that may, and that the API server is known to trust. When it trusts none, the newest that may,
    /// for it will be told.
    pub(crate) fn signing(&self, now: SystemTime, trusts: impl Fn(&str) -> bool) -> Option<&Authority> {
        let now = since_epoch(now);
        let valid = || self.0.iter().rev().filter(move |authority| authority.not_after > now);
        let may = || valid().filter(move |authority| authority.signs_from <= now);
        may().find(|authority| trusts(&authority.certificate)).or_else(|| may().next()).or_else(|| valid().next_back())
    }
}

impl Authority {
    fn make(now: SystemTime, signs_from: SystemTime, lifetime: Duration) -> Result<Self, String> {
        let failed = |error: rcgen::Error| format!("cannot make an authority: {error}");
        let key = OwnKey(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?);
        let not_after = since_epoch(now + lifetime);
        let mut params = CertificateParams::default();
        params.serial_number = Some(random_serial()?);
        params.not_before = (now - BACKDATED).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(not_after)).into();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("outrigger webhook authority {}", since_epoch(now)));
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let key = Secret::new(key.0.serialize_pem());
        Ok(Self { certificate, key, not_after, signs_from: since_epoch(signs_from) })
    }

    /// A certificate for these names, ready to be shown, and when it ends.
    pub(crate) fn serve(&self, names: &[String], now: SystemTime) -> Result<(Arc<ServerConfig>, SystemTime), String> {
        let failed = |error: rcgen::Error| format!("cannot sign the webhook's certificate: {error}");
        let signing = OwnKey(KeyPair::from_pem(self.key.expose()).map_err(|_| "the authority's key is unusable")?);
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let issuer =
            rcgen::Issuer::from_ca_cert_der(&der.map_err(|_| "the authority's certificate is no PEM")?, signing);
        let key = OwnKey(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?);
        let authority_ends = UNIX_EPOCH + Duration::from_secs(self.not_after);
        let not_after = UNIX_EPOCH + Duration::from_secs(since_epoch((now + LONGEST_LEAF).min(authority_ends)));
        let mut params = CertificateParams::default();
        params.serial_number = Some(random_serial()?);
        params.not_before = (now - BACKDATED).into();
        params.not_after = not_after.into();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &issuer.map_err(failed)?).map_err(failed)?;
        let chain = vec![signed.der().clone()];
        let config = outrigger_identity::server_config_with_key(chain, key.0.serialized_der(), &[b"http/1.1"]);
        Ok((config.map_err(|error| error.to_string())?, not_after))
    }
}

/// A key pair that is overwritten when dropped.
struct OwnKey(KeyPair);

impl Drop for OwnKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for OwnKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for OwnKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

fn random_serial() -> Result<SerialNumber, String> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| "the system gave no random numbers")?;
    // The first bit would be a sign, and a zero in front would be cut off.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

fn since_epoch(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMING: Timing = Timing { lifetime: Duration::from_secs(900), propagation: Duration::from_secs(60) };

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    /// Without the cryptography, which the rules know nothing of.
    fn taken(all: &Authorities, step: Step, now: SystemTime) -> Authorities {
        let mut all = all.clone();
        match step {
            Step::Remove(at) => drop(all.0.remove(at)),
            Step::Add { signs_from } => all.0.push(Authority {
                certificate: format!("{}", since_epoch(now)),
                key: Secret::new(String::new()),
                not_after: since_epoch(now + TIMING.lifetime),
                signs_from: since_epoch(signs_from),
            }),
        }
        all
    }

    #[test]
    fn a_document_comes_back_and_serves() {
        let now = SystemTime::now();
        let first = Authorities::default();
        let step = first.step(now, TIMING).unwrap();
        let made = first.after(step, now, TIMING).unwrap();
        assert_eq!(Authorities::read(&made.write()).unwrap(), made);
        assert_eq!(made.step(now, TIMING), None);
        let names = ["outrigger-controller.outrigger-system.svc".to_owned(), "127.0.0.1".to_owned()];
        let (_, ends) = made.signing(now, |_| true).unwrap().serve(&names, now).unwrap();
        assert!(ends <= now + TIMING.lifetime && ends > now + TIMING.lifetime / 2);
        for (text, problem) in [("{}", "line 1"), ("{\"form\":2,\"authorities\":[]}", "form 2")] {
            assert!(Authorities::read(text.as_bytes()).unwrap_err().contains(problem), "{text}");
        }
        assert!(!format!("{made:?}").contains("PRIVATE"), "a key is shown");
    }

    proptest! {
        /// Two replicas that look at different times; the API server learns of a bundle somewhat later.
        #[test]
        fn whoever_shows_a_certificate_is_trusted(looks in prop::collection::vec((1u64..25, any::<bool>(), 0u64..20), 100..300)) {
            let (mut now, mut document) = (0, Authorities::default());
            // What each replica read last, and what the API server trusts from when on.
            let mut known = [Authorities::default(), Authorities::default()];
            let mut read = [0, 0];
            let mut trusted: Vec<(u64, String)> = Vec::new();
            for (wait, second, delay) in looks {
                now += wait;
                let replica = usize::from(second);
                while let Some(step) = document.step(at(now), TIMING) {
                    document = taken(&document, step, at(now));
                    let bundle = document.0.iter().map(|one| format!("{} ", one.certificate)).collect();
                    trusted.push((now + delay, bundle));
                }
                prop_assert!(!document.0.is_empty() && document.0.len() <= 3);
                // The other one looks as well, at the latest when it has not for a third of the propagation.
                for (one, read) in read.iter_mut().enumerate().filter(|(one, read)| *one == replica || now - **read > 20) {
                    (known[one], *read) = (document.clone(), now);
                }
                let bundle = trusted.iter().rev().find(|(from, _)| *from <= now).map(|(_, bundle)| bundle.clone());
                for known in &known {
                    let Some(signing) = known.signing(at(now), |_| false) else { continue };
                    // The very first bundle has to arrive once.
                    if let Some(bundle) = &bundle {
                        prop_assert!(bundle.contains(&signing.certificate), "{} signs, {} are trusted", signing.certificate, bundle);
                    }
                }
            }
        }
    }
}
