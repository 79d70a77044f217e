//! A file or a variable that the config asks for.
//!
//! In: its template and what its secrets hold. Out: the file on disk, or the variable's value.
//! Promise: what was good stays until something better is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use outrigger_config::{ConfigPath, Secret, Secrets as Section};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::metrics::{Metrics, OutputMetrics};
use crate::template::{Flaw, Template};
use crate::writer::{self, FileTarget};

/// What the config says of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputSpec {
    /// Config path of the template.
    pub(crate) at: String,
    pub(crate) provider: String,
    pub(crate) template: String,
    pub(crate) target: Target,
}

/// Where an output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    File(FileTarget),
    Variable(String),
}

impl OutputSpec {
    /// All outputs of a section, in its order.
    pub(crate) fn all(section: &Section) -> Vec<Self> {
        let only = section.providers.first().map(|provider| provider.name.to_string()).unwrap_or_default();
        let provider = |name: &Option<outrigger_config::Name>| name.as_ref().map_or(only.clone(), ToString::to_string);
        let at = |list: &str, index| ConfigPath::from("secrets").key(list).index(index).key("template").to_string();
        let files = section.files.iter().enumerate().map(|(index, file)| Self {
            at: at("files", index),
            provider: provider(&file.provider),
            template: file.template.clone(),
            target: Target::File(FileTarget {
                path: file.path.clone(),
                mode: file.mode.0,
                uid: file.uid,
                gid: file.gid,
            }),
        });
        let variables = section.env.iter().enumerate().map(|(index, variable)| Self {
            at: at("env", index),
            provider: provider(&variable.provider),
            template: variable.template.clone(),
            target: Target::Variable(variable.name.clone()),
        });
        files.chain(variables).collect()
    }

    /// Compiles the template.
    pub(crate) fn compile(&self) -> Result<Template, Error> {
        let flawed = |Flaw { line, message }| Error::Template { at: self.at.clone(), line, message };
        Template::compile(&self.template).map_err(flawed)
    }

    /// Its name in metrics and messages.
    pub(crate) fn label(&self) -> String {
        match &self.target {
            Target::File(file) => file.path.display().to_string(),
            Target::Variable(name) => format!("env:{name}"),
        }
    }
}

/// An output at work.
pub(crate) struct Output {
    pub(crate) spec: OutputSpec,
    pub(crate) template: Result<Template, Error>,
    /// The paths it was last made from, each with the revision it had.
    pub(crate) used: BTreeMap<String, u64>,
    /// It was made from them, and is where it belongs.
    pub(crate) done: bool,
    /// Why it is not as it should be.
    pub(crate) trouble: Option<Error>,
    /// The version of what it was last made from.
    pub(crate) version: Option<u64>,
    /// When it was last made, and when that last changed it.
    pub(crate) rendered: Option<SystemTime>,
    pub(crate) changed: Option<SystemTime>,
    /// A variable's value.
    pub(crate) value: Option<Secret>,
    metrics: OutputMetrics,
}

impl Output {
    pub(crate) fn new(spec: OutputSpec, metrics: &Metrics) -> Self {
        let template = spec.compile();
        let metrics = metrics.output(&spec.label());
        Self {
            template,
            spec,
            used: BTreeMap::new(),
            done: false,
            trouble: None,
            version: None,
            rendered: None,
            changed: None,
            value: None,
            metrics,
        }
    }

    /// Whether it has to be made (again), given the revisions of the secrets that are known.
    pub(crate) fn is_pending(&self, revision: impl Fn(&str) -> Option<u64>) -> bool {
        let outdated = || self.used.iter().any(|(path, used)| revision(path) != Some(*used));
        let gone = || matches!(&self.spec.target, Target::File(file) if !writer::exists(file));
        !self.done || self.trouble.is_some() || outdated() || gone()
    }

    /// Puts a rendered text where it belongs.
    pub(crate) async fn put(&mut self, content: Zeroizing<Vec<u8>>, used: BTreeMap<String, u64>, version: u64) {
        let label = self.spec.label();
        let written = match &self.spec.target {
            Target::File(file) => {
                let (target, path) = (file.clone(), file.path.clone());
                let write = move || writer::write(&target, &content);
                let crashed = |_| Err(Error::Write { path, problem: "the writer crashed".to_owned() });
                tokio::task::spawn_blocking(write).await.unwrap_or_else(crashed)
            }
            Target::Variable(name) => {
                let name = name.clone();
                self.set(&name, &content)
            }
        };
        match written {
            Ok(written) => {
                if written {
                    tracing::info!(component = "secrets", target = %label, version, "secret rendered");
                }
                self.metrics.succeeded(written, version);
                (self.used, self.done, self.trouble) = (used, true, None);
                let now = Some(SystemTime::now());
                (self.version, self.rendered) = (Some(version), now);
                if written || self.changed.is_none() {
                    self.changed = now;
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Takes a variable's new value; whether it is another.
    fn set(&mut self, name: &str, content: &[u8]) -> Result<bool, Error> {
        let value = std::str::from_utf8(content).ok().filter(|value| !value.contains('\0'));
        let value = value.ok_or_else(|| Error::Render {
            target: self.spec.label(),
            at: self.spec.at.clone(),
            line: 1,
            message: "the value holds a zero byte or no UTF-8, which no variable can".to_owned(),
        })?;
        let before = self.value.as_ref().map(Secret::expose);
        if before == Some(value) {
            return Ok(false);
        }
        if before.is_some() {
            tracing::warn!(
                component = "secrets",
                variable = name,
                "variable changed; a running process keeps the old value until it is restarted"
            );
        }
        self.value = Some(Secret::new(value.to_owned()));
        Ok(true)
    }

    /// Notes that what is needed could not be read, rendered or written.
    pub(crate) fn fail(&mut self, error: Error) {
        self.metrics.failed();
        self.trouble = Some(error);
    }

    /// Notes what is wrong with what the template was given.
    pub(crate) fn flaw(&mut self, flaw: Flaw, used: &BTreeSet<String>) {
        // Without revisions: whatever comes next is worth another try.
        self.used = used.iter().map(|path| (path.clone(), 0)).collect();
        let Flaw { line, message } = flaw;
        self.fail(Error::Render { target: self.spec.label(), at: self.spec.at.clone(), line, message });
    }
}
