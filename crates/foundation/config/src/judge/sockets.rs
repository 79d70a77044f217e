//! Rules between sockets: no two listeners may meet on one address.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::Judge;
use crate::diagnostic::Problem;
use crate::{Config, ConfigPath, ListenAddress};

/// A place that listens.
struct Socket<'a> {
    at: ConfigPath,
    address: Address<'a>,
}

#[derive(Clone, Copy, PartialEq)]
enum Address<'a> {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(&'a Path),
}

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let sockets = sockets(config);
    for (index, socket) in sockets.iter().enumerate() {
        // Two defaults never meet, so at least one of the two stands in the file.
        let Some(other) = sockets[..index].iter().find(|other| meet(socket.address, other.address)) else { continue };
        if judge.checked.is_blurred(&other.at) || judge.checked.is_blurred(&socket.at) {
            continue;
        }
        let (socket, other) = if judge.is_given(&socket.at) { (socket, other) } else { (other, socket) };
        let shown = judge.shown(&socket.at, &display(socket.address));
        let message = format!("`{shown}` is taken already by `{}`", other.at);
        let mut problem = Problem::error("conflict", judge.span(&socket.at), socket.at.clone(), message);
        if judge.is_given(&other.at) {
            problem = problem.help("give each listener its own port").related(judge.span(&other.at), "taken here");
        } else {
            let default = display(other.address);
            problem = problem
                .help(format!("`{}` listens on `{default}` by default; give one of them another port", other.at));
        }
        judge.report(problem);
    }
}

fn sockets(config: &Config) -> Vec<Socket<'_>> {
    let mut sockets = Vec::new();
    let mut add = |at: ConfigPath, address| sockets.push(Socket { at, address });
    let tcp_or_unix = |address| match address {
        &ListenAddress::Ip(address) => Address::Tcp(address),
        ListenAddress::Unix(path) => Address::Unix(path),
    };
    add("admin.listen".into(), tcp_or_unix(&config.admin.listen));
    add("admin.health".into(), tcp_or_unix(&config.admin.health));
    if let Some(handover) = &config.runtime.handover {
        add("runtime.handover.socket".into(), Address::Unix(&handover.socket));
    }
    if let Some(metrics) = &config.metrics {
        add("metrics.listen".into(), Address::Tcp(metrics.listen));
        if let Some(statsd) = &metrics.statsd {
            add("metrics.statsd.listen".into(), Address::Udp(statsd.listen));
        }
    }
    if let Some(authority) = &config.authority {
        add("authority.listen".into(), Address::Tcp(authority.listen));
    }
    if let Some(discovery) = &config.discovery {
        add("discovery.listen".into(), Address::Tcp(discovery.listen));
    }
    if let Some(webhook) = config.controller.as_ref().and_then(|controller| controller.webhook.as_ref()) {
        add("controller.webhook.listen".into(), Address::Tcp(webhook.listen));
    }
    for (index, listener) in config.proxy.iter().flat_map(|proxy| &proxy.listeners).enumerate() {
        add(ConfigPath::from("proxy.listeners").index(index).key("address"), Address::Tcp(listener.address));
    }
    sockets
}

/// Whether the kernel would refuse the second of the two.
fn meet(one: Address<'_>, other: Address<'_>) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) | (Address::Udp(one), Address::Udp(other)) => {
            // Port 0 asks the kernel for a free one.
            one.port() == other.port() && one.port() != 0 && overlap(one.ip(), other.ip())
        }
        (Address::Unix(one), Address::Unix(other)) => one == other,
        _ => false,
    }
}

/// `[::]` also takes IPv4, as is the default on Linux.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let all = |wide: IpAddr, ip: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4());
    one == other || all(one, other) || all(other, one)
}

fn display(address: Address<'_>) -> String {
    match address {
        Address::Tcp(address) | Address::Udp(address) => address.to_string(),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_meet_as_in_the_kernel() {
        let rows = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::1]:80", "127.0.0.1:80", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
        ];
        for (one, other, expected) in rows {
            let (a, b) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(meet(Address::Tcp(a), Address::Tcp(b)), expected, "{one} {other}");
            assert_eq!(meet(Address::Tcp(b), Address::Tcp(a)), expected, "{other} {one}");
            assert!(!meet(Address::Tcp(a), Address::Udp(b)), "{one} {other}");
        }
    }
}
