//! Speaks to an agent that serves the [SPIFFE Workload API], such as SPIRE's: gRPC over a unix socket.
//!
//! In: where it is served; what it answers. Out: a stream of all that it gives us. Promise: it is asked as the
//! specification says, so that no other program can be talked into asking for us; what it says when it refuses is told
//! in an operator's words; bytes that held a key are overwritten.
//!
//! [SPIFFE Workload API]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use outrigger_config::WorkloadEndpoint;
use outrigger_http::{GrpcClient, GrpcError, GrpcOptions, GrpcReceiver, Resolver};
use outrigger_identity::{SvidStream, WorkloadApi, X509Svids};
use outrigger_runtime::{BoxError, BoxFuture};
use zeroize::Zeroize;

use crate::message;

const METHOD: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// What no browser, and no server that fetches URLs for others, can be made to send.
const SECURITY: HeaderName = HeaderName::from_static("workload.spiffe.io");
/// gRPC's own clients take no larger message.
const MAX_MESSAGE: usize = 4 << 20;

/// Asks agents by `FetchX509SVID`.
pub struct SpiffeWorkloadApi {
    resolver: Resolver,
}

impl SpiffeWorkloadApi {
    /// `resolver` is there for the client; addresses are numbers here.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }

    async fn begin(&self, endpoint: &WorkloadEndpoint, timeout: Duration) -> Result<Box<dyn SvidStream>, BoxError> {
        // No keep-alive: an agent's end is seen at once, and gRPC's servers cut off who asks often.
        let options =
            GrpcOptions { connect_timeout: timeout, timeout, max_response: MAX_MESSAGE, ..GrpcOptions::default() };
        let client = match endpoint {
            WorkloadEndpoint::Unix(path) => GrpcClient::on_socket(path.clone(), options),
            WorkloadEndpoint::Tcp(address) => {
                GrpcClient::new(format!("http://{address}").parse()?, options, self.resolver.clone())
            }
        };
        let metadata = HeaderMap::from_iter([(SECURITY, HeaderValue::from_static("true"))]);
        let (sender, receiver) = client.open(METHOD, &metadata).await.map_err(refused)?;
        // The one request is an empty message; should the stream be over already, the receiver tells why.
        let _ = sender.send(&[]).await;
        Ok(Box::new(Stream { receiver, _client: client }))
    }
}

impl WorkloadApi for SpiffeWorkloadApi {
    fn open<'a>(
        &'a self,
        endpoint: &'a WorkloadEndpoint,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn SvidStream>, BoxError>> {
        Box::pin(self.begin(endpoint, timeout))
    }
}

/// A stream, and the connection that it is on.
struct Stream {
    receiver: GrpcReceiver,
    _client: GrpcClient,
}

impl SvidStream for Stream {
    fn next(&mut self) -> BoxFuture<'_, Result<X509Svids, BoxError>> {
        Box::pin(async {
            let message = self.receiver.next().await.map_err(refused)?.ok_or("it ended the stream")?;
            let told = message::svids(&message);
            // Keys were in it. Should another hold these bytes, which nobody does, they stay.
            if let Ok(mut bytes) = message.try_into_mut() {
                bytes.as_mut().zeroize();
            }
            Ok(told?)
        })
    }
}

/// What went wrong, in words that help; the codes are the [specification]'s, section 6.
///
/// [specification]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_Endpoint.md
fn refused(error: GrpcError) -> BoxError {
    match error {
        GrpcError::Http(error) => error.detail().to_owned().into(),
        GrpcError::Status { code: 7, message, .. } => format!(
            "it has no identity for this workload (PERMISSION_DENIED{}); register one there, with SPIRE by `spire-server entry create`, whose selectors must match this process",
            said(&message)
        )
        .into(),
        GrpcError::Status { code: 12, message, .. } => format!(
            "it does not serve the Workload API (UNIMPLEMENTED{}); is it an agent's other socket?",
            said(&message)
        )
        .into(),
        GrpcError::Status { code: 14, message, .. } => format!("it is not ready (UNAVAILABLE{})", said(&message)).into(),
        error => error.to_string().into(),
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
