//! TLS as the data plane needs it: one config per certificate, and who the peer is.

use std::cell::RefCell;
use std::sync::Arc;

use outrigger_identity::{Snapshot, certificate_hash, peer_id};
use rustls::CommonState;

use crate::upstream::Speech;

/// What a listener takes within TLS, in its order of preference. The first ones are what two Outriggers know one
/// another by.
pub(crate) const SERVER: &[&[u8]] = &[OUTRIGGER_HTTP2, OUTRIGGER_HTTP1, OUTRIGGER_TCP, b"h2", b"http/1.1"];
/// What a listener for ordinary clients takes, and what an ordinary endpoint is offered.
pub(crate) const PUBLIC: &[&[u8]] = &[b"h2", b"http/1.1"];
const PUBLIC_HTTP1: &[&[u8]] = &[b"http/1.1"];
const PUBLIC_HTTP2: &[&[u8]] = &[b"h2"];
/// What an endpoint is offered for HTTP/1, and for HTTP/2.
pub(crate) const HTTP1: &[&[u8]] = &[OUTRIGGER_HTTP1, b"http/1.1"];
pub(crate) const HTTP2: &[&[u8]] = &[OUTRIGGER_HTTP2, b"h2"];

/// And for anything else.
pub(crate) const TCP: &[&[u8]] = &[OUTRIGGER_TCP];

/// Servers whose sessions a cluster remembers, for each protocol.
pub(crate) const CLIENT_SESSIONS: usize = 128;

const OUTRIGGER_TCP: &[u8] = b"outrigger-tcp";
const OUTRIGGER_HTTP1: &[u8] = b"outrigger-http/1.1";
const OUTRIGGER_HTTP2: &[u8] = b"outrigger-h2";

/// Whether only an Outrigger offers this protocol.
pub(crate) fn is_ours(protocol: &[u8]) -> bool {
    matches!(protocol, OUTRIGGER_TCP | OUTRIGGER_HTTP1 | OUTRIGGER_HTTP2)
}

/// What an ordinary endpoint is offered.
pub(crate) fn public_offer(speech: Speech) -> &'static [&'static [u8]] {
    match speech {
        Speech::Http1 => PUBLIC_HTTP1,
        Speech::Http2 => PUBLIC_HTTP2,
        Speech::Tcp => &[],
    }
}

/// Whether a protocol was agreed on that only Outriggers speak.
pub(crate) fn is_outriggers(protocol: Option<&[u8]>) -> bool {
    matches!(protocol, Some(OUTRIGGER_HTTP1 | OUTRIGGER_HTTP2 | OUTRIGGER_TCP))
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agreed {
    Http1,
    Http2,
    Tcp,
    Nothing,
}

impl Agreed {
    /// What a protocol's name means.
    pub(crate) fn of(protocol: Option<&[u8]>) -> Self {
        match protocol {
            Some(OUTRIGGER_HTTP1 | b"http/1.1") => Self::Http1,
            Some(OUTRIGGER_HTTP2 | b"h2") => Self::Http2,
            Some(OUTRIGGER_TCP) => Self::Tcp,
            _ => Self::Nothing,
        }
    }
}

/// The name that a client asks for in its ClientHello; the outer `None` when that has not come whole.
pub(crate) fn server_name(bytes: &[u8]) -> Result<Option<Option<String>>, rustls::Error> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return Ok(Some(accepted.client_hello().server_name().map(str::to_owned))),
            Err((error, _)) => return Err(error),
        }
    }
    Ok(None)
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
    /// An element of `x-forwarded-client-cert`, as Envoy writes it. SPIFFE IDs hold nothing that had to be quoted.
    pub(crate) header: String,
}

impl Peer {
    /// Whom a client's certificate names, seen from `by`; the verifier has accepted exactly one SPIFFE ID.
    pub(crate) fn of(connection: &CommonState, by: &str) -> Option<Self> {
        let certificates = connection.peer_certificates()?;
        let id = peer_id(Some(certificates))?;
        let header = format!("By={by};Hash={};URI={id}", certificate_hash(certificates.first()?));
        Some(Self { id: id.as_str().to_owned(), header })
    }
}
