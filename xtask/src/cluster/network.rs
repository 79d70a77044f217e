//! The pods' network: a bridge on this machine, and what the CNI plugins are told of it.
//!
//! Promise: all addresses derive from two prefixes, which a machine that uses them otherwise can change.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::{output, program};

/// The bridge that pods are attached to.
pub(super) const BRIDGE: &str = "outrigger0";

/// Where pods and Services have their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    /// The first three octets of pods' addresses.
    pods: [u8; 3],
    /// The first two octets of Services' addresses.
    services: [u8; 2],
}

impl Default for Network {
    fn default() -> Self {
        Self { pods: [10, 244, 0], services: [10, 96] }
    }
}

impl Network {
    /// `10.244.0.0/24` and `10.96.0.0/16`, as the command line has them.
    pub(super) fn parse(pods: Option<&str>, services: Option<&str>) -> Result<Self> {
        let default = Self::default();
        Ok(Self {
            pods: pods.map_or(Ok(default.pods), |text| prefix(text, ".0/24", "10.244.0.0/24"))?,
            services: services.map_or(Ok(default.services), |text| prefix(text, ".0.0/16", "10.96.0.0/16"))?,
        })
    }

    /// All addresses of pods.
    pub(super) fn pods(self) -> String {
        let [a, b, c] = self.pods;
        format!("{a}.{b}.{c}.0/24")
    }

    /// All addresses of Services.
    pub(super) fn services(self) -> String {
        let [a, b] = self.services;
        format!("{a}.{b}.0.0/16")
    }

    /// The machine's own address on the bridge, and so the node's.
    pub(super) fn node(self) -> String {
        let [a, b, c] = self.pods;
        format!("{a}.{b}.{c}.1")
    }

    /// A Service's address, by its last octet.
    pub(super) fn service(self, last: u8) -> String {
        let [a, b] = self.services;
        format!("{a}.{b}.0.{last}")
    }

    pub(super) fn save(self, state: &Path) -> Result<()> {
        Ok(fs::write(state.join("network"), format!("{} {}", self.pods(), self.services()))?)
    }

    /// Makes the bridge, and the plugins' config.
    pub(super) fn make(self, state: &Path) -> Result<()> {
        let ip = |arguments: &[&str]| output(program("ip").args(arguments)).map(drop);
        if !Path::new("/sys/class/net").join(BRIDGE).exists() {
            ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        }
        ip(&["address", "replace", &format!("{}/24", self.node()), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn on net.ipv4.ip_forward")?;
        let folder = state.join("cni/conf");
        fs::create_dir_all(&folder)?;
        let conflist = format!(
            r#"{{"cniVersion":"0.4.0","name":"{BRIDGE}","plugins":[
 {{"type":"bridge","bridge":"{BRIDGE}","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"{}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
 {{"type":"portmap","capabilities":{{"portMappings":true}}}},{{"type":"loopback"}}]}}"#,
            state.join("cni/addresses").display(),
            self.pods()
        );
        Ok(fs::write(folder.join("10-outrigger.conflist"), conflist)?)
    }

    /// Fails when another interface has such addresses.
    pub(super) fn is_free(self) -> Result<()> {
        let taken = output(program("ip").args(["-4", "-oneline", "address", "show", "to", &self.pods()]))?;
        match taken.lines().find(|line| !line.contains(BRIDGE)) {
            None => Ok(()),
            Some(line) => bail!(
                "{} is in use here ({}); choose another network for pods with `--pods 10.245.0.0/24`",
                self.pods(),
                line.trim()
            ),
        }
    }
}

fn prefix<const N: usize>(text: &str, end: &str, example: &str) -> Result<[u8; N]> {
    let octets: Option<Vec<u8>> =
        text.strip_suffix(end).map(|text| text.split('.').filter_map(|octet| u8::from_str(octet).ok()).collect());
    match octets.map(<[u8; N]>::try_from) {
        Some(Ok(octets)) => Ok(octets),
        _ => bail!("`{text}` is no network such as `{example}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_derive_from_the_networks() {
        let network = Network::parse(Some("10.1.2.0/24"), Some("10.3.0.0/16")).unwrap();
        assert_eq!((network.pods(), network.node()), ("10.1.2.0/24".to_owned(), "10.1.2.1".to_owned()));
        assert_eq!((network.services(), network.service(10)), ("10.3.0.0/16".to_owned(), "10.3.0.10".to_owned()));
        assert_eq!(Network::parse(None, None).unwrap(), Network::default());
        for wrong in ["10.1.2.0/16", "10.1.0.0/24x", "10.1.2.3.0/24", "10.x.2.0/24", "", "10.1.300.0/24"] {
            assert!(Network::parse(Some(wrong), None).is_err(), "{wrong}");
        }
    }
}
