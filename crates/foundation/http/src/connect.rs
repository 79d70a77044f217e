//! Opens connections: the first address that answers wins ([RFC 8305], without its sorting).
//!
//! In: a target and the addresses of its name, or a socket's path. Out: a byte stream, plain or TLS. Promise:
//! no address that does not answer delays the others by more than a quarter of a second.
//!
//! [RFC 8305]: https://www.rfc-editor.org/rfc/rfc8305

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use outrigger_identity::tls_error_text;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Failure, Stage};
use crate::target::Target;

/// The wait before the next address is tried beside those under way; RFC 8305 recommends it.
const STAGGER: Duration = Duration::from_millis(250);
/// No more addresses of one name are tried.
const MOST_ADDRESSES: usize = 8;

/// Connects to the first of the addresses that answers. Cancel-safe.
pub(crate) async fn tcp(addresses: &[IpAddr], port: u16) -> Result<TcpStream, Failure> {
    let mut waiting = addresses.iter().take(MOST_ADDRESSES).map(|address| SocketAddr::new(*address, port));
    let mut attempts = FuturesUnordered::new();
    let mut failures = 0usize;
    let mut last = None;
    loop {
        let next = waiting.next();
        if let Some(address) = next {
            attempts.push(attempt(address));
        }
        if attempts.is_empty() {
            return Err(refused(failures, last));
        }
        tokio::select! {
            Some((address, result)) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failures += 1;
                    last = Some((address, error));
                }
            },
            () = tokio::time::sleep(STAGGER), if next.is_some() => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    let stream = TcpStream::connect(address).await;
    // Requests are written whole; waiting for more to send only delays them.
    let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    (address, stream)
}

/// Connects to a unix socket. Cancel-safe.
pub(crate) async fn unix(path: &Path) -> Result<UnixStream, Failure> {
    let failed =
        |error| Failure::before_sending(Stage::Connect, format!("cannot connect to {}: {error}", path.display()));
    UnixStream::connect(path).await.map_err(failed)
}

fn refused(failures: usize, last: Option<(SocketAddr, io::Error)>) -> Failure {
    let detail = match last {
        None => "the name has no address".to_owned(),
        Some((address, error)) if failures == 1 => format!("cannot connect to {address}: {error}"),
        Some((address, error)) => {
            format!("cannot connect to any of {failures} addresses; the last was {address}: {error}")
        }
    };
    Failure::before_sending(Stage::Connect, detail)
}

/// TLS to servers that chain to a PEM bundle, which is read off the async threads.
///
/// # Errors
/// Why the bundle cannot be used, as text.
pub async fn client_tls(ca_file: PathBuf) -> Result<Arc<ClientConfig>, String> {
    let loaded =
        tokio::task::spawn_blocking(move || outrigger_identity::client_config_with_roots(Some(ca_file.as_path())));
    loaded.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// The TLS handshake. Cancel-safe: the stream is lost.
pub(crate) async fn tls(
    stream: TcpStream,
    target: &Target,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Failure> {
    let name = ServerName::try_from(target.host.clone())
        .map_err(|_| Failure::for_good(Stage::Tls, format!("`{}` cannot be a server's name", target.host)))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        let detail = format!("TLS handshake: {}", tls_error_text(&error));
        let by_the_network = error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>());
        Failure { stage: Stage::Tls, detail, retryable: by_the_network, sent: false }
    })
}
