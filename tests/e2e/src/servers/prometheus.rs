//! Prometheus, to read what we expose.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::request;
use crate::process::{Process, tool};
use crate::{eventually, free_port};

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
            .arg("--enable-feature=exemplar-storage")
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
        let encoded = encoded(query);
        let answer = request("GET", &format!("{}/api/v1/query?query={encoded}", self.address), &[], "")?.ok()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let result = answer["data"]["result"].as_array().with_context(|| format!("no result: {answer}"))?;
        match result.as_slice() {
            [one] => Ok(one["value"][1].as_str().context("a value is a string")?.parse()?),
            many => bail!("{query} yields {} series: {answer}", many.len()),
        }
    }

    /// Whether Prometheus understands a query, whatever it yields.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(&self, query: &str) -> Result<()> {
        let answer = request("GET", &format!("{}/api/v1/query?query={}", self.address, encoded(query)), &[], "")?;
        answer.ok().map(drop)
    }

    /// Trace ids of the exemplars that Prometheus has of a query's series.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn exemplars(&self, query: &str) -> Result<Vec<String>> {
        let url = format!("{}/api/v1/query_exemplars?query={}", self.address, encoded(query));
        let answer: Value = serde_json::from_str(&request("GET", &url, &[], "")?.ok()?)?;
        let series = answer["data"].as_array().with_context(|| format!("no data: {answer}"))?;
        let all = series.iter().flat_map(|series| series["exemplars"].as_array().into_iter().flatten());
        Ok(all.filter_map(|exemplar| exemplar["labels"]["trace_id"].as_str().map(str::to_owned)).collect())
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

fn encoded(query: &str) -> String {
    let mut encoded = String::new();
    for byte in query.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
