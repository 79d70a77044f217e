//! TLS as the data plane needs it: one config per certificate, and who the peer is.

use std::cell::RefCell;
use std::sync::Arc;

use outrigger_identity::Snapshot;

/// What a listener takes within TLS, in its order of preference. The first ones are what two Outriggers know one
/// another by.
pub(crate) const SERVER: &[&[u8]] = &[OUTRIGGER_HTTP2, OUTRIGGER_HTTP1, b"h2", b"http/1.1"];
/// What an endpoint is offered for HTTP/1, and for HTTP/2.
pub(crate) const HTTP1: &[&[u8]] = &[OUTRIGGER_HTTP1, b"http/1.1"];
pub(crate) const HTTP2: &[&[u8]] = &[OUTRIGGER_HTTP2, b"h2"];

const OUTRIGGER_HTTP1: &[u8] = b"outrigger-http/1.1";
const OUTRIGGER_HTTP2: &[u8] = b"outrigger-h2";

/// Whether HTTP/2 was agreed on.
pub(crate) fn is_http2(protocol: Option<&[u8]>) -> bool {
    matches!(protocol, Some(OUTRIGGER_HTTP2 | b"h2"))
}

/// A rustls config made once per certificate.
pub(crate) struct PerGeneration<C>(RefCell<Option<(u64, Arc<C>)>>);

impl<C> Default for PerGeneration<C> {
    fn default() -> Self {
        Self(RefCell::new(None))
    }
}

impl<C> PerGeneration<C> {
    /// The config for the current certificate.
    pub(crate) fn get(
        &self,
        snapshot: &Snapshot,
        make: impl FnOnce(&Snapshot) -> Result<Arc<C>, outrigger_identity::Error>,
    ) -> Result<Arc<C>, outrigger_identity::Error> {
        if let Some((generation, config)) = &*self.0.borrow()
            && *generation == snapshot.generation
        {
            return Ok(Arc::clone(config));
        }
        let config = make(snapshot)?;
        *self.0.borrow_mut() = Some((snapshot.generation, Arc::clone(&config)));
        Ok(config)
    }
}

/// The other side of an mTLS connection.
pub(crate) struct Peer {
    pub(crate) id: String,
    /// `x-forwarded-client-cert`, as Envoy writes it.
    pub(crate) header: String,
}

impl Peer {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), header: format!("URI={id}") }
    }
}
