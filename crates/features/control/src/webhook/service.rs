//! Answers the API server's reviews.
//!
//! In: requests on the webhook's port. Out: answers; Events on the owners of pods that were refused. Promise: a pod of
//! another kind, of a namespace that is never injected, or that is only changed, passes as it is; a dry run leaves no trace
//! but a count; a large pod does not hold back small ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use outrigger_http::{HttpAnswer, HttpService};
use outrigger_kubernetes::names::{PROFILE_PATH, WEBHOOK_PATH};
use outrigger_telemetry::{Buckets, Counter, Histogram, Registry};
use parking_lot::RwLock;
use serde_json::Value;

use crate::injector::{Injector, Verdict};
use crate::namespaces::Namespaces;
use crate::owner::{Owners, Told};
use crate::profiles::KnownProfiles;
use crate::webhook::patch::difference;
use crate::webhook::review::{Answer, Operation, Review};

/// A review that is larger is worked on beside the thread that answers the others: it takes milliseconds.
const LARGE: usize = 128 << 10;
/// Namespaces of Kubernetes itself.
pub(crate) const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// What is counted.
#[derive(Clone)]
pub(crate) struct Metrics {
    injected: Counter,
    left: Counter,
    refused: Counter,
    malformed: Counter,
    overloaded: Counter,
    profile_accepted: Counter,
    profile_refused: Counter,
    seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let reviews = registry.counter(
            "outrigger_webhook_reviews_total",
            "Reviews of the admission webhook, by what became of the object: injected, left as it is, refused; malformed ones, and those that were too large or too many.",
            &["result"],
        );
        let profiles = registry.counter(
            "outrigger_profile_reviews_total",
            "Profiles that were judged as they were made or changed, by what became of them: accepted or refused.",
            &["result"],
        );
        let seconds = registry.histogram(
            "outrigger_webhook_review_duration_seconds",
            "Time from the last byte of a review to its answer.",
            &[],
            Buckets::request_seconds(),
        );
        Self {
            injected: reviews.with(&["injected"]),
            left: reviews.with(&["left"]),
            refused: reviews.with(&["refused"]),
            malformed: reviews.with(&["malformed"]),
            overloaded: reviews.with(&["overloaded"]),
            profile_accepted: profiles.with(&["accepted"]),
            profile_refused: profiles.with(&["refused"]),
            seconds: seconds.with(&[]),
        }
    }
}

/// What it is made of.
pub(crate) struct Parts {
    pub(crate) injector: Arc<RwLock<Arc<dyn Injector>>>,
    pub(crate) profiles: KnownProfiles,
    pub(crate) namespaces: Namespaces,
    /// Namespaces that are never injected.
    pub(crate) never: Vec<String>,
    pub(crate) owners: Owners,
    pub(crate) metrics: Metrics,
}

/// The service behind the webhook's port.
pub(crate) struct WebhookService(Parts);

impl WebhookService {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(parts)
    }

    async fn answer(&self, request: Request<Bytes>) -> Response<Bytes> {
        let begun = Instant::now();
        let of_profiles = request.uri().path() == PROFILE_PATH;
        if !of_profiles && request.uri().path() != WEBHOOK_PATH {
            let told = format!(
                "there is nothing here; the webhook is at {WEBHOOK_PATH}, profiles are judged at {PROFILE_PATH}"
            );
            return text(StatusCode::NOT_FOUND, told);
        }
        if request.method() != Method::POST {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "an AdmissionReview is sent by POST".to_owned());
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return answer;
        }
        let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if !kind.starts_with(b"application/json") {
            self.0.metrics.malformed.inc();
            return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an AdmissionReview is `application/json`".to_owned());
        }
        let body = request.into_body();
        let large = body.len() > LARGE;
        let review = if large { beside(move || Review::read(&body)).await } else { Ok(Review::read(&body)) };
        let review = match review {
            Ok(Ok(review)) => review,
            Ok(Err(error)) => {
                self.0.metrics.malformed.inc();
                tracing::warn!(problem = %error, "a review cannot be read");
                return text(StatusCode::BAD_REQUEST, error.to_string());
            }
            Err(problem) => return text(StatusCode::INTERNAL_SERVER_ERROR, problem),
        };
        let uid = review.uid.clone();
        let answer = if of_profiles { self.judge_profile(review).await } else { self.judge(review, large).await };
        let answer = match answer {
            Ok(answer) => answer.to_json(&uid),
            Err(problem) => return text(StatusCode::INTERNAL_SERVER_ERROR, problem),
        };
        let mut response = Response::new(Bytes::from(answer.to_string()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.0.metrics.seconds.observe(begun.elapsed().as_secs_f64());
        response
    }

    async fn judge(&self, mut review: Review, large: bool) -> Result<Answer, String> {
        let left = |warnings: Vec<String>| {
            self.0.metrics.left.inc();
            Ok(Answer { warnings, ..Answer::default() })
        };
        if !review.is_pod && review.subresource.is_empty() {
            let asked = format!("the webhook injects pods, and was asked about `{}`; correct its `rules`", review.kind);
            return left(vec![asked]);
        }
        // Containers cannot be added to a pod that is there, and a debugger's are none of our business.
        if !review.is_pod || review.operation != Operation::Create {
            return left(Vec::new());
        }
        let namespace = std::mem::take(&mut review.namespace);
        if SYSTEM.contains(&namespace.as_str()) || self.0.never.contains(&namespace) {
            return left(Vec::new());
        }
        let facts = self.0.namespaces.facts(&namespace).await;
        // Without them a pod might miss what a profile demands of it.
        let profiles = self.0.profiles.of(&namespace).await?;
        let injector = Arc::clone(&*self.0.injector.read());
        let Review { object, dry_run, .. } = review;
        let work = move || {
            let verdict = injector.judge(&object, &facts, &profiles);
            let patch = match &verdict {
                Verdict::Changed { pod, .. } => difference(&object, pod),
                Verdict::Left(_) | Verdict::Refused(_) => Vec::new(),
            };
            (verdict, patch, object)
        };
        let (verdict, patch, object) = if large { beside(work).await? } else { work() };
        match verdict {
            Verdict::Left(why) => {
                tracing::debug!(%namespace, %why, "a pod was left as it is");
                left(Vec::new())
            }
            Verdict::Changed { warnings, .. } => {
                self.0.metrics.injected.inc();
                Ok(Answer { patch, warnings, refusal: None })
            }
            Verdict::Refused(problems) => {
                self.0.metrics.refused.inc();
                let refusal = format!("the pod cannot be injected: {}", problems.join("; "));
                if !dry_run {
                    self.tell(namespace, object, refusal.clone());
                }
                Ok(Answer { refusal: Some(refusal), ..Answer::default() })
            }
        }
    }

    /// A profile that is to be made or changed.
    async fn judge_profile(&self, review: Review) -> Result<Answer, String> {
        let Review { operation, kind, object, subresource, .. } = review;
        if !matches!(operation, Operation::Create | Operation::Update) || !subresource.is_empty() {
            return Ok(Answer::default());
        }
        if object["apiVersion"] != "outrigger.dev/v1alpha1" {
            let asked = format!("profiles are judged here, and `{kind}` is none; correct the webhook's `rules`");
            return Ok(Answer { warnings: vec![asked], ..Answer::default() });
        }
        let injector = Arc::clone(&*self.0.injector.read());
        let verdict = beside(move || injector.judge_profile(&object)).await?;
        let refused = !verdict.problems.is_empty();
        if refused {
            self.0.metrics.profile_refused.inc()
        } else {
            self.0.metrics.profile_accepted.inc()
        }
        let refusal = refused.then(|| verdict.problems.join("; "));
        Ok(Answer { refusal, warnings: verdict.warnings, ..Answer::default() })
    }

    fn tell(&self, namespace: String, mut pod: Value, note: String) {
        let metadata = pod["metadata"].take();
        tracing::info!(%namespace, %note, "a pod was refused");
        self.0.owners.tell(Told { namespace, metadata, reason: "InjectionRefused", action: "Inject", note });
    }
}

impl HttpService for WebhookService {
    fn call(&self, request: Request<Bytes>, _peer: SocketAddr) -> HttpAnswer<'_> {
        Box::pin(self.answer(request))
    }

    fn refused(&self, _status: StatusCode) {
        self.0.metrics.overloaded.inc();
    }
}

/// Work that takes long, beside the thread that answers.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

fn text(status: StatusCode, text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
