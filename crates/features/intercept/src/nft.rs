//! The rules as nft writes them, for people and for `nft -f`.
//!
//! Promise: `nft` makes of the text what we make of the rules. Nothing in it needs quoting, for
//! names of interfaces were judged before.

use std::fmt::{self, Display, Write};

use crate::netlink::MARK;
use crate::rules::{Action, Chain, Hook, Match, PRIORITY, Rule, Ruleset, TABLE};

/// The rules as text that `nft -f` takes; it replaces the table in one transaction, as we do.
pub fn text(ruleset: &Ruleset) -> String {
    // To delete what is not there would be an error, so it is made first.
    let mut text = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    let _ = writeln!(text, "\tcomment \"{MARK}\"");
    for chain in &ruleset.chains {
        let _ = write!(text, "\n{chain}");
    }
    text + "}\n"
}

impl Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(hook) = self.hook {
            let hook = match hook {
                Hook::Prerouting => "prerouting",
                Hook::Output => "output",
            };
            writeln!(f, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for one in &self.matches {
            write!(f, "{one} ")?;
        }
        match self.action {
            Action::Accept => f.write_str("accept"),
            Action::Return => f.write_str("return"),
            Action::Jump(chain) => write!(f, "jump {chain}"),
            Action::Goto(chain) => write!(f, "goto {chain}"),
            Action::Redirect(port) => write!(f, "counter redirect to :{port}"),
        }?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " comment \"{}\"", self.comment) }
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTcp => f.write_str("meta l4proto != tcp"),
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::Ipv4 => f.write_str("meta nfproto ipv4"),
            Self::Ipv6 => f.write_str("meta nfproto ipv6"),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Gid(gid) => write!(f, "meta skgid {gid}"),
            Self::From(interface) => write!(f, "iifname {interface}"),
            Self::Through(interface) => write!(f, "oifname {interface}"),
            Self::Source(cidr) => write!(f, "{} saddr {cidr}", if cidr.address.is_ipv4() { "ip" } else { "ip6" }),
            Self::Destination(cidr) => write!(f, "{} daddr {cidr}", if cidr.address.is_ipv4() { "ip" } else { "ip6" }),
            Self::Port(ports) => write!(f, "tcp dport {ports}"),
        }
    }
}
