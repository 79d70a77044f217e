//! TLS to ordinary servers, and the one crypto provider of the house.
//!
//! In: a PEM bundle, or nothing for the public authorities compiled in. Out: a rustls
//! client config that checks names and chains as a browser would.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use outrigger_config::TlsVersion;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::CertificateDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite, SupportedProtocolVersion};

use crate::error::{Error, Part};
use crate::material::{anchors, blocks_of, certificates_in, key_in, read_certificates, read_key};

/// The provider all our configs are built with; no process-wide default is needed. It prefers the hybrid
/// post-quantum key exchange ([X25519MLKEM768]): recorded traffic stays secret. And it prefers AES-128 with SHA-256:
/// with the processor's help both cost less than AES-256 with SHA-384, which are there for those who ask for them.
///
/// [X25519MLKEM768]: https://datatracker.ietf.org/doc/draft-ietf-tls-ecdhe-mlkem/
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let build = || {
        let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        Arc::new(CryptoProvider { kx_groups, cipher_suites: CIPHER_SUITES.to_vec(), ..default_provider() })
    };
    PROVIDER.get_or_init(build).clone()
}

const CIPHER_SUITES: [SupportedCipherSuite; 9] = [
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The versions of TLS not older than `least`.
pub(crate) fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match least {
        TlsVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsVersion::Tls13 => &TLS13,
    }
}

/// Which signatures we can check.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

/// TLS to servers of the public internet: Mozilla's authorities, compiled in. HTTP/1.1 by ALPN.
///
/// # Errors
/// [`Error::Tls`] when the TLS library refuses its own defaults.
pub fn public_client_config() -> Result<Arc<ClientConfig>, Error> {
    client_config_with_roots(None)
}

/// TLS to servers that chain to a PEM bundle, or without one to the public authorities compiled in. HTTP/1.1 by ALPN.
///
/// # Errors
/// When the bundle cannot be read, is no PEM, or holds no certificate.
pub fn client_config_with_roots(ca_pem: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let (mut config, _) = ordinary_client_config(ca_pem, None, TlsVersion::default())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS to servers that chain to a PEM bundle (or to the public authorities), presenting a certificate with its key when
/// a server asks for one. Also a digest of all that it was made of, for telling whether a file changed. No ALPN.
///
/// # Errors
/// When a file cannot be read, is no PEM, or certificate and key do not belong together.
pub fn ordinary_client_config(
    ca_pem: Option<&Path>,
    own: Option<(&Path, &Path)>,
    least: TlsVersion,
) -> Result<(ClientConfig, ConfigDigest), Error> {
    let mut digest = ConfigDigest::of(least);
    let roots = match ca_pem {
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let bundle = read_certificates(Part::CaBundle, path)?;
            digest.add(&bundle);
            RootCertStore::from_iter(anchors(&bundle, Part::CaBundle, path)?.iter().cloned())
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(least))
        .map_err(Error::Tls)?
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let pair = read_pair(certificate, key)?;
            digest.add(&pair.cert);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
    };
    Ok((config, digest))
}

/// PEM that has been read, and the place it came from, for errors.
pub type PemOf<'a> = (&'a Path, &'a [u8]);

/// TLS to servers that chain to these authorities (or to the public ones), presenting this certificate with its key when a
/// server asks for one. HTTP/1.1 by ALPN.
///
/// # Errors
/// When something is no PEM, or certificate and key do not belong together.
pub fn client_config_of_pem(
    ca: Option<PemOf<'_>>,
    own: Option<(PemOf<'_>, PemOf<'_>)>,
) -> Result<Arc<ClientConfig>, Error> {
    let certificates = |part, (path, bytes): PemOf<'_>| certificates_in(part, path, &blocks_of(part, path, bytes)?);
    let roots = match ca {
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(ca) => {
            let bundle = certificates(Part::CaBundle, ca)?;
            RootCertStore::from_iter(anchors(&bundle, Part::CaBundle, ca.0)?.iter().cloned())
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(TlsVersion::Tls12))
        .map_err(Error::Tls)?
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let signing = key_in(key.0, &blocks_of(Part::Key, key.0, key.1)?)?;
            let pair = CertifiedKey::new(certificates(Part::Certificate, certificate)?, signing);
            let mismatch = || Error::KeyMismatch { certificate: certificate.0.into(), key: key.0.into() };
            pair.keys_match().map_err(|_| mismatch())?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)))
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS to a server that must chain to one of these authorities.
pub(crate) fn client_config_trusting(authorities: &[CertificateDer<'static>]) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(TlsVersion::Tls12))
        .map_err(Error::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A certificate with its chain, and the key that belongs to it.
pub(crate) fn read_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let pair = CertifiedKey::new(read_certificates(Part::Certificate, certificate)?, read_key(key)?);
    pair.keys_match().map_err(|_| Error::KeyMismatch { certificate: certificate.into(), key: key.into() })?;
    Ok(pair)
}

/// What a config was made of. A key needs no part in it: a new one has a new certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDigest {
    least: TlsVersion,
    certificates: Vec<Box<[u8]>>,
}

impl ConfigDigest {
    pub(crate) fn of(least: TlsVersion) -> Self {
        Self { least, certificates: Vec::new() }
    }

    pub(crate) fn add(&mut self, certificates: &[CertificateDer<'_>]) {
        let mut context = digest::Context::new(&digest::SHA256);
        certificates.iter().for_each(|certificate| context.update(certificate));
        self.certificates.push(context.finish().as_ref().into());
    }
}
