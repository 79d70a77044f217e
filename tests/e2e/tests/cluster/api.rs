//! An API server alone: what it takes, and that it goes with its guard.

use outrigger_e2e::ApiServer;

use crate::manifest::{Interception, pod, server, spec};

#[test]
fn an_api_server_judges_manifests_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let server_pod = pod("web", &spec(Interception::Init, "outrigger", vec![server("web")]));
    let api = ApiServer::start(folder.path());
    let taken = api.dry_run(&server_pod).unwrap();
    assert!(taken.contains("\"restartPolicy\": \"Always\""), "{taken}");
    let wrong = server_pod.replace("\"restartPolicy\":\"Always\"", "\"restartPolicy\":\"Sometimes\"");
    let refused = format!("{:#}", api.dry_run(&wrong).unwrap_err());
    assert!(refused.contains("spec.initContainers[1]"), "{refused}");
    assert!(api.kubectl(&["get", "pods"]).unwrap().is_empty(), "a dry run makes nothing");
    drop(api);
    assert!(!folder.path().join("cluster").exists(), "nothing is left");
}
