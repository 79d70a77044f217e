//! A certificate signing request that a workload sends: whatever it is, nothing panics, and one that asks for another
//! identity is not granted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_authority::CertificateRequest;

fuzz_target!(|der: &[u8]| {
    let own = "spiffe://shop.example/ns/shop/sa/frontend".parse().expect("it is an ID");
    let other = "spiffe://shop.example/ns/shop/sa/frontend2".parse().expect("it is an ID");
    let granted = CertificateRequest::parse_der(der, &own).is_ok();
    // What names an identity can be granted to that one alone.
    if granted && der.windows(8).any(|part| part == b"frontend") {
        assert!(CertificateRequest::parse_der(der, &other).is_err());
    }
});
