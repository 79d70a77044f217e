//! The raw parts of an identity, read and checked: chain, key and trust bundle that fit together.
//!
//! In: PEM files, or what the development authority issued. Out: a [`Material`] that is
//! known to work now. Promise: no material passes that peers would refuse for a reason we
//! can see ourselves, so that a bad file never replaces a good one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::TrustDomain;
use rustls::CertificateError;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer, TrustAnchor, UnixTime,
};
use rustls::sign::{CertifiedKey, SigningKey};
use zeroize::Zeroizing;

use crate::error::{Error, Part, chain, date};
use crate::handshake::{at, peer_error};
use crate::pem::{self, Block};
use crate::public::algorithms;
use crate::revocation::Revocation;
use crate::svid::{Leaf, PeerError};
use crate::verifier::{End, verify_chain};

/// No bundle of authorities is nearly as large; the largest public ones have 250 KiB.
const MAX_FILE: u64 = 4 << 20;

/// Chain, key and bundle that fit together and are valid now.
pub(crate) struct Material {
    pub(crate) leaf: Leaf,
    pub(crate) credentials: Arc<CertifiedKey>,
    pub(crate) bundle: Vec<CertificateDer<'static>>,
    pub(crate) anchors: Arc<[TrustAnchor<'static>]>,
    /// Whom it trusts no more.
    pub(crate) revocation: Arc<Revocation>,
}

/// Where the parts came from, for errors.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) bundle: PathBuf,
}

impl Material {
    /// Checks that the parts fit together, and are those of a workload of `trust_domain` that is valid at `now`.
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
        bundle: Vec<CertificateDer<'static>>,
        origin: &Origin,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let anchors = anchors(&bundle, Part::TrustBundle, &origin.bundle)?;
        let not_an_svid = |source| Error::NotAnSvid { path: origin.certificate.clone(), source };
        let first = chain.first().ok_or_else(|| not_an_svid(PeerError::Malformed))?;
        let leaf = Leaf::parse(first).and_then(|leaf| leaf.of(trust_domain)).map_err(not_an_svid)?;
        let credentials = CertifiedKey::new(chain, key);
        // A key of a kind that cannot tell its public half is taken at its word.
        if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) = credentials.keys_match() {
            return Err(Error::KeyMismatch { certificate: origin.certificate.clone(), key: origin.key.clone() });
        }
        check_dates(&leaf, &origin.certificate, now)?;
        check_chain(&credentials.cert, &anchors, origin, now)?;
        Ok(Self { leaf, credentials: Arc::new(credentials), bundle, anchors, revocation: Arc::default() })
    }

    /// The same, holding peers to these lists.
    pub(crate) fn revoking(self, revocation: Arc<Revocation>) -> Self {
        Self { revocation, ..self }
    }

    /// Whether our own certificate, or an authority above it, is on a list: every peer with that list refuses us.
    pub(crate) fn is_revoked(&self, now: SystemTime) -> bool {
        let Some((leaf, intermediates)) = self.credentials.cert.split_first() else { return false };
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        let verified =
            verify_chain(&self.anchors, &self.revocation, &algorithms(), leaf, intermediates, now, End::Server);
        verified == Err(CertificateError::Revoked.into())
    }

    /// Whether both would be the same to peers.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.credentials.cert == other.credentials.cert
            && self.bundle == other.bundle
            && self.revocation.same_as(&other.revocation)
    }
}

fn check_dates(leaf: &Leaf, path: &Path, now: SystemTime) -> Result<(), Error> {
    if now < leaf.not_before {
        return Err(Error::NotYetValid { path: path.into(), not_before: leaf.not_before, now });
    }
    if now > leaf.not_after {
        return Err(Error::Expired { path: path.into(), not_after: leaf.not_after, now });
    }
    Ok(())
}

fn check_chain(
    chain: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    origin: &Origin,
    now: SystemTime,
) -> Result<(), Error> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since_epoch);
    let Some((leaf, intermediates)) = chain.split_first() else { return Ok(()) };
    for end in [End::Server, End::Client] {
        verify_chain(anchors, &Revocation::default(), &algorithms(), leaf, intermediates, now, end)
            .map_err(|error| untrusted(&error, origin))?;
    }
    Ok(())
}

/// Why peers with our own bundle would refuse our own chain.
fn untrusted(error: &rustls::Error, origin: &Origin) -> Error {
    use rustls::CertificateError as C;
    let rustls::Error::InvalidCertificate(error) = error else { return Error::Tls(error.clone()) };
    if let Some(error) = peer_error(error) {
        return Error::NotAnSvid { path: origin.certificate.clone(), source: error.clone() };
    }
    let reason = match error {
        C::UnknownIssuer => "no authority in it signed the certificate".to_owned(),
        C::BadSignature => "an authority in it has the right name but another key".to_owned(),
        // The leaf's dates are known to be good, and those of the bundle do not count.
        C::ExpiredContext { not_after, .. } => format!("an intermediate expired at {}", date(at(not_after.as_secs()))),
        C::NotValidYetContext { not_before, .. } => {
            format!("an intermediate is not valid before {}", date(at(not_before.as_secs())))
        }
        other => other.to_string(),
    };
    Error::UntrustedChain { certificate: origin.certificate.clone(), bundle: origin.bundle.clone(), reason }
}

/// The authorities of a bundle, ready for verification.
pub(crate) fn anchors(
    bundle: &[CertificateDer<'static>],
    part: Part,
    path: &Path,
) -> Result<Arc<[TrustAnchor<'static>]>, Error> {
    let anchor = |(at, certificate): (usize, &CertificateDer<'static>)| {
        let anchor = webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned());
        anchor.map_err(|error| Error::BadCertificate {
            part,
            path: path.into(),
            number: at + 1,
            problem: format!("it cannot be a trust anchor: {error}"),
        })
    };
    bundle.iter().enumerate().map(anchor).collect()
}

/// The certificates of a PEM file, at least one.
pub(crate) fn read_certificates(part: Part, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    certificates_in(part, path, &read_blocks(part, path)?)
}

/// The certificates among blocks of PEM, at least one.
pub(crate) fn certificates_in(
    part: Part,
    path: &Path,
    blocks: &[Block],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wanted = |block: &&Block| matches!(block.label.as_str(), "CERTIFICATE" | "X509 CERTIFICATE");
    let found: Vec<_> = blocks.iter().filter(wanted).collect();
    if found.is_empty() {
        return Err(absent(part, path, blocks));
    }
    for (at, block) in found.iter().enumerate() {
        if let Err(error) = webpki::EndEntityCert::try_from(&CertificateDer::from(block.der.as_slice())) {
            let problem = format!("it is not an X.509 v3 certificate ({error})");
            return Err(Error::BadCertificate { part, path: path.into(), number: at + 1, problem });
        }
    }
    Ok(found.into_iter().map(|block| CertificateDer::from(block.der.to_vec())).collect())
}

/// The private key of a PEM file, in any of the three usual forms.
pub(crate) fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, Error> {
    key_in(path, &read_blocks(Part::Key, path)?)
}

/// The private key among blocks of PEM.
pub(crate) fn key_in(path: &Path, blocks: &[Block]) -> Result<Arc<dyn SigningKey>, Error> {
    for block in blocks {
        let der = block.der.as_slice();
        let key: PrivateKeyDer<'_> = match block.label.as_str() {
            "ENCRYPTED PRIVATE KEY" => return Err(Error::EncryptedKey { path: path.into() }),
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" if block.encrypted => {
                return Err(Error::EncryptedKey { path: path.into() });
            }
            "PRIVATE KEY" => PrivatePkcs8KeyDer::from(der).into(),
            "RSA PRIVATE KEY" => PrivatePkcs1KeyDer::from(der).into(),
            "EC PRIVATE KEY" => PrivateSec1KeyDer::from(der).into(),
            _ => continue,
        };
        // The library's own reason is dropped: it says no more than that it could not.
        return any_supported_type(&key).map_err(|_| Error::UnusableKey { path: path.into() });
    }
    Err(absent(Part::Key, path, blocks))
}

/// The bytes of a PKCS#8 key, for signing certificates with.
pub(crate) fn read_pkcs8(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut blocks = read_blocks(Part::Key, path)?;
    match blocks.iter().position(|block| block.label == "PRIVATE KEY" && !block.encrypted) {
        Some(at) => Ok(blocks.swap_remove(at).der),
        None => Err(absent(Part::Key, path, &blocks)),
    }
}

pub(crate) fn absent(part: Part, path: &Path, blocks: &[Block]) -> Error {
    let mut found: Vec<_> = blocks.iter().map(|block| block.label.clone()).collect();
    found.dedup();
    found.truncate(5);
    Error::Absent { part, path: path.into(), found }
}

pub(crate) fn read_blocks(part: Part, path: &Path) -> Result<Vec<Block>, Error> {
    blocks_of(part, path, &read_file(part, path)?)
}

/// The blocks of PEM that somebody has read, from the place that `path` names in errors.
pub(crate) fn blocks_of(part: Part, path: &Path, bytes: &[u8]) -> Result<Vec<Block>, Error> {
    if pem::looks_like_der(bytes) {
        return Err(Error::Der { part, path: path.into() });
    }
    pem::blocks(bytes).map_err(|malformed| Error::BadPem {
        part,
        path: path.into(),
        line: malformed.line,
        problem: malformed.problem,
    })
}

/// Reads a small file in one piece, so that no copy of a key stays behind.
pub(crate) fn read_file(part: Part, path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { part, path: path.into() },
        _ => Error::Unreadable { part, path: path.into(), uid: rustix::process::geteuid().as_raw(), source },
    };
    // Opening a pipe would wait for its writer, for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(Error::TooLarge { part, path: path.into(), limit: MAX_FILE });
    }
    let capacity = usize::try_from(size).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// For `Error::Authority`: a cause as plain text.
pub(crate) fn cause(error: &Error) -> Box<dyn std::error::Error + Send + Sync> {
    chain(error).into()
}
