//! What keeps the pillar from running at all; all else is a problem that is told and retried.

use std::io;
use std::path::PathBuf;

/// Why log forwarding cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot use logs.stateDirectory {path}: {source}; it must be a folder we may write to")]
    StateDirectory { path: PathBuf, source: io::Error },
    #[error("another process{} uses logs.stateDirectory {path}; give each its own, or end the other", holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked { path: PathBuf, holder: Option<u32> },
    #[error("cannot read the checkpoint {path}: {source}")]
    Checkpoint { path: PathBuf, source: io::Error },
    #[error("a task of the logs pillar ended: {0}")]
    Task(String),
}
