//! The trust bundle in namespaces, and the controller's own identity: with the rights that `outrigger install` gives, and no others.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use outrigger_e2e::{ApiServer, Outrigger, eventually_within, free_port, outrigger_command, start_outrigger};

const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "outrigger-ca-root-cert";

/// An API server with what `outrigger install` prints, but for the webhook: no controllers run in pods here.
fn installed(folder: &Path) -> ApiServer {
    let api = ApiServer::start(folder);
    let printed = outrigger_command().arg("install").stdin(Stdio::null()).output().unwrap();
    api.apply(&String::from_utf8(printed.stdout).unwrap());
    api.kubectl(&["delete", "mutatingwebhookconfiguration", "outrigger-injector"]).unwrap();
    api.write_access(folder, "outrigger-system", "outrigger-controller");
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters: [{{ name: it, cluster: {{ server: '{}', certificate-authority: api-ca.pem }} }}]\n\
         users: [{{ name: it, user: {{ tokenFile: api-token }} }}]\n\
         contexts: [{{ name: it, context: {{ cluster: it, user: it }} }}]\n",
        api.server()
    );
    fs::write(folder.join("controller.conf"), config).unwrap();
    api
}

/// A controller with an authority whose roots live for moments.
fn controller(api: &ApiServer, folder: &Path) -> Outrigger {
    let (authority, discovery) = (free_port(), free_port());
    let config = format!(
        "controller:\n  identity: one\n  kubernetes: {{ kubeconfig: {0}/controller.conf }}\n  \
         election: {{ duration: 4s, renewDeadline: 2s, retry: 300ms }}\n  repair: {{ action: \"off\" }}\n\
         authority:\n  trustDomain: shop.example\n  listen: \"127.0.0.1:{authority}\"\n  names: [127.0.0.1]\n  ttl: 5s\n  \
         maxTtl: 5s\n  roots: {{ secret: {{ namespace: outrigger-system, name: outrigger-roots }}, lifetime: 40s, propagation: 8s }}\n  \
         trustBundles: {{}}\n  auditLog: {0}/audit\n  kubernetes: {{ server: \"{1}\", caFile: {0}/api-ca.pem, tokenFile: {0}/api-token }}\n\
         identity:\n  trustDomain: shop.example\n  ownAuthority: {{ namespace: outrigger-system, serviceAccount: outrigger-controller }}\n\
         discovery: {{ listen: \"127.0.0.1:{discovery}\", kubernetes: {{ kubeconfig: {0}/controller.conf }} }}\n",
        folder.display(),
        api.server(),
    );
    start_outrigger(folder, &config)
}

fn bundle(api: &ApiServer, namespace: &str) -> Result<String> {
    api.kubectl(&["get", "configmap", NAME, "-n", namespace, "--output=jsonpath={.data.ca\\.crt}"])
}

/// The bundle that is there, once it is no other than that of `like`.
fn same(api: &ApiServer, namespace: &str, like: &str) -> Result<()> {
    let (one, other) = (bundle(api, namespace)?, bundle(api, like)?);
    ensure!(one.contains("BEGIN CERTIFICATE") && one == other, "{namespace} has {one}, {like} has {other}");
    Ok(())
}

fn gone(api: &ApiServer, namespace: &str) -> Result<()> {
    let all = api.kubectl(&["get", "configmaps", "-n", namespace, "--output=name"])?;
    ensure!(!all.contains(NAME), "{all}");
    Ok(())
}

#[test]
fn namespaces_that_opt_in_have_the_bundle_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let api = installed(folder.path());
    let kubectl = |arguments: &[&str]| api.kubectl(arguments).unwrap();
    for name in ["early", "plain", "singles", "left"] {
        kubectl(&["create", "namespace", name]);
    }
    let label = |namespace: &str, word: &str| {
        kubectl(&["label", "namespace", namespace, &format!("outrigger.dev/inject{word}"), "--overwrite"])
    };
    label("early", "=enabled");
    label("left", "=enabled");
    // Somebody else's, where nobody opted in.
    kubectl(&["create", "configmap", NAME, "-n", "plain", "--from-literal=ca.crt=theirs"]);
    let outrigger = controller(&api, folder.path());
    let eventually = |what: &str, probe: &dyn Fn() -> Result<()>| {
        eventually_within(PATIENCE, what, || {
            let status = || outrigger.get("/readyz?verbose").map(|response| response.body).unwrap_or_default();
            probe().map_err(|error| error.context(status()))
        });
    };
    eventually("the bundle in the namespace that opted in first", &|| same(&api, "early", "left"));

    // The controller has its identity from itself, which the audit log tells, and is ready with discovery by it.
    eventually("all parts to be ready", &|| outrigger.get("/readyz")?.ok().map(drop));
    let audit = fs::read_to_string(folder.path().join("audit")).unwrap();
    let own = "spiffe://shop.example/ns/outrigger-system/sa/outrigger-controller";
    assert!(audit.contains("certificate_issued") && audit.contains(own), "{audit}");

    // Later ones, and a single pod's.
    kubectl(&["create", "namespace", "later"]);
    label("later", "=true");
    let pod = |namespace: &str, metadata: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p, namespace: {namespace}, {metadata} }}\nspec: {{ automountServiceAccountToken: \
             false, serviceAccountName: p, terminationGracePeriodSeconds: 0, containers: [{{ name: app, image: none }}] }}\n"
        )
    };
    for (namespace, metadata) in [
        ("singles", "labels: { outrigger.dev/inject: enabled }"),
        ("left", "annotations: { outrigger.dev/status: \"{}\" }"),
    ] {
        kubectl(&["create", "serviceaccount", "p", "-n", namespace]);
        api.apply(&pod(namespace, metadata));
    }
    eventually("the bundle in a namespace of later", &|| same(&api, "later", "early"));
    eventually("the bundle beside a single pod", &|| same(&api, "singles", "early"));

    // Changed, removed: it comes back.
    kubectl(&["patch", "configmap", NAME, "-n", "later", "--type=merge", "-p", "{\"data\":{\"ca.crt\":\"nonsense\"}}"]);
    kubectl(&["delete", "configmap", NAME, "-n", "singles"]);
    eventually("what was changed to be right again", &|| same(&api, "later", "early"));
    eventually("what was removed to be there again", &|| same(&api, "singles", "early"));

    // It follows the roots.
    let first = bundle(&api, "early").unwrap();
    eventually("the next root in the bundle", &|| {
        let now = bundle(&api, "later")?;
        ensure!(now != first && now.contains("BEGIN CERTIFICATE"), "{now}");
        same(&api, "singles", "later")
    });

    // Opted out: gone, but not while a sidecar is left; what is somebody else's stays.
    label("left", "-");
    label("early", "-");
    eventually("the bundle to go with the label", &|| gone(&api, "early"));
    assert!(bundle(&api, "left").unwrap().contains("BEGIN"), "a sidecar is left there");
    assert_eq!(bundle(&api, "plain").unwrap(), "theirs");
}
