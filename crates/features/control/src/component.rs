//! The component `controller`: its parts, and how they are.
//!
//! In: section `controller`, the binary's injector. Out: parts that run, and a status. Promise: it is ready as soon as it
//! can answer reviews, whoever leads; what it cannot do is in its status, with the right that is missing; a changed profile
//! counts from the next pod on, and a bad one changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::{Config, Controller, Webhook};
use outrigger_http::{HttpsOptions, Resolver, TlsSource, serve_https};
use outrigger_kubernetes::{
    Access, AccessError, Client, Duty, Election, ElectionOptions, Leader, Leadership, Options, Recorder,
};
use outrigger_runtime::{BoxError, BoxFuture, Component, Context, FileWatcher, Stop, StopPhase};
use outrigger_telemetry::{Gauge, Registry};
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::certificate::Keeper;
use crate::delivery::{Delivery, DeliveryMetrics};
use crate::injector::{Injector, Profiles};
use crate::namespaces::Namespaces;
use crate::owner::Owners;
use crate::profiles::KnownProfiles;
use crate::repair::{RepairMetrics, Repairs};
use crate::webhook::{Metrics, Parts, WebhookService};

/// The status is looked at so often.
const LOOK: Duration = Duration::from_millis(250);
/// Who reports Events.
const REPORTER: &str = "outrigger.dev/controller";

/// The component `controller`.
pub struct ControllerComponent {
    resolver: Resolver,
    profiles: Arc<dyn Profiles>,
    duties: Vec<Arc<dyn Duty>>,
}

impl ControllerComponent {
    /// `resolver` finds the API server, `profiles` make injectors, `duties` are done by the replica that leads.
    pub fn new(resolver: Resolver, profiles: Arc<dyn Profiles>, duties: Vec<Arc<dyn Duty>>) -> Self {
        Self { resolver, profiles, duties }
    }
}

impl Component for ControllerComponent {
    fn name(&self) -> &'static str {
        "controller"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Inbound
    }

    fn enabled(&self, config: &Config) -> bool {
        config.controller.is_some()
    }

    fn check(&self, _old: Option<&Config>, new: &Config) -> Result<(), BoxError> {
        let Some(controller) = &new.controller else { return Ok(()) };
        if let Some(webhook) = &controller.webhook {
            read_profile(&*self.profiles, webhook.profile.as_deref(), &never(controller))?;
        }
        Ok(access(controller).map(drop)?)
    }

    fn judge(&self, config: &Config) -> Result<(), BoxError> {
        let Some(controller) = &config.controller else { return Ok(()) };
        // What is here is looked at: the profile beside a config, say.
        let profile = controller.webhook.as_ref().and_then(|webhook| webhook.profile.as_deref());
        if profile.is_some_and(Path::exists) {
            read_profile(&*self.profiles, profile, &never(controller))?;
        }
        if controller.kubernetes.kubeconfig.as_ref().is_some_and(|file| file.exists()) {
            access(controller)?;
        }
        Ok(())
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(self.serve(ctx))
    }
}

impl ControllerComponent {
    async fn serve(&self, ctx: Context) -> Result<(), BoxError> {
        let mut config = ctx.config.clone();
        let metrics = AllMetrics::new(&ctx.registry);
        loop {
            let section = config.borrow_and_update().controller.clone();
            let Some(section) = section else {
                // Turned off: the runtime is about to stop us.
                ctx.stop.requested().await;
                return Ok(());
            };
            let (source, stop) = Stop::channel();
            let run = Run { component: self, ctx: &ctx, section: &section, metrics: &metrics };
            let mut serving = std::pin::pin!(run.serve(&stop));
            tokio::select! {
                () = ctx.stop.requested() => {}
                _ = config.wait_for(|config| config.controller.as_ref() != Some(&section)) => {}
                result = serving.as_mut() => return result,
            }
            source.request(ctx.stop.deadline());
            tokio::select! {
                result = serving => result?,
                () = ctx.stop.overdue() => {}
            }
            if ctx.stop.is_requested() {
                return Ok(());
            }
        }
    }
}

/// What is counted, once per process.
struct AllMetrics {
    webhook: Metrics,
    repair: RepairMetrics,
    delivery: DeliveryMetrics,
    leader: Gauge,
    not_after: Gauge,
}

impl AllMetrics {
    fn new(registry: &Registry) -> Self {
        let leader = registry.gauge(
            "outrigger_controller_leader",
            "Whether this replica of the controller leads (1) or not (0).",
            &[],
        );
        let not_after = registry.gauge(
            "outrigger_webhook_certificate_not_after_timestamp_seconds",
            "When the webhook's certificate ends, in seconds since the epoch.",
            &[],
        );
        Self {
            webhook: Metrics::new(registry),
            repair: RepairMetrics::new(registry),
            delivery: DeliveryMetrics::new(registry),
            leader: leader.with(&[]),
            not_after: not_after.with(&[]),
        }
    }
}

type Problem = Arc<Mutex<Option<String>>>;

/// One run with one section.
struct Run<'a> {
    component: &'a ControllerComponent,
    ctx: &'a Context,
    section: &'a Controller,
    metrics: &'a AllMetrics,
}

impl Run<'_> {
    /// Serves until the stop. Ends before only when something cannot be had at all.
    async fn serve(&self, stop: &Stop) -> Result<(), BoxError> {
        let Self { ctx, section, .. } = self;
        let timeout = section.kubernetes.timeout.into();
        let options = Options { timeout, manager: "outrigger-controller", ..Options::default() };
        let client = Client::counted(access(section)?, self.component.resolver.clone(), options, &ctx.registry);
        let identity = identity(section)?;
        let never = never(section);
        let profile = section.webhook.as_ref().and_then(|webhook| webhook.profile.clone());
        let injector = read_profile(&*self.component.profiles, profile.as_deref(), &never)?;
        let injector = Arc::new(RwLock::new(injector));
        let (election, leadership) = Election::new(client.clone(), self.election(&identity));
        let (recorder, events) = Recorder::new(client.clone(), REPORTER, &identity);
        let (owners, search) = Owners::new(client.clone(), recorder);
        let (namespaces, following) = Namespaces::new(client.clone(), section.profiles.is_some());
        let (known_profiles, follow_profiles) = match &section.profiles {
            Some(_) => {
                let (known, follow) = KnownProfiles::new(&client, &self.component.profiles);
                (known, Some(follow))
            }
            None => (KnownProfiles::off(), None),
        };
        let (certificate, repairs, shown) =
            (Problem::default(), Problem::default(), crate::certificate::Shown::default());
        let delivering = Problem::default();

        // Dropped at the end, and what is in it with it.
        let mut parts = JoinSet::new();
        parts.spawn(async move { events.run().await });
        parts.spawn(search.run());
        parts.spawn(async move { following.run().await });
        if let Some(follow) = follow_profiles {
            parts.spawn(follow.run());
        }
        let leader = Leader { client: client.clone(), leadership: leadership.clone() };
        if section.profiles.is_some() {
            let delivery = Delivery {
                profiles: known_profiles.clone(),
                injector: Arc::clone(&injector),
                namespaces: namespaces.clone(),
                never: never.clone(),
                metrics: self.metrics.delivery.clone(),
                http: crate::delivery::asking(self.component.resolver.clone()),
                problem: Arc::clone(&delivering),
            };
            parts.spawn(leader.clone().serve(Arc::new(delivery)));
        }
        for duty in &self.component.duties {
            parts.spawn(leader.clone().serve(Arc::clone(duty)));
        }
        parts.spawn(
            Repairs {
                client: client.clone(),
                config: section.repair.clone(),
                namespaces: namespaces.clone(),
                injector: Arc::clone(&injector),
                profiles: known_profiles.clone(),
                never: never.clone(),
                leadership: leadership.clone(),
                owners: owners.clone(),
                metrics: self.metrics.repair.clone(),
                webhook_problem: Arc::clone(&certificate),
                problem: Arc::clone(&repairs),
            }
            .run(),
        );
        let serving = async {
            let Some(webhook) = &section.webhook else {
                stop.requested().await;
                return Ok::<(), BoxError>(());
            };
            let keeper = Keeper {
                client: client.clone(),
                namespace: section.namespace.to_string(),
                names: names(section, webhook),
                configuration: webhook.configuration.to_string(),
                judging: section.profiles.as_ref().map(|profiles| profiles.configuration.to_string()),
                certificate: webhook.certificate.clone(),
                leadership: leadership.clone(),
                shown: Arc::clone(&shown),
                not_after: self.metrics.not_after.clone(),
                problem: Arc::clone(&certificate),
            };
            let service = WebhookService::new(Parts {
                injector: Arc::clone(&injector),
                profiles: known_profiles.clone(),
                namespaces: namespaces.clone(),
                never: never.clone(),
                owners,
                metrics: self.metrics.webhook.clone(),
            });
            let listener = TcpListener::from_std(ctx.sockets.listen_tcp("controller", webhook.listen)?)?;
            let tls: TlsSource = {
                let shown = Arc::clone(&shown);
                Arc::new(move || shown.lock().clone())
            };
            let options = HttpsOptions {
                max_connections: 1024,
                max_requests: webhook.max_reviews as usize,
                max_body: usize::try_from(webhook.max_body.0).unwrap_or(usize::MAX),
                handshake_timeout: Duration::from_secs(5),
                timeout: Duration::from_secs(10),
            };
            let reviews = serve_https(listener, tls, Arc::new(service), options, stop.requested());
            tokio::select! {
                () = reviews => Ok(()),
                () = keeper.run() => Err("the webhook's certificate is not kept any more".into()),
            }
        };
        let told = async {
            loop {
                self.report((&namespaces, &known_profiles), &leadership, &shown, [&certificate, &repairs, &delivering]);
                tokio::time::sleep(LOOK).await;
            }
        };
        let work = async {
            // The Lease is given back while the last reviews are answered.
            tokio::join!(serving, election.run(stop)).0
        };
        tokio::select! {
            result = work => result,
            () = told => Ok(()),
            () = self.follow_profile(profile.as_deref(), &never, &injector) => Ok(()),
        }
    }

    fn election(&self, identity: &str) -> ElectionOptions {
        let election = &self.section.election;
        ElectionOptions {
            duration: election.duration.into(),
            renew_deadline: election.renew_deadline.into(),
            retry: election.retry.into(),
            ..ElectionOptions::new(self.section.namespace.as_str(), election.lease.as_str(), identity)
        }
    }

    /// Takes over a profile that changed, for as long as it is run.
    async fn follow_profile(&self, profile: Option<&Path>, never: &[String], injector: &RwLock<Arc<dyn Injector>>) {
        let Some(path) = profile else { return std::future::pending().await };
        let mut watcher = match FileWatcher::new([path]) {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::warn!(component = "controller", %error, "cannot watch the profile; changes need a restart");
                return std::future::pending().await;
            }
        };
        loop {
            watcher.changed().await;
            match read_profile(&*self.component.profiles, Some(path), never) {
                Ok(fresh) => {
                    *injector.write() = fresh;
                    tracing::info!(component = "controller", profile = %path.display(), "took over the profile");
                }
                Err(problem) => {
                    tracing::warn!(component = "controller", %problem, "the profile is bad; the last good one counts");
                }
            }
        }
    }

    fn report(
        &self,
        (namespaces, profiles): (&Namespaces, &KnownProfiles),
        leadership: &Leadership,
        shown: &crate::certificate::Shown,
        problems: [&Problem; 3],
    ) {
        let status = &self.ctx.status;
        self.metrics.leader.set(f64::from(u8::from(leadership.leads())));
        let duties = || self.component.duties.iter().find_map(|duty| duty.problem());
        let others = || problems.into_iter().find_map(|problem| problem.lock().clone()).or_else(duties);
        let problem = namespaces
            .store()
            .problem()
            .or_else(|| profiles.problem())
            .or_else(others)
            .or_else(|| leadership.problem());
        if self.section.webhook.is_some() && shown.lock().is_none() {
            return status.waiting(problem.unwrap_or_else(|| "no certificate for the webhook yet".to_owned()));
        }
        if !namespaces.store().is_synced() {
            return status.waiting(problem.unwrap_or_else(|| "the namespaces are not listed yet".to_owned()));
        }
        if let Some(missing) = profiles.missing() {
            return status.waiting(missing);
        }
        match problem {
            Some(problem) => status.degraded(problem),
            None => status.ready(),
        }
    }
}

fn access(section: &Controller) -> Result<Access, AccessError> {
    match &section.kubernetes.kubeconfig {
        Some(file) => Access::find(Some(file), section.kubernetes.context.as_deref()),
        None => Access::in_cluster(),
    }
}

/// Namespaces that are never injected, whatever a profile says.
fn never(section: &Controller) -> Vec<String> {
    vec![section.namespace.to_string()]
}

/// What the webhook's certificate is for.
fn names(section: &Controller, webhook: &Webhook) -> Vec<String> {
    let service = format!("{}.{}.svc", webhook.service.as_str(), section.namespace.as_str());
    std::iter::once(service).chain(webhook.names.iter().cloned()).collect()
}

fn identity(section: &Controller) -> Result<String, BoxError> {
    let given = section.identity.clone().or_else(|| std::env::var("POD_NAME").ok());
    if let Some(given) = given.filter(|given| !given.is_empty()) {
        return Ok(given);
    }
    // Two on one machine differ by their process.
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{host}-{}", std::process::id()))
}

fn read_profile(profiles: &dyn Profiles, path: Option<&Path>, never: &[String]) -> Result<Arc<dyn Injector>, String> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("cannot read the profile {}: {error}", path.display()))
    };
    let text = path.map(read).transpose()?;
    let place = path.map_or_else(PathBuf::new, Path::to_path_buf);
    profiles
        .read(text.as_deref(), never)
        .map_err(|problem| format!("the profile {} is wrong: {problem}", place.display()))
}
