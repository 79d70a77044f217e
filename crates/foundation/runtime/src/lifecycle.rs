//! What happens in a process from its start to its end, one thing after the other.
//!
//! In: signals, changed files, exits, reports of components. Out: the application started
//! when everything is ready, reloads, and the phases of the stop. Promise: every cause of
//! a stop leads through the same phases; a second signal hastens, a third abandons.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::Config;
use outrigger_telemetry::{Gauge, Registry};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::admin::{Health, Stage};
use crate::board::Board;
use crate::budget::StopPlan;
use crate::component::Component;
use crate::environment::AppEnvironment;
use crate::handover::Handover;
use crate::process::{Child, Children, Exit, Limits, launch, shares_terminal};
use crate::reload::{Outcome, Reloader};
use crate::resident::drop_executable_pages;
use crate::signals::{Received, Signals};
use crate::sockets::Sockets;
use crate::state::{State, StopPhase};
use crate::supervisor::Supervisor;
use crate::watcher::FileWatcher;

/// How often series that nobody writes to are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// A start that takes longer is logged with what it waits for, and again after twice the time.
const SLOW_START: Duration = Duration::from_secs(5);
/// After the start or a reload: long enough for what they begin to be over.
const AT_REST: Duration = Duration::from_secs(1);
/// How long a killed application may take to be gone.
const KILLED: Duration = Duration::from_secs(1);

/// What a lifecycle is made of.
pub(crate) struct Parts {
    pub(crate) begun: std::time::Instant,
    pub(crate) components: Vec<Arc<dyn Component>>,
    pub(crate) supervisor: Supervisor,
    pub(crate) board: Board,
    pub(crate) health: Health,
    pub(crate) reloader: Reloader,
    pub(crate) signals: Signals,
    pub(crate) watcher: FileWatcher,
    pub(crate) quit: Arc<Notify>,
    pub(crate) registry: Registry,
    pub(crate) sockets: Sockets,
    pub(crate) handover: Option<Handover>,
    pub(crate) children: Children,
    pub(crate) environment: AppEnvironment,
    pub(crate) command: Option<Vec<OsString>>,
    pub(crate) limits: Limits,
    /// Has the allocator give back what is free.
    pub(crate) give_back: fn(),
}

pub(crate) struct Lifecycle {
    parts: Parts,
    config: watch::Receiver<Arc<Config>>,
    application: Option<Child>,
    /// The exit code, once it is settled.
    code: Option<i32>,
    /// We had a terminal at the start.
    at_terminal: bool,
    housekeeping_at: Instant,
    nag_at: Option<Instant>,
    /// When memory that only a start or a reload needed is given back.
    rest_at: Option<Instant>,
    start_duration: Gauge,
}

/// One thing that happens.
enum Happening {
    /// A component started, reported or ended; the supervisor has seen to it.
    Component,
    Signal(Received),
    FileChanged,
    Exited(Exit),
    QuitRequested,
    Timer,
}

/// Why the process stops.
#[derive(Debug, Clone, Copy)]
enum Cause {
    Signal(Received),
    QuitRequested,
    ApplicationExited,
    NotLaunched,
}

impl Lifecycle {
    pub(crate) fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let start_duration = parts.registry.gauge(
            "outrigger_start_duration_seconds",
            "How long it took from the start of the process until everything was ready; 0 until then.",
            &[],
        );
        Self {
            start_duration: start_duration.with(&[]),
            config: parts.reloader.subscribe(),
            parts,
            application: None,
            code: None,
            at_terminal: std::io::stdin().is_terminal(),
            housekeeping_at: now + HOUSEKEEPING,
            nag_at: Some(now + SLOW_START),
            rest_at: None,
        }
    }

    /// Starts everything, runs until there is a cause to stop, and stops everything. Gives the exit code.
    pub(crate) async fn run(mut self) -> i32 {
        if self.parts.command.is_some()
            && let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        {
            tracing::warn!(component = "runtime", %error, "orphans of the application will not be reaped");
        }
        self.parts.supervisor.follow_config();
        let cause = loop {
            if self.parts.health.stage() == Stage::Starting
                && self.parts.board.all_ready()
                && let Err(cause) = self.become_ready()
            {
                break cause;
            }
            let happening = self.next().await;
            if let Some(cause) = self.handle(happening) {
                break cause;
            }
        };
        self.stop(cause).await
    }

    /// Waits for the next thing to happen. Cancel-safe.
    async fn next(&mut self) -> Happening {
        let application = &mut self.application;
        let exited = async {
            match application.as_mut().filter(|child| child.exit().is_none()) {
                Some(child) => child.wait().await,
                None => std::future::pending().await,
            }
        };
        let timers = [Some(self.housekeeping_at), self.nag_at, self.rest_at];
        let timer = timers.into_iter().flatten().min().unwrap_or(self.housekeeping_at);
        tokio::select! {
            () = self.parts.supervisor.step() => Happening::Component,
            signal = self.parts.signals.next() => Happening::Signal(signal),
            () = self.parts.watcher.changed() => Happening::FileChanged,
            exit = exited => Happening::Exited(exit),
            () = self.parts.quit.notified() => Happening::QuitRequested,
            () = tokio::time::sleep_until(timer) => Happening::Timer,
        }
    }

    /// Handles what happens before a stop; gives the cause when it is one.
    fn handle(&mut self, happening: Happening) -> Option<Cause> {
        match happening {
            Happening::Component => {}
            Happening::FileChanged => self.reload(),
            Happening::Exited(exit) => {
                self.note_exit(exit);
                return Some(Cause::ApplicationExited);
            }
            Happening::QuitRequested => return Some(Cause::QuitRequested),
            Happening::Timer => self.timers_due(),
            Happening::Signal(signal) => match signal {
                // The terminal has given it to the application too, which may well carry on, as an
                // interpreter does; when it exits, so do we.
                Received::Interrupt if self.application_runs() && shares_terminal() => {}
                Received::Terminate | Received::Interrupt => return Some(Cause::Signal(signal)),
                Received::Quit if !self.application_runs() => return Some(Cause::Signal(signal)),
                Received::Hangup if self.at_terminal && !std::io::stdin().is_terminal() => {
                    return Some(Cause::Signal(signal));
                }
                Received::Hangup => self.reload(),
                Received::Quit => self.forward(libc::SIGQUIT),
                Received::Other(number) => self.forward(number),
            },
        }
        None
    }

    /// The start is over: says so, and starts the application.
    fn become_ready(&mut self) -> Result<(), Cause> {
        self.parts.health.enter(Stage::Running);
        self.nag_at = None;
        self.rest_at = Some(Instant::now() + AT_REST);
        let took = self.parts.begun.elapsed();
        let on = self.parts.board.entries().iter().filter(|entry| entry.state != State::Disabled).count();
        tracing::info!(component = "runtime", took = ?took, components = on, "ready");
        self.start_duration.set(took.as_secs_f64());
        for address in self.parts.sockets.unclaimed() {
            tracing::warn!(component = "runtime", address, "inherited socket is used by no listener");
        }
        for address in self.parts.sockets.close_unclaimed() {
            tracing::warn!(
                component = "runtime",
                address,
                "a socket of the process before is used by no listener; closed, and connections that wait on it are reset"
            );
        }
        if let Some(handover) = &mut self.parts.handover {
            handover.confirm();
        }
        let Some(command) = &self.parts.command else { return Ok(()) };
        let variables = self.parts.environment.variables();
        match launch(&self.parts.children, command, &variables, self.parts.limits) {
            Ok(child) => {
                tracing::info!(component = "runtime", pid = child.pid(), "application started");
                self.application = Some(child);
                Ok(())
            }
            Err(error) => {
                tracing::error!(component = "runtime", %error, "application not started");
                self.code = Some(error.exit_code());
                Err(Cause::NotLaunched)
            }
        }
    }

    fn reload(&mut self) {
        if self.parts.reloader.reload(&self.parts.components) == Outcome::Applied {
            self.parts.supervisor.follow_config();
        }
        // A refused one has read and judged the file, too.
        self.rest_at = Some(Instant::now() + AT_REST);
    }

    fn timers_due(&mut self) {
        let now = Instant::now();
        if self.housekeeping_at <= now {
            self.parts.registry.expire();
            self.housekeeping_at = now + HOUSEKEEPING;
        }
        if self.rest_at.take_if(|at| *at <= now).is_some() {
            (self.parts.give_back)();
            drop_executable_pages();
        }
        if self.nag_at.take_if(|at| *at <= now).is_some() {
            let waited = self.parts.begun.elapsed();
            for entry in self.parts.board.entries() {
                if entry.state != State::Disabled && !entry.state.is_ready() {
                    let reason = entry.last_failure.as_ref().unwrap_or(&entry.reason);
                    tracing::warn!(component = entry.name, state = entry.state.as_str(), reason, "start is held up");
                }
            }
            self.nag_at = Some(now + waited);
        }
    }

    fn application_runs(&self) -> bool {
        self.application.as_ref().is_some_and(|child| child.exit().is_none())
    }

    fn note_exit(&mut self, exit: Exit) {
        tracing::info!(component = "runtime", %exit, "application exited");
        self.code = Some(exit.code());
    }

    /// Passes a signal on to the application, unless the terminal has done so already.
    fn forward(&self, number: i32) {
        let by_terminal = matches!(number, libc::SIGQUIT | libc::SIGWINCH) && shares_terminal();
        if let Some(child) = self.application.as_ref().filter(|_| !by_terminal) {
            child.signal(number);
        }
    }

    /// The stop: each phase in its order, all within one budget. Gives the exit code.
    async fn stop(mut self, cause: Cause) -> i32 {
        self.parts.health.enter(Stage::Stopping);
        self.nag_at = None;
        let begun = Instant::now();
        let runtime = self.config.borrow().runtime.clone();
        let (budget, flush) = (Duration::from(runtime.shutdown_budget), Duration::from(runtime.flush_budget));
        let mut plan = StopPlan::new(begun, budget, flush, self.application_runs());
        tracing::info!(component = "runtime", cause = cause.as_str(), budget = ?budget, "stopping");
        self.hand_over(cause).await;
        self.stop_phase(StopPhase::Inbound, &mut plan).await;
        self.stop_application(&mut plan).await;
        for phase in &StopPhase::ALL[1..] {
            self.stop_phase(*phase, &mut plan).await;
        }
        let code = self.code.unwrap_or_else(|| match cause {
            // The application never ran, so the job it stands for is not done.
            _ if self.parts.command.is_none() => 0,
            Cause::Signal(Received::Interrupt) => 128 + libc::SIGINT,
            _ => 128 + libc::SIGTERM,
        });
        tracing::info!(component = "runtime", took = ?begun.elapsed(), code, "stopped");
        code
    }

    /// Gives the listening sockets to a keeper before anybody closes them, so that new connections wait for the next process.
    async fn hand_over(&mut self, cause: Cause) {
        // Without its application the pod has nobody to serve, whoever comes next.
        let continued = matches!(cause, Cause::Signal(_) | Cause::QuitRequested);
        if let Some(handover) = self.parts.handover.as_mut().filter(|_| continued) {
            handover.give(&self.parts.sockets).await;
        }
    }

    /// Stops the components of one phase, and waits until they rest; the supervisor aborts those that are late.
    async fn stop_phase(&mut self, phase: StopPhase, plan: &mut StopPlan) {
        loop {
            self.parts.supervisor.stop_phase(phase, plan.deadline(phase));
            if self.parts.supervisor.at_rest(phase) {
                tracing::debug!(component = "runtime", %phase, "phase stopped");
                return;
            }
            let happening = self.next().await;
            self.handle_while_stopping(happening, plan);
        }
    }

    /// Asks the application to exit, and kills it when its time is over.
    async fn stop_application(&mut self, plan: &mut StopPlan) {
        let Some(child) = self.application.as_ref().filter(|child| child.exit().is_none()) else { return };
        child.signal(libc::SIGTERM);
        let mut killed_at = None;
        while self.application_runs() {
            let deadline = killed_at.map_or(plan.application(), |at: Instant| at + KILLED);
            tokio::select! {
                happening = self.next() => self.handle_while_stopping(happening, plan),
                () = tokio::time::sleep_until(deadline) => {
                    if killed_at.is_some() {
                        tracing::error!(component = "runtime", "application is killed but not gone");
                        return;
                    }
                    tracing::warn!(component = "runtime", "application did not exit in time and is killed");
                    if let Some(child) = &self.application {
                        child.signal_group(libc::SIGKILL);
                    }
                    killed_at = Some(Instant::now());
                }
            }
        }
        // It may have ended between two looks at it.
        if let (None, Some(exit)) = (self.code, self.application.as_ref().and_then(Child::exit)) {
            self.note_exit(exit);
        }
    }

    fn handle_while_stopping(&mut self, happening: Happening, plan: &mut StopPlan) {
        match happening {
            Happening::Component | Happening::QuitRequested => {}
            Happening::FileChanged | Happening::Signal(Received::Hangup) => {
                tracing::info!(component = "runtime", "reload ignored while stopping");
            }
            Happening::Exited(exit) => self.note_exit(exit),
            Happening::Timer => self.timers_due(),
            Happening::Signal(Received::Quit) => self.forward(libc::SIGQUIT),
            Happening::Signal(Received::Other(number)) => self.forward(number),
            Happening::Signal(Received::Terminate | Received::Interrupt) => {
                let now = Instant::now();
                if now < plan.application() {
                    tracing::warn!(component = "runtime", "second signal: nothing is waited for but the flush");
                    plan.hasten(now);
                } else {
                    tracing::warn!(component = "runtime", "further signal: nothing is waited for");
                    plan.abandon(now);
                }
            }
        }
    }
}

impl Cause {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Signal(signal) => signal.name(),
            Self::QuitRequested => "quitquitquit",
            Self::ApplicationExited => "the application exited",
            Self::NotLaunched => "the application could not be started",
        }
    }
}
