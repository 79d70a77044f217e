//! `outrigger clusters`: how a running Outrigger's endpoints are, as a table.

use serde_json::Value;

use crate::admin::Admin;
use crate::cli::{Format, LiveArgs};
use crate::output;
use crate::table::{Align, Table};

/// Prints the clusters and their endpoints.
pub(crate) fn clusters(args: &LiveArgs) -> anyhow::Result<u8> {
    let state = Admin::new(&args.admin)?.json("/clusters")?;
    match args.format {
        Format::Json => output::print(&format!("{state:#}\n"))?,
        Format::Text => output::print(&table(&state))?,
    }
    Ok(0)
}

const HEADINGS: [&str; 12] = [
    "CLUSTER", "ENDPOINT", "WEIGHT", "PRIO", "ZONE", "HEALTH", "BUSY", "CONNS", "LATENCY", "ANSWERS", "SUCCESS", "WHY",
];

/// Columns as wide as they need to be; one row for each endpoint.
fn table(state: &Value) -> String {
    let mut table = Table::new(&HEADINGS.map(|name| (name, Align::Left)));
    for cluster in state["clusters"].as_array().into_iter().flatten() {
        let mut name = text(&cluster["name"]);
        if cluster["panic"] == true {
            name.push_str(" (panic)");
        }
        let endpoints = cluster["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        if endpoints.is_empty() || !cluster["problem"].is_null() {
            let mut row = [const { String::new() }; 12];
            (row[0], row[1]) = (name.clone(), if endpoints.is_empty() { "none" } else { "" }.to_owned());
            row[11] = text(&cluster["problem"]);
            table.row(row.to_vec());
        }
        for endpoint in endpoints {
            let back = endpoint["backInSeconds"].as_f64().map(|seconds| format!(", back in {seconds} s"));
            table.row(vec![
                name.clone(),
                text(&endpoint["address"]),
                text(&endpoint["weight"]),
                text(&endpoint["priority"]),
                text(&endpoint["zone"]),
                text(&endpoint["health"]),
                text(&endpoint["requestsUnderWay"]),
                text(&endpoint["connections"]),
                endpoint["latencyMs"].as_f64().map(|latency| format!("{latency:.2}ms")).unwrap_or_default(),
                text(&endpoint["answers"]),
                endpoint["successRate"].as_f64().map(|rate| format!("{:.1}%", rate * 100.0)).unwrap_or_default(),
                text(&endpoint["reason"]) + &back.unwrap_or_default(),
            ]);
        }
    }
    table.text()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_has_a_row_and_columns_line_up() {
        let state = serde_json::json!({ "clusters": [
            { "name": "orders", "panic": false, "problem": null, "endpoints": [
                { "address": "10.0.0.1:80", "weight": 1, "priority": 0, "zone": "eu-1", "health": "ejected", "reason": "consecutive_5xx",
                  "backInSeconds": 28.0, "requestsUnderWay": 2, "connections": 3, "latencyMs": 12.5, "answers": 10, "successRate": 0.5 },
                { "address": "10.0.0.22:8080", "weight": 1, "priority": 0, "zone": null, "health": "healthy", "reason": null,
                  "backInSeconds": null, "requestsUnderWay": 0, "connections": 0, "latencyMs": null, "answers": 0, "successRate": null },
            ] },
            { "name": "lost", "panic": false, "problem": "no such name", "endpoints": [] },
        ] });
        let table = table(&state);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert_eq!(lines[0].find("HEALTH"), lines[1].find("ejected"));
        assert_eq!(lines[0].find("HEALTH"), lines[2].find("healthy"));
        assert!(lines[1].ends_with("12.50ms  10       50.0%    consecutive_5xx, back in 28 s"), "{table}");
        assert!(lines[3].starts_with("lost") && lines[3].ends_with("no such name"), "{table}");
    }
}
