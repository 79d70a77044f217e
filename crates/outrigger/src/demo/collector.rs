//! The demo's log collector: what a log store is to the backend's HTTP sink.
//!
//! In: batches of JSON lines over HTTP. Out: the lines appended to one file. Promise: a
//! batch is answered with 204 only when it stands in the file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const MAX_BATCH: usize = 4 * 1024 * 1024;

/// A collector that is bound and will take batches once it runs.
pub(super) struct Collector {
    listener: TcpListener,
    file: Arc<Mutex<File>>,
}

impl Collector {
    /// Binds a free loopback port and opens the file.
    pub(super) async fn bind(path: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot bind the log collector")?;
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { listener, file: Arc::new(Mutex::new(file)) })
    }

    /// The port it listens on.
    pub(super) fn port(&self) -> anyhow::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Takes batches until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else { continue };
            let file = Arc::clone(&self.file);
            let service = service_fn(move |request| take_batch(request, Arc::clone(&file)));
            connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }
}

async fn take_batch(
    request: Request<Incoming>,
    file: Arc<Mutex<File>>,
) -> Result<Response<Empty<Bytes>>, hyper::http::Error> {
    let answer = |status| Response::builder().status(status).body(Empty::new());
    if request.method() != Method::POST {
        return answer(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_BATCH).collect().await else {
        return answer(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let written = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&body.to_bytes());
    answer(if written.is_ok() { StatusCode::NO_CONTENT } else { StatusCode::INTERNAL_SERVER_ERROR })
}
