//! `outrigger controller`: the runtime with a controller's parts, and the injector for its webhook.

use std::sync::Arc;

use clap::Args;
use outrigger_config as config;
use outrigger_control::{
    Deliver, Delivered, Injector, NamespaceFacts, ParsedProfile, ProfileVerdict, Profiles, Verdict, When,
};
use outrigger_inject::{
    self as inject, Namespace, Namespaces, Outcome, Profile, ProfileKind, Refresh, Settings, Telling, inject_with,
    refresh,
};
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
        Ok(Arc::new(PodInjector(installed(profile, never)?)))
    }

    fn parse(&self, is_cluster: bool, object: &Value) -> ParsedProfile {
        let kind = if is_cluster { ProfileKind::Cluster } else { ProfileKind::Namespaced };
        let profile = Profile::of(kind, object);
        if let Err(mistakes) = profile.check() {
            let problem = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::warn!(
                component = "controller",
                profile = profile.origin(),
                problem,
                "a profile is wrong; pods that it means are refused"
            );
        }
        Arc::new(profile)
    }
}

/// What an installation's profile says to the webhook. Pods of namespaces in `never` are left alone.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn installed(profile: Option<&str>, never: &[String]) -> Result<Settings, String> {
    let mut settings = match profile {
        Some(text) => Settings::from_yaml(text)?,
        None => Settings::default(),
    };
    // The API server asks about pods of namespaces that opted in; whoever widens its selector does not widen ours.
    settings.namespaces = Namespaces::Enabled;
    settings.excluded_namespaces.extend_from_slice(never);
    Ok(settings)
}

struct PodInjector(Settings);

impl Injector for PodInjector {
    fn judge(&self, pod: &Value, namespace: &NamespaceFacts, profiles: &[ParsedProfile]) -> Verdict {
        let NamespaceFacts { name, labels } = namespace.clone();
        // All of them are ours: they come of `parse`.
        let profiles = profiles.iter().filter_map(|one| one.downcast_ref::<Profile>());
        match inject_with(pod, &Namespace { name, labels }, &self.0, profiles) {
            Outcome::Injected(injected) => Verdict::Changed { pod: injected.pod, warnings: injected.warnings },
            Outcome::Left(why) => Verdict::Left(why),
            Outcome::Refused(problems) => Verdict::Refused(problems),
        }
    }

    fn judge_profile(&self, object: &Value) -> ProfileVerdict {
        Profile::read(object).map(|profile| self.judged(&profile)).unwrap_or_default()
    }

    fn judge_parsed(&self, profile: &ParsedProfile) -> ProfileVerdict {
        profile.downcast_ref::<Profile>().map(|profile| self.judged(profile)).unwrap_or_default()
    }

    fn deliver(&self, pod: &Value, namespace: &NamespaceFacts, profiles: &[ParsedProfile]) -> Option<Deliver> {
        let NamespaceFacts { name, labels } = namespace.clone();
        let namespace = Namespace { name, labels };
        let profiles: Vec<&Profile> = profiles.iter().filter_map(|one| one.downcast_ref::<Profile>()).collect();
        let what = match refresh(pod, &namespace, &self.0, profiles.iter().copied()) {
            Refresh::None => return None,
            Refresh::Current => Delivered::Current,
            Refresh::Tell(Telling { annotations, config, when, last }) => {
                let when = match when {
                    inject::When::Now => When::Now,
                    inject::When::Taken => When::Taken,
                    inject::When::Heard => When::Heard,
                };
                Delivered::Tell(outrigger_control::Telling { annotations, config, when, last })
            }
            Refresh::Anew(why) => Delivered::Anew(why),
            Refresh::Refused(why) => Delivered::Refused(why),
        };
        let means = |(at, profile): (usize, &&Profile)| profile.mismatch(pod, &namespace).is_none().then_some(at);
        Some(Deliver { meant: profiles.iter().enumerate().filter_map(means).collect(), what })
    }
}

impl PodInjector {
    fn judged(&self, profile: &Profile) -> ProfileVerdict {
        let judged = outrigger_inject::judge(profile, &self.0);
        let told = |all: Vec<outrigger_inject::Mistake>| all.iter().map(ToString::to_string).collect();
        ProfileVerdict { problems: told(judged.mistakes), warnings: told(judged.warnings) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profiles_schema_has_each_setting_that_the_injector_takes() {
        let objects = outrigger_install::objects(&outrigger_install::Settings::default());
        let definition = objects.iter().find(|one| one.value["metadata"]["name"] == "sidecarprofiles.outrigger.dev");
        let schema =
            &definition.unwrap().value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let injection = &schema["properties"]["injection"]["properties"];
        let keys = |value: &Value| {
            let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let mut settings = serde_json::to_value(Settings::default()).unwrap();
        for other in ["config", "namespaces", "excludedNamespaces", "mesh"] {
            settings.as_object_mut().unwrap().remove(other);
        }
        assert_eq!(keys(injection), keys(&settings));
        for inner in ["resources", "redirect", "vault"] {
            assert_eq!(keys(&injection[inner]["properties"]), keys(&settings[inner]), "{inner}");
        }
        // And the sections of a config that are a sidecar's.
        let sections = keys(&schema["properties"]["config"]["properties"]);
        assert!(sections.contains(&"proxy".to_owned()) && !sections.contains(&"controller".to_owned()), "{sections:?}");
    }
}
