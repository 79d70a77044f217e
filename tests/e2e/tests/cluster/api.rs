//! An API server alone: what it takes, and that it goes with its guard.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outrigger_e2e::ApiServer;

use crate::manifest::{Interception, pod, server, spec};

/// Rollouts belong to no namespace, so the controllers of one test would take up those of another: tests that run controllers
/// take turns.
pub(crate) fn the_only_controllers() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

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
