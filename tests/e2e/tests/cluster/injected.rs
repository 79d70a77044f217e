//! Manifests as people write them, through `outrigger inject`, before a real API server and in real pods.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use anyhow::ensure;
use outrigger_e2e::{
    ApiServer, Bao, KubeNamespace, eventually, outrigger_command, outrigger_image, start_outrigger_with,
};
use serde_json::{Value, json};

use crate::manifest::{plain, service, taken};

/// `outrigger inject` with a profile; what it prints, or `None` when a pod is refused.
pub(crate) fn inject(manifest: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("profile.yaml");
    let text = format!(
        "image: {}\nimagePullPolicy: Never\nvault: {{ address: \"https://vault.example\" }}\n",
        outrigger_image()
    );
    std::fs::write(&profile, text).unwrap();
    let mut command = outrigger_command();
    command.args(["inject", "-f", "-", "--profile"]).arg(&profile);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    match done.status.code() {
        Some(0) => Some(String::from_utf8(done.stdout).unwrap()),
        Some(3) => None,
        _ => panic!("{}", String::from_utf8_lossy(&done.stderr)),
    }
}

#[test]
fn an_api_server_takes_what_is_injected() {
    let folder = tempfile::tempdir().unwrap();
    let api = ApiServer::start(folder.path());
    api.kubectl(&["create", "namespace", "shop"]).unwrap();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/features/inject/testdata/manifests");
    let mut taken = 0;
    for entry in std::fs::read_dir(manifests).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.contains(".out.") || name.ends_with(".explain") {
            continue;
        }
        // No API server of today takes a field of the future.
        let manifest =
            std::fs::read_to_string(&path).unwrap().replace("  someFieldOfTheFuture: {kept: [1, 2, 3]}\n", "");
        let Some(injected) = inject(&manifest) else { continue };
        api.dry_run(&injected).unwrap_or_else(|error| panic!("{name}: {error:#}\n{injected}"));
        taken += 1;
    }
    assert!(taken >= 10, "{taken} manifests");
}

/// An application with every kind of probe, whose sidecar takes nothing but mTLS.
const SHOP: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  selector: {matchLabels: {app: shop}}
  template:
    metadata:
      labels: {app: shop}
      annotations:
        prometheus.io/scrape: \"true\"
        prometheus.io/port: \"8080\"
        prometheus.io/path: /nothing
        outrigger.dev/config: |
          identity: { trustDomain: example.org, development: { directory: /var/lib/authority, namespace: shop, serviceAccount: shop } }
          proxy: { listeners: [{ name: inbound, tls: { mode: strict } }] }
    spec:
      terminationGracePeriodSeconds: 6
      initContainers:
      - { name: prepare, image: \"localhost/app:1\", imagePullPolicy: Never, args: [get, \"http://backend-service/\"] }
      containers:
      - name: app
        image: localhost/app:1
        imagePullPolicy: Never
        args: [serve, -name, shop]
        ports: [{ name: web, containerPort: 8080 }]
        startupProbe: { httpGet: { path: /, port: web }, periodSeconds: 1 }
        readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
        livenessProbe: { grpc: { port: 8080 }, periodSeconds: 1 }
";

const JOB: &str = "\
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    metadata: {annotations: {outrigger.dev/interception: HOW}}
    spec:
      restartPolicy: Never
      containers:
      - { name: app, image: \"localhost/app:1\", imagePullPolicy: Never, args: [get, \"http://backend-service/\"] }
";

fn with_server() -> KubeNamespace {
    let namespace = KubeNamespace::new("");
    plain(&namespace, "backend");
    namespace.apply(&service("backend", 8080));
    namespace.wait_for("pod/backend", "Ready");
    namespace
}

#[test]
fn injected_probes_work_although_only_mtls_is_taken() {
    let namespace = with_server();
    namespace.apply(&inject(SHOP).unwrap());
    namespace.wait_for("deployment/shop", "Available");
    let pod = namespace.get("pods", "{.items[?(@.metadata.labels.app=='shop')].metadata.name}").unwrap();
    let through = taken(&namespace, &pod, "inbound").unwrap();
    assert_eq!(through, 0, "no probe came through the listener, which would have refused it");
    // The same call without a certificate is refused, so the probes did not go around it by chance.
    let address = namespace.get(&format!("pod/{pod}"), "{.status.podIP}").unwrap();
    let refused = namespace.exec("backend -c app", &["/app", "get", "-for", "1s", &format!("http://{address}:8080/")]);
    assert!(refused.is_err(), "{refused:?}");
    namespace.eventually("the probes to have gone on", || {
        let restarts = namespace.get(&format!("pod/{pod}"), "{.status.containerStatuses[*].restartCount}")?;
        ensure!(restarts == "0", "{restarts} restarts");
        Ok(())
    });
}

#[test]
fn injected_jobs_complete_and_kubectl_shows_the_application() {
    for how in ["init", "self"] {
        let namespace = with_server();
        namespace.apply(&inject(&JOB.replace("HOW", how)).unwrap());
        namespace.wait_for("job/once", "Complete");
        // Without `--container`.
        assert_eq!(namespace.kubectl(&["logs", "job/once"]).unwrap(), "backend 1\n", "{how}");
    }
}

/// A pod as it is written for vault-k8s.
fn for_vault(address: &str) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "shop", "annotations": {
            "outrigger.dev/interception": "none",
            "vault.hashicorp.com/agent-inject": "true",
            "vault.hashicorp.com/role": "shop",
            "vault.hashicorp.com/service": address,
            "vault.hashicorp.com/agent-inject-secret-db": "secret/data/db",
            "vault.hashicorp.com/agent-inject-template-db": "{{ with secret \"secret/data/db\" }}${x}{{ .Data.data.password }}{{ end }}",
        } },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    pod.to_string()
}

#[test]
fn a_pod_for_vault_k8s_gets_its_secrets_by_its_service_account() {
    let folder = tempfile::tempdir().unwrap();
    let (api, bao) = (ApiServer::start(folder.path()), Bao::start(folder.path()));
    api.kubectl(&["create", "serviceaccount", "shop"]).unwrap();
    // OpenBao asks for the review with the very token that is shown to it.
    let role = "--clusterrole=system:auth-delegator";
    api.kubectl(&["create", "clusterrolebinding", "shop", role, "--serviceaccount=default:shop"]).unwrap();
    let view = api.kubectl(&["config", "view", "--raw", "--output=json"]).unwrap();
    let view: Value = serde_json::from_str(&view).unwrap();
    let cluster = &view["clusters"][0]["cluster"];
    let authority = std::fs::read_to_string(cluster["certificate-authority"].as_str().unwrap()).unwrap();
    bao.call("POST", "sys/auth/kubernetes", &json!({ "type": "kubernetes" })).unwrap();
    let config =
        json!({ "kubernetes_host": cluster["server"], "kubernetes_ca_cert": authority, "disable_local_ca_jwt": true });
    bao.call("POST", "auth/kubernetes/config", &config).unwrap();
    let policy = json!({ "policy": "path \"secret/data/db\" { capabilities = [\"read\"] }" });
    bao.call("PUT", "sys/policies/acl/shop", &policy).unwrap();
    let role = json!({ "bound_service_account_names": "shop", "bound_service_account_namespaces": "default", "token_policies": "shop" });
    bao.call("POST", "auth/kubernetes/role/shop", &role).unwrap();
    bao.put_secret("db", &json!({ "password": "k8s-s3cret" }));

    // The config that injection wrote, with the pod's mounts in the test's folder.
    let injected: Value = serde_json::from_str(&inject(&for_vault(&bao.address)).unwrap()).unwrap();
    let config = injected["metadata"]["annotations"]["outrigger.dev/effective-config"].as_str().unwrap();
    let here = |name: &str| folder.path().join(name).display().to_string();
    let config = config.replace("/var/run/secrets/outrigger/tokens/vault-auth", &here("token"));
    let config = config.replace("/vault/secrets/db", &here("db")).replace("metrics: {}\n", "");
    let mut token = api.kubectl(&["create", "token", "default"]).unwrap();
    std::fs::write(folder.path().join("token"), &token).unwrap();
    let mut outrigger = start_outrigger_with(folder.path(), &config, &[]);
    eventually("another account to be refused", || {
        let state = outrigger.get("/readyz?verbose")?;
        ensure!(state.body.contains("does not accept the Kubernetes login"), "{}", state.body);
        Ok(())
    });
    token = api.kubectl(&["create", "token", "shop"]).unwrap();
    std::fs::write(folder.path().join("token"), token).unwrap();
    outrigger.wait_ready();
    assert_eq!(std::fs::read_to_string(folder.path().join("db")).unwrap(), "${x}k8s-s3cret");
}
