//! Limits that a service counts for many proxies ([Envoy's rate limit service]).
//!
//! In: a request's descriptors. Out: what the service says of them. Promise: it is asked over the worker's own HTTP/2
//! connections, with the cluster's TLS, balancing and health; an answer is waited for no longer than the config says and
//! is bounded in size; what the service tells us to add can neither frame a message nor say who called.
//!
//! [Envoy's rate limit service]: https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/rate_limit_filter

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use outrigger_config::{FailureMode, GlobalRateLimit, RateLimitService, XRatelimitHeaders, is_untouched_field};
use outrigger_telemetry::Counter;
use outrigger_wire::h1::{Framing, is_field_name, is_field_value};
use outrigger_wire::head::{Head, Version};
use outrigger_wire::rate_limit_service::{Answer, Entry, METHOD, read_response, write_request};

use crate::body::{Source, poll_pump};
use crate::cluster::Cluster;
use crate::dial::Ends;
use crate::error::Reason;
use crate::metrics::Families;
use crate::pool::{Pool, Way, Wish};
use crate::upstream::{Ask, Got, Parked, Up};

/// Bytes of an answer.
const MOST_ANSWER: usize = 64 * 1024;
/// Before gRPC's message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Connections tried when one was closed before the service can have looked at the question.
const MOST_TRIES: u32 = 3;

/// What is asked about the requests of a route.
pub(crate) struct GlobalLimit {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) route: String,
    /// The listener's, then the route's own.
    pub(crate) limits: Vec<GlobalRateLimit>,
    pub(crate) timeout: Duration,
    /// Requests that it does not answer for are refused.
    pub(crate) deny: bool,
    /// Clients are told how much is left.
    pub(crate) tells: bool,
    domain: String,
    pub(crate) ok: Counter,
    pub(crate) over_limit: Counter,
    pub(crate) error: Counter,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("{0}")]
    Upstream(#[from] Reason),
    #[error("HTTP status {0}")]
    Http(u16),
    #[error("gRPC status {0}")]
    Grpc(u8),
    #[error("no gRPC status")]
    NoStatus,
    #[error("not an answer of a rate limit service")]
    Invalid,
    #[error("not within its timeout")]
    TooLate,
}

impl GlobalLimit {
    /// What a service is asked about the requests of a route of this name.
    pub(crate) fn new(
        service: &RateLimitService,
        cluster: Arc<Cluster>,
        listener: &str,
        route: &str,
        limits: Vec<GlobalRateLimit>,
        families: &Families,
    ) -> Self {
        let count = |result| families.global_rate_limit(&[listener, route, result]);
        Self {
            cluster,
            route: route.to_owned(),
            limits,
            timeout: service.timeout.into(),
            deny: service.failure_mode == FailureMode::Deny,
            tells: service.x_ratelimit_headers == XRatelimitHeaders::DraftVersion03,
            domain: service.domain.clone(),
            ok: count("ok"),
            over_limit: count("over_limit"),
            error: count("error"),
        }
    }

    /// Asks the service. Cancel-safe: it may have counted the hit or not.
    pub(crate) async fn ask(
        &self,
        pool: &Rc<Pool>,
        ends: Ends,
        descriptors: &[Vec<Entry<'_>>],
    ) -> Result<Answer, Unanswered> {
        let mut message = vec![0; PREFIX];
        write_request(&self.domain, descriptors, &mut message);
        let length = (message.len() - PREFIX) as u32;
        message[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        let request = self.request(pool);
        match tokio::time::timeout(self.timeout, call(pool, ends, &request, &message)).await {
            Ok(answer) => answer,
            Err(_) => Err(Unanswered::TooLate),
        }
    }

    fn request(&self, pool: &Pool) -> Head {
        let mut head = Head::default();
        head.set_version(Version::Http11);
        head.set_method("POST");
        head.set_target(METHOD);
        head.push("host", pool.cluster.host().as_bytes());
        head.push("te", b"trailers");
        head.push("content-type", b"application/grpc");
        // At most eight digits.
        let millis = self.timeout.as_millis().clamp(1, 99_999_999);
        head.push("grpc-timeout", format!("{millis}m").as_bytes());
        head.push("user-agent", concat!("outrigger/", env!("CARGO_PKG_VERSION")).as_bytes());
        head
    }
}

/// Fields that a service tells us to add, as far as they may be.
pub(crate) fn allowed(fields: Vec<(String, Vec<u8>)>) -> impl Iterator<Item = (String, Vec<u8>)> {
    fields
        .into_iter()
        .filter(|(name, value)| is_field_name(name.as_bytes()) && is_field_value(value) && !is_untouched_field(name))
}

async fn call(pool: &Rc<Pool>, ends: Ends, request: &Head, message: &[u8]) -> Result<Answer, Unanswered> {
    let key = pool.key(None, ends.client.ip());
    let mut tries = 0;
    loop {
        tries += 1;
        match try_once(pool, ends, key, request, message).await {
            // A kept connection had ended, which costs no second hit.
            Err(Unanswered::Upstream(Reason::Unseen | Reason::Refused)) if tries < MOST_TRIES => {}
            outcome => return outcome,
        }
    }
}

async fn try_once(
    pool: &Rc<Pool>,
    ends: Ends,
    key: Option<u64>,
    request: &Head,
    message: &[u8],
) -> Result<Answer, Unanswered> {
    let wish = Wish { way: Way::Shared, fresh: false, certain: true, ends, tried: &[], key, prefer: None };
    let mut lease = pool.checkout(wish).await?;
    let (secure, report) = (lease.is_secure(), lease.report());
    let (link, _) = lease.parts();
    let framing = Framing::Length(message.len() as u64);
    let Up { mut sink, mut receiver } = match link.open(request, framing, secure, Ask::Answer) {
        // Nothing of it went out.
        Err(Reason::Reset) => return Err(Reason::Unseen.into()),
        up => up?,
    };
    let mut source = Source::Own(message);
    let (mut sent, mut head) = (false, Head::default());
    let answer: Result<(), Reason> = poll_fn(|cx| {
        sent = sent || poll_pump(cx, &mut source, &mut sink, |_| {}, &mut None).is_ready();
        loop {
            if let Got::Response(..) = ready!(receiver.poll_head(cx, &mut head))? {
                return Poll::Ready(Ok(()));
            }
        }
    })
    .await;
    answer.inspect_err(|reason| report.failed(*reason))?;
    report.answered(&head, true);
    let (body, trailers) = match receiver.park() {
        Parked::H2(Some(stream)) => read(stream).await.inspect_err(|_| report.failed(Reason::Reset))?,
        // What is shared is HTTP/2, and its answer may be a head alone.
        Parked::H2(None) | Parked::H1 => (Vec::new(), None),
    };
    if head.status() != 200 {
        return Err(Unanswered::Http(head.status()));
    }
    let status = head.get_named("grpc-status").map(<[u8]>::to_vec);
    let status = status.or_else(|| Some(trailers?.get("grpc-status")?.as_bytes().to_vec()));
    let status: Option<u8> = status.and_then(|status| str::from_utf8(&status).ok()?.parse().ok());
    report.ended(status);
    match status {
        Some(0) => unframed(&body).and_then(read_response).ok_or(Unanswered::Invalid),
        Some(other) => Err(Unanswered::Grpc(other)),
        None => Err(Unanswered::NoStatus),
    }
}

async fn read(mut stream: h2::RecvStream) -> Result<(Vec<u8>, Option<http::HeaderMap>), Unanswered> {
    let lost = |_| Unanswered::Upstream(Reason::Reset);
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.map_err(lost)?;
        let _ = stream.flow_control().release_capacity(data.len());
        if body.len() + data.len() > MOST_ANSWER {
            return Err(Unanswered::Invalid);
        }
        body.extend_from_slice(&data);
    }
    Ok((body, stream.trailers().await.map_err(lost)?))
}

/// The one message of an answer, if it is one, and not compressed, which was not offered.
fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let [0, length @ ..] = <[u8; PREFIX]>::try_from(prefix).ok()? else { return None };
    (u32::from_be_bytes(length) as usize == message.len()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_whole_message() {
        assert_eq!(unframed(&[0, 0, 0, 0, 2, 8, 1]), Some(&[8, 1][..]));
        assert_eq!(unframed(&[0, 0, 0, 0, 0]), Some(&[][..]));
        for (name, bytes) in [
            ("none", &[][..]),
            ("cut", &[0, 0, 0, 0, 2, 8]),
            ("compressed", &[1, 0, 0, 0, 2, 8, 1]),
            ("more than one", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(unframed(bytes), None, "{name}");
        }
    }

    #[test]
    fn what_a_service_adds_frames_nothing() {
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let told = vec![
            field("x-tier", "gold"),
            field("Content-Length", "0"),
            field("x-forwarded-client-cert", "URI=spiffe://a/b"),
            field("x bad", "1"),
            field("x-split", "a\r\nx-evil: 1"),
        ];
        assert_eq!(allowed(told).collect::<Vec<_>>(), [field("x-tier", "gold")]);
    }
}
