//! Takes datagrams from the kernel.
//!
//! In: a UDP socket. Out: each datagram's bytes, handed to [`Series`]. Promise: never
//! waits while it reads; takes many datagrams each time it is woken, but no more than
//! leaves others their turn.

use std::io;
use std::net::SocketAddr;

use outrigger_config::{ByteSize, Statsd};
use outrigger_runtime::{Context, SocketError};
use socket2::SockRef;
use tokio::net::UdpSocket;

use super::drops;
use super::series::Series;

/// No datagram over IPv4 or IPv6 (jumbograms aside) holds more.
const LARGEST_DATAGRAM: usize = 65_536;

/// Datagrams taken before others have their turn: well under a millisecond of work.
const BATCH: usize = 256;

/// Datagrams taken at most when the socket is emptied for good; the kernel's buffer cannot hold nearly so many.
const DRAIN: usize = 1_000_000;

/// A bound StatsD socket.
pub(crate) struct Receiver {
    address: SocketAddr,
    socket: UdpSocket,
    /// What the config asked for.
    receive_buffer: ByteSize,
    buffer: Box<[u8]>,
}

impl Receiver {
    pub(crate) fn bind(ctx: &Context, config: &Statsd) -> Result<Self, SocketError> {
        let address = config.listen;
        let socket = ctx.sockets.bind_udp("metrics.statsd", address, config.receive_buffer.as_usize())?;
        let socket = UdpSocket::from_std(socket).map_err(|source| SocketError::Other {
            owner: "metrics.statsd".to_owned(),
            address: address.to_string(),
            source,
        })?;
        tracing::info!(component = "metrics", %address, "listening for StatsD");
        let receiver = Self {
            address,
            socket,
            receive_buffer: config.receive_buffer,
            buffer: vec![0; LARGEST_DATAGRAM].into_boxed_slice(),
        };
        receiver.check_buffer();
        Ok(receiver)
    }

    /// The address it was asked to listen on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the kernel calls the socket, to find its drops by.
    pub(crate) fn inode(&self) -> Option<u64> {
        drops::inode(&self.socket)
    }

    /// Changes the kernel's receive buffer; what waits in it stays.
    pub(crate) fn resize(&mut self, receive_buffer: ByteSize) {
        if self.receive_buffer == receive_buffer {
            return;
        }
        self.receive_buffer = receive_buffer;
        if let Err(error) = SockRef::from(&self.socket).set_recv_buffer_size(receive_buffer.as_usize()) {
            tracing::warn!(component = "metrics", %error, "cannot change the StatsD socket's receive buffer");
        }
        self.check_buffer();
    }

    /// Says when the kernel gave less than the config asks for.
    fn check_buffer(&self) {
        // Linux doubles what it is asked for, to hold its own bookkeeping.
        let granted = SockRef::from(&self.socket).recv_buffer_size().unwrap_or_default() / 2;
        if granted < self.receive_buffer.as_usize() {
            tracing::info!(
                component = "metrics",
                asked = %self.receive_buffer,
                granted_bytes = granted,
                "the kernel caps the StatsD receive buffer; net.core.rmem_max raises the cap"
            );
        }
    }

    /// Resolves when a datagram may be there. Cancel-safe.
    pub(crate) async fn readable(&self) {
        // An error of the socket shows, and is cleared, at the next read.
        let _ = self.socket.readable().await;
    }

    /// Takes a batch of datagrams.
    pub(crate) fn receive(&mut self, series: &mut Series) {
        take(BATCH, &mut self.buffer, series, |buffer| self.socket.try_recv(buffer));
    }

    /// Takes all datagrams that have arrived, and closes the socket.
    pub(crate) fn drain(mut self, series: &mut Series) {
        // tokio reads only when its reactor has reported the socket readable, which it may be about to do.
        match self.socket.into_std() {
            Ok(socket) => {
                take(DRAIN, &mut self.buffer, series, |buffer| socket.recv(buffer));
                // The last of its drops are counted while the socket is still there.
                series.watch_drops(None);
            }
            Err(error) => tracing::warn!(component = "metrics", %error, "cannot empty the StatsD socket"),
        }
    }
}

fn take(most: usize, buffer: &mut [u8], series: &mut Series, mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>) {
    for _ in 0..most {
        match receive(buffer) {
            Ok(length) => series.datagram(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // UDP reports errors of earlier packets here; the socket goes on.
            Err(error) => tracing::debug!(component = "metrics", %error, "StatsD socket error"),
        }
    }
}
