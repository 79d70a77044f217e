//! The source `ownAuthority`: a certificate from the authority that this very process is.
//!
//! In: who we are, an authority beside us. Out: fresh material from half of a certificate's life on. Promise: as with an authority
//! that is asked over the network, the key is made here and stays here; nothing is asked before there is something to sign with.
//!
//! The authority is a feature: it implements [`OwnAuthority`].

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{OwnAuthority as Settings, SpiffeId, TrustDomain};
use outrigger_runtime::{BoxError, BoxFuture};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::enrolment::{Enrolled, renew_at, signing_request};
use crate::error::Error;
use crate::material::{Material, Origin};
use crate::snapshot::Snapshot;

/// Where a certificate is from, in errors.
const PLACE: &str = "of our own authority";

/// The authority of this process.
pub trait OwnAuthority: Send + Sync {
    /// Signs what is asked for in our own name; waits until there is something to sign with, but not for ever. Cancel-safe.
    fn sign<'a>(&'a self, request: &'a str, id: &'a SpiffeId) -> BoxFuture<'a, Result<Enrolled, BoxError>>;
}

/// The source.
pub(crate) struct Owning {
    settings: Settings,
    authority: Arc<dyn OwnAuthority>,
}

impl fmt::Debug for Owning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Owning").field(&self.settings).finish_non_exhaustive()
    }
}

impl Owning {
    pub(crate) fn new(settings: &Settings, authority: Arc<dyn OwnAuthority>) -> Self {
        Self { settings: settings.clone(), authority }
    }

    /// Fresh material; `None` while `current` is still good. Cancel-safe.
    pub(crate) async fn load(
        &self,
        trust_domain: &TrustDomain,
        current: Option<&Snapshot>,
        now: SystemTime,
    ) -> Result<Option<Material>, Error> {
        let id = self.id(trust_domain);
        if current.is_some_and(|current| current.spiffe_id == id && now < renew_at(current)) {
            return Ok(None);
        }
        let failed = |action: &'static str, source: BoxError| Error::Own { action, source };
        let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| failed("make a signing request", error.to_string().into()))?;
        let pkcs8 = Zeroizing::new(pair.serialize_der());
        let request = signing_request(&pair, Some(&id));
        pair.zeroize();
        let request = request.map_err(|error| failed("make a signing request", error.to_string().into()))?;
        let key = any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8.as_slice())));
        let key = key.map_err(Error::Tls)?;
        let Enrolled { chain, bundle } =
            self.authority.sign(&request, &id).await.map_err(|error| failed("get a certificate", error))?;
        let place = PathBuf::from(PLACE);
        let origin = Origin { certificate: place.clone(), key: place.clone(), bundle: place };
        Material::new(chain, key, bundle, &origin, trust_domain, now.max(SystemTime::now())).map(Some)
    }

    fn id(&self, trust_domain: &TrustDomain) -> SpiffeId {
        let Settings { namespace, service_account } = &self.settings;
        let id = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}");
        id.parse().expect("names and trust domains hold only characters that SPIFFE IDs allow")
    }
}
