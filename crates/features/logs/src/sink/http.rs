//! Posts JSON lines over HTTP.
//!
//! In: batches. Out: `POST` with `application/x-ndjson`; a 2xx answer acknowledges. Promise:
//! what the receiver did not take is sent again until it does, with the same
//! `Idempotency-Key`. A batch that it rejects for what is in it is halved, until the events
//! it does not want stand alone; those are given up, counted and told.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use outrigger_config::{HttpSink as HttpConfig, MASK};
use outrigger_http::{Client, ClientOptions, HttpError, Resolver, Stage, client_tls};
use outrigger_runtime::Backoff;
use outrigger_traffic::retry_after;

use super::{RETRY, SinkParts};
use crate::queue::Piece;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest wait that a receiver may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// So much of a receiver's refusal is shown.
const SHOWN: usize = 200;
const MAX_ANSWER: usize = 64 * 1024;
/// After so many rejections in one batch and nothing taken, the fault is not one event's: all are given up.
const MOST_REJECTIONS: usize = 32;

/// An HTTP sink before it runs.
pub(crate) struct HttpSink {
    pub(crate) parts: SinkParts,
    pub(crate) config: HttpConfig,
    pub(crate) resolver: Resolver,
}

/// What an answer means for the batch.
enum Verdict {
    Taken,
    Again(String, Option<Duration>),
    /// As [`Verdict::Again`], with a fresh look at the CA file.
    Distrusted(String),
    TooLarge,
    Never(String),
}

/// Some lines of a batch.
struct Part {
    body: Bytes,
    /// Where each line ends in `body`.
    ends: Vec<usize>,
    key: String,
}

impl HttpSink {
    /// Takes batches until the sources have ended.
    pub(crate) async fn run(mut self) {
        let Some(mut client) = self.client().await else { return };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(batch) = self.parts.batches.next().await {
            let mut parts = VecDeque::from([Part::of(&batch)]);
            let (mut rejected, mut rejections, mut any_taken) = (0, 0, false);
            while let Some(part) = parts.pop_front() {
                if part.ends.is_empty() {
                    continue;
                }
                let verdict = tokio::select! {
                    verdict = self.post(&client, &part) => verdict,
                    () = self.parts.abort.cancelled() => return,
                };
                match verdict {
                    Verdict::Taken => {
                        any_taken = true;
                        backoff.reset();
                    }
                    Verdict::TooLarge if part.ends.len() > 1 => part.halve_into(&mut parts),
                    Verdict::TooLarge => {
                        rejected += self.reject(&part, "413: one event alone is too large for the receiver");
                    }
                    Verdict::Never(reason) => {
                        rejections += 1;
                        if part.ends.len() > 1 && (any_taken || rejections < MOST_REJECTIONS) {
                            part.halve_into(&mut parts);
                        } else {
                            rejected += self.reject(&part, &reason);
                        }
                    }
                    Verdict::Again(reason, wait) => {
                        parts.push_front(part);
                        // A receiver may ask for more patience than ours, not for less.
                        let wait = backoff.next().max(wait.unwrap_or_default().min(LONGEST_RETRY_AFTER));
                        if !self.again(reason, wait).await {
                            return;
                        }
                    }
                    Verdict::Distrusted(reason) => {
                        parts.push_front(part);
                        if !self.again(reason, backoff.next()).await {
                            return;
                        }
                        let Some(fresh) = self.client().await else { return };
                        client = fresh;
                    }
                }
            }
            self.parts.acknowledge_without(batch, rejected);
        }
    }

    /// Tells why, and waits; false when the sink is to end.
    async fn again(&self, reason: String, wait: Duration) -> bool {
        self.parts.metrics.retries.inc();
        self.parts.problems.tell(&self.parts.owner, reason);
        self.parts.pause(wait).await
    }

    /// The client; waits for a CA file that cannot be read yet.
    async fn client(&self) -> Option<Client> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let tls = match self.config.ca_file.clone() {
                None => Ok(None),
                Some(path) => client_tls(path).await.map(Some),
            };
            match tls {
                Ok(tls) => {
                    let timeout = self.config.timeout.into();
                    let options = ClientOptions { tls, timeout, max_response: MAX_ANSWER, ..ClientOptions::default() };
                    return Some(Client::new(options, self.resolver.clone()));
                }
                Err(reason) => {
                    self.parts.problems.tell(&self.parts.owner, reason);
                    if !self.parts.pause(backoff.next()).await {
                        return None;
                    }
                }
            }
        }
    }

    async fn post(&self, client: &Client, part: &Part) -> Verdict {
        match self.request(part) {
            Ok(request) => judge(client.send(request).await, |text| self.mask(text)),
            Err(error) => Verdict::Again(format!("cannot build a request: {error}"), None),
        }
    }

    /// A receiver may repeat our headers in its answer; their values are shown nowhere.
    fn mask(&self, text: String) -> String {
        let values = self.config.headers.values().map(|value| value.expose()).filter(|value| !value.is_empty());
        // Of `Bearer TOKEN`, the token alone as well.
        let words =
            values.flat_map(|value| std::iter::once(value).chain(value.split(' ').filter(|word| word.len() > 7)));
        words.fold(text, |text, secret| text.replace(secret, MASK))
    }

    fn request(&self, part: &Part) -> Result<Request<Bytes>, http::Error> {
        let mut request = Request::post(self.config.url.as_str()).header(CONTENT_TYPE, "application/x-ndjson");
        if !self.config.headers.keys().any(|name| name.eq_ignore_ascii_case(IDEMPOTENCY_KEY.as_str())) {
            request = request.header(IDEMPOTENCY_KEY, part.key.as_str());
        }
        for (name, value) in &self.config.headers {
            let mut value = HeaderValue::from_str(value.expose())?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        request.body(part.body.clone())
    }

    /// Gives events up; says how many.
    fn reject(&self, part: &Part, reason: &str) -> usize {
        self.parts.metrics.rejected.add(part.ends.len() as u64);
        let events = part.ends.len();
        tracing::error!(
            component = "logs",
            sink = self.parts.owner,
            events,
            reason,
            "the receiver refused events for good; they are dropped"
        );
        events
    }
}

fn judge(answer: Result<Response<Bytes>, HttpError>, mask: impl Fn(String) -> String) -> Verdict {
    let response = match answer {
        Ok(response) => response,
        Err(error) if error.stage() == Stage::Tls => return Verdict::Distrusted(error.to_string()),
        Err(error) => return Verdict::Again(error.to_string(), None),
    };
    let status = response.status();
    if status.is_success() {
        return Verdict::Taken;
    }
    let reason = format!("the receiver answered {status}{}", shown(response.body(), mask));
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => Verdict::TooLarge,
        // These are mended by people, not by sending something else: credentials, a path, a busy receiver.
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::PAYMENT_REQUIRED
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::CONFLICT
        | StatusCode::GONE
        | StatusCode::MISDIRECTED_REQUEST
        | StatusCode::LOCKED
        | StatusCode::FAILED_DEPENDENCY
        | StatusCode::UPGRADE_REQUIRED
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS => Verdict::Again(reason, asked_wait(&response)),
        status if status.is_client_error() => Verdict::Never(reason),
        _ => Verdict::Again(reason, asked_wait(&response)),
    }
}

/// `Retry-After`: seconds, or a date.
fn asked_wait(response: &Response<Bytes>) -> Option<Duration> {
    retry_after(response.headers().get(RETRY_AFTER)?.as_bytes(), SystemTime::now())?.wait()
}

/// The beginning of a text from outside, fit for one line of a log.
fn shown(body: &[u8], mask: impl Fn(String) -> String) -> String {
    // Masked before it is cut, or half a secret might remain.
    let text = mask(String::from_utf8_lossy(&body[..body.len().min(MAX_ANSWER)]).into_owned());
    let text: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

impl Part {
    fn of(batch: &[Piece]) -> Self {
        let mut body = Vec::with_capacity(batch.iter().map(|piece| piece.data.len()).sum());
        let mut ends = Vec::new();
        let mut key = 0xcbf2_9ce4_8422_2325_u64;
        for piece in batch {
            ends.extend(piece.ends.iter().map(|end| body.len() + *end as usize));
            body.extend_from_slice(piece.data.as_bytes());
            // The content, not the inode, which a truncated or reused file has in common with others; and the way,
            // for two ways to one sink carry other events of the same lines.
            for number in [piece.file.identity().key, piece.path as u64, piece.start, piece.end] {
                for byte in number.to_le_bytes() {
                    key = (key ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
        }
        Self { body: body.into(), ends, key: format!("{key:016x}") }
    }

    /// Both halves, to be sent next and in order.
    fn halve_into(self, parts: &mut VecDeque<Self>) {
        let (first, second) = self.halves();
        parts.push_front(second);
        parts.push_front(first);
    }

    fn halves(self) -> (Self, Self) {
        let middle = self.ends.len() / 2;
        let cut = self.ends[middle - 1];
        let second = self.ends[middle..].iter().map(|end| end - cut).collect();
        (
            Self { body: self.body.slice(..cut), ends: self.ends[..middle].to_vec(), key: format!("{}a", self.key) },
            Self { body: self.body.slice(cut..), ends: second, key: format!("{}b", self.key) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Verdict {
        judge(Ok(Response::builder().status(status).body(Bytes::from_static(b"why\nnot")).unwrap()), |text| text)
    }

    #[test]
    fn answers_are_judged_by_who_can_mend_it() {
        for status in [200, 202, 204] {
            assert!(matches!(answered(status), Verdict::Taken), "{status}");
        }
        for status in [401, 403, 404, 408, 429, 500, 502, 503, 301] {
            assert!(matches!(answered(status), Verdict::Again(..)), "{status}");
        }
        for status in [400, 415, 422] {
            assert!(matches!(answered(status), Verdict::Never(reason) if reason.ends_with("why not")), "{status}");
        }
        assert!(matches!(answered(413), Verdict::TooLarge));
    }

    #[test]
    fn halves_make_the_whole() {
        let part = Part { body: Bytes::from_static(b"a\nbb\nccc\n"), ends: vec![2, 5, 9], key: "k".into() };
        let (first, second) = part.halves();
        assert_eq!((&first.body[..], &first.ends[..]), (&b"a\n"[..], &[2][..]));
        assert_eq!((&second.body[..], &second.ends[..]), (&b"bb\nccc\n"[..], &[3, 7][..]));
        assert_ne!(first.key, second.key);
    }
}
