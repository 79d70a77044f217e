//! Metrics of the process itself, read from `/proc/self` when scraped.
//!
//! Names are those of the Prometheus client libraries ([process metrics]).
//!
//! [process metrics]: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::Registry;

/// Registers `outrigger_build_info`.
pub fn register_build_info(registry: &Registry, version: &str) {
    let labels = ["version", "arch", "profile"];
    let family = registry.gauge("outrigger_build_info", "What this executable was built as; always 1.", &labels);
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let info = family.with(&[version, std::env::consts::ARCH, profile]);
    info.set(1.0);
    // The collector holds the handle, and with it the series.
    registry.on_scrape(Box::new(move |_| info.set(1.0)));
}

/// Registers CPU time, memory, threads and file descriptors of the process.
pub fn register_process_metrics(registry: &Registry) {
    let gauge = |name: &'static str, help: &'static str| registry.gauge(name, help, &[]).with(&[]);
    let cpu = registry.float_counter("process_cpu_seconds_total", "User and system CPU time spent, in seconds.");
    let cpu = cpu.with(&[]);
    let resident = gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
    let mapped = gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.");
    let threads = gauge("process_threads", "Threads of the process.");
    let open_fds = gauge("process_open_fds", "Open file descriptors.");
    let max_fds = gauge("process_max_fds", "Most file descriptors the process may open.");
    let started = gauge("process_start_time_seconds", "Start of the process since the Unix epoch, in seconds.");
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as f64;
    // It does not change, so it is worked out once: later, a clock set meanwhile would make it look like a restart.
    if let Some(stat) = Stat::read() {
        let boot = seconds(ClockId::Realtime) - seconds(ClockId::Boottime);
        started.set(((boot + stat.start_ticks as f64 / ticks) * 100.0).round() / 100.0);
    }
    registry.on_scrape(Box::new(move |_| {
        if let Some(stat) = Stat::read() {
            cpu.set(stat.cpu_ticks as f64 / ticks);
            mapped.set(stat.virtual_bytes as f64);
            resident.set(stat.resident_pages as f64 * page);
            threads.set(stat.threads as f64);
        }
        if let Some(count) = count_fds() {
            open_fds.set(count as f64);
        }
        max_fds.set(getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64));
    }));
}

/// Open file descriptors. Since Linux 6.2 the folder's size is their number: to go through ten thousand of them takes some 12 ms, in which nothing
/// else is done on this thread.
fn count_fds() -> Option<u64> {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).ok()?.len() {
        // The folder being read is itself open.
        0 => Some((fs::read_dir(FOLDER).ok()?.count() as u64).saturating_sub(1)),
        size => Some(size),
    }
}

/// The fields of `/proc/self/stat` that are needed ([proc(5)]).
///
/// [proc(5)]: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The command's name may hold spaces and brackets; what follows the last bracket does not.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // Field numbers as in proc(5), of which the first two precede the bracket's end.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

fn seconds(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn a_command_name_with_brackets_does_not_shift_the_fields() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194560 90 0 0 0 11 22 0 0 20 0 3 0 555 6000 77 184 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.cpu_ticks, stat.threads, stat.start_ticks), (33, 3, 555));
        assert_eq!((stat.virtual_bytes, stat.resident_pages), (6000, 77));
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(Stat::read().unwrap().resident_pages > 0);
    }

    #[test]
    fn the_process_is_shown_as_it_is() {
        let registry = crate::Registry::new(&outrigger_config::MetricsRegistry::default(), 1);
        super::register_process_metrics(&registry);
        let value = |name: &str| {
            let mut text = Vec::new();
            registry.encode(crate::Format::Text, &mut text);
            crate::parse::parse(&text).unwrap().family(name).unwrap().samples[0].value
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!(started <= now && started > now - 3600.0, "{started} of {now}");
        let pipes: Vec<_> = (0..50).map(|_| std::io::pipe().unwrap()).collect();
        let with_pipes = value("process_open_fds");
        assert!(with_pipes >= 100.0 && with_pipes < value("process_max_fds"), "{with_pipes}");
        drop(pipes);
        let (resident, mapped) = (value("process_resident_memory_bytes"), value("process_virtual_memory_bytes"));
        assert!(1e6 < resident && resident < mapped, "{resident} of {mapped}");
        assert!(value("process_threads") >= 1.0 && value("process_cpu_seconds_total") >= 0.0);
        assert_eq!(value("process_start_time_seconds"), started);
    }
}
