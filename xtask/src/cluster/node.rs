//! The node: containerd, kubelet and kube-proxy.
//!
//! What differs from an ordinary node is what a machine for tests lacks: the capability SYS_RESOURCE, AppArmor, a
//! cgroup hierarchy of version 2, and room for a second system of cgroups (all of ours lie below one folder).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::control::component;
use super::network::Network;
use super::pki::NODE;
use super::ports::Ports;
use super::{Cluster, dns, output, pods, program};

const PATIENCE: Duration = Duration::from_secs(60);
/// Below this folder of each hierarchy lie the cgroups of our pods.
pub(super) const CGROUP: &str = "outrigger-cluster";
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Starts them.
pub(super) fn start(cluster: &Cluster, network: Network, ports: &Ports) -> Result<()> {
    let (state, processes) = (&cluster.state, cluster.processes());
    make_cgroups()?;
    fs::create_dir_all(state.join("containerd"))?;
    let config = state.join("containerd/config.toml");
    fs::write(&config, containerd_config(cluster)?)?;
    processes.start("containerd", program("containerd").arg("--config").arg(&config))?;
    cluster.wait("containerd", PATIENCE, || output(cluster.ctr().arg("version")).map(drop))?;
    pods::load(cluster)?;

    let (kubelet, proxy) = (state.join("kubelet.yaml"), state.join("proxy.yaml"));
    fs::write(&kubelet, kubelet_config(cluster, network, ports))?;
    let mut command = component("kubelet");
    command.arg(format!("--kubeconfig={}", state.join("node.conf").display()));
    command.arg(format!("--config={}", kubelet.display()));
    command.arg(format!("--root-dir={}", state.join("kubelet").display()));
    command.arg(format!("--cert-dir={}", state.join("kubelet-pki").display()));
    command.args([&format!("--hostname-override={NODE}"), &format!("--node-ip={}", network.node()), "--v=2"]);
    processes.start("kubelet", &mut command)?;

    fs::write(&proxy, proxy_config(cluster, network, ports))?;
    processes.start("proxy", component("proxy").arg(format!("--config={}", proxy.display())))
}

/// Waits until pods may be scheduled.
pub(super) fn wait_ready(cluster: &Cluster) -> Result<()> {
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints}";
    cluster.wait("the node", PATIENCE, || {
        let mut kubectl = cluster.kubectl();
        let said = output(kubectl.args(["get", "node", NODE, "--output", &format!("jsonpath={ready}")]))?;
        if said == "True" { Ok(()) } else { bail!("the node is not ready, or tainted: {said}") }
    })
}

/// Where images are unpacked: layers over layers, unless the folder itself lies on such.
pub(super) fn snapshotter(state: &Path) -> Result<&'static str> {
    let kind = output(program("stat").args(["--file-system", "--format", "%T"]).arg(state))?;
    Ok(if kind.trim() == "overlayfs" { "native" } else { "overlayfs" })
}

fn containerd_config(cluster: &Cluster) -> Result<String> {
    let state = cluster.state.display();
    Ok(format!(
        r#"version = 2
root = "{state}/containerd/root"
state = "{state}/containerd/state"
[grpc]
  address = "{}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{}"
"#,
        cluster.socket().display(),
        pods::PAUSE,
        snapshotter(&cluster.state)?,
    ))
}

fn kubelet_config(cluster: &Cluster, network: Network, ports: &Ports) -> String {
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{ anonymous: {{ enabled: true }}, webhook: {{ enabled: false }} }}
authorization: {{ mode: AlwaysAllow }}
containerRuntimeEndpoint: "unix://{}"
address: 0.0.0.0
port: {}
healthzPort: {}
cgroupDriver: cgroupfs
cgroupRoot: /{CGROUP}
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
makeIPTablesUtilChains: false
clusterDNS: ["{}"]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
evictionHard: {{ memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%" }}
imageGCHighThresholdPercent: 100
"#,
        cluster.socket().display(),
        ports.kubelet,
        ports.kubelet_health,
        network.service(dns::SERVICE),
    )
}

fn proxy_config(cluster: &Cluster, network: Network, ports: &Ports) -> String {
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: "{}"
clientConnection: {{ kubeconfig: "{}" }}
hostnameOverride: {NODE}
conntrack: {{ maxPerCore: 0 }}
healthzBindAddress: "127.0.0.1:{}"
metricsBindAddress: "127.0.0.1:{}"
"#,
        network.pods(),
        cluster.kubeconfig().display(),
        ports.proxy_health,
        ports.proxy_metrics,
    )
}

/// The hierarchies of cgroups: one of version 2, or one per controller.
pub(super) fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(CGROUPS);
    if root.join("cgroup.procs").exists() {
        return vec![root];
    }
    let entries = fs::read_dir(&root).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join("cgroup.procs").exists()).collect()
}

fn make_cgroups() -> Result<()> {
    for hierarchy in hierarchies() {
        let folder = hierarchy.join(CGROUP);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the cgroup {}", folder.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // Of version 1: nothing runs in a group whose processors are not named.
            if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(folder.join(file), value.trim())
                    .with_context(|| format!("cannot set {file} of {}", folder.display()))?;
            }
        }
    }
    Ok(())
}
