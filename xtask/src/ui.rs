//! What a person sees: titles, outcomes, elapsed time, a table at the end.
//!
//! In: events of a run. Out: lines on standard error. Promise: colours and rewritten
//! lines only on a terminal; elsewhere plain lines, and a sign of life every ten
//! seconds from whatever is slow.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

fn terminal() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn paint(code: &str, text: &str) -> String {
    if terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Says what begins.
pub(crate) fn title(text: &str) {
    eprintln!("{} {text}", paint("1;36", "==>"));
}

/// Says how something ended; quick successes need no time.
pub(crate) fn done(text: &str, took: Duration) {
    if took >= Duration::from_secs(1) {
        eprintln!("    {} {text} ({})", paint("32", "ok"), seconds(took));
    } else {
        eprintln!("    {} {text}", paint("32", "ok"));
    }
}

/// Says something worth knowing.
pub(crate) fn note(text: &str) {
    eprintln!("    {text}");
}

/// Says what failed.
pub(crate) fn error(text: &str) {
    eprintln!("{} {text}", paint("1;31", "error:"));
}

/// `0.3 s`, `41 s`, `3 min 05 s`.
pub(crate) fn seconds(took: Duration) -> String {
    let whole = took.as_secs();
    match whole {
        0..10 => format!("{:.1} s", took.as_secs_f64()),
        10..60 => format!("{whole} s"),
        _ => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

/// Runs `work` under a title and says how long it took.
pub(crate) fn step<T>(text: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    title(text);
    let begun = Instant::now();
    let result = work();
    if result.is_ok() {
        done(text, begun.elapsed());
    }
    result
}

/// A sign of life from something slow and silent.
pub(crate) struct Ticker {
    text: String,
    begun: Instant,
    shown: Duration,
}

impl Ticker {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), begun: Instant::now(), shown: Duration::ZERO }
    }

    /// To be called several times a second.
    pub(crate) fn tick(&mut self) {
        let elapsed = self.begun.elapsed();
        let every = Duration::from_secs(if terminal() { 1 } else { 10 });
        if elapsed - self.shown >= every {
            self.shown = elapsed;
            if terminal() {
                eprint!("\r\x1b[K    {} … {}", self.text, seconds(elapsed));
                // A progress line that cannot be shown changes nothing.
                let _ = std::io::stderr().flush();
            } else {
                eprintln!("    {} … {}", self.text, seconds(elapsed));
            }
        }
    }

    /// Takes the progress line away.
    pub(crate) fn clear(&self) {
        if terminal() && self.shown > Duration::ZERO {
            eprint!("\r\x1b[K");
        }
    }
}

/// The closing table: each stage, how it ended, how long it took.
pub(crate) fn table(rows: &[(&str, Outcome, Duration)]) {
    eprintln!();
    let total: Duration = rows.iter().map(|(_, _, took)| *took).sum();
    for (name, outcome, took) in rows {
        let (word, time) = match outcome {
            Outcome::Passed => (paint("32", "passed"), seconds(*took)),
            Outcome::Unsteady => (paint("1;33", "UNSTEADY"), seconds(*took)),
            Outcome::Failed => (paint("1;31", "FAILED"), seconds(*took)),
            Outcome::NotRun => (paint("2", "not run"), String::new()),
        };
        eprintln!("    {name:<12}  {word:<8}  {time:>12}");
    }
    eprintln!("    {:<12}  {:<8}  {:>12}", "total", "", seconds(total));
}

/// How a stage ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// Passed, but for tests that failed first and then passed alone.
    Unsteady,
    Failed,
    NotRun,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (millis, text) in [(250, "0.2 s"), (9_900, "9.9 s"), (41_700, "41 s"), (185_000, "3 min 05 s")] {
            assert_eq!(seconds(Duration::from_millis(millis)), text);
        }
    }
}
