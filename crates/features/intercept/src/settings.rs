//! What is to be redirected, as an operator says it.
//!
//! In: words of a command line. Out: values that cannot be wrong. Promise: a refusal says what
//! is wrong with the word and how it is written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What to redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Users whose connections are the proxy's own. Must not be empty.
    pub proxy_uids: Vec<u32>,
    /// Groups whose connections are the proxy's own.
    pub proxy_gids: Vec<u32>,
    /// Connections from the application; `None` leaves them alone.
    pub outbound: Option<Outbound>,
    /// Connections to the application; `None` leaves them alone.
    pub inbound: Option<Inbound>,
}

/// Connections from the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Port of the outbound listener.
    pub listener: u16,
    /// DNS over TCP (port 53), too.
    pub dns: bool,
    /// By port of the destination.
    pub ports: Filter<Ports>,
    /// By address of the destination.
    pub addresses: Filter<Cidr>,
    /// By the interface that they leave through.
    pub interfaces: Filter<Interface>,
    /// By the user of the calling process.
    pub uids: Filter<u32>,
}

/// Connections to the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Port of the inbound listener.
    pub listener: u16,
    /// Ports that Outrigger serves itself.
    pub own_ports: Vec<Ports>,
    /// By port of the destination.
    pub ports: Filter<Ports>,
    /// By address of the caller.
    pub addresses: Filter<Cidr>,
    /// By the interface that they come in through.
    pub interfaces: Filter<Interface>,
}

/// What is redirected: when `include` is empty everything, else only that; in any case nothing of `exclude`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter<T> {
    /// Only these.
    pub include: Vec<T>,
    /// Never these.
    pub exclude: Vec<T>,
}

impl<T> Default for Filter<T> {
    fn default() -> Self {
        Self { include: Vec::new(), exclude: Vec::new() }
    }
}

/// A word that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` {problem}; write {example}")]
pub struct InvalidSetting {
    word: String,
    problem: String,
    example: String,
}

fn invalid(word: &str, problem: impl Into<String>, example: impl Into<String>) -> InvalidSetting {
    InvalidSetting { word: word.to_owned(), problem: problem.into(), example: example.into() }
}

/// Some consecutive ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl Ports {
    /// Just one.
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub(crate) fn contain(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = InvalidSetting;

    fn from_str(word: &str) -> Result<Self, InvalidSetting> {
        const EXAMPLE: &str = "a port from 1 to 65535 such as `8080`, or a range such as `8000-8100`";
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
            _ => Err(invalid(word, "is neither a port nor a range of ports", EXAMPLE)),
        };
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let ports = Self { first: port(first)?, last: port(last)? };
        if ports.first > ports.last {
            return Err(invalid(word, "ends before it begins", format!("`{}-{}`", ports.last, ports.first)));
        }
        Ok(ports)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A network, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub address: IpAddr,
    /// How many leading bits all its addresses share.
    pub prefix: u8,
}

impl Cidr {
    pub(crate) const LOOPBACK_V4: Self = Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 };
    pub(crate) const LOOPBACK_V6: Self = Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 };

    /// How many bits an address of its family has.
    pub(crate) fn bits(self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => u128::from(u32::from(own) ^ u32::from(other)),
            (IpAddr::V6(own), IpAddr::V6(other)) => u128::from(own) ^ u128::from(other),
            _ => return false,
        };
        differ.checked_shr(u32::from(self.bits() - self.prefix)).unwrap_or(0) == 0
    }

    /// The bytes of its mask, as many as an address has.
    pub(crate) fn mask(self) -> Vec<u8> {
        let ones = u128::MAX.checked_shl(u32::from(128 - self.prefix)).unwrap_or(0);
        ones.to_be_bytes()[..usize::from(self.bits() / 8)].to_vec()
    }

    fn network(self) -> IpAddr {
        let keep = |byte: (u8, u8)| byte.0 & byte.1;
        let mask = self.mask();
        match self.address {
            IpAddr::V4(address) => {
                let mut bytes = address.octets();
                bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte = keep((*byte, mask)));
                bytes.into()
            }
            IpAddr::V6(address) => {
                let mut bytes = address.octets();
                bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte = keep((*byte, mask)));
                bytes.into()
            }
        }
    }
}

impl FromStr for Cidr {
    type Err = InvalidSetting;

    fn from_str(word: &str) -> Result<Self, InvalidSetting> {
        const EXAMPLE: &str = "a network such as `10.0.0.0/8` or `fd00::/8`, or an address";
        let (address, prefix) = word.split_once('/').map_or((word, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| invalid(word, "is no IP address or network", EXAMPLE))?;
        let whole = Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } };
        let Some(prefix) = prefix else { return Ok(whole) };
        let length = prefix.parse().ok().filter(|length| *length <= whole.prefix);
        let Some(length) = length.filter(|_| prefix.bytes().all(|byte| byte.is_ascii_digit())) else {
            let problem = format!("has no prefix length from 0 to {}", whole.prefix);
            return Err(invalid(word, problem, EXAMPLE));
        };
        let cidr = Self { address, prefix: length };
        if cidr.network() != address {
            let network = Self { address: cidr.network(), prefix: length };
            return Err(invalid(word, "has bits set beyond its prefix", format!("`{network}` or `{address}`")));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.prefix == self.bits() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

/// A network interface's name, or the beginning of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name, or what it begins with.
    pub name: String,
    /// Whether all that begin so are meant.
    pub wildcard: bool,
}

impl Interface {
    /// Linux' `IFNAMSIZ` less the closing NUL.
    const LONGEST: usize = 15;

    pub(crate) fn loopback() -> Self {
        Self { name: "lo".to_owned(), wildcard: false }
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        if self.wildcard { name.starts_with(&self.name) } else { name == self.name }
    }
}

impl FromStr for Interface {
    type Err = InvalidSetting;

    fn from_str(word: &str) -> Result<Self, InvalidSetting> {
        const EXAMPLE: &str = "a name such as `eth0`, or `eth*` for all that begin so";
        let (name, wildcard) = word.strip_suffix('*').map_or((word, false), |name| (name, true));
        // Linux allows more, but nothing else is in use, and quoting for nft is spared.
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':' | b'@');
        if name.is_empty() || name.len() > Self::LONGEST || !name.bytes().all(usual) {
            return Err(invalid(word, "is no name of a network interface", EXAMPLE));
        }
        Ok(Self { name: name.to_owned(), wildcard })
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}{}\"", self.name, if self.wildcard { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_read_or_refused_with_what_to_write() {
        for (word, expected) in [
            ("80", Ok("80")),
            ("1-65535", Ok("1-65535")),
            ("80-80", Ok("80")),
            ("0", Err("neither a port")),
            ("65536", Err("neither a port")),
            ("+80", Err("neither a port")),
            ("", Err("neither a port")),
            ("http", Err("neither a port")),
            ("90-80", Err("write `80-90`")),
            ("80-", Err("neither a port")),
        ] {
            read::<Ports>(word, expected);
        }
        for (word, expected) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3")),
            ("10.1.2.3/32", Ok("10.1.2.3")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("fd00::/8", Ok("fd00::/8")),
            ("::1", Ok("::1")),
            ("::/0", Ok("::/0")),
            ("10.1.2.3/8", Err("write `10.0.0.0/8` or `10.1.2.3`")),
            ("fd00::1/64", Err("write `fd00::/64`")),
            ("10.0.0.0/33", Err("from 0 to 32")),
            ("::/129", Err("from 0 to 128")),
            ("10.0.0.0/", Err("prefix length")),
            ("10.0.0.0/+8", Err("prefix length")),
            ("10.0/8", Err("no IP address")),
            ("example.com", Err("no IP address")),
        ] {
            read::<Cidr>(word, expected);
        }
        for (word, expected) in [
            ("eth0", Ok("\"eth0\"")),
            ("eth*", Ok("\"eth*\"")),
            ("br-1a2b.100", Ok("\"br-1a2b.100\"")),
            ("*", Err("no name")),
            ("", Err("no name")),
            ("sixteen-letters-", Err("no name")),
            ("e\"th", Err("no name")),
            ("a b", Err("no name")),
        ] {
            read::<Interface>(word, expected);
        }
    }

    fn read<T: FromStr<Err = InvalidSetting> + fmt::Display>(word: &str, expected: Result<&str, &str>) {
        match (word.parse::<T>(), expected) {
            (Ok(value), Ok(text)) => assert_eq!(value.to_string(), text, "{word}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{word}: {error}"),
            (Ok(value), Err(_)) => panic!("{word} was read as {value}"),
            (Err(error), Ok(_)) => panic!("{error}"),
        }
    }

    proptest! {
        #[test]
        fn a_network_holds_what_shares_its_prefix(own: u128, other: u128, prefix in 0..=128_u8) {
            let cidr = Cidr { address: Ipv6Addr::from(own).into(), prefix };
            let bits = |number: u128| format!("{number:0128b}")[..usize::from(prefix)].to_owned();
            prop_assert_eq!(cidr.contains(Ipv6Addr::from(other).into()), bits(own) == bits(other));
            prop_assert!(cidr.contains(cidr.network()));
            prop_assert!(!cidr.contains(Ipv4Addr::from(own as u32).into()));
        }
    }
}
