//! The audit log: who asked for what, from where, and what he was given or why not.
//!
//! In: records. Out: lines of JSON in a file or on standard output. Promise: a certificate is given
//! only after its record was written; a record never holds a token or a key; when the log cannot
//! be written, nothing is signed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One decision.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record<'a> {
    pub(crate) time: String,
    /// `certificate_issued`, `certificate_refused` or `certificate_failed`.
    pub(crate) event: &'static str,
    pub(crate) peer: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spiffe_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod_uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asked_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) serial: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

impl Record<'_> {
    pub(crate) fn new(event: &'static str, peer: SocketAddr) -> Self {
        Self {
            time: date(SystemTime::now()),
            event,
            peer,
            spiffe_id: None,
            pod: None,
            pod_uid: None,
            node: None,
            asked_seconds: None,
            serial: None,
            not_after: None,
            reason: None,
            detail: None,
        }
    }
}

/// Where records go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit(Arc<Mutex<Box<dyn Write + Send>>>);

impl Audit {
    /// Appends to a file, or to standard output.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let to: Box<dyn Write + Send> = match path {
            None => Box::new(io::stdout()),
            Some(path) => Box::new(append(path)?),
        };
        Ok(Self(Arc::new(Mutex::new(to))))
    }

    /// Writes a record. Cancel-safe: it may be written or not.
    pub(crate) async fn write(&self, record: &Record<'_>) -> io::Result<()> {
        let mut line = serde_json::to_vec(record).map_err(io::Error::other)?;
        line.push(b'\n');
        let to = Arc::clone(&self.0);
        // A pipe that nobody reads makes callers wait, and nobody else.
        let write = tokio::task::spawn_blocking(move || {
            let mut to = to.lock();
            to.write_all(&line)?;
            to.flush()
        });
        write.await.map_err(io::Error::other)?
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// A point in time as `2026-08-01T12:00:00Z`.
pub(crate) fn date(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| "an impossible date".to_owned())
}
