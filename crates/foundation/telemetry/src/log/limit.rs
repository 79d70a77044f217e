//! Rate limit per place in the code.
//!
//! In: the callsite of each event. Out: whether it may be written, and sums of what was
//! not. Promise: memory grows with the number of callsites in the executable, not with events.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

/// What `rateLimit` counts over.
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// Counts events per callsite and second.
#[derive(Default)]
pub(super) struct RateLimit {
    windows: Mutex<HashMap<Identifier, Window>>,
    /// Places that have held events back since their last sum.
    holding: AtomicUsize,
}

struct Window {
    began: Instant,
    written: u32,
    suppressed: u64,
    metadata: &'static Metadata<'static>,
}

/// Events of one place that were held back in one window.
pub(super) struct Sum {
    pub(super) level: Level,
    pub(super) target: &'static str,
    /// Line of the source file, if known.
    pub(super) line: Option<u32>,
    pub(super) suppressed: u64,
}

impl RateLimit {
    /// Whether an event of this place may be written now; `limit` 0 lets all through.
    pub(super) fn admit(&self, metadata: &'static Metadata<'static>, now: Instant, limit: u32) -> bool {
        if limit == 0 {
            return true;
        }
        let mut windows = self.windows.lock();
        let window =
            windows.entry(metadata.callsite()).or_insert(Window { began: now, written: 0, suppressed: 0, metadata });
        if ended(window.began, now) && window.suppressed == 0 {
            window.began = now;
            window.written = 0;
        }
        if window.written < limit {
            window.written += 1;
            return true;
        }
        if window.suppressed == 0 {
            self.holding.fetch_add(1, Relaxed);
        }
        window.suppressed += 1;
        false
    }

    /// Whether there is something to sum up.
    pub(super) fn is_holding(&self) -> bool {
        self.holding.load(Relaxed) > 0
    }

    /// Takes the sums of windows that have ended (or of all).
    pub(super) fn finished(&self, now: Instant, all: bool) -> Vec<Sum> {
        if !self.is_holding() {
            return Vec::new();
        }
        let mut sums = Vec::new();
        for window in self.windows.lock().values_mut() {
            if window.suppressed > 0 && (all || ended(window.began, now)) {
                self.holding.fetch_sub(1, Relaxed);
                let suppressed = std::mem::take(&mut window.suppressed);
                window.began = now;
                window.written = 0;
                let metadata = window.metadata;
                let (level, target, line) = (*metadata.level(), metadata.target(), metadata.line());
                sums.push(Sum { level, target, line, suppressed });
            }
        }
        sums
    }
}

fn ended(began: Instant, now: Instant) -> bool {
    now.saturating_duration_since(began) >= WINDOW
}
