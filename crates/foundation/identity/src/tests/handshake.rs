//! Real handshakes: who passes, who does not, and what is said of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoClientAuth;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig,
    SignatureScheme,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::{BACKEND, FRONTEND, Pki};
use crate::error::Error;
use crate::public::{algorithms, provider};
use crate::snapshot::{PeerPolicy, Snapshot};
use crate::{peer_id, tls_error_reason, tls_error_text};

pub(super) type Ends =
    (Result<server::TlsStream<DuplexStream>, std::io::Error>, Result<client::TlsStream<DuplexStream>, std::io::Error>);

/// One handshake, and a byte each way so that tickets and late refusals arrive.
pub(super) async fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Ends {
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = ServerName::try_from("no.such.name").unwrap();
    let serve = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        Ok(stream)
    };
    let call = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    tokio::join!(serve, call)
}

/// Believes every server: stands for a peer that we do not control.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn raw_client(own: Option<Arc<CertifiedKey>>, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    Arc::new(match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
        None => builder.with_no_client_auth(),
    })
}

fn raw_server(own: Arc<CertifiedKey>, version: &'static rustls::SupportedProtocolVersion) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(Arc::new(NoClientAuth))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    Arc::new(config)
}

fn days_from_now(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from(SystemTime::now()) + time::Duration::days(days)
}

fn only(id: &str) -> PeerPolicy {
    PeerPolicy::Only(vec![id.parse().unwrap()])
}

type Change = fn(&mut CertificateParams);

/// What is done to an otherwise good SVID of the frontend, the label and a part of the text.
const BAD: &[(&str, Change, &str, &str)] = &[
    ("expired", |p| (p.not_before, p.not_after) = (days_from_now(-9), days_from_now(-1)), "expired", "1d 0h ago"),
    (
        "not yet valid",
        |p| (p.not_before, p.not_after) = (days_from_now(2), days_from_now(3)),
        "not_yet_valid",
        "not valid before",
    ),
    (
        "another trust domain",
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://evil.example/ns/shop/sa/frontend".try_into().unwrap())],
        "wrong_trust_domain",
        "spiffe://evil.example/ns/shop/sa/frontend, which is not of the trust domain `shop.example`",
    ),
    (
        "a trust domain that begins with ours",
        |p| {
            p.subject_alt_names =
                vec![SanType::URI("spiffe://shop.example.evil/ns/shop/sa/frontend".try_into().unwrap())]
        },
        "wrong_trust_domain",
        "shop.example.evil",
    ),
    (
        "somebody else",
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://shop.example/ns/shop/sa/x".try_into().unwrap())],
        "unexpected_peer",
        "peer presented spiffe://shop.example/ns/shop/sa/x, expected spiffe://shop.example/ns/shop/sa/frontend",
    ),
    (
        "two URIs, the right one first",
        |p| p.subject_alt_names.push(SanType::URI(BACKEND.try_into().unwrap())),
        "not_an_svid",
        "2 URIs",
    ),
    (
        "a DNS name only",
        |p| p.subject_alt_names = vec![SanType::DnsName("frontend".try_into().unwrap())],
        "not_an_svid",
        "no URI",
    ),
    ("no name at all", |p| p.subject_alt_names.clear(), "not_an_svid", "no URI"),
    (
        "another scheme",
        |p| p.subject_alt_names = vec![SanType::URI("https://shop.example/ns/shop/sa/frontend".try_into().unwrap())],
        "not_an_svid",
        "not a SPIFFE ID",
    ),
    (
        "a URI made to break our log",
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://shop.example/a\nlevel=ERROR".try_into().unwrap())],
        "not_an_svid",
        "shop.example/a\\nlevel=ERROR",
    ),
    (
        "a whole trust domain",
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://shop.example".try_into().unwrap())],
        "not_an_svid",
        "not a workload",
    ),
    (
        "an authority",
        |p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            p.key_usages.push(KeyUsagePurpose::KeyCertSign);
        },
        "not_an_svid",
        "authority",
    ),
    (
        "a key that signs certificates",
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        "not_an_svid",
        "keyCertSign",
    ),
    ("a key that signs CRLs", |p| p.key_usages.push(KeyUsagePurpose::CrlSign), "not_an_svid", "cRLSign"),
    ("no key usage", |p| p.key_usages.clear(), "not_an_svid", "digitalSignature"),
    ("a wrong key usage", |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement], "not_an_svid", "digitalSignature"),
    (
        "a usage that is neither",
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        "not_an_svid",
        "extended key usage",
    ),
];

#[tokio::test]
async fn a_server_refuses_every_bad_client() {
    let pki = Pki::new();
    let server = pki.snapshot(BACKEND).server_config(&only(FRONTEND), &[]).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (name, change, reason, text) in BAD {
            let bad = pki.svid(FRONTEND, change);
            let client = raw_client(Some(bad.certified()), version);
            let (served, called) = handshake(server.clone(), client).await;
            let error = served.err().unwrap_or_else(|| panic!("{name} passed"));
            assert_eq!(tls_error_reason(&error), *reason, "{name}: {error}");
            assert!(tls_error_text(&error).contains(text), "{name}: {}", tls_error_text(&error));
            let refused = called.err().unwrap_or_else(|| panic!("{name} was served"));
            assert_eq!(tls_error_reason(&refused), "refused_by_peer", "{name}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_client_refuses_every_bad_server() {
    let pki = Pki::new();
    let client = pki.snapshot(BACKEND).client_config(&[FRONTEND.parse().unwrap()], &[]).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (name, change, reason, text) in BAD {
            let bad = pki.svid(FRONTEND, change);
            let (_, called) = handshake(raw_server(bad.certified(), version), client.clone()).await;
            let error = called.err().unwrap_or_else(|| panic!("{name} passed"));
            assert_eq!(tls_error_reason(&error), *reason, "{name}: {error}");
            assert!(tls_error_text(&error).contains(text), "{name}: {}", tls_error_text(&error));
        }
    }
}

#[tokio::test]
async fn the_usage_must_fit_the_end() {
    let pki = Pki::new();
    let own = pki.snapshot(BACKEND);
    let server_only = pki.svid(FRONTEND, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let client_only = pki.svid(FRONTEND, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let neither = pki.svid(FRONTEND, |p| p.extended_key_usages.clear());
    let version = &rustls::version::TLS13;
    for (pair, as_client, as_server) in [(server_only, false, true), (client_only, true, false), (neither, true, true)]
    {
        let server = own.server_config(&only(FRONTEND), &[]).unwrap();
        let (served, _) = handshake(server, raw_client(Some(pair.certified()), version)).await;
        assert_eq!(served.is_ok(), as_client);
        let client = own.client_config(&[FRONTEND.parse().unwrap()], &[]).unwrap();
        let (_, called) = handshake(raw_server(pair.certified(), version), client).await;
        assert_eq!(called.is_ok(), as_server);
    }
}

#[tokio::test]
async fn signatures_of_strangers_and_no_certificate_are_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let own = pki.snapshot(BACKEND);
    let server = own.server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    let stranger = other.svid(FRONTEND, |_| {});
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let rows = [(Some(stranger.certified()), ["unknown_issuer", "bad_signature"]), (None, ["no_certificate"; 2])];
        for (certificate, reasons) in rows {
            let (served, _) = handshake(server.clone(), raw_client(certificate, version)).await;
            let error = served.err().unwrap();
            assert!(reasons.contains(&tls_error_reason(&error)), "{error}");
        }
    }
    // Both ends are ours, of two authorities with the same name.
    let client = other.snapshot(FRONTEND).client_config(&[BACKEND.parse().unwrap()], &[]).unwrap();
    assert!(handshake(server, client).await.1.is_err());
}

#[tokio::test]
async fn good_peers_meet_with_post_quantum_keys_and_see_each_other() {
    let pki = Pki::new();
    let (frontend, backend) = (pki.snapshot(FRONTEND), pki.snapshot(BACKEND));
    let client = frontend.client_config(&[BACKEND.parse().unwrap()], &[b"http/1.1"]).unwrap();
    for policy in [PeerPolicy::TrustDomain, only(FRONTEND)] {
        let server = backend.server_config(&policy, &[b"h2", b"http/1.1"]).unwrap();
        let (served, called) = handshake(server, client.clone()).await;
        let (served, called) = (served.unwrap(), called.unwrap());
        let (there, here) = (served.get_ref().1, called.get_ref().1);
        assert_eq!(peer_id(there.peer_certificates()).unwrap().as_str(), FRONTEND);
        assert_eq!(peer_id(here.peer_certificates()).unwrap().as_str(), BACKEND);
        assert_eq!(here.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(here.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(here.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn a_chain_over_an_intermediate_is_followed() {
    let pki = Pki::new();
    let intermediate = pki.intermediate();
    let server = pki.snapshot(BACKEND).server_config(&only(FRONTEND), &[]).unwrap();
    let mut pair = intermediate.svid(FRONTEND, |_| {});
    let client = |pair: &super::Pair| raw_client(Some(pair.certified()), &rustls::version::TLS13);
    assert_eq!(
        tls_error_reason(&handshake(server.clone(), client(&pair)).await.0.err().unwrap()),
        "unknown_issuer",
        "without the intermediate"
    );
    pair.chain.push(intermediate.certificate.clone());
    assert!(handshake(server, client(&pair)).await.0.is_ok());
}

async fn kind(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> HandshakeKind {
    let (served, called) = handshake(server.clone(), client.clone()).await;
    assert!(peer_id(served.unwrap().get_ref().1.peer_certificates()).is_some(), "a resumed peer is known, too");
    called.unwrap().get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn sessions_are_resumed_under_the_same_config_only() {
    let pki = Pki::new();
    let (frontend, backend) = (pki.snapshot(FRONTEND), pki.snapshot(BACKEND));
    let expected = [BACKEND.parse().unwrap()];
    let client = frontend.client_config(&expected, &[]).unwrap();
    let server = backend.server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    assert_eq!(kind(&server, &client).await, HandshakeKind::Full);
    assert_eq!(kind(&server, &client).await, HandshakeKind::Resumed);

    let stricter = backend.server_config(&only(FRONTEND), &[]).unwrap();
    assert_eq!(kind(&stricter, &client).await, HandshakeKind::Full, "another policy");
    let rotated = pki.snapshot(BACKEND).server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    assert_eq!(kind(&rotated, &client).await, HandshakeKind::Full, "another generation of the server");
    let rotated = pki.snapshot(FRONTEND).client_config(&expected, &[]).unwrap();
    assert_eq!(kind(&server, &rotated).await, HandshakeKind::Full, "another generation of the client");
}

#[tokio::test]
async fn a_resumed_session_does_not_carry_over_to_a_policy_that_excludes_the_peer() {
    let pki = Pki::new();
    let (frontend, backend) = (pki.snapshot(FRONTEND), pki.snapshot(BACKEND));
    let client = frontend.client_config(&[BACKEND.parse().unwrap()], &[]).unwrap();
    let open = backend.server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    assert_eq!(kind(&open, &client).await, HandshakeKind::Full);
    let closed = backend.server_config(&only(BACKEND), &[]).unwrap();
    let (served, _) = handshake(closed, client).await;
    assert_eq!(tls_error_reason(&served.err().unwrap()), "unexpected_peer");
}

#[test]
fn configs_are_built_once_per_policy_and_alpn() {
    let snapshot = Pki::new().snapshot(BACKEND);
    let server = |policy: &PeerPolicy, alpn: &[&[u8]]| snapshot.server_config(policy, alpn).unwrap();
    let first = server(&PeerPolicy::TrustDomain, &[b"http/1.1"]);
    assert!(Arc::ptr_eq(&first, &server(&PeerPolicy::TrustDomain, &[b"http/1.1"])));
    assert!(!Arc::ptr_eq(&first, &server(&PeerPolicy::TrustDomain, &[])));
    assert!(!Arc::ptr_eq(&first, &server(&only(FRONTEND), &[b"http/1.1"])));
    let expected = [FRONTEND.parse().unwrap()];
    let client = snapshot.client_config(&expected, &[]).unwrap();
    assert!(Arc::ptr_eq(&client, &snapshot.client_config(&expected, &[]).unwrap()));
}

#[test]
fn policies_that_can_admit_nobody_are_errors() {
    let snapshot = Pki::new().snapshot(BACKEND);
    assert!(matches!(snapshot.client_config(&[], &[]), Err(Error::NoPeer)));
    assert!(matches!(snapshot.server_config(&PeerPolicy::Only(vec![]), &[]), Err(Error::NoPeer)));
    let foreign = snapshot.server_config(&only("spiffe://other/x"), &[]).unwrap_err().to_string();
    assert!(foreign.contains("spiffe://other/x") && foreign.contains("shop.example"), "{foreign}");
    assert_eq!(PeerPolicy::allowing(&[]), PeerPolicy::TrustDomain);
    assert_eq!(PeerPolicy::allowing(&[FRONTEND.parse().unwrap()]), only(FRONTEND));
}

#[tokio::test]
async fn plain_text_and_silence_have_their_own_labels() {
    let server = Pki::new().snapshot(BACKEND).server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    let (mut near, far) = tokio::io::duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let error = TlsAcceptor::from(server.clone()).accept(far).await.err().unwrap();
    assert_eq!(tls_error_reason(&error), "not_tls");
    assert!(tls_error_text(&error).contains("does not speak TLS"), "{}", tls_error_text(&error));

    let (near, far) = tokio::io::duplex(1024);
    drop(near);
    let error = TlsAcceptor::from(server).accept(far).await.err().unwrap();
    assert_eq!(tls_error_reason(&error), "closed");
    assert_eq!(tls_error_reason(&std::io::Error::from(std::io::ErrorKind::TimedOut)), "timeout");
    assert_eq!(tls_error_reason(&TlsError::NoApplicationProtocol), "no_common_parameters");
}

#[test]
fn nothing_of_the_key_is_in_debug() {
    let snapshot: Snapshot = Pki::new().snapshot(BACKEND);
    let text = format!("{snapshot:?} {:?}", snapshot.server_config(&PeerPolicy::TrustDomain, &[]).unwrap());
    assert!(text.starts_with("Snapshot { spiffe_id: \"spiffe://shop.example/ns/shop/sa/backend\""), "{text}");
    assert!(snapshot.not_after > SystemTime::now() + Duration::from_secs(3000));
}

#[tokio::test]
async fn a_chain_that_passed_is_held_to_its_time_and_to_the_policy() {
    let pki = Pki::new();
    let pair = pki.svid(FRONTEND, |p| p.not_after = (SystemTime::now() + Duration::from_secs(100)).into());
    let (leaf, now) = (&pair.chain[0], UnixTime::now());
    let later = |seconds: u64| UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + seconds));
    let known = crate::known::KnownChains::default();
    let digest = |end: &str| crate::known::digest(&[leaf], end).unwrap();
    assert_eq!(known.find(&digest("client"), now), None);
    known.remember(digest("client"), &FRONTEND.parse().unwrap(), &[leaf], None);
    assert_eq!(known.find(&digest("client"), later(90)).unwrap().as_str(), FRONTEND);
    assert_eq!(known.find(&digest("client"), later(102)), None, "expired");
    assert_eq!(known.find(&digest("client"), UnixTime::since_unix_epoch(Duration::from_secs(1))), None, "not yet");
    assert_eq!(known.find(&digest("server"), now), None, "at the other end another usage is needed");
    let soon = SystemTime::now() + Duration::from_secs(50);
    known.remember(digest("client"), &FRONTEND.parse().unwrap(), &[leaf], Some(soon));
    assert_eq!(known.find(&digest("client"), later(60)), None, "a list that is required is over");
    // Whoever shows a known chain without having its key gets nowhere.
    let server = pki.snapshot(BACKEND).server_config(&only(FRONTEND), &[]).unwrap();
    let client = |own| raw_client(Some(own), &rustls::version::TLS13);
    assert!(handshake(server.clone(), client(pair.certified())).await.0.is_ok());
    let thief = Arc::new(CertifiedKey::new(pair.chain.clone(), pki.svid(FRONTEND, |_| {}).certified().key.clone()));
    assert!(handshake(server, client(thief)).await.0.is_err());
}

#[tokio::test]
async fn between_sidecars_the_cheaper_cipher_is_taken_whatever_the_client_prefers() {
    let pki = Pki::new();
    let (frontend, backend) = (pki.snapshot(FRONTEND), pki.snapshot(BACKEND));
    let server = backend.server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    let ours = frontend.client_config(&[BACKEND.parse().unwrap()], &[]).unwrap();
    let other = raw_client(Some(pki.svid(FRONTEND, |_| {}).certified()), &rustls::version::TLS13);
    let mut provider = (**other.crypto_provider()).clone();
    provider.cipher_suites.reverse();
    let other = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(other.client_auth_cert_resolver.clone());
    for client in [ours, Arc::new(other)] {
        let (_, called) = handshake(server.clone(), client).await;
        let suite = called.unwrap().get_ref().1.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}

#[tokio::test]
async fn a_pattern_admits_its_kind_on_both_ends() {
    let pki = Pki::new();
    let (frontend, backend) = (pki.snapshot(FRONTEND), pki.snapshot(BACKEND));
    for (pattern, passes) in [
        ("spiffe://shop.example/ns/shop/*", true),
        ("spiffe://shop.example/ns/*/sa/*", true),
        ("spiffe://shop.example/ns/bank/*", false),
    ] {
        let client = frontend.client_config(&[pattern.parse().unwrap()], &[]).unwrap();
        let server = backend.server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
        assert_eq!(handshake(server, client).await.1.is_ok(), passes, "{pattern}");
        let client = frontend.client_config(&[BACKEND.parse().unwrap()], &[]).unwrap();
        let server = backend.server_config(&only(pattern), &[]).unwrap();
        assert_eq!(handshake(server, client).await.0.is_ok(), passes, "{pattern}");
    }
}

#[tokio::test]
async fn every_key_exchange_offered_is_spoken_alone_by_sidecars_and_ordinary_listeners() {
    use rustls::crypto::aws_lc_rs::kx_group;
    let pki = Pki::new();
    let folder = tempfile::tempdir().unwrap();
    pki.svid(BACKEND, |_| {}).write(folder.path());
    let pair = (folder.path().join("svid.pem"), folder.path().join("svid.key"));
    let least = outrigger_config::TlsVersion::Tls13;
    let (ordinary, _) = crate::server_config_with_certificates(&[pair], &[], least).unwrap();
    let mutual = pki.snapshot(BACKEND).server_config(&PeerPolicy::TrustDomain, &[]).unwrap();
    for (server, own) in [(mutual, Some(pki.svid(FRONTEND, |_| {}).certified())), (ordinary, None)] {
        for (group, name) in [
            (kx_group::X25519MLKEM768, NamedGroup::X25519MLKEM768),
            (kx_group::X25519, NamedGroup::X25519),
            (kx_group::SECP256R1, NamedGroup::secp256r1),
            (kx_group::SECP384R1, NamedGroup::secp384r1),
        ] {
            let mut provider = (*provider()).clone();
            provider.kx_groups = vec![group];
            let builder = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Gullible));
            let client = match own.clone() {
                Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
                None => builder.with_no_client_auth(),
            };
            let (served, called) = handshake(server.clone(), Arc::new(client)).await;
            assert!(called.is_ok(), "{name:?}");
            assert_eq!(served.unwrap().get_ref().1.negotiated_key_exchange_group().unwrap().name(), name);
        }
    }
}
