//! How a sidecar asks others for its certificate: an authority by Istio's [`CreateCertificate`] API, or an agent on its node by
//! the [SPIFFE Workload API].
//!
//! In: a signing request and a service account's token; an agent's socket. Out: the certificate with its chain, and
//! the roots. Promise: the token goes to nobody but the authority whose certificate was verified,
//! and is shown nowhere; each try ends within its time. Outrigger's own authority, istiod and
//! istio-csr answer alike.
//!
//! [`CreateCertificate`]: https://github.com/istio/api/blob/master/security/v1alpha1/ca.proto
//! [SPIFFE Workload API]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md

mod message;
mod token;
mod workload_api;

use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use outrigger_config::{Secret, SpiffeId, TrustDomain};
use outrigger_http::{GrpcClient, GrpcOptions, Resolver};
use outrigger_identity::{Asked, Enrolled, Enrolment};
use outrigger_runtime::{BoxError, BoxFuture};

#[doc(hidden)]
pub use message::{BadAnswer, svids};
pub use workload_api::SpiffeWorkloadApi;

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// A few certificates have a few KiB.
const MAX_ANSWER: usize = 1 << 20;

/// Asks authorities by `CreateCertificate`.
pub struct CreateCertificate {
    resolver: Resolver,
}

impl CreateCertificate {
    /// `resolver` finds them.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }

    async fn ask(&self, asked: Asked<'_>) -> Result<Enrolled, BoxError> {
        let Asked { settings, request, token, tls } = asked;
        let timeout = Duration::from(settings.timeout);
        let options = GrpcOptions {
            tls: Some(tls),
            connect_timeout: timeout,
            timeout,
            max_response: MAX_ANSWER,
            ..GrpcOptions::default()
        };
        let server = format!("https://{}", settings.address).parse::<http::Uri>()?;
        // Certificates are wanted twice a day, and a connection must not outlive what verified it.
        let client = GrpcClient::new(server, options, self.resolver.clone());
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()))
            .map_err(|_| "the token holds what no token holds")?;
        bearer.set_sensitive(true);
        let metadata = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let message = message::request(request, Duration::from(settings.ttl));
        let answer = client.call(METHOD, &metadata, &message).await?;
        Ok(message::certificates(&answer)?)
    }
}

impl Enrolment for CreateCertificate {
    fn subject(&self, token: &Secret, trust_domain: &TrustDomain) -> Option<SpiffeId> {
        token::subject(token.expose(), trust_domain)
    }

    fn enrol<'a>(&'a self, asked: Asked<'a>) -> BoxFuture<'a, Result<Enrolled, BoxError>> {
        Box::pin(self.ask(asked))
    }
}
