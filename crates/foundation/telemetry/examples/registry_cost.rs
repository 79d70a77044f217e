//! What a write to the registry costs, with one thread and with two on shards of their own,
//! and what an encode of many series costs.
//!
//! `cargo run --release -p outrigger-telemetry --example registry_cost`

use std::time::Instant;

use outrigger_telemetry::{Buckets, Format, Registry, set_shard};

const WRITES: u32 = 20_000_000;

fn main() {
    let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 3);
    let counter = registry.counter("c_total", "C", &[]).with(&[]);
    let gauge = registry.gauge("g", "G", &[]).with(&[]);
    let classic = registry.histogram("h_seconds", "H", &[], Buckets::request_seconds()).with(&[]);
    let native = registry.histogram("n_seconds", "N", &[], Buckets::Native { schema: 3, max_buckets: 160 }).with(&[]);
    for threads in [1, 2] {
        report("counter.inc", threads, |_| counter.inc());
        report("gauge.inc", threads, |_| gauge.inc());
        report("classic.observe", threads, |step| classic.observe(seconds(step)));
        report("native.observe", threads, |step| native.observe(seconds(step)));
    }
    let family = registry.counter("many_total", "Many.", &["label", "other"]);
    for series in 0..1900 {
        family.with(&[&format!("value-{series}"), "x"]).add(series);
    }
    let mut text = Vec::new();
    let began = Instant::now();
    for _ in 0..100 {
        text.clear();
        registry.encode(Format::OpenMetrics, &mut text);
    }
    println!("encode of 1900 counters, {} bytes: {:.0} us", text.len(), began.elapsed().as_secs_f64() * 1e6 / 100.0);
}

/// Durations from half a millisecond to eight.
fn seconds(step: u32) -> f64 {
    0.0005 * f64::from(1 + step % 16)
}

fn report(what: &str, threads: usize, write: impl Fn(u32) + Sync) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for shard in 0..threads {
            let write = &write;
            scope.spawn(move || {
                set_shard(shard + 1);
                for step in 0..WRITES {
                    write(step);
                }
            });
        }
    });
    println!("{what:<20} {threads} thread(s): {:.1} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(WRITES));
}
