//! TLS for ordinary clients: server certificates from PEM files, chosen by the name asked for.
//!
//! In: pairs of certificate and key. Out: one rustls config that shows each client the
//! certificate made for the name it asks for (SNI), and the first one to all others. Promise:
//! a key that does not belong to its certificate is refused; nobody is asked for a
//! certificate, so nobody's identity is known; a session is resumed on any worker, until a
//! certificate changes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use outrigger_config::TlsVersion;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::error::Error;
use crate::public::{ConfigDigest, provider, read_pair, versions};

/// A server config for these certificates and keys, of which there is at least one, and a digest of them for telling
/// whether a file changed. No version of TLS older than `least`.
///
/// # Errors
/// When a file cannot be read, is no PEM, or key and certificate do not belong together.
pub fn server_config_with_certificates(
    pairs: &[(impl AsRef<Path>, impl AsRef<Path>)],
    alpn: &[&[u8]],
    least: TlsVersion,
) -> Result<(Arc<ServerConfig>, ConfigDigest), Error> {
    let mut chosen = ByName::default();
    let mut digest = ConfigDigest::of(least);
    for (certificate, key) in pairs {
        let pair = read_pair(certificate.as_ref(), key.as_ref())?;
        digest.add(&pair.cert);
        chosen.add(pair);
    }
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(least))
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(chosen));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // A memory of sessions would be shared by the workers, and too small for many clients; tickets are neither.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new().map_err(Error::Tls)?;
    Ok((Arc::new(config), digest))
}

/// A server config that shows everybody one certificate, whose key is given as PKCS#8. Nobody is asked for one.
///
/// # Errors
/// When the key is of an unsupported kind, or belongs to another certificate.
pub fn server_config_with_key(
    chain: Vec<CertificateDer<'static>>,
    key: &[u8],
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let key = any_supported_type(&PrivatePkcs8KeyDer::from(key).into()).map_err(Error::Tls)?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match().map_err(Error::Tls)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(TlsVersion::Tls12))
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

#[derive(Debug, Default)]
struct ByName {
    first: Option<Arc<CertifiedKey>>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// Without their star: `.example.com`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    fn add(&mut self, pair: CertifiedKey) {
        let pair = Arc::new(pair);
        for name in pair.cert.first().map(names).unwrap_or_default() {
            match name.strip_prefix('*') {
                Some(suffix) => drop(self.wildcards.entry(suffix.to_owned()).or_insert_with(|| Arc::clone(&pair))),
                None => drop(self.exact.entry(name).or_insert_with(|| Arc::clone(&pair))),
            }
        }
        self.first.get_or_insert(pair);
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            // A wildcard stands for one label ([RFC 6125], 6.4.3).
            let suffix = name.find('.').map(|dot| &name[dot..]);
            self.exact.get(&name).or_else(|| self.wildcards.get(suffix?)).cloned()
        });
        by_name.or_else(|| self.first.clone())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

/// The DNS names a certificate is for, in lower case.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pair(folder: &Path, names: &[&str]) -> (std::path::PathBuf, std::path::PathBuf) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        let (certificate, key) = (folder.join(format!("{}.pem", names[0])), folder.join(format!("{}.key", names[0])));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    #[test]
    fn each_name_gets_its_certificate_and_others_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let pairs = [pair(folder.path(), &["a.test"]), pair(folder.path(), &["b.test", "*.b.test"])];
        let mut chosen = ByName::default();
        for (certificate, key) in &pairs {
            chosen.add(read_pair(certificate, key).unwrap());
        }
        let second = chosen.exact["b.test"].clone();
        for (name, is_second) in [
            (Some("b.test"), true),
            (Some("X.B.TEST"), true),
            (Some("x.b.test."), true),
            (Some("y.x.b.test"), false),
            (Some("a.test"), false),
            (Some("other"), false),
            (None, false),
        ] {
            let found = chosen.find(name).unwrap();
            assert_eq!(Arc::ptr_eq(&found, &second), is_second, "{name:?}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (pair(folder.path(), &["a.test"]), pair(folder.path(), &["b.test"]));
        let made = |key| server_config_with_certificates(&[(&one.0, key)], &[b"h2"], TlsVersion::Tls12);
        let error = made(&other.1).unwrap_err().to_string();
        assert!(error.contains("a.test.pem") && error.contains("b.test.key"), "{error}");
        let (config, digest) = made(&one.1).unwrap();
        assert!(config.ticketer.enabled() && config.max_early_data_size == 0);
        assert_eq!(made(&one.1).unwrap().1, digest, "nothing changed");
        pair(folder.path(), &["a.test"]);
        assert_ne!(made(&one.1).unwrap().1, digest, "renewed");
    }
}
