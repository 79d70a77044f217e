//! The component as the runtime sees it: files that come, change and spoil; SVIDs that rotate and expire.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the failure")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_config::{
    Cluster, ClusterTls, Config, DevelopmentAuthority, Identity, IdentityFiles, Proxy, ProxyLimits,
};
use outrigger_identity::{Identities, IdentityComponent, PeerPolicy, Snapshot, peer_id};
use outrigger_runtime::{BoxError, Component, Context, Standalone};
use outrigger_telemetry::{Format, Registry};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const PATIENCE: Duration = Duration::from_secs(20);
const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";

/// A running component.
struct Running {
    component: Arc<IdentityComponent>,
    identities: Identities,
    outside: Standalone,
    registry: Registry,
    task: JoinHandle<Result<(), BoxError>>,
}

impl Running {
    fn start(identity: Identity) -> Self {
        Self::start_component(identity, IdentityComponent::new())
    }

    fn start_component(identity: Identity, (component, identities): (IdentityComponent, Identities)) -> Self {
        let component = Arc::new(component);
        let (context, outside) = Context::standalone(config(identity), 0);
        let registry = context.registry.clone();
        let runs = component.clone();
        #[expect(clippy::disallowed_methods, reason = "the test owns the task and awaits it in `stop`")]
        let task = tokio::spawn(async move { runs.run(context).await });
        Self { component, identities, outside, registry, task }
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

    fn metrics(&self) -> String {
        let mut text = Vec::new();
        self.registry.encode(Format::Text, &mut text);
        String::from_utf8(text).unwrap()
    }

    async fn stop(self) {
        self.outside.stop.request(tokio::time::Instant::now() + Duration::from_secs(1));
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn config(identity: Identity) -> Config {
    Config { identity: Some(identity), ..Config::default() }
}

fn from_files(folder: &Path) -> Identity {
    let path = |name: &str| folder.join(name);
    let files = IdentityFiles {
        certificate: path("svid.pem"),
        key: path("svid.key"),
        trust_bundle: path("bundle.pem"),
        crl: Vec::new(),
        crl_required: false,
    };
    Identity {
        trust_domain: "shop.example".parse().unwrap(),
        files: Some(files),
        authority: None,
        own_authority: None,
        workload_api: None,
        development: None,
    }
}

fn development(folder: &Path, account: &str, ttl: Duration) -> Identity {
    let settings = DevelopmentAuthority {
        directory: folder.into(),
        namespace: "shop".parse().unwrap(),
        service_account: account.parse().unwrap(),
        ttl: outrigger_config::Duration(ttl),
    };
    Identity {
        trust_domain: "shop.example".parse().unwrap(),
        files: None,
        authority: None,
        own_authority: None,
        workload_api: None,
        development: Some(settings),
    }
}

/// An authority and the SVIDs it issues, as PEM.
struct Pki {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn svid(&self, life: Duration) -> (String, String) {
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(2)).into();
        params.not_after = (now + life).into();
        params.subject_alt_names = vec![SanType::URI(FRONTEND.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, folder: &Path, life: Duration) {
        let (certificate, key) = self.svid(life);
        fs::write(folder.join("bundle.pem"), &self.pem).unwrap();
        fs::write(folder.join("svid.pem"), certificate).unwrap();
        fs::write(folder.join("svid.key"), key).unwrap();
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn files_that_come_late_change_and_spoil() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let running = Running::start(from_files(folder.path()));
    running.status("waiting", "svid.pem does not exist").await;
    assert!(running.identities.current().is_none());

    let pki = Pki::new();
    pki.write(folder.path(), HOUR);
    let first = running.generation(1).await;
    running.status("ready", "").await;
    assert_eq!(first.spiffe_id.as_str(), FRONTEND);

    // A new certificate whose key is not there yet: the old pair stays, as a whole.
    let (certificate, key) = pki.svid(2 * HOUR);
    fs::write(at("svid.pem"), certificate).unwrap();
    running.status("degraded", "does not belong").await;
    assert_eq!(running.identities.current().unwrap().generation, 1);
    fs::write(at("svid.key"), key).unwrap();
    running.status("ready", "").await;
    let second = running.identities.current().unwrap();
    assert_eq!(second.generation, 2);
    assert!(second.not_after > first.not_after);

    // The same bytes again are no rotation.
    let same = fs::read(at("svid.pem")).unwrap();
    fs::write(at("svid.pem"), b"-----BEGIN").unwrap();
    running.status("degraded", "svid.pem").await;
    fs::write(at("svid.pem"), same).unwrap();
    running.status("ready", "").await;
    assert_eq!(running.identities.current().unwrap().generation, 2);

    // Everything gone: the last good identity stays.
    for name in ["svid.pem", "svid.key", "bundle.pem"] {
        fs::remove_file(at(name)).unwrap();
    }
    running.status("degraded", "does not exist").await;
    assert_eq!(running.identities.current().unwrap().generation, 2);

    let metrics = running.metrics();
    assert!(metrics.contains("outrigger_identity_rotations_total{result=\"ok\"} 2"), "{metrics}");
    assert!(metrics.contains(&format!("outrigger_identity_not_after_timestamp_seconds{{spiffe_id=\"{FRONTEND}\"}}")));
    running.stop().await;
}

#[tokio::test]
async fn a_bundle_that_grows_is_a_new_generation() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    pki.write(folder.path(), HOUR);
    let running = Running::start(from_files(folder.path()));
    assert_eq!(running.generation(1).await.trust_bundle().len(), 1);
    fs::write(folder.path().join("bundle.pem"), format!("{}\n{}", pki.pem, Pki::new().pem)).unwrap();
    assert_eq!(running.generation(2).await.trust_bundle().len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn a_swap_of_kubernetes_data_link_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let version = |name: &str| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        pki.write(&folder, HOUR);
    };
    version("..1");
    std::os::unix::fs::symlink("..1", folder.path().join("..data")).unwrap();
    for name in ["svid.pem", "svid.key", "bundle.pem"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
    }
    let running = Running::start(from_files(folder.path()));
    running.generation(1).await;
    version("..2");
    std::os::unix::fs::symlink("..2", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    running.generation(2).await;
    running.status("ready", "").await;
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_that_expires_is_not_ready_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    pki.write(folder.path(), Duration::from_secs(5));
    let running = Running::start(from_files(folder.path()));
    running.status("ready", "").await;
    let reason = running.status("waiting", "expired at 20").await;
    assert!(reason.contains(FRONTEND) && reason.contains("issue a new one"), "{reason}");
    pki.write(folder.path(), HOUR);
    running.status("ready", "").await;
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_of_the_future_is_taken_when_its_time_has_come() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    pki.write(folder.path(), HOUR);
    let mut params = CertificateParams::default();
    params.not_before = (SystemTime::now() + Duration::from_secs(2)).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params.subject_alt_names = vec![SanType::URI(FRONTEND.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &pki.issuer).unwrap().pem();
    fs::write(folder.path().join("svid.pem"), certificate).unwrap();
    fs::write(folder.path().join("svid.key"), key.serialize_pem()).unwrap();
    let running = Running::start(from_files(folder.path()));
    running.status("waiting", "not valid before").await;
    // No file changes: it is the retry that notices.
    running.status("ready", "").await;
    running.stop().await;
}

#[tokio::test]
async fn development_identities_rotate_and_trust_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca");
    let ttl = Duration::from_secs(6);
    let frontend = Running::start(development(&authority, "frontend", ttl));
    let backend = Running::start(development(&authority, "backend", ttl));
    for generation in [1, 3] {
        let (client, server) = (frontend.generation(generation).await, backend.generation(generation).await);
        meet(&client, &server).await;
    }
    // The authority is made anew: all take new SVIDs of the new one.
    let old = frontend.identities.current().unwrap().trust_bundle().to_vec();
    fs::remove_file(authority.join("ca.pem")).unwrap();
    let renewed = async |running: &Running| {
        let mut receiver = running.identities.subscribe();
        let found = receiver.wait_for(|s| s.as_ref().is_some_and(|s| s.trust_bundle() != old));
        tokio::time::timeout(PATIENCE, found).await.expect("no new authority").unwrap().clone().unwrap()
    };
    let (client, server) = (renewed(&frontend).await, renewed(&backend).await);
    assert_eq!(client.trust_bundle(), server.trust_bundle());
    meet(&client, &server).await;
    frontend.stop().await;
    backend.stop().await;
}

async fn meet(client: &Snapshot, server: &Snapshot) {
    let accept =
        server.server_config(&PeerPolicy::Only(vec![client.spiffe_id.clone().into()]), &[b"http/1.1"]).unwrap();
    let call = client.client_config(&[server.spiffe_id.clone().into()], &[b"http/1.1"]).unwrap();
    let (near, far) = tokio::io::duplex(64 << 10);
    let serve = async {
        let mut stream = TlsAcceptor::from(accept).accept(far).await.unwrap();
        stream.write_u8(1).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(peer_id(stream.get_ref().1.peer_certificates()).as_ref(), Some(&client.spiffe_id));
    };
    let call = async {
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let mut stream = TlsConnector::from(call).connect(name, near).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 1);
        assert_eq!(peer_id(stream.get_ref().1.peer_certificates()).as_ref(), Some(&server.spiffe_id));
    };
    tokio::join!(serve, call);
}

#[tokio::test]
async fn openssl_is_served_with_both_versions_and_only_with_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    pki.write(folder.path(), HOUR);
    let running = Running::start(from_files(folder.path()));
    let server = running.generation(1).await.server_config(&PeerPolicy::TrustDomain, &[b"http/1.1"]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for (version, certificate, passes) in [
        ("-tls1_3", true, true),
        ("-tls1_2", true, true),
        ("-tls1_3", false, false),
        ("-tls1_2", false, false),
        ("-tls1_1", true, false),
    ] {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["s_client", "-connect", &address, version, "-CAfile", "bundle.pem", "-verify_return_error"]);
        openssl.args(["-alpn", "http/1.1", "-ign_eof"]).current_dir(folder.path());
        if certificate {
            openssl.args(["-cert", "svid.pem", "-key", "svid.key"]);
        }
        let openssl = tokio::task::spawn_blocking(move || openssl.stdin(std::process::Stdio::null()).output().unwrap());
        let (stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let served = async {
            let mut stream = TlsAcceptor::from(server.clone()).accept(stream).await?;
            stream.write_all(b"hello from the other side").await?;
            stream.shutdown().await
        };
        let served = tokio::time::timeout(PATIENCE, served).await.unwrap();
        assert_eq!(served.is_ok(), passes, "{version} {certificate}: {served:?}");
        let output = openssl.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.contains("hello from the other side"), passes, "{version} {certificate}: {text}");
        assert!(!passes || text.contains("Verification: OK") && text.contains("ALPN protocol: http/1.1"), "{text}");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_reload_changes_who_we_are() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(development(folder.path(), "frontend", HOUR));
    running.generation(1).await;
    // A change elsewhere in the config is none of ours.
    let mut other = config(development(folder.path(), "frontend", HOUR));
    other.runtime.workers = Some(1);
    running.outside.config.send_replace(Arc::new(other));
    running.outside.config.send_replace(Arc::new(config(development(folder.path(), "backend", HOUR))));
    let second = running.generation(2).await;
    assert_eq!(second.spiffe_id.as_str(), "spiffe://shop.example/ns/shop/sa/backend");
    assert_eq!(second.generation, 2);
    let metrics = running.metrics();
    let series =
        |account: &str| format!("_timestamp_seconds{{spiffe_id=\"spiffe://shop.example/ns/shop/sa/{account}\"}}");
    assert!(metrics.contains(&series("backend")) && !metrics.contains(&series("frontend")), "{metrics}");
    running.stop().await;
}

#[tokio::test]
async fn the_preflight_lets_a_start_wait_and_refuses_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start(development(&folder.path().join("ca"), "frontend", HOUR));
    let component = &running.component;
    let good = config(development(&folder.path().join("ca"), "frontend", HOUR));
    let missing = config(from_files(folder.path()));
    component.check(None, &missing).unwrap();
    component.check(Some(&missing), &missing).unwrap();
    let error = component.check(Some(&good), &missing).unwrap_err().to_string();
    assert!(error.contains("svid.pem does not exist"), "{error}");
    Pki::new().write(folder.path(), HOUR);
    component.check(Some(&good), &missing).unwrap();

    let mut foreign = good.clone();
    let mut cluster = Cluster::new("backend".parse().unwrap(), vec!["127.0.0.1:1".parse().unwrap()]);
    let spiffe_ids = vec!["spiffe://other.example/x".parse().unwrap()];
    cluster.tls = Some(ClusterTls { spiffe_ids, ..ClusterTls::default() });
    foreign.proxy = Some(Proxy {
        listeners: vec![],
        clusters: vec![cluster],
        zone: None,
        discovery: None,
        rate_limit_service: None,
        mask_headers: Vec::new(),
        session_keys: Vec::new(),
        access_log: None,
        limits: ProxyLimits::default(),
    });
    let error = component.check(None, &foreign).unwrap_err().to_string();
    assert!(error.contains("spiffe://other.example/x") && error.contains("shop.example"), "{error}");
    running.stop().await;
}
