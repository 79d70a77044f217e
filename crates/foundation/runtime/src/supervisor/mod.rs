//! Starts, watches, restarts and stops components.
//!
//! In: the config that says which are on, their exits, their reports. Out: runs, begun as
//! soon as what they need is ready. Promise: a run that ends although nobody asked is
//! reported and begun again after a wait; a run that does not end by its deadline is
//! aborted and reported. Everything happens in one task, within [`Supervisor::step`].

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::Config;
use outrigger_telemetry::{Counter, CounterFamily, Registry};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use crate::admin::AdminRoutes;
use crate::backoff::{Backoff, BackoffPolicy};
use crate::board::Board;
use crate::component::{BoxError, Component, Context};
use crate::environment::AppEnvironment;
use crate::panics::CatchPanic;
use crate::sockets::Sockets;
use crate::state::{Event, State, StopPhase};
use crate::stop::{Stop, StopSource};
use crate::workers::Workers;

/// What every component's context is made from.
pub(crate) struct Shared {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) workers: Workers,
    pub(crate) registry: Registry,
    pub(crate) sockets: Sockets,
    pub(crate) environment: AppEnvironment,
    pub(crate) admin: AdminRoutes,
}

pub(crate) struct Supervisor {
    units: Vec<Unit>,
    running: JoinSet<Outcome>,
    board: Board,
    changes: watch::Receiver<u64>,
    shared: Shared,
    policy: BackoffPolicy,
    restarts: CounterFamily,
    overdue: CounterFamily,
}

/// How a run ended: by itself, or by a panic, told as text.
type Outcome = Result<Result<(), BoxError>, String>;

struct Unit {
    component: Arc<dyn Component>,
    /// The config wants it.
    on: bool,
    /// The process stops, and it shall not be started again.
    closing: bool,
    run: Option<Run>,
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// When it became ready in this run.
    ready_since: Option<Instant>,
    /// Held while it is on, so that the series do not expire.
    counters: Option<Counters>,
}

struct Counters {
    restarts: Counter,
    overdue: Counter,
}

struct Run {
    task: Id,
    abort: AbortHandle,
    stop: StopSource,
    deadline: Option<Instant>,
    /// Its deadline has passed; its end is only a matter of being noticed.
    aborted: bool,
}

impl Supervisor {
    pub(crate) fn new(components: Vec<Arc<dyn Component>>, board: Board, shared: Shared) -> Self {
        let policy = policy(&shared.config.borrow());
        let unit = |component| Unit {
            component,
            on: false,
            closing: false,
            run: None,
            backoff: policy.start(),
            retry_at: None,
            ready_since: None,
            counters: None,
        };
        let restarts = shared.registry.counter(
            "outrigger_component_restarts_total",
            "Times a component was started again after it had failed.",
            &["component"],
        );
        let overdue = shared.registry.counter(
            "outrigger_component_stops_overdue_total",
            "Times a component did not stop by its deadline and was aborted.",
            &["component"],
        );
        Self {
            units: components.into_iter().map(unit).collect(),
            running: JoinSet::new(),
            changes: board.changes(),
            board,
            shared,
            policy,
            restarts,
            overdue,
        }
    }

    /// Turns components on and off as the current config says; one that is turned off has as long as a whole stop may take.
    pub(crate) fn follow_config(&mut self) {
        let config = Arc::clone(&self.shared.config.borrow());
        let patience = Duration::from(config.runtime.shutdown_budget);
        if policy(&config) != self.policy {
            self.policy = policy(&config);
            self.units.iter_mut().for_each(|unit| unit.backoff = self.policy.start());
        }
        for index in 0..self.units.len() {
            let unit = &mut self.units[index];
            let was_on = std::mem::replace(&mut unit.on, unit.component.enabled(&config));
            if was_on != unit.on {
                unit.backoff = self.policy.start();
            }
            match (was_on, unit.on) {
                (false, true) => {
                    // A run that is still stopping is followed by a new one when it has ended.
                    self.board.apply(index, Event::Enable, "");
                    let name = [self.units[index].component.name()];
                    let counters = Counters { restarts: self.restarts.with(&name), overdue: self.overdue.with(&name) };
                    self.units[index].counters = Some(counters);
                }
                (true, false) => self.stop_unit(index, Instant::now() + patience),
                _ => {}
            }
        }
    }

    /// Asks all components of a phase to stop by `deadline`, or brings their deadline forward. None of them is started again.
    pub(crate) fn stop_phase(&mut self, phase: StopPhase, deadline: Instant) {
        for index in 0..self.units.len() {
            if self.units[index].component.stop_phase() == phase {
                self.units[index].closing = true;
                self.stop_unit(index, deadline);
            }
        }
    }

    /// Whether no component of the phase runs.
    pub(crate) fn at_rest(&self, phase: StopPhase) -> bool {
        self.units.iter().all(|unit| unit.component.stop_phase() != phase || unit.run.is_none())
    }

    /// Does what can be done now, waits for the next thing to happen, and handles it. Cancel-safe.
    pub(crate) async fn step(&mut self) {
        self.start_what_can_start();
        let timer = self.next_timer();
        let sleep = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.running.join_next_with_id() => match ended {
                Ok((task, outcome)) => self.ended(task, Ok(outcome)),
                Err(error) => self.ended(error.id(), Err(error)),
            },
            _ = self.changes.changed() => self.note_readiness(),
            () = sleep => self.timers_due(),
        }
    }

    /// Begins the run of every component that is on and whose needs are ready.
    fn start_what_can_start(&mut self) {
        for index in 0..self.units.len() {
            let unit = &self.units[index];
            if self.board.state(index) != State::Pending || unit.closing || unit.run.is_some() {
                continue;
            }
            let unmet: Vec<&str> = unit.component.needs().iter().copied().filter(|need| !self.is_met(need)).collect();
            if unmet.is_empty() {
                self.start(index);
            } else {
                self.board.explain(index, format!("needs {}", unmet.join(", ")));
            }
        }
    }

    fn is_met(&self, need: &str) -> bool {
        let found = self.units.iter().position(|unit| unit.component.name() == need);
        // One that this build does not have, and one that is off, cannot be waited for.
        found.is_none_or(|index| {
            let state = self.board.state(index);
            state.is_ready() || (state == State::Disabled && !self.units[index].on)
        })
    }

    fn start(&mut self, index: usize) {
        self.board.apply(index, Event::Start, "");
        let (source, stop) = Stop::channel();
        let shared = &self.shared;
        let context = Context {
            config: shared.config.clone(),
            status: self.board.status(index),
            stop,
            workers: shared.workers.clone(),
            registry: shared.registry.clone(),
            sockets: shared.sockets.clone(),
            environment: shared.environment.clone(),
            admin: shared.admin.clone(),
            backoff: self.policy,
        };
        let component = Arc::clone(&self.units[index].component);
        let abort = self.running.spawn(CatchPanic::new(async move { component.run(context).await }));
        let unit = &mut self.units[index];
        unit.run = Some(Run { task: abort.id(), abort, stop: source, deadline: None, aborted: false });
        unit.retry_at = None;
        unit.ready_since = None;
    }

    /// Asks one component to stop by `deadline`.
    fn stop_unit(&mut self, index: usize, deadline: Instant) {
        let unit = &mut self.units[index];
        unit.retry_at = None;
        match &mut unit.run {
            Some(run) if run.aborted => {}
            Some(run) => {
                run.stop.request(deadline);
                run.deadline = Some(run.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
                self.board.apply(index, Event::Stop, "");
            }
            None => {
                self.board.apply(index, Event::Stop, "");
                self.settle(index);
            }
        }
    }

    /// What becomes of a component that has come to rest, as the config has it now.
    fn settle(&mut self, index: usize) {
        let unit = &self.units[index];
        if !unit.on {
            self.board.apply(index, Event::Disable, "");
        } else if !unit.closing {
            self.board.apply(index, Event::Enable, "");
        }
    }

    fn ended(&mut self, task: Id, outcome: Result<Outcome, JoinError>) {
        let of_task = |unit: &Unit| unit.run.as_ref().is_some_and(|run| run.task == task);
        let Some(index) = self.units.iter().position(of_task) else { return };
        self.units[index].run = None;
        let name = self.units[index].component.name();
        let stopping = self.board.state(index) == State::Stopping;
        let error = match outcome {
            Ok(Ok(Ok(()))) if stopping => None,
            Ok(Ok(Ok(()))) => Some("it ended although nobody asked it to stop".to_owned()),
            Ok(Ok(Err(error))) => Some(chain(&*error)),
            Ok(Err(panic)) => Some(panic),
            // Aborted: it was told when its deadline passed.
            Err(_) => None,
        };
        if stopping {
            if let Some(error) = error {
                tracing::error!(component = name, error, "component failed while stopping");
            }
            self.board.apply(index, Event::Exit, "");
            self.settle(index);
            return;
        }
        let unit = &mut self.units[index];
        let long_ready = Duration::from(self.shared.config.borrow().runtime.restart_backoff_max);
        if unit.ready_since.take().is_some_and(|since| since.elapsed() >= long_ready) {
            unit.backoff.reset();
        }
        let wait = unit.backoff.next();
        unit.retry_at = Some(Instant::now() + wait);
        let error = error.unwrap_or_else(|| "it was aborted".to_owned());
        tracing::error!(component = name, error, retry_in = ?wait, "component failed");
        self.board.apply(index, Event::Exit, error);
    }

    fn note_readiness(&mut self) {
        for (index, unit) in self.units.iter_mut().enumerate() {
            if unit.ready_since.is_none() && self.board.state(index).is_ready() {
                unit.ready_since = Some(Instant::now());
            }
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        let deadlines = self.units.iter().filter_map(|unit| unit.run.as_ref()?.deadline);
        deadlines.chain(self.units.iter().filter_map(|unit| unit.retry_at)).min()
    }

    fn timers_due(&mut self) {
        let now = Instant::now();
        for (index, unit) in self.units.iter_mut().enumerate() {
            let name = unit.component.name();
            if unit.retry_at.take_if(|at| *at <= now).is_some() {
                unit.counters.iter().for_each(|counters| counters.restarts.inc());
                self.board.apply(index, Event::Retry, "");
            }
            if let Some(run) = &mut unit.run
                && run.deadline.take_if(|deadline| *deadline <= now).is_some()
            {
                unit.counters.iter().for_each(|counters| counters.overdue.inc());
                tracing::error!(component = name, "component did not stop by its deadline and was aborted");
                run.aborted = true;
                run.abort.abort();
            }
        }
    }
}

/// Names of components whose needs lead back to themselves, as `a needs b needs a`; such a set can never start.
pub(crate) fn cycle(components: &[Arc<dyn Component>]) -> Option<String> {
    let find = |name: &str| components.iter().find(|component| component.name() == name);
    for component in components {
        let mut path = vec![component.name()];
        let mut stack: Vec<std::slice::Iter<'_, &'static str>> = vec![component.needs().iter()];
        while let Some(needs) = stack.last_mut() {
            let Some(need) = needs.next() else {
                stack.pop();
                path.pop();
                continue;
            };
            if *need == component.name() {
                path.push(need);
                return Some(path.join(" needs "));
            }
            if let Some(next) = find(need)
                && !path.contains(need)
            {
                path.push(need);
                stack.push(next.needs().iter());
            }
        }
    }
    None
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat the cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn policy(config: &Config) -> BackoffPolicy {
    BackoffPolicy { initial: config.runtime.restart_backoff.into(), max: config.runtime.restart_backoff_max.into() }
}

#[cfg(test)]
mod tests;
