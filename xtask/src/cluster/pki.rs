//! Who is who in the cluster: an authority, the API server's certificate, tokens and kubeconfigs.
//!
//! Nothing here guards anything: the cluster lives as long as a test run, and its tokens stand in this file.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::network::Network;
use super::{output, program};

/// The administrator's token.
pub(super) const ADMIN_TOKEN: &str = "admin-of-a-cluster-for-tests";
/// The node's token.
const NODE_TOKEN: &str = "node-of-a-cluster-for-tests";
/// The node's name.
pub(super) const NODE: &str = "node1";

/// Makes all of it below `state`.
pub(super) fn make(state: &Path, network: Network, api: u16) -> Result<()> {
    let folder = state.join("pki");
    let openssl =
        |arguments: &str| output(program("openssl").current_dir(&folder).args(arguments.split_whitespace())).map(drop);
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 3650 -subj /CN=cluster-for-tests"))?;
    // In the older format: the API server reads no other key of this kind.
    openssl("ecparam -name prime256v1 -genkey -noout -out accounts.key")?;
    openssl(&format!("req {key} -keyout api.key -out api.csr -subj /CN=kube-apiserver"))?;
    let service = "kubernetes.default.svc";
    let names = format!(
        "subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:{service},DNS:{service}.cluster.local,\
         IP:127.0.0.1,IP:{},IP:{}\n",
        network.service(1),
        network.node()
    );
    fs::write(folder.join("names"), names)?;
    openssl("x509 -req -in api.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out api.crt")?;
    let tokens = format!(
        "{ADMIN_TOKEN},admin,admin,\"system:masters\"\n{NODE_TOKEN},system:node:{NODE},{NODE},\"system:nodes\"\n"
    );
    fs::write(folder.join("tokens.csv"), tokens)?;
    for (file, token) in [("admin.conf", ADMIN_TOKEN), ("node.conf", NODE_TOKEN)] {
        fs::write(state.join(file), kubeconfig(&folder, api, token))?;
    }
    Ok(())
}

fn kubeconfig(pki: &Path, api: u16, token: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Config
clusters: [{{ name: tests, cluster: {{ server: "https://127.0.0.1:{api}", certificate-authority: "{}/ca.crt" }} }}]
users: [{{ name: tests, user: {{ token: "{token}" }} }}]
contexts: [{{ name: tests, context: {{ cluster: tests, user: tests }} }}]
current-context: tests
"#,
        pki.display()
    )
}
