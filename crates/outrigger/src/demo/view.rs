//! What the demo shows: a live table on a terminal, one line a second elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::metrics::{PodMetrics, ordered::Bound};
use super::pod::Ports;
use super::verify::Check;
use crate::output;

/// One pod at one moment, beside what it was a moment before.
pub(super) struct PodRow<'a> {
    pub(super) name: &'static str,
    pub(super) ports: Ports,
    pub(super) shipped: &'a Path,
    pub(super) written: u64,
    pub(super) now: &'a PodMetrics,
    pub(super) before: &'a PodMetrics,
}

/// The figures of a row, as text.
struct Figures {
    rate: String,
    latency: String,
    success: String,
    peer: String,
    log: String,
    secret: String,
    series: String,
    memory: String,
}

impl Figures {
    fn of(row: &PodRow<'_>, elapsed: Duration) -> Self {
        let (now, before) = (row.now, row.before);
        let requests = now.inbound_requests();
        let rate = (requests - before.inbound_requests().min(requests)) as f64 / elapsed.as_secs_f64().max(0.001);
        let success = if requests == 0 { 100.0 } else { 100.0 * (1.0 - now.failed as f64 / requests as f64) };
        let waiting = row.written.saturating_sub(now.acknowledged + now.dropped);
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() - now.secret_rendered;
        Self {
            rate: format!("{rate:.0}"),
            latency: format!("{} / {}", quantile(0.5, row), quantile(0.99, row)),
            success: format!("{success:.2} %"),
            peer: now.inbound_by_peer.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            log: format!(
                "{} written, {} acknowledged, {waiting} under way, {} lost",
                row.written, now.acknowledged, now.dropped
            ),
            secret: format!("version {}, {} s old", now.secret_version, age.max(0.0) as u64),
            series: now.series.to_string(),
            memory: format!("{:.1} MiB", now.resident_bytes / f64::from(1 << 20)),
        }
    }
}

/// Where the demo's frames go.
pub(super) struct View {
    terminal: bool,
    lines_up: usize,
}

impl View {
    /// A live table when standard output is a terminal, plain lines otherwise.
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), lines_up: 0 }
    }

    /// Shows one moment.
    pub(super) fn show(&mut self, at: Duration, elapsed: Duration, rows: &[PodRow<'_>]) -> anyhow::Result<()> {
        if self.terminal { self.draw(at, elapsed, rows) } else { plain_lines(at, elapsed, rows) }
    }

    fn draw(&mut self, at: Duration, elapsed: Duration, rows: &[PodRow<'_>]) -> anyhow::Result<()> {
        let (bold, dim, end) =
            if output::stdout_takes_colour() { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let mut lines = vec![
            format!(
                "{bold}Outrigger demo{end}  {} s  {dim}a shop of two unmodified programs, each with one sidecar; Ctrl-C stops it in order{end}",
                at.as_secs()
            ),
            String::new(),
        ];
        for row in rows {
            let figures = Figures::of(row, elapsed);
            lines.push(format!("{bold}{}{end}", row.name));
            for (name, value) in [
                ("requests/s", &figures.rate),
                ("p50 / p99", &figures.latency),
                ("success", &figures.success),
                ("mTLS peer", &figures.peer),
                ("log lines", &figures.log),
                ("secret", &figures.secret),
                ("metric series", &figures.series),
                ("sidecar memory", &figures.memory),
                ("shipped logs", &row.shipped.display().to_string()),
                ("open", &urls(row.ports)),
            ] {
                lines.push(format!("  {dim}{name:<15}{end}{value}"));
            }
            lines.push(String::new());
        }
        let width = terminal_width();
        let mut frame = String::new();
        if self.lines_up > 0 {
            frame.push_str(&format!("\x1b[{}A", self.lines_up));
        }
        for line in &lines {
            frame.push_str("\x1b[2K");
            frame.push_str(&cut(line, width));
            frame.push('\n');
        }
        self.lines_up = lines.len();
        write(&frame)
    }
}

/// Prints the checks as a table.
pub(super) fn print_checks(checks: &[Check]) -> anyhow::Result<()> {
    let (green, red, end) =
        if output::stdout_takes_colour() { ("\x1b[32m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
    let width = checks.iter().map(|check| check.claim.chars().count()).max().unwrap_or_default();
    let mut text = String::from("\n");
    for check in checks {
        let (colour, word) = if check.held { (green, "ok    ") } else { (red, "FAILED") };
        text.push_str(&format!("{colour}{word}{end}  {:<width$}  {}\n", check.claim, check.evidence));
    }
    write(&text)
}

fn plain_lines(at: Duration, elapsed: Duration, rows: &[PodRow<'_>]) -> anyhow::Result<()> {
    let mut line = format!("{:>3}s", at.as_secs());
    for row in rows {
        let figures = Figures::of(row, elapsed);
        line.push_str(&format!(
            " | {}: {} req/s, p50/p99 {}, success {}, peer {}, log {}, secret {}, {} series, {}",
            row.name,
            figures.rate,
            figures.latency,
            figures.success,
            figures.peer,
            figures.log,
            figures.secret,
            figures.series,
            figures.memory,
        ));
    }
    line.push('\n');
    write(&line)
}

/// The pages worth opening.
pub(super) fn urls(ports: Ports) -> String {
    format!(
        "http://127.0.0.1:{}/  http://127.0.0.1:{}/readyz?verbose  http://127.0.0.1:{}/metrics",
        ports.admin, ports.admin, ports.metrics
    )
}

/// A quantile of the requests since the moment before, in milliseconds.
fn quantile(q: f64, row: &PodRow<'_>) -> String {
    let since: BTreeMap<Bound, u64> = row
        .now
        .duration_buckets
        .iter()
        .map(|(bound, count)| {
            (*bound, count.saturating_sub(row.before.duration_buckets.get(bound).copied().unwrap_or(0)))
        })
        .collect();
    let buckets: Vec<(f64, u64)> = since.into_iter().map(|(bound, count)| (bound.0, count)).collect();
    match outrigger_telemetry::quantile(q, &buckets) {
        Some(seconds) if seconds.is_finite() => format!("{:.1} ms", seconds * 1e3),
        _ => "-".to_owned(),
    }
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout()).map_or(80, |size| usize::from(size.ws_col).max(20))
}

/// Cuts a line to the terminal's width; escape sequences take no room.
fn cut(line: &str, width: usize) -> String {
    let mut room = width;
    let mut in_escape = false;
    let mut out = String::with_capacity(line.len());
    for c in line.chars() {
        if c == '\x1b' {
            in_escape = true;
        } else if in_escape {
            in_escape = c != 'm';
        } else if room == 0 {
            continue;
        } else {
            room -= 1;
        }
        out.push(c);
    }
    out
}

fn write(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_line_is_cut_by_what_is_seen() {
        for (name, line, width, expected) in [
            ("short", "abc", 5, "abc"),
            ("long", "abcdef", 3, "abc"),
            ("colour takes no room", "\x1b[1mab\x1b[0mcd", 3, "\x1b[1mab\x1b[0mc"),
            ("colour ends behind the cut", "\x1b[1mabcd\x1b[0m", 2, "\x1b[1mab\x1b[0m"),
        ] {
            assert_eq!(cut(line, width), expected, "{name}");
        }
    }
}
