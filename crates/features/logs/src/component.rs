//! The logs pillar as a component of the runtime.
//!
//! In: the `logs` section. Out: sources and sinks that run, and a checkpoint that follows
//! them. Promise: a reload that changes the section rebuilds from the checkpoint, without
//! loss and without repetition in file sinks; at the stop every file is read to its end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_config::{Config, Logs};
use outrigger_http::Resolver;
use outrigger_runtime::{BoxError, BoxFuture, Component, Context, LineQueue, StopPhase};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{Checkpoint, FileCheckpoint, StateDirectory};
use crate::error::Error;
use crate::feed::{self, Feed};
use crate::graph::{self, Path};
use crate::metrics::Metrics;
use crate::problems::Problems;
use crate::queue::{Queue, TrackedFile};
use crate::sink::{
    Batches, FileSink, HttpSink, Persist, PersistRequest, SinkLength, SinkParts, StdoutSink, Written, sync,
};
use crate::source::{Eyes, Memory, Source, SourceStop, Tracked};
use crate::told::Shown;

/// How often the checkpoint is written while lines flow.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(200);
/// After a checkpoint that could not be written, the wait before the next.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(2);
/// Sources that are no longer in the config but remembered, should they come back.
const MOST_KEPT: usize = 64;
/// A graph that is rebuilt gets so long to deliver what it holds.
const REBUILD_WITHIN: Duration = Duration::from_secs(5);
/// Left of a stop's time for the last checkpoint.
const LAST_CHECKPOINT: Duration = Duration::from_millis(200);

/// The logs pillar.
pub struct LogsComponent {
    resolver: Resolver,
    /// What the access log gives.
    lines: LineQueue,
}

impl LogsComponent {
    /// The pillar; `resolver` finds receivers of HTTP sinks, and `lines` come from the access log.
    pub fn new(resolver: Resolver, lines: LineQueue) -> Self {
        Self { resolver, lines }
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

    /// A folder for checkpoints that cannot be used refuses the reload, not the lines.
    fn check(&self, old: Option<&Config>, new: &Config) -> Result<(), BoxError> {
        let folder = |config: &Config| config.logs.as_ref().map(|logs| logs.state_directory.clone());
        match folder(new) {
            Some(fresh) if old.and_then(folder).is_some_and(|former| former != fresh) => {
                StateDirectory::open(&fresh)?;
                Ok(())
            }
            _ => Ok(()),
        }
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
        let shown = Shown::default();
        let _route = shown.register(&ctx.admin);
        // What the graph before knew is newer than any file, and goes along to another folder.
        let mut carried: Option<Checkpoint> = None;
        // Whoever stops us may drop the config's sender first.
        let mut follow = true;
        while let Some(section) = logs.take() {
            let state = StateDirectory::open(&section.state_directory)?;
            let checkpoint = carried.take().map_or_else(|| state.load(), Ok)?;
            problems.forget();
            let mut graph = Graph::build(&section, state, checkpoint, &metrics, &problems, self);
            let sources = graph.marks.sources.iter().map(|(name, _, tracked)| (name.clone(), Arc::clone(tracked)));
            let fed = (self.lines.clone(), graph.marks.fed.clone());
            shown.show(&section, &sources.collect::<Vec<_>>(), fed, &metrics, &problems);
            let tracked: Vec<_> = graph.marks.sources.iter().map(|(_, _, tracked)| Arc::clone(tracked)).collect();
            let mut settled = false;
            let end = {
                let work = graph.work();
                tokio::pin!(work);
                loop {
                    tokio::select! {
                        () = ctx.stop.requested() => break End::Stop,
                        outcome = &mut work => return Err(outcome),
                        // Not ready before every source knows what is there: what appears later is the application's.
                        () = all_looked(tracked.clone()), if !settled => {
                            settled = true;
                            problems.settled();
                        }
                        changed = config.changed(), if follow => {
                            follow = changed.is_ok();
                            let new = config.borrow_and_update().logs.clone();
                            if follow && new.as_ref() != Some(&section) {
                                break End::Changed(new);
                            }
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
                    carried = Some(graph.pause(Instant::now() + REBUILD_WITHIN).await);
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
    /// Sinks that want a checkpoint before they go on.
    requests: mpsc::Receiver<PersistRequest>,
    persist: Persist,
    marks: Marks,
}

/// Everything a checkpoint is made of.
struct Marks {
    state: Arc<StateDirectory>,
    sources: Vec<(String, Vec<Path>, Arc<Tracked>)>,
    /// What stands for the lines of the access log, by source.
    fed: Vec<(String, Arc<TrackedFile>)>,
    /// Files of sources that are not in the config now.
    kept: BTreeMap<String, Vec<FileCheckpoint>>,
    sinks: Vec<(String, PathBuf, SinkLength)>,
    /// Told of everything that a checkpoint holds.
    changed: Arc<Notify>,
    saved: Option<Checkpoint>,
    /// Counts checkpoints, so that an old one never replaces a newer.
    turn: u64,
    metrics: Metrics,
    problems: Problems,
}

impl Graph {
    fn build(
        logs: &Logs,
        state: StateDirectory,
        checkpoint: Checkpoint,
        metrics: &Metrics,
        problems: &Problems,
        pillar: &LogsComponent,
    ) -> Self {
        let in_config = |name: &str| logs.sources.iter().any(|source| source.name.as_str() == name);
        let others = checkpoint.sources.iter().filter(|(name, _)| !in_config(name)).take(MOST_KEPT);
        let kept = others.map(|(name, files)| (name.clone(), files.clone())).collect();
        let (persist, requests) = Persist::channel();
        let mut graph = Self {
            sources: JoinSet::new(),
            sinks: JoinSet::new(),
            source_stop: SourceStop::default(),
            sink_abort: CancellationToken::new(),
            requests,
            persist,
            marks: Marks {
                state: Arc::new(state),
                sources: Vec::new(),
                fed: Vec::new(),
                kept,
                sinks: Vec::new(),
                changed: Arc::default(),
                saved: None,
                turn: 0,
                metrics: metrics.clone(),
                problems: problems.clone(),
            },
        };
        let queues: Vec<Queue> =
            logs.sinks.iter().map(|sink| graph.start_sink(sink, &checkpoint, &pillar.resolver)).collect();
        for source in &logs.sources {
            let paths = graph::paths(logs, &source.name);
            let limits = |path: &Path| {
                let (events, bytes) = graph::piece_limits(&logs.sinks[path.sink]);
                (queues[path.sink].clone(), events, bytes)
            };
            let Some(file) = &source.file else {
                let origin = feed::origin(paths.len(), &graph.marks.changed);
                graph.marks.fed.push((source.name.to_string(), Arc::clone(&origin)));
                let feed = Feed {
                    name: source.name.to_string(),
                    lines: pillar.lines.clone(),
                    queues: paths.iter().map(limits).collect(),
                    paths,
                    metrics: metrics.source(&source.name),
                    stop: graph.source_stop.clone(),
                    origin,
                };
                graph.sources.spawn(feed.run());
                continue;
            };
            let files = checkpoint.sources.get(source.name.as_str());
            let tracked = restore(files, &paths, &graph.marks.changed);
            let memory = match files {
                Some(_) => Memory::Kept,
                None if checkpoint.broken => Memory::Lost,
                None => Memory::FirstStart,
            };
            graph.marks.sources.push((source.name.to_string(), paths.clone(), Arc::clone(&tracked)));
            let source = Source {
                name: source.name.to_string(),
                config: file.clone(),
                queues: paths.iter().map(limits).collect(),
                paths,
                tracked,
                memory,
                metrics: metrics.source(&source.name),
                problems: problems.clone(),
                stop: graph.source_stop.clone(),
                changed: Arc::clone(&graph.marks.changed),
                eyes: Eyes::default(),
            };
            graph.sources.spawn(source.run());
        }
        graph
    }

    fn start_sink(&mut self, sink: &outrigger_config::LogSink, checkpoint: &Checkpoint, resolver: &Resolver) -> Queue {
        let metrics = &self.marks.metrics;
        let (queue, pieces) = Queue::new(sink.buffer.as_usize(), metrics.buffer(&sink.name));
        let parts = SinkParts {
            owner: format!("sink `{}`", sink.name),
            batches: Batches::new(pieces, &sink.batch),
            metrics: metrics.sink(&sink.name),
            problems: self.marks.problems.clone(),
            hurry: self.source_stop.finish.clone(),
            abort: self.sink_abort.clone(),
        };
        if let Some(file) = &sink.file {
            let length = checkpoint.sinks.get(sink.name.as_str()).cloned();
            let length = Arc::new(Mutex::new(Written { length, file: None }));
            self.marks.sinks.push((sink.name.to_string(), file.path.clone(), Arc::clone(&length)));
            self.sinks.spawn(FileSink { parts, path: file.path.clone(), length, persist: self.persist.clone() }.run());
        } else if let Some(http) = &sink.http {
            let (config, resolver) = (http.clone(), resolver.clone());
            self.sinks.spawn(HttpSink { parts, config, resolver }.run());
        } else {
            self.sinks.spawn(StdoutSink { parts }.run());
        }
        queue
    }

    /// Follows the marks with checkpoints; comes back only when a task has ended that should not.
    async fn work(&mut self) -> Error {
        let changed = Arc::clone(&self.marks.changed);
        let mut saved_at: Option<Instant> = None;
        let mut due: Option<Instant> = None;
        loop {
            let save = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed.notified(), if due.is_none() => {
                    due = Some(saved_at.map_or_else(Instant::now, |at| at + CHECKPOINT_EVERY));
                }
                () = save => {
                    due = (!self.marks.save().await).then(|| Instant::now() + CHECKPOINT_RETRY);
                    saved_at = Some(Instant::now());
                }
                Some(request) = self.requests.recv() => {
                    self.marks.save().await;
                    let _ = request.send(());
                }
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

    /// Stops reading, delivers what was read, and writes the checkpoint; gives it.
    async fn pause(mut self, deadline: Instant) -> Checkpoint {
        self.source_stop.abort.cancel();
        self.end(deadline).await;
        self.marks.take()
    }

    async fn end(&mut self, deadline: Instant) {
        if !self.ended_by(deadline).await {
            self.source_stop.abort.cancel();
            self.sink_abort.cancel();
            self.ended_by(Instant::now() + REBUILD_WITHIN).await;
            let unacknowledged_bytes = self.marks.lag();
            tracing::warn!(
                component = "logs",
                unacknowledged_bytes,
                "not everything was delivered in time; the rest is sent after the next start"
            );
        }
        self.marks.save().await;
    }

    /// Waits for the end of all tasks: sources end first, that closes the queues, and sinks end when theirs are empty.
    async fn ended_by(&mut self, deadline: Instant) -> bool {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return false,
                Some(request) = self.requests.recv() => {
                    self.marks.save().await;
                    let _ = request.send(());
                }
                Some(_) = self.sources.join_next() => {}
                Some(_) = self.sinks.join_next() => {}
                // `persist` is ours, too, so that requests never end.
                () = std::future::ready(()), if self.sources.is_empty() && self.sinks.is_empty() => return true,
            }
        }
    }
}

impl Marks {
    /// Writes a checkpoint when something changed. False when it could not be written.
    async fn save(&mut self) -> bool {
        let now = self.take();
        for (name, _, tracked) in &self.sources {
            let files = tracked.files.lock().unwrap_or_else(PoisonError::into_inner);
            self.metrics
                .source(name)
                .lag
                .set((files.iter().map(|file| file.lag()).sum::<u64>() + tracked.reserved()) as f64);
        }
        for (name, origin) in &self.fed {
            self.metrics.source(name).lag.set(origin.lag() as f64);
        }
        if self.saved.as_ref() == Some(&now) {
            return true;
        }
        self.turn += 1;
        let (state, checkpoint, turn) = (Arc::clone(&self.state), now.clone(), self.turn);
        let file_of = |length: &SinkLength| length.lock().unwrap_or_else(PoisonError::into_inner).file.clone();
        let files = self.sinks.iter().filter_map(|(_, path, length)| Some((path.clone(), file_of(length)?)));
        let files: Vec<_> = files.collect();
        let saving = tokio::task::spawn_blocking(move || {
            // What the checkpoint says was written must be on disk before it says so.
            for (path, file) in files {
                sync(&file).map_err(|error| {
                    std::io::Error::new(error.kind(), format!("cannot sync {}: {error}", path.display()))
                })?;
            }
            state.save(&checkpoint, turn)
        });
        let outcome = saving.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let owner = "checkpoint";
        match outcome {
            Ok(()) => {
                self.metrics.checkpoints.with(&["ok"]).inc();
                self.problems.mended(owner);
                self.saved = Some(now);
                true
            }
            Err(error) => {
                self.metrics.checkpoints.with(&["failed"]).inc();
                let path = self.state.path().display();
                let text = format!("cannot be written to {path}: {error}; lines may be sent again after a restart");
                self.problems.tell(owner, text);
                false
            }
        }
    }

    /// Bytes that not every sink has acknowledged.
    fn lag(&self) -> u64 {
        let of = |tracked: &Tracked| {
            let files = tracked.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.iter().map(|file| file.lag()).sum::<u64>() + tracked.reserved()
        };
        self.sources.iter().map(|(_, _, tracked)| of(tracked)).sum()
    }

    fn take(&self) -> Checkpoint {
        let mut checkpoint = Checkpoint::default();
        checkpoint.sources.clone_from(&self.kept);
        for (name, paths, tracked) in &self.sources {
            if !tracked.looked.load(std::sync::atomic::Ordering::Relaxed) {
                continue;
            }
            let files = tracked.files.lock().unwrap_or_else(PoisonError::into_inner);
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
            if let Some(length) = length.lock().unwrap_or_else(PoisonError::into_inner).length.clone() {
                checkpoint.sinks.insert(name.clone(), length);
            }
        }
        checkpoint
    }
}

async fn all_looked(sources: Vec<Arc<Tracked>>) {
    for source in sources {
        source.tried.cancelled().await;
    }
}

/// The files of a checkpoint, with marks for the paths there are now. A path that is new begins where reading
/// does: it gets what is still to come, not what others had long ago.
fn restore(files: Option<&Vec<FileCheckpoint>>, paths: &[Path], changed: &Arc<Notify>) -> Arc<Tracked> {
    let looked = files.is_some().into();
    let restored = files.into_iter().flatten().map(|file| {
        let lowest = file.acknowledged.values().copied().min().unwrap_or(0);
        let acknowledged: &BTreeMap<String, u64> = &file.acknowledged;
        let marks = paths.iter().map(|path| acknowledged.get(&path.name).copied().unwrap_or(lowest));
        TrackedFile::new(file.identity, marks, changed)
    });
    Arc::new(Tracked { files: Mutex::new(restored.collect()), looked, ..Tracked::default() })
}
