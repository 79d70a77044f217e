//! What can go wrong, and what to do about it.

use std::io;

use crate::rules::{MOST_RULES, TABLE};

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Netlink says EPERM.
    #[error(
        "not allowed to change the rules of this network namespace; give this container the capability NET_ADMIN \
         (`securityContext.capabilities.add: [NET_ADMIN]`), or run it as root"
    )]
    Privilege,
    /// There is no such netlink family, or no such subsystem behind it.
    #[error("this kernel has no nf_tables; load it on the node: `modprobe nf_tables`")]
    NoNftables(#[source] io::Error),
    /// A chain of the type `nat`, or the expression `redirect`, is unknown.
    #[error(
        "this kernel's nf_tables cannot redirect (it refused {what}); load on the node: `modprobe -a nft_chain_nat \
         nft_redir` (Linux 5.2 or newer)"
    )]
    NoNat {
        /// What was refused.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody else's table has our name.
    #[error(
        "the table `inet {TABLE}` was not made by `outrigger init` and is left as it is; look at it with `nft list table \
         inet {TABLE}`, and remove it with `nft delete table inet {TABLE}` if nobody needs it"
    )]
    Foreign,
    /// More rules than one message to the kernel holds.
    #[error(
        "{0} rules are more than the {MOST_RULES} that fit into one transaction; join ports to ranges, or networks to larger ones"
    )]
    TooMany(usize),
    /// Others change the rules all the time.
    #[error("the rules of this network namespace were changed by others again and again meanwhile; try again")]
    Unsteady,
    /// The kernel refused what it should take.
    #[error("the kernel refused {what}")]
    Refused {
        /// What was refused.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The netlink socket failed.
    #[error("cannot talk to the kernel over netlink")]
    Netlink(#[source] io::Error),
}
