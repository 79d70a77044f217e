//! Takes everything away that a cluster made, whatever state it was left in.
//!
//! Promise: only what is its own, known by process ids with start times, by paths below its folder, by the names of
//! its bridge, tables and cgroups. Can be done again when it was interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, kill_process};

use super::network::BRIDGE;
use super::process::{pid, start_time};
use super::{Cluster, node, output, program};

/// In which order they end: who would start something anew goes first.
const PARTS: &[&str] = &["kubelet", "proxy", "coredns", "scheduler", "controllers"];

pub(super) fn down(cluster: &Cluster) -> Result<()> {
    let processes = cluster.processes();
    processes.stop(PARTS)?;
    let containers = if processes.alive("containerd").is_some() { end_containers(cluster) } else { BTreeSet::new() };
    if cluster.has_node() {
        // Of a containerd that was killed, for one.
        end_cgroups()?;
    }
    end_shims(cluster)?;
    processes.stop(&["containerd", "apiserver", "etcd"])?;
    if cluster.has_node() {
        forget_network(&containers)?;
        remove_cgroups();
    }
    unmount(&cluster.state)?;
    fs::remove_dir_all(&cluster.state).with_context(|| format!("cannot remove {}", cluster.state.display()))
}

/// Kills what runs in containers, in the orderly way; gives their network namespaces' files.
fn end_containers(cluster: &Cluster) -> BTreeSet<PathBuf> {
    let ctr = |arguments: &[&str]| {
        let ctr = cluster.ctr();
        let mut command = program("timeout");
        command.arg("10").arg(ctr.get_program()).args(ctr.get_args()).args(["--namespace", "k8s.io"]);
        output(command.args(arguments))
    };
    let mut namespaces = BTreeSet::new();
    for id in ctr(&["containers", "list", "--quiet"]).unwrap_or_default().lines() {
        namespaces.extend(network_namespaces(&ctr(&["containers", "info", id]).unwrap_or_default()));
    }
    for id in ctr(&["tasks", "list", "--quiet"]).unwrap_or_default().lines() {
        // What does not go this way goes with its cgroup.
        let _ = ctr(&["tasks", "kill", "--signal", "KILL", "--all", id]);
        let _ = ctr(&["tasks", "delete", "--force", id]);
    }
    namespaces
}

/// Files such as `/var/run/netns/cni-…` named in a description.
fn network_namespaces(text: &str) -> Vec<PathBuf> {
    let words = text.split('"').filter_map(|word| Some((word, word.rsplit_once("/netns/")?.1)));
    words.filter(|(_, name)| name.starts_with("cni-")).map(|(word, _)| PathBuf::from(word)).collect()
}

/// Kills what is in our cgroups, whoever started it.
fn end_cgroups() -> Result<()> {
    let begun = Instant::now();
    loop {
        let left: BTreeSet<u32> =
            node::hierarchies().iter().flat_map(|hierarchy| members(&hierarchy.join(node::CGROUP))).collect();
        if left.is_empty() {
            return Ok(());
        }
        for pid in left.iter().filter_map(|id| pid(*id)) {
            // It may end right now.
            let _ = kill_process(pid, Signal::KILL);
        }
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("processes in containers do not end, even by SIGKILL: {left:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The running processes of a cgroup and of all below it.
fn members(folder: &Path) -> Vec<u32> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let own = own.lines().filter_map(|id| id.parse().ok()).filter(|id| start_time(*id).is_some());
    own.chain(groups_below(folder).iter().flat_map(|group| members(group))).collect()
}

fn groups_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The shims hold the containers, and survive containerd.
fn end_shims(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    loop {
        let shims = shims(&cluster.socket());
        if shims.is_empty() {
            return Ok(());
        }
        // First they may take their containers with them.
        let signal = if begun.elapsed() < Duration::from_secs(2) { Signal::TERM } else { Signal::KILL };
        for id in &shims {
            if let Some(pid) = pid(*id) {
                // It may end right now.
                let _ = kill_process(pid, signal);
            }
        }
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("containers' shims do not end, even by SIGKILL: processes {shims:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn shims(socket: &Path) -> Vec<u32> {
    let socket = socket.as_os_str().as_encoded_bytes();
    let ids = fs::read_dir("/proc").into_iter().flatten();
    let ids = ids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.windows(15).any(|part| part == b"containerd-shim"))
            && words.any(|word| word == socket)
    })
    .collect()
}

/// Unmounts all below the cluster's folder, innermost first.
fn unmount(state: &Path) -> Result<()> {
    let prefix = format!("{}/", state.display());
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let mut points: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&prefix)).collect();
    points.sort_unstable();
    for point in points.into_iter().rev() {
        output(program("umount").args(["--lazy", point]))?;
    }
    Ok(())
}

/// Removes the bridge, the rules, and what the plugins wrote down of pods.
fn forget_network(namespaces: &BTreeSet<PathBuf>) -> Result<()> {
    let results =
        fs::read_dir("/var/lib/cni/results").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let results: Vec<(String, PathBuf)> =
        results.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path))).collect();
    // `BRIDGE-CONTAINER-eth0`; the same container has one for its loopback interface.
    let ours = format!("{BRIDGE}-");
    let containers: Vec<&str> =
        results.iter().filter_map(|(name, _)| name.strip_prefix(&ours)?.split('-').next()).collect();
    let mut namespaces = namespaces.clone();
    for (_, path) in results.iter().filter(|(name, _)| containers.iter().any(|container| name.contains(container))) {
        namespaces.extend(network_namespaces(&fs::read_to_string(path).unwrap_or_default()));
        let _ = fs::remove_file(path);
    }
    for namespace in namespaces {
        // With the namespace goes the pod's end of the bridge. Its shim may have done it.
        let _ = output(program("umount").arg(&namespace));
        let _ = fs::remove_file(&namespace);
    }
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        output(program("ip").args(["link", "delete", BRIDGE]))?;
    }
    for family in ["ip", "ip6"] {
        // kube-proxy may not have come so far.
        let _ = output(program("nft").args(["delete", "table", family, "kube-proxy"]));
    }
    Ok(())
}

fn remove_cgroups() {
    for hierarchy in node::hierarchies() {
        // What is left has no processes, or stays until it has none: it costs nothing.
        remove_cgroup(&hierarchy.join(node::CGROUP));
    }
}

fn remove_cgroup(folder: &Path) {
    for group in groups_below(folder) {
        remove_cgroup(&group);
    }
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_namespaces_are_found() {
        let text = r#"{"path": "/var/run/netns/cni-1f2e", "other": "/proc/1/ns/net", "third": "/run/netns/mine"}"#;
        assert_eq!(network_namespaces(text), [PathBuf::from("/var/run/netns/cni-1f2e")]);
        let result = r#"{"netns":"/run/netns/cni-7","ifName":"eth0"}"#;
        assert_eq!(network_namespaces(result), [PathBuf::from("/run/netns/cni-7")]);
    }
}
