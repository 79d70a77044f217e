//! The development authority, used by several at once, old, damaged and foreign.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, SystemTime};

use outrigger_config::{DevelopmentAuthority, TrustDomain};

use super::{Pki, pem, shop};
use crate::authority::Authority;
use crate::development;
use crate::error::{Error, chain};
use crate::snapshot::Snapshot;

const HOUR: Duration = Duration::from_secs(3600);
const TEN_YEARS: Duration = Duration::from_secs(3650 * 86400);

async fn open(folder: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Authority, Error> {
    Authority::open(folder, trust_domain, HOUR, now).await
}

fn settings(folder: &Path) -> DevelopmentAuthority {
    DevelopmentAuthority {
        directory: folder.into(),
        namespace: "shop".parse().unwrap(),
        service_account: "frontend".parse().unwrap(),
        ttl: outrigger_config::Duration(HOUR),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn many_at_once_make_one_authority() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("a/b");
    let barrier = Arc::new(Barrier::new(8));
    // A lock belongs to an open file, so threads hold one another off as processes do.
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (barrier, shared) = (barrier.clone(), shared.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                barrier.wait();
                let authority = runtime.block_on(open(&shared, &shop(), SystemTime::now()));
                authority.unwrap_or_else(|e| panic!("{}", chain(&e))).certificate().clone()
            })
        })
        .collect();
    let certificates: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(certificates.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!((mode(&shared), mode(&shared.join("ca.key")), mode(&shared.join("ca.pem"))), (0o700, 0o600, 0o644));
    let mut left: Vec<_> = fs::read_dir(&shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".lock", "ca.key", "ca.pem"]);
}

#[tokio::test]
async fn an_authority_that_ends_is_renewed_and_one_that_lives_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let first = open(folder.path(), &shop(), now).await.unwrap();
    let later = open(folder.path(), &shop(), now + TEN_YEARS - 2 * HOUR).await.unwrap();
    assert_eq!(first.certificate(), later.certificate());
    let renewed = open(folder.path(), &shop(), now + TEN_YEARS - HOUR / 2).await.unwrap();
    assert_ne!(first.certificate(), renewed.certificate());
    let again = open(folder.path(), &shop(), now + TEN_YEARS).await.unwrap();
    assert_eq!(renewed.certificate(), again.certificate());
}

#[tokio::test]
async fn what_a_crash_left_is_made_anew_and_what_is_damaged_is_not_touched() {
    let now = SystemTime::now();
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), &shop(), now).await.unwrap();
    // The new key was in place, its certificate not yet.
    fs::write(folder.path().join("ca.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let second = open(folder.path(), &shop(), now).await.unwrap();
    assert_ne!(first.certificate(), second.certificate());
    fs::remove_file(folder.path().join("ca.pem")).unwrap();
    open(folder.path(), &shop(), now).await.unwrap();

    for (file, text) in
        [("ca.pem", "junk".to_owned()), ("ca.key", "junk".to_owned()), ("ca.pem", pem("CERTIFICATE", b"x"))]
    {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), &shop(), now).await.unwrap();
        fs::write(folder.path().join(file), &text).unwrap();
        let error = chain(&open(folder.path(), &shop(), now).await.err().unwrap());
        assert!(error.contains(file) && error.contains("remove ca.pem and ca.key"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join(file)).unwrap(), text);
    }
}

#[tokio::test]
async fn an_authority_of_another_trust_domain_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), &"other.example".parse().unwrap(), SystemTime::now()).await.unwrap();
    let error = open(folder.path(), &shop(), SystemTime::now()).await.err().unwrap().to_string();
    assert!(error.contains("other.example") && error.contains("shop.example"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = open(&folder.path().join("file/ca"), &shop(), SystemTime::now()).await.err().unwrap();
    let text = chain(&error);
    assert!(
        text.contains("file/ca") && text.contains("create the folder") && text.contains("Not a directory"),
        "{text}"
    );
}

#[tokio::test]
async fn svids_are_good_short_lived_and_renewed_at_half_their_life() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let now = SystemTime::now();
    let load = |current: Option<Snapshot>, now| {
        let settings = settings.clone();
        async move { development::load(&settings, &shop(), current.as_ref(), now).await.unwrap() }
    };
    let material = load(None, now).await.unwrap();
    assert_eq!(material.leaf.id.as_str(), "spiffe://shop.example/ns/shop/sa/frontend");
    assert!(material.leaf.not_before <= now - Duration::from_secs(59));
    let left = material.leaf.not_after.duration_since(now).unwrap();
    assert!(left <= HOUR && left > HOUR - Duration::from_secs(2));

    let snapshot = || async { Snapshot::new(load(None, now).await.unwrap(), shop(), 1) };
    assert!(load(Some(snapshot().await), now + HOUR / 3).await.is_none(), "it is young");
    assert!(load(Some(snapshot().await), now + HOUR / 2).await.is_some(), "half its life is over");
    let mut other = settings.clone();
    other.service_account = "backend".parse().unwrap();
    let material = development::load(&other, &shop(), Some(&snapshot().await), now).await.unwrap();
    assert!(material.is_some(), "somebody else now");
    let old = snapshot().await;
    fs::remove_file(folder.path().join("ca.pem")).unwrap();
    assert!(load(Some(old), now).await.is_some(), "another authority");
}

#[tokio::test]
async fn openssl_accepts_its_svids_under_strict_rules() {
    let folder = tempfile::tempdir().unwrap();
    let material =
        development::load(&settings(folder.path()), &shop(), None, SystemTime::now()).await.unwrap().unwrap();
    fs::write(folder.path().join("svid.pem"), pem("CERTIFICATE", &material.credentials.cert[0])).unwrap();
    for purpose in ["sslclient", "sslserver"] {
        let output = std::process::Command::new("openssl")
            .args(["verify", "-x509_strict", "-check_ss_sig", "-purpose", purpose, "-CAfile", "ca.pem", "svid.pem"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{purpose}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn an_authority_made_by_hand_serves_too() {
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /C=NL/O=Shop/CN=mine"
                .split(' '),
        )
        .args("-keyout ca.key -out ca.pem".split(' '))
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success());
    let material = development::load(&settings(folder.path()), &shop(), None, SystemTime::now()).await;
    assert!(material.unwrap_or_else(|e| panic!("{}", chain(&e))).is_some());
    // Not an authority at all.
    let pair = Pki::new().svid(super::FRONTEND, |_| {});
    fs::write(folder.path().join("ca.pem"), pem("CERTIFICATE", &pair.chain[0])).unwrap();
    fs::write(folder.path().join("ca.key"), pair.key.serialize_pem()).unwrap();
    let error = chain(&open(folder.path(), &shop(), SystemTime::now()).await.err().unwrap());
    assert!(error.contains("not the certificate of an authority"), "{error}");
}
