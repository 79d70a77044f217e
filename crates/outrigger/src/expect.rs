//! `outrigger test`: whether the routes do what the config's `tests` expect.
//!
//! In: a config file. Out: each test, and what is not as expected. Promise: nothing is started
//! and nothing is sent; the same code answers that routes requests.

use std::fmt::Write;

use anyhow::bail;
use clap::Args;
use outrigger_config as config;
use outrigger_traffic::explain::{Difference, judge_test};
use serde_json::json;

use crate::cli::{ConfigFile, Format};
use crate::output;
use crate::table::shown;

pub(crate) const HELP: &str = "\
A test is a request, and what is expected to become of it:

  tests:
    - name: canaries
      request: { url: \"http://backend.shop/items/7\", headers: [{ name: x-canary, value: \"yes\" }] }
      expect: { route: canary, backend: canary, request: { path: /v2/7 } }
    - name: old host
      request: { url: \"http://old.shop/items\" }
      expect: { response: { status: 301, headers: [{ name: location, value: \"http://new.shop/items\" }] } }

`backend` is any cluster that the route gives a weight above 0. `response` is what the proxy answers itself.

Exit codes:
  0  all tests hold
  1  a test does not hold, or none of those asked for exists
  2  the config is invalid or has no tests, or the command line is wrong";

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Only tests whose name holds this
    #[arg(value_name = "NAME")]
    only: Option<String>,
    /// How results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How one test went.
struct Outcome<'t> {
    name: &'t str,
    differences: Vec<Difference>,
    /// Why its request could not come in.
    error: Option<String>,
}

impl Outcome<'_> {
    fn holds(&self) -> bool {
        self.differences.is_empty() && self.error.is_none()
    }
}

/// Runs the tests of a config.
pub(crate) fn run(args: &TestArgs) -> anyhow::Result<u8> {
    let loaded = match config::load(&args.config.path) {
        Ok(loaded) => loaded,
        Err(diagnostics) => {
            output::diagnostics(&diagnostics)?;
            return Ok(2);
        }
    };
    if loaded.config.tests.is_empty() {
        output::error(&anyhow::anyhow!("{} has no `tests`; see `outrigger test --help`", args.config.path.display()));
        return Ok(2);
    }
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| name.contains(only));
    let tests = loaded.config.tests.iter().filter(|test| wanted(&test.name));
    let outcomes: Vec<_> = tests
        .map(|test| match judge_test(&loaded.config, test) {
            Ok((_, differences)) => Outcome { name: &test.name, differences, error: None },
            Err(why) => Outcome { name: &test.name, differences: Vec::new(), error: Some(why.to_string()) },
        })
        .collect();
    if outcomes.is_empty() {
        bail!("no test's name holds `{}`", args.only.as_deref().unwrap_or_default());
    }
    match args.format {
        Format::Json => output::print(&format!("{:#}\n", as_json(&outcomes)))?,
        Format::Text => output::print(&as_text(&outcomes, output::stdout_takes_colour()))?,
    }
    Ok(u8::from(outcomes.iter().any(|outcome| !outcome.holds())))
}

fn as_json(outcomes: &[Outcome<'_>]) -> serde_json::Value {
    let failed = outcomes.iter().filter(|outcome| !outcome.holds()).count();
    let tests = outcomes.iter().map(|outcome| {
        json!({
            "name": outcome.name, "ok": outcome.holds(), "differences": outcome.differences, "error": outcome.error,
        })
    });
    json!({ "tests": tests.collect::<serde_json::Value>(), "passed": outcomes.len() - failed, "failed": failed })
}

fn as_text(outcomes: &[Outcome<'_>], colour: bool) -> String {
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut text = String::new();
    for outcome in outcomes {
        let word = if outcome.holds() { paint("32", "ok  ") } else { paint("1;31", "FAIL") };
        let _ = writeln!(text, "{word} {}", shown(outcome.name));
        for one in &outcome.differences {
            let _ = writeln!(text, "     {}", shown(&one.what));
            let _ = writeln!(text, "{}", paint("32", &format!("       - expected: {}", shown(&one.expected))));
            let _ = writeln!(text, "{}", paint("31", &format!("       + got:      {}", shown(&one.got))));
        }
        if let Some(error) = &outcome.error {
            let _ = writeln!(text, "     {}", shown(error));
        }
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.holds()).count();
    let _ = writeln!(text, "{} passed, {failed} failed", outcomes.len() - failed);
    text
}
