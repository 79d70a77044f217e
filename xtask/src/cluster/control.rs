//! etcd, API server, controllers, scheduler.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::network::Network;
use super::ports::Ports;
use super::{Cluster, Extent, program};

/// On a busy machine of two cores; a quiet one needs three seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// A component of Kubernetes.
pub(super) fn component(name: &str) -> Command {
    let mut command = program("kubernetes");
    command.arg(name);
    command
}

/// Starts them, and waits until the API server serves and pods may be made.
pub(super) fn start(cluster: &Cluster, extent: Extent, network: Network, ports: &Ports) -> Result<()> {
    let processes = cluster.processes();
    let pki = |file: &str| cluster.state.join("pki").join(file).display().to_string();
    let admin = format!("--kubeconfig={}", cluster.kubeconfig().display());

    let (client, peer) = (format!("http://127.0.0.1:{}", ports.etcd), format!("http://127.0.0.1:{}", ports.etcd_peer));
    let mut etcd = program("etcd");
    etcd.arg("--data-dir").arg(cluster.state.join("etcd"));
    etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    etcd.args(["--initial-cluster", &format!("default={peer}")]);
    // Nothing of it outlives a test run.
    processes.start("etcd", etcd.arg("--unsafe-no-fsync"))?;

    start_api(cluster, extent, network, ports)?;
    let mut controllers = component("controllers");
    controllers.args([&admin, "--leader-elect=false", "--allocate-node-cidrs=false", "--bind-address=127.0.0.1"]);
    controllers.arg(format!("--secure-port={}", ports.controllers));
    controllers.arg(format!("--service-account-private-key-file={}", pki("accounts.key")));
    controllers.arg(format!("--root-ca-file={}", pki("ca.crt")));
    controllers.arg(format!("--cluster-signing-cert-file={}", pki("ca.crt")));
    controllers.arg(format!("--cluster-signing-key-file={}", pki("ca.key")));
    processes.start("controllers", &mut controllers)?;
    if extent == Extent::Full {
        let mut scheduler = component("scheduler");
        scheduler.args([&admin, "--leader-elect=false", "--bind-address=127.0.0.1"]);
        processes.start("scheduler", scheduler.arg(format!("--secure-port={}", ports.scheduler)))?;
    }
    cluster.wait("the controllers", PATIENCE, || {
        cluster.ask("/api/v1/namespaces/default/serviceaccounts/default").map(drop)
    })
}

/// Starts the API server, and waits until it serves.
pub(super) fn start_api(cluster: &Cluster, extent: Extent, network: Network, ports: &Ports) -> Result<()> {
    let pki = |file: &str| cluster.state.join("pki").join(file).display().to_string();
    let mut api = component("apiserver");
    api.args([&format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd), &format!("--secure-port={}", ports.api)]);
    api.args([&format!("--tls-cert-file={}", pki("api.crt")), &format!("--tls-private-key-file={}", pki("api.key"))]);
    api.args([&format!("--client-ca-file={}", pki("ca.crt")), &format!("--token-auth-file={}", pki("tokens.csv"))]);
    api.args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"]);
    api.arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local");
    for flag in ["--service-account-key-file", "--service-account-signing-key-file"] {
        api.arg(format!("{flag}={}", pki("accounts.key")));
    }
    api.arg(format!("--service-cluster-ip-range={}", network.services()));
    // By its name the API server would not find the node.
    api.arg("--kubelet-preferred-address-types=InternalIP");
    api.arg(format!("--advertise-address={}", network.node()));
    match extent {
        Extent::Full => api.arg("--bind-address=0.0.0.0"),
        // There is no bridge whose address it could give to pods, and nobody behind the addresses of Services: webhooks are
        // looked for among endpoints, and none is dialled.
        Extent::ApiOnly => api.args([
            "--bind-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--enable-aggregator-routing=true",
        ]),
    };
    cluster.processes().start("apiserver", &mut api)?;
    cluster.wait("the API server", PATIENCE, || cluster.ask("/readyz").map(drop))
}
