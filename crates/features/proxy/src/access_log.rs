//! The access log: one JSON line per request.
//!
//! In: finished requests, on the workers. Out: lines in a file or on standard output.
//! Promise: traffic never waits for it. Lines gather in a buffer of the worker and are
//! handed over whole; when the writer cannot keep up they are shed and counted. At an
//! orderly stop none is lost. A renamed file is noticed, and a new one begun.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use outrigger_config::AccessLog as AccessLogConfig;
use outrigger_telemetry::{Counter, Registry};
use time::OffsetDateTime;

/// Lines gather until so many bytes, or until the worker's flush.
const HAND_OVER: usize = 16 * 1024;
/// Batches waiting for the writer; their bytes are bounded by the config.
const MOST_BATCHES: usize = 1024;

/// What a line says.
pub(crate) struct Entry<'a> {
    pub(crate) started: SystemTime,
    pub(crate) duration_ms: f64,
    pub(crate) upstream_ms: Option<f64>,
    pub(crate) direction: &'a str,
    pub(crate) listener: &'a str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) code: u16,
    pub(crate) flag: Option<&'a str>,
    pub(crate) reason: Option<String>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) route: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) endpoint: Option<std::net::SocketAddr>,
    pub(crate) peer: &'a str,
    pub(crate) downstream: std::net::SocketAddr,
    pub(crate) request_id: &'a str,
    pub(crate) user_agent: &'a str,
    pub(crate) retried: bool,
}

impl Entry<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let at = OffsetDateTime::from(self.started);
        let (hour, minute, second) = at.to_hms();
        let _ = write!(
            out,
            "{{\"time\":\"{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z\"",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.millisecond()
        );
        for (name, value) in [
            ("direction", self.direction),
            ("listener", self.listener),
            ("method", self.method),
            ("host", self.host),
            ("path", self.path),
            ("protocol", self.protocol),
        ] {
            text(out, name, value);
        }
        number(out, "code", u64::from(self.code));
        if let Some(flag) = self.flag {
            text(out, "flags", flag);
        }
        if let Some(reason) = &self.reason {
            text(out, "reason", reason);
        }
        number(out, "bytes_received", self.bytes_received);
        number(out, "bytes_sent", self.bytes_sent);
        let _ = write!(out, ",\"duration_ms\":{:.3}", self.duration_ms);
        if let Some(upstream) = self.upstream_ms {
            let _ = write!(out, ",\"upstream_ms\":{upstream:.3}");
        }
        for (name, value) in [
            ("route", self.route),
            ("cluster", self.cluster),
            ("peer", self.peer),
            ("request_id", self.request_id),
            ("user_agent", self.user_agent),
        ] {
            if !value.is_empty() {
                text(out, name, value);
            }
        }
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, ",\"endpoint\":\"{endpoint}\"");
        }
        let _ = write!(out, ",\"downstream\":\"{}\"", self.downstream);
        if self.retried {
            out.extend_from_slice(b",\"retried\":true");
        }
        out.extend_from_slice(b"}\n");
    }
}

fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    let _ = write!(out, ",\"{name}\":");
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    let _ = write!(out, ",\"{name}\":\"");
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
    out.push(b'"');
}

/// The lines of one worker that are not handed over yet.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<u8>,
    count: u64,
}

impl Buffer {
    /// Adds a line; true when the buffer was empty before, so that someone must flush it in time.
    pub(crate) fn add(&mut self, log: &AccessLog, entry: &Entry<'_>) -> bool {
        let first = self.lines.is_empty();
        entry.write(&mut self.lines);
        self.count += 1;
        if self.lines.len() >= HAND_OVER {
            self.flush(log);
            return false;
        }
        first
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

/// A log with its writer; ends when the last handle goes.
pub(crate) struct AccessLog {
    config: AccessLogConfig,
    batches: Option<SyncSender<(Vec<u8>, u64)>>,
    queued: Arc<AtomicUsize>,
    shed: Counter,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    fn start(config: &AccessLogConfig, registry: &Registry) -> std::io::Result<Self> {
        let lines = registry.counter("outrigger_access_log_lines_total", "Access log lines written.", &[]).with(&[]);
        let shed = registry
            .counter("outrigger_access_log_shed_total", "Access log lines shed, for traffic comes first.", &[])
            .with(&[]);
        let queued = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = sync_channel(MOST_BATCHES);
        let writer = Writer { out: Out::open(config)?, queued: Arc::clone(&queued), lines, shed: shed.clone() };
        let writer = std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || writer.run(&receiver))?;
        Ok(Self { config: config.clone(), batches: Some(sender), queued, shed, writer: Some(writer) })
    }

    fn hand_over(&self, lines: Vec<u8>, count: u64) {
        let bytes = lines.len();
        let fits = self.queued.fetch_add(bytes, Relaxed) + bytes <= self.config.buffer.as_usize();
        let taken = fits && self.batches.as_ref().is_some_and(|batches| batches.try_send((lines, count)).is_ok());
        if !taken {
            self.queued.fetch_sub(bytes, Relaxed);
            self.shed.add(count);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // Closing the channel lets the writer finish what is queued.
        self.batches = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
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
}

struct Writer {
    out: Out,
    queued: Arc<AtomicUsize>,
    lines: Counter,
    shed: Counter,
}

impl Writer {
    fn run(mut self, batches: &Receiver<(Vec<u8>, u64)>) {
        for (lines, count) in batches {
            match self.out.write(&lines) {
                Ok(()) => self.lines.add(count),
                Err(error) => {
                    self.shed.add(count);
                    tracing::warn!(component = "proxy", %error, "cannot write the access log");
                }
            }
            self.queued.fetch_sub(lines.len(), Relaxed);
        }
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
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn entry<'a>(path: &'a str, user_agent: &'a str) -> Entry<'a> {
        Entry {
            started: UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
            duration_ms: 1.5,
            upstream_ms: None,
            direction: "inbound",
            listener: "in",
            method: "GET",
            host: "shop",
            path,
            protocol: "HTTP/1.1",
            code: 200,
            flag: None,
            reason: None,
            bytes_received: 0,
            bytes_sent: 3,
            route: "all",
            cluster: "app",
            endpoint: None,
            peer: "",
            downstream: ([127, 0, 0, 1], 9).into(),
            request_id: "",
            user_agent,
            retried: false,
        }
    }

    fn config(path: PathBuf) -> AccessLogConfig {
        AccessLogConfig { path: Some(path), buffer: outrigger_config::ByteSize::kib(256) }
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let mut out = Vec::new();
        entry("/a\"\\b", "x\n{\"forged\":1}\u{85}").write(&mut out);
        let line = String::from_utf8(out).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["time"], "2026-01-02T03:04:05.678Z");
        assert_eq!((read["path"].as_str(), read["code"].as_u64()), (Some("/a\"\\b"), Some(200)));
        assert_eq!(read["user_agent"], "x\n{\"forged\":1}\u{85}");
    }

    #[test]
    fn lines_reach_the_file_over_a_rename_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let log = AccessLogs::default().obtain(&config(path.clone()), &registry).unwrap();
        let mut buffer = Buffer::default();
        assert!(buffer.add(&log, &entry("/1", "")), "someone must flush the first line");
        buffer.flush(&log);
        while std::fs::read_to_string(&path).unwrap().is_empty() {
            std::thread::yield_now();
        }
        std::fs::rename(&path, folder.path().join("access.log.1")).unwrap();
        buffer.add(&log, &entry("/2", ""));
        buffer.flush(&log);
        drop(log);
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"/2\""));
    }

    #[test]
    fn what_does_not_fit_is_shed_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let tiny = AccessLogConfig { buffer: outrigger_config::ByteSize(10), ..config(folder.path().join("a.log")) };
        let log = AccessLogs::default().obtain(&tiny, &registry).unwrap();
        let mut buffer = Buffer::default();
        buffer.add(&log, &entry("/1", ""));
        buffer.flush(&log);
        assert_eq!(log.shed.value(), 1);
    }
}
