//! PEM files as they are found in the wild, made by `openssl`, and every way they can be wrong.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::{BACKEND, FRONTEND, Pki, files_in, pem, shop};
use crate::error::chain;
use crate::material::Material;
use crate::svid::Leaf;

/// A folder with a good identity of the frontend.
fn folder(pki: &Pki) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki.svid(FRONTEND, |_| {}).write(folder.path());
    fs::write(folder.path().join("bundle.pem"), pem("CERTIFICATE", &pki.certificate)).unwrap();
    folder
}

fn load(folder: &Path) -> Result<Material, String> {
    let loaded = crate::files::load(&files_in(folder), &shop(), None, SystemTime::now());
    loaded.map(|loaded| loaded.material).map_err(|error| chain(&error))
}

pub(super) fn openssl(folder: &Path, arguments: &str) {
    let status = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("openssl is installed").success(), "openssl {arguments}");
}

/// Has openssl make an authority and an SVID with a key made by `generate`.
fn by_openssl(generate: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(
        path.join("svid.cnf"),
        format!(
            "basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=URI:{FRONTEND},DNS:frontend\n"
        ),
    )
    .unwrap();
    openssl(path, "ecparam -name prime256v1 -genkey -noout -out ca.key");
    openssl(path, "req -x509 -new -key ca.key -subj /CN=authority -days 2 -out bundle.pem");
    openssl(path, generate);
    openssl(path, "req -new -key svid.key -subj /O=SPIFFE -out svid.csr");
    openssl(
        path,
        "x509 -req -in svid.csr -CA bundle.pem -CAkey ca.key -CAcreateserial -days 1 -extfile svid.cnf -out svid.pem",
    );
    folder
}

#[test]
fn every_usual_form_of_key_is_read() {
    let rows = [
        ("SEC1", "ecparam -name prime256v1 -genkey -noout -out svid.key", "BEGIN EC PRIVATE KEY"),
        ("SEC1 with its parameters", "ecparam -name prime256v1 -genkey -out svid.key", "BEGIN EC PARAMETERS"),
        (
            "PKCS#8, ECDSA P-384",
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out svid.key",
            "BEGIN PRIVATE KEY",
        ),
        ("PKCS#8, Ed25519", "genpkey -algorithm ED25519 -out svid.key", "BEGIN PRIVATE KEY"),
        ("PKCS#1", "genrsa -traditional -out svid.key 2048", "BEGIN RSA PRIVATE KEY"),
        ("PKCS#8, RSA", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out svid.key", "BEGIN PRIVATE KEY"),
    ];
    for (name, generate, form) in rows {
        let folder = by_openssl(generate);
        let key = fs::read_to_string(folder.path().join("svid.key")).unwrap();
        assert!(key.contains(form), "{name} is what openssl wrote");
        let material = load(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(material.leaf.id.as_str(), FRONTEND);
    }
}

#[test]
fn encrypted_and_binary_files_say_how_to_convert_them() {
    let key = "ecparam -name prime256v1 -genkey -noout -out plain.key";
    let rows = [
        ("PKCS#8 encrypted", "pkcs8 -topk8 -in plain.key -passout pass:x -out svid.key", "is encrypted"),
        ("SEC1 encrypted", "ec -aes128 -in plain.key -passout pass:x -out svid.key", "is encrypted"),
        ("key as DER", "ec -in plain.key -outform der -out svid.key", "openssl pkey -inform der"),
        ("certificate as DER", "x509 -in svid.pem -outform der -out svid.pem", "openssl x509 -inform der"),
        ("bundle as DER", "x509 -in bundle.pem -outform der -out bundle.pem", "openssl x509 -inform der"),
        ("P-521 is fine, secp256k1 is not", "ecparam -name secp256k1 -genkey -noout -out svid.key", "unusable"),
    ];
    let pki = Pki::new();
    for (name, convert, says) in rows {
        let folder = folder(&pki);
        openssl(folder.path(), key);
        openssl(folder.path(), convert);
        let error = load(folder.path()).err().unwrap_or_else(|| panic!("{name} passed"));
        assert!(error.contains(says) && error.contains(folder.path().to_str().unwrap()), "{name}: {error}");
    }
}

#[test]
fn every_mistake_names_its_file_and_what_to_do() {
    let pki = Pki::new();
    let other = Pki::new();
    let write = |folder: &Path, name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    type Spoil<'a> = Box<dyn Fn(&Path) + 'a>;
    let rows: Vec<(&str, Spoil<'_>, &[&str])> = vec![
        (
            "no certificate",
            Box::new(|f| fs::remove_file(f.join("svid.pem")).unwrap()),
            &["svid.pem", "does not exist", "mount"],
        ),
        (
            "no key",
            Box::new(|f| fs::remove_file(f.join("svid.key")).unwrap()),
            &["private key", "svid.key", "does not exist"],
        ),
        ("no bundle", Box::new(|f| fs::remove_file(f.join("bundle.pem")).unwrap()), &["trust bundle", "bundle.pem"]),
        (
            "a folder",
            Box::new(|f| {
                fs::remove_file(f.join("svid.key")).unwrap();
                fs::create_dir(f.join("svid.key")).unwrap();
            }),
            &["svid.key", "cannot be read by user", "no regular file"],
        ),
        (
            "a pipe that nobody writes",
            Box::new(|f| {
                fs::remove_file(f.join("svid.pem")).unwrap();
                assert!(Command::new("mkfifo").arg(f.join("svid.pem")).status().unwrap().success());
            }),
            &["svid.pem", "no regular file"],
        ),
        ("an empty file", Box::new(|f| write(f, "svid.pem", "")), &["svid.pem", "BEGIN CERTIFICATE", "no PEM at all"]),
        ("no PEM", Box::new(|f| write(f, "bundle.pem", "hello")), &["bundle.pem", "no PEM at all"]),
        (
            "key and certificate exchanged",
            Box::new(|f| {
                fs::rename(f.join("svid.pem"), f.join("x")).unwrap();
                fs::rename(f.join("svid.key"), f.join("svid.pem")).unwrap();
                fs::rename(f.join("x"), f.join("svid.key")).unwrap();
            }),
            &["svid.pem", "BEGIN CERTIFICATE", "holds only: PRIVATE KEY"],
        ),
        (
            "half a file",
            Box::new(|f| {
                let text = fs::read_to_string(f.join("svid.pem")).unwrap();
                write(f, "svid.pem", &text[..text.len() / 2]);
            }),
            &["svid.pem", "line", "still being written"],
        ),
        (
            "a certificate that is none",
            Box::new(|f| write(f, "svid.pem", &pem("CERTIFICATE", b"hello"))),
            &["svid.pem", "certificate 1", "X.509"],
        ),
        (
            "another's key",
            Box::new(|f| write(f, "svid.key", &pki.svid(FRONTEND, |_| {}).key.serialize_pem())),
            &["svid.key", "svid.pem", "does not belong"],
        ),
        (
            "a broken key",
            Box::new(|f| write(f, "svid.key", &pem("PRIVATE KEY", &[0x30, 1, 2]))),
            &["svid.key", "unusable"],
        ),
        (
            "another's bundle",
            Box::new(|f| write(f, "bundle.pem", &pem("CERTIFICATE", &other.certificate))),
            &["svid.pem", "bundle.pem", "does not chain", "right name but another key"],
        ),
        (
            "expired",
            Box::new(|f| {
                let earlier = |p: &mut rcgen::CertificateParams| (p.not_before, p.not_after) = (hours(-9), hours(-3));
                pki.svid(FRONTEND, earlier).write(f)
            }),
            &["svid.pem", "expired at 20", "3h 0m ago"],
        ),
        (
            "not yet valid",
            Box::new(|f| {
                let later = |p: &mut rcgen::CertificateParams| (p.not_before, p.not_after) = (hours(25), hours(30));
                pki.svid(FRONTEND, later).write(f)
            }),
            &["svid.pem", "not valid before 20", "in 1d 1h", "clock"],
        ),
        (
            "another trust domain",
            Box::new(|f| pki.svid("spiffe://other.example/ns/a/sa/b", |_| {}).write(f)),
            &["svid.pem", "spiffe://other.example/ns/a/sa/b", "shop.example"],
        ),
        (
            "no SPIFFE ID",
            Box::new(|f| pki.svid(FRONTEND, |p| p.subject_alt_names.clear()).write(f)),
            &["svid.pem", "no URI"],
        ),
        (
            "for clients only",
            Box::new(|f| {
                let client = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
                pki.svid(FRONTEND, |p| p.extended_key_usages = client.clone()).write(f)
            }),
            &["svid.pem", "extended key usage", "server"],
        ),
        (
            "a huge file",
            Box::new(|f| fs::File::create(f.join("svid.pem")).unwrap().set_len(1 << 30).unwrap()),
            &["svid.pem", "larger than"],
        ),
    ];
    for (name, spoil, says) in rows {
        let folder = folder(&pki);
        spoil(folder.path());
        let error = load(folder.path()).err().unwrap_or_else(|| panic!("{name} passed"));
        for part in says {
            assert!(error.contains(part), "{name}: `{error}` lacks `{part}`");
        }
        assert!(!error.contains('\n') && error.len() < 600, "{name}: {error}");
    }
}

fn hours(hours: i64) -> time::OffsetDateTime {
    // A few seconds more, for the test takes time too.
    time::OffsetDateTime::from(SystemTime::now())
        + time::Duration::hours(hours)
        + time::Duration::seconds(5 * hours.signum())
}

#[test]
fn an_intermediate_belongs_into_the_certificate_file() {
    let pki = Pki::new();
    let intermediate = pki.intermediate();
    let folder = folder(&pki);
    let mut pair = intermediate.svid(BACKEND, |_| {});
    pair.write(folder.path());
    assert!(load(folder.path()).err().unwrap().contains("intermediate"));
    pair.chain.push(intermediate.certificate.clone());
    pair.write(folder.path());
    assert_eq!(load(folder.path()).map(|m| m.leaf.id.to_string()).unwrap(), BACKEND);
}

#[test]
fn key_and_certificate_may_share_a_file() {
    let pki = Pki::new();
    let folder = folder(&pki);
    let both = fs::read_to_string(folder.path().join("svid.key")).unwrap()
        + &fs::read_to_string(folder.path().join("svid.pem")).unwrap();
    for name in ["svid.key", "svid.pem"] {
        fs::write(folder.path().join(name), &both).unwrap();
    }
    load(folder.path()).unwrap();
}

#[test]
fn dates_are_those_of_the_certificate() {
    let pki = Pki::new();
    let leaf = Leaf::parse(&pki.svid(FRONTEND, |_| {}).chain[0]).unwrap();
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap();
    assert_eq!(life, Duration::from_secs(3660));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_certificate_is_refused_or_read_but_never_panics(at in any::<prop::sample::Index>(), with: u8, cut in any::<prop::sample::Index>()) {
        let mut der = good_der().to_vec();
        let at = at.index(der.len());
        der[at] = with;
        let _ = Leaf::parse(&der);
        let _ = crate::svid::AuthorityFacts::parse(&der);
        let cut = cut.index(der.len());
        prop_assert!(Leaf::parse(&der[..cut]).is_err());
    }

    #[test]
    fn any_uri_is_a_spiffe_id_of_a_workload_or_refused(uri in "(spiffe://)?[ -~]{0,40}") {
        let params = |p: &mut rcgen::CertificateParams| {
            p.subject_alt_names = vec![rcgen::SanType::URI(uri.as_str().try_into().unwrap())];
        };
        let parsed = Leaf::parse(&test_pki().svid(FRONTEND, params).chain[0]);
        let valid = uri.parse::<outrigger_config::SpiffeId>().is_ok_and(|id| uri.len() > id.trust_domain().len() + 9);
        prop_assert_eq!(parsed.is_ok(), valid, "{}: {:?}", uri, parsed);
    }
}

fn test_pki() -> &'static Pki {
    static PKI: std::sync::OnceLock<Pki> = std::sync::OnceLock::new();
    PKI.get_or_init(Pki::new)
}

fn good_der() -> &'static [u8] {
    static DER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    DER.get_or_init(|| test_pki().svid(FRONTEND, |_| {}).chain[0].to_vec())
}
