//! What a feature is to the runtime: a component, and the context it runs in.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use outrigger_config::Config;
use outrigger_telemetry::Registry;
use tokio::sync::watch;

use crate::admin::AdminRoutes;
use crate::backoff::BackoffPolicy;
use crate::board::{Board, Status};
use crate::environment::AppEnvironment;
use crate::sockets::Sockets;
use crate::state::{Event, StopPhase};
use crate::stop::{Stop, StopSource};
use crate::workers::Workers;

/// Any error, as text for the operator. It must hold no secret.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A pillar, or a part of one, with a life of its own.
pub trait Component: Send + Sync + 'static {
    /// Its name in logs, metrics and `/readyz?verbose`: `identity`, `proxy-inbound`, …
    fn name(&self) -> &'static str;

    /// Names of components that must be ready before this one starts; one that is off counts as ready.
    fn needs(&self) -> &'static [&'static str] {
        &[]
    }

    /// When it is stopped.
    fn stop_phase(&self) -> StopPhase;

    /// Whether the config turns it on. One that is off costs nothing.
    fn enabled(&self, config: &Config) -> bool;

    /// Preflight of a start (`old` is `None`) or of a reload, without applying anything. Runs on the main thread: be quick.
    ///
    /// # Errors
    /// Why the config cannot be used; the start fails, or the reload is refused.
    fn check(&self, old: Option<&Config>, new: &Config) -> Result<(), BoxError> {
        let _ = (old, new);
        Ok(())
    }

    /// As `check`, of a config that is to run elsewhere, where files are that are not here.
    ///
    /// # Errors
    /// Why a start would fail there, as far as the config itself tells.
    fn judge(&self, config: &Config) -> Result<(), BoxError> {
        self.check(None, config)
    }

    /// Runs until `ctx.stop`, on the main thread's runtime. Called again after a failure: state that must survive lives in `self`.
    ///
    /// `Ok` is right only after the stop was requested and all stop work is done. An `Ok` before that, an `Err` and a
    /// panic are failures: the component is not ready, and is started again after a wait. The future is dropped when
    /// the stop's deadline has passed.
    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>>;
}

/// What a component runs in. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The last good config. Compare your own section, apply what changed, drop nothing.
    pub config: watch::Receiver<Arc<Config>>,
    /// Says how the component is.
    pub status: Status,
    /// Says when it is to stop.
    pub stop: Stop,
    /// The data-plane threads.
    pub workers: Workers,
    /// The metrics registry.
    pub registry: Registry,
    /// Where sockets come from.
    pub sockets: Sockets,
    /// Variables for the application.
    pub environment: AppEnvironment,
    /// Where further admin endpoints are registered.
    pub admin: AdminRoutes,
    /// How to wait between tries where the config gives no policy of its own.
    pub backoff: BackoffPolicy,
}

/// The other side of a [`Context::standalone`]: changes the config, requests the stop, sees the status.
pub struct Standalone {
    /// Publishes a new config.
    pub config: watch::Sender<Arc<Config>>,
    /// Requests the stop.
    pub stop: StopSource,
    /// Everything registered with the admin API.
    pub admin: AdminRoutes,
    board: Board,
    changes: watch::Receiver<u64>,
}

impl Context {
    /// A context outside a whole runtime: for a feature's own tests and tools. Call it within a tokio runtime.
    pub fn standalone(config: Config, workers: usize) -> (Self, Standalone) {
        let registry = Registry::new(&config.telemetry.registry, workers + 1);
        let backoff = BackoffPolicy {
            initial: config.runtime.restart_backoff.into(),
            max: config.runtime.restart_backoff_max.into(),
        };
        let (config, receiver) = watch::channel(Arc::new(config));
        let (stop_source, stop) = Stop::channel();
        let board = Board::new(&registry, [("standalone", &[] as &[_], StopPhase::Inbound)]);
        board.apply(0, Event::Enable, "");
        board.apply(0, Event::Start, "");
        let admin = AdminRoutes::new();
        let context = Self {
            config: receiver,
            status: board.status(0),
            stop,
            workers: Workers::new(workers),
            registry,
            sockets: Sockets::new(),
            environment: AppEnvironment::new(),
            admin: admin.clone(),
            backoff,
        };
        let changes = board.changes();
        (context, Standalone { config, stop: stop_source, admin, board, changes })
    }
}

impl Standalone {
    /// The component's state in a word, and its reason: `("waiting", "no certificate yet")`.
    pub fn status(&self) -> (&'static str, String) {
        let entry = self.board.entry(0);
        (entry.state.as_str(), entry.reason)
    }

    /// Waits until the component counts as ready.
    pub async fn ready(&mut self) {
        while !self.board.state(0).is_ready() {
            if self.changes.changed().await.is_err() {
                return;
            }
        }
    }
}
