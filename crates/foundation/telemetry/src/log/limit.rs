//! Rate limit per place in the code.
//!
//! In: the callsite of each event. Out: whether it may be written, and sums of what was
//! not. Promise: memory grows with the number of callsites in the executable, not with events.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

const WINDOW: Duration = Duration::from_secs(1);

/// Counts events per callsite and second.
#[derive(Default)]
pub(super) struct RateLimit {
    windows: Mutex<HashMap<Identifier, Window>>,
}

struct Window {
    began: SystemTime,
    written: u32,
    suppressed: u64,
    level: Level,
    target: String,
}

/// Events of one place that were held back in one window.
pub(super) struct Sum {
    pub(super) level: Level,
    pub(super) target: String,
    pub(super) suppressed: u64,
}

impl RateLimit {
    /// Whether an event of this place may be written now; `limit` 0 lets all through.
    pub(super) fn admit(&self, metadata: &Metadata<'_>, now: SystemTime, limit: u32) -> bool {
        if limit == 0 {
            return true;
        }
        let mut windows = self.windows.lock();
        let window = windows.entry(metadata.callsite()).or_insert_with(|| Window {
            began: now,
            written: 0,
            suppressed: 0,
            level: *metadata.level(),
            target: metadata.target().to_owned(),
        });
        if ended(window.began, now) && window.suppressed == 0 {
            window.began = now;
            window.written = 0;
        }
        if window.written < limit {
            window.written += 1;
            true
        } else {
            window.suppressed += 1;
            false
        }
    }

    /// Takes the sums of windows that have ended (or of all).
    pub(super) fn finished(&self, now: SystemTime, all: bool) -> Vec<Sum> {
        // Almost always there is nothing, and this allocates nothing then.
        let mut sums = Vec::new();
        for window in self.windows.lock().values_mut() {
            if window.suppressed > 0 && (all || ended(window.began, now)) {
                let suppressed = std::mem::take(&mut window.suppressed);
                window.began = now;
                window.written = 0;
                sums.push(Sum { level: window.level, target: window.target.clone(), suppressed });
            }
        }
        sums
    }
}

/// Whether a window is over; a clock that was set back ends it too.
fn ended(began: SystemTime, now: SystemTime) -> bool {
    now.duration_since(began).map_or(true, |age| age >= WINDOW)
}
