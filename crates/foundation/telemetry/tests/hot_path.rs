//! What the request path is promised: no allocation, nothing lost, no wait for a scrape.
#![expect(unsafe_code, reason = "counting allocations needs an allocator of our own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use outrigger_config::MetricsRegistry;
use outrigger_telemetry::{Buckets, Format, Registry, parse, set_shard};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is left to the system's allocator; the count is a thread's own and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised us.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_write_allocates_nothing() {
    let registry = Registry::new(&MetricsRegistry::default(), 2);
    let counter = registry.counter("c_total", "C", &["k"]).with(&["x"]);
    let float = registry.try_float_counter("f_total", "F", &[]).unwrap().with(&[]);
    let gauge = registry.gauge("g", "G", &[]).with(&[]);
    let classic = registry.histogram("h_seconds", "H", &[], Buckets::request_seconds()).with(&[]);
    let both = Buckets::Both { classic: vec![0.1], schema: 3, max_buckets: 160 };
    let both = registry.histogram("b_seconds", "B", &[], both).with(&[]);
    let writes: [(&str, &dyn Fn(f64)); 7] = [
        ("counter", &|_| counter.inc()),
        ("float counter", &|value| float.add(value)),
        ("gauge, add", &|value| gauge.add(value)),
        ("gauge, set", &|value| gauge.set(value)),
        ("classic histogram", &|value| classic.observe(value)),
        ("native histogram", &|value| both.observe(value)),
        ("read", &|_| assert!(counter.value() > 0 && gauge.value() >= 0.0)),
    ];
    set_shard(1);
    for (name, write) in writes {
        // The first writes take the shard's memory and open the buckets.
        (0..100).for_each(|step| write(f64::from(step) / 50.0));
        let before = ALLOCATIONS.get();
        (0..10_000).for_each(|step| write(f64::from(step % 100) / 50.0));
        assert_eq!(ALLOCATIONS.get() - before, 0, "{name}");
    }
}

#[test]
fn scrapes_and_sweeps_beside_writers_show_whole_histograms_and_lose_nothing() {
    const WRITERS: usize = 4;
    const WRITES: u64 = 30_000;
    let registry = Registry::new(&MetricsRegistry::default(), 3);
    let counters = registry.counter("c_total", "C", &["k"]);
    let native = Buckets::Native { schema: 5, max_buckets: 30 };
    let histograms =
        [registry.histogram("h", "H", &[], Buckets::request_seconds()), registry.histogram("n", "N", &[], native)]
            .map(|family| family.with(&[]));
    let held = counters.with(&["held"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut last, mut scrapes) = (0.0, 0);
            while !done.load(Relaxed) || scrapes == 0 {
                registry.expire();
                let mut text = Vec::new();
                registry.encode(Format::OpenMetrics, &mut text);
                let read = parse::parse(&text).unwrap();
                for name in ["h", "n"] {
                    let samples = &read.family(name).unwrap().samples;
                    let buckets = samples.iter().filter(|sample| sample.name.ends_with("_bucket"));
                    let buckets: Vec<f64> = buckets.map(|sample| sample.value).collect();
                    let count = samples.iter().find(|sample| sample.name.ends_with("_count")).unwrap().value;
                    assert!(buckets.is_sorted() && *buckets.last().unwrap() == count, "{name}");
                }
                let counted = &read.family("c").unwrap().samples;
                let now = counted.iter().find(|sample| sample.label("k") == Some("held")).unwrap().value;
                assert!(now >= last, "a counter never falls: {last}, {now}");
                (last, scrapes) = (now, scrapes + 1);
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (counters, histograms, held) = (&counters, &histograms, &held);
                scope.spawn(move || {
                    // One more than there are shards: two threads share one.
                    set_shard(writer);
                    for step in 0..WRITES {
                        held.inc();
                        histograms.iter().for_each(|histogram| histogram.observe(step as f64 / 100.0));
                        if step % 100 == 0 {
                            counters.with(&[&(step % 1000).to_string()]).inc();
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Relaxed);
        scraper.join().unwrap();
    });
    let all = WRITERS as u64 * WRITES;
    assert_eq!((held.value(), histograms.each_ref().map(|histogram| histogram.count())), (all, [all, all]));
    let others: u64 = (0..10).map(|n| counters.with(&[&(n * 100).to_string()]).value()).sum();
    assert_eq!(others, all / 100);
}
