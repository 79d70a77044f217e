//! `outrigger wait`: holds others back until a running Outrigger is ready.
//!
//! In: which one, and for how long. Out: an exit code; when it does not become ready, why not, component by
//! component. Made for a `postStart` hook, so that the kubelet starts the application's containers only afterwards.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::admin::{Admin, AdminArgs};
use crate::cli::{Format, duration};
use crate::output;

pub(crate) const HELP: &str = "\
Meant as the start barrier of a pod: `lifecycle.postStart.exec.command: [/outrigger, wait]` of the sidecar holds back the
containers behind it, without the second that a startup probe costs.

Exit codes:
  0  ready
  1  not ready in time
  2  the command line is wrong";

/// Short beside what a start takes, and long beside what asking costs.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// How the outcome is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Waits; 0 when it is ready, 1 when it is not in time.
pub(crate) fn wait(args: &WaitArgs) -> anyhow::Result<u8> {
    let begun = Instant::now();
    let mut admin = None;
    let error = loop {
        match ask(&mut admin, &args.admin) {
            Ok(()) => break None,
            Err(error) if begun.elapsed() >= args.timeout => break Some(error),
            Err(_) => std::thread::sleep(PAUSE.min(args.timeout.saturating_sub(begun.elapsed()))),
        }
    };
    let waited = begun.elapsed().as_secs_f64();
    if args.format == Format::Json {
        let why = error.as_ref().map(|error| format!("{error:#}"));
        let value = serde_json::json!({ "ready": error.is_none(), "waitedSeconds": waited, "error": why });
        output::print(&format!("{value:#}\n"))?;
    }
    match error {
        None => Ok(0),
        Some(error) => Err(error).with_context(|| format!("Outrigger did not become ready in {waited:.1} s")),
    }
}

/// Whether it is ready; if not, in the error is why.
fn ask(admin: &mut Option<Admin>, args: &AdminArgs) -> anyhow::Result<()> {
    let admin = match admin {
        Some(admin) => admin,
        // Its config may be written only by now.
        None => admin.insert(Admin::new(args)?),
    };
    admin.run(admin.fetch("/readyz?verbose", "text/plain")).map(drop)
}
