//! Listeners that share one address (`SO_REUSEPORT`).
//!
//! In: an address, or listeners that another process had on it. Out: as many as there are
//! workers, or more. Promise: a group only grows. The kernel gives each connection to one
//! member, and closing that one resets it.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::BACKLOG;

/// `count` listeners on a free address.
pub(super) fn bind_group(address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
    // The first socket listens before it allows sharing: the kernel then refuses it when anybody
    // else holds the address, whatever that one allows, and refuses everybody else from here on.
    let first = tcp_socket(address)?;
    first.bind(&address.into())?;
    first.listen(BACKLOG)?;
    let mut sockets = vec![first];
    add_members(&mut sockets, address, count)?;
    Ok(sockets)
}

/// Adds listeners to those on an address until there are `count`.
fn add_members(sockets: &mut Vec<Socket>, address: SocketAddr, count: usize) -> io::Result<()> {
    if sockets.len() >= count {
        return Ok(());
    }
    sockets[0].set_reuse_port(true)?;
    let bound = sockets[0].local_addr()?;
    while sockets.len() < count {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound)?;
        socket.listen(BACKLOG)?;
        sockets.push(socket);
    }
    Ok(())
}

/// The listeners that another process had on an address, made `count` or more.
pub(super) fn regroup(mut sockets: Vec<Socket>, address: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
    for socket in &sockets {
        // The length of the backlog may have changed between versions.
        socket.listen(BACKLOG)?;
    }
    let handed_over = sockets.len();
    if let Err(error) = add_members(&mut sockets, address, count) {
        // A process of another user bound them, so the kernel lets nobody join; workers then share them.
        tracing::info!(component = "runtime", %address, %error, "workers share the sockets that were handed over");
        for index in sockets.len()..count {
            let shared = sockets[index % handed_over].try_clone()?;
            sockets.push(shared);
        }
    }
    Ok(sockets)
}

pub(super) fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not keep us from listening; a listener still does.
    socket.set_reuse_address(true)?;
    dual_stack(&socket, address)?;
    Ok(socket)
}

/// `[::]` means every address of the machine, so it takes IPv4 too, whatever `net.ipv6.bindv6only` says.
pub(super) fn dual_stack(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V6(v6) => socket.set_only_v6(!v6.ip().is_unspecified()),
        SocketAddr::V4(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_group_that_is_handed_over_grows_and_never_loses_a_member() {
        for (had, wanted, got) in [(1, 1, 1), (1, 3, 3), (2, 3, 3), (3, 2, 3), (3, 0, 3)] {
            let before = bind_group("127.0.0.1:0".parse().unwrap(), had).unwrap();
            let address = before[0].local_addr().unwrap().as_socket().unwrap();
            let waiting: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
            let copies = before.iter().map(|socket| socket.try_clone().unwrap()).collect();
            drop(before);
            let after = regroup(copies, address, wanted).unwrap();
            assert_eq!(after.len(), got, "{had} {wanted}");
            let more: Vec<_> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
            let accepted: Vec<usize> = after
                .into_iter()
                .map(TcpListener::from)
                .map(|listener| std::iter::from_fn(|| listener.accept().ok()).count())
                .collect();
            assert_eq!(accepted.iter().sum::<usize>(), waiting.len() + more.len(), "{had} {wanted}: {accepted:?}");
            assert!(accepted.iter().all(|count| *count > 0), "{had} {wanted}: {accepted:?}");
        }
    }

    #[test]
    fn where_nobody_may_join_the_workers_share() {
        let one = bind_group("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = one[0].local_addr().unwrap().as_socket().unwrap();
        // A socket of another family cannot join, as one of another user cannot.
        let shared = regroup(one, "[::1]:0".parse().unwrap(), 3).unwrap();
        assert_eq!(shared.len(), 3);
        for socket in shared {
            let _client = TcpStream::connect(address).unwrap();
            assert!(TcpListener::from(socket).accept().is_ok());
        }
    }
}
