//! The demo's check of its own claims, once everything has stopped.
//!
//! In: what the visitor counted, the last metrics of each pod, the programs' own logs and
//! what was shipped. Out: one row per claim. Promise: each row compares two independent
//! records, never a figure with itself.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::metrics::PodMetrics;

/// A claim and whether it held.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) claim: String,
    pub(super) held: bool,
    pub(super) evidence: String,
}

impl Check {
    pub(super) fn new(claim: impl Into<String>, held: bool, evidence: impl Into<String>) -> Self {
        Self { claim: claim.into(), held, evidence: evidence.into() }
    }
}

/// Every line the program wrote arrived, and none arrived twice.
pub(super) fn exactly_once(pod: &str, log_dir: &Path, shipped: &Path) -> Check {
    let claim = format!("{pod}: every log line arrived exactly once");
    let written = match last_number_written(log_dir) {
        Ok(written) => written,
        Err(error) => return Check::new(claim, false, format!("cannot read {}: {error}", log_dir.display())),
    };
    let text = match fs::read_to_string(shipped) {
        Ok(text) => text,
        Err(error) => return Check::new(claim, false, format!("cannot read {}: {error}", shipped.display())),
    };
    let mut arrivals: HashMap<u64, u64> = HashMap::new();
    let mut unreadable = 0;
    for line in text.lines() {
        match serde_json::from_str::<Value>(line).ok().and_then(|event| event["n"].as_u64()) {
            Some(number) => *arrivals.entry(number).or_default() += 1,
            None => unreadable += 1,
        }
    }
    let lost = (1..=written).filter(|number| !arrivals.contains_key(number)).count();
    let twice = arrivals.values().filter(|count| **count > 1).count();
    let held = written > 0 && lost == 0 && twice == 0 && unreadable == 0 && arrivals.len() as u64 == written;
    Check::new(
        claim,
        held,
        format!("{written} written, {} arrived, {lost} lost, {twice} twice, {unreadable} unreadable", arrivals.len()),
    )
}

/// The number of the newest line in the program's own log.
pub(super) fn last_number_written(log_dir: &Path) -> anyhow::Result<u64> {
    // Just after a rotation the newest line is the last of the file before.
    for name in ["app.log", "app.log.1"] {
        let Ok(text) = fs::read_to_string(log_dir.join(name)) else { continue };
        if let Some(line) = text.lines().next_back() {
            let event: Value = serde_json::from_str(line)?;
            return event["n"].as_u64().ok_or_else(|| anyhow::anyhow!("a line without a number: {line}"));
        }
    }
    Ok(0)
}

/// Every connection to the pod was mTLS, from the one peer that may call it.
pub(super) fn mutual_tls(pod: &str, caller: &str, metrics: &PodMetrics) -> Check {
    let peers = &metrics.inbound_by_peer;
    let expected = peers.get(caller).copied().unwrap_or_default();
    let others: u64 = peers.iter().filter(|(peer, _)| peer.as_str() != caller).map(|(_, count)| count).sum();
    Check::new(
        format!("{pod}: every request came over mTLS from {caller}"),
        expected > 0 && others == 0,
        format!("{expected} requests from it, {others} from others or in plain text"),
    )
}

/// The secret stood on disk before the program's process began.
pub(super) fn secret_before_start(pod: &str, first_write: Option<SystemTime>, started: Option<SystemTime>) -> Check {
    let claim = format!("{pod}: the secret was on disk before the program's first instruction");
    let (Some(written), Some(started)) = (first_write, started) else {
        return Check::new(claim, false, "the secret's or the program's start was never seen");
    };
    // The kernel gives a process's start in ticks of 10 ms, rounded down.
    let lead = started.checked_add(Duration::from_millis(10)).and_then(|end| end.duration_since(written).ok());
    match lead {
        Some(lead) => {
            Check::new(claim, true, format!("written {} ms before, within the clock's 10 ms", lead.as_millis()))
        }
        None => Check::new(claim, false, "the file is younger than the process"),
    }
}

/// When a file's content was put in place.
pub(super) fn written_at(path: &Path) -> Option<SystemTime> {
    let metadata = fs::metadata(path).ok()?;
    let nanos = u32::try_from(metadata.ctime_nsec()).ok()?;
    UNIX_EPOCH.checked_add(Duration::new(u64::try_from(metadata.ctime()).ok()?, nanos))
}

/// When the child of `sidecar` began, from `/proc` ([proc(5)], `starttime` and `btime`).
///
/// [proc(5)]: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
pub(super) fn program_started_at(sidecar: u32) -> Option<SystemTime> {
    let children = fs::read_to_string(format!("/proc/{sidecar}/task/{sidecar}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    // `btime` has whole seconds only, so the time since boot is taken from the clocks themselves.
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot = Duration::new(u64::try_from(boot.tv_sec).ok()?, u32::try_from(boot.tv_nsec).ok()?);
    let per_second = rustix::param::clock_ticks_per_second();
    let since_boot = Duration::from_micros(ticks * 1_000_000 / per_second);
    SystemTime::now().checked_sub(boot.checked_sub(since_boot)?)
}

/// What the sidecars counted is what the visitor sent.
pub(super) fn metrics_add_up(sent: u64, frontend: &PodMetrics, backend: &PodMetrics) -> Check {
    let counted = [
        ("frontend inbound", frontend.inbound_requests()),
        ("frontend outbound", frontend.outbound_requests),
        ("backend inbound", backend.inbound_requests()),
    ];
    let held = sent > 0 && counted.iter().all(|(_, count)| *count == sent);
    let counts: Vec<String> = counted.iter().map(|(name, count)| format!("{name} {count}")).collect();
    Check::new("the metrics add up to the requests sent", held, format!("{sent} sent; {}", counts.join(", ")))
}
