//! Writes JSON lines to standard output.
//!
//! Promise: a reader that does not read holds back this sink alone, not the process.

use std::io::{self, Write};

use outrigger_runtime::Backoff;
use tokio_util::sync::CancellationToken;

use super::{RETRY, SinkParts};

/// A standard output sink before it runs.
pub(crate) struct StdoutSink {
    pub(crate) parts: SinkParts,
    pub(crate) abort: CancellationToken,
}

impl StdoutSink {
    /// Takes batches until the sources have ended.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Some(mut batch) = self.parts.batches.next().await {
            // What a failed write has already put out is not put out again.
            let mut done = 0;
            loop {
                let writing = tokio::task::spawn_blocking(move || {
                    let mut stdout = io::stdout().lock();
                    let mut outcome = Ok(());
                    for piece in &batch[done..] {
                        outcome = stdout.write_all(piece.data.as_bytes()).and_then(|()| stdout.flush());
                        if outcome.is_err() {
                            break;
                        }
                        done += 1;
                    }
                    (outcome, batch, done)
                });
                let finished = tokio::select! {
                    finished = writing => finished,
                    () = self.abort.cancelled() => return,
                };
                let Ok((outcome, back, so_far)) = finished else { return };
                (batch, done) = (back, so_far);
                match outcome {
                    Ok(()) => {
                        self.parts.acknowledge(batch);
                        backoff.reset();
                        break;
                    }
                    Err(error) => {
                        self.parts.metrics.retries.inc();
                        self.parts
                            .problems
                            .tell(&self.parts.owner, format!("cannot write to standard output: {error}"));
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
