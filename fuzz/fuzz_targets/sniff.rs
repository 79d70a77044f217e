//! The first bytes of a connection: decided in time, for good, and as the parsers see it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_wire::sniff::{LONGEST, Sniff, sniff};
use outrigger_wire::{hello, preamble};

fuzz_target!(|bytes: &[u8]| {
    let mut decided = Sniff::Undecided;
    for end in 0..=bytes.len().min(LONGEST + 8) {
        let now = sniff(&bytes[..end]);
        assert!(decided == Sniff::Undecided || now == decided, "{now:?} after {decided:?}");
        assert!(end < LONGEST || now != Sniff::Undecided);
        decided = now;
    }
    match decided {
        Sniff::Tls => assert_ne!(hello::parse(bytes), Err(hello::HelloError::NotTls)),
        Sniff::ProxyV1 | Sniff::ProxyV2 => {
            assert_ne!(preamble::parse(bytes), Err(preamble::PreambleError::NotProxy));
        }
        _ => {}
    }
});
