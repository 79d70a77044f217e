//! What is asked of sockets beyond bytes.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::net::sockopt;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

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

/// Whether the process, or the machine, has no file descriptor left.
pub(crate) fn lacks_descriptors(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

/// Where a redirected connection wanted to go (`SO_ORIGINAL_DST`). `None` for one that was not redirected: it called
/// this very socket, and sending it where it wanted to go would send it here again.
pub(crate) fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = canonical(stream.local_addr().ok()?);
    let original = if local.is_ipv4() {
        SocketAddr::V4(sockopt::ip_original_dst(stream).ok()?)
    } else {
        SocketAddr::V6(sockopt::ipv6_original_dst(stream).ok()?)
    };
    let original = canonical(original);
    (original != local).then_some(original)
}

/// An address in its own family: listeners on `[::]` see IPv4 mapped into IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects to the application beside us. When that has the pod's own address, the call comes from a loopback address:
/// by it the rules of `outrigger init` tell it from a call of the pod to itself, which goes to the inbound listener.
pub(crate) async fn connect_to_application(address: SocketAddr) -> io::Result<TcpStream> {
    if address.ip().is_loopback() || !is_own(address.ip()) {
        return TcpStream::connect(address).await;
    }
    let (socket, loopback): (_, IpAddr) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::LOCALHOST.into()),
    };
    choose_port_late(&socket)?;
    socket.bind(SocketAddr::new(loopback, 0))?;
    socket.connect(address).await
}

/// Whether an address is one of this pod's: nobody else's can be bound.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Has the port chosen when the destination is known: else no two connections could have the same port, not even to
/// different destinations, and there would be no more than 28 thousand of them.
fn choose_port_late(socket: &TcpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    #[expect(
        unsafe_code,
        reason = "no crate in use knows this option; the kernel reads an integer that outlives the call"
    )]
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

thread_local! {
    /// Connections of this worker to original destinations: from where, and to where.
    static OWN_CALLS: RefCell<HashSet<(SocketAddr, SocketAddr)>> = RefCell::default();
}

/// A connection of ours to where another one wanted to go, known as ours until dropped.
pub(crate) struct OwnCall(SocketAddr, SocketAddr);

impl OwnCall {
    /// Notes it.
    pub(crate) fn note(stream: &TcpStream, to: SocketAddr) -> Option<Box<Self>> {
        let from = stream.local_addr().ok()?;
        OWN_CALLS.with_borrow_mut(|calls| calls.insert((from, to)));
        Some(Box::new(Self(from, to)))
    }

    /// Whether a redirected connection is one of these: the rules take us for the application. Calls of other
    /// workers are not seen, but a loop comes by here soon.
    pub(crate) fn is_one(from: SocketAddr, to: SocketAddr) -> bool {
        OWN_CALLS.with_borrow(|calls| !calls.is_empty() && calls.contains(&(canonical(from), to)))
    }
}

impl Drop for OwnCall {
    fn drop(&mut self) {
        // While the thread ends there is nobody to tell.
        let _ = OWN_CALLS.try_with(|calls| calls.borrow_mut().remove(&(self.0, self.1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_told_from_others() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        // Kept for documentation, so that nobody has it (RFC 5737).
        assert!(!is_own(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    #[tokio::test]
    async fn a_call_is_known_as_ours_while_it_lasts() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        let stream = TcpStream::connect(to).await.unwrap();
        let from = stream.local_addr().unwrap();
        let call = OwnCall::note(&stream, to);
        assert!(OwnCall::is_one(from, to));
        // As a listener on `[::]` sees it.
        let IpAddr::V4(ip) = from.ip() else { panic!("an IPv4 address") };
        assert!(OwnCall::is_one(SocketAddr::new(ip.to_ipv6_mapped().into(), from.port()), to));
        assert!(!OwnCall::is_one(to, from));
        drop(call);
        assert!(!OwnCall::is_one(from, to));
    }
}
