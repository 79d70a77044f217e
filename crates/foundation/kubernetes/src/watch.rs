//! One watch: what changes in a collection from a version on, until the API server ends it.
//!
//! In: a collection, the version that is known. Out: changes in their order, with the versions to go on from. Promise: no
//! event is larger than its bound; a server that says nothing for longer than it was asked to watch is left.

use std::time::Duration;

use bytes::BytesMut;
use outrigger_http::Streamed;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::client::{Client, Request};
use crate::error::{ApiError, Status};
use crate::list::Selection;
use crate::object::{Path, escape};

/// An object may have 1.5 MiB in etcd; its JSON is somewhat larger.
const MAX_EVENT: usize = 8 << 20;
/// The API server is given so much longer than it was asked to watch.
const GRACE: Duration = Duration::from_secs(30);

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is new, or as it is now.
    Set(Value),
    /// It has gone, or is not selected any more; as it was last.
    Gone(Value),
    /// Nothing, up to this version.
    Bookmark,
}

/// A watch under way.
pub struct Watch {
    stream: Streamed,
    what: String,
    buffer: BytesMut,
    /// So many bytes of the buffer hold no end of a line.
    searched: usize,
    version: String,
    until: Instant,
}

impl Client {
    /// Watches a collection from a version on, for about so long.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::is_gone`] when the version is too old.
    pub async fn watch(
        &self,
        path: Path<'_>,
        selection: &Selection,
        version: &str,
        span: Duration,
    ) -> Result<Watch, ApiError> {
        let mut query = selection.query();
        query.push_str("watch=true&allowWatchBookmarks=true&resourceVersion=");
        escape(&mut query, version);
        query.push_str(&format!("&timeoutSeconds={}", span.as_secs().max(1)));
        let stream = self.open(Request { query, ..Request::get("watch", path) }).await?;
        Ok(Watch {
            stream,
            what: path.to_string(),
            buffer: BytesMut::new(),
            searched: 0,
            version: version.to_owned(),
            until: Instant::now() + span + GRACE,
        })
    }
}

impl Watch {
    /// The version to go on from.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The next change; `None` when the watch is over. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks, or the API server says why it goes no further.
    pub async fn next(&mut self) -> Result<Option<Change>, ApiError> {
        loop {
            if let Some(line) = self.line() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let event = serde_json::from_slice(&line).map_err(|error| self.malformed(&error.to_string()))?;
                return self.change(event).map(Some);
            }
            if self.buffer.len() > MAX_EVENT {
                return Err(self.malformed(&format!("an event is larger than {MAX_EVENT} bytes")));
            }
            match timeout_at(self.until, self.stream.piece()).await {
                // It has not ended when it should have: nobody may be there any more.
                Err(_) | Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(piece))) => self.buffer.extend_from_slice(&piece),
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }

    fn line(&mut self) -> Option<BytesMut> {
        match self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                // What a large event needed is given back.
                if self.buffer.is_empty() && self.buffer.capacity() > 64 << 10 {
                    self.buffer = BytesMut::new();
                }
                Some(line)
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }

    fn change(&mut self, mut event: Value) -> Result<Change, ApiError> {
        let object = event["object"].take();
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            let status = Box::new(Status::of(500, &object));
            return Err(ApiError::Refused { verb: "watch", what: self.what.clone(), status });
        }
        match object["metadata"]["resourceVersion"].as_str() {
            Some(version) => version.clone_into(&mut self.version),
            None => return Err(self.malformed("an event names no resourceVersion")),
        }
        match kind {
            "ADDED" | "MODIFIED" => Ok(Change::Set(object)),
            "DELETED" => Ok(Change::Gone(object)),
            "BOOKMARK" => Ok(Change::Bookmark),
            other => Err(self.malformed(&format!("`{}` is no kind of event", crate::error::tidy(other)))),
        }
    }

    fn malformed(&self, problem: &str) -> ApiError {
        ApiError::Malformed { verb: "watch", what: self.what.clone(), problem: problem.to_owned() }
    }
}
