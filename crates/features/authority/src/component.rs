//! The component `authority`: keeps roots, its own certificate and the port where workloads ask.
//!
//! In: section `authority`, the passing of time. Out: certificates over gRPC. Promise: it serves as
//! long as it can sign; what it cannot do (reach the store, check a token) is in its status.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{Authority, Config};
use outrigger_http::{GrpcServerOptions, Resolver, TlsSource, serve_grpc};
use outrigger_identity::{OwnAuthority, server_config_with_key};
use outrigger_kubernetes::Duty;
use outrigger_runtime::{BoxError, BoxFuture, Component, Context, FileWatcher, StopPhase};
use outrigger_telemetry::GaugeFamily;
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::audit::{Audit, date};
use crate::bundles::TrustBundles;
use crate::issuer::OwnKey;
use crate::kubernetes::{Api, KubernetesReview};
use crate::own::{OwnCertificates, Serving};
use crate::service::{CertificateService, Metrics};
use crate::source::Source;

/// The status is looked at so often.
const LOOK: Duration = Duration::from_millis(500);

/// The component `authority`.
pub struct AuthorityComponent {
    resolver: Resolver,
    /// What serves now.
    serving: watch::Sender<Option<Serving>>,
}

impl AuthorityComponent {
    /// `resolver` finds the API server.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, serving: watch::Sender::new(None) }
    }

    /// For this process's own identity.
    pub fn own(&self) -> Arc<dyn OwnAuthority> {
        Arc::new(OwnCertificates(self.serving.subscribe()))
    }

    /// Writes trust bundles into namespaces, on the controller's replica that leads.
    pub fn trust_bundles(&self) -> Arc<dyn Duty> {
        Arc::new(TrustBundles::new(self.serving.subscribe()))
    }
}

impl Component for AuthorityComponent {
    fn name(&self) -> &'static str {
        "authority"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Identity
    }

    fn enabled(&self, config: &Config) -> bool {
        config.authority.is_some()
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(run(self, ctx))
    }
}

async fn run(component: &AuthorityComponent, ctx: Context) -> Result<(), BoxError> {
    let mut config = ctx.config.clone();
    let metrics = Metrics::new(&ctx.registry);
    let not_after = ctx.registry.gauge(
        "outrigger_authority_root_not_after_timestamp_seconds",
        "When a root ends, in seconds since the epoch, by what it does (signing, next, old, or given by somebody else).",
        &["root", "state"],
    );
    loop {
        let section = config.borrow_and_update().authority.clone();
        let Some(section) = section else {
            // Turned off: the runtime is about to stop us.
            ctx.stop.requested().await;
            return Ok(());
        };
        let served = serve(component, &ctx, &section, &mut config, &metrics, &not_after).await;
        component.serving.send_replace(None);
        served?;
        if ctx.stop.is_requested() {
            return Ok(());
        }
    }
}

/// Serves as one section says, until it changes or the stop.
async fn serve(
    component: &AuthorityComponent,
    ctx: &Context,
    section: &Authority,
    config: &mut watch::Receiver<Arc<Config>>,
    metrics: &Metrics,
    not_after: &GaugeFamily,
) -> Result<(), BoxError> {
    let api = Api::new(&section.kubernetes, component.resolver.clone());
    let requests = ctx.registry.counter(
        "outrigger_vault_requests_total",
        "Requests to Vault, by operation and result: a status, or where the request failed.",
        &["provider", "operation", "result"],
    );
    let observer = move |operation: &'static str, result: &str| requests.with(&["authority", operation, result]).inc();
    let source = Source::new(section, &api, &component.resolver, Box::new(observer));
    let source = Arc::new(source.ok_or("the section `authority` names nothing to sign with")?);
    let audit = Audit::open(section.audit_log.as_deref()).map_err(|error| match &section.audit_log {
        Some(path) => format!("cannot open the audit log {}: {error}", path.display()),
        None => error.to_string(),
    })?;
    let service = Arc::new(CertificateService::new(
        section.trust_domain.clone(),
        (section.ttl.into(), section.max_ttl.into()),
        Arc::clone(&source),
        Box::new(KubernetesReview::new(api)),
        audit,
        metrics.clone(),
        &section.rate_limit,
    ));
    let serves = Serving { service: Arc::clone(&service), trust_bundles: section.trust_bundles.clone() };
    component.serving.send_replace(Some(serves));
    let listener = TcpListener::from_std(ctx.sockets.listen_tcp("authority", section.listen)?)?;
    let shown: Arc<Mutex<Option<Arc<ServerConfig>>>> = Arc::default();
    let tls: TlsSource = {
        let shown = Arc::clone(&shown);
        Arc::new(move || shown.lock().clone())
    };
    let (done, over) = tokio::sync::oneshot::channel::<()>();
    let over = async move {
        let _ = over.await;
    };
    let mut serving =
        std::pin::pin!(serve_grpc(listener, tls, Arc::clone(&service) as _, GrpcServerOptions::default(), over));
    let mut tending =
        Tending { ctx, section, source: &source, service: &service, shown, not_after, front: None, known: Vec::new() };
    tokio::select! {
        () = ctx.stop.requested() => {}
        _ = config.wait_for(|config| config.authority.as_ref() != Some(section)) => {}
        () = serving.as_mut() => {}
        result = tending.tend() => return result,
    }
    drop(done);
    tokio::select! {
        () = serving => {}
        () = ctx.stop.overdue() => {}
    }
    Ok(())
}

/// The certificate of our own port.
struct Front {
    renew_at: SystemTime,
    issuer: Arc<crate::Issuer>,
    chain: Vec<CertificateDer<'static>>,
}

/// Keeps roots and our own certificate, and tells how they are.
struct Tending<'a> {
    ctx: &'a Context,
    section: &'a Authority,
    source: &'a Source,
    service: &'a CertificateService,
    shown: Arc<Mutex<Option<Arc<ServerConfig>>>>,
    not_after: &'a GaugeFamily,
    front: Option<Front>,
    /// The labels of the gauge.
    known: Vec<[String; 2]>,
}

impl Tending<'_> {
    /// Ends only when nothing more can be done. Cancel-safe.
    async fn tend(&mut self) -> Result<(), BoxError> {
        let mut watcher = FileWatcher::new(self.source.paths())?;
        loop {
            let now = SystemTime::now();
            let problem = match self.source.tend(now).await {
                Ok(()) => None,
                Err(error) => Some(outrigger_telemetry::log::chain(&error).to_string()),
            };
            if let Some(problem) = &problem {
                tracing::warn!(component = "authority", %problem, "the authority's roots are not as they should be");
            }
            let again = match problem {
                None => self.source.look_again(now).duration_since(now).unwrap_or_default(),
                Some(_) => self.source.retry(now),
            };
            let again = tokio::time::sleep(again.max(Duration::from_millis(20)));
            tokio::pin!(again);
            loop {
                let front = self.renew_front().await;
                self.report(problem.as_deref().or(front.as_deref()));
                tokio::select! {
                    () = &mut again => break,
                    () = watcher.changed() => break,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }

    /// Has our own port show a certificate that is young enough, of whoever signs now. Gives what is wrong.
    async fn renew_front(&mut self) -> Option<String> {
        let now = SystemTime::now();
        let signing = match self.source.signing(now).await {
            Ok(signing) => signing,
            Err(error) => return Some(error.to_string()),
        };
        let good = |front: &Front| Arc::ptr_eq(&front.issuer, &signing.issuer) && now < front.renew_at;
        if self.front.as_ref().is_some_and(good) {
            return None;
        }
        let make = || -> Result<Front, BoxError> {
            let key = OwnKey(KeyPair::generate()?);
            let ttl = Duration::from(self.section.max_ttl);
            let signed = signing.issuer.server(&key, &self.section.names, ttl, now)?;
            let lifetime = signed.not_after.duration_since(now).unwrap_or_default();
            let chain: Vec<_> =
                [signed.certificate].into_iter().chain(signing.issuer.chain().iter().cloned()).collect();
            let config = server_config_with_key(chain.clone(), key.0.serialized_der(), &[b"h2"])?;
            *self.shown.lock() = Some(config);
            Ok(Front { renew_at: now + lifetime / 2, issuer: Arc::clone(&signing.issuer), chain })
        };
        match make() {
            Ok(front) => {
                tracing::debug!(component = "authority", certificates = front.chain.len(), "own certificate renewed");
                self.front = Some(front);
                None
            }
            Err(error) => Some(format!("cannot make the certificate of our own port: {error}")),
        }
    }

    fn report(&mut self, problem: Option<&str>) {
        let now = SystemTime::now();
        let facts = self.source.facts(now);
        for [root, state] in std::mem::take(&mut self.known) {
            self.not_after.remove(&[&root, &state]);
        }
        for root in &facts {
            let ends = root.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let hash = root.hash.chars().take(16).collect::<String>();
            self.not_after.with(&[&hash, root.state]).set(ends.as_secs_f64());
            self.known.push([hash, root.state.to_owned()]);
        }
        if self.front.is_none() {
            return self.ctx.status.waiting(problem.unwrap_or("nothing to sign with yet"));
        }
        match problem.map(str::to_owned).or_else(|| self.service.trouble()) {
            Some(problem) => {
                let until = facts.iter().map(|root| root.not_after).max().map(date).unwrap_or_default();
                self.ctx.status.degraded(format!("signing with what is known, until {until}: {problem}"));
            }
            None => self.ctx.status.ready(),
        }
    }
}
