//! A real OpenBao for a test.
//!
//! In: a port. Out: a server that serves, and calls of its API as root. Promise: it ends with
//! its guard; where it is not installed the test fails and says how to install it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use outrigger_http::{Client, ClientOptions, Resolver};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::pillar::{eventually, free_port};

/// The root token of every OpenBao here.
pub(crate) const ROOT: &str = "root-token-that-must-not-leak";

/// An OpenBao server in development mode, ended with its guard.
pub(crate) struct Bao {
    child: Child,
    pub(crate) address: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    _home: TempDir,
}

impl Bao {
    pub(crate) async fn start() -> Self {
        Self::start_on(free_port()).await
    }

    pub(crate) async fn start_on(port: u16) -> Self {
        Self::start_with(port, None).await
    }

    /// With TLS, its authority in `vault-ca.pem` of a folder.
    pub(crate) async fn start_with(port: u16, tls: Option<&Path>) -> Self {
        let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/tools/bin/bao");
        let tool = std::env::var_os("OUTRIGGER_BAO").map_or_else(installed, PathBuf::from);
        assert!(tool.exists(), "OpenBao is not at {}: run `cargo xtask setup`", tool.display());
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(tool);
        if let Some(folder) = tls {
            command.args(["server", "-dev-tls", &format!("-dev-tls-cert-dir={}", folder.display())]);
        } else {
            command.args(["server"]);
        }
        let child = command
            .args(["-dev", "-dev-no-store-token", &format!("-dev-root-token-id={ROOT}")])
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let ca = tls.map(|folder| folder.join("vault-ca.pem"));
        let mut bao = Self { child, address: format!("{scheme}://127.0.0.1:{port}"), tls: None, _home: home };
        if let Some(ca) = ca {
            eventually("OpenBao makes its certificates", async || {
                bao.tls = outrigger_identity::client_config_with_roots(Some(&ca)).ok();
                bao.tls.is_some()
            })
            .await;
        }
        eventually("OpenBao serves", async || bao.call("GET", "sys/health", json!(null)).await.0 == 200).await;
        // The development mount of KV comes a moment after the rest.
        eventually("KV is mounted", async || {
            bao.call("PUT", "secret/data/probe", json!({ "data": {} })).await.0 == 200
        })
        .await;
        bao
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let client =
            Client::new(ClientOptions { tls: self.tls.clone(), ..ClientOptions::default() }, Resolver::from_system());
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = http::Request::builder().method(method).uri(format!("{}/v1/{path}", self.address));
        match client.send(request.header("x-vault-token", ROOT).body(body).unwrap()).await {
            Ok(response) => (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap_or_default()),
            Err(_) => (0, Value::Null),
        }
    }

    pub(crate) async fn put(&self, path: &str, data: Value) {
        let (status, _) = self.call("PUT", &format!("secret/data/{path}"), json!({ "data": data })).await;
        assert_eq!(status, 200, "OpenBao takes {path}");
    }

    /// How many tokens there are.
    pub(crate) async fn tokens(&self) -> usize {
        let (_, answer) = self.call("LIST", "auth/token/accessors", json!(null)).await;
        answer["data"]["keys"].as_array().map_or(0, Vec::len)
    }

    pub(crate) fn provider(&self, auth: &str) -> String {
        format!(
            "{{ name: vault, vault: {{ address: '{}', refresh: 200ms, timeout: 2s, auth: {auth} }} }}",
            self.address
        )
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
