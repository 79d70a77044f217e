//! Decides whether a peer in a handshake is whom we expect.
//!
//! In: the chain a peer sent. Out: yes, or the reason. Promise: first the cryptography (the
//! chain leads to our trust bundle, all dates are right, the usage fits, nothing is revoked),
//! then the rules of an X.509-SVID, then the policy. DNS names mean nothing here.

use std::sync::Arc;

use outrigger_config::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::known::{self, KnownChains};
use crate::revocation::Revocation;
use crate::snapshot::PeerPolicy;
use crate::svid::{Leaf, PeerError};

/// Verifies peers on both ends of a connection.
#[derive(Debug)]
pub(crate) struct SpiffeVerifier {
    anchors: Arc<[TrustAnchor<'static>]>,
    revocation: Arc<Revocation>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: TrustDomain,
    policy: PeerPolicy,
    known: KnownChains,
}

/// Which end of the connection the certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Server,
    Client,
}

impl End {
    fn usage(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

impl SpiffeVerifier {
    pub(crate) fn new(
        anchors: Arc<[TrustAnchor<'static>]>,
        revocation: Arc<Revocation>,
        algorithms: WebPkiSupportedAlgorithms,
        trust_domain: TrustDomain,
        policy: PeerPolicy,
    ) -> Self {
        Self { anchors, revocation, algorithms, trust_domain, policy, known: KnownChains::default() }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        end: End,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).collect();
        let digest = known::digest(&chain, end.as_str());
        let id = match digest.and_then(|digest| self.known.find(&digest, now)) {
            Some(id) => id,
            None => {
                let id = self.verify_anew(leaf, intermediates, now, end)?;
                if let Some(digest) = digest {
                    self.known.remember(digest, &id, &chain, self.revocation.good_until());
                }
                id
            }
        };
        match &self.policy {
            PeerPolicy::TrustDomain => Ok(()),
            PeerPolicy::Only(expected) if expected.iter().any(|one| one.matches(&id)) => Ok(()),
            PeerPolicy::Only(expected) => Err(refused(PeerError::Unexpected { id, expected: expected.clone() })),
        }
    }

    /// Whom a chain names that leads to our trust bundle and breaks no rule.
    fn verify_anew(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        end: End,
    ) -> Result<SpiffeId, rustls::Error> {
        verify_chain(&self.anchors, &self.revocation, &self.algorithms, leaf, intermediates, now, end)?;
        let leaf = Leaf::parse(leaf).and_then(|leaf| leaf.of(&self.trust_domain)).map_err(refused)?;
        Ok(leaf.id)
    }
}

/// Whether a chain leads to an anchor, with right dates, signatures and usage, and nothing of it revoked.
pub(crate) fn verify_chain(
    anchors: &[TrustAnchor<'_>],
    revocation: &Revocation,
    algorithms: &WebPkiSupportedAlgorithms,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    end: End,
) -> Result<(), rustls::Error> {
    let parsed = EndEntityCert::try_from(leaf).map_err(|error| certificate_error(error, end))?;
    let check = |path: &VerifiedPath<'_>| revocation.check(path, now);
    parsed
        .verify_for_usage(algorithms.all, anchors, intermediates, now, end.usage(), None, Some(&check))
        .map(drop)
        .map_err(|error| certificate_error(error, end))
}

fn refused(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// As rustls does it for its own verifier, so that peers get the same alerts.
fn certificate_error(error: webpki::Error, end: End) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding.into(),
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before }.into(),
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after }.into(),
        E::InvalidCertValidity => CertificateError::Expired.into(),
        E::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        E::UnsupportedCriticalExtension => CertificateError::UnhandledCriticalExtension.into(),
        E::CertRevoked => CertificateError::Revoked.into(),
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus.into(),
        E::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }.into()
        }
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => refused(PeerError::Usage(end.as_str())),
        E::CaUsedAsEndEntity => refused(PeerError::Authority),
        other => CertificateError::Other(OtherError(Arc::new(other))).into(),
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, End::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    /// None: every client has one identity, and naming our authorities only makes the handshake longer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, End::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
