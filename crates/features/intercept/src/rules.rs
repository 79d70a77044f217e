//! The rules, as data: made from settings, written as text, encoded for the kernel.
//!
//! Promise: nothing here depends on how rules are written down. What an include list names
//! gets a chain of its own that returns for each of them, so that lists of any length need
//! neither sets nor long rules.

use std::net::IpAddr;

use crate::error::Error;
use crate::settings::{Cidr, Filter, Inbound, Interface, Outbound, Ports, Settings};

/// The name of our table, of the family `inet`.
pub const TABLE: &str = "outrigger";
/// Rules that fit into one message: the kernel takes some 200 KiB, and a rule has less than 500 bytes.
pub(crate) const MOST_RULES: usize = 400;
/// Before other redirections of destinations, as nft's `dstnat`; the name itself is unknown to older nft on this hook.
pub(crate) const PRIORITY: i32 = -100;
const TCP_DNS: u16 = 53;

/// All rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub(crate) chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// Where the kernel enters it; others are only jumped to.
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting,
    Output,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) action: Action,
    pub(crate) comment: &'static str,
}

/// A condition. Those on addresses hold only for packets of that family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    NotTcp,
    Tcp,
    Ipv4,
    Ipv6,
    Uid(u32),
    Gid(u32),
    /// The interface that it came in through.
    From(Interface),
    /// The interface that it goes out through.
    Through(Interface),
    Source(Cidr),
    Destination(Cidr),
    Port(Ports),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It goes on as it is.
    Accept,
    /// Back to where the chain was jumped to from.
    Return,
    Jump(&'static str),
    Goto(&'static str),
    Redirect(u16),
}

impl Ruleset {
    /// The rules for these settings.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let mut ruleset = Self { chains: Vec::new() };
        // A chain must be there before a rule jumps to it, so the inner ones come first.
        if let Some(inbound) = &settings.inbound {
            ruleset.inbound(inbound, settings.outbound.as_ref());
        }
        if let Some(outbound) = &settings.outbound {
            ruleset.outbound(outbound, settings);
        }
        let rules = ruleset.len();
        if rules > MOST_RULES { Err(Error::TooMany(rules)) } else { Ok(ruleset) }
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn inbound(&mut self, inbound: &Inbound, outbound: Option<&Outbound>) {
        let mut ports = Chain::inner("inbound_ports");
        let mut own = vec![Ports::one(inbound.listener)];
        own.extend(outbound.map(|outbound| Ports::one(outbound.listener)));
        own.extend(inbound.own_ports.iter().filter(|port| !own.contains(port)).copied().collect::<Vec<_>>());
        for port in own {
            ports.accept(Match::Port(port), "a port of Outrigger itself");
        }
        self.filter(&mut ports, &inbound.ports, "inbound_only_ports", Match::Port);
        ports.redirect(inbound.listener);
        self.chains.push(ports);

        let mut entry = Chain::at("inbound", Hook::Prerouting);
        entry.accept(Match::NotTcp, "UDP, ICMP and others");
        entry.accept(Match::From(Interface::loopback()), "within the pod");
        self.filter(&mut entry, &inbound.interfaces, "inbound_only_interfaces", Match::From);
        self.filter(&mut entry, &inbound.addresses, "inbound_only_addresses", Match::source);
        entry.add(vec![], Action::Goto("inbound_ports"), "");
        self.chains.push(entry);
    }

    fn outbound(&mut self, outbound: &Outbound, settings: &Settings) {
        let owners = || {
            let groups = settings.proxy_gids.iter().copied().map(Match::Gid);
            settings.proxy_uids.iter().copied().map(Match::Uid).chain(groups)
        };
        let mut entry = Chain::at("outbound", Hook::Output);
        entry.accept(Match::NotTcp, "UDP, ICMP and others");
        let inside = Match::Through(Interface::loopback());
        if settings.inbound.is_some() {
            let mut own = Chain::inner("outbound_to_self");
            own.accept(Match::Source(Cidr::LOOPBACK_V4), "the inbound listener calls the application");
            own.accept(Match::Source(Cidr::LOOPBACK_V6), "the inbound listener calls the application");
            own.accept(Match::Destination(Cidr::LOOPBACK_V4), "localhost");
            own.accept(Match::Destination(Cidr::LOOPBACK_V6), "localhost");
            own.add(vec![], Action::Goto("inbound_ports"), "the pod called its own Service");
            self.chains.push(own);
            for owner in owners() {
                entry.add(vec![inside.clone(), owner], Action::Goto("outbound_to_self"), "the proxy calls its own pod");
            }
        }
        entry.accept(inside, "within the pod");
        for owner in owners() {
            entry.accept(owner, "the proxy itself");
        }
        if !outbound.dns {
            entry.accept(Match::Port(Ports::one(TCP_DNS)), "DNS");
        }
        self.filter(&mut entry, &outbound.uids, "outbound_only_users", Match::Uid);
        self.filter(&mut entry, &outbound.interfaces, "outbound_only_interfaces", Match::Through);
        self.filter(&mut entry, &outbound.addresses, "outbound_only_addresses", Match::destination);
        self.filter(&mut entry, &outbound.ports, "outbound_only_ports", Match::Port);
        entry.redirect(outbound.listener);
        self.chains.push(entry);
    }

    /// Adds to `chain` what leaves out of it whatever the filter does not want.
    fn filter<T: Clone>(
        &mut self,
        chain: &mut Chain,
        filter: &Filter<T>,
        name: &'static str,
        condition: impl Fn(T) -> Match,
    ) {
        for one in &filter.exclude {
            chain.accept(condition(one.clone()), "excluded");
        }
        if filter.include.is_empty() {
            return;
        }
        let mut only = Chain::inner(name);
        for one in &filter.include {
            only.add(vec![condition(one.clone())], Action::Return, "included");
        }
        only.add(vec![], Action::Accept, "nothing else is included");
        self.chains.push(only);
        chain.add(vec![], Action::Jump(name), "");
    }
}

impl Chain {
    fn inner(name: &'static str) -> Self {
        Self { name, hook: None, rules: Vec::new() }
    }

    fn at(name: &'static str, hook: Hook) -> Self {
        Self { name, hook: Some(hook), rules: Vec::new() }
    }

    fn add(&mut self, matches: Vec<Match>, action: Action, comment: &'static str) {
        self.rules.push(Rule { matches, action, comment });
    }

    fn accept(&mut self, condition: Match, comment: &'static str) {
        self.add(vec![condition], Action::Accept, comment);
    }

    fn redirect(&mut self, port: u16) {
        self.add(vec![Match::Tcp], Action::Redirect(port), "");
    }
}

/// The first packet of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Packet<'a> {
    pub(crate) tcp: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// In or out, as the hook has it.
    pub(crate) interface: &'a str,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

impl Ruleset {
    /// Where a connection goes that meets the rules at `hook`: to a port of ours, or `None` as it is.
    pub(crate) fn decide(&self, hook: Hook, packet: &Packet<'_>) -> Option<u16> {
        let chain = self.chains.iter().find(|chain| chain.hook == Some(hook))?;
        match self.walk(chain, packet) {
            Some(Action::Redirect(port)) => Some(port),
            _ => None,
        }
    }

    /// The action that ends the walk; `None` when the chain was left by its end or by `Return`.
    fn walk(&self, chain: &Chain, packet: &Packet<'_>) -> Option<Action> {
        let named = |name| self.chains.iter().find(|chain| chain.name == name);
        for rule in chain.rules.iter().filter(|rule| rule.matches.iter().all(|one| one.holds(packet))) {
            match rule.action {
                Action::Return => return None,
                Action::Goto(name) => return self.walk(named(name)?, packet),
                Action::Jump(name) => {
                    if let Some(end) = self.walk(named(name)?, packet) {
                        return Some(end);
                    }
                }
                end => return Some(end),
            }
        }
        None
    }
}

impl Match {
    fn source(cidr: Cidr) -> Self {
        Self::whole_family(cidr).unwrap_or(Self::Source(cidr))
    }

    fn destination(cidr: Cidr) -> Self {
        Self::whole_family(cidr).unwrap_or(Self::Destination(cidr))
    }

    /// Without a prefix no bit is to be compared, and there is no rule that says so.
    fn whole_family(cidr: Cidr) -> Option<Self> {
        (cidr.prefix == 0).then_some(if cidr.address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 })
    }

    fn holds(&self, packet: &Packet<'_>) -> bool {
        match self {
            Self::NotTcp => !packet.tcp,
            Self::Tcp => packet.tcp,
            Self::Ipv4 => packet.destination.is_ipv4(),
            Self::Ipv6 => packet.destination.is_ipv6(),
            Self::Uid(uid) => packet.uid == *uid,
            Self::Gid(gid) => packet.gid == *gid,
            Self::From(interface) | Self::Through(interface) => interface.is(packet.interface),
            Self::Source(cidr) => cidr.contains(packet.source),
            Self::Destination(cidr) => cidr.contains(packet.destination),
            Self::Port(ports) => packet.tcp && ports.contain(packet.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const PROXY: u32 = 65_532;

    fn ports(words: &[&str]) -> Vec<Ports> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    fn settings() -> Settings {
        Settings {
            proxy_uids: vec![PROXY],
            proxy_gids: vec![],
            outbound: Some(Outbound {
                listener: 15_001,
                dns: false,
                ports: Filter::default(),
                addresses: Filter::default(),
                interfaces: Filter::default(),
                uids: Filter::default(),
            }),
            inbound: Some(Inbound {
                listener: 15_006,
                own_ports: ports(&["15000", "15020-15021"]),
                ports: Filter::default(),
                addresses: Filter::default(),
                interfaces: Filter::default(),
            }),
        }
    }

    fn packet(uid: u32, interface: &'static str, source: &str, destination: &str, port: u16) -> Packet<'static> {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Packet { tcp: true, uid, gid: uid, interface, source, destination, port }
    }

    #[test]
    fn each_kind_of_connection_goes_where_the_table_says() {
        let rules = Ruleset::new(&settings()).unwrap();
        let app = 1000;
        for (what, hook, packet, expected) in [
            ("app out", Hook::Output, packet(app, "eth0", "10.0.0.2", "10.0.0.3", 80), Some(15_001)),
            ("app out, v6", Hook::Output, packet(app, "eth0", "fd00::2", "fd00::3", 80), Some(15_001)),
            ("DNS over TCP", Hook::Output, packet(app, "eth0", "10.0.0.2", "10.0.0.3", 53), None),
            ("UDP", Hook::Output, Packet { tcp: false, ..packet(app, "eth0", "10.0.0.2", "10.0.0.3", 80) }, None),
            ("localhost", Hook::Output, packet(app, "lo", "127.0.0.1", "127.0.0.1", 80), None),
            ("localhost, v6", Hook::Output, packet(app, "lo", "::1", "::1", 80), None),
            ("app to its own pod", Hook::Output, packet(app, "lo", "10.0.0.2", "10.0.0.2", 80), None),
            ("proxy out", Hook::Output, packet(PROXY, "eth0", "10.0.0.2", "10.0.0.3", 80), None),
            ("proxy to its own pod", Hook::Output, packet(PROXY, "lo", "10.0.0.2", "10.0.0.2", 80), Some(15_006)),
            ("the same, v6", Hook::Output, packet(PROXY, "lo", "fd00::2", "fd00::2", 80), Some(15_006)),
            ("proxy to its own port", Hook::Output, packet(PROXY, "lo", "10.0.0.2", "10.0.0.2", 15_020), None),
            ("inbound to app", Hook::Output, packet(PROXY, "lo", "127.0.0.1", "10.0.0.2", 80), None),
            ("inbound to app, v6", Hook::Output, packet(PROXY, "lo", "::1", "fd00::2", 80), None),
            ("inbound to localhost", Hook::Output, packet(PROXY, "lo", "127.0.0.1", "127.0.0.1", 80), None),
            ("peer in", Hook::Prerouting, packet(0, "eth0", "10.0.0.3", "10.0.0.2", 80), Some(15_006)),
            ("peer in, v6", Hook::Prerouting, packet(0, "eth0", "fd00::3", "fd00::2", 80), Some(15_006)),
            ("kubelet's probe", Hook::Prerouting, packet(0, "eth0", "10.0.0.1", "10.0.0.2", 15_021), None),
            ("inbound listener", Hook::Prerouting, packet(0, "eth0", "10.0.0.3", "10.0.0.2", 15_006), None),
            ("outbound listener", Hook::Prerouting, packet(0, "eth0", "10.0.0.3", "10.0.0.2", 15_001), None),
            ("in over lo", Hook::Prerouting, packet(0, "lo", "10.0.0.2", "10.0.0.2", 80), None),
        ] {
            assert_eq!(rules.decide(hook, &packet), expected, "{what}");
        }
    }

    #[test]
    fn a_direction_can_be_left_alone() {
        let only_out = Ruleset::new(&Settings { inbound: None, ..settings() }).unwrap();
        assert_eq!(only_out.decide(Hook::Prerouting, &packet(0, "eth0", "10.0.0.3", "10.0.0.2", 80)), None);
        assert_eq!(only_out.decide(Hook::Output, &packet(PROXY, "lo", "10.0.0.2", "10.0.0.2", 80)), None);
        assert_eq!(only_out.decide(Hook::Output, &packet(1, "eth0", "10.0.0.2", "10.0.0.3", 80)), Some(15_001));
        let only_in = Ruleset::new(&Settings { outbound: None, ..settings() }).unwrap();
        assert_eq!(only_in.decide(Hook::Output, &packet(1, "eth0", "10.0.0.2", "10.0.0.3", 80)), None);
        assert_eq!(only_in.decide(Hook::Prerouting, &packet(0, "eth0", "10.0.0.3", "10.0.0.2", 80)), Some(15_006));
    }

    #[test]
    fn more_rules_than_a_message_holds_are_refused() {
        let mut settings = settings();
        let outbound = settings.outbound.as_mut().unwrap();
        outbound.ports.exclude = (1..500).map(Ports::one).collect();
        let error = Ruleset::new(&settings).unwrap_err();
        assert!(matches!(error, Error::TooMany(rules) if rules > 500), "{error}");
    }

    fn some<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = Filter<T>> + use<T> {
        let list = prop::collection::vec(select(values.to_vec()), 0..3);
        (list.clone(), list).prop_map(|(include, exclude)| Filter { include, exclude })
    }

    fn some_settings() -> impl Strategy<Value = Settings> {
        let cidrs: Vec<Cidr> = ["10.0.0.0/8", "10.0.0.2", "192.168.0.0/13", "0.0.0.0/0", "fd00::/61", "::/0"]
            .map(|text| text.parse().unwrap())
            .into();
        let interfaces: Vec<Interface> = ["eth0", "eth*", "net1"].map(|text| text.parse().unwrap()).into();
        let of_ports = || some(&ports(&["80", "79-81", "443", "1000-2000"]));
        let outbound = (any::<bool>(), of_ports(), some(&cidrs), some(&interfaces), some(&[1, 2, 3]));
        let inbound = (of_ports(), some(&cidrs), some(&interfaces));
        (outbound, inbound, prop::collection::vec(select(vec![3, PROXY]), 0..2)).prop_map(
            |(out, inside, proxy_gids)| {
                let mut settings = settings();
                settings.proxy_gids = proxy_gids;
                let (dns, ports, addresses, interfaces, uids) = out;
                settings.outbound = Some(Outbound { listener: 15_001, dns, ports, addresses, interfaces, uids });
                let (ports, addresses, interfaces) = inside;
                let own_ports = settings.inbound.take().unwrap().own_ports;
                settings.inbound = Some(Inbound { listener: 15_006, own_ports, ports, addresses, interfaces });
                settings
            },
        )
    }

    fn some_packet() -> impl Strategy<Value = Packet<'static>> {
        let v4 = select(vec!["10.0.0.2", "10.0.0.3", "192.175.0.1", "127.0.0.1"])
            .prop_map(|text| IpAddr::from(text.parse::<Ipv4Addr>().unwrap()));
        let v6 = select(vec!["fd00::2", "fd00:0:0:9::1", "::1"])
            .prop_map(|text| IpAddr::from(text.parse::<Ipv6Addr>().unwrap()));
        let ends = prop_oneof![(v4.clone(), v4), (v6.clone(), v6)];
        let port = select(vec![53, 80, 81, 443, 1500, 15_001, 15_006, 15_020, 30_000]);
        let interface = select(vec!["lo", "eth0", "eth1", "net1", "net10"]);
        (any::<bool>(), select(vec![1, 2, 3, PROXY]), select(vec![3, 4, PROXY]), interface, ends, port).prop_map(
            |(tcp, uid, gid, interface, (source, destination), port)| Packet {
                tcp,
                uid,
                gid,
                interface,
                source,
                destination,
                port,
            },
        )
    }

    fn wanted<T>(filter: &Filter<T>, is: impl Fn(&T) -> bool) -> bool {
        (filter.include.is_empty() || filter.include.iter().any(&is)) && !filter.exclude.iter().any(is)
    }

    /// What the settings say, without any rules.
    fn said(settings: &Settings, hook: Hook, packet: &Packet<'_>) -> Option<u16> {
        let (outbound, inbound) = (settings.outbound.as_ref().unwrap(), settings.inbound.as_ref().unwrap());
        let own =
            inbound.own_ports.iter().any(|ports| ports.contain(packet.port)) || [15_001, 15_006].contains(&packet.port);
        let port_in = !own && wanted(&inbound.ports, |ports| ports.contain(packet.port));
        let proxy = settings.proxy_uids.contains(&packet.uid) || settings.proxy_gids.contains(&packet.gid);
        let inside = packet.interface == "lo";
        match hook {
            _ if !packet.tcp => None,
            Hook::Prerouting => {
                let wanted = !inside
                    && wanted(&inbound.interfaces, |interface| interface.is(packet.interface))
                    && wanted(&inbound.addresses, |cidr| cidr.contains(packet.source));
                (wanted && port_in).then_some(15_006)
            }
            Hook::Output if inside => {
                let calls_itself = proxy && !packet.source.is_loopback() && !packet.destination.is_loopback();
                (calls_itself && port_in).then_some(15_006)
            }
            Hook::Output => {
                let wanted = !proxy
                    && (outbound.dns || packet.port != 53)
                    && wanted(&outbound.ports, |ports| ports.contain(packet.port))
                    && wanted(&outbound.addresses, |cidr| cidr.contains(packet.destination))
                    && wanted(&outbound.interfaces, |interface| interface.is(packet.interface))
                    && wanted(&outbound.uids, |uid| *uid == packet.uid);
                wanted.then_some(15_001)
            }
        }
    }

    proptest! {
        #[test]
        fn the_rules_do_what_the_settings_say(settings in some_settings(), packet in some_packet()) {
            let rules = Ruleset::new(&settings).unwrap();
            for hook in [Hook::Prerouting, Hook::Output] {
                prop_assert_eq!(rules.decide(hook, &packet), said(&settings, hook, &packet), "{:?}", hook);
            }
        }
    }
}
