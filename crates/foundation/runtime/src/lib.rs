//! What every pillar runs on: one lifecycle for all components of a process.
//!
//! In: a validated config and the components of the features. Out: an exit code.
//! Promise: components start in the order of their needs, a failed one is reported and
//! restarted, nothing looks healthy that is not, a bad config never replaces a good one,
//! and a stop takes no longer than its budget.

mod admin;
mod backoff;
mod board;
mod budget;
mod component;
mod cpu;
mod environment;
mod handover;
mod history;
mod lifecycle;
mod lines;
mod mark;
mod panics;
pub mod process;
mod reload;
mod resident;
mod run;
mod signals;
mod sockets;
mod state;
mod stop;
mod supervisor;
mod watcher;
mod workers;

pub use admin::{AdminBody, AdminHandler, AdminRequest, AdminResponse, AdminRoute, AdminRoutes, AdminStream};
pub use backoff::{Backoff, BackoffPolicy, jittered};
pub use board::Status;
pub use component::{BoxError, BoxFuture, Component, Context, Standalone};
pub use environment::AppEnvironment;
pub use handover::keeper::{KeeperOptions, keep};
pub use lines::LineQueue;
pub use mark::{CONFIG_MARK, config_mark};
pub use run::{RuntimeOptions, run};
pub use sockets::{Holder, SocketError, Sockets};
pub use state::StopPhase;
pub use stop::{Stop, StopSource};
pub use watcher::FileWatcher;
pub use workers::{WorkerPanic, WorkerTask, Workers};
