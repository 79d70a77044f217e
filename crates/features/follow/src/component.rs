//! The component `discovery`: keeps a stream to one of the servers.
//!
//! In: section `proxy.discovery`. Out: a notebook that the data plane follows. Promise: ready once all that the config's
//! clusters follow was told, and never again not ready for want of a server; tries are spread by chance, so that servers that
//! come back are not met by all proxies in the same moment.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::{Config, DiscoverySource};
use outrigger_http::Resolver;
use outrigger_identity::Identities;
use outrigger_runtime::{Backoff, BoxError, BoxFuture, Component, Context, StopPhase};
use outrigger_telemetry::Registry;
use outrigger_traffic::directory::Directory;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::notebook::Notebook;
use crate::store;
use crate::stream::follow;

/// The longest first wait after a stream ended.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A stream that held for so long was a good one: the next tries begin with short waits again.
const GOOD: Duration = Duration::from_secs(10);
/// Changes are kept for a restart so long after they came, together.
const KEEP_AFTER: Duration = Duration::from_secs(1);
/// What a process before us was told, and nobody wants by then, is forgotten.
const REMEMBER: Duration = Duration::from_secs(60);

/// The component `discovery`.
pub struct FollowComponent {
    notebook: Notebook,
    identities: Identities,
    resolver: Resolver,
}

impl FollowComponent {
    /// The component, and what it keeps, for the data plane.
    pub fn new(identities: Identities, resolver: Resolver) -> (Self, Arc<dyn Directory>) {
        let notebook = Notebook::default();
        let directory = Arc::new(notebook.clone());
        (Self { notebook, identities, resolver }, directory)
    }
}

impl Component for FollowComponent {
    fn name(&self) -> &'static str {
        "discovery"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["identity"]
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Outbound
    }

    fn enabled(&self, config: &Config) -> bool {
        section(config).is_some()
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(run(self, ctx))
    }
}

fn section(config: &Config) -> Option<&DiscoverySource> {
    config.proxy.as_ref()?.discovery.as_ref()
}

/// Services that the config's clusters follow.
fn services(config: &Config) -> impl Iterator<Item = String> {
    let clusters = config.proxy.iter().flat_map(|proxy| &proxy.clusters);
    clusters.filter_map(|cluster| cluster.discovery.as_ref()).map(|one| one.service.to_string())
}

async fn run(component: &FollowComponent, ctx: Context) -> Result<(), BoxError> {
    let metrics = Metrics::new(&ctx.registry);
    let mut config = ctx.config.clone();
    let mut restored = None;
    loop {
        let current = Arc::clone(&config.borrow_and_update());
        let Some(section) = section(&current) else {
            // Turned off: the runtime is about to stop us.
            ctx.stop.requested().await;
            return Ok(());
        };
        // Before anybody is told that nothing is known.
        if restored != section.state_directory {
            restored.clone_from(&section.state_directory);
            restore(component, section).await;
        }
        component.notebook.allow(section);
        let reported = config.clone();
        let watching = Watching { component, ctx: &ctx, section, metrics: &metrics };
        let stopping = tokio::select! {
            () = ctx.stop.requested() => true,
            _ = config.wait_for(|new| self::section(new) != Some(section)) => false,
            () = connect(section, &component.identities, &component.resolver, &component.notebook, &metrics) => false,
            () = watching.report(reported) => false,
            () = watching.keep() => false,
        };
        if stopping {
            // What came since the last time, unless those who followed it have stopped already.
            if services(&current).all(|service| component.notebook.knows(&service)) {
                let _ = watching.write().await;
            }
            return Ok(());
        }
    }
}

/// Follows at the servers without end, connecting again and again, as the component does. Cancel-safe.
pub async fn follow_always(
    section: &DiscoverySource,
    identities: &Identities,
    resolver: &Resolver,
    notebook: &Notebook,
    registry: &Registry,
) {
    notebook.allow(section);
    connect(section, identities, resolver, notebook, &Metrics::new(registry)).await;
}

async fn connect(
    section: &DiscoverySource,
    identities: &Identities,
    resolver: &Resolver,
    notebook: &Notebook,
    metrics: &Metrics,
) {
    let mut backoff = Backoff::new(FIRST_WAIT, section.max_backoff.into());
    let node = node();
    // Replicas share their proxies.
    let first = RandomState::new().hash_one(0) as usize;
    for turn in 0_usize.. {
        let Some(server) = section.servers.get(first.wrapping_add(turn) % section.servers.len().max(1)) else { return };
        let begun = Instant::now();
        let ended = follow(section, server, identities, resolver, notebook, metrics, &node).await;
        metrics.connected.set(0.0);
        if begun.elapsed() >= GOOD {
            backoff.reset();
        }
        let wait = backoff.next();
        tracing::warn!(component = "discovery", %server, error = %ended, again_in = ?wait, "no discovery server; what was told before holds on");
        notebook.connected(Err(format!("discovery server {server}: {ended}")));
        tokio::time::sleep(wait).await;
    }
}

/// Takes on what a process before us kept.
async fn restore(component: &FollowComponent, section: &DiscoverySource) {
    let Some(folder) = section.state_directory.clone() else { return };
    let most = section.max_bytes.as_usize();
    let reading = tokio::task::spawn_blocking(move || store::read(&folder, most)).await;
    match reading.map_err(std::io::Error::other).flatten() {
        Ok(Some(bytes)) => {
            component.notebook.remember(&bytes);
            tracing::info!(component = "discovery", bytes = bytes.len(), "what was told before is taken on");
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(component = "discovery", %error, "what was told before cannot be read (`proxy.discovery.stateDirectory`)");
        }
    }
}

/// What goes on while a section holds.
struct Watching<'a> {
    component: &'a FollowComponent,
    ctx: &'a Context,
    section: &'a DiscoverySource,
    metrics: &'a Metrics,
}

impl Watching<'_> {
    /// Says how things are, whenever they change.
    async fn report(&self, mut config: watch::Receiver<Arc<Config>>) {
        let Self { component, ctx, metrics, .. } = self;
        loop {
            let current = Arc::clone(&config.borrow_and_update());
            let missing: Vec<String> =
                services(&current).filter(|service| !component.notebook.knows(service)).collect();
            let since = component.notebook.found().0;
            metrics.sizes(component.notebook.sizes());
            match (missing.as_slice(), component.notebook.problem()) {
                ([], None) => ctx.status.ready(),
                ([], Some(problem)) => ctx.status.degraded(format!("what was told before holds on: {problem}")),
                (missing, problem) => {
                    let why = problem.map(|problem| format!(": {problem}")).unwrap_or_default();
                    ctx.status.waiting(format!("no word yet of {}{why}", missing.join(", ")));
                }
            }
            tokio::select! {
                () = component.notebook.changed(since) => {}
                changed = config.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Keeps what is known now, where there is a folder for it.
    async fn write(&self) -> std::io::Result<()> {
        let Some(folder) = self.section.state_directory.clone() else { return Ok(()) };
        let bytes = self.component.notebook.written();
        let writing = tokio::task::spawn_blocking(move || store::write(&folder, &bytes));
        writing.await.map_err(std::io::Error::other)?
    }

    /// Keeps what is told for a restart, and forgets what one before us knew in vain.
    async fn keep(&self) {
        let (notebook, forget_at) = (&self.component.notebook, Instant::now() + REMEMBER);
        let mut kept = notebook.found().0;
        let mut failed = false;
        loop {
            tokio::select! {
                () = notebook.changed(kept) => {}
                () = tokio::time::sleep_until(forget_at), if Instant::now() < forget_at => {
                    notebook.forget_remembered();
                    continue;
                }
            }
            tokio::time::sleep(KEEP_AFTER).await;
            kept = notebook.found().0;
            match self.write().await {
                Ok(()) => failed = false,
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        tracing::warn!(component = "discovery", %error, "what is told cannot be kept for a restart (`proxy.discovery.stateDirectory`)");
                    }
                }
            }
        }
    }
}

/// Who we are, for the servers' logs: the pod, as far as the environment says.
fn node() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let pod = variable("POD_NAME").or_else(|| variable("HOSTNAME"));
    let name = [variable("POD_NAMESPACE"), pod].into_iter().flatten().collect::<Vec<_>>().join("/");
    if name.is_empty() { "outrigger".to_owned() } else { name }
}
