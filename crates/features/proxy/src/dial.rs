//! Makes connections to endpoints: TCP, then perhaps mTLS.
//!
//! Promise: an endpoint is spoken to only when its certificate names an identity that the
//! cluster's config expects; sessions are resumed per worker, for the TLS config is kept.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_identity::{Snapshot, peer_id, tls_error_reason, tls_error_text};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::Reason;
use crate::pool::{Connection, Pool};
use crate::tls::ALPN;
use crate::upstream::{H1Connection, Link};

impl Pool {
    /// Connects to an endpoint. Cancel-safe: a connection under way is dropped.
    pub(crate) async fn dial(&self, address: SocketAddr) -> Result<Connection, Reason> {
        let cluster = &self.cluster.name;
        let stream = TcpStream::connect(address).await.map_err(|error| {
            tracing::debug!(component = "proxy", cluster, %address, %error, "cannot connect");
            Reason::ConnectFailure
        })?;
        let _ = stream.set_nodelay(true);
        if self.cluster.config.tls.is_none() {
            return Ok(Connection { link: Link::H1(H1Connection::new(stream.into())), generation: 0, peer: None });
        }
        let snapshot = self.snapshot().ok_or(Reason::TlsFailure)?;
        let config = self.tls_config(&snapshot)?;
        // The identity is in the URI SAN; an address as the name keeps SNI out of the handshake.
        let name = ServerName::from(address.ip());
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => {
                self.metrics.handshake("ok");
                let peer = peer_id(stream.get_ref().1.peer_certificates()).map(|id| Rc::from(id.as_str()));
                let link = Link::H1(H1Connection::new(stream.into()));
                Ok(Connection { link, generation: snapshot.generation, peer })
            }
            Err(error) => {
                self.metrics.handshake(tls_error_reason(&error));
                let reason = tls_error_text(&error);
                tracing::warn!(component = "proxy", cluster, %address, reason, "mTLS handshake with the endpoint failed");
                Err(Reason::TlsFailure)
            }
        }
    }

    fn tls_config(&self, snapshot: &Snapshot) -> Result<Arc<ClientConfig>, Reason> {
        let cluster = &self.cluster.name;
        let expected = self.cluster.config.tls.as_ref().map(|tls| tls.spiffe_ids.as_slice()).unwrap_or_default();
        self.tls.get(snapshot, |snapshot| snapshot.client_config(expected, ALPN)).map_err(|error| {
            tracing::error!(component = "proxy", cluster, %error, "cannot make a TLS config");
            Reason::TlsFailure
        })
    }
}
