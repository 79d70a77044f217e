//! The life of the pillar: when spans are taken, when they are sent, what is tried again.

use std::sync::Arc;
use std::time::Duration;

use outrigger_config::{Config, Tracing};
use outrigger_http::Resolver;
use outrigger_runtime::{Backoff, BoxError, BoxFuture, Component, Context, StopPhase};
use outrigger_telemetry::trace::{Drained, SpanQueue};
use outrigger_telemetry::{Counter, CounterFamily, Gauge, Registry};
use tokio::time::Instant;

use crate::exporter::{Exporter, Failure};

/// A batch that the collector does not take is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Waits between tries, unless the collector says how long.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How often it is looked whether the spans are many, when their time has not come.
const LOOK: Duration = Duration::from_millis(100);
/// A batch is sent before its time when it has so many bytes.
const MANY: usize = 64 << 10;

/// The component `traces`.
pub struct TracesComponent {
    queue: SpanQueue,
    resolver: Resolver,
}

impl TracesComponent {
    /// Sends what comes into `queue`; `resolver` finds the collector.
    pub fn new(queue: SpanQueue, resolver: Resolver) -> Self {
        Self { queue, resolver }
    }
}

impl Component for TracesComponent {
    fn name(&self) -> &'static str {
        "traces"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Metrics
    }

    fn enabled(&self, config: &Config) -> bool {
        config.telemetry.tracing.is_some()
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            Sending::new(ctx, self.queue.clone(), self.resolver.clone()).run().await;
            Ok(())
        })
    }
}

/// What is told of spans.
struct Metrics {
    sent: Counter,
    dropped: CounterFamily,
    waiting: Gauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let sent = "Spans that the collector has taken.";
        let dropped =
            "Spans that were lost: no room while the collector was slow or away, refused by it, or not taken in time.";
        let waiting = "Memory of spans that wait to be sent (`telemetry.tracing.buffer`).";
        Self {
            sent: registry.counter("outrigger_trace_spans_sent_total", sent, &[]).with(&[]),
            dropped: registry.counter("outrigger_trace_spans_dropped_total", dropped, &["reason"]),
            waiting: registry.gauge("outrigger_trace_buffer_bytes", waiting, &[]).with(&[]),
        }
    }

    fn dropped(&self, reason: &str, count: u64) {
        if count > 0 {
            self.dropped.with(&[reason]).add(count);
        }
    }
}

/// A batch under way to the collector.
struct Batch {
    drained: Drained,
    since: Instant,
    /// When it is tried again.
    again: Instant,
}

struct Sending {
    ctx: Context,
    queue: SpanQueue,
    resolver: Resolver,
    metrics: Metrics,
    config: Option<Arc<Tracing>>,
    exporter: Option<Exporter>,
    backoff: Backoff,
}

impl Sending {
    fn new(ctx: Context, queue: SpanQueue, resolver: Resolver) -> Self {
        let metrics = Metrics::new(&ctx.registry);
        Self { ctx, queue, resolver, metrics, config: None, exporter: None, backoff: Backoff::new(RETRY.0, RETRY.1) }
    }

    /// Sends until the stop, and then what is left.
    async fn run(&mut self) {
        let stop = self.ctx.stop.clone();
        self.reconfigure();
        self.ctx.status.ready();
        let mut batch: Option<Batch> = None;
        let mut due = Instant::now();
        // Whoever stops us may drop the config's sender first.
        let mut follow = true;
        loop {
            let look = tokio::time::sleep(LOOK);
            tokio::select! {
                () = stop.requested() => break,
                changed = self.ctx.config.changed(), if follow => {
                    follow = changed.is_ok();
                    self.reconfigure();
                }
                () = look => {}
            }
            let now = Instant::now();
            let waiting = self.queue.waiting();
            self.metrics.waiting.set(waiting as f64);
            self.metrics.dropped("buffer_full", self.queue.take_dropped());
            if batch.is_none() && (now >= due || waiting >= MANY) {
                batch = self.take(now);
                if batch.is_none() {
                    due = now + self.interval();
                }
            }
            if let Some(ready) = batch.take_if(|batch| now >= batch.again) {
                // A stop does not wait for a collector that does not answer.
                batch = tokio::select! {
                    left = self.send(ready) => left,
                    () = stop.overdue() => None,
                };
            }
        }
        self.queue.close();
        let last = async {
            let mut next = batch;
            while let Some(batch) = next.take().or_else(|| self.take(Instant::now())) {
                tokio::time::sleep_until(batch.again).await;
                next = self.send(batch).await;
            }
        };
        let lost = tokio::select! {
            () = last => false,
            () = stop.overdue() => true,
        };
        if lost {
            tracing::warn!(component = "traces", "the collector did not take the last spans in time; they are lost");
        }
    }

    fn interval(&self) -> Duration {
        self.config.as_ref().map_or(LOOK, |config| config.interval.into())
    }

    fn take(&self, now: Instant) -> Option<Batch> {
        self.queue.drain().map(|drained| Batch { drained, since: now, again: now })
    }

    /// Follows the config. A batch under way goes to the new collector.
    fn reconfigure(&mut self) {
        let fresh = self.ctx.config.borrow_and_update().telemetry.tracing.clone();
        if fresh.as_ref() == self.config.as_deref() {
            return;
        }
        self.exporter = None;
        self.config = fresh.map(Arc::new);
        match &self.config {
            Some(config) => self.queue.open(config.buffer.as_usize()),
            None => self.queue.close(),
        }
    }

    /// Sends a batch; gives it back when it is to be tried again.
    async fn send(&mut self, mut batch: Batch) -> Option<Batch> {
        let failure = match self.export(&batch.drained).await {
            Ok(refused) => {
                let count = batch.drained.count;
                self.metrics.sent.add(count.saturating_sub(refused.count));
                self.metrics.dropped("refused", refused.count.min(count));
                if refused.count > 0 {
                    tracing::warn!(
                        component = "traces",
                        refused.count,
                        reason = refused.message,
                        "the collector refused spans"
                    );
                }
                self.backoff.reset();
                self.ctx.status.ready();
                return None;
            }
            Err(failure) => failure,
        };
        self.ctx.status.degraded(failure.to_string());
        let now = Instant::now();
        let reason = match failure {
            Failure::Refused(_) => "refused",
            Failure::Later { .. } if now.duration_since(batch.since) >= PATIENCE => "not_taken",
            Failure::Later { wait, .. } => {
                let wait = self.backoff.next().max(wait.unwrap_or_default().min(PATIENCE));
                batch.again = now + wait;
                return Some(batch);
            }
        };
        self.metrics.dropped(reason, batch.drained.count);
        tracing::warn!(component = "traces", spans = batch.drained.count, reason, "spans dropped");
        None
    }

    async fn export(&mut self, spans: &Drained) -> Result<crate::exporter::Refused, Failure> {
        let Some(config) = self.config.clone() else {
            return Err(Failure::Refused("tracing was turned off".to_owned()));
        };
        let exporter = match self.exporter.take() {
            Some(exporter) => exporter,
            // The file of authorities is read again whenever a connection could not be trusted.
            None => Exporter::new(&config, &self.resolver).await?,
        };
        let outcome = exporter.export(spans).await;
        if !matches!(&outcome, Err(Failure::Later { distrusted: true, .. })) {
            self.exporter = Some(exporter);
        }
        outcome
    }
}
