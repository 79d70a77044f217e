//! `outrigger routes` and `outrigger listeners`: tables of what runs.
//!
//! In: the admin API's answer. Out: columns for people, or the answer as it is.

use clap::Args;
use serde_json::Value;

use crate::admin::{Admin, AdminArgs};
use crate::cli::Format;
use crate::output;
use crate::table::{Align, pad, shown, width};

/// Most columns that a cell may take.
const WIDEST: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct TableArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How the table is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Shows routes, and how often each was taken.
pub(crate) fn routes(args: &TableArgs) -> anyhow::Result<u8> {
    show(args, "/routes", &["LISTENER", "ROUTE", "KIND", "HOSTS", "MATCHES", "TO", "REQUESTS"], |row| {
        let list = |key: &str| {
            let words: Vec<_> = row[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            words.join(" or ")
        };
        let to = row["backends"].as_array().into_iter().flatten();
        let to = to.map(|one| {
            let (name, weight) = (one["cluster"].as_str().unwrap_or_default(), one["weight"].as_u64().unwrap_or(1));
            if weight == 1 { name.to_owned() } else { format!("{name}*{weight}") }
        });
        let to = to.collect::<Vec<_>>().join(" ");
        let answers = || list("filters");
        vec![
            word(row, "listener"),
            word(row, "route"),
            word(row, "kind"),
            if list("hostnames").is_empty() { "*".to_owned() } else { list("hostnames") },
            if list("matches").is_empty() { "*".to_owned() } else { list("matches") },
            if to.is_empty() { answers() } else { to },
            row["requests"].to_string(),
        ]
    })
}

/// Shows listeners and their connections.
pub(crate) fn listeners(args: &TableArgs) -> anyhow::Result<u8> {
    show(args, "/listeners", &["LISTENER", "DIRECTION", "ADDRESS", "PROTOCOL", "TLS", "STATE", "CONNECTIONS"], |row| {
        let draining = row["draining"].as_bool() == Some(true);
        let redirected = row["redirected"].as_bool() == Some(true);
        vec![
            word(row, "name"),
            word(row, "direction"),
            word(row, "address") + if redirected { " (redirected)" } else { "" },
            word(row, "protocol"),
            word(row, "tls"),
            if draining { "draining" } else { "listening" }.to_owned(),
            format!("{}/{}", row["connections"], row["maxConnections"]),
        ]
    })
}

fn word(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

fn show(args: &TableArgs, path: &str, heads: &[&str], cells: impl Fn(&Value) -> Vec<String>) -> anyhow::Result<u8> {
    let answer = Admin::new(&args.admin)?.get(path)?;
    if args.format == Format::Json {
        output::print(&answer)?;
        return Ok(0);
    }
    let rows: Vec<Value> = serde_json::from_str(&answer)?;
    let heads = heads.iter().map(|head| (*head).to_owned()).collect();
    let table: Vec<Vec<String>> = std::iter::once(heads).chain(rows.iter().map(cells)).collect();
    output::print(&columns(&table))?;
    Ok(0)
}

/// Rows in columns; the last one, which is a number, to the right.
fn columns(table: &[Vec<String>]) -> String {
    let cell = |text: &String| -> String {
        let text = shown(text);
        if width(&text) <= WIDEST { text.into_owned() } else { text.chars().take(WIDEST - 1).chain(['…']).collect() }
    };
    let table: Vec<Vec<String>> = table.iter().map(|row| row.iter().map(cell).collect()).collect();
    let count = table.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..count).map(|column| table.iter().map(|row| width(&row[column])).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &table {
        for (column, cell) in row.iter().enumerate() {
            let last = column + 1 == count;
            pad(&mut text, cell, widths[column], if last { Align::Right } else { Align::Left });
            text.push_str(if last { "\n" } else { "  " });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_in_columns() {
        let rows = [["A", "BB", "N"], ["long", "\u{1b}[2J", "12"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "A     BB          N\nlong  \\u{1b}[2J  12\n");
    }
}
