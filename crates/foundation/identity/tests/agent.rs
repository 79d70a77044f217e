//! The component beside an agent that serves the Workload API: what it tells, when it is away, and what it may not tell.
//!
//! The agent here is a stand-in for the network; the real thing is in the end-to-end tests.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{Config, Identity, IdentityWorkloadApi, WorkloadEndpoint};
use outrigger_identity::{Identities, IdentityComponent, Snapshot, SvidStream, WorkloadApi, X509Svid, X509Svids};
use outrigger_runtime::{BoxError, BoxFuture, Component, Context, Standalone};
use outrigger_telemetry::{Format, Registry};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

const PATIENCE: Duration = Duration::from_secs(20);
const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";
const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";

/// What an agent does when it is asked, and while it is listened to.
#[derive(Clone)]
enum Mood {
    Away(&'static str),
    Gives { svids: Vec<Told>, lists: Vec<Vec<u8>> },
}

#[derive(Clone)]
struct Told {
    id: &'static str,
    certificates: Vec<u8>,
    key: Vec<u8>,
    bundle: Vec<u8>,
    hint: &'static str,
}

struct Agent(watch::Sender<Mood>);

impl Agent {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Mood::Away("no such socket"))))
    }

    fn give(&self, svids: &[Told]) {
        self.give_with(svids, &[]);
    }

    fn give_with(&self, svids: &[Told], lists: &[Vec<u8>]) {
        self.0.send_replace(Mood::Gives { svids: svids.to_vec(), lists: lists.to_vec() });
    }

    fn leave(&self, why: &'static str) {
        self.0.send_replace(Mood::Away(why));
    }
}

impl WorkloadApi for Agent {
    fn open<'a>(
        &'a self,
        _: &'a WorkloadEndpoint,
        _: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn SvidStream>, BoxError>> {
        let mut mood = self.0.subscribe();
        mood.mark_changed();
        Box::pin(async { Ok(Box::new(Stream(mood)) as Box<dyn SvidStream>) })
    }
}

struct Stream(watch::Receiver<Mood>);

impl SvidStream for Stream {
    fn next(&mut self) -> BoxFuture<'_, Result<X509Svids, BoxError>> {
        Box::pin(async {
            self.0.changed().await?;
            match self.0.borrow_and_update().clone() {
                Mood::Away(why) => Err(why.into()),
                Mood::Gives { svids, lists } => Ok(X509Svids {
                    svids: svids
                        .into_iter()
                        .map(|told| X509Svid {
                            spiffe_id: told.id.to_owned(),
                            certificates: told.certificates,
                            key: Zeroizing::new(told.key),
                            bundle: told.bundle,
                            hint: told.hint.to_owned(),
                        })
                        .collect(),
                    revocation_lists: lists,
                }),
            }
        })
    }
}

struct Pki {
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "SPIRE");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn told(&self, id: &'static str, hint: &'static str) -> Told {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificates = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Told { id, certificates, key: key.serialize_der(), bundle: self.certificate.clone(), hint }
    }

    fn list(&self) -> Vec<u8> {
        let now = SystemTime::now();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[7]),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

struct Running {
    identities: Identities,
    outside: Standalone,
    registry: Registry,
    task: JoinHandle<Result<(), BoxError>>,
}

impl Running {
    fn start(agent: &Arc<Agent>, settings: IdentityWorkloadApi) -> Self {
        let endpoint_socket = Some(WorkloadEndpoint::Unix("/run/agent.sock".into()));
        let identity = Identity {
            trust_domain: "shop.example".parse().unwrap(),
            files: None,
            authority: None,
            own_authority: None,
            workload_api: Some(IdentityWorkloadApi { endpoint_socket, ..settings }),
            development: None,
        };
        let (component, identities) = IdentityComponent::new();
        let component = component.with_workload_api(agent.clone());
        let (context, outside) = Context::standalone(Config { identity: Some(identity), ..Config::default() }, 0);
        let registry = context.registry.clone();
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and awaits it in `stop`")]
        let task = tokio::spawn(async move { component.run(context).await });
        Self { identities, outside, registry, task }
    }

    async fn status(&self, state: &str, part: &str) -> String {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (now, reason) = self.outside.status();
            if now == state && reason.contains(part) {
                return reason;
            }
            assert!(tokio::time::Instant::now() < until, "still `{now}`: {reason}; not `{state}` with `{part}`");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn generation(&self, least: u64) -> Arc<Snapshot> {
        let mut receiver = self.identities.subscribe();
        let wanted = |snapshot: &Option<Arc<Snapshot>>| snapshot.as_ref().is_some_and(|s| s.generation >= least);
        let found = tokio::time::timeout(PATIENCE, receiver.wait_for(wanted)).await.expect("no new generation");
        found.unwrap().clone().unwrap()
    }

    fn current(&self) -> Arc<Snapshot> {
        self.identities.current().unwrap()
    }

    async fn stop(self) {
        self.outside.stop.request(tokio::time::Instant::now() + Duration::from_secs(1));
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_an_agent_tells_is_taken_and_stays_while_it_is_away() {
    let (agent, pki) = (Agent::new(), Pki::new());
    let running = Running::start(&agent, IdentityWorkloadApi::default());
    running.status("waiting", "the Workload API unix:///run/agent.sock: no such socket").await;
    let first = pki.told(FRONTEND, "");
    agent.give(&[first.clone(), pki.told(BACKEND, "")]);
    assert_eq!(running.generation(1).await.spiffe_id.as_str(), FRONTEND, "the first counts");
    running.status("ready", "").await;

    // It rotates, with another root beside the first.
    let mut second = pki.told(FRONTEND, "");
    second.bundle.extend(Pki::new().certificate);
    agent.give(std::slice::from_ref(&second));
    let taken = running.generation(2).await;
    assert_eq!(taken.trust_bundle().len(), 2);
    assert_eq!(taken.certificates()[0].to_vec(), second.certificates);

    agent.leave("it ended the stream");
    running.status("degraded", "keeping the certificate valid until").await;
    running.status("degraded", "it ended the stream").await;
    assert_eq!(running.current().generation, 2);
    // The same again is no rotation.
    agent.give(&[second]);
    running.status("ready", "").await;
    assert_eq!(running.current().generation, 2);

    let mut text = Vec::new();
    running.registry.encode(Format::Text, &mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("outrigger_identity_rotations_total{result=\"ok\"} 2"), "{text}");
    running.stop().await;
}

#[tokio::test]
async fn what_is_unusable_takes_nothing_away() {
    let (agent, pki) = (Agent::new(), Pki::new());
    let running = Running::start(&agent, IdentityWorkloadApi::default());
    let good = pki.told(FRONTEND, "");
    agent.give(std::slice::from_ref(&good));
    running.generation(1).await;
    let other = Pki::new();
    let rows: [(Told, &str); 6] = [
        (Told { key: pki.told(FRONTEND, "").key, ..good.clone() }, "does not belong"),
        (Told { bundle: other.certificate.clone(), ..good.clone() }, "does not chain"),
        (Told { key: b"junk".to_vec(), ..good.clone() }, "is unusable"),
        (
            Told { bundle: b"junk".to_vec(), ..good.clone() },
            "the trust bundle of unix:///run/agent.sock, certificate 1",
        ),
        (Told { id: BACKEND, ..good.clone() }, "it gives a certificate of spiffe://shop.example/ns/shop/sa/frontend"),
        (pki.told("spiffe://other.example/frontend", ""), "not of the trust domain `shop.example`"),
    ];
    for (bad, told) in rows {
        agent.give(&[bad]);
        running.status("degraded", told).await;
        assert_eq!(running.current().generation, 1, "{told}");
    }
    agent.give(std::slice::from_ref(&good));
    running.status("ready", "").await;

    // Lists are held to; those of other authorities are not for us; a bad one costs no rotation.
    agent.give_with(std::slice::from_ref(&good), &[pki.list(), other.list()]);
    assert_eq!(running.generation(2).await.certificates()[0].to_vec(), good.certificates);
    running.status("ready", "").await;
    let next = pki.told(FRONTEND, "");
    agent.give_with(std::slice::from_ref(&next), &[b"junk".to_vec()]);
    running.status("degraded", "the revocation list of unix:///run/agent.sock").await;
    assert_eq!(running.current().certificates()[0].to_vec(), next.certificates);
    agent.give(&[next]);
    running.status("ready", "").await;
    running.stop().await;
}

#[tokio::test]
async fn of_several_identities_the_config_chooses() {
    let (agent, pki) = (Agent::new(), Pki::new());
    let (internal, external) = (pki.told(FRONTEND, "internal"), pki.told(BACKEND, "external"));
    for (settings, wanted) in [
        (IdentityWorkloadApi { hint: Some("external".to_owned()), ..Default::default() }, "the hint `external`"),
        (IdentityWorkloadApi { spiffe_id: Some(BACKEND.parse().unwrap()), ..Default::default() }, BACKEND),
    ] {
        agent.give(std::slice::from_ref(&internal));
        let running = Running::start(&agent, settings);
        let reason = running.status("waiting", wanted).await;
        assert!(reason.contains(&format!("it gives {FRONTEND} (`internal`)")), "{reason}");
        agent.give(&[internal.clone(), external.clone()]);
        assert_eq!(running.generation(1).await.spiffe_id.as_str(), BACKEND);
        // The one that we use was taken back: it stays, and the reason is told.
        agent.give(std::slice::from_ref(&internal));
        running.status("degraded", wanted).await;
        assert_eq!(running.current().spiffe_id.as_str(), BACKEND);
        running.stop().await;
    }
}
