//! Ports that nothing uses.
//!
//! In: nothing. Out: port numbers. Promise: no number twice in one run of the tests,
//! below the range from which the kernel takes the ports of outgoing connections.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

static NEXT: AtomicU16 = AtomicU16::new(0);
/// Between the well-known ports and Linux's ephemeral range (32768 on).
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// A free TCP port on all addresses.
///
/// # Panics
/// When the whole range is taken.
pub fn free_port() -> u16 {
    search(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok())
}

/// A free TCP port whose next one is free too, for servers that take both.
///
/// # Panics
/// When the whole range is taken.
pub fn free_port_pair() -> u16 {
    let is_free = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    search_by(2, |port| is_free(port) && is_free(port + 1))
}

/// A free UDP port on all addresses.
///
/// # Panics
/// When the whole range is taken.
pub fn free_udp_port() -> u16 {
    search(|port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok())
}

fn search(is_free: impl Fn(u16) -> bool) -> u16 {
    search_by(1, is_free)
}

fn search_by(count: u16, is_free: impl Fn(u16) -> bool) -> u16 {
    // Runs at the same time (two checkouts on one machine) begin at different places.
    let start = u16::try_from(std::process::id() % 97).expect("below 97") * 131;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(count, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        if is_free(port) {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}
