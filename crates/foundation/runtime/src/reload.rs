//! Hot reload: from a changed file to a published config, or to a refusal.
//!
//! In: a hint that the file may have changed. Out: the new config to all who watch it.
//! Promise: a config that does not load, or that a component refuses, changes nothing:
//! the last good one stays, and logs and metrics say so until a good one comes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_config::{Admin, Config, Diagnostic, Diagnostics, Loaded, Runtime, Severity, diff, load};
use outrigger_telemetry::log::LogControl;
use outrigger_telemetry::{Counter, Gauge, Registry};
use tokio::sync::watch;

use crate::component::Component;
use crate::history::{History, Refusal};
use crate::mark;
use crate::panics::describe;
use crate::supervisor::chain;

pub(crate) struct Reloader {
    path: PathBuf,
    /// What the process was started with, of the fields that are read only then.
    started_with: AtStart,
    current: watch::Sender<Arc<Config>>,
    registry: Registry,
    log: LogControl,
    /// By [`Outcome`].
    results: [Counter; 3],
    successful: Gauge,
    generation: Gauge,
    history: History,
}

/// What became of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Applied,
    Unchanged,
    Refused,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

impl Reloader {
    pub(crate) fn new(path: PathBuf, config: Arc<Config>, registry: &Registry, log: LogControl) -> Self {
        let results = registry.counter(
            "outrigger_config_reloads_total",
            "Reloads of the config by their result: applied, unchanged or refused.",
            &["result"],
        );
        let results =
            [Outcome::Applied, Outcome::Unchanged, Outcome::Refused].map(|outcome| results.with(&[outcome.as_str()]));
        let gauge = |name: &'static str, help: &'static str| registry.gauge(name, help, &[]).with(&[]);
        let successful = gauge(
            "outrigger_config_last_reload_successful",
            "Whether the config file, as it was last read, was accepted (1) or refused (0).",
        );
        let generation =
            gauge("outrigger_config_generation", "Counts the configs that were applied, from 1 at the start.");
        successful.set(1.0);
        generation.set(1.0);
        let history = History::default();
        history.runs(mark::of(&path));
        Self {
            path,
            current: watch::Sender::new(Arc::clone(&config)),
            started_with: AtStart::of(&config),
            registry: registry.clone(),
            log,
            results,
            successful,
            generation,
            history,
        }
    }

    /// The last good config, now and later.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Config>> {
        self.current.subscribe()
    }

    /// What became of the last reloads.
    pub(crate) fn history(&self) -> History {
        self.history.clone()
    }

    /// Reads the file again, and publishes it when it is good.
    pub(crate) fn reload(&mut self, components: &[Arc<dyn Component>]) -> Outcome {
        // Before it is read: who changes it meanwhile has it read once more.
        let mark = mark::of(&self.path);
        let outcome = match self.read(components) {
            Ok(Some(config)) => {
                self.publish(config);
                Outcome::Applied
            }
            Ok(None) => {
                tracing::info!(component = "runtime", path = %self.path.display(), "config read again, nothing changed");
                self.history.unchanged();
                Outcome::Unchanged
            }
            Err(refusal) => {
                self.history.refused(&refusal);
                Outcome::Refused
            }
        };
        match outcome {
            Outcome::Refused => self.history.does_not_run(mark),
            Outcome::Applied | Outcome::Unchanged => self.history.runs(mark),
        }
        self.results[outcome as usize].inc();
        self.successful.set(f64::from(u8::from(outcome != Outcome::Refused)));
        outcome
    }

    /// The file's config when it is good and new; what is wrong is logged.
    fn read(&self, components: &[Arc<dyn Component>]) -> Result<Option<Arc<Config>>, Refusal> {
        let Loaded { config: new, positions, warnings } = load(&self.path).map_err(|diagnostics| {
            report(&diagnostics);
            tracing::error!(component = "runtime", path = %self.path.display(), "config refused; the last good one stays");
            Refusal::Config(diagnostics)
        })?;
        // The file's text, which nobody asks for any more.
        drop(positions);
        report(&warnings);
        let old = Arc::clone(&self.current.borrow());
        if *old == new {
            return Ok(None);
        }
        if let Err((component, error)) = check(components, Some(&old), &new) {
            tracing::error!(component, error, "config refused by a component; the last good one stays");
            return Err(Refusal::Component(component, error));
        }
        Ok(Some(Arc::new(new)))
    }

    fn publish(&self, config: Arc<Config>) {
        let old = Arc::clone(&self.current.borrow());
        let changes = diff(&old, &config);
        for change in &changes {
            tracing::info!(component = "runtime", %change, "config changed");
        }
        let next_start = next_start_only(&self.started_with, &config);
        for field in &next_start {
            tracing::warn!(component = "runtime", field, "this change takes effect at the next start");
        }
        if old.telemetry.registry != config.telemetry.registry {
            self.registry.set_limits(&config.telemetry.registry);
        }
        if old.telemetry.log != config.telemetry.log {
            self.log.apply(&config.telemetry.log);
        }
        self.generation.inc();
        self.history.applied(self.generation.value() as u64, &changes, &next_start);
        self.current.send_replace(config);
        tracing::info!(component = "runtime", generation = self.generation.value(), "config applied");
    }
}

/// Asks every component that the config turns on whether it can use it; the first refusal, with the component's name.
pub(crate) fn check(
    components: &[Arc<dyn Component>],
    old: Option<&Config>,
    new: &Config,
) -> Result<(), (&'static str, String)> {
    for component in components.iter().filter(|component| component.enabled(new)) {
        // A mistake in a check is a refusal, not the end of a process that serves.
        let checked = catch_unwind(AssertUnwindSafe(|| component.check(old, new)));
        let verdict =
            checked.map_err(|payload| describe(&*payload)).and_then(|verdict| verdict.map_err(|e| chain(&*e)));
        verdict.map_err(|error| (component.name(), error))?;
    }
    Ok(())
}

/// Logs each diagnostic as one event.
pub(crate) fn report(diagnostics: &Diagnostics) {
    for Diagnostic { severity, path, line, column, message, help, .. } in diagnostics {
        let (file, help) = (diagnostics.file(), help.as_deref().unwrap_or_default());
        let at = format!("{file}:{line}:{column}");
        match severity {
            Severity::Error => {
                tracing::error!(component = "config", at, path = %path, error = message, help, "config error")
            }
            Severity::Warning => {
                tracing::warn!(component = "config", at, path = %path, warning = message, help, "config warning")
            }
        }
    }
}

/// Sections of which some fields are read at a start only. The whole config would be kept for ever by it.
struct AtStart {
    runtime: Runtime,
    admin: Admin,
}

impl AtStart {
    fn of(config: &Config) -> Self {
        Self { runtime: config.runtime.clone(), admin: config.admin.clone() }
    }
}

/// Fields that differ from what the process was started with, and are read at a start only.
fn next_start_only(started_with: &AtStart, new: &Config) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if started_with.runtime.workers != new.runtime.workers {
        fields.push("runtime.workers");
    }
    if started_with.runtime.handover != new.runtime.handover {
        fields.push("runtime.handover");
    }
    if started_with.admin.listen != new.admin.listen {
        fields.push("admin.listen");
    }
    if started_with.admin.health != new.admin.health {
        fields.push("admin.health");
    }
    fields
}
