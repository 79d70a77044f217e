//! Outrigger's own log.
//!
//! In: `tracing` events. Out: one line each on standard error, as text or JSON. Promise: a
//! line is written whole or not at all, an event cannot forge another line, one place in
//! the code cannot flood the log, and a reader that does not read cannot stall the process.
//!
//! The subscriber is written here: the log needs neither spans nor layers, and
//! `tracing-subscriber`'s formatter knows neither rate limits nor a bounded wait.
//!
//! An error is logged with its causes when it is given as one: `error = &e as &dyn Error`,
//! or `error = %log::chain(&e)`. Of `error = %e` alone a subscriber sees no more than the text.

mod limit;
mod line;
mod writer;

use std::error::Error;
use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use outrigger_config::{LogLevel, OwnLog, OwnLogFormat};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::{Counter, Registry};
use limit::{RateLimit, WINDOW};
use line::{Fields, Style};
use writer::Writer;

/// Changes the own log while the process runs; a cheap handle.
#[derive(Clone)]
pub struct LogControl(Arc<State>);

/// Makes `tracing` events go to standard error. Of several calls in one process the first takes effect.
pub fn init(config: &OwnLog, registry: &Registry) -> LogControl {
    let state = Arc::new(State::new(config, registry, Writer::new(rustix::stdio::stderr())));
    let _ = tracing::subscriber::set_global_default(OwnSubscriber(Arc::clone(&state)));
    LogControl(state)
}

/// Shows an error with its causes, for `tracing::warn!(error = %chain(&error), ..)`.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Display + 'a {
    line::Chain(error)
}

impl LogControl {
    /// The least severe level that is written.
    pub fn level(&self) -> LogLevel {
        self.0.level()
    }

    /// Changes the level at once.
    pub fn set_level(&self, level: LogLevel) {
        self.0.level.store(level as u8, Relaxed);
        // Callsites remember whether they are wanted; they must ask again.
        tracing::callsite::rebuild_interest_cache();
    }

    /// Applies a config: level, format and rate limit.
    pub fn apply(&self, config: &OwnLog) {
        self.0.json.store(config.format == OwnLogFormat::Json, Relaxed);
        self.0.rate_limit.store(config.rate_limit, Relaxed);
        self.set_level(config.level);
    }

    /// Writes what the rate limit still holds back as sums; called before the process exits.
    pub fn flush(&self) {
        self.0.sum_up(true);
    }
}

struct State {
    level: AtomicU8,
    json: AtomicBool,
    rate_limit: AtomicU32,
    limit: RateLimit,
    colour: bool,
    events: [Counter; 5],
    suppressed: Counter,
    dropped: Counter,
    writer: Writer,
    /// A thread waits for the end of a window.
    summing: AtomicBool,
}

impl State {
    fn new(config: &OwnLog, registry: &Registry, writer: Writer) -> Self {
        let events = registry.counter("outrigger_log_events_total", "Events written to the own log.", &["level"]);
        let counter = |name: &'static str, help: &'static str| registry.counter(name, help, &[]).with(&[]);
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            level: AtomicU8::new(config.level as u8),
            json: AtomicBool::new(config.format == OwnLogFormat::Json),
            rate_limit: AtomicU32::new(config.rate_limit),
            limit: RateLimit::default(),
            colour: std::io::stderr().is_terminal() && !plain,
            events: ["error", "warn", "info", "debug", "trace"].map(|level| events.with(&[level])),
            suppressed: counter("outrigger_log_events_suppressed_total", "Events held back by `rateLimit`."),
            dropped: counter("outrigger_log_events_dropped_total", "Events lost because standard error was not read."),
            writer,
            summing: AtomicBool::new(false),
        }
    }

    fn level(&self) -> LogLevel {
        const LEVELS: [LogLevel; 6] =
            [LogLevel::Off, LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
        LEVELS[usize::from(self.level.load(Relaxed)).min(5)]
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        self.wants_level(*metadata.level(), metadata.target())
    }

    fn wants_level(&self, severity: Level, target: &str) -> bool {
        let level = self.level();
        let ours = target.starts_with("outrigger");
        // Libraries talk much; below `debug` only their warnings are of interest to an operator.
        let filter = match level {
            // What this one warns of is what a peer does on a connection; where it matters we say so, with its name.
            LogLevel::Info | LogLevel::Warn if target.starts_with("h2::") => LevelFilter::ERROR,
            LogLevel::Info if !ours => LevelFilter::WARN,
            _ => filter(level),
        };
        severity <= filter
    }

    fn style(&self) -> Style {
        if self.json.load(Relaxed) { Style::Json } else { Style::Text { colour: self.colour } }
    }

    fn write(&self, level: Level, line: &[u8]) {
        if self.writer.write_line(line) {
            self.events[severity(level)].inc();
        } else {
            self.dropped.inc();
        }
    }

    /// Writes one line for each place whose window has ended with events held back.
    fn sum_up(&self, all: bool) {
        for sum in self.limit.finished(Instant::now(), all) {
            let line = line::suppressed(self.style(), SystemTime::now(), &sum);
            self.write(sum.level, &line);
        }
    }

    /// Sums up when the window ends, even if nothing is logged any more. A thread does it, for events come from
    /// everywhere, runtime or not; there is at most one, and only while events are being held back.
    fn sum_up_later(self: &Arc<Self>) {
        if self.summing.swap(true, Relaxed) {
            return;
        }
        let state = Arc::clone(self);
        let sum_up = move || {
            loop {
                std::thread::sleep(WINDOW);
                state.sum_up(false);
                if !state.limit.is_holding() {
                    state.summing.store(false, Relaxed);
                    // An event that came just before that found a thread and started none.
                    if !state.limit.is_holding() || state.summing.swap(true, Relaxed) {
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("log-sums".to_owned()).stack_size(128 << 10).spawn(sum_up);
        if thread.is_err() {
            // The next event sums up.
            self.summing.store(false, Relaxed);
        }
    }
}

struct OwnSubscriber(Arc<State>);

impl Subscriber for OwnSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && self.0.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.0.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter(self.0.level()))
    }

    // Spans are not used by the own log; traces have a path of their own.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let state = &self.0;
        let metadata = event.metadata();
        state.sum_up(false);
        if !state.limit.admit(metadata, Instant::now(), state.rate_limit.load(Relaxed)) {
            state.suppressed.inc();
            state.sum_up_later();
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = line::format(state.style(), SystemTime::now(), *metadata.level(), metadata.target(), fields);
        state.write(*metadata.level(), &line);
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn severity(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader};
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    /// A log that writes to a pipe.
    fn log(config: &OwnLog) -> (Arc<State>, BufReader<PipeReader>) {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let (reader, pipe) = std::io::pipe().unwrap();
        let pipe: &'static OwnedFd = Box::leak(Box::new(pipe.into()));
        (Arc::new(State::new(config, &registry, Writer::new(pipe.as_fd()))), BufReader::new(reader))
    }

    fn next(lines: &mut BufReader<PipeReader>) -> String {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn levels_decide_what_is_wanted() {
        let (state, _lines) = log(&OwnLog::default());
        let control = LogControl(Arc::clone(&state));
        for (level, ours_info, ours_debug, library_info, library_warn) in [
            (LogLevel::Off, false, false, false, false),
            (LogLevel::Error, false, false, false, false),
            (LogLevel::Warn, false, false, false, true),
            (LogLevel::Info, true, false, false, true),
            (LogLevel::Debug, true, true, true, true),
            (LogLevel::Trace, true, true, true, true),
        ] {
            control.set_level(level);
            assert_eq!(control.level(), level);
            assert_eq!(state.wants_level(Level::INFO, "outrigger_logs"), ours_info, "{level:?}");
            assert_eq!(state.wants_level(Level::DEBUG, "outrigger_logs"), ours_debug, "{level:?}");
            assert_eq!(state.wants_level(Level::INFO, "hyper::proto"), library_info, "{level:?}");
            assert_eq!(state.wants_level(Level::WARN, "hyper::proto"), library_warn, "{level:?}");
            // A peer could fill the log with these, and they do not say which.
            let debug = matches!(level, LogLevel::Debug | LogLevel::Trace);
            assert_eq!(state.wants_level(Level::WARN, "h2::proto::ping_pong"), debug, "{level:?}");
        }
    }

    #[test]
    fn a_flood_from_one_place_is_counted_and_summed_up_when_its_window_ends() {
        let (state, mut lines) = log(&OwnLog { rate_limit: 3, format: OwnLogFormat::Json, ..OwnLog::default() });
        tracing::subscriber::with_default(OwnSubscriber(Arc::clone(&state)), || {
            for number in 0..50 {
                tracing::warn!(target: "outrigger_test::x", number, "flood");
            }
        });
        // Nothing more is logged, and yet the sums come; two of them if the loop straddled a second.
        let (mut written, mut held_back) = (0, 0);
        while written + held_back < 50 {
            let line: serde_json::Value = serde_json::from_str(&next(&mut lines)).unwrap();
            assert_eq!((&line["level"], &line["component"]), (&"warn".into(), &"test".into()));
            match line["suppressed"].as_u64() {
                Some(sum) => held_back += sum,
                None => written += 1,
            }
        }
        assert!((3..=6).contains(&written), "{written}");
        assert_eq!((state.suppressed.value(), written + held_back), (held_back, 50));
    }

    #[test]
    fn a_change_of_level_and_format_takes_effect_at_once() {
        let (state, mut lines) = log(&OwnLog::default());
        let control = LogControl(Arc::clone(&state));
        tracing::subscriber::with_default(OwnSubscriber(Arc::clone(&state)), || {
            for (level, format) in [(LogLevel::Info, OwnLogFormat::Text), (LogLevel::Debug, OwnLogFormat::Json)] {
                control.apply(&OwnLog { level, format, rate_limit: 0 });
                tracing::debug!(target: "outrigger_logs::tail", path = %"/a", "opened");
                tracing::info!(component = "secrets", n = 3, ok = true, what = ?"a\nb", "done");
                tracing::info!(target: "hyper::proto", "noise");
            }
            control.set_level(LogLevel::Off);
            tracing::error!("unseen");
        });
        let line = next(&mut lines);
        assert_eq!(&line[24..], "  INFO secrets: done n=3 ok=true what=\"\\\"a\\\\nb\\\"\"\n");
        for message in ["opened", "done", "noise"] {
            let line: serde_json::Value = serde_json::from_str(&next(&mut lines)).unwrap();
            assert_eq!(line["message"], message);
        }
        assert_eq!(state.events.iter().map(Counter::value).collect::<Vec<_>>(), [0, 0, 3, 1, 0]);
    }

    #[test]
    fn an_error_given_as_one_is_logged_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open")]
        struct Outer(#[source] std::io::Error);
        let (state, mut lines) = log(&OwnLog::default());
        tracing::subscriber::with_default(OwnSubscriber(state), || {
            let error = Outer(std::io::Error::other("no disk"));
            tracing::warn!(error = &error as &(dyn Error + 'static), "one");
            tracing::warn!(error = %chain(&error), "other");
        });
        for _ in 0..2 {
            let line = next(&mut lines);
            assert!(line.ends_with(" error=\"cannot open: no disk\"\n"), "{line}");
        }
    }
}
