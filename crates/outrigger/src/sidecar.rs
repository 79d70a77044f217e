//! `outrigger run`: joins the features to the foundation and hands over to the runtime.
//!
//! This is the only place that knows every feature; a feature learns of another only
//! through what is passed here.

use std::sync::Arc;

use anyhow::Context;
use outrigger_config as config;
use outrigger_http::Resolver;
use outrigger_identity::IdentityComponent;
use outrigger_kubernetes::Duty;
use outrigger_runtime::{Component, LineQueue, RuntimeOptions};
use outrigger_telemetry::trace::SpanQueue;

use rustix::process::Signal;

use crate::cli::RunArgs;
use crate::controller::InjectProfiles;
use crate::output;

/// Runs until stopped; gives the exit code.
pub(crate) fn run(args: RunArgs) -> anyhow::Result<u8> {
    let loaded = match config::load(&args.config.path) {
        Ok(loaded) => loaded,
        Err(diagnostics) => {
            output::diagnostics(&diagnostics)?;
            return Ok(1);
        }
    };
    if args.die_with_parent {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
            .context("cannot ask for the parent's end to be told")?;
    }
    let code = outrigger_runtime::run(RuntimeOptions {
        config_path: args.config.path,
        loaded,
        components: components(),
        command: (!args.command.is_empty()).then_some(args.command),
        version: output::VERSION,
        give_back: crate::give_back,
    });
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Every feature, joined.
pub(crate) fn components() -> Vec<Box<dyn Component>> {
    let resolver = Resolver::from_system();
    let enrolment = Arc::new(outrigger_enrol::CreateCertificate::new(resolver.clone()));
    let authority = outrigger_authority::AuthorityComponent::new(resolver.clone());
    let workload_api = Arc::new(outrigger_enrol::SpiffeWorkloadApi::new(resolver.clone()));
    let (identity, identities) = IdentityComponent::with_enrolment(enrolment);
    let identity = identity.with_own_authority(authority.own()).with_workload_api(workload_api);
    let (follow, directory) = outrigger_follow::FollowComponent::new(identities.clone(), resolver.clone());
    let (spans, lines) = (SpanQueue::new(), LineQueue::new());
    let duties: Vec<Arc<dyn Duty>> =
        vec![Arc::new(outrigger_rollout::Rollouts::new(resolver.clone())), authority.trust_bundles()];
    let mut components: Vec<Box<dyn Component>> = vec![
        Box::new(identity),
        Box::new(outrigger_secrets::SecretsComponent::new(resolver.clone())),
        Box::new(outrigger_exporter::MetricsComponent::new(resolver.clone())),
        Box::new(outrigger_traces::TracesComponent::new(spans.clone(), resolver.clone())),
        Box::new(outrigger_probes::ProbesComponent::from_environment(resolver.clone())),
        Box::new(outrigger_logs::LogsComponent::new(resolver.clone(), lines.clone())),
        Box::new(outrigger_page::PageComponent),
        Box::new(authority),
        Box::new(follow),
        Box::new(outrigger_discovery::DiscoveryComponent::new(identities.clone(), resolver.clone(), Vec::new())),
        Box::new(outrigger_control::ControllerComponent::new(resolver.clone(), Arc::new(InjectProfiles), duties)),
    ];
    components.extend(outrigger_proxy::components(identities, resolver, spans, lines, Some(directory)));
    components
}
