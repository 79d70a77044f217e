//! A certificate signing request ([RFC 2986]), as a workload sends it, and what is allowed in it.
//!
//! In: a request's PEM, and who the caller has proved to be. Out: the public key to certify, or
//! why not. Promise: never panics; the caller holds the key (the request is signed with it); what
//! a request asks beyond the caller's own identity is refused, never dropped in silence. The
//! subject is not looked at: nothing of it goes into the certificate.
//!
//! [RFC 2986]: https://www.rfc-editor.org/rfc/rfc2986

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use outrigger_config::SpiffeId;
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

/// A request is below 1 KiB, with RSA of 8192 bits below 3 KiB.
pub const MAX_REQUEST: usize = 16 << 10;
/// So much of a caller's own text is shown.
const SHOWN: usize = 160;

const EC_KEY: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";

/// Why a request gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is larger than any request needs to be.
    #[error("the signing request is larger than {MAX_REQUEST} bytes")]
    TooLarge,
    /// It is no PEM, or no PKCS#10.
    #[error("it is not a certificate signing request (PKCS#10) as PEM")]
    Malformed,
    /// Its key is of another kind.
    #[error("its key is of an unsupported kind; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")]
    KeyKind,
    /// It is not signed with its own key, or by a hash that is no longer safe.
    #[error("it is not signed with its own key, or with an unsupported algorithm")]
    Signature,
    /// It asks for an authority's certificate.
    #[error("it asks for the certificate of an authority")]
    Authority,
    /// It asks to be somebody else.
    #[error("it asks for `{asked}`, which the token does not prove")]
    OtherIdentity {
        /// What it asks for, shortened and escaped.
        asked: String,
    },
    /// It asks for something that X.509-SVIDs have not.
    #[error("it asks for the extension {0}, which workloads do not get")]
    Extension(String),
}

impl Refusal {
    /// The reason in a word, fit for a metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::KeyKind => "key_kind",
            Self::Signature => "signature",
            Self::Authority => "authority",
            Self::OtherIdentity { .. } => "other_identity",
            Self::Extension(_) => "extension",
        }
    }
}

/// A request that may be granted.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    pub(crate) key: SubjectPublicKeyInfo,
}

impl CertificateRequest {
    /// Reads a request, and holds it against the identity that its sender has proved.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn parse(pem: &[u8], proved: &SpiffeId) -> Result<Self, Refusal> {
        if pem.len() > MAX_REQUEST {
            return Err(Refusal::TooLarge);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| Refusal::Malformed)?;
        Self::parse_der(&der, proved)
    }

    /// The same for a request without its PEM.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn parse_der(der: &[u8], proved: &SpiffeId) -> Result<Self, Refusal> {
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else { return Err(Refusal::Malformed) };
        let key = &request.certification_request_info.subject_pki;
        let kind = Kind::of(key)?;
        check_signature(&request, kind)?;
        check_wishes(&request, proved)?;
        let key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| Refusal::KeyKind)?;
        Ok(Self { key })
    }
}

/// The kinds of keys that are certified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Rsa,
    Ed25519,
}

impl Kind {
    fn of(key: &ParsedKey<'_>) -> Result<Self, Refusal> {
        let parameters = key.algorithm.parameters.as_ref();
        match key.algorithm.algorithm.to_id_string().as_str() {
            EC_KEY => {
                let curve = parameters.and_then(|parameters| parameters.as_oid().ok());
                match curve.map(|curve| curve.to_id_string()).as_deref() {
                    Some(P256) => Ok(Self::P256),
                    Some(P384) => Ok(Self::P384),
                    _ => Err(Refusal::KeyKind),
                }
            }
            RSA => match key.parsed() {
                Ok(PublicKey::RSA(rsa)) if (2048..=8192).contains(&rsa.key_size()) => Ok(Self::Rsa),
                _ => Err(Refusal::KeyKind),
            },
            ED25519 => Ok(Self::Ed25519),
            _ => Err(Refusal::KeyKind),
        }
    }

    /// How a request with such a key is signed, by the signature algorithm it names. None with SHA-1.
    fn verification(self, algorithm: &str) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match (self, algorithm) {
            (Self::P256, "1.2.840.10045.4.3.2") => &signature::ECDSA_P256_SHA256_ASN1,
            (Self::P256, "1.2.840.10045.4.3.3") => &signature::ECDSA_P256_SHA384_ASN1,
            (Self::P384, "1.2.840.10045.4.3.2") => &signature::ECDSA_P384_SHA256_ASN1,
            (Self::P384, "1.2.840.10045.4.3.3") => &signature::ECDSA_P384_SHA384_ASN1,
            (Self::Rsa, "1.2.840.113549.1.1.11") => &signature::RSA_PKCS1_2048_8192_SHA256,
            (Self::Rsa, "1.2.840.113549.1.1.12") => &signature::RSA_PKCS1_2048_8192_SHA384,
            (Self::Rsa, "1.2.840.113549.1.1.13") => &signature::RSA_PKCS1_2048_8192_SHA512,
            (Self::Ed25519, ED25519) => &signature::ED25519,
            _ => return None,
        })
    }
}

/// The sender has the private key: else he could have a certificate for a key that somebody else holds.
fn check_signature(request: &X509CertificationRequest<'_>, kind: Kind) -> Result<(), Refusal> {
    let algorithm = request.signature_algorithm.algorithm.to_id_string();
    let verification = kind.verification(&algorithm).ok_or(Refusal::Signature)?;
    let info = &request.certification_request_info;
    let key = UnparsedPublicKey::new(verification, &info.subject_pki.subject_public_key.data);
    key.verify(info.raw, &request.signature_value.data).map_err(|_| Refusal::Signature)
}

/// What it asks for must be what it would get anyway.
fn check_wishes(request: &X509CertificationRequest<'_>, proved: &SpiffeId) -> Result<(), Refusal> {
    for attribute in request.certification_request_info.iter_attributes() {
        // Passwords and unknown attributes ask for nothing.
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
        for extension in &requested.extensions {
            check_extension(extension.parsed_extension(), &extension.oid.to_id_string(), proved)?;
        }
    }
    Ok(())
}

fn check_extension(extension: &ParsedExtension<'_>, oid: &str, proved: &SpiffeId) -> Result<(), Refusal> {
    match extension {
        ParsedExtension::SubjectAlternativeName(names) => {
            match names.general_names.iter().find(|name| **name != GeneralName::URI(proved.as_str())) {
                None => Ok(()),
                Some(GeneralName::URI(uri)) => Err(Refusal::OtherIdentity { asked: shown(uri) }),
                Some(other) => Err(Refusal::OtherIdentity { asked: shown(&other.to_string()) }),
            }
        }
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => Err(Refusal::Authority),
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => Err(Refusal::Authority),
        // What it says of its key's use matters not: every certificate gets the same.
        ParsedExtension::BasicConstraints(_)
        | ParsedExtension::KeyUsage(_)
        | ParsedExtension::ExtendedKeyUsage(_)
        | ParsedExtension::SubjectKeyIdentifier(_) => Ok(()),
        ParsedExtension::ParseError { .. } => Err(Refusal::Malformed),
        _ => Err(Refusal::Extension(shown(oid))),
    }
}

/// A caller's text, fit to be shown: printable and short.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_default).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
