//! What a cluster needs of the machine, looked at before anything is started.
//!
//! Promise: an error says what is missing and how to mend it.

use std::path::Path;

use anyhow::{Result, bail};

use super::network::Network;
use super::{Extent, node, output, program};
use crate::command::{find_program, tools_dir};
use crate::setup;

/// Programs of Debian, and the packages they come in.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    // No program, but found where programs are looked for, given as a path.
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("conntrack", "conntrack"),
    ("iptables", "iptables"),
    ("busybox", "busybox-static"),
];

/// Programs that `setup` compiles.
const OURS: &[&str] = &["kubernetes", "kubectl", "coredns", "podapp"];

pub(super) fn before(extent: Extent, network: Network) -> Result<()> {
    for (program, package) in PROGRAMS {
        if find_program(program).is_none() {
            bail!("`{program}` is missing (Debian's package {package}); `cargo xtask setup` installs it");
        }
    }
    if let Some(missing) = OURS.iter().find(|name| !tools_dir().join("bin").join(name).exists()) {
        bail!("`{missing}` was not compiled yet; `cargo xtask setup` does it, once, in some minutes");
    }
    if extent == Extent::ApiOnly {
        return Ok(());
    }
    if !setup::is_root()? {
        bail!(
            "a node needs root (namespaces, mounts, a bridge): run this as root, or use `--api` for an API server alone"
        );
    }
    network.is_free()?;
    if output(program("nft").args(["list", "table", "ip", "kube-proxy"])).is_ok() {
        bail!(
            "another cluster's kube-proxy has its rules on this machine, and two cannot share it: end that cluster; \
             if it is gone, `nft delete table ip kube-proxy` removes what it left"
        );
    }
    cgroups()
}

fn cgroups() -> Result<()> {
    let hierarchies = node::hierarchies();
    if let [only] = hierarchies.as_slice()
        && only == Path::new(node::CGROUPS)
    {
        return Ok(());
    }
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        if !hierarchies.iter().any(|path| path.ends_with(controller)) {
            bail!(
                "this machine has no cgroup controller `{controller}` below {}; mount it: `mount -t cgroup -o {controller} \
                 cgroup {0}/{controller}`",
                node::CGROUPS
            );
        }
    }
    Ok(())
}
