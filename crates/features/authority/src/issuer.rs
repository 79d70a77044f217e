//! Signs certificates: X.509-SVIDs for workloads ([X509-SVID]), and one for the authority's own port.
//!
//! In: an authority's certificate and key, checked requests, a lifetime. Out: certificates.
//! Promise: a certificate ends no later than what signs it; its serial number is random; its key
//! material, once here, is in no output and is overwritten when dropped.
//!
//! [X509-SVID]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use outrigger_config::{SpiffeId, TrustDomain};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SignatureAlgorithm, SigningKey, SubjectPublicKeyInfo,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use zeroize::Zeroize;

use crate::error::Error;
use crate::request::CertificateRequest;

/// Peers' clocks differ a little.
const BACKDATED: Duration = Duration::from_secs(120);

/// A key pair that is overwritten when dropped.
pub(crate) struct OwnKey(pub(crate) KeyPair);

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

/// An authority's certificate and key, ready to sign.
pub struct Issuer {
    signer: rcgen::Issuer<'static, OwnKey>,
    /// What callers get beside their own certificate; none when a root signs.
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

impl Issuer {
    /// Signs with `key`, which belongs to `certificate`; `chain` is what stands between a workload's certificate and
    /// the roots, `certificate` itself included unless it is one of them. Nothing outlives `not_after`.
    pub(crate) fn new(
        certificate: &CertificateDer<'_>,
        key: OwnKey,
        chain: Vec<CertificateDer<'static>>,
        not_after: SystemTime,
    ) -> Result<Self, Error> {
        let signer = rcgen::Issuer::from_ca_cert_der(certificate, key).map_err(Error::Sign)?;
        Ok(Self { signer, chain, not_after })
    }

    /// The certificates between a workload's and the roots.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Signs a workload's certificate.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn svid(
        &self,
        request: &CertificateRequest,
        id: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, Error> {
        let name = SanType::URI(id.as_str().try_into().map_err(Error::Sign)?);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(&request.key, vec![name], usages, ttl, now)
    }

    /// Makes a certificate and verifies it as a workload would, by these roots: names, lengths and dates of all above it
    /// count. Gives what is wrong.
    pub(crate) fn prove(
        &self,
        trust_domain: &TrustDomain,
        roots: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let key = KeyPair::generate().map_err(|error| text(&error))?;
        let key = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).map_err(|error| text(&error))?;
        let id: SpiffeId = format!("spiffe://{trust_domain}/ns/x/sa/x").parse().map_err(|error| text(&error))?;
        let signed = self.svid(&CertificateRequest { key }, &id, Duration::from_secs(3600), now);
        let signed = signed.map_err(|error| text(&error))?;
        let leaf = EndEntityCert::try_from(&signed.certificate).map_err(|error| text(&error))?;
        let anchors: Result<Vec<_>, _> = roots.iter().map(anchor_from_trusted_cert).collect();
        let anchors = anchors.map_err(|error| format!("a root is unusable: {error}"))?;
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let algorithms = default_provider().signature_verification_algorithms;
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            leaf.verify_for_usage(algorithms.all, &anchors, self.chain(), now, usage, None, None)
                .map_err(|error| text(&error))?;
        }
        Ok(())
    }

    /// Signs the certificate of a server with these names and addresses.
    pub(crate) fn server(
        &self,
        key: &impl PublicKeyData,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, Error> {
        let names = names.iter().map(|name| match name.parse() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => name.as_str().try_into().map(SanType::DnsName),
        });
        let names = names.collect::<Result<_, _>>().map_err(Error::Sign)?;
        self.leaf(key, names, vec![ExtendedKeyUsagePurpose::ServerAuth], ttl, now)
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, Error> {
        // Certificates count in whole seconds.
        let now = whole_seconds(now);
        let serial = random_serial()?;
        let not_before = now - (ttl / 4).min(BACKDATED);
        let not_after = (now + ttl).min(self.not_after);
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        // Who it is stands in the names alone; a subject would only be one more name to get wrong.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.signer).map_err(Error::Sign)?;
        let serial = serial.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Signed { certificate: certificate.der().clone(), serial, not_before, not_after })
    }
}

pub(crate) fn whole_seconds(at: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// A positive number of 16 bytes: RFC 5280 allows 20, and asks for what nobody can guess.
pub(crate) fn random_serial() -> Result<[u8; 16], Error> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| Error::Random)?;
    // The first bit would be a sign, and a zero in front would be cut off.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}
