//! Addresses: where we listen, and whom we connect to.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use smol_str::SmolStr;

use super::{InvalidScalar, string_scalar};

/// The longest path of a unix socket on Linux (`sun_path` less its closing NUL).
pub(crate) const UNIX_PATH_MAX: usize = 107;

/// Where we listen: `IP:PORT`, or `unix:/path` for a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A TCP (or UDP) address.
    Ip(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            if path.len() > UNIX_PATH_MAX || path.contains('\0') {
                return Err(InvalidScalar::new(
                    text,
                    "is too long for a unix socket",
                    format!("a socket's path has at most {UNIX_PATH_MAX} bytes and no NUL"),
                ));
            }
            return Ok(Self::Unix(path.into()));
        }
        text.parse().map(Self::Ip).map_err(|_| {
            let help = match nearest_address(text) {
                Some(address) => format!("write `{address}`; a unix socket is written `unix:/path`"),
                None => "write `IP:PORT` such as `127.0.0.1:15000` or `[::]:15006`, or `unix:/path`".to_owned(),
            };
            InvalidScalar::new(text, "is not an address to listen on", help)
        })
    }
}

/// What `8080`, `:8080`, `*:8080` and `localhost:8080` stand for elsewhere.
pub(crate) fn nearest_address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let ip = match host {
        "" | "*" => "0.0.0.0",
        "localhost" => "127.0.0.1",
        _ => return None,
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    (digits && port.parse::<u16>().is_ok()).then(|| format!("{ip}:{port}"))
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

string_scalar!(
    ListenAddress,
    "listen-address",
    "^(unix:/.+|.+:[0-9]{1,5})$",
    "An address to listen on: `IP:PORT`, or `unix:/path`."
);

/// A peer to connect to: `HOST:PORT`, where the host is a DNS name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// DNS name or IP address, without brackets. There may be thousands of them, so addresses take no room elsewhere.
    pub host: SmolStr,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        let invalid = |problem: &str| {
            let help = "write `HOST:PORT` such as `backend.shop:8080`, `10.0.0.7:80` or `[::1]:80`";
            InvalidScalar::new(text, problem, help)
        };
        if let Some((host, port)) = plain_v4(text) {
            return Ok(Self { host: host.into(), port });
        }
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits(text.trim_start_matches(':')) {
            return Err(invalid("has no host"));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| invalid("has no port"))?;
        if host.ends_with("//") || host.contains("://") {
            return Err(invalid("is a URL, not an endpoint"));
        }
        let port =
            (digits(port) && port.len() <= 5).then(|| port.parse::<u16>().ok()).flatten().filter(|port| *port > 0);
        let port = port.ok_or_else(|| invalid("has no port between 1 and 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let valid = match bracketed {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
            None => is_host(host),
        };
        let host = bracketed.unwrap_or(host).into();
        if valid { Ok(Self { host, port }) } else { Err(invalid("is not an endpoint")) }
    }
}

/// Host and port of `1.2.3.4:80`, which lists of many thousands consist of; `None` where there is more to think about.
fn plain_v4(text: &str) -> Option<(&str, u16)> {
    let (mut octets, mut number, mut digits) = (0, 0_u32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            // No leading zeros, and no more digits than an octet or a port has.
            b'0'..=b'9' if digits < 5 && (digits == 0 || number > 0) => {
                number = number * 10 + u32::from(byte - b'0');
                digits += 1;
            }
            b'.' | b':' if digits > 0 && number <= 255 && octets < 4 && (byte == b':') == (octets == 3) => {
                octets += 1;
                (number, digits) = (0, 0);
                if octets == 4 {
                    let port = text[at + 1..].bytes().enumerate().try_fold(0_u32, |port, (place, byte)| {
                        let digit = byte.is_ascii_digit() && place < 5 && (place == 0 || port > 0);
                        digit.then(|| port * 10 + u32::from(byte - b'0'))
                    });
                    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)?;
                    return Some((&text[..at], port));
                }
            }
            _ => return None,
        }
    }
    None
}

/// Whether it is an IPv4 address or a DNS name (underscores are allowed, for they are in use). All digits and dots must be an address.
pub(crate) fn is_host(host: &str) -> bool {
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

string_scalar!(HostPort, "host-port", "^.+:[0-9]{1,5}$", "A peer to connect to: `HOST:PORT`.");

/// Where a SPIFFE Workload API is served, as the [specification] writes it: `unix:///PATH`, or `tcp://IP:PORT`.
///
/// [specification]: https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_Endpoint.md
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WorkloadEndpoint {
    /// A unix socket's path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl FromStr for WorkloadEndpoint {
    type Err = InvalidScalar;

    fn from_str(text: &str) -> Result<Self, InvalidScalar> {
        if let Some(path) = text.strip_prefix("unix://").filter(|path| path.starts_with('/')) {
            if path.len() > UNIX_PATH_MAX || path.contains(['\0', '?', '#']) {
                let help = format!("a socket's path has at most {UNIX_PATH_MAX} bytes, and no NUL, query or fragment");
                return Err(InvalidScalar::new(text, "is no path of a unix socket", help));
            }
            return Ok(Self::Unix(path.into()));
        }
        if let Some(address) = text.strip_prefix("tcp://").and_then(|address| address.parse::<SocketAddr>().ok())
            && address.port() != 0
        {
            return Ok(Self::Tcp(address));
        }
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let help = match path.starts_with('/') {
            true => format!("write `unix:///{}`", path.trim_start_matches('/')),
            false => {
                "write `unix:///PATH`, such as `unix:///run/spire/agent-sockets/spire-agent.sock`, or `tcp://IP:PORT`"
                    .to_owned()
            }
        };
        Err(InvalidScalar::new(text, "is not where a Workload API is served", help))
    }
}

impl fmt::Display for WorkloadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

string_scalar!(
    WorkloadEndpoint,
    "workload-endpoint",
    "^(unix:///.+|tcp://.+:[0-9]{1,5})$",
    "Where a SPIFFE Workload API is served: `unix:///PATH`, or `tcp://IP:PORT`."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        for text in ["127.0.0.1:15000", "[::]:15006", "0.0.0.0:0", "unix:/run/outrigger.sock"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for text in ["", ":80", "localhost:80", "127.0.0.1", "unix:relative", "unix:", "1.2.3.4:99999", &long] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn workload_endpoints() {
        for text in ["unix:///run/spire/agent.sock", "tcp://127.0.0.1:8000", "tcp://[::1]:8000"] {
            assert_eq!(text.parse::<WorkloadEndpoint>().unwrap().to_string(), text);
        }
        let long = format!("unix:///{}", "x".repeat(107));
        for text in [
            "",
            "unix:relative",
            "unix://host/path",
            "unix:///a?b",
            "tcp://agent:8000",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:80/x",
            "http://127.0.0.1:80",
            &long,
        ] {
            assert!(text.parse::<WorkloadEndpoint>().is_err(), "{text}");
        }
        for near in ["/run/agent.sock", "unix:/run/agent.sock"] {
            assert!(near.parse::<WorkloadEndpoint>().unwrap_err().help.contains("`unix:///run/agent.sock`"), "{near}");
        }
    }

    proptest::proptest! {
        #[test]
        fn plain_endpoints_are_those_that_the_library_reads(text in "(0|[1-9][0-9]{0,3}|[0-9]{1,3})([.:][0-9]{1,3}){2,3}[.:]?(:[0-9]{1,6})?") {
            let read = text.parse::<std::net::SocketAddrV4>().ok().filter(|address| address.port() > 0);
            // Zeros before a port are left to the other way.
            let read = read.filter(|address| text.ends_with(&format!(":{}", address.port())));
            let plain = plain_v4(&text).map(|(host, port)| (host.to_owned(), port));
            proptest::prop_assert_eq!(plain, read.map(|address| (address.ip().to_string(), address.port())));
        }
    }

    #[test]
    fn endpoints() {
        for text in
            ["backend.shop:8080", "10.0.0.7:80", "[::1]:80", "a_b:1", "example.com.:443", "xn--nxasmq6b.gr:65535"]
        {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in [
            "",
            ":80",
            "backend",
            "backend:",
            "backend:0",
            "backend:+80",
            "backend:65536",
            "a..b:80",
            "-a:80",
            "a b:80",
            "300.1.1.1:80",
            "1.2.3:80",
            "::1:80",
            "[::1:80",
            "[x]:80",
            "http://backend:80",
            "backend:80/path",
            "é:80",
        ] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }
}
