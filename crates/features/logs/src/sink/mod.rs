//! Sinks: what they share is how pieces become batches.

mod file;
mod http;
mod stdout;

pub(crate) use file::{FileSink, SinkLength, Written, sync};
pub(crate) use http::HttpSink;
pub(crate) use stdout::StdoutSink;

use std::time::Duration;

use outrigger_config::Batch as BatchConfig;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::SinkMetrics;
use crate::problems::Problems;
use crate::queue::{Piece, Pieces};

/// The first and the longest wait before a batch is sent again.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));

/// What every sink has.
pub(crate) struct SinkParts {
    /// `sink NAME`, for problems and logs.
    pub(crate) owner: String,
    pub(crate) batches: Batches,
    pub(crate) metrics: SinkMetrics,
    pub(crate) problems: Problems,
    /// The stop has come: what fails is tried again soon, or never.
    pub(crate) hurry: CancellationToken,
    /// End at once, acknowledging nothing more.
    pub(crate) abort: CancellationToken,
}

/// The longest wait for another try during the stop.
const HURRY: Duration = Duration::from_millis(250);

impl SinkParts {
    /// Acknowledges a batch that has arrived.
    pub(crate) fn acknowledge(&self, batch: Vec<Piece>) {
        self.acknowledge_without(batch, 0);
    }

    /// Acknowledges a batch of which some events were given up.
    pub(crate) fn acknowledge_without(&self, batch: Vec<Piece>, rejected: usize) {
        let events: usize = batch.iter().map(Piece::len).sum();
        self.metrics.acknowledged.add(events.saturating_sub(rejected) as u64);
        batch.into_iter().for_each(Piece::acknowledge);
        self.problems.mended(&self.owner);
    }

    /// Waits before another try; false when the sink is to end.
    pub(crate) async fn pause(&self, wait: Duration) -> bool {
        let begun = Instant::now();
        let hurried = async {
            self.hurry.cancelled().await;
            tokio::time::sleep_until((Instant::now() + HURRY).min(begun + wait)).await;
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = hurried => true,
            () = self.abort.cancelled() => false,
        }
    }
}

/// A wish that the checkpoint be written; answered when it was tried.
pub(crate) type PersistRequest = oneshot::Sender<()>;

/// Asks for a checkpoint.
#[derive(Clone)]
pub(crate) struct Persist(mpsc::Sender<PersistRequest>);

impl Persist {
    /// How long a sink waits for the checkpoint: lines are worth more than their being there only once.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub(crate) fn channel() -> (Self, mpsc::Receiver<PersistRequest>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// Waits until what is known now stands in the checkpoint.
    pub(crate) async fn now(&self) {
        let (sender, written) = oneshot::channel();
        let asking = async {
            if self.0.send(sender).await.is_ok() {
                let _ = written.await;
            }
        };
        let _ = tokio::time::timeout(Self::PATIENCE, asking).await;
    }
}

/// Gathers pieces into batches.
pub(crate) struct Batches {
    pieces: Pieces,
    /// A piece that did not fit the batch before.
    held: Option<Piece>,
    max_events: usize,
    max_bytes: usize,
    timeout: Duration,
}

impl Batches {
    pub(crate) fn new(pieces: Pieces, config: &BatchConfig) -> Self {
        Self {
            pieces,
            held: None,
            max_events: config.max_events as usize,
            max_bytes: config.max_bytes.as_usize(),
            timeout: config.timeout.into(),
        }
    }

    /// The next batch; `None` when all sources have ended and everything was given.
    pub(crate) async fn next(&mut self) -> Option<Vec<Piece>> {
        let first = match self.held.take() {
            Some(piece) => piece,
            None => self.pieces.recv().await?,
        };
        let until = Instant::now() + self.timeout;
        let (mut events, mut bytes) = (first.len(), first.data.len());
        let mut batch = vec![first];
        while events < self.max_events && bytes < self.max_bytes {
            let Ok(Some(piece)) = tokio::time::timeout_at(until, self.pieces.recv()).await else { break };
            if events + piece.len() > self.max_events || bytes + piece.data.len() > self.max_bytes {
                self.held = Some(piece);
                break;
            }
            events += piece.len();
            bytes += piece.data.len();
            batch.push(piece);
        }
        Some(batch)
    }
}
