//! A `CreateCertificate` message, and the signing request in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_authority::{CertificateRequest, CreateCertificate};

fuzz_target!(|message: &[u8]| {
    let id = "spiffe://shop.example/ns/shop/sa/frontend".parse().expect("it is an ID");
    let _ = CertificateRequest::parse(CreateCertificate::read(message).csr, &id);
});
