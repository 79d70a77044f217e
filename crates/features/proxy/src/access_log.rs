//! The access log: one JSON line per request.
//!
//! In: finished requests, on the workers. Out: lines in a file or on standard output.
//! Promise: traffic never waits for it. Lines gather in a buffer of the worker and are
//! handed over whole; when the writer cannot keep up they are shed and counted. At an
//! orderly stop none is lost. A renamed file is noticed, and a new one begun.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use outrigger_config::AccessLog as AccessLogConfig;
use outrigger_telemetry::trace::TraceId;
use outrigger_telemetry::{Counter, Registry};
use outrigger_traffic::Withheld;
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::error::Reason;

/// Lines gather until so many bytes, or until the worker's flush.
const HAND_OVER: usize = 16 * 1024;
/// Batches waiting for the writer; their bytes are bounded by the config.
const MOST_BATCHES: usize = 1024;

/// The flag of a request that failed and would have been sent again, had it been allowed.
const RETRIES_EXHAUSTED: &str = "URX";

/// How long a stop waits for the writer, which a full disk or a reader that sleeps may hold up.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// What a line says. Fields from the client are bytes as they came.
pub(crate) struct Entry<'a> {
    pub(crate) started: SystemTime,
    pub(crate) duration: Duration,
    /// From the request's sending to the response's headers.
    pub(crate) upstream: Option<Duration>,
    pub(crate) direction: &'a str,
    pub(crate) listener: &'a str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a [u8],
    pub(crate) path: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) code: u16,
    pub(crate) reason: Option<Reason>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) route: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) peer: &'a str,
    pub(crate) downstream: SocketAddr,
    pub(crate) request_id: &'a [u8],
    pub(crate) user_agent: &'a [u8],
    pub(crate) retried: bool,
    /// Tries, where the route asks for more than one.
    pub(crate) attempts: u32,
    /// Why another one was not made.
    pub(crate) withheld: Option<Withheld>,
    pub(crate) trace: Option<TraceId>,
}

impl Entry<'_> {
    /// Its response flags, or nothing.
    pub(crate) fn flags(&self) -> [&'static str; 2] {
        [self.reason.map_or("", Reason::flag), self.withheld.map_or("", |_| RETRIES_EXHAUSTED)]
    }

    /// An entry that knows only where the client is.
    pub(crate) fn of(downstream: SocketAddr) -> Self {
        Self {
            started: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            upstream: None,
            direction: "",
            listener: "",
            method: "",
            host: b"",
            path: "",
            protocol: "",
            code: 0,
            reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            route: "",
            cluster: "",
            endpoint: None,
            peer: "",
            downstream,
            request_id: b"",
            user_agent: b"",
            retried: false,
            attempts: 0,
            withheld: None,
            trace: None,
        }
    }

    /// Writes the line.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        timestamp(out, self.started);
        out.push(b'"');
        for (name, value) in [("direction", self.direction), ("listener", self.listener)] {
            text(out, name, value.as_bytes());
        }
        for (name, value) in [
            ("method", self.method.as_bytes()),
            ("host", self.host),
            ("path", self.path.as_bytes()),
            ("protocol", self.protocol.as_bytes()),
        ] {
            text_if_any(out, name, value);
        }
        number(out, "code", u64::from(self.code));
        if let Some(reason) = self.reason {
            let flag = reason.flag();
            match (flag, self.withheld) {
                (flag, None) => text(out, "flags", flag.as_bytes()),
                (flag, Some(_)) => text(out, "flags", [flag, RETRIES_EXHAUSTED].join(",").as_bytes()),
            }
            text(out, "reason", reason.to_string().as_bytes());
        } else if self.withheld.is_some() {
            text(out, "flags", RETRIES_EXHAUSTED.as_bytes());
        }
        number(out, "bytes_received", self.bytes_received);
        number(out, "bytes_sent", self.bytes_sent);
        milliseconds(out, "duration_ms", self.duration);
        if let Some(upstream) = self.upstream {
            milliseconds(out, "upstream_ms", upstream);
        }
        for (name, value) in [
            ("route", self.route.as_bytes()),
            ("cluster", self.cluster.as_bytes()),
            ("peer", self.peer.as_bytes()),
            ("request_id", self.request_id),
            ("user_agent", self.user_agent),
        ] {
            text_if_any(out, name, value);
        }
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
        }
        let _ = write!(out, ",\"downstream\":\"{}\"", self.downstream);
        if let Some(trace) = self.trace {
            text(out, "trace_id", &trace.to_hex());
        }
        if self.retried {
            out.extend_from_slice(b",\"retried\":true");
        }
        if self.attempts > 1 {
            number(out, "attempts", self.attempts.into());
        }
        if let Some(withheld) = self.withheld {
            text(out, "retry_withheld", withheld.as_str().as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }
}

/// RFC 3339 in UTC, to the millisecond.
fn timestamp(out: &mut Vec<u8>, at: SystemTime) {
    let at = OffsetDateTime::from(at);
    let (hour, minute, second) = at.to_hms();
    let digits = |out: &mut Vec<u8>, value: u32, count: u32| {
        (0..count).rev().for_each(|place| out.push(b'0' + (value / 10_u32.pow(place) % 10) as u8));
    };
    digits(out, at.year().unsigned_abs(), 4);
    for (before, value) in
        [(b'-', u8::from(at.month())), (b'-', at.day()), (b'T', hour), (b':', minute), (b':', second)]
    {
        out.push(before);
        digits(out, u32::from(value), 2);
    }
    out.push(b'.');
    digits(out, u32::from(at.millisecond()), 3);
    out.push(b'Z');
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    key(out, name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// To the microsecond.
fn milliseconds(out: &mut Vec<u8>, name: &str, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    number(out, name, micros / 1000);
    let rest = (micros % 1000) as u16;
    out.push(b'.');
    [rest / 100, rest / 10 % 10, rest % 10].iter().for_each(|digit| out.push(b'0' + *digit as u8));
}

fn text_if_any(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    if !value.is_empty() {
        text(out, name, value);
    }
}

fn text(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    key(out, name);
    quoted(out, value);
}

/// Writes a JSON string.
pub(crate) fn quoted(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    // Nearly all values are plain, and copied as they are.
    if value.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(value);
    } else {
        escaped(out, &String::from_utf8_lossy(value));
    }
    out.push(b'"');
}

fn escaped(out: &mut Vec<u8>, value: &str) {
    for c in value.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The lines of one worker that are not handed over yet.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<u8>,
    count: u64,
}

impl Buffer {
    /// Adds a line, and hands the lines over when they are many; someone must flush the rest in time.
    pub(crate) fn add(&mut self, log: &AccessLog, entry: &Entry<'_>) {
        entry.write(&mut self.lines);
        self.count += 1;
        // A small `buffer` in the config must not mean that whole batches never fit.
        if self.lines.len() >= HAND_OVER.min(log.config.buffer.as_usize() / 4) {
            self.flush(log);
        }
    }

    /// Hands the lines over.
    pub(crate) fn flush(&mut self, log: &AccessLog) {
        if !self.lines.is_empty() {
            let room = self.lines.capacity().min(2 * HAND_OVER);
            let lines = std::mem::replace(&mut self.lines, Vec::with_capacity(room));
            log.hand_over(lines, std::mem::take(&mut self.count));
        }
    }
}

/// What the writer is handed.
enum Message {
    Lines(Vec<u8>, u64),
    /// Answered when everything before it is written.
    Flush(oneshot::Sender<()>),
}

/// A log with its writer, which writes what is queued and ends when the last handle goes.
pub(crate) struct AccessLog {
    config: AccessLogConfig,
    messages: SyncSender<Message>,
    queued: Arc<AtomicUsize>,
    shed: Counter,
}

impl AccessLog {
    fn start(config: &AccessLogConfig, registry: &Registry) -> std::io::Result<Self> {
        let lines = registry.counter("outrigger_access_log_lines_total", "Access log lines written.", &[]).with(&[]);
        let shed = registry
            .counter("outrigger_access_log_shed_total", "Access log lines shed, for traffic comes first.", &[])
            .with(&[]);
        let queued = Arc::new(AtomicUsize::new(0));
        let (messages, receiver) = sync_channel(MOST_BATCHES);
        let writer = Writer { out: Out::open(config)?, queued: Arc::clone(&queued), lines, shed: shed.clone() };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || writer.run(&receiver))?;
        Ok(Self { config: config.clone(), messages, queued, shed })
    }

    fn hand_over(&self, lines: Vec<u8>, count: u64) {
        let bytes = lines.len();
        let fits = self.queued.fetch_add(bytes, Relaxed) + bytes <= self.config.buffer.as_usize();
        let taken = fits && self.messages.try_send(Message::Lines(lines, count)).is_ok();
        if !taken {
            self.queued.fetch_sub(bytes, Relaxed);
            self.shed.add(count);
        }
    }

    /// Waits until what was handed over is written, but not for long.
    async fn flushed(&self) {
        let (sender, receiver) = oneshot::channel();
        let mut message = Message::Flush(sender);
        let wait = async {
            while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
                message = back;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let _ = receiver.await;
        };
        if tokio::time::timeout(LAST_WRITE, wait).await.is_err() {
            tracing::warn!(component = "proxy", "the access log cannot be written in time; its last lines may be lost");
        }
    }
}

/// The log in use, shared by both directions.
#[derive(Default)]
pub(crate) struct AccessLogs(Mutex<std::sync::Weak<AccessLog>>);

impl AccessLogs {
    /// The log of a config: the one in use when nothing changed, a new one otherwise.
    pub(crate) fn obtain(&self, config: &AccessLogConfig, registry: &Registry) -> std::io::Result<Arc<AccessLog>> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = current.upgrade()
            && log.config == *config
        {
            return Ok(log);
        }
        let log = Arc::new(AccessLog::start(config, registry)?);
        *current = Arc::downgrade(&log);
        Ok(log)
    }

    /// Waits until what the workers handed over is written: the last thing at a stop.
    pub(crate) async fn flushed(&self) {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(log) = current {
            log.flushed().await;
        }
    }
}

struct Writer {
    out: Out,
    queued: Arc<AtomicUsize>,
    lines: Counter,
    shed: Counter,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Lines(lines, count) => self.write(&lines, count),
                Message::Flush(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, lines: &[u8], count: u64) {
        match self.out.write(lines) {
            Ok(()) => self.lines.add(count),
            Err(error) => {
                self.shed.add(count);
                tracing::warn!(component = "proxy", %error, "cannot write the access log");
            }
        }
        self.queued.fetch_sub(lines.len(), Relaxed);
    }
}

enum Out {
    Stdout,
    File { path: PathBuf, file: File, inode: u64 },
}

impl Out {
    fn open(config: &AccessLogConfig) -> std::io::Result<Self> {
        let Some(path) = &config.path else { return Ok(Self::Stdout) };
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self::File { path: path.clone(), file, inode })
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(lines),
            Self::File { path, file, inode } => {
                // logrotate renames the file; whoever reads the path expects a new one there.
                if std::fs::metadata(&*path).map_or(true, |now| now.ino() != *inode) {
                    *file = OpenOptions::new().create(true).append(true).open(&*path)?;
                    *inode = file.metadata()?.ino();
                }
                file.write_all(lines)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn entry<'a>(path: &'a str, user_agent: &'a [u8]) -> Entry<'a> {
        Entry {
            started: UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
            duration: Duration::from_micros(1_005),
            direction: "inbound",
            listener: "in",
            method: "GET",
            host: b"shop",
            path,
            code: 200,
            user_agent,
            ..Entry::of(([127, 0, 0, 1], 9).into())
        }
    }

    fn config(path: PathBuf) -> AccessLogConfig {
        AccessLogConfig { path: Some(path), buffer: outrigger_config::ByteSize::kib(256) }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let mut out = Vec::new();
        entry("/a\"\\b", b"x\n{\"forged\":1}\xc2\x85\xff").write(&mut out);
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["time"], "2026-01-02T03:04:05.678Z");
        assert_eq!((read["path"].as_str(), read["code"].as_u64()), (Some("/a\"\\b"), Some(200)));
        assert_eq!(read["user_agent"], "x\n{\"forged\":1}\u{85}\u{fffd}");
        assert_eq!(read["duration_ms"], 1.005);
        assert!(read.get("request_id").is_none(), "what is not known is left out: {line}");
    }

    #[tokio::test]
    async fn lines_reach_the_file_over_a_rename_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let logs = AccessLogs::default();
        let log = logs.obtain(&config(path.clone()), &registry).unwrap();
        let mut buffer = Buffer::default();
        buffer.add(&log, &entry("/1", b""));
        buffer.flush(&log);
        logs.flushed().await;
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"/1\""));
        std::fs::rename(&path, folder.path().join("access.log.1")).unwrap();
        buffer.add(&log, &entry("/2", b""));
        buffer.flush(&log);
        logs.flushed().await;
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"/2\""));
    }

    #[tokio::test]
    async fn what_does_not_fit_is_shed_and_counted_and_nobody_waits() {
        // A pipe that nobody reads: the writer is held up after 64 KiB.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let logs = AccessLogs::default();
        let log = logs.obtain(&config(path), &registry).unwrap();
        let mut buffer = Buffer::default();
        let begun = std::time::Instant::now();
        while log.shed.value() == 0 {
            buffer.add(&log, &entry("/1", &[b'x'; 1000]));
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing was shed");
        }
        assert!(log.queued.load(Relaxed) <= log.config.buffer.as_usize(), "the memory is bounded");
        logs.flushed().await;
        assert!(begun.elapsed() < Duration::from_secs(20), "a stop does not wait for ever");
    }
}
