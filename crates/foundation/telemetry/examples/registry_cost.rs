//! What a write to the registry costs, with one thread and with two on shards of their own.

use std::time::Instant;

use outrigger_telemetry::{Buckets, Registry, set_shard};

const WRITES: u32 = 20_000_000;

fn main() {
    let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 3);
    let counter = registry.counter("c_total", "C", &[]).with(&[]);
    let histogram = registry.histogram("h_seconds", "H", &[], Buckets::request_seconds()).with(&[]);
    for threads in [1, 2] {
        report("counter.inc", threads, || counter.inc());
        report("histogram.observe", threads, || histogram.observe(0.003));
    }
}

fn report(what: &str, threads: usize, write: impl Fn() + Sync) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for shard in 0..threads {
            let write = &write;
            scope.spawn(move || {
                set_shard(shard);
                for _ in 0..WRITES {
                    write();
                }
            });
        }
    });
    println!("{what:<20} {threads} thread(s): {:.1} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(WRITES));
}
