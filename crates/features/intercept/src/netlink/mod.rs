//! nf_tables' messages, and the socket they go over.
//!
//! Crates that speak netlink bring either GPL, C libraries, or macros and no `redirect`; what we need of it are five
//! kinds of messages. Numbers are those of Linux' `nfnetlink.h` and `nf_tables.h`, which never change.

mod expression;
mod message;
mod reply;
mod socket;

pub(crate) use expression::rule as rule_expressions;
pub(crate) use message::{Batch, Request};
pub(crate) use reply::{Reply, replies};
pub(crate) use socket::Socket;

/// The comment of our table: by it we know it again.
pub(crate) const MARK: &str = "made by outrigger init";

pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_UNSPEC: u8 = 0;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 17;

/// A kind of nf_tables message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewGeneration = 15,
    GetGeneration = 16,
}

impl Kind {
    pub(crate) fn number(self) -> u16 {
        (NFNL_SUBSYS_NFTABLES << 8) | self as u16
    }
}

/// Entry for the fuzzer: reads bytes as the kernel's replies.
#[doc(hidden)]
pub fn fuzz_replies(bytes: &[u8]) {
    for reply in replies(bytes) {
        if let Ok(Reply::Table { name, comment }) = reply {
            assert!(name.len() <= bytes.len() && comment.is_none_or(|comment| comment.len() <= bytes.len()));
        }
    }
}
