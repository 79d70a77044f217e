//! The endpoints of the admin API.
//!
//! In: a request that passed the guard. Out: an answer. Each endpoint is a row of one
//! table, so that the index, the `Allow` header and the dispatch cannot disagree.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use outrigger_config::{Config, LogLevel, to_yaml};
use outrigger_telemetry::log::LogControl;
use outrigger_telemetry::{Format, Registry};
use serde_json::json;
use tokio::sync::{Notify, watch};

use super::health::{Health, entry_json, table, timestamp};
use super::routes::{AdminRequest, AdminResponse, AdminRoutes, PAGE};
use crate::history::History;
use crate::mark::CONFIG_MARK;

/// Time for a feature's handler.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(30);

/// Endpoints below it are on the health port, too: the application's probes.
const APPLICATION: &str = "/app-health/";

/// Everything the admin API shows and moves.
pub(crate) struct Api {
    pub(crate) health: Health,
    pub(crate) registry: Registry,
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) config_path: PathBuf,
    pub(crate) history: History,
    pub(crate) log: LogControl,
    pub(crate) routes: AdminRoutes,
    pub(crate) workers: crate::workers::Workers,
    /// Told when somebody asks for a stop.
    pub(crate) quit: Arc<Notify>,
    pub(crate) version: &'static str,
    pub(crate) begun: Instant,
    pub(crate) begun_at: SystemTime,
}

/// The built-in endpoints: path, methods, description.
const ENDPOINTS: [(&str, &[&str], &str); 11] = [
    ("/", &["GET"], "this index; browsers are led to the page"),
    ("/config", &["GET"], "the effective config, secrets masked; YAML, or JSON by Accept"),
    ("/config/reloads", &["GET"], "the last reloads: what each changed, or why it was refused, as JSON"),
    ("/debug/tasks", &["GET"], "components, worker threads and their tasks"),
    ("/livez", &["GET"], "whether every thread answers; ?verbose"),
    ("/log-level", &["GET", "PUT", "POST"], "the level of our own log; PUT with ?level= or the level as body"),
    ("/metrics", &["GET"], "all metrics, as OpenMetrics or Prometheus text by Accept"),
    ("/quitquitquit", &["POST"], "stops this process in order"),
    ("/readyz", &["GET"], "whether every component does its work; ?verbose says which does not, and why"),
    ("/startupz", &["GET"], "whether the start is over; ?verbose"),
    ("/version", &["GET"], "our version"),
];

impl Api {
    /// Answers a request of the admin API.
    pub(super) async fn answer(&self, head: Parts, body: Bytes) -> AdminResponse {
        let path = head.uri.path().to_owned();
        let method = if head.method == Method::HEAD { Method::GET } else { head.method };
        let request = AdminRequest { query: head.uri.query().unwrap_or_default().to_owned(), headers: head.headers };
        let built_in = ENDPOINTS.iter().find(|(known, ..)| *known == path);
        let added = self.routes.handler(&path);
        let allowed = match (built_in, &added) {
            (Some((_, methods, _)), _) => *methods,
            (None, Some(_)) => &["GET"],
            (None, None) => return AdminRoutes::text(StatusCode::NOT_FOUND, "no such endpoint; GET / lists them\n"),
        };
        if !allowed.contains(&method.as_str()) {
            return method_not_allowed(allowed);
        }
        match (path.as_str(), added) {
            ("/", _) => self.index(&request),
            ("/config", _) => self.config(&request),
            ("/config/reloads", _) => AdminRoutes::json(&self.history.tell(&self.config_path)),
            ("/debug/tasks", _) => self.tasks(&request),
            ("/log-level", _) if method == Method::GET => self.log_level(&request),
            ("/log-level", _) => self.set_log_level(&request, &body),
            ("/metrics", _) => self.metrics(&request),
            ("/quitquitquit", _) => self.quit(),
            ("/version", _) => self.version(&request),
            (probe, None) => {
                let answer = self.health.answer(probe, &request, true).await;
                answer.unwrap_or_else(|| AdminRoutes::text(StatusCode::NOT_FOUND, "no such endpoint\n"))
            }
            (_, Some(handler)) => {
                let late = || AdminRoutes::text(StatusCode::GATEWAY_TIMEOUT, "the endpoint did not answer in time\n");
                tokio::time::timeout(HANDLER_TIMEOUT, handler(request)).await.unwrap_or_else(|_| late())
            }
        }
    }

    /// Answers a request on the health port: probes, and nothing else.
    pub(super) async fn answer_probe(&self, head: Parts) -> AdminResponse {
        let query = head.uri.query().unwrap_or_default().to_owned();
        let request = AdminRequest { query, headers: head.headers };
        let of_application = head.uri.path().starts_with(APPLICATION);
        if let Some(handler) = of_application.then(|| self.routes.handler(head.uri.path())).flatten() {
            if !matches!(head.method, Method::GET | Method::HEAD) {
                return method_not_allowed(&["GET"]);
            }
            let late = || AdminRoutes::text(StatusCode::GATEWAY_TIMEOUT, "the endpoint did not answer in time\n");
            return tokio::time::timeout(HANDLER_TIMEOUT, handler(request)).await.unwrap_or_else(|_| late());
        }
        if !matches!(head.uri.path(), "/livez" | "/readyz" | "/startupz") {
            return AdminRoutes::text(StatusCode::NOT_FOUND, "only /livez, /readyz and /startupz are here\n");
        }
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return method_not_allowed(&["GET"]);
        }
        // Whoever reaches the pod may ask here; reasons may name hosts and paths.
        let answer = self.health.answer(head.uri.path(), &request, false).await;
        let mut answer = answer.unwrap_or_else(|| AdminRoutes::text(StatusCode::NOT_FOUND, "no such endpoint\n"));
        let mark = self.history.marks().filter(|_| head.uri.path() == "/readyz");
        if let Some(mark) = mark.and_then(|mark| HeaderValue::from_str(&mark).ok()) {
            answer.headers_mut().insert(CONFIG_MARK, mark);
        }
        answer
    }

    fn index(&self, request: &AdminRequest) -> AdminResponse {
        // People come with a browser; curl asks for anything.
        if request.accepts("text/html") && self.routes.handler(PAGE).is_some() {
            return to_the_page();
        }
        let mut all: Vec<(String, String, String)> = ENDPOINTS
            .iter()
            .map(|(path, methods, what)| ((*path).to_owned(), methods.join("|"), (*what).to_owned()))
            .collect();
        let added =
            self.routes.index().into_iter().filter(|(path, _)| !ENDPOINTS.iter().any(|(known, ..)| known == path));
        let added = added.filter(|(_, what)| !what.is_empty());
        all.extend(added.map(|(path, what)| (path, "GET".to_owned(), what)));
        all.sort();
        if request.wants_json() {
            let rows =
                all.iter().map(|(path, methods, what)| json!({"path": path, "methods": methods, "description": what}));
            return AdminRoutes::json(&rows.collect());
        }
        let mut text = format!("outrigger {}\n\n", self.version);
        for (path, methods, what) in all {
            let _ = writeln!(text, "{methods:<12} {path:<24} {what}");
        }
        AdminRoutes::text(StatusCode::OK, text)
    }

    fn config(&self, request: &AdminRequest) -> AdminResponse {
        let config = Arc::clone(&self.config.borrow());
        if !request.wants_json() {
            return AdminRoutes::response(StatusCode::OK, "application/yaml", to_yaml(&config));
        }
        match serde_json::to_value(&*config) {
            Ok(value) => AdminRoutes::json(&value),
            Err(error) => AdminRoutes::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn log_level(&self, request: &AdminRequest) -> AdminResponse {
        let level = level_name(self.log.level());
        if request.wants_json() {
            return AdminRoutes::json(&json!({ "level": level }));
        }
        AdminRoutes::text(StatusCode::OK, format!("{level}\n"))
    }

    fn set_log_level(&self, request: &AdminRequest, body: &Bytes) -> AdminResponse {
        let body = std::str::from_utf8(body).unwrap_or_default().trim();
        let wanted = request.parameter("level").unwrap_or(body);
        let Some(level) = parse_level(wanted) else {
            let message = "not a level; use off, error, warn, info, debug or trace\n";
            return AdminRoutes::text(StatusCode::BAD_REQUEST, message);
        };
        let before = self.log.level();
        self.log.set_level(level);
        tracing::warn!(
            component = "admin",
            from = level_name(before),
            to = level_name(level),
            "log level set by the admin API"
        );
        self.log_level(request)
    }

    fn metrics(&self, request: &AdminRequest) -> AdminResponse {
        let accept = request.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let format = Format::negotiate(accept);
        let mut body = Vec::new();
        self.registry.encode(format, &mut body);
        AdminRoutes::response(StatusCode::OK, format.content_type(), body)
    }

    fn quit(&self) -> AdminResponse {
        self.quit.notify_one();
        AdminRoutes::text(StatusCode::OK, "stopping\n")
    }

    fn version(&self, request: &AdminRequest) -> AdminResponse {
        if request.wants_json() {
            return AdminRoutes::json(&json!({ "version": self.version }));
        }
        AdminRoutes::text(StatusCode::OK, format!("outrigger {}\n", self.version))
    }

    fn tasks(&self, request: &AdminRequest) -> AdminResponse {
        let entries = self.health.board().entries();
        let workers = self.workers.states();
        let main = tokio::runtime::Handle::current().metrics();
        let uptime = self.begun.elapsed();
        if request.wants_json() {
            let workers = workers.iter().map(|worker| {
                json!({
                    "worker": worker.index, "started": worker.started, "tasks": worker.tasks,
                    "runtimeTasks": worker.alive_tasks, "deaths": worker.deaths,
                })
            });
            let components = entries.iter().map(|entry| {
                let mut value = entry_json(entry, true);
                value["needs"] = json!(entry.needs);
                value["stopPhase"] = entry.phase.as_str().into();
                value
            });
            return AdminRoutes::json(&json!({
                "uptimeSeconds": uptime.as_secs_f64(),
                "startedAt": timestamp(self.begun_at),
                "ready": self.health.is_ready(),
                "status": self.health.summary("ready", self.health.is_ready()),
                "main": { "runtimeTasks": main.num_alive_tasks(), "queued": main.global_queue_depth() },
                "workers": workers.collect::<serde_json::Value>(),
                "components": components.collect::<serde_json::Value>(),
            }));
        }
        let mut text = format!("up {:.1?} since {}\n\n", uptime, timestamp(self.begun_at));
        text.push_str(&table(&entries, true));
        let _ = writeln!(text, "\n{:<10} {:>6} {:>14} {:>7}", "THREAD", "TASKS", "RUNTIME TASKS", "DEATHS");
        let _ = writeln!(text, "{:<10} {:>6} {:>14} {:>7}", "main", "-", main.num_alive_tasks(), 0);
        for worker in workers {
            let name = format!("worker-{}", worker.index);
            if worker.started {
                let _ =
                    writeln!(text, "{name:<10} {:>6} {:>14} {:>7}", worker.tasks, worker.alive_tasks, worker.deaths);
            } else {
                let _ = writeln!(text, "{name:<10} not started: nothing has used it");
            }
        }
        AdminRoutes::text(StatusCode::OK, text)
    }
}

/// Relative, so that it is right behind a proxy that puts something in front of our paths.
fn to_the_page() -> AdminResponse {
    let mut response = AdminRoutes::text(StatusCode::TEMPORARY_REDIRECT, "the page is at ui/\n");
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("ui/"));
    response
}

fn method_not_allowed(allowed: &[&str]) -> AdminResponse {
    let mut all = allowed.to_vec();
    if all.contains(&"GET") {
        all.push("HEAD");
    }
    let all = all.join(", ");
    let mut response = AdminRoutes::text(StatusCode::METHOD_NOT_ALLOWED, format!("allowed: {all}\n"));
    if let Ok(value) = HeaderValue::try_from(all) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn parse_level(text: &str) -> Option<LogLevel> {
    serde_json::from_value(text.to_ascii_lowercase().into()).ok()
}

fn level_name(level: LogLevel) -> String {
    serde_json::to_value(level).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
