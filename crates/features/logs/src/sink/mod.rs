//! Sinks: what they share is how pieces become batches.

mod file;
mod http;
mod stdout;

pub(crate) use file::{FileSink, SinkLength};
pub(crate) use http::HttpSink;
pub(crate) use stdout::StdoutSink;

use std::time::Duration;

use outrigger_config::Batch as BatchConfig;
use tokio::time::Instant;

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
}

impl SinkParts {
    /// Acknowledges a batch that has arrived.
    pub(crate) fn acknowledge(&self, batch: Vec<Piece>) {
        for piece in batch {
            self.metrics.acknowledged.add(piece.len() as u64);
            piece.acknowledge();
        }
        self.problems.mended(&self.owner);
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
