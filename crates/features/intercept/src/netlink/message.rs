//! Writes netlink messages: a header, the family, and attributes within attributes.
//!
//! Promise: lengths and padding are right whatever is written; everything is within the limits of
//! 16-bit lengths, for rules are short and names are ours.

use super::{Kind, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NFPROTO_UNSPEC};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// For new objects: make it, and put it at the end.
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const NFNL_BATCH_GENID: u16 = 1;

/// Attributes under construction.
#[derive(Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("no value of ours comes near 64 KiB");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number in network order, as netfilter has all its numbers.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Text with its closing NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// A comment, as the nft tool keeps it in an object's user data.
    pub(crate) fn comment(&mut self, kind: u16, comment: &str) -> &mut Self {
        const COMMENT: u8 = 0;
        let length = u8::try_from(comment.len() + 1).expect("comments are words of ours");
        self.bytes(kind, &[&[COMMENT, length], comment.as_bytes(), b"\0"].concat())
    }
}

/// One message that asks for something.
pub(crate) struct Request;

impl Request {
    /// The bytes of a request; `sequence` comes back with its answer.
    pub(crate) fn encode(kind: Kind, family: u8, sequence: u32, fill: impl FnOnce(&mut Attributes)) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, kind.number(), NLM_F_REQUEST, sequence, (family, 0), fill);
        bytes
    }
}

/// Changes that the kernel makes all at once, or not at all.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Which change has which sequence number: the first has 1.
    changes: Vec<String>,
    /// Where the last change begins.
    newest: usize,
}

impl Batch {
    /// Begins one that is refused if the rules are no longer those of this generation.
    pub(crate) fn begin(generation: u32) -> Self {
        let mut batch = Self { bytes: Vec::new(), changes: Vec::new(), newest: 0 };
        let head = (NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        append(&mut batch.bytes, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, head, |attributes| {
            attributes.number(NFNL_BATCH_GENID, generation);
        });
        batch
    }

    /// Adds a change; `what` names it in errors.
    pub(crate) fn add(&mut self, kind: Kind, family: u8, what: String, fill: impl FnOnce(&mut Attributes)) {
        self.changes.push(what);
        self.newest = self.bytes.len();
        let new = matches!(kind, Kind::NewTable | Kind::NewChain | Kind::NewRule);
        let flags = NLM_F_REQUEST | if new { NLM_F_CREATE | NLM_F_APPEND } else { 0 };
        let sequence = self.last();
        append(&mut self.bytes, kind.number(), flags, sequence, (family, 0), fill);
    }

    /// Its bytes, and what each change is. Success is told once, for the last change: an answer to each would not
    /// fit into the socket's buffer. Failures are always told.
    pub(crate) fn end(mut self) -> (Vec<u8>, Vec<String>) {
        if let Some(flags) = self.bytes.get_mut(self.newest + 6..self.newest + 8) {
            let told = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&told.to_ne_bytes());
        }
        let head = (NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        let sequence = self.last() + 1;
        append(&mut self.bytes, NFNL_MSG_BATCH_END, NLM_F_REQUEST, sequence, head, |_| {});
        (self.bytes, self.changes)
    }

    fn last(&self) -> u32 {
        u32::try_from(self.changes.len()).expect("few changes")
    }
}

fn append(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    (family, resource): (u8, u16),
    fill: impl FnOnce(&mut Attributes),
) {
    let mut attributes = Attributes::default();
    fill(&mut attributes);
    let length = u32::try_from(16 + 4 + attributes.0.len()).expect("messages are short");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // The sender's port: the kernel fills it in.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(&attributes.0);
}
