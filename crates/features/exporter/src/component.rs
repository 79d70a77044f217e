//! The exporter's life: its sockets, followed through reloads.
//!
//! In: section `metrics` of each config. Out: a scrape server and a StatsD receiver that
//! match it. Promise: one task owns both; what a reload leaves unchanged is not touched;
//! an address that cannot be bound leaves the old one serving, says so, and is tried
//! again; at the stop, every datagram that has arrived is counted before the end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_config::{Config, Metrics, Statsd};
use outrigger_http::Resolver;
use outrigger_runtime::{Backoff, BoxError, BoxFuture, Component, Context, SocketError, StopPhase};
use outrigger_telemetry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::merge::Targets;
use crate::scrape;
use crate::statsd::{Receiver, Series};

/// How often StatsD series that nobody sends any more are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// After a failed `accept` (no file descriptors left), the wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The component `metrics`.
pub struct MetricsComponent {
    resolver: Resolver,
    /// What StatsD has told so far; it outlives a failed run.
    series: Mutex<Option<Arc<Mutex<Series>>>>,
}

impl MetricsComponent {
    /// A component that is not running yet.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, series: Mutex::default() }
    }

    fn series(&self, registry: &Registry) -> Arc<Mutex<Series>> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(series.get_or_insert_with(|| Arc::new(Mutex::new(Series::new(registry)))))
    }
}

impl Component for MetricsComponent {
    fn name(&self) -> &'static str {
        "metrics"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Metrics
    }

    fn enabled(&self, config: &Config) -> bool {
        config.metrics.is_some()
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        let series = self.series(&ctx.registry);
        Box::pin(async move {
            let mut exporter = Exporter::bind(ctx, series, self.resolver.clone())?;
            exporter.serve().await;
            exporter.stop().await;
            Ok(())
        })
    }
}

/// One run of the component.
struct Exporter {
    ctx: Context,
    /// The address asked for, and the socket; `None` only when a reload left no way back.
    scrapes: Option<(SocketAddr, TcpListener)>,
    /// The application's own metrics, asked for at each scrape.
    targets: Arc<Targets>,
    resolver: Resolver,
    connections: JoinSet<()>,
    statsd: Option<Receiver>,
    series: Arc<Mutex<Series>>,
    /// When to try again what a reload could not apply.
    retry: Option<Instant>,
    backoff: Backoff,
}

impl Exporter {
    fn bind(ctx: Context, series: Arc<Mutex<Series>>, resolver: Resolver) -> Result<Self, BoxError> {
        let config = ctx.config.borrow().metrics.clone().unwrap_or_default();
        let scrapes = Some(bind_scrapes(&ctx, config.listen)?);
        let statsd = config.statsd.as_ref().map(|statsd| Receiver::bind(&ctx, statsd)).transpose()?;
        let registry = ctx.config.borrow().telemetry.registry.clone();
        if let (Some(receiver), Some(config)) = (&statsd, &config.statsd) {
            let mut series = lock(&series);
            series.configure(config, &registry);
            series.watch_drops(receiver.inode());
        }
        ctx.status.ready();
        let backoff = ctx.backoff.start();
        let targets = Arc::new(Targets::new(&config.scrape, &ctx.registry, &resolver));
        Ok(Self { ctx, scrapes, targets, resolver, connections: JoinSet::new(), statsd, series, retry: None, backoff })
    }

    /// Serves until the stop is requested.
    async fn serve(&mut self) {
        let stop = self.ctx.stop.clone();
        let mut sweep = tokio::time::interval(SWEEP);
        let mut accept_again = Instant::now();
        // Whoever stops us may drop the config's sender first.
        let mut follow_config = true;
        self.ctx.config.mark_unchanged();
        loop {
            let may_accept = self.connections.len() < scrape::MAX_CONNECTIONS;
            let accept = async {
                tokio::time::sleep_until(accept_again).await;
                match &self.scrapes {
                    Some((_, listener)) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.requested() => return,
                changed = self.ctx.config.changed(), if follow_config => {
                    follow_config = changed.is_ok();
                    self.backoff.reset();
                    self.reconcile();
                }
                () = sleep_until(self.retry) => self.reconcile(),
                accepted = accept, if may_accept => match accepted {
                    Ok((stream, _)) => self.serve_scrapes(stream),
                    Err(error) => {
                        tracing::warn!(component = "metrics", %error, "cannot accept a connection");
                        accept_again = Instant::now() + ACCEPT_PAUSE;
                    }
                },
                Some(_) = self.connections.join_next() => {}
                () = readable(self.statsd.as_ref()) => {
                    if let Some(statsd) = &mut self.statsd {
                        statsd.receive(&mut lock(&self.series));
                    }
                    // A flood of datagrams must not keep scrapes waiting.
                    tokio::task::yield_now().await;
                }
                _ = sweep.tick() => lock(&self.series).sweep(),
            }
        }
    }

    /// Makes the sockets match the config; keeps the old one where a new one cannot be had, and tries again later.
    fn reconcile(&mut self) {
        let config = Arc::clone(&self.ctx.config.borrow_and_update());
        let metrics = config.metrics.clone().unwrap_or_default();
        if !self.targets.is_of(&metrics.scrape) {
            self.targets = Arc::new(Targets::new(&metrics.scrape, &self.ctx.registry, &self.resolver));
        }
        let problems: Vec<String> = [self.reconcile_scrapes(&metrics), self.reconcile_statsd(&metrics, &config)]
            .into_iter()
            .filter_map(|result| result.err().map(|error| error.to_string()))
            .collect();
        if problems.is_empty() {
            self.retry = None;
            self.ctx.status.ready();
        } else {
            self.retry = Some(Instant::now() + self.backoff.next());
            self.ctx.status.degraded(problems.join("; "));
        }
    }

    fn reconcile_scrapes(&mut self, metrics: &Metrics) -> Result<(), SocketError> {
        let wanted = metrics.listen;
        let old = self.scrapes.as_ref().map(|(address, _)| *address);
        if old == Some(wanted) {
            return Ok(());
        }
        let mut fresh = bind_scrapes(&self.ctx, wanted);
        if in_our_own_way(&fresh, old, wanted) {
            self.close_scrapes();
            fresh = bind_scrapes(&self.ctx, wanted);
            if let (Err(_), Some(old)) = (&fresh, old) {
                self.scrapes = bind_scrapes(&self.ctx, old).ok();
            }
        }
        let fresh = fresh?;
        self.close_scrapes();
        self.scrapes = Some(fresh);
        Ok(())
    }

    /// Stops listening. Connections that are open stay open; those not yet accepted would be reset, so they are taken.
    fn close_scrapes(&mut self) {
        let Some((_, listener)) = self.scrapes.take() else { return };
        let Ok(listener) = listener.into_std() else { return };
        let waiting = std::iter::from_fn(|| listener.accept().ok()).take(scrape::MAX_CONNECTIONS);
        for (stream, _) in waiting {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                self.serve_scrapes(stream);
            }
        }
    }

    fn serve_scrapes(&mut self, stream: TcpStream) {
        self.connections.spawn(scrape::serve(
            stream,
            self.ctx.registry.clone(),
            Arc::clone(&self.targets),
            self.ctx.stop.clone(),
        ));
    }

    fn reconcile_statsd(&mut self, metrics: &Metrics, config: &Config) -> Result<(), SocketError> {
        let Some(wanted) = &metrics.statsd else {
            if self.statsd.take().is_some() {
                let mut series = lock(&self.series);
                series.watch_drops(None);
                series.forget();
            }
            return Ok(());
        };
        let old = self.statsd.as_ref().map(Receiver::address);
        if let Some(current) = &mut self.statsd
            && old == Some(wanted.listen)
        {
            current.resize(wanted.receive_buffer);
        } else {
            let mut fresh = Receiver::bind(&self.ctx, wanted);
            if in_our_own_way(&fresh, old, wanted.listen) {
                self.drain();
                fresh = Receiver::bind(&self.ctx, wanted);
                if let (Err(_), Some(old)) = (&fresh, old) {
                    let former = Statsd { listen: old, ..wanted.clone() };
                    self.listen(Receiver::bind(&self.ctx, &former).ok());
                }
            }
            let fresh = fresh?;
            self.drain();
            self.listen(Some(fresh));
        }
        lock(&self.series).configure(wanted, &config.telemetry.registry);
        Ok(())
    }

    fn listen(&mut self, statsd: Option<Receiver>) {
        lock(&self.series).watch_drops(statsd.as_ref().and_then(Receiver::inode));
        self.statsd = statsd;
    }

    /// Takes what has arrived already, and closes the socket.
    fn drain(&mut self) {
        if let Some(statsd) = self.statsd.take() {
            statsd.drain(&mut lock(&self.series));
        }
    }

    /// Counts what has arrived, then lets scrapes that are being answered end.
    async fn stop(mut self) {
        self.drain();
        let deadline = self.ctx.stop.deadline();
        let all = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            tracing::warn!(component = "metrics", "scrapes still open at the stop's deadline were cut off");
        }
    }
}

/// Whether a new address of the same port (`127.0.0.1:8125`, then `0.0.0.0:8125`) is taken by the old one.
fn in_our_own_way<T>(fresh: &Result<T, SocketError>, old: Option<SocketAddr>, wanted: SocketAddr) -> bool {
    matches!(fresh, Err(SocketError::InUse { .. })) && old.is_some_and(|old| old.port() == wanted.port())
}

fn bind_scrapes(ctx: &Context, address: SocketAddr) -> Result<(SocketAddr, TcpListener), SocketError> {
    let listener = ctx.sockets.listen_tcp("metrics", address)?;
    let listener = TcpListener::from_std(listener).map_err(|source| SocketError::Other {
        owner: "metrics".to_owned(),
        address: address.to_string(),
        source,
    })?;
    tracing::info!(component = "metrics", %address, "serving /metrics");
    Ok((address, listener))
}

/// The lock is held by one thread only, and never across an `.await`; after a panic the series are still whole.
fn lock(series: &Mutex<Series>) -> std::sync::MutexGuard<'_, Series> {
    series.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn readable(receiver: Option<&Receiver>) {
    match receiver {
        Some(receiver) => receiver.readable().await,
        None => std::future::pending().await,
    }
}
