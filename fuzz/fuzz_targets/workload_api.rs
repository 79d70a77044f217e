//! What an agent answers to `FetchX509SVID`, and the certificates in it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    if let Ok(told) = outrigger_enrol::svids(message) {
        for svid in &told.svids {
            assert!(!svid.spiffe_id.is_empty() && !svid.key.is_empty());
            let _ = svid.holds_certificates();
        }
    }
});
