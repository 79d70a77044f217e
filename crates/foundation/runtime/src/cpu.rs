//! How many data-plane threads a process gets by default.
//!
//! In: the cgroup's CPU limit (v1 or v2) and the CPUs it may run on. Out: the limit
//! rounded up, at most two: a sidecar must not take the application's CPUs, and one
//! worker already serves tens of thousands of requests a second.

use std::fs;
use std::path::{Path, PathBuf};

/// No more by default, however large the machine is.
const MOST: usize = 2;

/// The default number of workers for this process.
pub(crate) fn default_workers() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize);
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = limit(&membership, Path::new("/sys/fs/cgroup"), &|path| fs::read_to_string(path).ok());
    workers(limit, allowed)
}

fn workers(limit: Option<f64>, allowed: usize) -> usize {
    let limit = limit.map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    limit.min(allowed).clamp(1, MOST)
}

/// The smallest CPU limit among our cgroup and those above it, in CPUs.
///
/// In a container the path in /proc/self/cgroup may be the host's and lead nowhere below
/// the mount; the mount itself is then our cgroup, and is always looked at.
fn limit(membership: &str, mount: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let relative = path.trim_start_matches('/');
        if controllers.is_empty() {
            limits.extend(upwards(mount, relative).filter_map(|folder| parse_v2(&read(&folder.join("cpu.max"))?)));
        } else if controllers.split(',').any(|name| name == "cpu") {
            for mount in [mount.join(controllers), mount.join("cpu")] {
                limits.extend(upwards(&mount, relative).filter_map(|folder| {
                    parse_v1(&read(&folder.join("cpu.cfs_quota_us"))?, &read(&folder.join("cpu.cfs_period_us"))?)
                }));
            }
        }
    }
    limits.into_iter().reduce(f64::min)
}

/// `mount/relative` and every folder above it down to `mount`.
fn upwards(mount: &Path, relative: &str) -> impl Iterator<Item = PathBuf> {
    let steps = if relative.contains("..") { "" } else { relative };
    let paths: Vec<PathBuf> = Path::new(steps).ancestors().map(|path| mount.join(path)).collect();
    paths.into_iter()
}

/// `cpu.max`: `max 100000`, or quota and period in microseconds.
fn parse_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` (-1 means no limit) and `cpu.cfs_period_us`.
fn parse_v1(quota: &str, period: &str) -> Option<f64> {
    ratio(quota.trim().parse().ok()?, period.trim().parse().ok()?)
}

fn ratio(quota: i64, period: i64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        type Files = &'static [(&'static str, &'static str)];
        let v1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n";
        let rows: [(&str, &str, Files, Option<f64>); 9] = [
            ("no cgroup", "", &[], None),
            ("v2, none", "0::/pod/c\n", &[("/m/pod/c/cpu.max", "max 100000\n")], None),
            ("v2", "0::/pod/c\n", &[("/m/pod/c/cpu.max", "150000 100000\n")], Some(1.5)),
            (
                "v2, parent is tighter",
                "0::/pod/c\n",
                &[("/m/pod/c/cpu.max", "400000 100000\n"), ("/m/pod/cpu.max", "50000 100000\n")],
                Some(0.5),
            ),
            ("v2, path of the host", "0::/kubepods/x\n", &[("/m/cpu.max", "200000 100000\n")], Some(2.0)),
            ("v2, outside of our namespace", "0::/../x\n", &[("/m/cpu.max", "200000 100000\n")], Some(2.0)),
            (
                "v1",
                v1,
                &[
                    ("/m/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "250000\n"),
                    ("/m/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n"),
                ],
                Some(2.5),
            ),
            (
                "v1, none, by the short name",
                v1,
                &[("/m/cpu/cpu.cfs_quota_us", "-1\n"), ("/m/cpu/cpu.cfs_period_us", "100000\n")],
                None,
            ),
            ("nonsense", "0::/\nx\n1:\n", &[("/m/cpu.max", "lots\n")], None),
        ];
        for (name, membership, files, expected) in rows {
            let read = |path: &Path| {
                files.iter().find(|(file, _)| Path::new(file) == path).map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(limit(membership, Path::new("/m"), &read), expected, "{name}");
        }
    }

    #[test]
    fn limits_are_rounded_up_and_held_to_what_there_is() {
        for (limit, allowed, expected) in
            [(None, 8, 2), (None, 1, 1), (Some(0.1), 8, 1), (Some(1.2), 8, 2), (Some(6.0), 8, 2), (Some(2.0), 0, 1)]
        {
            assert_eq!(workers(limit, allowed), expected, "{limit:?} {allowed}");
        }
    }
}
