//! Answers `CreateCertificate`: token, limit, request, certificate, record.
//!
//! In: calls, each with a bearer token and a signing request. Out: a certificate with its chain and
//! all roots, or a gRPC status that says why not. Promise: in this order, so that what is
//! cheap for a stranger is cheap for us; no answer is given that is not in the audit log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use outrigger_config::{AuthorityRateLimit, Secret, SpiffeId, TrustDomain};
use outrigger_http::{GrpcAnswer, GrpcCall, GrpcCode, GrpcService, GrpcStatus};
use outrigger_identity::{Enrolled, write_pem};
use outrigger_runtime::BoxError;
use outrigger_telemetry::{CounterFamily, Registry};
use outrigger_traffic::{Rate, RateLimit};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::audit::{Audit, Record, date};
use crate::caller::{Caller, Disbelief, TokenReview};
use crate::issuer::Signed;
use crate::message::{CREATE_CERTIFICATE, CreateCertificate, answer};
use crate::request::{CertificateRequest, Refusal};
use crate::source::Source;

/// Pods that are limited at once; 8 bytes each.
const LIMITED_PODS: usize = 65_536;
/// Tokens that are checked at once; the API server is not flooded with what strangers send.
const REVIEWS: usize = 64;

/// What is counted.
#[derive(Clone)]
pub(crate) struct Metrics {
    certificates: CounterFamily,
    refusals: CounterFamily,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let certificates = registry.counter(
            "outrigger_authority_certificates_total",
            "Requests for a certificate, by result (issued, refused or failed).",
            &["result"],
        );
        for result in ["issued", "refused", "failed"] {
            certificates.with(&[result]).add(0);
        }
        let refusals = registry.counter(
            "outrigger_authority_refusals_total",
            "Requests that were refused, by reason.",
            &["reason"],
        );
        Self { certificates, refusals }
    }
}

/// Why a call has no certificate.
struct Denied {
    code: GrpcCode,
    /// `refused` or `failed`: whose fault it is.
    result: &'static str,
    reason: &'static str,
    text: String,
}

impl Denied {
    fn refused(code: GrpcCode, reason: &'static str, text: impl Into<String>) -> Self {
        Self { code, result: "refused", reason, text: text.into() }
    }

    fn failed(reason: &'static str, text: impl Into<String>) -> Self {
        Self { code: GrpcCode::Unavailable, result: "failed", reason, text: text.into() }
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::OtherIdentity { .. } | Refusal::Authority | Refusal::Extension(_) => GrpcCode::PermissionDenied,
            _ => GrpcCode::InvalidArgument,
        };
        Self::refused(code, refusal.reason(), refusal.to_string())
    }
}

impl From<Disbelief> for Denied {
    fn from(disbelief: Disbelief) -> Self {
        match disbelief {
            Disbelief::Refused { reason, text } => Self::refused(GrpcCode::Unauthenticated, reason, text),
            Disbelief::Unavailable(_) => Self::failed("review", disbelief.to_string()),
        }
    }
}

/// What is known of a call while it is judged.
#[derive(Default)]
struct Facts {
    caller: Option<Caller>,
    id: Option<String>,
    asked_seconds: Option<u64>,
}

/// The service.
pub(crate) struct CertificateService {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) ttl: Duration,
    pub(crate) max_ttl: Duration,
    pub(crate) source: Arc<Source>,
    pub(crate) review: Box<dyn TokenReview>,
    pub(crate) audit: Audit,
    pub(crate) metrics: Metrics,
    limit: RateLimit,
    reviews: Semaphore,
    /// Why the last token could not be checked.
    trouble: Mutex<Option<String>>,
}

impl CertificateService {
    pub(crate) fn new(
        trust_domain: TrustDomain,
        (ttl, max_ttl): (Duration, Duration),
        source: Arc<Source>,
        review: Box<dyn TokenReview>,
        audit: Audit,
        metrics: Metrics,
        limit: &AuthorityRateLimit,
    ) -> Self {
        let rate = Rate { requests: limit.requests, per: limit.per.into(), burst: limit.requests };
        let limit = RateLimit::new(rate, LIMITED_PODS, Instant::now());
        let reviews = Semaphore::new(REVIEWS);
        Self { trust_domain, ttl, max_ttl, source, review, audit, metrics, limit, reviews, trouble: Mutex::default() }
    }

    /// Why tokens cannot be checked, as far as the last one told.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    async fn create(&self, call: GrpcCall) -> Result<Bytes, GrpcStatus> {
        if call.method != CREATE_CERTIFICATE {
            return Err(GrpcStatus::new(GrpcCode::Unimplemented, "only CreateCertificate is served here"));
        }
        let mut facts = Facts::default();
        let (signed, message) = match self.judge(&call, &mut facts).await {
            Ok(issued) => issued,
            Err(denied) => return Err(self.deny(call.peer, &facts, denied).await),
        };
        let record = Record {
            serial: Some(&signed.serial),
            not_after: Some(date(signed.not_after)),
            ..facts.record("certificate_issued", call.peer)
        };
        match self.note(&record).await {
            Ok(()) => Ok(message),
            Err(problem) => Err(GrpcStatus::new(GrpcCode::Unavailable, problem)),
        }
    }

    /// Records a certificate before it is given away.
    async fn note(&self, record: &Record<'_>) -> Result<(), &'static str> {
        if let Err(error) = self.audit.write(record).await {
            tracing::error!(component = "authority", %error, "cannot write the audit log, so nothing is signed");
            self.metrics.certificates.with(&["failed"]).inc();
            return Err("the audit log cannot be written");
        }
        self.metrics.certificates.with(&["issued"]).inc();
        Ok(())
    }

    /// Signs for this very process. Nobody has to prove anything: what runs here has the key that signs.
    pub(crate) async fn sign_own(&self, request: &str, id: &SpiffeId) -> Result<Enrolled, BoxError> {
        let request = CertificateRequest::parse(request.as_bytes(), id)?;
        let now = SystemTime::now();
        let signing = self.source.signing(now).await?;
        let signed = signing.issuer.svid(&request, id, self.ttl, now)?;
        let record = Record {
            serial: Some(&signed.serial),
            not_after: Some(date(signed.not_after)),
            spiffe_id: Some(id.as_str()),
            detail: Some("for this process itself".to_owned()),
            ..Record::new("certificate_issued", SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        self.note(&record).await?;
        let chain = [signed.certificate].into_iter().chain(signing.issuer.chain().iter().cloned()).collect();
        Ok(Enrolled { chain, bundle: signing.bundle.to_vec() })
    }

    async fn judge(&self, call: &GrpcCall, facts: &mut Facts) -> Result<(Signed, Bytes), Denied> {
        let token = bearer(&call.metadata)?;
        let asked = CreateCertificate::read(&call.message);
        let seconds = u64::try_from(asked.validity_seconds).map_err(|_| {
            Denied::refused(GrpcCode::InvalidArgument, "lifetime", "the lifetime asked for is negative")
        })?;
        facts.asked_seconds = (seconds > 0).then_some(seconds);
        let caller = self.attest(&token).await?;
        facts.caller = Some(caller.clone());
        let id = caller
            .spiffe_id(&self.trust_domain)
            .map_err(|text| Denied::refused(GrpcCode::Unauthenticated, "name", text))?;
        facts.id = Some(id.as_str().to_owned());
        let key = self.limit.hash([caller.pod_uid.as_bytes()]);
        let decision = self.limit.check(key, Instant::now());
        if !decision.allowed {
            let text = format!("this pod asks too often; ask again in {}s", decision.retry_after.as_secs() + 1);
            return Err(Denied::refused(GrpcCode::ResourceExhausted, "rate", text));
        }
        let request = CertificateRequest::parse(asked.csr, &id)?;
        let now = SystemTime::now();
        let signing = self.source.signing(now).await.map_err(|error| Denied::failed("authority", error.to_string()))?;
        let ttl = if seconds == 0 { self.ttl } else { Duration::from_secs(seconds).min(self.max_ttl) };
        let signed = signing
            .issuer
            .svid(&request, &id, ttl, now)
            .map_err(|error| Denied::failed("authority", error.to_string()))?;
        let own = [&signed.certificate].into_iter().chain(signing.issuer.chain());
        let texts: Vec<_> = own.map(|certificate| write_pem("CERTIFICATE", certificate)).collect();
        let message = answer(texts.iter().map(String::as_str).chain([&*signing.bundle_pem]));
        Ok((signed, message.into()))
    }

    async fn attest(&self, token: &Secret) -> Result<Caller, Denied> {
        // Never closed.
        let _turn = self.reviews.acquire().await;
        let reviewed = self.review.review(token).await;
        *self.trouble.lock() = match &reviewed {
            Err(Disbelief::Unavailable(text)) => Some(text.clone()),
            _ => None,
        };
        Ok(reviewed?)
    }

    async fn deny(&self, peer: SocketAddr, facts: &Facts, denied: Denied) -> GrpcStatus {
        let Denied { code, result, reason, text } = denied;
        self.metrics.certificates.with(&[result]).inc();
        self.metrics.refusals.with(&[reason]).inc();
        let event = if result == "refused" { "certificate_refused" } else { "certificate_failed" };
        let record = Record { reason: Some(reason), detail: Some(text.clone()), ..facts.record(event, peer) };
        if let Err(error) = self.audit.write(&record).await {
            tracing::error!(component = "authority", %error, "cannot write the audit log");
        }
        GrpcStatus::new(code, text)
    }
}

impl GrpcService for CertificateService {
    fn call(&self, call: GrpcCall) -> GrpcAnswer<'_> {
        Box::pin(self.create(call))
    }
}

impl Facts {
    fn record(&self, event: &'static str, peer: SocketAddr) -> Record<'_> {
        let caller = self.caller.as_ref();
        Record {
            spiffe_id: self.id.as_deref(),
            pod: caller.map(|caller| caller.pod.as_str()),
            pod_uid: caller.map(|caller| caller.pod_uid.as_str()),
            node: caller.and_then(|caller| caller.node.as_deref()),
            asked_seconds: self.asked_seconds,
            ..Record::new(event, peer)
        }
    }
}

/// The token of a call.
fn bearer(metadata: &HeaderMap) -> Result<Secret, Denied> {
    let absent =
        || Denied::refused(GrpcCode::Unauthenticated, "no_token", "the call has no bearer token in `authorization`");
    let value = metadata.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(absent)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(absent)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(absent());
    }
    Ok(Secret::new(token.trim().to_owned()))
}
