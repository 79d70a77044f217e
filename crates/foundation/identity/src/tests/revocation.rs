//! Revocation lists as `openssl ca` makes them: who is refused, who passes, and which lists are none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use outrigger_config::IdentityFiles;

use super::files::openssl;
use super::handshake::handshake;
use super::{BACKEND, FRONTEND, shop};
use crate::error::chain;
use crate::files::load;
use crate::snapshot::{PeerPolicy, Snapshot};
use crate::{tls_error_reason, tls_error_text};

const CA: &str = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\npolicy=p\n\
                  new_certs_dir=.\nrand_serial=yes\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n[p]\n";

/// An authority that `openssl ca` keeps in a folder: `ca.pem`, `ca.key`, and what it issued.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        Self::named("test")
    }

    fn named(name: &str) -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        let path = authority.path();
        fs::write(path.join("index"), "").unwrap();
        fs::write(path.join("number"), "01").unwrap();
        fs::write(path.join("ca.cnf"), CA).unwrap();
        openssl(path, "ecparam -name prime256v1 -genkey -noout -out ca.key");
        openssl(path, &format!("req -x509 -new -key ca.key -subj /CN={name} -days 2 -out ca.pem"));
        authority
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Issues `name.pem` and `name.key`; with `CA:true` it is an authority's.
    fn issue(&self, name: &str, extensions: &str) {
        let path = self.path();
        fs::write(path.join("ext"), extensions).unwrap();
        openssl(path, &format!("ecparam -name prime256v1 -genkey -noout -out {name}.key"));
        openssl(path, &format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        openssl(
            path,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile ext -out {name}.pem"
            ),
        );
    }

    fn svid(&self, name: &str, id: &str) -> &Self {
        self.issue(
            name,
            &format!(
                "basicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\nsubjectAltName=URI:{id}\n"
            ),
        );
        self
    }

    /// Revokes what was issued under these names, and writes the list into a file.
    fn revoke(&self, names: &[&str], file: &str, arguments: &str) -> PathBuf {
        let common = "-config ca.cnf -keyfile ca.key -cert ca.pem";
        for name in names {
            openssl(self.path(), &format!("ca {common} -revoke {name}.pem"));
        }
        openssl(self.path(), &format!("ca {common} -gencrl {arguments} -out {file}"));
        self.path().join(file)
    }

    fn files(&self, name: &str, crl: &[PathBuf]) -> IdentityFiles {
        IdentityFiles {
            certificate: self.path().join(format!("{name}.pem")),
            key: self.path().join(format!("{name}.key")),
            trust_bundle: self.path().join("ca.pem"),
            crl: crl.to_vec(),
            crl_required: false,
        }
    }

    fn snapshot(&self, name: &str, crl: &[PathBuf]) -> Snapshot {
        snapshot(&self.files(name, crl))
    }
}

fn snapshot(files: &IdentityFiles) -> Snapshot {
    let loaded = load(files, &shop(), None, SystemTime::now()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    Snapshot::new(loaded.material, shop(), 1)
}

/// What a backend and a frontend say of each other.
async fn meet(backend: &Snapshot, frontend: &Snapshot) -> (String, String) {
    let server = backend.server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    let client = frontend.client_config(&[BACKEND.parse().unwrap()], &[]).unwrap();
    let (served, called) = handshake(server, client).await;
    let said = |error: Option<std::io::Error>| match error {
        None => "ok".to_owned(),
        Some(error) => format!("{}: {}", tls_error_reason(&error), tls_error_text(&error)),
    };
    (said(served.err()), said(called.err()))
}

#[tokio::test]
async fn who_is_revoked_is_refused_as_client_and_as_server_and_nobody_else() {
    let pki = Authority::new();
    pki.svid("backend", BACKEND).svid("frontend", FRONTEND).svid("other", FRONTEND);
    let before = pki.revoke(&[], "empty.crl", "-crldays 1");
    let (backend, frontend) = (pki.snapshot("backend", &[before]), pki.snapshot("frontend", &[]));
    assert_eq!(meet(&backend, &frontend).await, ("ok".into(), "ok".into()), "nobody is revoked yet");

    for form in ["pem", "der"] {
        let revoked: &[&str] = if form == "pem" { &["frontend"] } else { &[] };
        let mut list = pki.revoke(revoked, "list.pem", "-crldays 1");
        if form == "der" {
            openssl(pki.path(), "crl -in list.pem -outform der -out list.der");
            list = pki.path().join("list.der");
        }
        let backend = pki.snapshot("backend", std::slice::from_ref(&list));
        let (served, called) = meet(&backend, &frontend).await;
        assert_eq!(served, "revoked: peer's certificate, or an authority above it, was revoked", "{form}");
        assert!(called.contains("refused_by_peer") && called.contains("CertificateRevoked"), "{form}: {called}");
        let other = pki.snapshot("other", &[]);
        assert_eq!(meet(&backend, &other).await, ("ok".into(), "ok".into()), "{form}: of the same name, not revoked");
    }
    // The other way round: the client refuses the server.
    let list = pki.revoke(&["backend"], "list.pem", "-crldays 1");
    let frontend = pki.snapshot("other", &[list]);
    let (served, called) = meet(&pki.snapshot("backend", &[]), &frontend).await;
    assert!(called.starts_with("revoked"), "{called}");
    assert!(served.contains("CertificateRevoked"), "{served}");
}

#[tokio::test]
async fn a_revoked_authority_takes_all_below_it_along() {
    let pki = Authority::new();
    pki.svid("backend", BACKEND);
    pki.issue("middle", "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n");
    let below = Authority::new();
    for name in ["middle.pem", "middle.key"] {
        let to = below.path().join(name.replace("middle", "ca"));
        fs::copy(pki.path().join(name), to).unwrap();
    }
    below.svid("frontend", FRONTEND);
    let chain = [below.path().join("frontend.pem"), below.path().join("ca.pem")];
    let chain: String = chain.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    fs::write(below.path().join("frontend.pem"), chain).unwrap();
    fs::copy(pki.path().join("ca.pem"), below.path().join("root.pem")).unwrap();
    let mut files = below.files("frontend", &[]);
    files.trust_bundle = below.path().join("root.pem");
    let frontend = snapshot(&files);
    assert_eq!(meet(&pki.snapshot("backend", &[]), &frontend).await.0, "ok");
    let list = pki.revoke(&["middle"], "list.pem", "-crldays 1");
    let (served, _) = meet(&pki.snapshot("backend", std::slice::from_ref(&list)), &frontend).await;
    assert!(served.starts_with("revoked"), "{served}");

    // One's own authority may issue a list too, though only the root is trusted.
    files.crl = vec![list, below.revoke(&[], "own.pem", "-crldays 1")];
    files.crl_required = true;
    assert!(snapshot(&files).material().is_revoked(SystemTime::now()), "we know that we are revoked ourselves");
}

#[tokio::test]
async fn a_session_from_before_does_not_outlive_the_list() {
    let pki = Authority::new();
    pki.svid("backend", BACKEND).svid("frontend", FRONTEND);
    let frontend = pki.snapshot("frontend", &[]);
    let client = frontend.client_config(&[BACKEND.parse().unwrap()], &[]).unwrap();
    let open = pki.snapshot("backend", &[]).server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    let (served, _) = handshake(Arc::clone(&open), Arc::clone(&client)).await;
    assert!(served.is_ok());
    let (_, called) = handshake(open, Arc::clone(&client)).await;
    assert_eq!(called.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "it has a ticket");
    let list = pki.revoke(&["frontend"], "list.pem", "-crldays 1");
    let closed = pki.snapshot("backend", &[list]).server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    let (served, _) = handshake(closed, client).await;
    assert_eq!(tls_error_reason(&served.err().unwrap()), "revoked");
}

#[tokio::test]
async fn without_a_list_or_with_an_old_one_peers_pass_unless_lists_are_required() {
    let (pki, other) = (Authority::new(), Authority::named("other"));
    pki.svid("backend", BACKEND);
    other.svid("frontend", FRONTEND);
    for authority in [&pki, &other] {
        let both = [pki.path().join("ca.pem"), other.path().join("ca.pem")];
        let both: String = both.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        fs::write(authority.path().join("bundle.pem"), both).unwrap();
    }
    let ours = pki.revoke(&[], "list.pem", "-crldays 1");
    let theirs = other.revoke(&[], "list.pem", "-crldays 1");
    let old = other.revoke(&[], "old.pem", "-crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z");
    let mut frontend = other.files("frontend", &[]);
    frontend.trust_bundle = other.path().join("bundle.pem");
    let frontend = snapshot(&frontend);
    for (name, crl, required, expected) in [
        ("no list of theirs", vec![ours.clone()], false, "ok"),
        ("no list of theirs, required", vec![ours.clone()], true, "no_revocation_list: an authority above"),
        ("a list of each, required", vec![ours.clone(), theirs], true, "ok"),
        ("an old one", vec![ours.clone(), old.clone()], false, "ok"),
        (
            "an old one, required",
            vec![ours, old],
            true,
            "no_revocation_list: an authority above peer's certificate has no revocation list newer than 2020-01-02T00:00:00Z",
        ),
    ] {
        let mut files = pki.files("backend", &crl);
        files.trust_bundle = pki.path().join("bundle.pem");
        files.crl_required = required;
        let (served, _) = meet(&snapshot(&files), &frontend).await;
        assert!(served.starts_with(expected), "{name}: {served}");
    }
}

#[test]
fn lists_that_cannot_be_held_against_anybody_are_errors() {
    let (pki, foreign, namesake) = (Authority::new(), Authority::named("foreign"), Authority::new());
    pki.svid("backend", BACKEND);
    let broken = |name: &str, text: &str| {
        let path = pki.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let good = fs::read_to_string(pki.revoke(&[], "good.pem", "-crldays 1")).unwrap();
    fs::write(pki.path().join("ca.cnf"), CA.replace("crl_extensions=e\n", "").replace("crlnumber=number\n", ""))
        .unwrap();
    let first = pki.revoke(&[], "first.pem", "-crldays 1");
    for (name, path, says) in [
        ("missing", pki.path().join("none.pem"), "does not exist"),
        ("a certificate", pki.path().join("ca.pem"), "holds no `-----BEGIN X509 CRL-----`; it holds only: CERTIFICATE"),
        ("cut off", broken("cut.pem", &good[..good.len() / 2]), "the file ends within a block"),
        (
            "noise",
            broken("noise.pem", "-----BEGIN X509 CRL-----\nAAEC\n-----END X509 CRL-----\n"),
            "list 1: it is no X.509 revocation list",
        ),
        (
            "of nobody we trust",
            foreign.revoke(&[], "list.pem", "-crldays 1"),
            "issued by `CN=foreign`, which is neither in the trust bundle",
        ),
        ("of a namesake", namesake.revoke(&[], "list.pem", "-crldays 1"), "its signature is not that of `CN=test`"),
        ("version 1", first, "it is of version 1"),
    ] {
        let path_text = path.display().to_string();
        let error = load(&pki.files("backend", &[path]), &shop(), None, SystemTime::now());
        let error = chain(&error.err().unwrap_or_else(|| panic!("{name} passed")));
        assert!(error.contains(says) && error.contains(&path_text), "{name}: {error}");
    }
}

#[test]
fn an_authority_whose_key_is_not_for_lists_may_not_issue_any() {
    let pki = Authority::new();
    openssl(
        pki.path(),
        "req -x509 -new -key ca.key -subj /CN=test -days 2 -addext keyUsage=critical,keyCertSign -out ca.pem",
    );
    pki.svid("backend", BACKEND);
    let list = pki.revoke(&[], "list.pem", "-crldays 1");
    let error = load(&pki.files("backend", &[list]), &shop(), None, SystemTime::now()).err().unwrap();
    assert!(chain(&error).contains("lacks cRLSign"), "{}", chain(&error));
}

#[test]
fn what_is_remembered_ends_with_a_list_that_is_required() {
    let pki = Authority::new();
    pki.svid("backend", BACKEND);
    let mut files = pki.files("backend", &[pki.revoke(&[], "list.pem", "-crldays 1")]);
    for required in [false, true] {
        files.crl_required = required;
        let until = snapshot(&files).material().revocation.good_until();
        assert_eq!(until.is_some_and(|until| until < SystemTime::now() + Duration::from_secs(86_400)), required);
    }
}

/// A list as DER.
static LIST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let pki = Authority::new();
    pki.svid("revoked", FRONTEND).revoke(&["revoked"], "list.pem", "-crldays 1");
    openssl(pki.path(), "crl -in list.pem -outform der -out list.der");
    fs::read(pki.path().join("list.der")).unwrap()
});

proptest::proptest! {
    #[test]
    fn no_bytes_make_reading_a_list_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), cut in 0usize..400) {
        let _ = crate::revocation::fuzz_list(&bytes);
        // A list that was cut, or has bytes changed, is nearer to what might.
        let mut near = LIST.to_vec();
        for (at, byte) in bytes.iter().enumerate().step_by(7) {
            near[(at * 31 + usize::from(*byte)) % LIST.len()] = *byte;
        }
        let _ = crate::revocation::fuzz_list(&near[..cut.min(near.len())]);
        let _ = crate::revocation::fuzz_list(&near);
    }
}

#[test]
fn a_bad_list_holds_up_no_rotation_and_the_last_good_ones_stay() {
    let pki = Authority::new();
    pki.svid("backend", BACKEND).svid("frontend", FRONTEND);
    let list = pki.revoke(&["frontend"], "list.pem", "-crldays 1");
    let files = pki.files("backend", std::slice::from_ref(&list));
    let before = load(&files, &shop(), None, SystemTime::now()).unwrap_or_else(|error| panic!("{error}")).material;
    fs::write(&list, "-----BEGIN X509 CRL-----\n").unwrap();
    pki.svid("backend", BACKEND);
    let after = load(&files, &shop(), Some(&before.revocation), SystemTime::now()).unwrap_or_else(|e| panic!("{e}"));
    assert!(after.problem.unwrap().to_string().contains("list.pem"), "it is told");
    assert!(!after.material.same_as(&before), "the certificate is new");
    assert!(after.material.revocation.same_as(&before.revocation), "the lists are the old ones");
    let until = before.revocation.next_updates().next().unwrap().1;
    assert!(until > SystemTime::now() + Duration::from_secs(80_000), "{until:?}");
}
