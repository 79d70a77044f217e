//! Waits that are spread, so that many sidecars do not do the same at the same time.

use std::time::Duration;

use outrigger_runtime::Backoff;

/// A random duration between two shares of another.
pub(crate) fn jittered(whole: Duration, least: f64, most: f64) -> Duration {
    let spread = whole.mul_f64(most - least);
    whole.mul_f64(least) + Backoff::new(spread, spread).next()
}
