//! The component `identity`: keeps the current snapshot fresh.
//!
//! In: section `identity`, changes of its files, what its agent tells, the passing of time. Out: snapshots for all
//! who hold [`Identities`]. Promise: a source that fails takes nothing away (the last good
//! identity stays, and the status says why it is old); it is asked again on the next change
//! of a file and after a wait; an expired certificate is never called ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_config::{Config, Identity, SpiffePattern};
use outrigger_runtime::{Backoff, BoxError, BoxFuture, Component, Context, FileWatcher, Status, StopPhase};
use outrigger_telemetry::{CounterFamily, GaugeFamily, Registry};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::enrolment::Enrolment;
use crate::error::{Error, chain, date, span};
use crate::handle::Identities;
use crate::material::Material;
use crate::own::OwnAuthority;
use crate::snapshot::Snapshot;
use crate::source::{Authorities, Found, Source};
use crate::workload::WorkloadApi;

/// By then most starts are over.
const START_IS_OVER: Duration = Duration::from_millis(50);

/// Waits between tries of a source that fails, beside changes of its files.
const RETRY_FIRST: Duration = Duration::from_millis(400);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// Full jitter may draw nothing at all; a file that is being written deserves a moment.
const RETRY_LEAST: Duration = Duration::from_millis(50);
/// The clock is looked at least so often, for it may be set, or stand still while the machine sleeps.
const LONGEST_NAP: Duration = Duration::from_secs(30);
/// The end of an SVID is announced a fifth of its lifetime ahead, but no earlier than this.
const EARLIEST_WARNING: Duration = Duration::from_secs(7 * 86400);

/// Keeps the workload's identity fresh.
pub struct IdentityComponent {
    current: watch::Sender<Option<Arc<Snapshot>>>,
    generation: AtomicU64,
    authorities: Authorities,
}

impl IdentityComponent {
    /// The component, and the handle by which others see what it has.
    pub fn new() -> (Self, Identities) {
        let (current, identities) = Identities::channel();
        (Self { current, generation: AtomicU64::new(0), authorities: Authorities::default() }, identities)
    }

    /// The same, able to ask authorities.
    pub fn with_enrolment(enrolment: Arc<dyn Enrolment>) -> (Self, Identities) {
        let (mut component, identities) = Self::new();
        component.authorities.enrolment = Some(enrolment);
        (component, identities)
    }

    /// The same, able to ask the authority of this process, too.
    pub fn with_own_authority(mut self, own: Arc<dyn OwnAuthority>) -> Self {
        self.authorities.own = Some(own);
        self
    }

    /// The same, able to ask agents that serve the Workload API, too.
    pub fn with_workload_api(mut self, api: Arc<dyn WorkloadApi>) -> Self {
        self.authorities.workload_api = Some(api);
        self
    }

    fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.borrow().clone()
    }
}

impl Component for IdentityComponent {
    fn name(&self) -> &'static str {
        "identity"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Identity
    }

    fn enabled(&self, config: &Config) -> bool {
        config.identity.is_some()
    }

    fn check(&self, old: Option<&Config>, new: &Config) -> Result<(), BoxError> {
        let Some(section) = &new.identity else { return Ok(()) };
        check_peers(section, new)?;
        let source = Source::new(section, &self.authorities)?;
        // At the start we wait for files that are not there yet; a reload must not swap what works for what does not.
        match old {
            Some(old) if old.identity.as_ref() != Some(section) => Ok(source.check(SystemTime::now())?),
            _ => Ok(()),
        }
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(run(self, ctx))
    }
}

/// Every peer that the proxy names must be of the one trust domain whose certificates we can verify.
fn check_peers(section: &Identity, config: &Config) -> Result<(), Error> {
    let Some(proxy) = &config.proxy else { return Ok(()) };
    let listeners = proxy.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    let clusters = proxy.clusters.iter().filter_map(|cluster| cluster.tls.as_ref());
    let mut peers: Box<dyn Iterator<Item = &SpiffePattern>> =
        Box::new(listeners.flat_map(|tls| &tls.allowed_peers).chain(clusters.flat_map(|tls| &tls.spiffe_ids)));
    match peers.find(|id| id.trust_domain() != section.trust_domain.as_str()) {
        Some(id) => Err(Error::ForeignPeer { id: id.clone(), trust_domain: section.trust_domain.clone() }),
        None => Ok(()),
    }
}

async fn run(component: &IdentityComponent, ctx: Context) -> Result<(), BoxError> {
    let mut config = ctx.config.clone();
    let metrics = Metrics::new(&ctx.registry);
    let mut gathering = JoinSet::new();
    gathering.spawn(gather_entropy());
    loop {
        let section = config.borrow_and_update().identity.clone();
        let Some(section) = section else {
            // Turned off: the runtime is about to stop us.
            ctx.stop.requested().await;
            return Ok(());
        };
        let source = Source::new(&section, &component.authorities)?;
        let watcher = FileWatcher::new(source.paths())?;
        let mut keeper = Keeper::new(component, source, &ctx.status, &metrics);
        tokio::select! {
            () = ctx.stop.requested() => return Ok(()),
            () = section_changed(&mut config, &section) => {}
            () = keeper.keep(watcher) => {}
        }
    }
}

/// Has the library gather entropy, which it does once in a process and takes some 20 ms of CPU for: when the start is
/// over, rather than while the first client waits for its handshake.
async fn gather_entropy() {
    tokio::time::sleep(START_IS_OVER).await;
    // Should it fail here, it is tried again, and told, where it is wanted.
    let _ = tokio::task::spawn_blocking(|| aws_lc_rs::rand::fill(&mut [0])).await;
}

/// Resolves when the section differs from `known`. Cancel-safe.
async fn section_changed(config: &mut watch::Receiver<Arc<Config>>, known: &Identity) {
    // Whoever publishes configs is gone: no change will come.
    if config.wait_for(|config| config.identity.as_ref() != Some(known)).await.is_err() {
        std::future::pending().await
    }
}

struct Metrics {
    not_after: GaugeFamily,
    rotations: CounterFamily,
    crl_next_update: GaugeFamily,
}

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let not_after = registry.gauge(
            "outrigger_identity_not_after_timestamp_seconds",
            "When the workload's certificate ends, in seconds since the epoch.",
            &["spiffe_id"],
        );
        let rotations = registry.counter(
            "outrigger_identity_rotations_total",
            "Attempts to take a new certificate or trust bundle, by result (ok or error).",
            &["result"],
        );
        for result in ["ok", "error"] {
            rotations.with(&[result]).add(0);
        }
        let crl_next_update = registry.gauge(
            "outrigger_identity_crl_next_update_timestamp_seconds",
            "When an authority's revocation list should be replaced, in seconds since the epoch.",
            &["issuer"],
        );
        Self { not_after, rotations, crl_next_update }
    }
}

/// Keeps the identity of one source.
struct Keeper<'a> {
    component: &'a IdentityComponent,
    source: Source,
    status: &'a Status,
    metrics: &'a Metrics,
    /// What is wrong with the source now.
    problem: Option<String>,
    retry: Option<Instant>,
    backoff: Backoff,
    /// The generation whose end was announced.
    warned: u64,
}

impl<'a> Keeper<'a> {
    fn new(component: &'a IdentityComponent, source: Source, status: &'a Status, metrics: &'a Metrics) -> Self {
        let backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        Self { component, source, status, metrics, problem: None, retry: None, backoff, warned: 0 }
    }

    /// Never ends. Cancel-safe.
    async fn keep(&mut self, mut watcher: FileWatcher) {
        self.refresh().await;
        loop {
            self.report();
            let nap = self.nap();
            tokio::select! {
                () = watcher.changed() => {
                    self.backoff.reset();
                    self.refresh().await;
                }
                () = self.source.changed() => self.refresh().await,
                () = tokio::time::sleep(nap) => if self.is_due() {
                    self.refresh().await;
                }
            }
        }
    }

    /// Asks the source, and publishes what is new.
    async fn refresh(&mut self) {
        let current = self.component.current();
        match self.source.load(current.as_deref(), SystemTime::now()).await {
            Ok(Found { material, problem: None }) => {
                self.problem = None;
                self.retry = None;
                self.backoff.reset();
                if let Some(material) = material {
                    self.publish(material, current.as_deref());
                }
            }
            Ok(Found { material, problem: Some(error) }) => {
                if let Some(material) = material {
                    self.publish(material, current.as_deref());
                }
                self.failed(&error, "the last good revocation lists stay in force");
            }
            Err(error) => self.failed(&error, "no new identity"),
        }
    }

    /// Says what is wrong, and when to try again.
    fn failed(&mut self, error: &Error, outcome: &'static str) {
        let problem = chain(error);
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(component = "identity", error = %problem, "{outcome}");
        }
        self.metrics.rotations.with(&["error"]).inc();
        self.problem = Some(problem);
        self.retry = Some(Instant::now() + self.backoff.next().max(RETRY_LEAST));
    }

    fn publish(&self, material: Material, before: Option<&Snapshot>) {
        let generation = self.component.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let snapshot = Arc::new(Snapshot::new(material, self.source.trust_domain.clone(), generation));
        if let Some(before) = before.filter(|before| before.spiffe_id != snapshot.spiffe_id) {
            self.metrics.not_after.remove(&[before.spiffe_id.as_str()]);
        }
        let not_after = snapshot.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.not_after.with(&[snapshot.spiffe_id.as_str()]).set(not_after.as_secs_f64());
        self.tell_next_updates(&snapshot, before);
        self.metrics.rotations.with(&["ok"]).inc();
        tracing::info!(
            component = "identity",
            spiffe_id = %snapshot.spiffe_id,
            not_after = %date(snapshot.not_after),
            generation,
            "identity taken"
        );
        self.component.current.send_replace(Some(snapshot));
    }

    fn tell_next_updates(&self, snapshot: &Snapshot, before: Option<&Snapshot>) {
        for (issuer, _) in before.into_iter().flat_map(|before| before.material().revocation.next_updates()) {
            self.metrics.crl_next_update.remove(&[issuer]);
        }
        for (issuer, at) in snapshot.material().revocation.next_updates() {
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.metrics.crl_next_update.with(&[issuer]).set(at.as_secs_f64());
        }
    }

    /// Says how things stand, and warns of what is to come.
    fn report(&mut self) {
        let Some(current) = self.component.current() else {
            let problem = self.problem.as_deref().unwrap_or("no identity yet");
            return self.status.waiting(problem);
        };
        let now = SystemTime::now();
        let problem = self.problem.as_deref();
        if now > current.not_after {
            let (ended, ago) = (date(current.not_after), span(current.not_after, now));
            let why = problem.unwrap_or("issue a new one");
            return self.status.waiting(format!(
                "the certificate of {} expired at {ended}, {ago} ago, and peers refuse it: {why}",
                current.spiffe_id
            ));
        }
        if now >= warn_at(&current) && self.warned != current.generation {
            self.warned = current.generation;
            let left = span(now, current.not_after);
            let not_after = date(current.not_after);
            tracing::warn!(component = "identity", spiffe_id = %current.spiffe_id, %not_after, %left, "certificate ends soon");
        }
        let problem = problem.map_or_else(|| self.doubt(&current, now), |problem| Some(problem.to_owned()));
        match problem {
            None => self.status.ready(),
            Some(problem) => self
                .status
                .degraded(format!("keeping the certificate valid until {}: {problem}", date(current.not_after))),
        }
    }

    /// What is wrong with an identity that works.
    fn doubt(&self, current: &Snapshot, now: SystemTime) -> Option<String> {
        if current.material().is_revoked(now) {
            return Some(format!(
                "the certificate of {}, or an authority above it, was revoked, and peers that know refuse it; issue a new one",
                current.spiffe_id
            ));
        }
        let list = current.material().revocation.outdated(now)?;
        let effect = if list.required { "its peers are refused" } else { "it is still held to" };
        let (path, since, ago) = (list.path.display(), date(list.since), span(list.since, now));
        Some(format!(
            "the revocation list {path} of `{}` should have been replaced at {since}, {ago} ago, and {effect}; fetch a new one",
            list.issuer
        ))
    }

    /// Whether it is time to ask the source again.
    fn is_due(&self) -> bool {
        match self.retry {
            Some(retry) => Instant::now() >= retry,
            None => self.renew_at().is_some_and(|at| SystemTime::now() >= at),
        }
    }

    fn renew_at(&self) -> Option<SystemTime> {
        self.component.current().and_then(|current| self.source.renew_at(&current))
    }

    /// How long nothing will happen by itself.
    fn nap(&self) -> Duration {
        let now = SystemTime::now();
        let until = |at: SystemTime| at.duration_since(now).ok();
        let current = self.component.current();
        let ends = current.as_ref().and_then(|current| until(current.not_after));
        let warning = current.as_ref().and_then(|current| until(warn_at(current)));
        let next = match self.retry {
            Some(retry) => Some(retry.saturating_duration_since(Instant::now())),
            // Already over means at once.
            None => self.renew_at().map(|at| until(at).unwrap_or_default()),
        };
        // A moment later, so that what is awaited has surely happened.
        let lists = current
            .as_ref()
            .and_then(|current| current.material().revocation.next_updates().filter_map(|(_, at)| until(at)).min());
        let nap = [ends, warning, next, lists].into_iter().flatten().min().unwrap_or(LONGEST_NAP);
        nap.min(LONGEST_NAP) + Duration::from_millis(5)
    }
}

fn warn_at(snapshot: &Snapshot) -> SystemTime {
    let lifetime = snapshot.not_after.duration_since(snapshot.not_before).unwrap_or_default();
    snapshot.not_after - (lifetime / 5).min(EARLIEST_WARNING)
}
