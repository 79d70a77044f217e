//! `outrigger install` and `outrigger uninstall`: what a cluster needs to have Outrigger, and what to delete to have it no more.
//!
//! In: a values file and flags. Out: YAML for `kubectl`, the same each time. Promise: no cluster is asked; nothing is printed
//! when a setting is wrong. The work is in `outrigger-install`.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use outrigger_install::{FailurePolicy, Interception, Mtls, Settings, WebhookCertificate, objects, removal, write};

use crate::output;

pub(crate) const HELP: &str = "\
Prints namespace, service account, rights, controllers, service and webhook. Flags count more than the values file, whose keys are
in docs/reference/install.md; the Helm chart in deploy/chart takes the same file. Applying it again changes nothing.

Examples:
  outrigger check --pre
  outrigger install | kubectl apply -f -
  outrigger install -f values.yaml --image registry.example/outrigger:0.1.0 | kubectl apply -f -
  outrigger install | kubectl diff -f -
  kubectl label namespace shop outrigger.dev/inject=enabled

Exit codes:
  0  printed
  1  a file cannot be read
  2  the command line or a setting is wrong; nothing is printed";

pub(crate) const UNINSTALL_HELP: &str = "\
Prints the objects' names, those first that hold up pods. Take the settings of the installation (`-f`, `--namespace`).

Pods keep their sidecars until they are made anew, and those run on with what they know until their certificates end. With the
namespace goes the Secret of the authority's roots: identities of an installation that comes later are others.

Example:
  outrigger uninstall | kubectl delete --ignore-not-found -f -

Exit codes:
  0  printed
  1  a file cannot be read
  2  the command line or a setting is wrong; nothing is printed";

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    basics: Basics,
    /// The image of controller and sidecars
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// How many controllers run
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// The trust domain of all identities
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<outrigger_config::TrustDomain>,
    /// How connections come to the sidecars
    #[arg(long, value_enum)]
    interception: Option<How>,
    /// What connections to pods with a sidecar must be
    #[arg(long, value_enum)]
    mtls: Option<Peers>,
    /// What becomes of new pods of namespaces that opted in while no controller answers
    #[arg(long, value_enum)]
    failure_policy: Option<Policy>,
    /// cert-manager makes the webhook's certificate, instead of the controllers
    #[arg(long)]
    cert_manager: bool,
    /// CPU that is reserved for a controller
    #[arg(long, value_name = "QUANTITY", help_heading = "Resources")]
    cpu_request: Option<String>,
    /// CPU of a controller at most
    #[arg(long, value_name = "QUANTITY", help_heading = "Resources")]
    cpu_limit: Option<String>,
    /// Memory that is reserved for a controller
    #[arg(long, value_name = "QUANTITY", help_heading = "Resources")]
    memory_request: Option<String>,
    /// Memory of a controller at most
    #[arg(long, value_name = "QUANTITY", help_heading = "Resources")]
    memory_limit: Option<String>,
    /// Print what to delete instead; the same as `outrigger uninstall`
    #[arg(long)]
    uninstall: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    basics: Basics,
}

#[derive(Debug, Args)]
pub(crate) struct Basics {
    /// A values file, or `-` for standard input
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    values: Option<PathBuf>,
    /// The controllers' namespace
    #[arg(short = 'n', long, value_name = "NAME")]
    namespace: Option<String>,
    /// The namespace is somebody else's: it is neither made nor deleted
    #[arg(long)]
    no_namespace: bool,
}

impl Basics {
    /// Whether a values file was given.
    pub(crate) fn has_values(&self) -> bool {
        self.values.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// An init container with NET_ADMIN redirects the pods' TCP connections
    Init,
    /// The sidecar redirects them itself at its start, and gives every capability up
    #[value(name = "self")]
    Own,
    /// Applications call listeners of the config themselves
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peers {
    /// mTLS from other sidecars, plain text from all others
    Permissive,
    /// mTLS from workloads of the trust domain, and nothing else
    Strict,
    /// Plain text
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Policy {
    /// They wait
    Fail,
    /// They start without a sidecar
    Ignore,
}

/// Prints what to apply, or what to delete.
pub(crate) fn install(args: &InstallArgs) -> anyhow::Result<u8> {
    let change = |settings: &mut Settings| {
        fn set<T>(slot: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *slot = given;
            }
        }
        set(&mut settings.image, args.image.clone());
        set(&mut settings.replicas, args.replicas);
        set(&mut settings.trust_domain, args.trust_domain.clone());
        let how = args.interception.map(|how| match how {
            How::Init => Interception::Init,
            How::Own => Interception::Own,
            How::None => Interception::None,
        });
        set(&mut settings.interception, how);
        let mtls = args.mtls.map(|peers| match peers {
            Peers::Permissive => Mtls::Permissive,
            Peers::Strict => Mtls::Strict,
            Peers::Disabled => Mtls::Disabled,
        });
        set(&mut settings.mtls, mtls);
        let policy = args.failure_policy.map(|policy| match policy {
            Policy::Fail => FailurePolicy::Fail,
            Policy::Ignore => FailurePolicy::Ignore,
        });
        set(&mut settings.failure_policy, policy);
        set(&mut settings.webhook_certificate, args.cert_manager.then_some(WebhookCertificate::CertManager));
        let resources = &mut settings.resources;
        for (slot, given) in [
            (&mut resources.cpu_request, &args.cpu_request),
            (&mut resources.cpu_limit, &args.cpu_limit),
            (&mut resources.memory_request, &args.memory_request),
            (&mut resources.memory_limit, &args.memory_limit),
        ] {
            set(slot, given.clone().map(Some));
        }
    };
    let settings = match settings(&args.basics, change)? {
        Ok(settings) => settings,
        Err(code) => return Ok(code),
    };
    if args.uninstall { print_removal(&settings) } else { print_objects(&settings) }
}

/// Prints what to delete.
pub(crate) fn uninstall(args: &UninstallArgs) -> anyhow::Result<u8> {
    match settings(&args.basics, |_| ())? {
        Ok(settings) => print_removal(&settings),
        Err(code) => Ok(code),
    }
}

/// The values file, then the flags; or the exit code, once the mistake was told.
pub(crate) fn settings(basics: &Basics, change: impl FnOnce(&mut Settings)) -> anyhow::Result<Result<Settings, u8>> {
    let from =
        |path: &Path| if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let read = |path: &Path| {
        if path != Path::new("-") {
            return std::fs::read_to_string(path);
        }
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    };
    let mut settings = match &basics.values {
        None => Settings::default(),
        Some(path) => {
            let text = read(path).with_context(|| format!("cannot read {}", from(path)))?;
            match Settings::from_yaml(&text) {
                Ok(settings) => settings,
                Err(problem) => return Ok(Err(wrong(&format!("the values in {} are wrong: {problem}", from(path))))),
            }
        }
    };
    if let Some(namespace) = &basics.namespace {
        settings.namespace.clone_from(namespace);
    }
    settings.create_namespace &= !basics.no_namespace;
    change(&mut settings);
    // What goes to the sidecars is the injector's to judge.
    let profile = settings.profile.clone().map(|profile| profile.to_string());
    let judged = settings.check().and_then(|()| match profile {
        Some(profile) => outrigger_inject::Settings::from_yaml(&profile)
            .map(drop)
            .map_err(|problem| format!("`profile` is wrong: {problem}")),
        None => Ok(()),
    });
    Ok(judged.map(|()| settings).map_err(|problem| wrong(&problem)))
}

fn wrong(problem: &str) -> u8 {
    output::error(&anyhow::anyhow!("{problem}"));
    2
}

fn print_objects(settings: &Settings) -> anyhow::Result<u8> {
    output::print(&write(&objects(settings)))?;
    hint("apply it with `outrigger install … | kubectl apply -f -`, then see how it is with `outrigger check --wait`");
    Ok(0)
}

fn print_removal(settings: &Settings) -> anyhow::Result<u8> {
    output::print(&write(&removal(settings)))?;
    hint("delete it with `outrigger uninstall … | kubectl delete --ignore-not-found -f -`");
    Ok(0)
}

/// For who looks at what was printed; who pipes it on knows.
fn hint(text: &str) {
    if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
        eprintln!("note: {text}");
    }
}
