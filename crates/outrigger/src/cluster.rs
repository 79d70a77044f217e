//! `outrigger check`: how a cluster is, before an installation and after.
//!
//! In: a kubeconfig, settings. Out: a line for each thing that was looked at, with what to do where it is not green, and an exit
//! code. The work is in `outrigger-install`.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use outrigger_http::Resolver;
use outrigger_install::{Check, Report, State, look};
use outrigger_kubernetes::{Access, Client, Options};

use crate::cli::{Format, duration};
use crate::install::{Basics, settings};
use crate::output;
use crate::table::shown;

pub(crate) const HELP: &str = "\
With --pre: whether the cluster can take an installation (version, rights, API groups, other meshes, Pod Security). Without: how the
one that is there is: objects as they were installed, field by field; controllers; the webhook, by a pod made for trial (a dry
run); certificates and when they end; the lease; namespaces; pods that missed their sidecar; versions. Nothing is changed.

What it should be, the installation says itself; `-f` compares it with a values file instead. The cluster is found as kubectl does.

Examples:
  outrigger check --pre
  outrigger check --wait 2m && kubectl -n shop rollout restart deployment
  outrigger check --format json | jq '.findings[] | select(.state != \"ok\")'

Exit codes:
  0  all is well
  1  the cluster cannot be asked
  2  the command line or a setting is wrong
  3  something does not work
  4  nothing fails, but there are warnings, or what could not be looked at";

/// Between two looks with `--wait`.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Look at the cluster before an installation
    #[arg(long)]
    pre: bool,
    #[command(flatten)]
    basics: Basics,
    /// Look again until all is well, for so long at most
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "2m", value_parser = duration)]
    wait: Option<Duration>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// A kubeconfig; default: as kubectl finds it
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// Looks, and tells.
pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<u8> {
    let settings = match settings(&args.basics, |_| ())? {
        Ok(settings) => settings,
        Err(code) => return Ok(code),
    };
    let check = if args.pre {
        Check::Before(settings)
    } else {
        let namespace = settings.namespace.clone();
        Check::After { namespace, settings: args.basics.has_values().then_some(settings) }
    };
    let access = Access::find(args.kubeconfig.as_deref(), args.context.as_deref())?;
    let server = access.server().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let options = Options { timeout: Duration::from_secs(15), retries: 1, ..Options::default() };
    let client = Client::new(access, Resolver::from_system(), options);
    let report = runtime.block_on(until(&client, &check, args.wait))?;
    match args.format {
        Format::Json => {
            let told = serde_json::json!({ "server": server, "state": report.worst(), "findings": report.findings });
            output::print(&format!("{told:#}\n"))?;
        }
        Format::Text => output::print(&text(&report, output::stdout_takes_colour()))?,
    }
    Ok(match report.worst() {
        State::Ok => 0,
        State::Failed => 3,
        State::Unknown | State::Warning => 4,
    })
}

/// Looks once, or until all is well; what may not be looked at is not waited for.
async fn until(client: &Client, check: &Check, wait: Option<Duration>) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let live = wait.is_some() && std::io::stderr().is_terminal();
    loop {
        let result = look(client, check).await;
        let left = wait.unwrap_or_default().saturating_sub(begun.elapsed());
        let failing = match &result {
            Ok(report) => {
                let waits = |state| matches!(state, State::Failed | State::Warning);
                report.findings.iter().find(|finding| waits(finding.state)).map(|one| one.what.as_str())
            }
            Err(_) => Some("the API server"),
        };
        if live {
            let waits = failing
                .filter(|_| !left.is_zero())
                .map(|what| format!("waiting for {what}, {} s left", left.as_secs()));
            eprint!("\r\x1b[K{}", waits.unwrap_or_default());
            // A line that cannot be shown changes nothing.
            let _ = std::io::stderr().flush();
        }
        if failing.is_none() || left.is_zero() {
            return Ok(result?);
        }
        tokio::time::sleep(PAUSE.min(left)).await;
    }
}

fn text(report: &Report, colour: bool) -> String {
    let widest = report.findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
    let mut text = String::new();
    let mut counts = [0_usize; 4];
    for finding in &report.findings {
        let (word, code) = word(finding.state);
        counts[finding.state as usize] += 1;
        let word = if colour { format!("\x1b[{code}m{word:<7}\x1b[0m") } else { format!("{word:<7}") };
        let _ = writeln!(text, "{word}  {:<widest$}  {}", finding.what, shown(&finding.told));
        if let Some(mend) = &finding.mend {
            let _ = writeln!(text, "{:7}  {:widest$}  -> {}", "", "", shown(mend));
        }
    }
    let told: Vec<String> = [State::Failed, State::Warning, State::Unknown]
        .into_iter()
        .filter(|state| counts[*state as usize] > 0)
        .map(|state| format!("{} {}", counts[state as usize], word(state).0))
        .collect();
    let _ = match told.is_empty() {
        true => writeln!(text, "\nall is well"),
        false => writeln!(text, "\n{} of {}", told.join(", "), report.findings.len()),
    };
    text
}

/// How a state is written, and in which colour.
fn word(state: State) -> (&'static str, &'static str) {
    match state {
        State::Ok => ("ok", "32"),
        State::Unknown => ("unknown", "36"),
        State::Warning => ("warning", "33"),
        State::Failed => ("FAILED", "1;31"),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_install::Finding;

    use super::*;

    #[test]
    fn each_line_has_its_state_and_its_mend() {
        let finding = |what: &str, state, told: &str, mend: Option<&str>| Finding {
            what: what.to_owned(),
            state,
            told: told.to_owned(),
            mend: mend.map(str::to_owned),
        };
        let findings = vec![
            finding("version", State::Ok, "0.1.0", None),
            finding("webhook", State::Failed, "no \x1b[31manswer", Some("look at it")),
            finding("authority", State::Unknown, "not allowed", Some("ask another")),
        ];
        assert_eq!(
            text(&Report { findings: findings.clone() }, false),
            "ok       version    0.1.0\nFAILED   webhook    no \\u{1b}[31manswer\n                    -> look at it\n\
             unknown  authority  not allowed\n                    -> ask another\n\n1 FAILED, 1 unknown of 3\n"
        );
        assert!(text(&Report { findings: findings[..1].to_vec() }, true).ends_with("\nall is well\n"));
    }
}
