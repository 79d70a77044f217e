//! What is known of every component, for those who ask: the supervisor and the admin API.
//!
//! In: events of the supervisor and reports of running components. Out: snapshots, and a
//! wake-up for whoever follows changes. Promise: a report of a run that is over changes
//! nothing; the reason of a failure stays readable until the next run is ready.

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_telemetry::{Gauge, GaugeFamily, Registry};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::state::{Event, State, StopPhase};

/// Longer reasons are cut, in characters.
const LONGEST_REASON: usize = 1000;

/// One component as others see it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) needs: &'static [&'static str],
    pub(crate) phase: StopPhase,
    pub(crate) state: State,
    /// Why it is in this state; empty when the state says it all.
    pub(crate) reason: String,
    pub(crate) since: SystemTime,
    /// Runs begun so far.
    pub(crate) runs: u64,
    /// Runs that ended although nobody asked.
    pub(crate) failures: u64,
    /// Why the last run failed; until a later run is ready.
    pub(crate) last_failure: Option<String>,
}

/// All components. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Board(Arc<Inner>);

struct Inner {
    entries: Mutex<Vec<Entry>>,
    /// Held while a component is on, so that its series does not expire.
    gauges: Mutex<Vec<Option<Gauge>>>,
    ready: GaugeFamily,
    version: watch::Sender<u64>,
}

impl Board {
    /// A board for components given as name, needs and phase.
    pub(crate) fn new(
        registry: &Registry,
        components: impl IntoIterator<Item = (&'static str, &'static [&'static str], StopPhase)>,
    ) -> Self {
        let ready = registry.gauge(
            "outrigger_component_ready",
            "Whether a component that the config turns on does its work (1) or not (0).",
            &["component"],
        );
        let entries: Vec<Entry> = components
            .into_iter()
            .map(|(name, needs, phase)| Entry {
                name,
                needs,
                phase,
                state: State::Disabled,
                reason: String::new(),
                since: SystemTime::now(),
                runs: 0,
                failures: 0,
                last_failure: None,
            })
            .collect();
        let gauges = Mutex::new(vec![None; entries.len()]);
        Self(Arc::new(Inner { entries: Mutex::new(entries), gauges, ready, version: watch::Sender::new(0) }))
    }

    /// Applies an event of the supervisor; whether it applied.
    pub(crate) fn apply(&self, index: usize, event: Event, reason: impl Into<String>) -> bool {
        self.change(index, None, event, reason.into())
    }

    /// Applies a report of run number `run`.
    fn report(&self, index: usize, run: u64, event: Event, reason: String) {
        self.change(index, Some(run), event, reason);
    }

    fn change(&self, index: usize, run: Option<u64>, event: Event, reason: String) -> bool {
        let reason = tidy(&reason);
        let mut entries = self.0.entries.lock();
        let entry = &mut entries[index];
        if run.is_some_and(|run| run != entry.runs) {
            return false;
        }
        let Some(next) = entry.state.on(event) else { return false };
        if next == entry.state && reason == entry.reason {
            return true;
        }
        let before = entry.state;
        if next != before {
            entry.since = SystemTime::now();
        }
        entry.state = next;
        entry.runs += u64::from(event == Event::Start);
        match next {
            State::Failed => {
                entry.failures += 1;
                entry.last_failure = Some(reason.clone());
            }
            State::Ready | State::Disabled => entry.last_failure = None,
            _ => {}
        }
        entry.reason = reason;
        let (name, reason) = (entry.name, entry.reason.clone());
        // Under the lock, so that two changes in a row reach the gauge in their order.
        self.show_ready(index, name, next);
        drop(entries);
        log_change(name, before, next, &reason);
        self.0.version.send_modify(|version| *version += 1);
        true
    }

    /// Says why a component is in its state, without changing that.
    pub(crate) fn explain(&self, index: usize, reason: String) {
        let mut entries = self.0.entries.lock();
        if entries[index].reason != reason {
            entries[index].reason = reason;
            drop(entries);
            self.0.version.send_modify(|version| *version += 1);
        }
    }

    fn show_ready(&self, index: usize, name: &str, state: State) {
        let gauge = &mut self.0.gauges.lock()[index];
        if state == State::Disabled {
            *gauge = None;
            self.0.ready.remove(&[name]);
        } else {
            let gauge = gauge.get_or_insert_with(|| self.0.ready.with(&[name]));
            gauge.set(f64::from(u8::from(state.is_ready())));
        }
    }

    /// One component.
    pub(crate) fn entry(&self, index: usize) -> Entry {
        self.0.entries.lock()[index].clone()
    }

    /// One component's state.
    pub(crate) fn state(&self, index: usize) -> State {
        self.0.entries.lock()[index].state
    }

    /// All components, in the order they were given.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.0.entries.lock().clone()
    }

    /// Whether every component that is on is ready.
    pub(crate) fn all_ready(&self) -> bool {
        self.0.entries.lock().iter().all(|entry| entry.state == State::Disabled || entry.state.is_ready())
    }

    /// Wakes on every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// What the present run of a component reports through.
    pub(crate) fn status(&self, index: usize) -> Status {
        Status { board: self.clone(), index, run: self.entry(index).runs }
    }
}

/// One line of bounded length: reasons come from anywhere, and stand in tables.
fn tidy(reason: &str) -> String {
    let words: Vec<&str> =
        reason.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ").chars().take(LONGEST_REASON).collect()
}

fn log_change(component: &str, before: State, after: State, reason: &str) {
    match after {
        // The supervisor logs failures itself, with what it knows of them.
        _ if before == after => tracing::debug!(component, state = after.as_str(), reason, "component state"),
        State::Failed => {}
        State::Degraded => tracing::warn!(component, reason, "component degraded"),
        State::Waiting if before.is_ready() => tracing::warn!(component, reason, "component no longer ready"),
        State::Waiting => tracing::info!(component, reason, "component waiting"),
        State::Ready if before != State::Starting => tracing::info!(component, "component ready"),
        _ => tracing::debug!(component, state = after.as_str(), reason, "component state"),
    }
}

/// How a running component says how it is. Reports after its stop was requested, or of an older run, change nothing.
#[derive(Clone)]
pub struct Status {
    board: Board,
    index: usize,
    run: u64,
}

impl Status {
    /// It does its work.
    pub fn ready(&self) {
        self.board.report(self.index, self.run, Event::ReportReady, String::new());
    }

    /// It does not do its work, and why: `waiting for Vault at http://…: connection refused`. No secrets.
    pub fn waiting(&self, why: impl Into<String>) {
        self.board.report(self.index, self.run, Event::ReportWaiting, why.into());
    }

    /// It does its work with the last good state of something, and why. Counts as ready. No secrets.
    pub fn degraded(&self, why: impl Into<String>) {
        self.board.report(self.index, self.run, Event::ReportDegraded, why.into());
    }

    /// Whether the component counts as ready now.
    pub fn is_ready(&self) -> bool {
        self.board.state(self.index).is_ready()
    }
}
