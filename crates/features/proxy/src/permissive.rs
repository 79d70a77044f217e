//! What a client of a permissive listener begins with: mTLS of ours, TLS of its own, or neither.
//!
//! In: the first bytes, or silence. Out: who is to answer them. Promise: nothing is decrypted
//! that was meant for the application; a client that waits for its server to speak first is
//! not kept waiting for longer than `detectTimeout`.

use outrigger_config::ListenerProtocol;
use outrigger_wire::hello::{self, Hello};

use crate::buffer::Buffer;
use crate::listener::LocalListener;
use crate::snapshot::ListenerSnapshot;
use crate::tls;
use crate::transport::Transport;

/// How a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// With TLS that is for us.
    Mesh,
    /// With TLS that the application itself is to answer.
    Foreign,
    /// With something else.
    Plain,
    /// With nothing: the server is to speak first.
    Silent,
}

impl LocalListener {
    /// Finds out how a connection begins; what was read stays in `input`. `None` when it has ended.
    ///
    /// Where only HTTP is served, all TLS is for us. Elsewhere the application may speak TLS itself, and a sidecar
    /// is known by the protocols it offers.
    pub(crate) async fn beginning(
        &self,
        snapshot: &ListenerSnapshot,
        io: &Transport,
        input: &mut Buffer,
    ) -> Option<Beginning> {
        let http_only = snapshot.protocol == ListenerProtocol::Http;
        if input.is_empty() {
            let first = self.read_more(io, input);
            if http_only {
                first.await?;
            } else {
                match tokio::time::timeout(snapshot.detect_timeout, first).await {
                    Ok(more) => more?,
                    Err(_) => return Some(Beginning::Silent),
                }
            }
        }
        if input.filled()[0] != TLS_HANDSHAKE {
            return Some(Beginning::Plain);
        }
        if http_only {
            return Some(Beginning::Mesh);
        }
        loop {
            match hello::parse(input.filled()) {
                Ok(Hello::Partial) => self.read_more(io, input).await?,
                Ok(Hello::Complete(hello)) if hello.alpn().any(tls::is_ours) => return Some(Beginning::Mesh),
                Ok(Hello::Complete(_)) => return Some(Beginning::Foreign),
                // Nothing that TLS can answer.
                Err(_) => return Some(Beginning::Plain),
            }
        }
    }
}

/// The type of the records a handshake comes in.
const TLS_HANDSHAKE: u8 = 0x16;
