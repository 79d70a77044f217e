//! `outrigger controller`: the runtime with a controller's parts, and the injector for its webhook.

use std::sync::Arc;

use clap::Args;
use outrigger_config as config;
use outrigger_control::{Injector, NamespaceFacts, Profiles, Verdict};
use outrigger_inject::{Namespace, Namespaces, Outcome, Settings};
use serde_json::Value;

use crate::cli::{ConfigFile, RunArgs};
use crate::sidecar;

pub(crate) const HELP: &str = "\
What it does stands in the config: section `controller` (the admission webhook, the repair of pods it missed), and beside it
`authority`, `discovery`, `metrics`, `admin`. As its pod's service account, or by `controller.kubernetes.kubeconfig`. `outrigger install`
prints a cluster's objects for it.

Exit codes:
  0  stopped as it was asked to
  1  it failed, or the config is invalid
  2  the command line is wrong";

#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs until stopped; gives the exit code.
pub(crate) fn run(args: ControllerArgs) -> anyhow::Result<u8> {
    // A sidecar's config would start, and do nothing of what was asked for.
    if let Ok(loaded) = config::load(&args.config.path)
        && loaded.config.controller.is_none()
        && loaded.config.authority.is_none()
        && loaded.config.discovery.is_none()
    {
        let path = args.config.path.display();
        anyhow::bail!(
            "{path} has none of the sections `controller`, `authority` and `discovery`; write `controller: {{ webhook: {{}} }}`"
        );
    }
    sidecar::run(RunArgs { config: args.config, die_with_parent: false, command: Vec::new() })
}

/// Makes injectors of profiles.
pub(crate) struct InjectProfiles;

impl Profiles for InjectProfiles {
    fn read(&self, profile: Option<&str>, never: &[String]) -> Result<Arc<dyn Injector>, String> {
        let mut settings = match profile {
            Some(text) => Settings::from_yaml(text)?,
            None => Settings::default(),
        };
        // The API server asks about pods of namespaces that opted in; whoever widens its selector does not widen ours.
        settings.namespaces = Namespaces::Enabled;
        settings.excluded_namespaces.extend_from_slice(never);
        Ok(Arc::new(PodInjector(settings)))
    }
}

struct PodInjector(Settings);

impl Injector for PodInjector {
    fn judge(&self, pod: &Value, namespace: &NamespaceFacts) -> Verdict {
        let NamespaceFacts { name, labels } = namespace.clone();
        match outrigger_inject::inject(pod, &Namespace { name, labels }, &self.0) {
            Outcome::Injected(injected) => Verdict::Changed { pod: injected.pod, warnings: injected.warnings },
            Outcome::Left(why) => Verdict::Left(why),
            Outcome::Refused(problems) => Verdict::Refused(problems),
        }
    }
}
