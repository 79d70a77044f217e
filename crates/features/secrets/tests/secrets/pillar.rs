//! The component under test, and what can be seen of it from outside.
//!
//! In: a config as text. Out: status, metrics, variables, and a journal of every event of
//! every test at trace level. Promise: each wait has an end and says what it waited for.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use outrigger_config::Config;
use outrigger_http::Resolver;
use outrigger_runtime::{AdminRequest, AppEnvironment, BoxError, Component, Context, Standalone};
use outrigger_secrets::SecretsComponent;
use outrigger_telemetry::{Format, Registry};
use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

use crate::bao::ROOT;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running component, with the folder its files are in.
pub(crate) struct Pillar {
    pub(crate) outside: Standalone,
    registry: Registry,
    pub(crate) environment: AppEnvironment,
    task: JoinHandle<Result<(), BoxError>>,
}

impl Pillar {
    pub(crate) fn start(config: &str) -> Self {
        journal();
        let config = parse(config);
        let component = SecretsComponent::new(Resolver::from_system());
        component.check(None, &config).unwrap();
        assert!(component.enabled(&config));
        let (context, outside) = Context::standalone(config, 0);
        let (registry, environment) = (context.registry.clone(), context.environment.clone());
        let task = tokio::task::spawn_local(async move { component.run(context).await });
        Self { outside, registry, environment, task }
    }

    pub(crate) fn reload(&self, config: &str) {
        self.outside.config.send(Arc::new(parse(config))).unwrap();
    }

    pub(crate) async fn is(&self, state: &str, parts: &[&str]) {
        let what = format!("status {state} with {parts:?}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (now, reason) = self.outside.status();
            if now == state && parts.iter().all(|part| reason.contains(part)) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}; it is {now}: {reason}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = Vec::new();
        self.registry.encode(Format::Text, &mut text);
        String::from_utf8(text).unwrap()
    }

    pub(crate) fn version(&self, file: &Path) -> Option<u64> {
        let start = format!("outrigger_secret_version{{path=\"{}\"}} ", file.display());
        self.metrics().lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    }

    /// Nothing that can be seen from outside holds one of these.
    pub(crate) fn leaks_none_of(&self, secrets: &[&str]) {
        let told = self.told();
        let seen = format!("{:?}\n{}\n{told}\n{}", self.outside.status(), self.metrics(), journal().lock().unwrap());
        assert!(seen.contains("outrigger_secret_version"), "there is something to look through");
        for secret in secrets {
            assert!(!seen.contains(secret), "{secret} leaks: {:?}", seen.lines().find(|line| line.contains(secret)));
        }
    }

    /// What `GET /secrets` says.
    pub(crate) fn told(&self) -> Json {
        let request = AdminRequest { query: String::new(), headers: http::HeaderMap::new() };
        let handler = self.outside.admin.handler("/secrets").expect("it is registered");
        let answer = handler(request).now_or_never().expect("it is at hand");
        serde_json::from_slice(&answer.into_body().whole().unwrap()).unwrap()
    }

    pub(crate) async fn stop(self) {
        self.outside.stop.request(tokio::time::Instant::now() + Duration::from_secs(10));
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").unwrap().unwrap();
    }
}

pub(crate) fn parse(yaml: &str) -> Config {
    match outrigger_config::parse("test.yaml", yaml, &|_| None) {
        Ok(loaded) => loaded.config,
        Err(error) => panic!("{}\n{yaml}", error.render(false)),
    }
}

pub(crate) fn file(path: &Path, template: &str) -> String {
    format!("{{ path: '{}', template: '{template}' }}", path.display())
}

pub(crate) fn config(providers: &str, files: &[String]) -> String {
    format!("secrets: {{ providers: [{providers}], files: [{}] }}", files.join(", "))
}

pub(crate) async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn holds(path: &Path, content: &str) {
    eventually(&format!("{} holds what it shall", path.display()), async || {
        fs::read_to_string(path).is_ok_and(|text| text == content)
    })
    .await;
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// All events of this process.
pub(crate) fn journal() -> &'static Mutex<String> {
    static JOURNAL: Mutex<String> = Mutex::new(String::new());
    static ONCE: Once = Once::new();
    struct Writer;
    impl<S: tracing::Subscriber> Layer<S> for Writer {
        fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
            use std::fmt::Write as _;
            let mut journal = JOURNAL.lock().unwrap();
            let _ = write!(journal, "{}", event.metadata().target());
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                let _ = write!(journal, " {field}={value:?}");
            });
            journal.push('\n');
        }
    }
    ONCE.call_once(|| tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Writer)).unwrap());
    &JOURNAL
}

pub(crate) async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

pub(crate) struct Folder(pub(crate) TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// As an editor or the kubelet writes: a new file, moved over the old one.
    pub(crate) fn replace(&self, name: &str, content: &str) -> PathBuf {
        let (fresh, path) = (self.path("fresh~"), self.path(name));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&fresh, content).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path
    }
}

pub(crate) fn token() -> String {
    format!("{{ token: {{ value: {ROOT} }} }}")
}
