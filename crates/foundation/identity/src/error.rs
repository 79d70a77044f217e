//! What can be wrong with an identity, in the words of the operator who has to mend it.
//!
//! Every message names the file, what is the matter with it and what to do. None holds
//! key material, nor any byte of a file that might be a key.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use outrigger_config::{HostPort, InvalidScalar, SpiffePattern, TrustDomain, WorkloadEndpoint};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::svid::PeerError;

/// Why there is no identity, or no TLS config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file does not exist.
    #[error("the {part} {} does not exist; mount it there, or correct its path in the config", path.display())]
    Missing {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error(
        "the {part} {} cannot be read by user {uid} ({source}); give that user read permission", path.display()
    )]
    Unreadable {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
        /// The user we run as.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A file is far larger than any certificate.
    #[error("the {part} {} is larger than {limit} bytes; is this the right file?", path.display())]
    TooLarge {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file holds nothing of what it should.
    #[error("the {part} {} holds no `{}`{}", path.display(), part.pem_blocks(), found_text(found))]
    Absent {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
        /// The PEM blocks that it does hold.
        found: Vec<String>,
    },
    /// A file is DER.
    #[error("the {part} {} is DER, not PEM; convert it: {}", path.display(), part.convert_der())]
    Der {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
    },
    /// A file is broken PEM, perhaps because it is being written.
    #[error("the {part} {}, line {line}: {problem}", path.display())]
    BadPem {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// A PEM block holds no X.509 certificate.
    #[error("the {part} {}, certificate {number}: {problem}", path.display())]
    BadCertificate {
        /// Which part of the identity.
        part: Part,
        /// The file.
        path: PathBuf,
        /// Which certificate of the file, counted from 1.
        number: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A revocation list that cannot be held against anybody.
    #[error("the {} {}, list {number}: {problem}", Part::RevocationList, path.display())]
    BadRevocationList {
        /// The file.
        path: PathBuf,
        /// Which list of the file, counted from 1.
        number: usize,
        /// What is wrong with it, and how to mend it.
        problem: String,
    },
    /// The key needs a passphrase.
    #[error(
        "the private key {0} is encrypted, and there is nobody to type its passphrase; decrypt it: openssl pkey -in {0} -out key.pem",
        path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// The key is of a kind we cannot use.
    #[error(
        "the private key {} is unusable: it is damaged or of an unsupported kind; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits",
        path.display()
    )]
    UnusableKey {
        /// The file.
        path: PathBuf,
    },
    /// Key and certificate are not of one pair.
    #[error(
        "the private key {} does not belong to the first certificate of {}; write both anew, the leaf certificate first",
        key.display(),
        certificate.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The SVID's time is over.
    #[error("the certificate {} expired at {}, {} ago; issue a new one", path.display(), date(*not_after), span(*not_after, *now))]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// When it ended.
        not_after: SystemTime,
        /// When we looked.
        now: SystemTime,
    },
    /// The SVID's time has not come.
    #[error(
        "the certificate {} is not valid before {}, in {}; is this machine's clock right?", path.display(), date(*not_before), span(*now, *not_before)
    )]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// When it begins.
        not_before: SystemTime,
        /// When we looked.
        now: SystemTime,
    },
    /// The leaf is a certificate, but no X.509-SVID of our trust domain.
    #[error("the certificate {} is not usable as a SPIFFE identity", path.display())]
    NotAnSvid {
        /// The certificate's file.
        path: PathBuf,
        /// Which rule it breaks.
        source: PeerError,
    },
    /// Our own trust bundle does not accept our own certificate.
    #[error(
        "the certificate {} does not chain to the trust bundle {} ({reason}); add the issuing authority to the bundle, or the missing intermediate to the certificate file",
        certificate.display(),
        bundle.display()
    )]
    UntrustedChain {
        /// The certificate's file.
        certificate: PathBuf,
        /// The trust bundle's file.
        bundle: PathBuf,
        /// What the verification said.
        reason: String,
    },
    /// A token is empty, or no text.
    #[error("the token {} is empty or no text; project a service account token there", path.display())]
    EmptyToken {
        /// The file.
        path: PathBuf,
    },
    /// The authority gave no certificate.
    #[error("the authority {address}: cannot {action}")]
    Enrolment {
        /// Whom we asked.
        address: HostPort,
        /// What was tried.
        action: &'static str,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody in this process can ask an authority, or an agent.
    #[error("this program cannot ask anybody for certificates; use the source `files`")]
    NoEnrolment,
    /// The authority of this process did not sign.
    #[error("the authority of this process: cannot {action}")]
    Own {
        /// What was tried.
        action: &'static str,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent that serves the Workload API gave nothing that can be used.
    #[error("the Workload API {endpoint}: {problem}")]
    WorkloadApi {
        /// Where it is served.
        endpoint: WorkloadEndpoint,
        /// What is wrong, and how to mend it.
        problem: String,
    },
    /// It is said nowhere where the Workload API is served.
    #[error(
        "`identity.workloadApi` has no `endpointSocket`, and the environment variable SPIFFE_ENDPOINT_SOCKET is not set; name the agent's socket in either"
    )]
    NoEndpointSocket,
    /// The environment says it in a way that cannot be understood.
    #[error("the environment variable SPIFFE_ENDPOINT_SOCKET: {0}")]
    BadEndpointSocket(InvalidScalar),
    /// Keys would be written to a disk.
    #[error(
        "`stateDirectory` {} is not in memory (tmpfs), and a key on a disk outlives its pod; mount an `emptyDir` with `medium: Memory` there, or remove it",
        path.display()
    )]
    NotInMemory {
        /// The folder.
        path: PathBuf,
    },
    /// The development authority's folder cannot be used.
    #[error("the development authority in {}: cannot {action}", directory.display())]
    Authority {
        /// The folder.
        directory: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The development authority belongs to another trust domain.
    #[error(
        "the development authority in {} signs for the trust domain `{found}`, not `{expected}`; use one folder per trust domain",
        directory.display()
    )]
    AuthorityOfAnother {
        /// The folder.
        directory: PathBuf,
        /// Whose authority it is.
        found: String,
        /// Our trust domain.
        expected: TrustDomain,
    },
    /// A peer is expected that no certificate of our trust domain can name.
    #[error("{id} can never connect: it is not of our trust domain `{trust_domain}`; name peers of that domain")]
    ForeignPeer {
        /// The expected peer.
        id: SpiffePattern,
        /// Our trust domain.
        trust_domain: TrustDomain,
    },
    /// A policy that would refuse everybody.
    #[error("no peer is expected, so every connection would fail; name at least one SPIFFE ID")]
    NoPeer,
    /// The config has no section `identity`.
    #[error("there is no section `identity` in the config; mTLS needs one")]
    NoSource,
    /// The TLS library refused the material.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A part of an identity, or of what we trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The X.509-SVID with its intermediates.
    Certificate,
    /// Its private key.
    Key,
    /// The authorities peers must chain to.
    TrustBundle,
    /// The authorities an ordinary server must chain to.
    CaBundle,
    /// Certificates that are trusted no more.
    RevocationList,
    /// What proves to an authority who we are.
    Token,
}

impl Part {
    fn pem_blocks(self) -> &'static str {
        match self {
            Self::Key => "-----BEGIN PRIVATE KEY-----` (or `RSA PRIVATE KEY`, `EC PRIVATE KEY",
            Self::RevocationList => "-----BEGIN X509 CRL-----",
            _ => "-----BEGIN CERTIFICATE-----",
        }
    }

    fn convert_der(self) -> &'static str {
        match self {
            Self::Key => "openssl pkey -inform der -in FILE -out FILE.pem",
            _ => "openssl x509 -inform der -in FILE -out FILE.pem",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::TrustBundle => "trust bundle",
            Self::CaBundle => "CA bundle",
            Self::RevocationList => "revocation list",
            Self::Token => "token",
        })
    }
}

fn found_text(found: &[String]) -> String {
    if found.is_empty() {
        return "; it holds no PEM at all".to_owned();
    }
    format!("; it holds only: {}", found.join(", "))
}

/// A point in time as an operator reads it: `2026-08-01T12:00:00Z`.
pub(crate) fn date(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    OffsetDateTime::from(at).format(&format).unwrap_or_else(|_| "an impossible date".to_owned())
}

/// The time between two points, in its two largest units: `3h 20m`.
pub(crate) fn span(from: SystemTime, to: SystemTime) -> String {
    let seconds = to.duration_since(from).map_or(0, |span| span.as_secs());
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
