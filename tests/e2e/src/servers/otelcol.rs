//! An OpenTelemetry collector, to read the spans that we send.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::is_listening;
use crate::process::{Process, tool};
use crate::{eventually, free_port};

/// A collector that writes what it receives to a file.
#[derive(Debug)]
pub struct Otelcol {
    /// The process.
    pub process: Process,
    /// Where it takes OTLP over HTTP.
    pub http: u16,
    /// Where it takes OTLP over gRPC.
    pub grpc: u16,
    file: PathBuf,
}

/// A span as the collector understood it.
#[derive(Debug, Clone)]
pub struct Span {
    /// `service.name` of its resource.
    pub service: String,
    /// The span itself, as OTLP's JSON has it.
    pub json: Value,
}

impl Span {
    /// A field that is a text, such as `traceId`; empty when it is absent.
    pub fn field(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_default()
    }

    /// An attribute, as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        let all = self.json["attributes"].as_array()?;
        let value = &all.iter().find(|attribute| attribute["key"] == key)?["value"];
        let told = ["stringValue", "intValue"].into_iter().find_map(|kind| value[kind].as_str());
        told.map(str::to_owned)
    }
}

impl Otelcol {
    /// Starts it on free ports and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        Self::start_on(folder, free_port(), free_port())
    }

    /// Starts it on given ports and waits until it serves.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start_on(folder: &Path, http: u16, grpc: u16) -> Self {
        let (config, file) = (folder.join("otelcol.yaml"), folder.join("spans.json"));
        let text = format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"127.0.0.1:{grpc}\" }}, http: {{ endpoint: \"127.0.0.1:{http}\" }} }} }} }}
exporters: {{ file: {{ path: \"{}\", flush_interval: 50ms, append: true }} }}
service:
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines: {{ traces: {{ receivers: [otlp], exporters: [file] }} }}
",
            file.display()
        );
        fs::write(&config, text).expect("the test's folder can be written");
        let mut command = tool("otelcol");
        command.arg(format!("--config=file:{}", config.display()));
        let mut collector = Self { process: Process::start("otelcol", &mut command, folder), http, grpc, file };
        eventually("the collector to serve", || {
            collector.process.still_runs()?;
            is_listening(http)?;
            is_listening(grpc)
        });
        collector
    }

    /// All spans so far.
    ///
    /// # Errors
    /// When what it wrote cannot be read.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut spans = Vec::new();
        for line in whole.lines() {
            let request: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            for resource in request["resourceSpans"].as_array().into_iter().flatten() {
                let attributes = resource["resource"]["attributes"].as_array();
                let service = attributes.into_iter().flatten().find(|attribute| attribute["key"] == "service.name");
                let service = service.and_then(|one| one["value"]["stringValue"].as_str()).unwrap_or_default();
                for scope in resource["scopeSpans"].as_array().into_iter().flatten() {
                    let all = scope["spans"].as_array().into_iter().flatten();
                    spans.extend(all.map(|span| Span { service: service.to_owned(), json: span.clone() }));
                }
            }
        }
        Ok(spans)
    }
}
