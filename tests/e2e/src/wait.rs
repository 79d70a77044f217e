//! Waiting for something to become true, never for time to pass.
//!
//! In: a condition. Out: its value, or a panic that tells the condition's last answer.
//! Promise: a deadline always; polls often enough not to slow a test down.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Long enough for a busy two-core machine; a passing test waits a fraction of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A page of columns with one space between words, for their widths are nobody's business.
pub fn one_line(page: &str) -> String {
    page.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Asks `probe` until it answers `Ok`.
///
/// # Panics
/// When it still fails after 20 s, with its last error.
#[track_caller]
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Result<T>) -> T {
    eventually_within(PATIENCE, what, probe)
}

/// Asks `probe` until it answers `Ok`, for at most `patience`.
///
/// # Panics
/// When it still fails then, with its last error.
#[track_caller]
pub fn eventually_within<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Result<T>) -> T {
    let begun = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(error) if begun.elapsed() > patience => {
                panic!("waited {} s in vain for {what}: {error:#}", patience.as_secs_f32())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
