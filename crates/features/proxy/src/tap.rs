//! Requests told to operators who watch (`GET /tap`, `outrigger tap`).
//!
//! In: requests at their end, on the workers. Out: a JSON line each, to every tap that wants it.
//! Promise: without a tap a request pays one relaxed load; with one, traffic never waits for who
//! reads: what does not fit in a tap's queue is dropped, counted, and told in its place. Values of
//! header fields, and of members of JSON and forms, that may be secret are told by length and mark only. Bodies are copied,
//! up to a bound, while somebody asks for them.

use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::io::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use outrigger_runtime::{AdminRequest, AdminResponse, AdminRoutes, BoxFuture};
use outrigger_traffic::tap::{Glob, TapQuery, Told};
use outrigger_traffic::{BodyKind, mask_body};
use outrigger_wire::head::{FieldId, Head};
use tokio::sync::mpsc;

use crate::access_log::{Entry, quoted};
use crate::body::Source;
use crate::metrics::Families;
use crate::tapped::{BodyCopy, TappedSource};
use crate::worker::Worker;

/// Taps at a time.
const MOST_TAPS: usize = 4;
/// Lines, and their bytes, that wait for one tap's reader.
const MOST_LINES: usize = 1024;
const MOST_WAITING: usize = 256 * 1024;
/// Bytes of a field's value that are told, and of all of a head.
const MOST_VALUE: usize = 1024;
const MOST_HEAD: usize = 16 * 1024;

/// Fields that are masked whatever the config says, as patterns in lower case.
const MASKED: [&str; 12] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "x-forwarded-client-cert",
    "*token*",
    "*secret*",
    "*password*",
    "*api-key*",
    "*apikey*",
    "*session*",
];
/// Fields that hold a URI, whose query is masked.
const URIS: [&str; 3] = ["referer", "location", "content-location"];

/// All taps of the process.
pub(crate) struct Taps {
    on: AtomicBool,
    /// One of them needs requests' heads.
    wants_heads: AtomicBool,
    /// The most bytes of a body that one of them wants.
    bodies: AtomicUsize,
    all: ArcSwap<Vec<Arc<Tap>>>,
    changes: Mutex<()>,
    masks: Masks,
}

/// One of them.
struct Tap {
    query: TapQuery,
    lines: mpsc::Sender<Line>,
    /// Bytes of lines that wait.
    waiting: AtomicUsize,
    /// Requests that found no room since the last that did.
    missed: AtomicU64,
}

/// A line on its way to a reader.
struct Line {
    bytes: Vec<u8>,
    missed_before: u64,
}

/// The heads of a request and its response, and how their bodies begin.
#[derive(Default)]
pub(crate) struct Heads {
    pub(crate) request: Head,
    pub(crate) response: Option<Head>,
    /// So many bytes of bodies are wanted.
    most: usize,
    request_body: Option<Rc<RefCell<BodyCopy>>>,
    response_body: Option<Rc<RefCell<BodyCopy>>>,
}

impl Heads {
    /// The request's body, copied as it goes if somebody wants to see it.
    pub(crate) fn tap_request<'a>(&mut self, body: Source<'a>) -> Source<'a> {
        if self.most == 0 {
            return body;
        }
        TappedSource::of(body, Rc::clone(self.request_body.insert(BodyCopy::new(self.most))))
    }

    /// The same for the answer's.
    pub(crate) fn tap_response<'a>(&mut self, body: Source<'a>) -> Source<'a> {
        if self.most == 0 {
            return body;
        }
        TappedSource::of(body, Rc::clone(self.response_body.insert(BodyCopy::new(self.most))))
    }
}

impl Taps {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            on: AtomicBool::new(false),
            wants_heads: AtomicBool::new(false),
            bodies: AtomicUsize::new(0),
            all: ArcSwap::default(),
            changes: Mutex::new(()),
            masks: Masks::new(),
        })
    }

    /// Masks these header fields too.
    pub(crate) fn mask(&self, patterns: &[String]) {
        self.masks.more.store(Arc::new(patterns.iter().filter_map(|pattern| lower(pattern)).collect()));
    }

    /// Whether anybody watches.
    pub(crate) fn are_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// A request's head, when somebody needs it.
    pub(crate) fn keep(&self, request: &Head) -> Option<Box<Heads>> {
        if !self.wants_heads.load(Relaxed) {
            return None;
        }
        let mut heads = Box::new(Heads { most: self.bodies.load(Relaxed), ..Heads::default() });
        heads.request.copy_from(request);
        Some(heads)
    }

    /// Tells a request that has ended to all who want it.
    pub(crate) fn tell(&self, worker: &Worker, entry: &Entry<'_>, heads: Option<&Heads>) {
        let reason = entry.reason.map(|reason| reason.to_string()).unwrap_or_default();
        let told = told(entry, heads, &reason);
        for tap in self.all.load().iter() {
            let share = tap.query.share;
            if !tap.query.filter.wants(&told) || (share < 1.0 && f64::from(worker.random()) >= share * 2f64.powi(32)) {
                continue;
            }
            let mut line = Vec::with_capacity(512);
            entry.write(&mut line);
            // Reopened for what only a tap tells.
            line.truncate(line.len() - b"}\n".len());
            if let Some(heads) = heads.filter(|_| tap.query.headers) {
                self.masks.write(&mut line, "request_headers", &heads.request);
                if let Some(response) = &heads.response {
                    self.masks.write(&mut line, "response_headers", response);
                }
            }
            if let Some(heads) = heads.filter(|_| tap.query.bodies > 0) {
                self.masks.write_body(&mut line, "request_body", &heads.request, &heads.request_body, tap.query.bodies);
                if let Some(response) = &heads.response {
                    let body = &heads.response_body;
                    self.masks.write_body(&mut line, "response_body", response, body, tap.query.bodies);
                }
            }
            line.extend_from_slice(b"}\n");
            if !tap.push(line) {
                worker.families.tap_missed();
            }
        }
    }

    /// Answers `GET /tap`.
    fn open(self: &Arc<Self>, request: &AdminRequest, families: &Families) -> AdminResponse {
        let query = match TapQuery::parse(&request.query) {
            Ok(query) => query,
            Err(problem) => return AdminRoutes::text(StatusCode::BAD_REQUEST, format!("{problem}\n")),
        };
        let (lines, queue) = mpsc::channel(MOST_LINES);
        let left = query.most.unwrap_or(u64::MAX);
        let end = query.duration.map(|duration| Box::pin(tokio::time::sleep(duration)));
        let tap = Arc::new(Tap { query, lines, waiting: AtomicUsize::new(0), missed: AtomicU64::new(0) });
        if !self.add(&tap) {
            let text = format!("there are {MOST_TAPS} taps already; end one of them\n");
            return AdminRoutes::text(StatusCode::SERVICE_UNAVAILABLE, text);
        }
        families.taps(1.0);
        let mut reading = Reading { taps: Arc::clone(self), tap, queue, left, end, families: families.clone() };
        AdminRoutes::stream("application/x-ndjson", move |cx| reading.poll(cx))
    }

    fn add(&self, tap: &Arc<Tap>) -> bool {
        self.change(|all| {
            let fits = all.len() < MOST_TAPS;
            if fits {
                all.push(Arc::clone(tap));
            }
            fits
        })
    }

    fn remove(&self, tap: &Arc<Tap>) {
        self.change(|all| all.retain(|one| !Arc::ptr_eq(one, tap)));
    }

    fn change<T>(&self, work: impl FnOnce(&mut Vec<Arc<Tap>>) -> T) -> T {
        let _alone = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::clone(&self.all.load());
        let outcome = work(&mut all);
        let bodies = all.iter().map(|tap| tap.query.bodies).max().unwrap_or(0);
        let (on, wants_heads) = (!all.is_empty(), all.iter().any(|tap| tap.query.needs_head()));
        self.all.store(Arc::new(all));
        self.wants_heads.store(wants_heads, Relaxed);
        self.bodies.store(bodies, Relaxed);
        self.on.store(on, Relaxed);
        outcome
    }
}

/// The handler of `GET /tap`.
pub(crate) fn handler(
    taps: Arc<Taps>,
    families: Families,
) -> impl Fn(AdminRequest) -> BoxFuture<'static, AdminResponse> + Send + Sync {
    move |request| {
        let answer = taps.open(&request, &families);
        Box::pin(async { answer })
    }
}

impl Tap {
    /// Hands a line over, if there is room.
    fn push(&self, bytes: Vec<u8>) -> bool {
        let length = bytes.len();
        let missed_before = self.missed.swap(0, Relaxed);
        let fits = self.waiting.fetch_add(length, Relaxed) + length <= MOST_WAITING;
        let fits = fits && self.lines.try_send(Line { bytes, missed_before }).is_ok();
        if !fits {
            self.waiting.fetch_sub(length, Relaxed);
            self.missed.fetch_add(missed_before + 1, Relaxed);
        }
        fits
    }
}

/// One tap's reader, as the admin API's server asks it for more. The tap ends with it.
struct Reading {
    taps: Arc<Taps>,
    tap: Arc<Tap>,
    queue: mpsc::Receiver<Line>,
    left: u64,
    end: Option<Pin<Box<tokio::time::Sleep>>>,
    families: Families,
}

impl Reading {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.left == 0 || self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(None);
        }
        match self.queue.poll_recv(cx) {
            Poll::Ready(Some(line)) => {
                self.tap.waiting.fetch_sub(line.bytes.len(), Relaxed);
                self.left -= 1;
                Poll::Ready(Some(if line.missed_before == 0 {
                    line.bytes.into()
                } else {
                    [missed(line.missed_before).as_bytes(), &line.bytes].concat().into()
                }))
            }
            Poll::Ready(None) => Poll::Ready(None),
            // All that waited was read, and behind it some were missed.
            Poll::Pending => match self.tap.missed.swap(0, Relaxed) {
                0 => Poll::Pending,
                count => Poll::Ready(Some(missed(count).into())),
            },
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.taps.remove(&self.tap);
        self.families.taps(-1.0);
    }
}

/// Tells that requests were wanted and not told.
fn missed(count: u64) -> String {
    format!("{{\"missed\":{count}}}\n")
}

fn told<'a>(entry: &Entry<'a>, heads: Option<&'a Heads>, reason: &'a str) -> Told<'a> {
    Told {
        route: entry.route,
        cluster: entry.cluster,
        listener: entry.listener,
        direction: entry.direction,
        path: entry.path,
        method: entry.method,
        status: entry.code,
        grpc_status: entry.grpc_status,
        duration: entry.duration,
        peer: entry.peer,
        flags: entry.flags(),
        reason,
        head: heads.map(|heads| &heads.request),
    }
}

/// Which values are not told.
struct Masks {
    always: Vec<Glob>,
    more: ArcSwap<Vec<Glob>>,
    /// Marks of values: the same for the same value, as long as this process lives, and of use to nobody else.
    mark: RandomState,
}

impl Masks {
    fn new() -> Self {
        let always = MASKED.iter().filter_map(|pattern| lower(pattern)).collect();
        Self { always, more: ArcSwap::default(), mark: RandomState::new() }
    }

    fn masks(&self, name: &str) -> bool {
        let fits = |globs: &[Glob]| globs.iter().any(|glob| glob.fits(name.as_bytes()));
        fits(&self.always) || fits(&self.more.load())
    }

    /// Writes a head's fields as a list, for they may repeat and have an order.
    fn write(&self, line: &mut Vec<u8>, key: &str, head: &Head) {
        let _ = write!(line, ",\"{key}\":[");
        let begun = line.len();
        for field in head.fields() {
            if line.len() - begun > MOST_HEAD {
                separate(line, begun);
                line.extend_from_slice(b"{\"name\":\"...\",\"value\":\"more than is told\"}");
                break;
            }
            separate(line, begun);
            let name = field.name.to_ascii_lowercase();
            line.extend_from_slice(b"{\"name\":");
            quoted(line, name.as_bytes());
            line.extend_from_slice(b",\"value\":");
            quoted(line, &self.value(&name, field.value));
            line.push(b'}');
        }
        line.push(b']');
    }

    /// Writes how a body begins: as text, if it is one, else in base64.
    fn write_body(
        &self,
        line: &mut Vec<u8>,
        key: &str,
        head: &Head,
        body: &Option<Rc<RefCell<BodyCopy>>>,
        most: usize,
    ) {
        let Some(body) = body.as_ref().map(|body| body.borrow()).filter(|body| body.length() > 0) else { return };
        let bytes = &body.bytes()[..body.bytes().len().min(most)];
        let text = match str::from_utf8(bytes) {
            Ok(text) => Some(text),
            // A character that was cut is no sign of bytes that are no text.
            Err(error) if error.error_len().is_none() => str::from_utf8(&bytes[..error.valid_up_to()]).ok(),
            Err(_) => None,
        };
        match text.filter(|text| !text.contains('\0')) {
            Some(text) => {
                let kind = BodyKind::of(head.get(FieldId::ContentType).unwrap_or_default());
                let mask = |value: &str| String::from_utf8_lossy(&self.masked(value.as_bytes())).into_owned();
                let _ = write!(line, ",\"{key}\":");
                quoted(line, mask_body(kind, text, |name| self.masks(name), mask).as_bytes());
            }
            None => {
                let _ = write!(line, ",\"{key}_base64\":\"{}\"", STANDARD.encode(bytes));
            }
        }
        let _ = write!(line, ",\"{key}_bytes\":{}", body.length());
    }

    /// A field's value as it is told.
    fn value(&self, name: &str, value: &[u8]) -> Vec<u8> {
        if self.masks(name) {
            return self.masked(value);
        }
        if URIS.contains(&name)
            && let Some(query) = value.iter().position(|byte| *byte == b'?')
        {
            return [&value[..=query], &*self.masked(&value[query + 1..])].concat();
        }
        let mut told = value[..value.len().min(MOST_VALUE)].to_vec();
        if told.len() < value.len() {
            let _ = write!(told, "... ({} bytes)", value.len());
        }
        told
    }

    fn masked(&self, value: &[u8]) -> Vec<u8> {
        let mark = self.mark.hash_one(value) as u32;
        format!("<masked: {} bytes, mark {mark:08x}>", value.len()).into_bytes()
    }
}

fn lower(pattern: &str) -> Option<Glob> {
    Glob::of(&pattern.to_ascii_lowercase()).ok()
}

fn separate(line: &mut Vec<u8>, begun: usize) {
    if line.len() > begun {
        line.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_telemetry::Registry;
    use serde_json::Value;

    use super::*;

    fn tap(query: &str) -> (Tap, mpsc::Receiver<Line>) {
        let (lines, queue) = mpsc::channel(MOST_LINES);
        let query = TapQuery::parse(query).unwrap();
        (Tap { query, lines, waiting: AtomicUsize::new(0), missed: AtomicU64::new(0) }, queue)
    }

    fn reading(query: &str) -> Reading {
        let (tap, queue) = tap(query);
        let (taps, tap) = (Taps::new(), Arc::new(tap));
        assert!(taps.add(&tap));
        let families = Families::new(&Registry::new(&outrigger_config::Config::default().telemetry.registry, 1));
        Reading { taps, left: tap.query.most.unwrap_or(u64::MAX), tap, queue, end: None, families }
    }

    fn next(reading: &mut Reading) -> Poll<Option<String>> {
        let piece = reading.poll(&mut Context::from_waker(std::task::Waker::noop()));
        piece.map(|piece| piece.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
    }

    #[test]
    fn what_a_reader_misses_is_told_where_it_is_missing() {
        let mut reading = reading("");
        let line = |number: usize| format!("{number:0>4096}\n").into_bytes();
        let room = MOST_WAITING / line(0).len();
        let fitted = (0..room + 5).filter(|number| reading.tap.push(line(*number))).count();
        assert_eq!(fitted, room, "its bytes are bounded");
        assert!(matches!(next(&mut reading), Poll::Ready(Some(told)) if told.ends_with("00\n")));
        assert!(reading.tap.push(b"again\n".to_vec()), "there is room again");
        for _ in 1..room {
            assert!(matches!(next(&mut reading), Poll::Ready(Some(told)) if !told.contains("missed")));
        }
        assert_eq!(next(&mut reading), Poll::Ready(Some("{\"missed\":5}\nagain\n".to_owned())));
        assert_eq!(next(&mut reading), Poll::Pending);
        reading.tap.missed.store(3, Relaxed);
        assert_eq!(next(&mut reading), Poll::Ready(Some("{\"missed\":3}\n".to_owned())), "also when no more come");
        let short = (0..MOST_LINES + 7).filter(|_| reading.tap.push(b"x\n".to_vec())).count();
        assert_eq!(short, MOST_LINES, "and so is their number");
    }

    #[test]
    fn a_tap_costs_nothing_before_and_after() {
        let mut reading = reading("max=1&header=x-a");
        let taps = Arc::clone(&reading.taps);
        let mut head = Head::default();
        head.push("x-a", b"1");
        assert!(taps.are_on() && taps.keep(&head).is_some());
        reading.tap.push(b"one\n".to_vec());
        reading.tap.push(b"two\n".to_vec());
        assert_eq!(next(&mut reading), Poll::Ready(Some("one\n".to_owned())));
        assert_eq!(next(&mut reading), Poll::Ready(None), "it asked for one");
        for _ in 1..MOST_TAPS {
            assert!(taps.add(&Arc::new(tap("").0)));
        }
        assert!(!taps.add(&Arc::new(tap("").0)), "there are only so many");
        taps.change(Vec::clear);
        drop(reading);
        assert!(!taps.are_on() && taps.keep(&head).is_none());
        assert!(!Taps::new().are_on());
    }

    #[test]
    fn values_that_may_be_secret_are_not_told() {
        let masks = Masks::new();
        masks.more.store(Arc::new(vec![lower("X-Tenant-*").unwrap()]));
        let mut head = Head::default();
        for (name, value) in [
            ("Authorization", "Bearer s3cret"),
            ("Cookie", "id=s3cret"),
            ("set-cookie", "id=s3cret"),
            ("X-API-Key", "s3cret"),
            ("Proxy-Authorization", "Basic s3cret"),
            ("x-forwarded-client-cert", "Hash=s3cret"),
            ("x-vault-token", "s3cret"),
            ("x-tenant-key", "s3cret"),
            ("Referer", "https://shop.example/?code=s3cret"),
            ("Accept", "text/\"html\"\u{1b}[31m"),
            ("x-long", &"l".repeat(MOST_VALUE + 1)),
        ] {
            head.push(name, value.as_bytes());
        }
        let mut line = b"{\"a\":1".to_vec();
        masks.write(&mut line, "headers", &head);
        line.push(b'}');
        let told: Value = serde_json::from_slice(&line).unwrap();
        assert!(!told.to_string().contains("s3cret"), "{told:#}");
        let value = |index: usize| told["headers"][index]["value"].as_str().unwrap();
        assert!(value(0).starts_with("<masked: 13 bytes, mark "), "{told:#}");
        assert!(value(1) == value(2) && value(0) != value(1), "the same mark for the same value");
        assert!(value(8).starts_with("https://shop.example/?<masked: 11 bytes"), "{told:#}");
        assert_eq!(value(9), "text/\"html\"\u{1b}[31m");
        assert!(value(10).ends_with("... (1025 bytes)"));
        assert_ne!(Masks::new().masked(b"x"), masks.masked(b"x"), "marks are of no use elsewhere");
        let mut many = Head::default();
        (0..100).for_each(|_| many.push("x-long", &[b'l'; MOST_VALUE]));
        let mut line = Vec::new();
        masks.write(&mut line, "headers", &many);
        assert!(line.len() < MOST_HEAD + 2 * MOST_VALUE, "{}", line.len());
    }

    #[test]
    fn conditions_see_what_the_line_says() {
        let at = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let entry = Entry {
            code: 503,
            route: "all",
            duration: Duration::from_millis(3),
            reason: Some(crate::error::Reason::ConnectFailure),
            ..Entry::of(at)
        };
        let reason = entry.reason.map(|reason| reason.to_string()).unwrap_or_default();
        for (query, wanted) in
            [("status=5xx&route=all&flag=UF&reason=connect&min-latency=3ms", true), ("flag=UT", false)]
        {
            let told = told(&entry, None, &reason);
            assert_eq!(TapQuery::parse(query).unwrap().filter.wants(&told), wanted, "{query}");
        }
    }
}
