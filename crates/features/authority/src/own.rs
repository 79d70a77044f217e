//! What others in this process have of the authority: a certificate in our own name, and the bundle.
//!
//! In: requests from beside us. Out: certificates, as soon as there is something to sign with. Promise: these are in the audit log
//! like all others.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{AuthorityTrustBundles, SpiffeId};
use outrigger_identity::{Enrolled, OwnAuthority};
use outrigger_runtime::{BoxError, BoxFuture};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::service::CertificateService;

/// At a start the roots are there within moments; who asks is told why they are not after so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Meanwhile it is looked so often.
const LOOK: Duration = Duration::from_millis(100);

/// An authority that serves, and where it writes its bundle.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) service: Arc<CertificateService>,
    pub(crate) trust_bundles: Option<AuthorityTrustBundles>,
}

/// Certificates for this process.
pub(crate) struct OwnCertificates(pub(crate) watch::Receiver<Option<Serving>>);

impl OwnAuthority for OwnCertificates {
    fn sign<'a>(&'a self, request: &'a str, id: &'a SpiffeId) -> BoxFuture<'a, Result<Enrolled, BoxError>> {
        Box::pin(async move {
            let until = Instant::now() + PATIENCE;
            loop {
                let serving = self.0.borrow().clone();
                let problem: BoxError = match &serving {
                    None => "it does not serve yet".into(),
                    Some(serving) => match serving.service.source.signing(SystemTime::now()).await {
                        Ok(_) => return serving.service.sign_own(request, id).await,
                        Err(error) => error.into(),
                    },
                };
                if Instant::now() >= until {
                    return Err(problem);
                }
                sleep(LOOK).await;
            }
        })
    }
}
