//! An installation as a platform engineer makes it: printed, applied, checked; a labelled namespace; gone again.

use anyhow::ensure;
use outrigger_e2e::KubeNamespace;

use crate::api::the_only_controllers;
use crate::installation::Installation;
use crate::manifest::{plain, service, taken};

/// An application as its developer wrote it.
const SHOP: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: { name: shop }
spec:
  selector: { matchLabels: { app: shop } }
  template:
    metadata: { labels: { app: shop } }
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - { name: app, image: \"localhost/app:1\", imagePullPolicy: Never, args: [serve, -name, shop] }
";

/// Another one, which takes nothing but mTLS.
const ORDERS: &str = "\
apiVersion: v1
kind: ServiceAccount
metadata: { name: orders }
---
apiVersion: v1
kind: Service
metadata: { name: orders-pods }
spec: { clusterIP: None, selector: { app: orders }, ports: [{ port: 8080 }] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: orders }
spec:
  selector: { matchLabels: { app: orders } }
  template:
    metadata: { labels: { app: orders }, annotations: { outrigger.dev/mtls: strict } }
    spec:
      serviceAccountName: orders
      terminationGracePeriodSeconds: 5
      containers:
      - { name: app, image: \"localhost/app:1\", imagePullPolicy: Never, args: [serve, -name, orders, -calls, \"http://shop-service/chain\"] }
";

#[test]
fn a_label_brings_the_sidecar_and_nothing_else_does() {
    let _alone = the_only_controllers();
    let installation = Installation::new();
    let report = installation.checked();
    assert!(
        report.contains("puts the sidecar into a pod made for trial") && report.contains("2 of 2 ready"),
        "{report}"
    );

    let (shop, other) = (KubeNamespace::new("outrigger.dev/inject: enabled"), KubeNamespace::new(""));
    plain(&other, "backend");
    other.apply(&service("backend", 8080));
    for namespace in [&shop, &other] {
        namespace.apply(SHOP);
        namespace.wait_for("deployment/shop", "Available");
    }
    let pod_of = |namespace: &KubeNamespace| {
        namespace.get("pods", "{.items[?(@.metadata.labels.app=='shop')].metadata.name}").unwrap()
    };
    let containers = "{.spec.initContainers[*].name} {.spec.containers[*].name}";
    let (pod, plain_pod) = (pod_of(&shop), pod_of(&other));
    assert_eq!(shop.get(&format!("pod/{pod}"), containers).unwrap(), "outrigger-init outrigger app");
    assert_eq!(other.get(&format!("pod/{plain_pod}"), containers).unwrap(), " app");

    // Its calls go through the sidecar, which it does not know of.
    let url = format!("http://backend-service.{}/", other.name);
    let answer = shop.exec(&format!("{pod} -c app"), &["/app", "get", "-for", "10s", &url]).unwrap();
    assert!(answer.starts_with("backend "), "{answer}");
    shop.eventually("the sidecar to have counted it", || {
        ensure!(taken(&shop, &pod, "outbound")? > 0, "nothing yet");
        Ok(())
    });

    // Those who have a sidecar speak mTLS, and know who calls; those who have none are let in where that is allowed.
    shop.apply(&service("shop", 8080));
    shop.apply(&format!("{ORDERS}---\n{}", service("orders", 8080)));
    shop.wait_for("deployment/orders", "Available");
    let get = |namespace: &KubeNamespace, from: &str, to: &str| {
        let url = format!("http://{to}/chain");
        namespace.exec(&format!("{from} -c app"), &["/app", "get", "-for", "3s", &url])
    };
    let of = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", shop.name);
    let expected = format!("orders {}\nshop {}\n", of("default"), of("orders"));
    shop.eventually("calls by mTLS in both directions", || {
        let answer = get(&shop, &pod, &format!("orders-service.{}", shop.name))?;
        ensure!(answer == expected, "{answer}");
        Ok(())
    });
    // Headless: the name stands for the pod's own address.
    shop.eventually("mTLS to a pod by its own address", || {
        let answer = get(&shop, &pod, &format!("orders-pods.{}:8080", shop.name))?;
        ensure!(answer == expected, "{answer}");
        Ok(())
    });
    shop.eventually("plain text to be let in where that is allowed", || {
        let answer = get(&other, "backend", &format!("shop-service.{}", shop.name))?;
        ensure!(answer == "shop nobody\n", "{answer}");
        Ok(())
    });
    let refused = get(&other, "backend", &format!("orders-service.{}", shop.name));
    assert!(refused.is_err(), "plain text where mTLS is asked for: {refused:?}");
    let bundle = |namespace: &KubeNamespace| namespace.get("configmap/outrigger-ca-root-cert", "{.data.ca\\.crt}");
    assert!(bundle(&shop).unwrap().contains("BEGIN CERTIFICATE") && bundle(&other).is_err());

    let checked = installation.outrigger(&["check", "--wait", "60s"]);
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(0), "{report}");
    assert!(report.contains(&shop.name) && report.contains("2, injected by"), "{report}");

    // A profile reaches the sidecar that runs, without a restart of anything; a bad one is refused.
    let profile = |level: &str| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: SidecarProfile\nmetadata: {{ name: shop }}\nspec: {{ config: {{ telemetry: {{ log: {{ level: {level} }} }} }} }}\n"
        )
    };
    let refused = format!("{:#}", shop.try_apply(&profile("loud")).unwrap_err());
    assert!(refused.contains("spec.config.telemetry.log.level"), "{refused}");
    shop.apply(&profile("debug"));
    shop.eventually("the sidecar to have taken it over", || {
        let log = shop.kubectl(&["logs", &pod, "--container=outrigger"])?;
        ensure!(log.contains("telemetry.log.level") && log.contains("config applied"), "not yet");
        Ok(())
    });
    let restarts = "{.status.initContainerStatuses[*].restartCount} {.status.containerStatuses[*].restartCount}";
    assert_eq!(shop.get(&format!("pod/{pod}"), restarts).unwrap(), "0 0 0");
    shop.kubectl(&["wait", "sidecarprofile/shop", "--for=condition=Programmed", "--timeout=30s"]).unwrap();

    // Gone again, pods are made as they were written, and wait for nobody.
    installation.remove().unwrap();
    shop.eventually("a pod without a sidecar", || {
        shop.kubectl(&["delete", "pods", "--selector=app=shop", "--wait=false"])?;
        shop.kubectl(&["rollout", "status", "deployment/shop", "--timeout=20s"])?;
        let all = shop.get("pods", "{range .items[?(@.metadata.labels.app=='shop')]}{.spec.containers[*].name}/{.spec.initContainers[*].name} {end}")?;
        ensure!(all.split_whitespace().any(|one| one == "app/"), "{all}");
        Ok(())
    });
}
