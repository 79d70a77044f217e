//! The one place where listening sockets come from: bound here, or inherited.
//!
//! In: an address and the name of who wants it. Out: a socket that is nonblocking, closed
//! on exec and listening. Promise: an address that somebody else serves is refused, even
//! when that somebody allows sharing, and the error says who it is as far as /proc tells.

mod error;
mod holder;
mod inherited;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub use error::SocketError;
pub use holder::Holder;

pub(crate) use inherited::VARIABLES as INHERITANCE_VARIABLES;

use holder::Transport;
use inherited::Inherited;

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Gives out listening sockets. Cheap to clone. Every call blocks for microseconds only.
#[derive(Clone)]
pub struct Sockets(Arc<Inherited>);

impl Sockets {
    /// Binds everything itself.
    pub fn new() -> Self {
        Self(Arc::new(Inherited::default()))
    }

    /// Takes over the sockets that systemd, or whoever started us, has passed by `LISTEN_FDS`; binds the rest.
    pub(crate) fn from_environment() -> Self {
        Self(Arc::new(Inherited::from_environment()))
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
    /// # Errors
    /// [`SocketError`]; also when another process serves the address with `SO_REUSEPORT` itself.
    pub fn listen_tcp_shared(
        &self,
        owner: &str,
        address: SocketAddr,
        count: usize,
    ) -> Result<Vec<TcpListener>, SocketError> {
        let failed = |error| SocketError::new(owner, address, Transport::Tcp, error);
        if let Some(inherited) = self.0.tcp(address) {
            return (0..count.max(1))
                .map(|_| inherited.try_clone().map(TcpListener::from))
                .collect::<Result<_, _>>()
                .map_err(failed);
        }
        // The first socket listens before it allows sharing: the kernel then refuses it when anybody
        // else holds the address, whatever that one allows, and refuses everybody else from here on.
        let first = tcp_socket(address).map_err(failed)?;
        first.bind(&address.into()).and_then(|()| first.listen(BACKLOG)).map_err(failed)?;
        let mut sockets = Vec::with_capacity(count);
        if count > 1 {
            first.set_reuse_port(true).map_err(failed)?;
            let bound = first.local_addr().map_err(failed)?;
            for _ in 1..count {
                let socket = tcp_socket(address).map_err(failed)?;
                socket.set_reuse_port(true).map_err(failed)?;
                socket.bind(&bound).and_then(|()| socket.listen(BACKLOG)).map_err(failed)?;
                sockets.push(socket);
            }
        }
        sockets.insert(0, first);
        Ok(sockets.into_iter().map(TcpListener::from).collect())
    }

    /// A UDP socket with a receive buffer of `receive_buffer` bytes (the kernel cuts it to `net.core.rmem_max`, unless
    /// the process may go beyond).
    ///
    /// # Errors
    /// [`SocketError`], as for TCP.
    pub fn bind_udp(&self, owner: &str, address: SocketAddr, receive_buffer: usize) -> Result<UdpSocket, SocketError> {
        let failed = |error| SocketError::new(owner, address, Transport::Udp, error);
        let socket = match self.0.udp(address) {
            Some(inherited) => Socket::from(inherited.try_clone().map_err(failed)?),
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
        Ok(socket.into())
    }

    /// A unix stream socket whose file has permission bits `mode`. A file left behind by a process that is gone is replaced.
    ///
    /// # Errors
    /// [`SocketError`]; `InUse` when somebody still listens there, `Other` when the path is no socket.
    pub fn listen_unix(&self, owner: &str, path: &Path, mode: u32) -> Result<UnixListener, SocketError> {
        let failed = |error| SocketError::new_unix(owner, path, error);
        if let Some(inherited) = self.0.unix(path) {
            return inherited.try_clone().map(UnixListener::from).map_err(failed);
        }
        remove_stale(path).map_err(failed)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(failed)?;
        socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
        // Nobody can connect between bind and listen, so the mode is in force in time.
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        Ok(socket.into())
    }

    /// Sockets that were inherited and asked for by nobody: their addresses.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        self.0.unclaimed()
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Self::new()
    }
}

fn tcp_socket(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not keep us from listening; a listener still does.
    socket.set_reuse_address(true)?;
    dual_stack(&socket, address)?;
    Ok(socket)
}

/// `[::]` means every address of the machine, so it takes IPv4 too, whatever `net.ipv6.bindv6only` says.
fn dual_stack(socket: &Socket, address: SocketAddr) -> std::io::Result<()> {
    match address {
        SocketAddr::V6(v6) => socket.set_only_v6(!v6.ip().is_unspecified()),
        SocketAddr::V4(_) => Ok(()),
    }
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
}
