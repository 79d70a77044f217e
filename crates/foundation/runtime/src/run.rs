//! The whole life of a process: start, ready, reload, stop.
//!
//! In: a config, the components, perhaps a command. Out: an exit code. Promise: what
//! happens is decided in one task, one thing after the other; a stop runs its phases in
//! order whatever caused it, and takes no longer than its budget.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_config::{Config, Loaded, LogLevel};
use outrigger_telemetry::Registry;
use outrigger_telemetry::log::LogControl;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::admin::{AdminRoutes, Api, BindError, Endpoint, Health, Servers};
use crate::board::Board;
use crate::component::Component;
use crate::environment::AppEnvironment;
use crate::handover::{Handover, Interrupted};
use crate::lifecycle::Lifecycle;
use crate::process::{Children, Limits, harden};
use crate::reload::{self, Reloader};
use crate::signals::Signals;
use crate::sockets::Sockets;
use crate::supervisor::{Shared, Supervisor, cycle};
use crate::watcher::FileWatcher;
use crate::workers::Workers;
use crate::{cpu, panics};

/// Threads for blocking work beside the main thread; they end when they have been idle for a while.
const MOST_BLOCKING: usize = 8;
/// Files, DNS and templates need little of it.
const BLOCKING_STACK: usize = 1 << 20;
/// How long threads may take to end after everything else has.
const THREADS_END: Duration = Duration::from_millis(250);

/// What [`run`] needs to know.
pub struct RuntimeOptions {
    /// Where the config came from; watched for changes.
    pub config_path: PathBuf,
    /// The config as it was loaded.
    pub loaded: Loaded,
    /// All components, on or off.
    pub components: Vec<Box<dyn Component>>,
    /// The application to start once everything is ready, with its arguments.
    pub command: Option<Vec<OsString>>,
    /// Our version, for `/version` and the build-info metric.
    pub version: &'static str,
    /// Has the allocator give back what is free; called when a start or a reload is over.
    pub give_back: fn(),
}

/// Why a start failed.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Admin(#[from] BindError),
    #[error("cannot take over signals: {0}")]
    Signals(std::io::Error),
    #[error("components wait for each other: {0}")]
    Cycle(String),
    #[error("component {0} refuses the config: {1}")]
    Refused(&'static str, String),
}

/// Runs until stopped; gives the exit code. Call it once, on the main thread, before any other thread is started.
///
/// The code is the application's (128 plus the signal's number when a signal ended it; 127 when it was not found,
/// 126 when it cannot be executed); without an application 0 after a stop, 1 when the start failed.
///
/// The process then owns all its children: every one is reaped here, so nothing else may wait for a child.
pub fn run(options: RuntimeOptions) -> i32 {
    let begun = Instant::now();
    panics::install_hook();
    let limits = Limits::current();
    let runtime = &options.loaded.config.runtime;
    let workers = Workers::new(runtime.workers.map_or_else(cpu::default_workers, |count| count as usize));
    let telemetry = &options.loaded.config.telemetry;
    let registry = Registry::new(&telemetry.registry, workers.count() + 1);
    let log = outrigger_telemetry::log::init(&telemetry.log, &registry);
    outrigger_telemetry::set_shard(0);
    outrigger_telemetry::register_process_metrics(&registry);
    outrigger_telemetry::register_build_info(&registry, options.version);
    harden(&limits);
    let process = Process { begun, limits, workers, registry, log: log.clone() };
    let code = match process.run(options) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(component = "runtime", %error, "start failed");
            // Whoever turned the log off still has to learn why there is no process.
            if log.level() == LogLevel::Off {
                eprintln!("outrigger: start failed: {error}");
            }
            1
        }
    };
    // What the rate limit holds back in the last second would else be lost.
    log.flush();
    code
}

/// What exists before the runtime does.
struct Process {
    begun: Instant,
    limits: Limits,
    workers: Workers,
    registry: Registry,
    log: LogControl,
}

impl Process {
    fn run(self, options: RuntimeOptions) -> Result<i32, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MOST_BLOCKING)
            .thread_name("blocking")
            .thread_stack_size(BLOCKING_STACK)
            .build()
            .map_err(StartError::Runtime)?;
        let workers = self.workers.clone();
        let code = runtime.block_on(self.live(options));
        workers.shutdown(Instant::now() + THREADS_END);
        runtime.shutdown_timeout(THREADS_END);
        code
    }

    async fn live(self, options: RuntimeOptions) -> Result<i32, StartError> {
        let Self { begun, limits, workers, registry, log } = self;
        let Loaded { config, positions, warnings } = options.loaded;
        // Nobody asks any more, and a large file is large.
        drop(positions);
        let config = Arc::new(config);
        let components: Vec<Arc<dyn Component>> = options.components.into_iter().map(Arc::from).collect();
        let mut signals = Signals::new().map_err(StartError::Signals)?;
        let children = Children::new();
        let mut background = JoinSet::new();
        background.spawn(reap(children.clone()));

        let faces = components.iter().map(|component| (component.name(), component.needs(), component.stop_phase()));
        let board = Board::new(&registry, faces);
        let health = Health::new(board.clone(), workers.clone());
        let sockets = Sockets::from_environment();
        let handover = match &config.runtime.handover {
            Some(handover) => match Handover::begin(handover, options.version, &sockets, &mut signals).await {
                Ok(handover) => Some(handover),
                Err(Interrupted(signal)) => {
                    tracing::info!(component = "runtime", cause = signal.name(), "stopped before the start");
                    return Ok(if options.command.is_none() { 0 } else { signal.exit_code() });
                }
            },
            None => None,
        };
        let admin = AdminRoutes::new();
        let quit = Arc::new(Notify::new());
        let reloader = Reloader::new(options.config_path.clone(), Arc::clone(&config), &registry, log.clone());
        let api = Arc::new(Api {
            health: health.clone(),
            registry: registry.clone(),
            config: reloader.subscribe(),
            config_path: options.config_path.clone(),
            history: reloader.history(),
            log,
            routes: admin.clone(),
            workers: workers.clone(),
            quit: Arc::clone(&quit),
            version: options.version,
            begun,
            begun_at: SystemTime::now(),
        });
        // First, so that a start that hangs can be asked why; dropped last.
        let servers = open_admin(&config, &sockets, &api)?;

        reload::report(&warnings);
        drop(warnings);
        if let Some(cycle) = cycle(&components) {
            return Err(StartError::Cycle(cycle));
        }
        reload::check(&components, None, &config).map_err(|(name, error)| StartError::Refused(name, error))?;
        // From here on the one that runs is whatever the last reload brought.
        drop(config);
        let environment = AppEnvironment::new();
        let shared = Shared {
            config: reloader.subscribe(),
            workers,
            registry: registry.clone(),
            sockets: sockets.clone(),
            environment: environment.clone(),
            admin,
        };
        let supervisor = Supervisor::new(components.clone(), board.clone(), shared);
        let watcher = FileWatcher::new([&options.config_path]).map_err(StartError::Runtime)?;
        let lifecycle = Lifecycle::new(crate::lifecycle::Parts {
            begun,
            components,
            supervisor,
            board,
            health,
            reloader,
            signals,
            watcher,
            quit,
            registry,
            sockets: sockets.clone(),
            handover,
            children,
            environment,
            command: options.command,
            limits,
            give_back: options.give_back,
        });
        let code = lifecycle.run().await;
        servers.close(sockets.handed_over()).await;
        Ok(code)
    }
}

async fn reap(children: Children) {
    if let Err(error) = children.reap().await {
        tracing::error!(component = "runtime", %error, "cannot reap child processes");
    }
}

fn open_admin(config: &Config, sockets: &Sockets, api: &Arc<Api>) -> Result<Servers, BindError> {
    let mut servers = Servers::default();
    servers.open(Endpoint::Admin, &config.admin.listen, sockets, api)?;
    servers.open(Endpoint::Health, &config.admin.health, sockets, api)?;
    Ok(servers)
}
