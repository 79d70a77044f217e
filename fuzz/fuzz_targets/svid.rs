//! A certificate that a peer presents; whatever it is, it names at most one valid SPIFFE ID.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|der: &[u8]| {
    if let Some(id) = outrigger_identity::peer_id(Some(&[CertificateDer::from(der)])) {
        let again: outrigger_identity::SpiffeId = id.as_str().parse().expect("an ID that was accepted is valid");
        assert_eq!(again, id);
    }
});
