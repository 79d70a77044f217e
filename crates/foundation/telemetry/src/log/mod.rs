//! Outrigger's own log.
//!
//! In: `tracing` events. Out: one line each on standard error, as text or JSON. Promise: a
//! line is written whole or not at all, an event cannot forge another line, one place in
//! the code cannot flood the log, and a reader that does not read cannot stall the process.

mod limit;
mod line;
mod writer;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::SystemTime;

use outrigger_config::{LogLevel, OwnLog, OwnLogFormat};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::{Counter, Registry};
use limit::RateLimit;
use line::{Fields, Style};
use writer::write_line;

/// Changes the own log while the process runs; a cheap handle.
#[derive(Clone)]
pub struct LogControl(Arc<State>);

/// Makes `tracing` events go to standard error. Of several calls in one process the first takes effect.
pub fn init(config: &OwnLog, registry: &Registry) -> LogControl {
    let state = Arc::new(State::new(config, registry));
    let _ = tracing::subscriber::set_global_default(OwnSubscriber(Arc::clone(&state)));
    let summing = Arc::clone(&state);
    registry.on_scrape(Box::new(move |_| summing.sum_up(false)));
    LogControl(state)
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
}

impl State {
    fn new(config: &OwnLog, registry: &Registry) -> Self {
        let events = registry.counter("outrigger_log_events_total", "Events written to the own log.", &["level"]);
        let counter = |name: &'static str, help: &'static str| registry.counter(name, help, &[]).with(&[]);
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            level: AtomicU8::new(config.level as u8),
            json: AtomicBool::new(config.format == OwnLogFormat::Json),
            rate_limit: AtomicU32::new(config.rate_limit),
            limit: RateLimit::default(),
            colour: std::io::stderr().is_terminal() && !plain,
            events: ["error", "warn", "info", "debug", "trace"].map(|level| events.with(&[level])),
            suppressed: counter("outrigger_log_events_suppressed_total", "Events held back by `rateLimit`."),
            dropped: counter("outrigger_log_events_dropped_total", "Events lost because standard error was not read."),
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
            LogLevel::Info if !ours => LevelFilter::WARN,
            _ => filter(level),
        };
        severity <= filter
    }

    fn style(&self) -> Style {
        if self.json.load(Relaxed) { Style::Json } else { Style::Text { colour: self.colour } }
    }

    fn write(&self, level: Level, line: &[u8]) {
        if write_line(line) {
            self.events[severity(level)].inc();
        } else {
            self.dropped.inc();
        }
    }

    /// Writes one line for each place whose window has ended with events held back.
    fn sum_up(&self, all: bool) {
        for sum in self.limit.finished(SystemTime::now(), all) {
            let line = line::suppressed(self.style(), SystemTime::now(), sum.level, sum.target, sum.suppressed);
            self.write(sum.level, &line);
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
        let now = SystemTime::now();
        state.sum_up(false);
        if !state.limit.admit(metadata, now, state.rate_limit.load(Relaxed)) {
            state.suppressed.inc();
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = line::format(state.style(), now, *metadata.level(), metadata.target(), &fields);
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
    use super::*;

    #[test]
    fn levels_decide_what_is_wanted() {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let state = Arc::new(State::new(&OwnLog::default(), &registry));
        let control = LogControl(Arc::clone(&state));
        for (level, ours_info, ours_debug, library_info, library_warn) in [
            (LogLevel::Off, false, false, false, false),
            (LogLevel::Warn, false, false, false, true),
            (LogLevel::Info, true, false, false, true),
            (LogLevel::Debug, true, true, true, true),
        ] {
            control.set_level(level);
            assert_eq!(control.level(), level);
            assert_eq!(state.wants_level(Level::INFO, "outrigger_logs"), ours_info, "{level:?}");
            assert_eq!(state.wants_level(Level::DEBUG, "outrigger_logs"), ours_debug, "{level:?}");
            assert_eq!(state.wants_level(Level::INFO, "hyper::proto"), library_info, "{level:?}");
            assert_eq!(state.wants_level(Level::WARN, "hyper::proto"), library_warn, "{level:?}");
        }
    }

    #[test]
    fn a_flood_from_one_place_is_counted_not_written() {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        let config = OwnLog { rate_limit: 3, ..OwnLog::default() };
        let state = Arc::new(State::new(&config, &registry));
        tracing::subscriber::with_default(OwnSubscriber(Arc::clone(&state)), || {
            for number in 0..50 {
                tracing::info!(target: "outrigger_test", number, "flood");
            }
        });
        // The loop may straddle a second, and the summary of a finished one is an event too.
        assert!(state.suppressed.value() >= 44, "{}", state.suppressed.value());
        assert!(state.events[2].value() <= 7, "{}", state.events[2].value());
    }
}
