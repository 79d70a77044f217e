//! Why a TLS handshake failed: a label for metrics, a sentence for people.
//!
//! In: the error that rustls, or tokio-rustls, gave. Out: one of a fixed set of words, and a
//! text. Promise: the set of words is bounded, whatever peers do.

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, SystemTime};

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use crate::error::{date, span};
use crate::svid::PeerError;

/// The reason in one word, fit for a metric's label:
/// `no_certificate`, `expired`, `not_yet_valid`, `revoked`, `no_revocation_list`, `unknown_issuer`, `bad_signature`,
/// `not_an_svid`, `wrong_trust_domain`, `unexpected_peer`, `bad_certificate`, `refused_by_peer`, `no_common_parameters`, `not_tls`, `closed`, `timeout`,
/// `protocol` or `io`.
pub fn tls_error_reason(error: &(dyn StdError + 'static)) -> &'static str {
    if let Some(error) = find::<Error>(error) {
        return rustls_reason(error);
    }
    match find::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::TimedOut) => "timeout",
        Some(
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe,
        ) => "closed",
        _ => "io",
    }
}

/// The reason in a sentence: `peer presented spiffe://…/sa/x, expected one of …`.
pub fn tls_error_text(error: &(dyn StdError + 'static)) -> String {
    match find::<Error>(error) {
        Some(error) => rustls_text(error),
        None if tls_error_reason(error) == "closed" => "peer closed the connection during the TLS handshake".to_owned(),
        None => error.to_string(),
    }
}

/// Looks for an error of type `E` among the causes, also inside an [`io::Error`], which hides it from `source()`.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The rule of ours that the certificate breaks, if it was us who refused it.
pub(crate) fn peer_error(error: &CertificateError) -> Option<&PeerError> {
    match error {
        CertificateError::Other(other) => other.0.downcast_ref::<PeerError>(),
        _ => None,
    }
}

fn rustls_reason(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
            CertificateError::Revoked => "revoked",
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => "no_revocation_list",
            CertificateError::UnknownIssuer => "unknown_issuer",
            CertificateError::BadSignature => "bad_signature",
            error => match peer_error(error) {
                Some(PeerError::TrustDomain { .. }) => "wrong_trust_domain",
                Some(PeerError::Unexpected { .. }) => "unexpected_peer",
                Some(_) => "not_an_svid",
                None => "bad_certificate",
            },
        },
        Error::AlertReceived(alert) if is_about_us(*alert) => "refused_by_peer",
        Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::NoApplicationProtocol)
        | Error::PeerIncompatible(_)
        | Error::NoApplicationProtocol => "no_common_parameters",
        Error::InvalidMessage(_) => "not_tls",
        _ => "protocol",
    }
}

/// Alerts by which a peer says that it does not accept our certificate.
fn is_about_us(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
            | A::NoCertificate
            | A::DecryptError
    )
}

fn rustls_text(error: &Error) -> String {
    match error {
        Error::NoCertificatesPresented => "peer presented no certificate".to_owned(),
        Error::InvalidCertificate(error) => certificate_text(error),
        Error::AlertReceived(alert) if is_about_us(*alert) => {
            format!("peer does not accept our certificate (alert {alert:?}); its own log says why")
        }
        Error::AlertReceived(alert) => format!("peer ended the handshake (alert {alert:?})"),
        Error::InvalidMessage(_) => "peer does not speak TLS, or its bytes were damaged on the way".to_owned(),
        Error::NoApplicationProtocol => "peer speaks none of our application protocols (ALPN)".to_owned(),
        Error::PeerIncompatible(reason) => format!("no common TLS parameters: {}", incompatible_text(reason)),
        other => other.to_string(),
    }
}

fn certificate_text(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            let (now, not_after) = (at(time.as_secs()), at(not_after.as_secs()));
            format!("peer's certificate chain expired at {}, {} ago", date(not_after), span(not_after, now))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            let (now, not_before) = (at(time.as_secs()), at(not_before.as_secs()));
            format!(
                "peer's certificate chain is not valid before {}, in {}; is a clock wrong?",
                date(not_before),
                span(now, not_before)
            )
        }
        CertificateError::Revoked => "peer's certificate, or an authority above it, was revoked".to_owned(),
        CertificateError::UnknownRevocationStatus => {
            "an authority above peer's certificate has no revocation list (identity.files.crlRequired)".to_owned()
        }
        CertificateError::ExpiredRevocationListContext { next_update, .. } => format!(
            "an authority above peer's certificate has no revocation list newer than {} (identity.files.crlRequired)",
            date(at(next_update.as_secs()))
        ),
        CertificateError::UnknownIssuer => "peer's certificate is not signed by our trust bundle".to_owned(),
        CertificateError::BadSignature => "peer's certificate has a wrong signature".to_owned(),
        other => match peer_error(other) {
            Some(error @ PeerError::Unexpected { .. }) => error.to_string(),
            Some(PeerError::TrustDomain { id, expected }) => {
                format!("peer presented {id}, which is not of the trust domain `{expected}`")
            }
            Some(error) => format!("peer's certificate is no X.509-SVID: {error}"),
            None => format!("peer's certificate: {other}"),
        },
    }
}

fn incompatible_text(reason: &PeerIncompatible) -> &'static str {
    use PeerIncompatible as P;
    match reason {
        P::ServerDoesNotSupportTls12Or13 | P::ServerTlsVersionIsDisabledByOurConfig => "peer is older than TLS 1.2",
        P::SupportedVersionsExtensionRequired | P::Tls12NotOffered | P::Tls12NotOfferedOrEnabled => {
            "peer is older than TLS 1.2"
        }
        P::NoCipherSuitesInCommon => "no common cipher suite",
        P::NoKxGroupsInCommon | P::NoEcPointFormatsInCommon => "no common key exchange group",
        P::NoSignatureSchemesInCommon | P::NoCertificateRequestSignatureSchemesInCommon => {
            "no common signature scheme; our certificate's key is of a kind the peer cannot check"
        }
        _ => "peer lacks something that TLS 1.2 or 1.3 with these settings needs",
    }
}

pub(crate) fn at(unix_seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}
