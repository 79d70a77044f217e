//! Signing requests as OpenSSL makes them, good and bad, and what becomes of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use outrigger_config::SpiffeId;

use crate::document::{make, to_pem};
use crate::request::{CertificateRequest, MAX_REQUEST, Refusal};

const ID: &str = "spiffe://shop.example/ns/shop/sa/frontend";
const DAY: Duration = Duration::from_secs(86400);

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A request with a key of this kind, these extensions, and more arguments.
fn request(folder: &Path, key: &str, extensions: &str, more: &str) -> Vec<u8> {
    openssl(folder, &format!("genpkey -out key.pem {key}"));
    let config = format!(
        "[req]\ndistinguished_name=dn\nprompt=no\nreq_extensions=ext\n[dn]\nCN=anything\n[ext]\n{extensions}\n"
    );
    fs::write(folder.join("req.cnf"), config).unwrap();
    openssl(folder, &format!("req -new -key key.pem -config req.cnf -out req.pem {more}"));
    fs::read(folder.join("req.pem")).unwrap()
}

fn id() -> SpiffeId {
    ID.parse().unwrap()
}

#[test]
fn requests_of_every_kind_of_key_become_svids_that_openssl_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let now = SystemTime::now();
    let root = make(&"shop.example".parse().unwrap(), 10 * DAY, now, now).unwrap();
    fs::write(folder.join("root.pem"), to_pem([&root.material.certificate])).unwrap();
    let san = format!("subjectAltName=URI:{ID}");
    for (key, extensions, more) in [
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-256", san.as_str(), ""),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-256", "basicConstraints=CA:FALSE", "-sha384"),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-384", san.as_str(), "-sha384"),
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:2048", "keyUsage=digitalSignature", ""),
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:3072", san.as_str(), "-sha512"),
        ("-algorithm ED25519", san.as_str(), ""),
    ] {
        let request = CertificateRequest::parse(&request(folder, key, extensions, more), &id());
        let request = request.unwrap_or_else(|refusal| panic!("{key}: {refusal}"));
        let issuer = root.material.issuer.as_ref().unwrap();
        let signed = issuer.svid(&request, &id(), DAY, now).unwrap();
        fs::write(folder.join("svid.pem"), to_pem([&signed.certificate])).unwrap();
        for purpose in ["sslclient", "sslserver"] {
            openssl(folder, &format!("verify -x509_strict -check_ss_sig -purpose {purpose} -CAfile root.pem svid.pem"));
        }
        // It is the caller's key, and nothing of his subject.
        openssl(folder, "x509 -in svid.pem -noout -pubkey -out public.pem");
        openssl(folder, "pkey -in key.pem -pubout -out mine.pem");
        assert_eq!(fs::read(folder.join("public.pem")).unwrap(), fs::read(folder.join("mine.pem")).unwrap(), "{key}");
        let text =
            Command::new("openssl").args(["x509", "-in", "svid.pem", "-noout", "-text"]).current_dir(folder).output();
        let text = String::from_utf8(text.unwrap().stdout).unwrap();
        let serial = signed.serial.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
        for part in [&format!("URI:{ID}"), "Digital Signature", &serial.collect::<Vec<_>>().join(":"), "CA:FALSE"] {
            assert!(text.contains(part), "{key}: {part} in {text}");
        }
        assert!(!text.contains("anything") && !text.contains("Cert Sign"), "{key}: {text}");
    }
}

#[test]
fn what_asks_for_more_is_refused_and_says_what_for() {
    let folder = tempfile::tempdir().unwrap();
    let p256 = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
    let own = format!("URI:{ID}");
    let other = |asked: &str| Refusal::OtherIdentity { asked: asked.to_owned() };
    for (key, extensions, more, refusal) in [
        (
            p256,
            "subjectAltName=URI:spiffe://shop.example/ns/shop/sa/admin",
            "",
            other("spiffe://shop.example/ns/shop/sa/admin"),
        ),
        (
            p256,
            &format!("subjectAltName={own},URI:spiffe://shop.example/ns/shop/sa/admin"),
            "",
            other("spiffe://shop.example/ns/shop/sa/admin"),
        ),
        (p256, &format!("subjectAltName={own},DNS:shop.example"), "", other("DNSName(shop.example)")),
        (
            p256,
            "subjectAltName=URI:spiffe://other.example/ns/shop/sa/frontend",
            "",
            other("spiffe://other.example/ns/shop/sa/frontend"),
        ),
        (p256, "basicConstraints=CA:TRUE", "", Refusal::Authority),
        (p256, "keyUsage=keyCertSign", "", Refusal::Authority),
        (p256, "nameConstraints=permitted;DNS:x", "", Refusal::Extension("2.5.29.30".to_owned())),
        (p256, "basicConstraints=CA:FALSE", "-sha1", Refusal::Signature),
        ("-algorithm RSA -pkeyopt rsa_keygen_bits:1024", "basicConstraints=CA:FALSE", "", Refusal::KeyKind),
        ("-algorithm EC -pkeyopt ec_paramgen_curve:P-521", "basicConstraints=CA:FALSE", "", Refusal::KeyKind),
        ("-algorithm ED448", "basicConstraints=CA:FALSE", "", Refusal::KeyKind),
    ] {
        let request = request(folder.path(), key, extensions, more);
        assert_eq!(CertificateRequest::parse(&request, &id()).unwrap_err(), refusal, "{key} {extensions} {more}");
    }
}

#[test]
fn what_is_no_request_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = request(folder.path(), "-algorithm ED25519", "basicConstraints=CA:FALSE", "");
    let refused = |bytes: &[u8]| CertificateRequest::parse(bytes, &id()).unwrap_err();
    assert_eq!(refused(b""), Refusal::Malformed);
    assert_eq!(
        refused(b"-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"),
        Refusal::Malformed
    );
    assert_eq!(refused(&vec![b'x'; MAX_REQUEST + 1]), Refusal::TooLarge);
    openssl(folder.path(), "req -in req.pem -outform der -out req.der");
    let der = fs::read(folder.path().join("req.der")).unwrap();
    let key = CertificateRequest::parse(&good, &id()).unwrap().key;
    // Nothing that is signed can be changed. How the signature itself is wrapped is not signed.
    for at in 0..der.len() {
        let mut bad = der.clone();
        bad[at] ^= 4;
        let pem = outrigger_identity::write_pem("CERTIFICATE REQUEST", &bad);
        let signed = at < der.len() - 64 - 12;
        let read = CertificateRequest::parse(pem.as_bytes(), &id());
        assert!(read.is_err() || !signed && read.unwrap().key == key, "byte {at} of {}", der.len());
    }
    for cut in 0..der.len() {
        let pem = outrigger_identity::write_pem("CERTIFICATE REQUEST", &der[..cut]);
        assert_eq!(refused(pem.as_bytes()), Refusal::Malformed, "cut at {cut}");
    }
}
