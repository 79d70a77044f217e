//! CoreDNS on the bridge, behind the Service that every pod's `resolv.conf` names.

use std::fs;

use anyhow::Result;

use super::network::Network;
use super::ports::Ports;
use super::{Cluster, program};

/// The last octet of the Service's address.
pub(super) const SERVICE: u8 = 10;

/// Starts it.
pub(super) fn start(cluster: &Cluster, network: Network, ports: &Ports) -> Result<()> {
    let (address, port, file) = (network.node(), ports.dns, cluster.state.join("Corefile"));
    let config = format!(
        ".:{port} {{
  bind {address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {}
    pods insecure
    ttl 5
  }}
}}
",
        cluster.kubeconfig().display()
    );
    fs::write(&file, config)?;
    cluster.processes().start("coredns", program("coredns").arg("-conf").arg(&file))?;
    let service = format!(
        "apiVersion: v1
kind: Service
metadata: {{ name: kube-dns, labels: {{ k8s-app: kube-dns }} }}
spec:
  clusterIP: {}
  ports: [{{ name: dns, port: 53, protocol: UDP }}, {{ name: dns-tcp, port: 53, protocol: TCP }}]
",
        network.service(SERVICE)
    );
    cluster.post("/api/v1/namespaces/kube-system/services", &service)?;
    let endpoints = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: kube-dns-host, labels: {{ kubernetes.io/service-name: kube-dns }} }}
addressType: IPv4
ports: [{{ name: dns, port: {port}, protocol: UDP }}, {{ name: dns-tcp, port: {port}, protocol: TCP }}]
endpoints: [{{ addresses: [\"{address}\"], conditions: {{ ready: true }} }}]
"
    );
    cluster.post("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", &endpoints)
}
