//! `outrigger inject` and `outrigger uninject`: manifests in, manifests out, without a cluster.
//!
//! In: files or standard input. Out: the manifests, or with `--explain` what becomes of each pod and
//! why. Promise: when a file cannot be read or a pod is refused, nothing is printed that could be
//! applied. The work is in `outrigger-inject`.

use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use outrigger_inject::{
    Action, Interception, Manifests, Outcome, Profile, Report, Settings, judge, process, read_manifests,
};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::output;
use crate::table::shown;

pub(crate) const HELP: &str = "\
Takes YAML with any number of documents, JSON, and Lists of objects; every kind that makes pods gets the sidecar, everything
else comes out byte for byte. What a pod's annotations `outrigger.dev/*` say counts more than --profiles, those more than flags, and
flags more than --profile. Injecting again changes nothing, or brings the sidecar up to date.

Examples:
  outrigger inject -f shop.yaml | kubectl apply -f -
  kubectl get deploy -n shop -o yaml | outrigger inject -f - --image registry.example/outrigger:0.1.0 | kubectl apply -f -
  outrigger inject -f shop.yaml --explain

Exit codes:
  0  done; pods that are left alone are no failure (--explain tells why)
  1  a file cannot be read, or is no YAML or JSON
  2  the command line or the profile is wrong
  3  a pod is refused: it asks for what it cannot have";

pub(crate) const UNINJECT_HELP: &str = "\
Gives back what `inject` was given, as far as nobody else has changed it since. Comments in documents that change are lost.

Exit codes:
  0  done; pods without the sidecar are left as they are
  1  a file cannot be read, or an injection cannot be taken back
  2  the command line is wrong";

#[derive(Debug, Args)]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    files: Files,
    /// A profile: what is injected, as YAML
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// SidecarProfiles and ClusterSidecarProfiles, as manifests; those that mean a pod refine the profile
    #[arg(long, value_name = "FILE")]
    profiles: Vec<PathBuf>,
    /// The image of Outrigger
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// How connections come to Outrigger
    #[arg(long, value_enum)]
    interception: Option<How>,
    /// For clusters before Kubernetes 1.29: a plain first container
    #[arg(long)]
    no_native_sidecars: bool,
    /// Tell what becomes of each pod and why, instead of printing manifests
    #[arg(long)]
    explain: bool,
    /// How --explain prints
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "explain")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct UninjectArgs {
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Args)]
struct Files {
    /// A file of manifests, or `-` for standard input; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short = 'n', long, value_name = "NAME", default_value = "default", value_parser = namespace)]
    namespace: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// An init container with NET_ADMIN redirects the pod's TCP connections
    Init,
    /// The sidecar redirects them itself at its start, and gives every capability up
    #[value(name = "self")]
    Own,
    /// The application calls listeners of the config itself
    None,
}

fn namespace(text: &str) -> Result<String, String> {
    let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.is_empty() && text.len() <= 63 && text.bytes().all(usual) {
        Ok(text.to_owned())
    } else {
        Err("a namespace has lower-case letters, digits and `-`".to_owned())
    }
}

/// Puts sidecars in.
pub(crate) fn inject(args: &InjectArgs) -> anyhow::Result<u8> {
    let given = settings(args).and_then(|settings| Ok((profiles(args, &settings)?, settings)));
    let (profiles, settings) = match given {
        Ok(given) => given,
        Err(error) => {
            output::error(&error);
            return Ok(2);
        }
    };
    let all = work(&args.files, Action::Inject(&settings, &profiles))?;
    if args.explain {
        match args.format {
            Format::Text => output::print(&explanation(&all, output::stdout_takes_colour()))?,
            Format::Json => output::print(&format!("{:#}\n", explanation_json(&all)))?,
        }
    }
    let mut refused = 0_u32;
    for (file, report) in reports(&all) {
        let object = called(file, report);
        match &report.outcome {
            Outcome::Refused(problems) if !args.explain => {
                for problem in problems {
                    output::error(&anyhow::anyhow!("{object}: {problem}"));
                }
            }
            Outcome::Injected(injected) if !args.explain => {
                injected.warnings.iter().for_each(|warning| note("warning", &format!("{object}: {warning}")));
            }
            Outcome::Left(why) if !args.explain => note("note", &format!("{object}: left alone: {why}")),
            _ => {}
        }
        refused += u32::from(matches!(report.outcome, Outcome::Refused(_)));
    }
    if refused > 0 {
        return Ok(3);
    }
    if !args.explain {
        print(&all)?;
    }
    Ok(0)
}

/// Takes sidecars out.
pub(crate) fn uninject(args: &UninjectArgs) -> anyhow::Result<u8> {
    print(&work(&args.files, Action::Uninject)?)?;
    Ok(0)
}

fn settings(args: &InjectArgs) -> anyhow::Result<Settings> {
    let mut settings = match &args.profile {
        None => Settings::default(),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read the profile {}", path.display()))?;
            Settings::from_yaml(&text)
                .map_err(|problem| anyhow::anyhow!("the profile {} is wrong: {problem}", path.display()))?
        }
    };
    if let Some(image) = &args.image {
        settings.image.clone_from(image);
    }
    match args.interception {
        Some(How::Init) => settings.interception = Interception::Init,
        Some(How::Own) => settings.interception = Interception::Own,
        Some(How::None) => settings.interception = Interception::None,
        None => {}
    }
    settings.native_sidecars &= !args.no_native_sidecars;
    Ok(settings)
}

/// Profiles that are manifests, judged as the webhook does.
fn profiles(args: &InjectArgs, settings: &Settings) -> anyhow::Result<Vec<Profile>> {
    let mut all = Vec::new();
    for path in &args.profiles {
        let name = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the profiles {name}"))?;
        let found = read_manifests(&text)
            .map_err(|problem| anyhow::anyhow!("the profiles {name} cannot be read: {problem}"))?;
        if found.is_empty() {
            anyhow::bail!(
                "{name} holds neither a SidecarProfile nor a ClusterSidecarProfile; a profile that is no object of a cluster goes to --profile"
            );
        }
        for mut profile in found {
            if profile.kind == outrigger_inject::ProfileKind::Namespaced && profile.namespace.is_empty() {
                profile.namespace.clone_from(&args.files.namespace);
            }
            let judged = judge(&profile, settings);
            judged
                .warnings
                .iter()
                .for_each(|warning| note("warning", &format!("{name}: {}: {warning}", profile.origin())));
            if let Some(mistake) = judged.mistakes.first() {
                anyhow::bail!("{name}: {} is wrong: {mistake}", profile.origin());
            }
            all.push(profile);
        }
    }
    Ok(all)
}

/// What was made of a file.
struct Worked {
    name: String,
    manifests: Manifests,
}

fn work(files: &Files, action: Action<'_>) -> anyhow::Result<Vec<Worked>> {
    let one = |path: &PathBuf| {
        let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.with_context(|| format!("cannot read {name}"))?;
        let manifests = process(&name, &text, &files.namespace, action)?;
        Ok(Worked { name, manifests })
    };
    files.files.iter().map(one).collect()
}

fn print(all: &[Worked]) -> anyhow::Result<()> {
    let mut text = String::new();
    for Worked { name, manifests } in all {
        for document in &manifests.comments_lost {
            note("note", &format!("{name}: document {document} was written anew, without its comments"));
        }
        // Files of YAML that follow one another are told apart.
        if !text.is_empty() && !manifests.text.starts_with("---") && !manifests.text.trim_start().starts_with('{') {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str("---\n");
        }
        text.push_str(&manifests.text);
    }
    output::print(&text)
}

fn note(word: &str, text: &str) {
    eprintln!("{word}: {}", shown(text));
}

fn reports(all: &[Worked]) -> impl Iterator<Item = (&str, &Report)> {
    all.iter().flat_map(|one| one.manifests.reports.iter().map(|report| (one.name.as_str(), report)))
}

/// `shop.yaml: document 2 (Deployment/orders)`.
fn called(file: &str, report: &Report) -> String {
    let item = report.item.map(|item| format!(", items[{item}]")).unwrap_or_default();
    format!("{file}: document {}{item} ({}/{})", report.document, report.object.kind, report.object.name)
}

fn explanation(all: &[Worked], colour: bool) -> String {
    let (bold, plain) = if colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let mut text = String::new();
    for (file, report) in reports(all) {
        let state = match &report.outcome {
            Outcome::Injected(_) => "injected",
            Outcome::Left(_) => "left alone",
            Outcome::Refused(_) => "refused",
        };
        let _ = writeln!(text, "{bold}{}{plain}: {state}", shown(&called(file, report)));
        match &report.outcome {
            Outcome::Injected(injected) => {
                for reason in &injected.reasons {
                    let _ = writeln!(text, "  + {}: {}", shown(&reason.what), shown(&reason.why));
                }
                for warning in &injected.warnings {
                    let _ = writeln!(text, "  ! {}", shown(warning));
                }
            }
            Outcome::Left(why) => {
                let _ = writeln!(text, "  {}", shown(why));
            }
            Outcome::Refused(problems) => {
                for problem in problems {
                    let _ = writeln!(text, "  x {}", shown(problem));
                }
            }
        }
    }
    if text.is_empty() {
        text.push_str("nothing here makes pods\n");
    }
    text
}

fn explanation_json(all: &[Worked]) -> Value {
    let each = reports(all).map(|(file, report)| {
        let mut told = json!({
            "file": file,
            "document": report.document,
            "kind": report.object.kind,
            "name": report.object.name,
            "namespace": report.object.namespace,
        });
        if let Some(item) = report.item {
            told["item"] = json!(item);
        }
        match &report.outcome {
            Outcome::Injected(injected) => {
                let reasons = injected.reasons.iter().map(|reason| json!({ "what": reason.what, "why": reason.why }));
                told["outcome"] = json!("injected");
                told["reasons"] = reasons.collect();
                told["warnings"] = json!(injected.warnings);
            }
            Outcome::Left(why) => {
                told["outcome"] = json!("left");
                told["reason"] = json!(why);
            }
            Outcome::Refused(problems) => {
                told["outcome"] = json!("refused");
                told["problems"] = json!(problems);
            }
        }
        told
    });
    json!({ "objects": each.collect::<Value>() })
}
