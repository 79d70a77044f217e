//! Who has an address: found through /proc, for the message of an error.
//!
//! In: an address that was refused. Out: pid and command of a process that holds it, when
//! it lives in our network namespace and /proc lets us look. The command is the program's
//! name only: arguments may hold secrets.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its program's name.
    pub command: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// The state of a listening TCP socket in /proc/net/tcp.
const LISTEN: &str = "0A";

/// Who listens on `address`, or on a wildcard that covers it.
pub(super) fn of_port(transport: Transport, address: SocketAddr) -> Option<Holder> {
    let tables = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| parse_row(line, transport)).collect::<Vec<_>>())
        .filter(|(local, _)| conflicts(*local, address))
        .map(|(_, inode)| inode)
        .collect();
    process_with_socket(&inodes)
}

/// Who listens on the unix socket `path`.
pub(super) fn of_unix(path: &Path) -> Option<Holder> {
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    let path = path.to_str()?;
    let inodes: Vec<u64> = table.lines().filter_map(|line| parse_unix_row(line, path)).collect();
    process_with_socket(&inodes)
}

/// A row of /proc/net/{tcp,udp}{,6} as local address and inode; `None` for rows that hold no port against us.
fn parse_row(line: &str, transport: Transport) -> Option<(SocketAddr, u64)> {
    let mut columns = line.split_ascii_whitespace();
    let local = columns.nth(1)?;
    let state = columns.nth(1)?;
    if transport == Transport::Tcp && state != LISTEN {
        return None;
    }
    let inode = columns.nth(5)?.parse().ok()?;
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is a 32-bit word in the machine's byte order.
    let words: Option<Vec<u32>> =
        (0..ip.len() / 8).map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok()).collect();
    let ip = match words?.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes())),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip([a, b, c, d]) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode))
}

fn conflicts(held: SocketAddr, wanted: SocketAddr) -> bool {
    let same = held.ip().to_canonical() == wanted.ip().to_canonical();
    held.port() == wanted.port() && (same || held.ip().is_unspecified() || wanted.ip().is_unspecified())
}

fn parse_unix_row(line: &str, wanted: &str) -> Option<u64> {
    // Num RefCount Protocol Flags Type St Inode Path; a path may hold blanks.
    let inode = line.split_ascii_whitespace().nth(6)?;
    let (_, path) = line.split_once(&format!(" {inode} "))?;
    (path == wanted).then(|| inode.parse().ok())?
}

fn process_with_socket(inodes: &[u64]) -> Option<Holder> {
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| has_socket(*pid, inodes))?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, command: command.trim().to_owned() })
}

fn has_socket(pid: u32, inodes: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    // The inode of the link's target is the socket's; this also works where names are hidden.
    descriptors.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:["))
            && fs::metadata(entry.path()).is_ok_and(|metadata| inodes.contains(&metadata.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_kernels_tables_are_read() {
        // Written by a little-endian machine, as all that we support are.
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(parse_row(v4, Transport::Tcp), Some(("127.0.0.1:8080".parse().unwrap(), 4711)));
        let v6 = "   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0";
        assert_eq!(parse_row(v6, Transport::Tcp), Some(("[::1]:80".parse().unwrap(), 12)));
        let established = v4.replace(" 0A ", " 01 ");
        assert_eq!(parse_row(&established, Transport::Tcp), None);
        assert!(parse_row(&established, Transport::Udp).is_some());
        for broken in ["", "sl local_address rem_address st", "0: zz:zz x 0A", "0: 01:1 0 0A 0 0 0 0 0 1"] {
            assert_eq!(parse_row(broken, Transport::Tcp), None, "{broken}");
        }
        let unix = "0000000000000000: 00000002 00000000 00010000 0001 01 31337 /run/a b.sock";
        assert_eq!(parse_unix_row(unix, "/run/a b.sock"), Some(31337));
        assert_eq!(parse_unix_row(unix, "/run/a"), None);
    }

    #[test]
    fn a_wildcard_conflicts_with_every_address_of_its_port() {
        for (held, wanted, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ] {
            assert_eq!(conflicts(held.parse().unwrap(), wanted.parse().unwrap()), expected, "{held} {wanted}");
        }
    }
}
