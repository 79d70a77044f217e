//! The ids of a trace, and what is known of it.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

/// The id of a trace; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub(crate) u128);

/// The id of a span; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub(crate) u64);

impl TraceId {
    /// A trace of its own.
    pub fn random() -> Self {
        loop {
            let id = (u128::from(random()) << 64) | u128::from(random());
            if id != 0 {
                return Self(id);
            }
        }
    }

    /// As bytes in network order.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// As 32 lower-case hexadecimal digits.
    pub fn to_hex(self) -> [u8; 32] {
        let mut out = [0; 32];
        hex(&self.to_bytes(), &mut out);
        out
    }
}

impl SpanId {
    /// A span of its own.
    pub fn random() -> Self {
        loop {
            let id = random();
            if id != 0 {
                return Self(id);
            }
        }
    }

    /// As bytes in network order.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// As 16 lower-case hexadecimal digits.
    pub fn to_hex(self) -> [u8; 16] {
        let mut out = [0; 16];
        hex(&self.to_bytes(), &mut out);
        out
    }
}

/// What a request says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span; `None` where it decides for a trace without having a span in it.
    pub parent: Option<SpanId>,
    /// Whether the caller keeps it; `None` when it left that to us.
    pub sampled: Option<bool>,
    /// The other flags of `traceparent`, such as that the id is random.
    pub flags: u8,
}

fn hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Good enough for ids, for nothing that must be hard to guess (SplitMix64 from a seed of the system's, per thread).
pub(crate) fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(std::process::id()));
    }
    STATE.with(|state| {
        let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(seed);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
