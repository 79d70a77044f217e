//! Appends JSON lines to a file.
//!
//! Promise: a batch stands in the file whole or not at all, and, together with the
//! checkpoint that knows how long the file was, each line stands there once, whatever
//! moment the process was killed at. A renamed file is noticed and a new one begun.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_runtime::Backoff;
use tokio_util::sync::CancellationToken;

use super::{RETRY, SinkParts};
use crate::checkpoint::SinkCheckpoint;
use crate::queue::Piece;

/// How long the file is with everything that was acknowledged; shared with the checkpoint.
pub(crate) type SinkLength = Arc<Mutex<Option<SinkCheckpoint>>>;

/// A file sink before it runs.
pub(crate) struct FileSink {
    pub(crate) parts: SinkParts,
    pub(crate) path: PathBuf,
    pub(crate) length: SinkLength,
    pub(crate) abort: CancellationToken,
}

impl FileSink {
    /// Takes batches until the sources have ended.
    pub(crate) async fn run(mut self) {
        let mut target = None;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(mut batch) = self.parts.batches.next().await {
            loop {
                let (path, known) =
                    (self.path.clone(), self.length.lock().unwrap_or_else(PoisonError::into_inner).clone());
                // A write that has begun is always awaited: after an abort nobody else may find it half done.
                let written = tokio::task::spawn_blocking(move || {
                    let outcome = append(target, &path, known.as_ref(), &batch);
                    (outcome, batch)
                });
                let Ok((outcome, back)) = written.await else { return };
                batch = back;
                match outcome {
                    Ok(now) => {
                        let state = now.state.clone();
                        target = Some(now);
                        *self.length.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
                        // No await between the two: a checkpoint sees both or neither.
                        self.parts.acknowledge(batch);
                        backoff.reset();
                        break;
                    }
                    Err(error) => {
                        target = None;
                        self.parts.metrics.retries.inc();
                        self.parts
                            .problems
                            .tell(&self.parts.owner, format!("cannot write {}: {error}", self.path.display()));
                        tokio::select! {
                            () = tokio::time::sleep(backoff.next()) => {}
                            () = self.abort.cancelled() => return,
                        }
                    }
                }
            }
        }
    }
}

/// The open file and how long it is.
struct Target {
    file: File,
    state: SinkCheckpoint,
}

fn append(target: Option<Target>, path: &Path, known: Option<&SinkCheckpoint>, batch: &[Piece]) -> io::Result<Target> {
    let still_there = |target: &Target| {
        fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (target.state.device, target.state.inode))
    };
    let mut target = match target.filter(still_there) {
        Some(target) => target,
        None => open(path, known)?,
    };
    let before = target.state.length;
    let mut outcome = Ok(());
    for piece in batch {
        outcome = outcome.and_then(|()| target.file.write_all(piece.data.as_bytes()));
        target.state.length += piece.data.len() as u64;
    }
    match outcome {
        Ok(()) => Ok(target),
        Err(error) => {
            // Half a batch must not stay: it is written again as a whole.
            let _ = target.file.set_len(before);
            Err(error)
        }
    }
}

/// Opens the file; what was written to it after the checkpoint is cut off, for it is sent again.
fn open(path: &Path, known: Option<&SinkCheckpoint>) -> io::Result<Target> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let metadata = file.metadata()?;
    let mut state = SinkCheckpoint { device: metadata.dev(), inode: metadata.ino(), length: metadata.len() };
    if let Some(known) = known
        && (known.device, known.inode) == (state.device, state.inode)
        && known.length < state.length
    {
        tracing::info!(
            component = "logs",
            path = %path.display(),
            bytes = state.length - known.length,
            "cutting off what was not acknowledged before the last end; it is sent again"
        );
        file.set_len(known.length)?;
        state.length = known.length;
    }
    Ok(Target { file, state })
}
