//! `outrigger explain`: what becomes of a request, and why.
//!
//! In: a request as flags, and a config or a running Outrigger. Out: the way it takes, step by
//! step, for people or as JSON. Promise: the same code answers that routes requests; what others
//! wrote cannot act on the terminal.

use std::fmt::Write;
use std::net::SocketAddr;

use clap::{Args, Subcommand};
use outrigger_config as config;
use outrigger_traffic::explain::{Explanation, Question, explain};

use crate::admin::{Admin, AdminArgs};
use crate::cli::Format;
use crate::explain_pod::{self, PodArgs};
use crate::output;
use crate::table::shown;

pub(crate) const HELP: &str = "\
Without --live the config file is asked: nothing runs, and nothing is sent. With --live the Outrigger that runs is asked over
its admin API, and tells how the endpoints are.

Examples:
  outrigger explain -c outrigger.yaml --url http://backend.shop/items?page=2 --listener in
  outrigger explain --url http://h/ --method POST --header 'content-type: application/grpc' --peer spiffe://shop/ns/a/sa/b
  outrigger explain --url http://10.96.0.1:80/ --listener out          where a redirected connection goes
  kubectl exec shop-0 -c outrigger -- outrigger explain --live --url http://backend.shop/items
  outrigger explain pod shop-0 -n shop                                 why its sidecar is as it is

`nearer` lists the matches that count more than the one that takes the request, in their order, and what keeps each from it.
Fields that the proxy itself adds or removes (hop-by-hop, x-forwarded-client-cert, …) are not shown.

Exit codes:
  0  a route takes the request
  1  the config is invalid, or Outrigger cannot be reached
  2  the command line is wrong, or asks for no request that could come in
  3  the request is refused: no route takes it, or its path is bad";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    command: Option<ExplainCommand>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Ask the Outrigger that runs, not the config file
    #[arg(long)]
    live: bool,
    /// The request's method
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// What is asked for: `http://HOST[:PORT]/PATH?QUERY`
    #[arg(long, value_name = "URL", required = true)]
    url: Option<String>,
    /// A field of the request, as `name: value`; may be given several times
    #[arg(long, short = 'H', value_name = "FIELD", value_parser = field)]
    header: Vec<(String, String)>,
    /// The SPIFFE ID of who sends it
    #[arg(long, value_name = "ID")]
    peer: Option<String>,
    /// The listener it comes in at; may be left out when only one speaks HTTP
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Where it wanted to go before it was redirected to the listener, as IP:PORT
    #[arg(long, value_name = "ADDRESS")]
    destination: Option<SocketAddr>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum ExplainCommand {
    /// Tell why a pod's sidecar is as it is: each value with its origin, the profiles that count, and what differs
    #[command(after_help = explain_pod::HELP)]
    Pod(PodArgs),
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Explains a request.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<u8> {
    if let Some(ExplainCommand::Pod(args)) = &args.command {
        return explain_pod::run(args);
    }
    let question = Question {
        method: args.method.clone(),
        url: args.url.clone().unwrap_or_default(),
        headers: args.header.clone(),
        peer: args.peer.clone(),
        listener: args.listener.clone(),
        destination: args.destination,
    };
    let told: Explanation = if args.live {
        serde_json::from_str(&Admin::new(&args.admin)?.get(&format!("/explain?{}", query(&question)))?)?
    } else {
        let loaded = match config::load(&args.admin.path()) {
            Ok(loaded) => loaded,
            Err(diagnostics) => {
                output::diagnostics(&diagnostics)?;
                return Ok(1);
            }
        };
        match explain(&loaded.config, &question) {
            Ok(told) => told,
            Err(why) => {
                output::error(&anyhow::anyhow!(why));
                return Ok(2);
            }
        }
    };
    match args.format {
        Format::Json => output::print(&format!("{:#}\n", serde_json::to_value(&told)?))?,
        Format::Text => output::print(&text(&told, output::stdout_takes_colour()))?,
    }
    Ok(if told.refused.is_some() { 3 } else { 0 })
}

/// A question as the query of `GET /explain`.
fn query(question: &Question) -> String {
    let mut parts = vec![format!("method={}", escaped(&question.method)), format!("url={}", escaped(&question.url))];
    parts.extend(
        question.headers.iter().map(|(name, value)| format!("header={}", escaped(&format!("{name}: {value}")))),
    );
    parts.extend(question.peer.iter().map(|peer| format!("peer={}", escaped(peer))));
    parts.extend(question.listener.iter().map(|listener| format!("listener={}", escaped(listener))));
    parts.extend(question.destination.iter().map(|address| format!("destination={}", escaped(&address.to_string()))));
    parts.join("&")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Lines with a word before them.
struct Lines {
    text: String,
    colour: bool,
    before: &'static str,
}

impl Lines {
    fn add(&mut self, word: &'static str, line: &str) {
        let told = if std::mem::replace(&mut self.before, word) == word { "" } else { word };
        let (bold, plain) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let _ = writeln!(self.text, "{bold}{told:<10}{plain} {}", shown(line));
    }
}

fn text(told: &Explanation, colour: bool) -> String {
    let mut lines = Lines { text: String::new(), colour, before: "" };
    let request = &told.request;
    lines.add("request", &format!("{} {}, host {}", request.method, request.path, named(&request.host)));
    let listener = &told.listener;
    lines.add(
        "listener",
        &format!("{} ({}, {}, {})", listener.name, listener.direction, listener.address, listener.protocol),
    );
    told.notes.iter().for_each(|note| lines.add("note", note));
    told.normalised.iter().for_each(|path| lines.add("normalised", path));
    let wide = told.nearer.iter().map(|one| one.route.len()).max().unwrap_or(0);
    for one in &told.nearer {
        lines.add(
            "nearer",
            &format!("{:<wide$} match {} ({} {}): {}", one.route, one.number, one.host, one.path, one.reason),
        );
    }
    if told.more > 0 {
        lines.add("nearer", &format!("and {} more, for other hosts or paths", told.more));
    }
    if let Some(route) = &told.route {
        let place = route.number.map(|number| format!(", match {number}: {} {}", route.host, route.path));
        lines.add("route", &format!("{} ({}{})", route.name, route.kind.as_str(), place.unwrap_or_default()));
    }
    told.filters.iter().for_each(|filter| lines.add("filter", filter));
    if let Some(forwarded) = told.forwarded.as_ref().filter(|forwarded| **forwarded != told.request) {
        lines.add("forwarded", &format!("{} {}, host {}", forwarded.method, forwarded.path, named(&forwarded.host)));
        for (name, value) in forwarded.headers.iter().filter(|field| !told.request.headers.contains(field)) {
            lines.add("forwarded", &format!("{name}: {value}"));
        }
    }
    told.global_rate_limits.iter().for_each(|asked| lines.add("rate limit", asked));
    if let Some(session) = &told.session {
        let brought = match (&session.endpoint, session.brought) {
            (Some(endpoint), _) => format!("brought, of {endpoint}"),
            (None, true) if told.live => "brought, but it counts no more".to_owned(),
            (None, true) => "brought".to_owned(),
            (None, false) => "not brought".to_owned(),
        };
        lines.add("session", &format!("{} `{}`, ends {}; {brought}", session.kind, session.name, session.ends));
    }
    told.timeout.iter().for_each(|timeout| lines.add("timeout", timeout));
    for backend in &told.backends {
        let share = if backend.share < 100.0 { format!("{:.1} % to ", backend.share) } else { String::new() };
        lines.add("cluster", &format!("{share}{}, {}", backend.cluster, backend.tls));
        backend.filters.iter().for_each(|filter| lines.add("cluster", &format!("  {filter}")));
        if backend.original_destination && backend.endpoints.is_empty() {
            lines.add("cluster", "  where the request wanted to go");
        }
        for endpoint in &backend.endpoints {
            let mut line = format!("  {}", endpoint.address);
            if endpoint.weight != 1 {
                let _ = write!(line, ", weight {}", endpoint.weight);
            }
            if endpoint.priority > 0 {
                let _ = write!(line, ", priority {}", endpoint.priority);
            }
            if let Some(zone) = &endpoint.zone {
                let _ = write!(line, ", zone {zone}");
            }
            if let Some(state) = &endpoint.state {
                let _ = write!(line, ", {state}");
            }
            lines.add("cluster", &line);
        }
        if backend.endpoints.is_empty() && !backend.original_destination {
            lines.add("cluster", "  no endpoint");
        }
    }
    if let Some(response) = &told.response {
        lines.add("answer", &response.status.to_string());
        response.headers.iter().for_each(|(name, value)| lines.add("answer", &format!("{name}: {value}")));
        if !response.body.is_empty() {
            lines.add("answer", &format!("{} bytes of body", response.body.len()));
        }
    }
    if let Some(refused) = &told.refused {
        let status = if refused.status > 0 { format!("{}: ", refused.status) } else { String::new() };
        lines.add("refused", &format!("{status}{}", refused.reason));
    }
    lines.text
}

fn named(host: &str) -> &str {
    if host.is_empty() { "(none)" } else { host }
}
