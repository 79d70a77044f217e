//! A rule as nf_tables runs it: loads into a register, comparisons, and an end.
//!
//! Promise: the kernel's list of a rule reads as [`crate::text`] has it.

use std::net::IpAddr;

use super::message::Attributes;
use crate::rules::{Action, Match, Rule};
use crate::settings::{Cidr, Interface, Ports};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// `NFT_META_*`.
#[derive(Clone, Copy)]
enum Meta {
    IifName = 6,
    OifName = 7,
    SkUid = 10,
    SkGid = 11,
    NfProto = 15,
    L4Proto = 16,
}

/// `NFT_CMP_*`.
#[derive(Clone, Copy)]
enum Cmp {
    Eq = 0,
    Neq = 1,
    Lte = 3,
    Gte = 5,
}

/// `NFT_PAYLOAD_*`.
#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

const IFNAMSIZ: usize = 16;
const TCP: u8 = 6;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Fills in the expressions of a rule.
pub(crate) fn rule(rule: &Rule, list: &mut Attributes) {
    let mut expressions = Expressions(list);
    for one in &rule.matches {
        expressions.condition(one);
    }
    match rule.action {
        Action::Accept => expressions.verdict(1, None),
        Action::Return => expressions.verdict(-5, None),
        Action::Jump(chain) => expressions.verdict(-3, Some(chain)),
        Action::Goto(chain) => expressions.verdict(-4, Some(chain)),
        Action::Redirect(port) => expressions.redirect(port),
    }
}

struct Expressions<'a>(&'a mut Attributes);

impl Expressions<'_> {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::NotTcp => self.meta(Meta::L4Proto, Cmp::Neq, &[TCP]),
            Match::Tcp => self.meta(Meta::L4Proto, Cmp::Eq, &[TCP]),
            Match::Ipv4 => self.meta(Meta::NfProto, Cmp::Eq, &[NFPROTO_IPV4]),
            Match::Ipv6 => self.meta(Meta::NfProto, Cmp::Eq, &[NFPROTO_IPV6]),
            // What is no part of a packet is in the machine's own order.
            Match::Uid(uid) => self.meta(Meta::SkUid, Cmp::Eq, &uid.to_ne_bytes()),
            Match::Gid(gid) => self.meta(Meta::SkGid, Cmp::Eq, &gid.to_ne_bytes()),
            Match::From(interface) => self.interface(Meta::IifName, interface),
            Match::Through(interface) => self.interface(Meta::OifName, interface),
            Match::Source(cidr) => self.address(*cidr, 12, 8),
            Match::Destination(cidr) => self.address(*cidr, 16, 24),
            Match::Port(ports) => self.port(*ports),
        }
    }

    fn meta(&mut self, key: Meta, operator: Cmp, value: &[u8]) {
        self.add("meta", |data| {
            data.number(2, key as u32).number(1, REGISTER);
        });
        self.compare(operator, value);
    }

    fn interface(&mut self, key: Meta, interface: &Interface) {
        let mut name = interface.name.clone().into_bytes();
        if !interface.wildcard {
            name.resize(IFNAMSIZ, 0);
        }
        self.meta(key, Cmp::Eq, &name);
    }

    /// `offset_v4` and `offset_v6` are where the address stands in the header of its family.
    fn address(&mut self, cidr: Cidr, offset_v4: u32, offset_v6: u32) {
        let (family, offset, address) = match cidr.address {
            IpAddr::V4(address) => (NFPROTO_IPV4, offset_v4, address.octets().to_vec()),
            IpAddr::V6(address) => (NFPROTO_IPV6, offset_v6, address.octets().to_vec()),
        };
        self.meta(Meta::NfProto, Cmp::Eq, &[family]);
        let length = u32::from(cidr.bits() / 8);
        self.payload(Header::Network, offset, length);
        if cidr.prefix < cidr.bits() {
            self.add("bitwise", |data| {
                data.number(1, REGISTER).number(2, REGISTER).number(3, length);
                data.nested(4, |mask| {
                    mask.bytes(NFTA_DATA_VALUE, &cidr.mask());
                });
                data.nested(5, |xor| {
                    xor.bytes(NFTA_DATA_VALUE, &vec![0; address.len()]);
                });
            });
        }
        self.compare(Cmp::Eq, &address);
    }

    fn port(&mut self, ports: Ports) {
        self.meta(Meta::L4Proto, Cmp::Eq, &[TCP]);
        self.payload(Header::Transport, 2, 2);
        if ports.first == ports.last {
            self.compare(Cmp::Eq, &ports.first.to_be_bytes());
        } else {
            self.compare(Cmp::Gte, &ports.first.to_be_bytes());
            self.compare(Cmp::Lte, &ports.last.to_be_bytes());
        }
    }

    fn payload(&mut self, header: Header, offset: u32, length: u32) {
        self.add("payload", |data| {
            data.number(1, REGISTER).number(2, header as u32).number(3, offset).number(4, length);
        });
    }

    fn compare(&mut self, operator: Cmp, value: &[u8]) {
        self.add("cmp", |data| {
            data.number(1, REGISTER).number(2, operator as u32);
            data.nested(3, |inner| {
                inner.bytes(NFTA_DATA_VALUE, value);
            });
        });
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        self.add("immediate", |data| {
            data.number(1, VERDICT).nested(2, |value| {
                value.nested(NFTA_DATA_VERDICT, |verdict| {
                    verdict.bytes(1, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        });
    }

    fn redirect(&mut self, port: u16) {
        const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
        self.add("counter", |_| {});
        self.add("immediate", |data| {
            data.number(1, REGISTER).nested(2, |value| {
                value.bytes(NFTA_DATA_VALUE, &port.to_be_bytes());
            });
        });
        self.add("redir", |data| {
            data.number(1, REGISTER).number(3, NF_NAT_RANGE_PROTO_SPECIFIED);
        });
    }

    fn add(&mut self, name: &str, data: impl FnOnce(&mut Attributes)) {
        self.0.nested(NFTA_LIST_ELEM, |expression| {
            expression.text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data);
        });
    }
}
