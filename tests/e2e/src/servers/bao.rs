//! OpenBao, for secrets.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::request;
use crate::process::{Process, tool};
use crate::{eventually, free_port_pair};

/// An OpenBao server in development mode: unsealed, in memory, KV version 2 at `secret/`.
#[derive(Debug)]
pub struct Bao {
    /// The process.
    pub process: Process,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// The root token.
    pub token: String,
}

impl Bao {
    /// Starts it and waits until it is unsealed.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        // In development mode it takes the next port for its cluster.
        Self::start_on(folder, free_port_pair())
    }

    /// Starts it on a given port (of [`free_port_pair`]), to come back where it was.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start_on(folder: &Path, port: u16) -> Self {
        let token = "outrigger-test-root";
        let mut command = tool("bao");
        command.args(["server", "-dev", "-dev-no-store-token", &format!("-dev-root-token-id={token}")]);
        command.arg(format!("-dev-listen-address=127.0.0.1:{port}")).env("HOME", folder);
        let process = Process::start("bao", &mut command, folder);
        let mut bao = Self { process, address: format!("http://127.0.0.1:{port}"), token: token.to_owned() };
        eventually("OpenBao to serve", || {
            bao.process.still_runs()?;
            request("GET", &format!("{}/v1/sys/health", bao.address), &[], "")?.ok()
        });
        bao
    }

    /// Calls its API as root; `path` without `/v1/`.
    ///
    /// # Errors
    /// When it refuses.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}/v1/{path}", self.address);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = request(method, &url, &[("x-vault-token", &self.token)], &body)?;
        match response.status {
            200 => serde_json::from_str(&response.body).context("OpenBao answered no JSON"),
            204 => Ok(Value::Null),
            status => bail!("{method} {path}: status {status}: {}", response.body),
        }
    }

    /// Writes a secret to KV version 2.
    ///
    /// # Panics
    /// When it refuses.
    #[track_caller]
    pub fn put_secret(&self, path: &str, data: &Value) {
        self.call("POST", &format!("secret/data/{path}"), &serde_json::json!({ "data": data }))
            .expect("OpenBao takes a secret");
    }
}
