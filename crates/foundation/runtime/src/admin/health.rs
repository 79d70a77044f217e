//! `/livez`, `/readyz` and `/startupz`: what the kubelet asks, and why in a table.
//!
//! Promise: ready means that every component which the config turns on does its work and
//! nobody has asked for a stop; started is told once all have been ready at the same time;
//! alive fails only when a thread no longer answers, for which a restart is the remedy.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::routes::{AdminRequest, AdminResponse, AdminRoutes};
use crate::board::{Board, Entry};
use crate::state::State;
use crate::workers::Workers;

/// How long a probe waits for the workers' answers; well below the kubelet's default timeout of one second.
const PING: Duration = Duration::from_millis(200);
/// A worker that has not answered for so long is wedged. Longer than any burst of work, shorter than three default probe periods.
const WEDGED: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(15) };

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting = 0,
    Running = 1,
    Stopping = 2,
}

/// Answers the probes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Health(Arc<Inner>);

struct Inner {
    board: Board,
    workers: Workers,
    stage: AtomicU8,
    started: AtomicBool,
}

impl Health {
    pub(crate) fn new(board: Board, workers: Workers) -> Self {
        Self(Arc::new(Inner {
            board,
            workers,
            stage: AtomicU8::new(Stage::Starting as u8),
            started: AtomicBool::new(false),
        }))
    }

    /// Enters a stage; with `Running` the start is over for good.
    pub(crate) fn enter(&self, stage: Stage) {
        self.0.stage.store(stage as u8, Ordering::Relaxed);
        if stage == Stage::Running {
            self.0.started.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.0.stage.load(Ordering::Relaxed) {
            0 => Stage::Starting,
            1 => Stage::Running,
            _ => Stage::Stopping,
        }
    }

    pub(super) fn board(&self) -> &Board {
        &self.0.board
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stage() == Stage::Running && self.0.board.all_ready()
    }

    /// Answers a probe. `reasons` says whether the asker may know why.
    pub(super) async fn answer(&self, path: &str, request: &AdminRequest, reasons: bool) -> Option<AdminResponse> {
        let (word, well) = match path {
            "/livez" => return Some(self.livez(request).await),
            "/readyz" => ("ready", self.is_ready()),
            "/startupz" => ("started", self.0.started.load(Ordering::Relaxed)),
            _ => return None,
        };
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let verbose = request.parameter("verbose").is_some();
        let summary = self.summary(word, well);
        let entries = self.0.board.entries();
        Some(if request.wants_json() {
            let components = entries.iter().filter(|_| verbose).map(|entry| entry_json(entry, reasons));
            let mut value = json!({ word: well, "status": summary });
            if verbose {
                value["components"] = components.collect();
            }
            let mut response = AdminRoutes::json(&value);
            *response.status_mut() = status;
            response
        } else if verbose {
            AdminRoutes::text(status, table(&entries, reasons) + &summary + "\n")
        } else {
            AdminRoutes::text(status, summary + "\n")
        })
    }

    async fn livez(&self, request: &AdminRequest) -> AdminResponse {
        let workers = self.0.workers.ping(PING).await;
        let wedged = |silent: Option<Duration>| silent.is_some_and(|silent| silent >= WEDGED);
        let alive = !workers.iter().any(|worker| wedged(worker.silent));
        let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let verbose = request.parameter("verbose").is_some();
        let state = |worker: &crate::workers::WorkerState| match worker.silent {
            _ if !worker.started => "idle".to_owned(),
            Some(silent) if wedged(Some(silent)) => format!("wedged: no answer for {silent:.0?}"),
            Some(silent) => format!("busy: no answer for {silent:.1?}"),
            None => "ok".to_owned(),
        };
        if request.wants_json() {
            let mut value = json!({ "alive": alive });
            if verbose {
                value["workers"] =
                    workers.iter().map(|worker| json!({ "worker": worker.index, "state": state(worker) })).collect();
            }
            let mut response = AdminRoutes::json(&value);
            *response.status_mut() = status;
            return response;
        }
        let mut text = String::new();
        if verbose {
            // The main thread is alive, or it could not answer.
            text.push_str("main       ok\n");
            for worker in &workers {
                let _ = writeln!(text, "{:<10} {}", format!("worker-{}", worker.index), state(worker));
            }
        }
        text.push_str(if alive { "ok\n" } else { "wedged\n" });
        AdminRoutes::text(status, text)
    }

    /// One line: `ok`, or which components are not ready.
    pub(super) fn summary(&self, word: &str, well: bool) -> String {
        if well {
            return "ok".to_owned();
        }
        let entries = self.0.board.entries();
        let unready = entries.iter().filter(|entry| entry.state != State::Disabled && !entry.state.is_ready());
        let names: Vec<&str> = unready.map(|entry| entry.name).collect();
        match self.stage() {
            Stage::Stopping => format!("not {word}: stopping"),
            _ if names.is_empty() => format!("not {word}: starting"),
            _ => format!("not {word}: {}", names.join(", ")),
        }
    }
}

/// Name, state, since and reason of every component, in columns.
pub(super) fn table(entries: &[Entry], reasons: bool) -> String {
    let mut rows = vec![["COMPONENT", "STATE", "SINCE", "REASON"].map(str::to_owned)];
    for entry in entries {
        let reason = if reasons { reason(entry) } else { "(ask the admin API)".to_owned() };
        let reason = if self_evident(entry) { String::new() } else { reason };
        rows.push([entry.name.to_owned(), entry.state.as_str().to_owned(), timestamp(entry.since), reason]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for [name, state, since, reason] in &rows {
        let [a, b, c] = widths;
        let line = format!("{name:<a$}  {state:<b$}  {since:<c$}  {reason}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn entry_json(entry: &Entry, reasons: bool) -> serde_json::Value {
    let mut value = json!({
        "name": entry.name,
        "state": entry.state.as_str(),
        "ready": entry.state.is_ready(),
        "since": timestamp(entry.since),
    });
    if reasons {
        value["reason"] = reason(entry).into();
        value["runs"] = entry.runs.into();
        value["failures"] = entry.failures.into();
    }
    value
}

fn self_evident(entry: &Entry) -> bool {
    matches!(entry.state, State::Disabled | State::Stopped) || (entry.state == State::Ready && entry.reason.is_empty())
}

/// Why a component is in its state, with the failure it recovers from.
fn reason(entry: &Entry) -> String {
    let reason = &entry.reason;
    match &entry.last_failure {
        Some(failure) if entry.state != State::Failed && !entry.state.is_ready() => {
            let separator = if reason.is_empty() { "" } else { "; " };
            format!("{reason}{separator}after a failure: {failure}")
        }
        _ => reason.clone(),
    }
}

pub(crate) fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use outrigger_config::MetricsRegistry;
    use outrigger_telemetry::Registry;

    use super::*;
    use crate::state::{Event, StopPhase};

    fn health() -> Health {
        let registry = Registry::new(&MetricsRegistry::default(), 1);
        let board =
            Board::new(&registry, [("logs", &[] as &[_], StopPhase::Logs), ("off", &[] as &[_], StopPhase::Logs)]);
        Health::new(board, Workers::new(1))
    }

    async fn ask(health: &Health, path: &str, query: &str, reasons: bool) -> (u16, String) {
        let request = AdminRequest { query: query.to_owned(), headers: HeaderMap::new() };
        let response = health.answer(path, &request, reasons).await.unwrap();
        (response.status().as_u16(), String::from_utf8(response.into_body().whole().unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_follows_the_components_and_started_stays() {
        let health = health();
        assert_eq!(ask(&health, "/readyz", "", true).await, (503, "not ready: starting\n".to_owned()));
        for event in [Event::Enable, Event::Start] {
            health.board().apply(0, event, "");
        }
        assert_eq!(ask(&health, "/startupz", "", true).await, (503, "not started: logs\n".to_owned()));
        health.board().apply(0, Event::ReportReady, "");
        health.enter(Stage::Running);
        assert_eq!(ask(&health, "/readyz", "", true).await, (200, "ok\n".to_owned()));
        health.board().apply(0, Event::ReportDegraded, "serving the last good thing");
        assert_eq!(ask(&health, "/readyz", "", true).await.0, 200);
        health.board().apply(0, Event::Exit, "disk\n full");
        let (status, text) = ask(&health, "/readyz", "verbose", true).await;
        assert_eq!(status, 503);
        assert!(
            text.contains("logs       failed") && text.contains("disk full") && text.contains("off        disabled"),
            "{text}"
        );
        assert_eq!(ask(&health, "/startupz", "", true).await.0, 200, "started once is started for good");
        let (_, text) = ask(&health, "/readyz", "verbose", false).await;
        assert!(!text.contains("disk"), "the health port keeps reasons to itself: {text}");
        for event in [Event::Retry, Event::Start] {
            health.board().apply(0, event, "");
        }
        let (_, text) = ask(&health, "/readyz", "verbose", true).await;
        assert!(text.contains("starting") && text.contains("after a failure: disk full"), "{text}");
        health.board().apply(0, Event::ReportReady, "");
        health.enter(Stage::Stopping);
        assert_eq!(ask(&health, "/readyz", "", true).await, (503, "not ready: stopping\n".to_owned()));
    }

    #[tokio::test]
    async fn alive_fails_when_a_worker_is_wedged_and_only_then() {
        let health = health();
        assert_eq!(ask(&health, "/livez", "verbose", true).await.0, 200, "a worker nobody uses is fine");
        let (release, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let busy = health.0.workers.spawn(0, move || async move { wait.recv().is_ok() });
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while ask(&health, "/livez", "", true).await.0 == 200 {
            assert!(std::time::Instant::now() < deadline, "a wedged worker is found out");
        }
        assert!(ask(&health, "/livez", "verbose", true).await.1.contains("worker-0   wedged"));
        release.send(()).unwrap();
        assert_eq!(busy.await, Ok(true));
        while ask(&health, "/livez", "", true).await.0 != 200 {
            assert!(std::time::Instant::now() < deadline, "it is alive again");
        }
    }
}
