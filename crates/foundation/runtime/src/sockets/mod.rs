//! The one place where listening sockets come from: bound here, inherited, or handed over.
//!
//! In: an address and the name of who wants it. Out: a socket that is nonblocking, closed
//! on exec and listening. Promise: an address that somebody else serves is refused, even
//! when that somebody allows sharing, and the error says who it is as far as /proc tells.
//! What was given out and is still open can be handed over to the next process.

mod adopted;
mod bound;
mod error;
mod group;
mod holder;
mod inherited;
mod ledger;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio_util::sync::CancellationToken;

pub use error::SocketError;
pub use holder::Holder;

pub(crate) use inherited::VARIABLES as INHERITANCE_VARIABLES;
pub(crate) use ledger::Listening;

use adopted::Adopted;
use bound::Bound;
use group::{bind_group, dual_stack, regroup};
use holder::Transport;
use inherited::Inherited;
use ledger::Ledger;

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Gives out listening sockets. Cheap to clone. Every call blocks for microseconds only.
///
/// Whoever gets a socket keeps that very descriptor until he closes it (a duplicate of it is not found when sockets are
/// handed over), and closes it when he no longer accepts.
#[derive(Clone)]
pub struct Sockets(Arc<Inner>);

#[derive(Default)]
struct Inner {
    inherited: Inherited,
    adopted: Adopted,
    ledger: Ledger,
    handed_over: CancellationToken,
}

impl Sockets {
    /// Binds everything itself.
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Takes over the sockets that systemd, or whoever started us, has passed by `LISTEN_FDS`; binds the rest.
    pub(crate) fn from_environment() -> Self {
        Self(Arc::new(Inner { inherited: Inherited::from_environment(), ..Inner::default() }))
    }

    /// Takes over sockets of the process before; returns how many can be used.
    pub(crate) fn adopt(&self, sockets: impl Iterator<Item = OwnedFd>) -> usize {
        self.0.adopted.add(sockets)
    }

    /// Copies of all sockets that were given out and are still open.
    pub(crate) fn listening(&self) -> Vec<Listening> {
        self.0.ledger.open()
    }

    /// The next process has them all: their files must stay.
    pub(crate) fn set_handed_over(&self) {
        self.0.handed_over.cancel();
    }

    /// Whether a keeper has copies of all sockets, so that a client is served by the next process when we close ours.
    pub fn handed_over(&self) -> bool {
        self.0.handed_over.is_cancelled()
    }

    /// Waits until a keeper has copies of all sockets. Clients may still be accepted: whoever is not waits for the next process.
    /// Cancel-safe.
    pub async fn until_handed_over(&self) {
        self.0.handed_over.cancelled().await;
    }

    /// A TCP listener. `[::]` takes IPv4 as well.
    ///
    /// # Errors
    /// [`SocketError`] says whose listener it is, which address, and what to do.
    pub fn listen_tcp(&self, owner: &str, address: SocketAddr) -> Result<TcpListener, SocketError> {
        let mut listeners = self.listen_tcp_shared(owner, address, 1)?;
        Ok(listeners.pop().expect("one was asked for"))
    }

    /// `count` TCP listeners on one address (`SO_REUSEPORT`), one per worker; the kernel spreads connections over
    /// them. Port 0 gives all of them the same free port. They must be closed before the address is asked for again.
    ///
    /// There are more than `count` when a process with more workers has handed its own over: the kernel goes on giving
    /// connections to each, so each of them must be accepted from.
    ///
    /// # Errors
    /// [`SocketError`]; also when another process serves the address with `SO_REUSEPORT` itself.
    pub fn listen_tcp_shared(
        &self,
        owner: &str,
        address: SocketAddr,
        count: usize,
    ) -> Result<Vec<TcpListener>, SocketError> {
        let failed = |error| SocketError::new(owner, address, Transport::Tcp, error);
        let adopted = self.0.adopted.tcp(address);
        let sockets = if !adopted.is_empty() {
            regroup(adopted, address, count)
        } else if let Some(inherited) = self.0.inherited.tcp(address) {
            (0..count.max(1)).map(|_| Ok(inherited.try_clone()?.into())).collect()
        } else {
            bind_group(address, count)
        };
        let sockets = sockets.map_err(failed)?;
        sockets.iter().for_each(|socket| self.0.ledger.note(owner, socket));
        Ok(sockets.into_iter().map(TcpListener::from).collect())
    }

    /// A UDP socket with a receive buffer of `receive_buffer` bytes (the kernel cuts it to `net.core.rmem_max`, unless
    /// the process may go beyond).
    ///
    /// # Errors
    /// [`SocketError`], as for TCP.
    pub fn bind_udp(&self, owner: &str, address: SocketAddr, receive_buffer: usize) -> Result<UdpSocket, SocketError> {
        let failed = |error| SocketError::new(owner, address, Transport::Udp, error);
        let inherited = || self.0.inherited.udp(address).map(|socket| socket.try_clone().map(Socket::from));
        let socket = match self.0.adopted.udp(address).map(Ok).or_else(inherited) {
            Some(passed) => passed.map_err(failed)?,
            None => {
                // No SO_REUSEADDR: for UDP it would let a second process take our datagrams.
                let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
                    .map_err(failed)?;
                dual_stack(&socket, address).map_err(failed)?;
                socket.bind(&address.into()).map_err(failed)?;
                socket
            }
        };
        set_receive_buffer(&socket, receive_buffer);
        self.0.ledger.note(owner, &socket);
        Ok(socket.into())
    }

    /// A unix stream socket whose file has permission bits `mode`. A file left behind by a process that is gone is replaced.
    ///
    /// # Errors
    /// [`SocketError`]; `InUse` when somebody still listens there, `Other` when the path is no socket.
    pub fn listen_unix(&self, owner: &str, path: &Path, mode: u32) -> Result<UnixListener, SocketError> {
        let failed = |error| SocketError::new_unix(owner, path, error);
        let inherited = || self.0.inherited.unix(path).map(|socket| socket.try_clone().map(Socket::from));
        // A socket whose file is gone is reached by nobody.
        let adopted = self.0.adopted.unix(path).filter(|_| path.exists());
        let passed = adopted.map(Ok).or_else(inherited);
        let socket = passed.unwrap_or_else(|| bind_unix(path, mode)).map_err(failed)?;
        self.0.ledger.note(owner, &socket);
        Ok(socket.into())
    }

    /// Sockets that were inherited and asked for by nobody: their addresses.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        self.0.inherited.unclaimed()
    }

    /// Closes the sockets that were handed over and asked for by nobody; returns their addresses.
    pub(crate) fn close_unclaimed(&self) -> Vec<String> {
        self.0.adopted.close_rest()
    }
}

/// Whether a descriptor is a listening or datagram socket, as are all that are handed over.
pub(crate) fn is_listening(socket: &OwnedFd) -> bool {
    Bound::of(socket).is_ok()
}

impl Default for Sockets {
    fn default() -> Self {
        Self::new()
    }
}

fn bind_unix(path: &Path, mode: u32) -> std::io::Result<Socket> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect between bind and listen, so the mode is in force in time.
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn set_receive_buffer(socket: &Socket, bytes: usize) {
    // Needs CAP_NET_ADMIN, and is then not cut to rmem_max.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err()
        && let Err(error) = socket.set_recv_buffer_size(bytes)
    {
        tracing::warn!(component = "runtime", bytes, %error, "cannot set a receive buffer");
    }
}

fn remove_stale(path: &Path) -> std::io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the path exists and is no socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(rustix::io::Errno::ADDRINUSE.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::TcpStream;

    use super::group::tcp_socket;
    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_port_in_use_names_the_listener_the_address_and_the_process() {
        let sockets = Sockets::new();
        let taken = std::net::TcpListener::bind(loopback()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = sockets.listen_tcp("proxy.listeners[inbound]", address).unwrap_err();
        let SocketError::InUse { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(holder.as_ref().unwrap().pid, std::process::id());
        let text = error.to_string();
        assert!(text.contains("proxy.listeners[inbound]") && text.contains(&address.to_string()), "{text}");
        // The other kinds of holding it: another address family, UDP.
        let any: SocketAddr = format!("[::]:{}", address.port()).parse().unwrap();
        assert!(matches!(sockets.listen_tcp("x", any), Err(SocketError::InUse { .. })));
        let udp = sockets.bind_udp("statsd", loopback(), 65536).unwrap();
        let error = sockets.bind_udp("statsd", udp.local_addr().unwrap(), 65536).unwrap_err();
        assert!(matches!(error, SocketError::InUse { holder: Some(_), .. }), "{error}");
    }

    #[test]
    fn an_address_shared_by_somebody_else_is_refused_before_and_after() {
        let foreign = tcp_socket(loopback()).unwrap();
        foreign.set_reuse_port(true).unwrap();
        foreign.bind(&loopback().into()).unwrap();
        foreign.listen(1).unwrap();
        let address = foreign.local_addr().unwrap().as_socket().unwrap();
        let sockets = Sockets::new();
        for count in [1, 2] {
            let refused = sockets.listen_tcp_shared("proxy", address, count);
            assert!(matches!(refused, Err(SocketError::InUse { .. })), "{count}");
        }
        // A second process of ours asks in the same way, and is refused too.
        let ours = sockets.listen_tcp_shared("proxy", loopback(), 2).unwrap();
        let address = ours[0].local_addr().unwrap();
        assert!(matches!(sockets.listen_tcp_shared("proxy", address, 2), Err(SocketError::InUse { .. })));
        drop(ours);
        assert!(sockets.listen_tcp_shared("proxy", address, 2).is_ok(), "free again");
    }

    #[test]
    fn connections_are_spread_over_the_sockets_of_a_shared_address() {
        let listeners = Sockets::new().listen_tcp_shared("proxy", loopback(), 3).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
        let clients: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(address).unwrap()).collect();
        let accepted: Vec<usize> =
            listeners.iter().map(|listener| std::iter::from_fn(|| listener.accept().ok()).count()).collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().all(|count| *count > 5), "{accepted:?}");
    }

    #[test]
    fn an_address_of_another_machine_is_told_as_such() {
        let error = Sockets::new().listen_tcp("proxy", "192.0.2.1:80".parse().unwrap()).unwrap_err();
        assert!(matches!(error, SocketError::NotLocal { .. }), "{error}");
    }

    #[test]
    fn the_wildcard_of_v6_takes_v4_too() {
        let Ok(listener) = Sockets::new().listen_tcp("x", "[::]:0".parse().unwrap()) else {
            return assert!(!Path::new("/proc/net/if_inet6").exists(), "only a machine without IPv6 refuses it");
        };
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    #[test]
    fn a_socket_file_is_replaced_only_when_nobody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let sockets = Sockets::new();
        let first = sockets.listen_unix("admin.listen", &path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = sockets.listen_unix("admin.listen", &path, 0o600).unwrap_err();
        let SocketError::InUse { holder: Some(holder), .. } = &error else { panic!("{error}") };
        assert_eq!(holder.pid, std::process::id());
        drop(first);
        assert!(sockets.listen_unix("admin.listen", &path, 0o600).is_ok(), "a stale file is replaced");
        let file = folder.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        let missing = folder.path().join("missing/socket");
        let error = sockets.listen_unix("--socket", &missing, 0o600).unwrap_err().to_string();
        assert!(error.contains("its folder does not exist; make it"), "{error}");
        let error = sockets.listen_unix("admin.listen", &file, 0o600).unwrap_err();
        assert!(error.to_string().contains("is no socket"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn sockets_do_not_block_and_are_not_inherited_by_children() {
        let listener = Sockets::new().listen_tcp("x", loopback()).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let udp = Sockets::new().bind_udp("x", loopback(), 1 << 20).unwrap();
        assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        for flags in [rustix::io::fcntl_getfd(&listener), rustix::io::fcntl_getfd(&udp)] {
            assert!(flags.unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        let ports: HashSet<u16> = [listener.local_addr(), udp.local_addr()].map(|a| a.unwrap().port()).into();
        assert!(!ports.contains(&0));
    }

    #[test]
    fn what_is_handed_over_is_found_by_its_address_and_then_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let before = Sockets::new();
        let tcp = before.listen_tcp_shared("proxy", loopback(), 2).unwrap();
        let udp = before.bind_udp("statsd", loopback(), 65536).unwrap();
        let unix = before.listen_unix("admin", &path, 0o600).unwrap();
        let unwanted = before.listen_tcp("gone", loopback()).unwrap();
        let closed = before.listen_tcp("closed", loopback()).unwrap();
        drop(closed);
        let listening = before.listening();
        let kinds: Vec<_> = listening.iter().map(|one| (one.owner.as_str(), one.kind)).collect();
        assert_eq!(kinds, [("proxy", "tcp"), ("proxy", "tcp"), ("statsd", "udp"), ("admin", "unix"), ("gone", "tcp")]);
        let (address, datagrams) = (tcp[0].local_addr().unwrap(), udp.local_addr().unwrap());
        let gone = unwanted.local_addr().unwrap();
        let clients: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
        UdpSocket::bind(loopback()).unwrap().send_to(b"x", datagrams).unwrap();
        let _client = UnixStream::connect(&path).unwrap();

        let after = Sockets::new();
        assert_eq!(after.adopt(listening.into_iter().map(|one| one.socket)), 5);
        drop((tcp, udp, unix, unwanted));
        let tcp = after.listen_tcp_shared("proxy", address, 2).unwrap();
        let accepted: usize = tcp.iter().map(|one| std::iter::from_fn(|| one.accept().ok()).count()).sum();
        assert_eq!(accepted, clients.len(), "none was reset");
        assert_eq!(after.bind_udp("statsd", datagrams, 65536).unwrap().recv(&mut [0]).unwrap(), 1);
        assert!(after.listen_unix("admin", &path, 0o600).unwrap().accept().is_ok());
        assert_eq!(after.close_unclaimed(), [gone.to_string()]);
        assert!(TcpStream::connect(gone).is_err());
        // Like any other from here on: closed by whoever has it, and bound again.
        drop(tcp);
        assert!(TcpStream::connect(address).is_err());
        assert!(after.listen_tcp_shared("proxy", address, 2).is_ok());
    }

    #[test]
    fn a_unix_socket_whose_file_is_gone_is_bound_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let before = Sockets::new();
        let _unix = before.listen_unix("admin", &path, 0o600).unwrap();
        let after = Sockets::new();
        after.adopt(before.listening().into_iter().map(|one| one.socket));
        std::fs::remove_file(&path).unwrap();
        let _unix = after.listen_unix("admin", &path, 0o600).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_no_listening_socket_is_not_adopted() {
        let (one, _other) = UnixStream::pair().unwrap();
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(!is_listening(&file));
        assert_eq!(Sockets::new().adopt([file, one.into()].into_iter()), 0);
    }
}
