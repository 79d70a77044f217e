//! Where secrets come from.
//!
//! In: paths. Out: what is there, as templates see it, with its version and its lease.
//! Promise: what one provider does wrong never reaches another.

use std::path::PathBuf;
use std::time::Duration;

use gotmpl::Value;
use outrigger_config::{Secret, SecretProvider};
use outrigger_http::Resolver;

use crate::error::Error;
use crate::folder::Folder;
use crate::metrics::Metrics;
use crate::vault::Vault;

/// Ends a path, with a `/` before it, that asks for the names below it. Vault's own way to say LIST with a GET.
pub(crate) const LIST: &str = "?list=true";

/// What was read at a path.
pub(crate) struct Fetched {
    /// `.Data`, `.LeaseID`, …
    pub(crate) value: Value,
    /// The version the provider counts, where it does.
    pub(crate) version: Option<u64>,
    pub(crate) lease: Option<Lease>,
}

/// A secret that is ours for a while.
#[derive(Clone)]
pub(crate) struct Lease {
    pub(crate) id: Secret,
    pub(crate) duration: Duration,
    pub(crate) renewable: bool,
}

/// A provider of the config.
pub(crate) enum Provider {
    Folder(Folder),
    Vault(Box<Vault>),
}

impl Provider {
    pub(crate) fn new(config: &SecretProvider, resolver: &Resolver, metrics: &Metrics) -> Option<Self> {
        let name = config.name.to_string();
        if let Some(file) = &config.file {
            return Some(Self::Folder(Folder::new(name, file.directory.clone())));
        }
        let vault = config.vault.clone()?;
        Some(Self::Vault(Box::new(Vault::new(name, vault, resolver.clone(), metrics.clone()))))
    }

    /// Files and folders whose change matters.
    pub(crate) fn watched(&self) -> Vec<PathBuf> {
        match self {
            Self::Folder(folder) => vec![folder.directory().to_owned()],
            Self::Vault(vault) => vault.watched(),
        }
    }

    /// How often what has no lease is read again; `None` where changes are noticed.
    pub(crate) fn refresh(&self) -> Option<Duration> {
        match self {
            Self::Folder(_) => None,
            Self::Vault(vault) => Some(vault.refresh()),
        }
    }

    /// Logs in if that is needed, so that reads can begin.
    pub(crate) async fn prepare(&mut self) -> Result<(), Error> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Vault(vault) => vault.prepare().await,
        }
    }

    /// Reads a path.
    pub(crate) async fn read(&self, path: &str) -> Result<Fetched, Error> {
        match self {
            Self::Folder(folder) => folder.read(path).await,
            Self::Vault(vault) => vault.read(path).await,
        }
    }
}
