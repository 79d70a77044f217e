//! What a signature costs: `cargo run --release -p outrigger-authority --example signing_cost`.
//!
//! In: nothing. Out: certificates per second on this one thread, from a signing request's PEM to the certificate's,
//! apart from the token's review. Promise: each request is read, its signature verified, and its certificate new.

use std::time::{Duration, Instant, SystemTime};

use outrigger_authority::{CertificateRequest, Folder, Keeper, Timing};
use outrigger_identity::write_pem;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};

const DAY: Duration = Duration::from_secs(86400);
const FOR: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("signing-cost-{}", std::process::id()));
    let keeper =
        Keeper::new(Box::new(Folder::new(&folder)), "shop.example".parse()?, Timing::new(365 * DAY, 2 * DAY, DAY));
    let now = SystemTime::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signing = runtime.block_on(keeper.signing(now))?;
    let id = "spiffe://shop.example/ns/shop/sa/frontend".parse()?;
    for (name, algorithm) in
        [("P-256", &PKCS_ECDSA_P256_SHA256), ("Ed25519", &PKCS_ED25519), ("RSA 2048", &PKCS_RSA_SHA256)]
    {
        let key = KeyPair::generate_for(algorithm)?;
        let request = CertificateParams::default().serialize_request(&key)?.pem()?;
        let (begin, mut count, mut bytes) = (Instant::now(), 0u32, 0);
        while begin.elapsed() < FOR {
            let request = CertificateRequest::parse(request.as_bytes(), &id)?;
            let signed = signing.issuer.svid(&request, &id, DAY, now)?;
            bytes = write_pem("CERTIFICATE", &signed.certificate).len();
            count += 1;
        }
        let each = begin.elapsed() / count;
        println!("{name}: {:.0} certificates a second, {each:?} and {bytes} bytes each", 1.0 / each.as_secs_f64());
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
