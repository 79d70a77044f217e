//! The access log: one line per request, as JSON or as the config has it.
//!
//! In: finished requests, on the workers. Out: lines in a file, on standard output, or for log forwarding.
//! Promise: traffic never waits for it. Lines gather in a buffer of the worker and are
//! handed over whole; when the writer cannot keep up they are shed and counted. At an
//! orderly stop none is lost. A renamed file is noticed, and a new one begun.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_config::AccessLog as AccessLogConfig;
use outrigger_runtime::LineQueue;
use outrigger_telemetry::{Counter, Registry};
use tokio::sync::oneshot;

mod entry;
mod shape;

pub(crate) use entry::{Entry, Kept, quoted};

use shape::Shape;

/// Lines gather until so many bytes, or until the worker's flush.
const HAND_OVER: usize = 16 * 1024;
/// Batches waiting for the writer; their bytes are bounded by the config.
const MOST_BATCHES: usize = 1024;

/// How long a stop waits for the writer, which a full disk or a reader that sleeps may hold up.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The lines of one worker that are not handed over yet.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<u8>,
    count: u64,
}

impl Buffer {
    /// Adds a line, and hands the lines over when they are many; someone must flush the rest in time.
    pub(crate) fn add(&mut self, log: &AccessLog, entry: &Entry<'_>) {
        if log.config.filter.as_ref().is_some_and(|filter| !filter.holds(entry)) {
            return;
        }
        log.shape.write(entry, &mut self.lines);
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
    /// Lines are given to log forwarding.
    forwards: bool,
    shape: Shape,
    /// Fields that the format or the filter needs, in lower case: the request's, then the response's.
    pub(crate) request_fields: Vec<String>,
    pub(crate) response_fields: Vec<String>,
    messages: SyncSender<Message>,
    queued: Arc<AtomicUsize>,
    shed: Counter,
}

impl AccessLog {
    fn start(config: &AccessLogConfig, forward: Option<&LineQueue>, registry: &Registry) -> std::io::Result<Self> {
        let lines = registry.counter("outrigger_access_log_lines_total", "Access log lines written.", &[]).with(&[]);
        let shed = registry
            .counter("outrigger_access_log_shed_total", "Access log lines shed, for traffic comes first.", &[])
            .with(&[]);
        let queued = Arc::new(AtomicUsize::new(0));
        let (messages, receiver) = sync_channel(MOST_BATCHES);
        let out = Out::open(config, forward)?;
        let writer = Writer { out, queued: Arc::clone(&queued), lines, shed: shed.clone() };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || writer.run(&receiver))?;
        let (request_fields, response_fields) = shape::fields(config);
        let shape = Shape::new(config, &request_fields, &response_fields);
        let (config, forwards) = (config.clone(), forward.is_some());
        Ok(Self { config, forwards, shape, request_fields, response_fields, messages, queued, shed })
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
pub(crate) struct AccessLogs {
    current: Mutex<std::sync::Weak<AccessLog>>,
    /// To log forwarding.
    lines: LineQueue,
}

impl AccessLogs {
    pub(crate) fn new(lines: LineQueue) -> Self {
        Self { current: Mutex::default(), lines }
    }

    /// The log of a config: the one in use when nothing changed, a new one otherwise. `forwards` is whether log forwarding
    /// takes its lines.
    pub(crate) fn obtain(
        &self,
        config: &AccessLogConfig,
        forwards: bool,
        registry: &Registry,
    ) -> std::io::Result<Arc<AccessLog>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = current.upgrade()
            && (&log.config, log.forwards) == (config, forwards)
        {
            return Ok(log);
        }
        let log = Arc::new(AccessLog::start(config, forwards.then_some(&self.lines), registry)?);
        *current = Arc::downgrade(&log);
        Ok(log)
    }

    /// Waits until what the workers handed over is written: the last thing at a stop.
    pub(crate) async fn flushed(&self) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
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
                Message::Lines(lines, count) => self.write(lines, count),
                Message::Flush(done) => {
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, lines: Vec<u8>, count: u64) {
        let bytes = lines.len();
        let mut shed = false;
        if let Some(place) = &mut self.out.place
            && let Err(error) = place.write(&lines)
        {
            shed = true;
            tracing::warn!(component = "proxy", %error, "cannot write the access log");
        }
        if let Some((forward, most)) = &self.out.forward {
            shed |= !forward.push(lines, *most);
        }
        if shed {
            self.shed.add(count)
        } else {
            self.lines.add(count)
        }
        self.queued.fetch_sub(bytes, Relaxed);
    }
}

/// Where lines go.
struct Out {
    place: Option<Place>,
    /// To log forwarding, as long as no more bytes wait there.
    forward: Option<(LineQueue, usize)>,
}

impl Out {
    fn open(config: &AccessLogConfig, forward: Option<&LineQueue>) -> std::io::Result<Self> {
        let place = if config.path.is_some() || forward.is_none() { Some(Place::open(config)?) } else { None };
        Ok(Self { place, forward: forward.map(|lines| (lines.clone(), config.buffer.as_usize())) })
    }
}

enum Place {
    Stdout,
    File { path: PathBuf, file: File, inode: u64 },
}

impl Place {
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
    use super::*;

    fn entry<'a>(path: &'a str, user_agent: &'a [u8]) -> Entry<'a> {
        Entry { path, user_agent, ..Entry::of(([127, 0, 0, 1], 9).into()) }
    }

    fn config(path: PathBuf) -> AccessLogConfig {
        let buffer = outrigger_config::ByteSize::kib(256);
        AccessLogConfig { path: Some(path), buffer, filter: None, text: None, json: Default::default() }
    }

    #[tokio::test]
    async fn lines_reach_the_file_over_a_rename_and_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let logs = AccessLogs::new(LineQueue::new());
        let log = logs.obtain(&config(path.clone()), false, &registry).unwrap();
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
        let logs = AccessLogs::new(LineQueue::new());
        let log = logs.obtain(&config(path), false, &registry).unwrap();
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

    #[tokio::test]
    async fn lines_are_given_to_log_forwarding_and_shed_when_it_is_slow() {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let lines = LineQueue::new();
        let logs = AccessLogs::new(lines.clone());
        let forwarded = AccessLogConfig { path: None, ..config(PathBuf::new()) };
        let log = logs.obtain(&forwarded, true, &registry).unwrap();
        let mut buffer = Buffer::default();
        buffer.add(&log, &entry("/1", b""));
        buffer.flush(&log);
        assert!(String::from_utf8(lines.next().await).unwrap().contains("\"/1\""));
        // Nobody takes them.
        while log.shed.value() == 0 {
            buffer.add(&log, &entry("/2", &[b'x'; 1000]));
            logs.flushed().await;
        }
        let mut waiting = 0;
        while let Some(batch) = lines.try_next() {
            waiting += batch.len();
        }
        assert!(waiting > 0 && waiting <= forwarded.buffer.as_usize(), "{waiting}");
    }
}
