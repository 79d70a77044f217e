//! The source `authority`, with a stand-in for the network: renewal, what is refused, and restarts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{IdentityAuthority, Secret, SpiffeId, TrustDomain};
use outrigger_runtime::{BoxError, BoxFuture};
use parking_lot::Mutex;
use rcgen::{CertificateSigningRequestParams, KeyPair};

use super::{FRONTEND, Pki, pem, shop, svid_params};
use crate::enrolment::{Asked, Enrolled, Enrolling, Enrolment, renew_at};
use crate::error::chain;
use crate::snapshot::Snapshot;

/// How the authority behaves.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    Away,
    OtherKey,
    OtherDomain,
    OtherRoots,
}

struct Signer {
    pki: Pki,
    other: Pki,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<(String, String)>>,
}

impl Signer {
    fn new() -> Arc<Self> {
        Arc::new(Self { pki: Pki::new(), other: Pki::new(), mood: Mutex::new(Mood::Good), asked: Mutex::default() })
    }

    fn sign(&self, asked: &Asked<'_>) -> Result<Enrolled, BoxError> {
        self.asked.lock().push((asked.token.expose().to_owned(), asked.request.to_owned()));
        let mood = *self.mood.lock();
        if mood == Mood::Away {
            return Err("it is away".into());
        }
        let id = if mood == Mood::OtherDomain { "spiffe://other.example/ns/shop/sa/frontend" } else { FRONTEND };
        let chain = if mood == Mood::OtherKey {
            self.pki.svid(id, |_| {}).chain
        } else {
            let mut request = CertificateSigningRequestParams::from_pem(asked.request)?;
            request.params = svid_params(id);
            vec![request.signed_by(self.pki.issuer())?.der().clone()]
        };
        let pki = if mood == Mood::OtherRoots { &self.other } else { &self.pki };
        Ok(Enrolled { chain, bundle: vec![pki.certificate.clone()] })
    }
}

impl Enrolment for Signer {
    fn subject(&self, _: &Secret, _: &TrustDomain) -> Option<SpiffeId> {
        FRONTEND.parse().ok()
    }

    fn enrol<'a>(&'a self, asked: Asked<'a>) -> BoxFuture<'a, Result<Enrolled, BoxError>> {
        Box::pin(async move { self.sign(&asked) })
    }
}

fn settings(folder: &Path, signer: &Signer, state: Option<&Path>) -> IdentityAuthority {
    fs::write(folder.join("ca.pem"), pem("CERTIFICATE", &signer.pki.certificate)).unwrap();
    fs::write(folder.join("token"), "first\n").unwrap();
    IdentityAuthority {
        address: "ca.example:15012".parse().unwrap(),
        ca_file: folder.join("ca.pem"),
        token_file: folder.join("token"),
        ttl: outrigger_config::Duration::from_secs(3600),
        timeout: outrigger_config::Duration::from_secs(1),
        state_directory: state.map(Into::into),
    }
}

async fn load(enrolling: &Enrolling, current: Option<&Snapshot>, now: SystemTime) -> Result<Option<Snapshot>, String> {
    let material = enrolling.load(&shop(), current, now).await.map_err(|error| chain(&error))?;
    Ok(material.map(|material| Snapshot::new(material, shop(), 1)))
}

#[tokio::test]
async fn a_certificate_is_renewed_after_half_its_life_with_the_token_of_that_day() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new();
    let enrolling = Enrolling::new(&settings(folder.path(), &signer, None), signer.clone()).unwrap();
    let now = SystemTime::now();
    let first = load(&enrolling, None, now).await.unwrap().unwrap();
    assert_eq!(first.spiffe_id.as_str(), FRONTEND);
    let life = first.not_after.duration_since(first.not_before).unwrap();
    let renewed_at = renew_at(&first).duration_since(first.not_before).unwrap();
    assert!(renewed_at >= life / 2 && renewed_at <= life / 2 + life / 10, "{renewed_at:?} of {life:?}");
    assert!(load(&enrolling, Some(&first), now + life / 3).await.unwrap().is_none(), "it is young");

    fs::write(folder.path().join("token"), "second\n").unwrap();
    let second = load(&enrolling, Some(&first), renew_at(&first)).await.unwrap().unwrap();
    let asked = signer.asked.lock().clone();
    assert_eq!(asked.iter().map(|(token, _)| token.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    assert_ne!(first.material().credentials.cert, second.material().credentials.cert);
    assert_ne!(asked[0].1, asked[1].1, "each certificate has a key of its own");
    // It asks for just the identity that its token proves.
    let csr = CertificateSigningRequestParams::from_pem(&asked[0].1).unwrap();
    assert_eq!(csr.params.subject_alt_names, svid_params(FRONTEND).subject_alt_names);
    // What another source gave is not taken for its own.
    let other = signer.pki.snapshot(FRONTEND);
    assert!(load(&enrolling, Some(&other), now).await.unwrap().is_some());
}

#[tokio::test]
async fn what_an_authority_gives_must_be_ours_and_verify() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new();
    let enrolling = Enrolling::new(&settings(folder.path(), &signer, None), signer.clone()).unwrap();
    for (mood, told) in [
        (Mood::Away, "the authority ca.example:15012: cannot get a certificate: it is away"),
        (Mood::OtherKey, "does not belong to"),
        (Mood::OtherDomain, "not of the trust domain `shop.example`"),
        (Mood::OtherRoots, "does not chain to the trust bundle of ca.example:15012"),
    ] {
        *signer.mood.lock() = mood;
        let error = load(&enrolling, None, SystemTime::now()).await.err().unwrap();
        assert!(error.contains(told), "{error}");
    }
    *signer.mood.lock() = Mood::Good;
    for (file, content, told) in
        [("token", " \n", "is empty"), ("ca.pem", "junk", "holds no"), ("token", "", "is empty")]
    {
        let before = fs::read(folder.path().join(file)).unwrap();
        fs::write(folder.path().join(file), content).unwrap();
        let error = load(&enrolling, None, SystemTime::now()).await.err().unwrap();
        assert!(error.contains(told) && error.contains(file), "{error}");
        fs::write(folder.path().join(file), before).unwrap();
    }
    fs::remove_file(folder.path().join("token")).unwrap();
    let error = load(&enrolling, None, SystemTime::now()).await.err().unwrap();
    assert!(error.contains("the token") && error.contains("does not exist"), "{error}");
}

#[tokio::test]
async fn a_restart_finds_what_was_kept_in_memory_and_disks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let state = memory.path().join("state");
    let signer = Signer::new();
    let settings = settings(folder.path(), &signer, Some(&state));
    let now = SystemTime::now();
    let first = load(&Enrolling::new(&settings, signer.clone()).unwrap(), None, now).await.unwrap().unwrap();
    let file = state.join("identity.pem");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    *signer.mood.lock() = Mood::Away;
    let restarted = Enrolling::new(&settings, signer.clone()).unwrap();
    let kept = load(&restarted, None, now).await.unwrap().unwrap();
    assert_eq!(kept.material().credentials.cert, first.material().credentials.cert);
    assert_eq!(kept.trust_bundle(), first.trust_bundle());
    assert!(load(&restarted, Some(&kept), now).await.unwrap().is_none(), "it is young still");
    // It has ended, or is damaged, or belongs to another key: then it is asked for anew.
    let good = fs::read_to_string(&file).unwrap();
    assert!(load(&restarted, None, first.not_after + Duration::from_secs(1)).await.is_err());
    for bad in [good.replacen("CERTIFICATE", "X", 2), good[..200].to_owned(), {
        let key_end = good.find("-----BEGIN CERTIFICATE").unwrap();
        KeyPair::generate().unwrap().serialize_pem() + &good[key_end..]
    }] {
        fs::write(&file, bad).unwrap();
        assert!(load(&restarted, None, now).await.is_err());
    }

    let on_disk = IdentityAuthority { state_directory: Some("/proc/self".into()), ..settings };
    let error = Enrolling::new(&on_disk, signer).unwrap_err().to_string();
    assert!(error.contains("/proc/self") && error.contains("not in memory"), "{error}");
}
