//! `outrigger connections`: what is open, as a table.

use clap::Args;
use serde_json::Value;

use crate::admin::{Admin, AdminArgs};
use crate::cli::Format;
use crate::output;
use crate::table::{Align, Table, seconds};

pub(crate) const HELP: &str = "\
States: handshake (TLS, or what is spoken is not known yet), idle, head (a request's head is coming), request, tunnel
(TCP, WebSocket, CONNECT). The oldest 1000 are told at most. Below, the open and idle connections to each cluster.

Examples:
  outrigger connections --listener inbound
  outrigger connections --format json | jq '.connections[] | select(.state == \"tunnel\")'

Exit codes:
  0  success
  1  Outrigger cannot be reached
  2  the command line is wrong";

#[derive(Debug, Args)]
pub(crate) struct ConnectionsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only those of this listener
    #[arg(long, value_name = "NAME", value_parser = crate::cli::name)]
    listener: Option<String>,
    /// How many are told, the oldest first
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(..=1000))]
    limit: u16,
    /// How they are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Prints open connections.
pub(crate) fn connections(args: &ConnectionsArgs) -> anyhow::Result<u8> {
    let listener = args.listener.as_ref().map(|name| format!("&listener={name}")).unwrap_or_default();
    let told = Admin::new(&args.admin)?.json(&format!("/connections?limit={}{listener}", args.limit))?;
    match args.format {
        Format::Json => output::print(&format!("{told:#}\n"))?,
        Format::Text => output::print(&connections_text(&told))?,
    }
    Ok(0)
}

fn connections_text(told: &Value) -> String {
    let mut table = Table::new(&[
        ("LISTENER", Align::Left),
        ("CLIENT", Align::Left),
        ("PEER", Align::Left),
        ("PROTOCOL", Align::Left),
        ("TLS", Align::Left),
        ("AGE", Align::Right),
        ("REQUESTS", Align::Right),
        ("STATE", Align::Left),
        ("DESTINATION", Align::Left),
    ]);
    let connections = list(&told["connections"]);
    for one in connections {
        table.row(vec![
            text(&one["listener"]),
            text(&one["client"]),
            text(&one["peer"]),
            text(&one["protocol"]),
            yes(&one["tls"]),
            seconds(one["ageSeconds"].as_f64().unwrap_or(f64::NAN)),
            text(&one["requests"]),
            text(&one["state"]),
            text(&one["originalDestination"]),
        ]);
    }
    let mut out = table.text();
    let total = told["total"].as_u64().unwrap_or_default();
    if total > connections.len() as u64 {
        out.push_str(&format!("… and {} more\n", total - connections.len() as u64));
    }
    for worker in list(&told["silentWorkers"]) {
        out.push_str(&format!("worker {worker} did not answer; its connections are missing\n"));
    }
    let mut table = Table::new(&[("CLUSTER", Align::Left), ("OPEN", Align::Right), ("IDLE", Align::Right)]);
    for one in list(&told["upstream"]) {
        table.row(vec![text(&one["cluster"]), text(&one["open"]), text(&one["idle"])]);
    }
    out + "\n" + &table.text()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn yes(value: &Value) -> String {
    if *value == true { "yes" } else { "no" }.to_owned()
}

/// A value as people read it; what is not there is a dash.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_said() {
        let told = serde_json::json!({
            "total": 3, "silentWorkers": [1], "upstream": [{"cluster": "app", "open": 2, "idle": 1}],
            "connections": [{
                "listener": "in", "client": "127.0.0.1:7", "peer": "", "protocol": "HTTP/1", "tls": true,
                "ageSeconds": 61.0, "requests": 5, "state": "idle",
            }],
        });
        let said = connections_text(&told);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["in", "127.0.0.1:7", "-", "HTTP/1", "yes", "61.0s", "5", "idle", "-"]
        );
        assert_eq!(lines[2..4], ["… and 2 more", "worker 1 did not answer; its connections are missing"]);
        assert!(said.ends_with("app         2     1\n"), "{said}");
    }
}
