//! TLS to ordinary servers, and the one crypto provider of the house.
//!
//! In: a PEM bundle, or nothing for the public authorities compiled in. Out: a rustls
//! client config that checks names and chains as a browser would.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Part};
use crate::material::{anchors, read_certificates};

/// The provider all our configs are built with; no process-wide default is needed. It prefers the hybrid
/// post-quantum key exchange ([X25519MLKEM768]): recorded traffic stays secret.
///
/// [X25519MLKEM768]: https://datatracker.ietf.org/doc/draft-ietf-tls-ecdhe-mlkem/
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let build = || {
        let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
    };
    PROVIDER.get_or_init(build).clone()
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
    let roots = match ca_pem {
        None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let bundle = read_certificates(Part::CaBundle, path)?;
            RootCertStore::from_iter(anchors(&bundle, Part::CaBundle, path)?.iter().cloned())
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
