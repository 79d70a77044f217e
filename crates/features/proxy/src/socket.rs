//! What is asked of sockets beyond bytes.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A connection is held dead after so many probes without an answer.
const PROBES: u32 = 3;

/// Sends small messages at once, and notices a peer that is gone without a word; `0s` turns a limit off.
pub(crate) fn prepare(stream: &TcpStream, keepalive: Duration, user_timeout: Duration) {
    // None of it is vital: the connection works without.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    if !keepalive.is_zero() {
        let interval = (keepalive / PROBES).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(keepalive).with_interval(interval).with_retries(PROBES);
        let _ = socket.set_tcp_keepalive(&keepalive);
    }
    if !user_timeout.is_zero() {
        let _ = socket.set_tcp_user_timeout(Some(user_timeout));
    }
}

/// Where a redirected connection wanted to go (`SO_ORIGINAL_DST`). `None` for one that was not redirected: it called
/// this very socket, and sending it where it wanted to go would send it here again.
pub(crate) fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let original = if local.ip().to_canonical().is_ipv4() {
        SocketAddr::V4(sockopt::ip_original_dst(stream).ok()?)
    } else {
        SocketAddr::V6(sockopt::ipv6_original_dst(stream).ok()?)
    };
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (canonical(original) != canonical(local)).then_some(canonical(original))
}
