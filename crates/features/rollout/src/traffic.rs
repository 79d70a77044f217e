//! What a pod's sidecar has carried, asked at its metrics' port.
//!
//! Promise: who does not answer within a second is not known, and holds up nobody for longer.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use outrigger_http::{Client, ClientOptions, Resolver};

use crate::pod::{Pod, Traffic};

/// Where sidecars serve their metrics.
const PORT: u16 = 15020;

/// Asks sidecars.
pub(crate) struct Metrics(Client);

impl Metrics {
    pub(crate) fn new(resolver: Resolver) -> Self {
        let patience = Duration::from_secs(1);
        let options = ClientOptions {
            connect_timeout: patience,
            timeout: patience,
            max_response: 4 << 20,
            max_idle: 0,
            ..ClientOptions::default()
        };
        Self(Client::new(options, resolver))
    }

    /// What the sidecar of a pod has carried since its start, if it tells.
    pub(crate) async fn of(&self, pod: &Pod) -> Option<Traffic> {
        if pod.ip.is_empty() {
            return None;
        }
        let host = if pod.ip.contains(':') { format!("[{}]", pod.ip) } else { pod.ip.clone() };
        let request = Request::get(format!("http://{host}:{PORT}/metrics")).body(Bytes::new()).ok()?;
        let answer = self.0.send(request).await.ok()?;
        answer.status().is_success().then(|| Traffic::read(&String::from_utf8_lossy(answer.body())))
    }
}
