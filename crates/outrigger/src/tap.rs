//! `outrigger tap`: requests as they end, live.
//!
//! In: conditions as flags. Out: a line per request, for people or as JSON. Promise: what is
//! wrong with a condition is said before anybody is asked; bytes that a client sent cannot act on
//! the terminal; what was missed is said where it is missing.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use outrigger_traffic::tap::TapQuery;
use serde_json::Value;

use crate::admin::{Admin, AdminArgs};
use crate::cli::Format;
use crate::output;
use crate::table::{Align, pad, seconds, shown, width};

pub(crate) const HELP: &str = "\
A request is shown when it ends; those under way when the tap begins may be missing, and ones that last (WebSockets,
gRPC streams, TCP) are listed by `outrigger connections`. Conditions of several kinds must all hold; of one kind any of
the values, which stand between commas or in a flag of their own. `*` stands for any text.

Examples:
  outrigger tap --status 5xx                                what fails
  outrigger tap --min-latency 200ms --route 'cart-*'        what is slow
  outrigger tap --peer 'spiffe://shop.example/ns/web/*'     who calls
  outrigger tap --path /api --header x-tenant=blue --headers
  outrigger tap --path /api/orders --bodies 1KiB            what is sent and answered
  outrigger tap --flag UF,UT --format json --max 10 | jq .
  kubectl exec shop-0 -c outrigger -- outrigger tap --status 400-499

Values of fields that may be secret (authorization, cookie, names with `token`, `secret`, … and `proxy.maskHeaders`) show
as length and mark; the same mark is the same value. Queries are never shown, bodies only with --bodies: as the application
has them, before answers are compressed. Members of JSON and fields of forms with such names are masked in them, what else they
hold is not; what is no text is shown in base64. The same is served to curl as `GET /tap?status=5xx&headers` at the admin
address, one JSON object a line.

Exit codes:
  0  --max or --duration was reached, or the reader of our output has gone
  1  Outrigger cannot be reached or refused, or it ended first
  2  the command line is wrong";

/// Most columns that a name may take.
const WIDEST: usize = 28;

#[derive(Debug, Args)]
pub(crate) struct TapArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Name of the route
    #[arg(long, value_name = "NAME")]
    route: Vec<String>,
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    cluster: Vec<String>,
    /// Name of the listener
    #[arg(long, value_name = "NAME")]
    listener: Vec<String>,
    /// `inbound` or `outbound`
    #[arg(long, value_name = "DIRECTION")]
    direction: Vec<String>,
    /// How the path begins, or with `*` all of it
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
    /// Method
    #[arg(long, value_name = "METHOD")]
    method: Vec<String>,
    /// Status: `503`, `5xx` or `400-499`; 0 is none, for the client went
    #[arg(long, value_name = "STATUS")]
    status: Vec<String>,
    /// Status of a gRPC call: `14` or `1-16`
    #[arg(long, value_name = "STATUS")]
    grpc_status: Vec<String>,
    /// What took at least so long
    #[arg(long, value_name = "DURATION")]
    min_latency: Option<String>,
    /// SPIFFE ID of the other side
    #[arg(long, value_name = "ID")]
    peer: Vec<String>,
    /// A field of the request; all that are given must be there
    #[arg(long, value_name = "NAME[=VALUE]")]
    header: Vec<String>,
    /// Response flag: UF, UT, NR, …
    #[arg(long, value_name = "FLAG")]
    flag: Vec<String>,
    /// Part of the reason for which a request failed
    #[arg(long, value_name = "TEXT")]
    reason: Vec<String>,
    /// End after so many
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "DURATION")]
    duration: Option<String>,
    /// Show only a share of them: `0.1` or `10%`
    #[arg(long, value_name = "SHARE")]
    sample: Option<String>,
    /// Show the fields of request and response too
    #[arg(long)]
    headers: bool,
    /// Show up to so many bytes of both bodies: `1KiB`, at most 64KiB. They may hold what no mask knows
    #[arg(long, value_name = "SIZE")]
    bodies: Option<String>,
    /// How requests are printed; `json` is one object a line
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl TapArgs {
    fn query(&self) -> String {
        let one = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
        let mut query = String::new();
        for (name, values) in [
            ("route", &self.route),
            ("cluster", &self.cluster),
            ("listener", &self.listener),
            ("direction", &self.direction),
            ("path", &self.path),
            ("method", &self.method),
            ("status", &self.status),
            ("grpc-status", &self.grpc_status),
            ("min-latency", &one(&self.min_latency)),
            ("peer", &self.peer),
            ("header", &self.header),
            ("flag", &self.flag),
            ("reason", &self.reason),
            ("max", &self.max.iter().map(u64::to_string).collect()),
            ("duration", &one(&self.duration)),
            ("sample", &one(&self.sample)),
            ("bodies", &one(&self.bodies)),
            ("headers", &self.headers.then(|| "true".to_owned()).into_iter().collect()),
        ] {
            for value in values {
                query.push_str(if query.is_empty() { "" } else { "&" });
                query.push_str(name);
                query.push('=');
                encode(&mut query, value);
            }
        }
        query
    }
}

/// Shows requests until it is enough.
pub(crate) fn tap(args: &TapArgs) -> anyhow::Result<u8> {
    let query = args.query();
    let asked = match TapQuery::parse(&query) {
        Ok(asked) => asked,
        Err(problem) => {
            output::error(&anyhow::anyhow!("--{}", problem.replacen('`', "", 2)));
            return Ok(2);
        }
    };
    let admin = Admin::new(&args.admin)?;
    let mut printer = Printer::new(args.format, output::stdout_takes_colour());
    let begun = || {
        let _ = writeln!(io::stderr(), "tapping the Outrigger at {}; Ctrl-C ends it", admin.place());
        Ok(())
    };
    let since = Instant::now();
    let mut rest = Vec::new();
    let mut told = 0;
    let mut gone = false;
    admin.stream(&format!("/tap?{query}"), begun, |piece| {
        rest.extend_from_slice(piece);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(true) };
        let lines: Vec<u8> = rest.drain(..=end).collect();
        let mut text = String::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            told += u64::from(printer.add(&mut text, line)?);
        }
        gone = !written(&text)?;
        Ok(!gone)
    })?;
    // The server counts, too; a clock of ours may be a little ahead of its.
    let in_time = |duration: Duration| since.elapsed() + Duration::from_millis(100) >= duration;
    if gone || asked.most.is_some_and(|most| told >= most) || asked.duration.is_some_and(in_time) {
        return Ok(0);
    }
    bail!("the Outrigger at {} ended the stream: it stops, or its proxy does", admin.place());
}

/// Whether there is still a reader.
fn written(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

/// Percent-encodes all but what is plain everywhere.
fn encode(query: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b'*' | b',' | b':' => {
                query.push(char::from(byte));
            }
            byte => query.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// Makes lines of what the server tells.
struct Printer {
    format: Format,
    colour: bool,
    begun: bool,
    /// Columns that names took so far.
    widths: [usize; 5],
}

impl Printer {
    fn new(format: Format, colour: bool) -> Self {
        Self { format, colour, begun: false, widths: [3, 5, 7, 4, 4] }
    }

    /// Adds the text of one line; says whether it is a request's.
    fn add(&mut self, text: &mut String, line: &[u8]) -> anyhow::Result<bool> {
        let told: Value = serde_json::from_slice(line)?;
        let missed = told["missed"].as_u64();
        match (self.format, missed) {
            (Format::Json, _) => {
                text.push_str(str::from_utf8(line)?);
                text.push('\n');
            }
            (Format::Text, Some(missed)) => text.push_str(&format!("… {missed} missed\n")),
            (Format::Text, None) => self.request(text, &told),
        }
        Ok(missed.is_none())
    }

    fn request(&mut self, text: &mut String, told: &Value) {
        let field = |name: &str| shown(told[name].as_str().unwrap_or_default()).into_owned();
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let peer = field("peer");
        // The workload is what tells peers apart.
        let peer = match peer.split_once("/ns/").and_then(|(_, rest)| rest.split_once("/sa/")) {
            Some((namespace, account)) => format!("{namespace}/{account}"),
            None if peer.is_empty() => field("downstream"),
            None => peer,
        };
        let method = or_dash(field("method"));
        let names = [or_dash(field("flags")), method, or_dash(field("route")), or_dash(field("cluster")), peer];
        if !self.begun {
            self.begun = true;
            let names = ["FLAG", "METHOD", "ROUTE", "CLUSTER", "PEER"].map(str::to_owned);
            let head = self.line(["TIME", "CODE", "TOOK"].map(str::to_owned), &names, "WHERE");
            text.push_str(&head);
            text.push('\n');
        }
        // With a date and a zone around it.
        let time = field("time").get(11..23).unwrap_or_default().to_owned();
        let code = told["code"].as_u64().unwrap_or_default();
        let status = match told["grpc_status"].as_u64() {
            Some(grpc) => format!("{code}/{grpc}"),
            None if told["method"].is_null() => "-".to_owned(),
            None => code.to_string(),
        };
        let took = seconds(told["duration_ms"].as_f64().unwrap_or(f64::NAN) / 1e3);
        let line = self.line([time, status, took], &names, &format!("{}{}", field("host"), field("path")));
        match self.colour_of(code, told) {
            Some(colour) => text.push_str(&format!("{colour}{line}\x1b[0m\n")),
            None => text.push_str(&format!("{line}\n")),
        }
        let reason = field("reason");
        if !reason.is_empty() {
            text.push_str(&format!("  ! {reason}\n"));
        }
        for (mark, key) in [('>', "request_headers"), ('<', "response_headers")] {
            for header in told[key].as_array().into_iter().flatten() {
                let part = |name: &str| shown(header[name].as_str().unwrap_or_default()).into_owned();
                text.push_str(&format!("  {mark} {}: {}\n", part("name"), part("value")));
            }
        }
        for (mark, key) in [('>', "request_body"), ('<', "response_body")] {
            let Some(bytes) = told[format!("{key}_bytes")].as_u64() else { continue };
            text.push_str(&format!("  {mark} {bytes} bytes of body\n"));
            let lines = told[key].as_str().or_else(|| told[format!("{key}_base64")].as_str());
            for line in lines.unwrap_or_default().lines() {
                text.push_str(&format!("  {mark}   {}\n", shown(line)));
            }
        }
    }

    fn line(&mut self, [time, code, took]: [String; 3], names: &[String; 5], place: &str) -> String {
        let mut line = String::new();
        pad(&mut line, &time, 12, Align::Left);
        line.push(' ');
        pad(&mut line, &code, 6, Align::Left);
        line.push(' ');
        pad(&mut line, &took, 6, Align::Right);
        for (name, most) in names.iter().zip(&mut self.widths) {
            *most = (*most).max(width(name).min(WIDEST));
            line.push_str("  ");
            pad(&mut line, name, *most, Align::Left);
        }
        line.push_str("  ");
        line.push_str(place);
        line.truncate(line.trim_end().len());
        line
    }

    fn colour_of(&self, code: u64, told: &Value) -> Option<&'static str> {
        let failed = code >= 500 || !told["reason"].is_null() || told["grpc_status"].as_u64().is_some_and(|s| s != 0);
        match code {
            _ if !self.colour => None,
            _ if failed => Some("\x1b[31m"),
            400..500 => Some("\x1b[33m"),
            300..400 => Some("\x1b[36m"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TapArgs,
    }

    #[test]
    fn flags_become_the_query_that_the_server_reads() {
        let line = "x --status 5xx --status 404 --path /a --header x-a=b&c --min-latency 200ms --max 3 --headers --reason no%way";
        let args = Line::parse_from(line.split(' ')).args;
        let query = args.query();
        assert!(query.contains("header=x-a%3Db%26c") && query.contains("reason=no%25way"), "{query}");
        let asked = TapQuery::parse(&query).unwrap();
        assert_eq!((asked.most, asked.headers), (Some(3), true));
        for flag in
            ["route", "cluster", "listener", "peer", "flag", "method", "grpc-status", "sample", "duration", "bodies"]
        {
            let value = match flag {
                "grpc-status" | "sample" => "1",
                "bodies" => "1KiB",
                _ => "1s",
            };
            let args = Line::parse_from(["x".to_owned(), format!("--{flag}"), value.to_owned()]).args;
            assert!(TapQuery::parse(&args.query()).is_ok(), "{flag}");
        }
    }

    #[test]
    fn a_request_is_a_line_that_acts_on_nothing() {
        let told = serde_json::json!({
            "time": "2026-01-02T03:04:05.678901Z", "listener": "in", "method": "GET", "host": "shop", "path": "/\u{1b}[2J",
            "code": 503, "duration_ms": 1.25, "route": "all", "cluster": "app", "flags": "UF", "reason": "cannot connect",
            "peer": "spiffe://d/ns/web/sa/front", "request_headers": [{"name": "a", "value": "b\nc"}],
        });
        let mut text = String::new();
        let mut printer = Printer::new(Format::Text, false);
        assert!(printer.add(&mut text, told.to_string().as_bytes()).unwrap());
        assert!(!printer.add(&mut text, b"{\"missed\":120}").unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["TIME", "CODE", "TOOK", "FLAG", "METHOD", "ROUTE", "CLUSTER", "PEER", "WHERE"]
        );
        let cells: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(cells, ["03:04:05.678", "503", "1.2ms", "UF", "GET", "all", "app", "web/front", "shop/\\u{1b}[2J"]);
        assert_eq!(lines[0].find("PEER"), lines[1].find("web/front"), "aligned: {text}");
        assert_eq!(lines[2..], ["  ! cannot connect", "  > a: b\\u{a}c", "… 120 missed"]);
        assert!(!text.contains('\x1b'));
        let mut coloured = String::new();
        Printer::new(Format::Text, true).add(&mut coloured, told.to_string().as_bytes()).unwrap();
        assert!(coloured.contains("\x1b[31m03:04:05.678") && coloured.contains("\x1b[0m"), "{coloured}");
    }
}
