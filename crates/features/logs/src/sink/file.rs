//! Appends JSON lines to a file.
//!
//! Promise: a batch stands in the file whole or not at all, and, together with the
//! checkpoint that knows how long the file was, each line stands there once, whatever
//! moment the process was killed at. A renamed file is noticed and a new one begun.
//!
//! A write acknowledges: what a killed process has written, the kernel keeps. The file is
//! synced before each checkpoint that counts on it, so a crash of the machine costs nothing
//! but a repetition.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_runtime::Backoff;
use rustix::fs::OFlags;

use super::{Persist, RETRY, SinkParts};
use crate::checkpoint::SinkCheckpoint;
use crate::queue::Piece;

/// The file as far as it is acknowledged; shared with the checkpoint.
#[derive(Default)]
pub(crate) struct Written {
    /// How long it is with everything that was acknowledged.
    pub(crate) length: Option<SinkCheckpoint>,
    /// The file itself, which its name may no longer lead to.
    pub(crate) file: Option<Arc<File>>,
}

/// A handle on what is written.
pub(crate) type SinkLength = Arc<Mutex<Written>>;

/// A file sink before it runs.
pub(crate) struct FileSink {
    pub(crate) parts: SinkParts,
    pub(crate) path: PathBuf,
    pub(crate) length: SinkLength,
    pub(crate) persist: Persist,
}

impl FileSink {
    /// Takes batches until the sources have ended.
    pub(crate) async fn run(mut self) {
        let mut target = None;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(batch) = self.parts.batches.next().await {
            let mut batch = Arc::new(batch);
            loop {
                let outcome = match self.open(target.take()).await {
                    // A write that has begun is always awaited: after an abort nobody else may find it half done.
                    Ok(open) => {
                        let lines = Arc::clone(&batch);
                        blocking(move || append(open, &lines)).await
                    }
                    Err(error) => Err(error),
                };
                match outcome {
                    Ok(now) => {
                        self.know(&now);
                        target = Some(now);
                        // No await between the two: a checkpoint sees both or neither.
                        self.parts.acknowledge(std::mem::take(Arc::get_mut(&mut batch).expect("the write is over")));
                        backoff.reset();
                        break;
                    }
                    Err(error) => {
                        self.parts.metrics.retries.inc();
                        let reason = format!("cannot write {}: {error}", self.path.display());
                        self.parts.problems.tell(&self.parts.owner, reason);
                        if !self.parts.pause(backoff.next()).await {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The file, opened anew when another one has its name. A checkpoint knows of it before anything is written to it.
    async fn open(&self, target: Option<Target>) -> io::Result<Target> {
        let path = self.path.clone();
        let (known, former) = {
            let written = self.length.lock().unwrap_or_else(PoisonError::into_inner);
            (written.length.clone(), written.file.clone())
        };
        let (target, is_new) = blocking(move || {
            let still_there = |target: &Target| {
                let is = |now: fs::Metadata| (now.dev(), now.ino()) == (target.state.device, target.state.inode);
                fs::metadata(&path).is_ok_and(is)
            };
            match target.filter(still_there) {
                Some(target) => Ok((target, false)),
                None => {
                    // Checkpoints from here on sync the new file only.
                    former.map_or(Ok(()), |former| sync(&former))?;
                    Ok((open(&path, known.as_ref())?, true))
                }
            }
        })
        .await?;
        if is_new {
            self.know(&target);
            self.persist.now().await;
        }
        Ok(target)
    }

    fn know(&self, target: &Target) {
        let written = Written { length: Some(target.state.clone()), file: Some(Arc::clone(&target.file)) };
        *self.length.lock().unwrap_or_else(PoisonError::into_inner) = written;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Brings what was written to disk. A pipe or a terminal has no disk, which is no fault.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    match file.sync_data() {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
        outcome => outcome,
    }
}

/// The open file and how long it is.
struct Target {
    file: Arc<File>,
    state: SinkCheckpoint,
}

fn append(mut target: Target, batch: &[Piece]) -> io::Result<Target> {
    let before = target.state.length;
    let mut outcome = Ok(());
    for piece in batch {
        outcome = outcome.and_then(|()| (&*target.file).write_all(piece.data.as_bytes()));
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
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut file = OpenOptions::new().create(true).append(true).read(true).custom_flags(flags).open(path)?;
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
    let mut last = [b'\n'];
    if state.length > 0 && file.read_at(&mut last, state.length - 1)? == 1 && last != *b"\n" {
        // Somebody left a line unterminated; ours are not to be glued to it.
        file.write_all(b"\n")?;
        state.length += 1;
    }
    Ok(Target { file: Arc::new(file), state })
}
