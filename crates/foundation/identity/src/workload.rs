//! The source `workloadApi`: what an agent on this node tells of our identity, as it changes.
//!
//! In: a stream of a [SPIFFE Workload API]. Out: material of the identity that the config chooses. Promise: each
//! message counts whole, and one that is unusable takes nothing away; a stream that ended is opened again at the next
//! try; keys are overwritten when they are no longer needed.
//!
//! How an agent is spoken to is a feature's: it implements [`WorkloadApi`].
//!
//! [SPIFFE Workload API]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md

use std::env;
use std::fmt;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{IdentityWorkloadApi, TrustDomain, WorkloadEndpoint};
use outrigger_runtime::{BoxError, BoxFuture};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::{Error, Part};
use crate::files::Loaded;
use crate::material::{Material, Origin};
use crate::revocation::{Revocation, element};
use crate::snapshot::Snapshot;
use crate::svid::shown;

/// The variable that says where the API is served, where the config does not.
const ENDPOINT: &str = "SPIFFE_ENDPOINT_SOCKET";
/// So many of the identities that an agent gives are shown in an error.
const SHOWN: usize = 5;

/// One identity that an agent gives.
pub struct X509Svid {
    /// Who it is.
    pub spiffe_id: String,
    /// Its certificate and those above it, DER, one after the other.
    pub certificates: Vec<u8>,
    /// The certificate's key, PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
    /// The authorities of its trust domain, DER, one after the other.
    pub bundle: Vec<u8>,
    /// What its registration says of its use; may be empty.
    pub hint: String,
}

impl X509Svid {
    /// Whether what should be certificates is: for the fuzzer, which has no agent.
    #[doc(hidden)]
    pub fn holds_certificates(&self) -> bool {
        let holds = |ders| certificates(Part::Certificate, Path::new("fuzz"), ders).is_ok();
        holds(&self.certificates) && holds(&self.bundle)
    }
}

/// All that an agent gives.
#[derive(Default)]
pub struct X509Svids {
    /// The first is what to take where nobody says which.
    pub svids: Vec<X509Svid>,
    /// Certificate revocation lists, DER.
    pub revocation_lists: Vec<Vec<u8>>,
}

/// Speaks to agents that serve the Workload API.
pub trait WorkloadApi: Send + Sync {
    /// Opens the stream of X.509-SVIDs. Cancel-safe; ends within `timeout`.
    fn open<'a>(
        &'a self,
        endpoint: &'a WorkloadEndpoint,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn SvidStream>, BoxError>>;
}

/// A stream of all that an agent gives.
pub trait SvidStream: Send {
    /// What it gives now; the first time at once, then when something has changed. An error is the stream's end. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Result<X509Svids, BoxError>>;
}

/// One agent, and what it told last.
pub(crate) struct Agent {
    settings: IdentityWorkloadApi,
    endpoint: WorkloadEndpoint,
    api: Arc<dyn WorkloadApi>,
    stream: Option<Box<dyn SvidStream>>,
    /// What it told and was not taken yet.
    told: Option<X509Svids>,
    /// Why the stream ended, until it is told.
    ended: Option<Error>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Agent").field(&self.endpoint).finish_non_exhaustive()
    }
}

impl Agent {
    pub(crate) fn new(settings: &IdentityWorkloadApi, api: Arc<dyn WorkloadApi>) -> Result<Self, Error> {
        let endpoint = match &settings.endpoint_socket {
            Some(endpoint) => endpoint.clone(),
            None => endpoint_of(env::var(ENDPOINT).ok().as_deref())?,
        };
        Ok(Self { settings: settings.clone(), endpoint, api, stream: None, told: None, ended: None })
    }

    /// An agent that comes back makes its socket anew.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match &self.endpoint {
            WorkloadEndpoint::Unix(path) => vec![path.clone()],
            WorkloadEndpoint::Tcp(_) => Vec::new(),
        }
    }

    /// Whether there is an agent, as far as can be seen without asking it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let WorkloadEndpoint::Unix(path) = &self.endpoint else { return Ok(()) };
        match fs::metadata(path) {
            Ok(facts) if facts.file_type().is_socket() => Ok(()),
            Ok(_) => Err(self.failed("it is no socket")),
            Err(error) => Err(self.failed(format!("{error}; mount the folder of the agent's socket there"))),
        }
    }

    /// Waits until the agent tells something, or ends the stream; for ever where there is none. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        let Some(stream) = &mut self.stream else { return std::future::pending().await };
        match stream.next().await {
            Ok(told) => self.told = Some(told),
            Err(error) => {
                self.stream = None;
                self.ended = Some(self.failed(error.to_string()));
            }
        }
    }

    /// What the agent told since it was last asked; opens a stream when there is none. Cancel-safe.
    pub(crate) async fn load(
        &mut self,
        trust_domain: &TrustDomain,
        current: Option<&Snapshot>,
        now: SystemTime,
    ) -> Result<Option<Loaded>, Error> {
        if let Some(error) = self.ended.take() {
            return Err(error);
        }
        if self.stream.is_none() {
            self.open().await?;
        }
        let Some(told) = &self.told else { return Ok(None) };
        let before = current.map(|current| &current.material().revocation);
        let loaded = self.read(told, trust_domain, before, now)?;
        // What is unusable now may be usable later: when our clock is right, or another list is in force.
        if loaded.problem.is_none() {
            self.told = None;
        }
        Ok(Some(loaded))
    }

    /// Opens the stream; the first message comes at once.
    async fn open(&mut self) -> Result<(), Error> {
        let limit = Duration::from(self.settings.timeout);
        let opening = async {
            let mut stream = self.api.open(&self.endpoint, limit).await?;
            let told = stream.next().await?;
            Ok::<_, BoxError>((stream, told))
        };
        let opened = tokio::time::timeout(limit, opening).await;
        let opened = opened.map_err(|_| self.failed(format!("no answer within {limit:?}")))?;
        let (stream, told) = opened.map_err(|error| self.failed(error.to_string()))?;
        self.stream = Some(stream);
        self.told = Some(told);
        Ok(())
    }

    fn read(
        &self,
        told: &X509Svids,
        trust_domain: &TrustDomain,
        before: Option<&Arc<Revocation>>,
        now: SystemTime,
    ) -> Result<Loaded, Error> {
        let svid = self.chosen(&told.svids)?;
        let from = PathBuf::from(format!("of {}", self.endpoint));
        let origin = Origin { certificate: from.clone(), key: from.clone(), bundle: from.clone() };
        let chain = certificates(Part::Certificate, &from, &svid.certificates)?;
        let bundle = certificates(Part::TrustBundle, &from, &svid.bundle)?;
        let key = any_supported_type(&PrivatePkcs8KeyDer::from(svid.key.as_slice()).into())
            .map_err(|_| Error::UnusableKey { path: from.clone() })?;
        let material = Material::new(chain, key, bundle, &origin, trust_domain, now)?;
        if material.leaf.id.as_str() != svid.spiffe_id {
            let (told, found) = (shown(&svid.spiffe_id), &material.leaf.id);
            return Err(self.failed(format!("it gives a certificate of {found} for `{told}`")));
        }
        let authorities = material.bundle.iter().chain(material.credentials.cert.iter().skip(1));
        let (revocation, problem) = match (Revocation::told(&told.revocation_lists, &from, authorities), before) {
            (Ok(revocation), _) => (Arc::new(revocation), None),
            (Err(error), before) => (before.cloned().unwrap_or_default(), Some(error)),
        };
        Ok(Loaded { material: material.revoking(revocation), problem })
    }

    /// The identity that the config chooses, or the first.
    fn chosen<'a>(&self, svids: &'a [X509Svid]) -> Result<&'a X509Svid, Error> {
        let IdentityWorkloadApi { spiffe_id, hint, .. } = &self.settings;
        let found = match (spiffe_id, hint) {
            (Some(id), _) => svids.iter().find(|svid| svid.spiffe_id == id.as_str()),
            (None, Some(hint)) => svids.iter().find(|svid| svid.hint == *hint),
            (None, None) => svids.first(),
        };
        found.ok_or_else(|| {
            let wanted = match (spiffe_id, hint) {
                (Some(id), _) => format!("does not give us {id}"),
                (None, Some(hint)) => format!("gives us no identity with the hint `{}`", shown(hint)),
                (None, None) => "gives us no identity".to_owned(),
            };
            let names = svids.iter().take(SHOWN).map(|svid| match svid.hint.as_str() {
                "" => shown(&svid.spiffe_id),
                hint => format!("{} (`{}`)", shown(&svid.spiffe_id), shown(hint)),
            });
            let names: Vec<_> = names.collect();
            let given = if names.is_empty() { String::new() } else { format!("; it gives {}", names.join(", ")) };
            self.failed(format!("it {wanted}{given}"))
        })
    }

    fn failed(&self, problem: impl Into<String>) -> Error {
        Error::WorkloadApi { endpoint: self.endpoint.clone(), problem: problem.into() }
    }
}

/// Where the API is served, as the environment says.
fn endpoint_of(variable: Option<&str>) -> Result<WorkloadEndpoint, Error> {
    match variable {
        None | Some("") => Err(Error::NoEndpointSocket),
        Some(text) => text.parse().map_err(Error::BadEndpointSocket),
    }
}

/// Certificates that stand one after the other, at least one.
fn certificates(part: Part, from: &Path, ders: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |number: usize| {
        let problem = "it is not an X.509 v3 certificate".to_owned();
        Error::BadCertificate { part, path: from.into(), number, problem }
    };
    let mut found = Vec::new();
    let mut rest = ders;
    while !rest.is_empty() || found.is_empty() {
        let number = found.len() + 1;
        let one = element(rest).ok_or_else(|| bad(number))?;
        let der = CertificateDer::from(one.whole.to_vec());
        webpki::EndEntityCert::try_from(&der).map_err(|_| bad(number))?;
        found.push(der);
        rest = one.rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_environment_says_where_it_is_served() {
        let unix = WorkloadEndpoint::Unix("/run/agent.sock".into());
        assert_eq!(endpoint_of(Some("unix:///run/agent.sock")).unwrap(), unix);
        assert!(endpoint_of(None).unwrap_err().to_string().contains("SPIFFE_ENDPOINT_SOCKET is not set"));
        assert!(endpoint_of(Some("")).unwrap_err().to_string().contains("is not set"));
        let error = endpoint_of(Some("/run/agent.sock")).unwrap_err().to_string();
        assert!(
            error.contains("SPIFFE_ENDPOINT_SOCKET") && error.contains("write `unix:///run/agent.sock`"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_certificates_panic(ders in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = certificates(Part::Certificate, Path::new("x"), &ders);
        }
    }
}
