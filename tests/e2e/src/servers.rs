//! The servers around an Outrigger, real ones.
//!
//! In: a folder and a config. Out: guards of running servers. Promise: each returns once
//! it serves, on free ports, and ends with its guard.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::request;
use crate::process::{Process, tool};
use crate::{eventually, free_port, free_port_pair};

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

/// A Prometheus server that scrapes one target every second.
#[derive(Debug)]
pub struct Prometheus {
    /// The process.
    pub process: Process,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
}

impl Prometheus {
    /// Starts it, scraping `/metrics` of `target` (`IP:PORT`), and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path, target: &str) -> Self {
        let port = free_port();
        let config = folder.join("prometheus.yaml");
        let text = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs:\n- job_name: outrigger\n  static_configs:\n  - targets: [\"{target}\"]\n"
        );
        fs::write(&config, text).expect("the test's folder can be written");
        let mut command = tool("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::start("prometheus", &mut command, folder);
        let mut prometheus = Self { process, address: format!("http://127.0.0.1:{port}") };
        eventually("Prometheus to serve", || {
            prometheus.process.still_runs()?;
            request("GET", &format!("{}/-/ready", prometheus.address), &[], "")?.ok()
        });
        prometheus
    }

    /// The value of a PromQL query (ASCII letters, digits, `_{}=",.~` only) that yields one series.
    ///
    /// # Errors
    /// When it yields none or several.
    pub fn query(&self, query: &str) -> Result<f64> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => encoded.push(char::from(byte)),
                _ => encoded.push_str(&format!("%{byte:02X}")),
            }
        }
        let answer = request("GET", &format!("{}/api/v1/query?query={encoded}", self.address), &[], "")?.ok()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let result = answer["data"]["result"].as_array().with_context(|| format!("no result: {answer}"))?;
        match result.as_slice() {
            [one] => Ok(one["value"][1].as_str().context("a value is a string")?.parse()?),
            many => bail!("{query} yields {} series: {answer}", many.len()),
        }
    }

    /// What Prometheus says about its last scrape; empty when it went well.
    ///
    /// # Errors
    /// When it has not scraped yet.
    pub fn last_error(&self) -> Result<String> {
        let answer = request("GET", &format!("{}/api/v1/targets", self.address), &[], "")?.ok()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let target = &answer["data"]["activeTargets"][0];
        if target["health"] == "unknown" {
            bail!("not scraped yet");
        }
        Ok(target["lastError"].as_str().unwrap_or_default().to_owned())
    }
}

/// An nginx in the foreground, with one `server` block.
#[derive(Debug)]
pub struct Nginx {
    /// The process.
    pub process: Process,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// The port alone.
    pub port: u16,
}

impl Nginx {
    /// Starts it with `locations` inside its server block, and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path, locations: &str) -> Self {
        let port = free_port();
        let base = folder.join("nginx");
        fs::create_dir_all(&base).expect("the test's folder can be written");
        let base_text = base.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {base_text}/{kind};"))
            .join(" ");
        let text = format!(
            "daemon off; worker_processes 1; error_log stderr; pid {base_text}/nginx.pid;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log {base_text}/access.log; {temporary}\n\
             server {{ listen 127.0.0.1:{port}; {locations} }} }}\n"
        );
        let config = base.join("nginx.conf");
        fs::write(&config, text).expect("the test's folder can be written");
        let process = Process::start("nginx", tool("nginx").arg("-p").arg(&base).arg("-c").arg(&config), folder);
        let mut nginx = Self { process, address: format!("http://127.0.0.1:{port}"), port };
        eventually("nginx to serve", || {
            nginx.process.still_runs()?;
            request("GET", &nginx.address, &[], "")
        });
        nginx
    }
}
