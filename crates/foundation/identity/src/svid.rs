//! The rules of an X.509-SVID, applied to one leaf certificate ([X509-SVID], sections 2 to 5).
//!
//! In: a certificate as DER, whoever sent it. Out: its SPIFFE ID, or the rule it breaks.
//! Promise: never panics; what a peer wrote is shortened and escaped before it is shown.
//!
//! [X509-SVID]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use outrigger_config::{SpiffeId, SpiffePattern, TrustDomain};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// So much of a peer's own text is shown.
const SHOWN: usize = 160;

/// Why a certificate, ours or a peer's, is not accepted as a SPIFFE identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// It is no X.509 certificate that can be understood.
    #[error("it is not a well-formed X.509 v3 certificate")]
    Malformed,
    /// It names no URI.
    #[error("it has no URI in its subject alternative names, so it has no SPIFFE ID")]
    NoUri,
    /// It names more than one URI.
    #[error("it has {count} URIs in its subject alternative names, where an X.509-SVID has exactly one")]
    SeveralUris {
        /// How many.
        count: usize,
    },
    /// Its URI is no SPIFFE ID.
    #[error("its URI `{uri}` is not a SPIFFE ID")]
    NotSpiffe {
        /// The URI, shortened and escaped.
        uri: String,
    },
    /// Its SPIFFE ID is a whole trust domain's.
    #[error("its SPIFFE ID {id} names a trust domain, not a workload")]
    NoWorkload {
        /// The ID.
        id: SpiffeId,
    },
    /// It is an authority's certificate.
    #[error("it is the certificate of an authority, not of a workload")]
    Authority,
    /// Its key is not for signing.
    #[error("its key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// Its key is for signing certificates or CRLs.
    #[error("its key usage has keyCertSign or cRLSign, which only an authority may have")]
    MaySign,
    /// It belongs to another trust domain.
    #[error("{id} is not of the trust domain `{expected}`")]
    TrustDomain {
        /// Who it is.
        id: SpiffeId,
        /// Whom we accept.
        expected: TrustDomain,
    },
    /// It is somebody else.
    #[error("peer presented {id}, expected {}", expected_text(expected))]
    Unexpected {
        /// Who it is.
        id: SpiffeId,
        /// Whom we accept.
        expected: Vec<SpiffePattern>,
    },
    /// It is not for this end of a connection.
    #[error("its extended key usage does not allow {0} authentication")]
    Usage(&'static str),
}

/// The SPIFFE ID in the leaf of a verified chain, as rustls' `peer_certificates()` gives it. `None` without a
/// certificate, or when the leaf is no X.509-SVID.
pub fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Option<SpiffeId> {
    let leaf = certificates?.first()?;
    Leaf::parse(leaf).ok().map(|leaf| leaf.id)
}

/// A certificate's SHA-256, in hexadecimal.
pub fn certificate_hash(certificate: &CertificateDer<'_>) -> String {
    let hash = digest::digest(&digest::SHA256, certificate);
    hash.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let digit = |four: u8| char::from(b"0123456789abcdef"[usize::from(four)]);
        text.extend([digit(byte >> 4), digit(byte & 15)]);
        text
    })
}

/// What matters in a leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    /// Reads a certificate and applies the rules for leaves; neither signatures nor dates are looked at.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let certificate = parse(der)?;
        let id = workload_id(&certificate)?;
        check_usage(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            id,
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
        })
    }

    /// Whether it is of `trust_domain`.
    pub(crate) fn of(self, trust_domain: &TrustDomain) -> Result<Self, PeerError> {
        if self.id.trust_domain() == trust_domain.as_str() {
            Ok(self)
        } else {
            Err(PeerError::TrustDomain { id: self.id, expected: trust_domain.clone() })
        }
    }
}

/// The dates and the only URI of an authority's certificate.
pub(crate) struct AuthorityFacts {
    pub(crate) uri: Option<String>,
    pub(crate) is_authority: bool,
    pub(crate) not_after: SystemTime,
}

impl AuthorityFacts {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let certificate = parse(der)?;
        let uri = uris(&certificate)?.first().map(|uri| shown(uri));
        let not_after = system_time(certificate.validity().not_after.timestamp());
        Ok(Self { uri, is_authority: is_authority(&certificate)?, not_after })
    }
}

/// The time in which a certificate is valid.
pub(crate) fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), PeerError> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    Ok((system_time(validity.not_before.timestamp()), system_time(validity.not_after.timestamp())))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(PeerError::Malformed),
    }
}

fn workload_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, PeerError> {
    let uris = uris(certificate)?;
    let uri = match uris.as_slice() {
        [] => return Err(PeerError::NoUri),
        [uri] => *uri,
        several => return Err(PeerError::SeveralUris { count: several.len() }),
    };
    let id: SpiffeId = uri.parse().map_err(|_| PeerError::NotSpiffe { uri: shown(uri) })?;
    let has_path = id.as_str().len() > "spiffe://".len() + id.trust_domain().len();
    if has_path { Ok(id) } else { Err(PeerError::NoWorkload { id }) }
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, PeerError> {
    let names = certificate.subject_alternative_name().map_err(|_| PeerError::Malformed)?;
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A URI that is no ASCII text comes back as invalid, not as a URI.
            GeneralName::Invalid(..) => return Err(PeerError::Malformed),
            _ => {}
        }
    }
    Ok(uris)
}

fn is_authority(certificate: &X509Certificate<'_>) -> Result<bool, PeerError> {
    let constraints = certificate.basic_constraints().map_err(|_| PeerError::Malformed)?;
    Ok(constraints.is_some_and(|constraints| constraints.value.ca))
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), PeerError> {
    if is_authority(certificate)? {
        return Err(PeerError::Authority);
    }
    let usage = certificate.key_usage().map_err(|_| PeerError::Malformed)?;
    let Some(usage) = usage.map(|usage| usage.value) else { return Err(PeerError::NoDigitalSignature) };
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(PeerError::MaySign);
    }
    if usage.digital_signature() { Ok(()) } else { Err(PeerError::NoDigitalSignature) }
}

pub(crate) fn system_time(seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(span) } else { UNIX_EPOCH.checked_add(span) };
    time.unwrap_or(UNIX_EPOCH)
}

/// A peer's text, fit to be shown: printable and short.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_default).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn expected_text(expected: &[SpiffePattern]) -> String {
    const SHOWN_IDS: usize = 5;
    match expected {
        [] => "nobody".to_owned(),
        [one] => one.to_string(),
        several => {
            let ids: Vec<_> = several.iter().take(SHOWN_IDS).map(SpiffePattern::as_str).collect();
            let more = if several.len() > SHOWN_IDS { ", …" } else { "" };
            format!("one of {}{more}", ids.join(", "))
        }
    }
}
