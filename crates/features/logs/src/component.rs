//! The logs pillar as a component of the runtime.
//!
//! In: the `logs` section. Out: sources and sinks that run, and a checkpoint that follows
//! them. Promise: a reload that changes the section rebuilds from the checkpoint, without
//! loss and without repetition in file sinks; at the stop every file is read to its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_config::{Config, Logs};
use outrigger_http::Resolver;
use outrigger_runtime::{BoxError, BoxFuture, Component, Context, StopPhase};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Checkpoint, FileCheckpoint, StateDirectory};
use crate::error::Error;
use crate::graph::{self, Path};
use crate::metrics::Metrics;
use crate::problems::Problems;
use crate::queue::{Queue, TrackedFile};
use crate::sink::{Batches, FileSink, HttpSink, SinkLength, SinkParts, StdoutSink};
use crate::source::{Source, SourceStop, TrackedFiles};

/// How often the checkpoint is written while lines flow.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);
/// A graph that is rebuilt gets so long to deliver what it holds.
const REBUILD_WITHIN: Duration = Duration::from_secs(5);
/// Left of a stop's time for the last checkpoint.
const LAST_CHECKPOINT: Duration = Duration::from_millis(200);

/// The logs pillar.
pub struct LogsComponent {
    resolver: Resolver,
}

impl LogsComponent {
    /// The pillar; `resolver` finds receivers of HTTP sinks.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }
}

impl Component for LogsComponent {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Logs
    }

    fn enabled(&self, config: &Config) -> bool {
        config.logs.is_some()
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.forward(ctx).await?) })
    }
}

/// How a graph's life ended.
enum End {
    Stop,
    Changed(Option<Logs>),
}

impl LogsComponent {
    async fn forward(&self, ctx: Context) -> Result<(), Error> {
        let mut config = ctx.config.clone();
        let mut logs = config.borrow_and_update().logs.clone();
        let metrics = Metrics::new(&ctx.registry);
        let problems = Problems::new(ctx.status.clone());
        while let Some(section) = logs.take() {
            let state = StateDirectory::open(&section.state_directory)?;
            let mut graph = Graph::build(&section, state, &metrics, &problems, &self.resolver)?;
            problems.clear();
            let end = loop {
                tokio::select! {
                    () = ctx.stop.requested() => break End::Stop,
                    outcome = graph.work() => return Err(outcome),
                    changed = config.changed() => {
                        let new = config.borrow_and_update().logs.clone();
                        if changed.is_err() || new.as_ref() != Some(&section) {
                            break End::Changed(new);
                        }
                    }
                }
            };
            match end {
                End::Stop => {
                    let deadline = ctx.stop.deadline().checked_sub(LAST_CHECKPOINT).unwrap_or_else(Instant::now);
                    graph.finish(deadline).await;
                    return Ok(());
                }
                End::Changed(new) => {
                    tracing::info!(component = "logs", "the logs section changed, rebuilding from the checkpoint");
                    graph.pause(Instant::now() + REBUILD_WITHIN).await;
                    logs = new;
                }
            }
        }
        // Turned off by a reload: the runtime has asked for the stop, or is about to.
        ctx.stop.requested().await;
        Ok(())
    }
}

/// Sources and sinks that run, and what the checkpoint says of them.
struct Graph {
    sources: JoinSet<()>,
    sinks: JoinSet<()>,
    source_stop: SourceStop,
    sink_abort: CancellationToken,
    marks: Marks,
}

/// Everything a checkpoint is made of.
struct Marks {
    state: Arc<StateDirectory>,
    sources: Vec<(String, Vec<Path>, TrackedFiles)>,
    sinks: Vec<(String, PathBuf, SinkLength)>,
    saved: Option<Checkpoint>,
    metrics: Metrics,
    problems: Problems,
}

impl Graph {
    fn build(
        logs: &Logs,
        state: StateDirectory,
        metrics: &Metrics,
        problems: &Problems,
        resolver: &Resolver,
    ) -> Result<Self, Error> {
        let checkpoint = state.load()?;
        let mut graph = Self {
            sources: JoinSet::new(),
            sinks: JoinSet::new(),
            source_stop: SourceStop::default(),
            sink_abort: CancellationToken::new(),
            marks: Marks {
                state: Arc::new(state),
                sources: Vec::new(),
                sinks: Vec::new(),
                saved: None,
                metrics: metrics.clone(),
                problems: problems.clone(),
            },
        };
        let queues: Vec<Queue> = logs.sinks.iter().map(|sink| graph.start_sink(sink, &checkpoint, resolver)).collect();
        for source in &logs.sources {
            let Some(file) = &source.file else { continue };
            let paths = graph::paths(logs, &source.name);
            let tracked = restore(checkpoint.sources.get(source.name.as_str()), &paths);
            graph.marks.sources.push((source.name.to_string(), paths.clone(), Arc::clone(&tracked)));
            let limits = |path: &Path| {
                let (events, bytes) = graph::piece_limits(&logs.sinks[path.sink]);
                (queues[path.sink].clone(), events, bytes)
            };
            let source = Source {
                name: source.name.to_string(),
                config: file.clone(),
                queues: paths.iter().map(limits).collect(),
                paths,
                tracked,
                first_start: !checkpoint.sources.contains_key(source.name.as_str()),
                metrics: metrics.source(&source.name),
                problems: problems.clone(),
                stop: graph.source_stop.clone(),
            };
            graph.sources.spawn(source.run());
        }
        Ok(graph)
    }

    fn start_sink(&mut self, sink: &outrigger_config::LogSink, checkpoint: &Checkpoint, resolver: &Resolver) -> Queue {
        let metrics = &self.marks.metrics;
        let (queue, pieces) = Queue::new(sink.buffer.as_usize(), metrics.buffer(&sink.name));
        let parts = SinkParts {
            owner: format!("sink `{}`", sink.name),
            batches: Batches::new(pieces, &sink.batch),
            metrics: metrics.sink(&sink.name),
            problems: self.marks.problems.clone(),
        };
        let abort = self.sink_abort.clone();
        if let Some(file) = &sink.file {
            let length = Arc::new(Mutex::new(checkpoint.sinks.get(sink.name.as_str()).cloned()));
            self.marks.sinks.push((sink.name.to_string(), file.path.clone(), Arc::clone(&length)));
            self.sinks.spawn(FileSink { parts, path: file.path.clone(), length, abort }.run());
        } else if let Some(http) = &sink.http {
            let (config, resolver) = (http.clone(), resolver.clone());
            self.sinks.spawn(HttpSink { parts, config, resolver, abort }.run());
        } else {
            self.sinks.spawn(StdoutSink { parts, abort }.run());
        }
        queue
    }

    /// Follows the marks with checkpoints; comes back only when a task has ended that should not.
    async fn work(&mut self) -> Error {
        let mut ticks = tokio::time::interval(CHECKPOINT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.marks.save().await,
                Some(ended) = self.sources.join_next() => return Error::Task(format!("a source: {ended:?}")),
                Some(ended) = self.sinks.join_next() => return Error::Task(format!("a sink: {ended:?}")),
            }
        }
    }

    /// Reads all files to their end, delivers everything, and writes the last checkpoint.
    async fn finish(mut self, deadline: Instant) {
        self.source_stop.finish.cancel();
        self.end(deadline).await;
    }

    /// Stops reading, delivers what was read, and writes the checkpoint.
    async fn pause(mut self, deadline: Instant) {
        self.source_stop.abort.cancel();
        self.end(deadline).await;
    }

    async fn end(&mut self, deadline: Instant) {
        // Sources end first; that closes the queues, and sinks end when theirs are empty.
        let delivered = async {
            while self.sources.join_next().await.is_some() {}
            while self.sinks.join_next().await.is_some() {}
        };
        if tokio::time::timeout_at(deadline, delivered).await.is_err() {
            self.source_stop.abort.cancel();
            self.sink_abort.cancel();
            tracing::warn!(
                component = "logs",
                "not everything was delivered in time; the rest is sent after the next start"
            );
            while self.sources.join_next().await.is_some() {}
            while self.sinks.join_next().await.is_some() {}
        }
        self.marks.save().await;
    }
}

impl Marks {
    /// Writes a checkpoint when something changed.
    async fn save(&mut self) {
        let now = self.take();
        if self.saved.as_ref() == Some(&now) {
            return;
        }
        let (state, checkpoint) = (Arc::clone(&self.state), now.clone());
        let sinks: Vec<PathBuf> = self.sinks.iter().map(|(_, path, _)| path.clone()).collect();
        let saving = tokio::task::spawn_blocking(move || {
            // What the checkpoint says was written must be on disk before it says so.
            for path in sinks {
                if let Ok(file) = File::open(path) {
                    file.sync_data()?;
                }
            }
            state.save(&checkpoint)
        });
        let outcome = saving.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let owner = "checkpoint";
        match outcome {
            Ok(()) => {
                self.metrics.checkpoints.with(&["ok"]).inc();
                self.problems.mended(owner);
                self.saved = Some(now);
            }
            Err(error) => {
                self.metrics.checkpoints.with(&["failed"]).inc();
                self.problems
                    .tell(owner, format!("cannot be written: {error}; lines may be sent again after a restart"));
            }
        }
    }

    fn take(&self) -> Checkpoint {
        let mut checkpoint = Checkpoint::default();
        for (name, paths, tracked) in &self.sources {
            let files = tracked.lock().unwrap_or_else(PoisonError::into_inner);
            let files = files.iter().map(|file| FileCheckpoint {
                identity: file.identity(),
                acknowledged: paths
                    .iter()
                    .zip(&file.acknowledged)
                    .map(|(path, mark)| (path.name.clone(), mark.load(std::sync::atomic::Ordering::Relaxed)))
                    .collect(),
            });
            checkpoint.sources.insert(name.clone(), files.collect());
        }
        for (name, _, length) in &self.sinks {
            if let Some(length) = length.lock().unwrap_or_else(PoisonError::into_inner).clone() {
                checkpoint.sinks.insert(name.clone(), length);
            }
        }
        checkpoint
    }
}

/// The files of a checkpoint, with marks for the paths there are now. A path that is new begins where reading
/// does: it gets what is still to come, not what others had long ago.
fn restore(files: Option<&Vec<FileCheckpoint>>, paths: &[Path]) -> TrackedFiles {
    let restored = files.into_iter().flatten().map(|file| {
        let lowest = file.acknowledged.values().copied().min().unwrap_or(0);
        let acknowledged: &BTreeMap<String, u64> = &file.acknowledged;
        let marks = paths.iter().map(|path| acknowledged.get(&path.name).copied().unwrap_or(lowest));
        TrackedFile::new(file.identity, marks)
    });
    Arc::new(Mutex::new(restored.collect()))
}
