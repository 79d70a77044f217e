//! How long a config of very many endpoints takes to read and to compare, and what memory it takes meanwhile.
//!
//! `cargo run --release -p outrigger-config --example large_config [CLUSTERS [ENDPOINTS [ROUNDS]]]`; with `FORM=block` in
//! the environment each endpoint stands on two lines, with `FORM=short` it is its address alone.

use std::fmt::Write;
use std::time::Instant;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (clusters, endpoints) = (numbers.next().unwrap_or(100), numbers.next().unwrap_or(1000));
    let form = std::env::var("FORM").unwrap_or_default();
    let texts = [text(clusters, endpoints, 1, &form), text(clusters, endpoints, 2, &form)];
    println!("{} bytes", texts[0].len());
    let mut kept = None;
    for round in 0..numbers.next().unwrap_or(5) {
        let begun = Instant::now();
        let loaded = match outrigger_config::parse("large.yaml", &texts[round % 2], &|_| None) {
            Ok(loaded) => loaded,
            Err(diagnostics) => {
                eprintln!("{diagnostics}");
                std::process::exit(1);
            }
        };
        let (read, begun) = (begun.elapsed(), Instant::now());
        let changes = kept.as_ref().map_or(0, |before| outrigger_config::diff(before, &loaded.config).len());
        println!("read {read:?}, compared {:?}, {changes} changes, most memory {}", begun.elapsed(), most_memory());
        kept = Some(loaded.config);
    }
}

fn text(clusters: usize, endpoints: usize, weight: u32, form: &str) -> String {
    let mut text =
        "proxy:\n  listeners:\n  - name: in\n    direction: outbound\n    address: 127.0.0.1:1\n    routes:\n"
            .to_owned();
    for cluster in 0..clusters {
        let _ = writeln!(
            text,
            "    - {{ name: r{cluster}, matches: [{{ path: {{ type: PathPrefix, value: /c{cluster} }} }}], backendRefs: [{{ name: c{cluster} }}] }}"
        );
    }
    text.push_str("  clusters:\n");
    for cluster in 0..clusters {
        let _ = writeln!(text, "  - name: c{cluster}\n    endpoints:");
        for index in 0..endpoints {
            let weight = if index == 0 { weight } else { 0 };
            let address = format!("10.{}.{}.{}:80", cluster % 250, index / 250, index % 250 + 1);
            let _ = match form {
                "block" => writeln!(text, "    - address: {address}\n      weight: {weight}"),
                "short" => writeln!(text, "    - {address}"),
                _ => writeln!(text, "    - {{ address: \"{address}\", weight: {weight} }}"),
            };
        }
    }
    text
}

/// As the kernel has it, in kB.
fn most_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}
