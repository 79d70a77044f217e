//! The service behind its real port, with a stand-in for the API server's word; and authorities that
//! somebody else keeps. (The API server itself is asked end to end.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use outrigger_config::{AuthorityIssuer, AuthorityRateLimit, MetricsRegistry, Secret};
use outrigger_http::{GrpcCall, GrpcCode, GrpcService, GrpcStatus};
use outrigger_runtime::BoxFuture;
use outrigger_telemetry::Registry;
use outrigger_wire::protobuf::{Value, fields, put_bytes, put_number};
use rcgen::{CertificateParams, KeyPair, SanType};

use crate::audit::Audit;
use crate::caller::{Caller, Disbelief, TokenReview};
use crate::given::Given;
use crate::keeper::Keeper;
use crate::message::CREATE_CERTIFICATE;
use crate::roots::Timing;
use crate::service::{CertificateService, Metrics};
use crate::source::Source;
use crate::store::Folder;

const ID: &str = "spiffe://shop.example/ns/shop/sa/frontend";
const DAY: Duration = Duration::from_secs(86400);

/// Believes tokens that begin with `pod-`.
struct Believer;

impl TokenReview for Believer {
    fn review<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Result<Caller, Disbelief>> {
        let answer = match token.expose() {
            "away" => Err(Disbelief::Unavailable("it is away".to_owned())),
            pod if pod.starts_with("pod-") => Ok(Caller {
                namespace: "shop".to_owned(),
                service_account: "frontend".to_owned(),
                pod: pod.to_owned(),
                pod_uid: format!("uid of {pod}"),
                node: Some("n-1".to_owned()),
            }),
            _ => Err(Disbelief::refused("token", "it proves nothing")),
        };
        Box::pin(std::future::ready(answer))
    }
}

struct Place {
    folder: tempfile::TempDir,
    service: CertificateService,
}

fn service() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let timing = Timing::new(100 * DAY, 2 * DAY, DAY);
    let keeper = Keeper::new(Box::new(Folder::new(folder.path())), "shop.example".parse().unwrap(), timing);
    let registry = Registry::new(&MetricsRegistry::default(), 1);
    let service = CertificateService::new(
        "shop.example".parse().unwrap(),
        (DAY / 2, DAY),
        Arc::new(Source::Own(keeper)),
        Box::new(Believer),
        Audit::open(Some(&folder.path().join("audit"))).unwrap(),
        Metrics::new(&registry),
        &AuthorityRateLimit { requests: 3, per: outrigger_config::Duration::from_secs(3600) },
    );
    Place { folder, service }
}

fn csr(id: Option<&str>) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = id.map(|id| SanType::URI(id.try_into().unwrap())).into_iter().collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

impl Place {
    async fn ask(&self, authorization: Option<&str>, message: Vec<u8>) -> Result<Bytes, GrpcStatus> {
        let mut metadata = HeaderMap::new();
        if let Some(value) = authorization {
            metadata.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        let peer = "192.0.2.7:4711".parse().unwrap();
        let call = GrpcCall { method: CREATE_CERTIFICATE.to_owned(), metadata, peer, message: message.into() };
        self.service.call(call).await
    }

    fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.folder.path().join("audit")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn message(csr: &str, seconds: i64) -> Vec<u8> {
    let mut message = Vec::new();
    put_bytes(&mut message, 1, csr.as_bytes());
    put_number(&mut message, 3, seconds as u64);
    message
}

fn certificates(answer: &[u8]) -> Vec<String> {
    let text = |field| match field {
        (1, Value::Bytes(text)) => String::from_utf8(text.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    };
    fields(answer).map(text).collect()
}

#[tokio::test]
async fn who_proves_himself_gets_a_certificate_and_a_record_of_it() {
    let place = service();
    for (token, seconds, id, lifetime) in [
        ("Bearer pod-1", 0, Some(ID), DAY / 2),
        ("bearer pod-1", 3600, None, Duration::from_secs(3600)),
        ("Bearer pod-1", i64::MAX, Some(ID), DAY),
    ] {
        let before = SystemTime::now();
        let answer = place.ask(Some(token), message(&csr(id), seconds)).await.unwrap();
        let certificates = certificates(&answer);
        let [leaf, root] = certificates.as_slice() else { panic!("{certificates:?}") };
        fs::write(place.folder.path().join("leaf.pem"), leaf).unwrap();
        fs::write(place.folder.path().join("root.pem"), root).unwrap();
        openssl(place.folder.path(), "verify -x509_strict -purpose sslclient -CAfile root.pem leaf.pem");
        assert_eq!(root, &fs::read_to_string(place.folder.path().join("bundle.pem")).unwrap_or_else(|_| root.clone()));
        let record = place.audit().pop().unwrap();
        assert_eq!(record["event"], "certificate_issued");
        assert_eq!(
            (&record["spiffeId"], &record["pod"], &record["podUid"]),
            (&ID.into(), &"pod-1".into(), &"uid of pod-1".into())
        );
        assert_eq!((&record["peer"], &record["node"]), (&"192.0.2.7:4711".into(), &"n-1".into()));
        assert_eq!(record["serial"].as_str().unwrap().len(), 32);
        let format = &time::format_description::well_known::Rfc3339;
        let ends = time::OffsetDateTime::parse(record["notAfter"].as_str().unwrap(), format).unwrap();
        let given = SystemTime::from(ends).duration_since(before).unwrap();
        assert!(given <= lifetime + Duration::from_secs(60) && given + Duration::from_secs(2) > lifetime, "{given:?}");
    }
}

#[tokio::test]
async fn who_does_not_or_asks_for_more_is_told_why_and_recorded() {
    let place = service();
    let good = || message(&csr(None), 0);
    let rows = [
        (None, good(), GrpcCode::Unauthenticated, "no_token"),
        (Some("Basic pod-1"), good(), GrpcCode::Unauthenticated, "no_token"),
        (Some("Bearer "), good(), GrpcCode::Unauthenticated, "no_token"),
        (Some("Bearer s3cret-stolen"), good(), GrpcCode::Unauthenticated, "token"),
        (Some("Bearer away"), good(), GrpcCode::Unavailable, "review"),
        (Some("Bearer pod-1"), vec![0x0a, 9], GrpcCode::InvalidArgument, "malformed"),
        (Some("Bearer pod-1"), message(&csr(None), -1), GrpcCode::InvalidArgument, "lifetime"),
        (Some("Bearer pod-2"), message("junk", 0), GrpcCode::InvalidArgument, "malformed"),
        (
            Some("Bearer pod-2"),
            message(&csr(Some("spiffe://shop.example/ns/shop/sa/admin")), 0),
            GrpcCode::PermissionDenied,
            "other_identity",
        ),
    ];
    for (token, message, expected, reason) in rows {
        let status = place.ask(token, message).await.unwrap_err();
        assert_eq!(status.code, expected, "{reason}: {}", status.message);
        let record = place.audit().pop().unwrap();
        assert_eq!(record["reason"], reason);
        assert_eq!(record["detail"], status.message.as_str());
        assert!(!record.to_string().contains("s3cret"), "{record}");
    }
    let record = place.audit().pop().unwrap();
    assert_eq!((&record["event"], &record["spiffeId"]), (&"certificate_refused".into(), &ID.into()));
    assert!(record["detail"].as_str().unwrap().contains("sa/admin"), "{record}");
    assert_eq!(place.service.trouble(), None, "the API server has answered since");
    // Three an hour, and a pod of its own for each.
    for (token, allowed) in [
        ("Bearer pod-3", true),
        ("Bearer pod-3", true),
        ("Bearer pod-3", true),
        ("Bearer pod-3", false),
        ("Bearer pod-4", true),
    ] {
        let result = place.ask(Some(token), good()).await;
        assert_eq!(result.is_ok(), allowed, "{token}");
        if let Err(status) = result {
            assert_eq!(status.code, GrpcCode::ResourceExhausted);
            assert_eq!(place.audit().pop().unwrap()["reason"], "rate");
        }
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A root and an intermediate in cert-manager's layout, the root of a kind of its own.
fn given(folder: &Path) -> Given {
    fs::write(folder.join("ca.ext"), "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n")
        .unwrap();
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /O=Root -addext keyUsage=critical,keyCertSign -keyout root.key -out ca.crt",
    );
    openssl(
        folder,
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj /O=Middle -keyout tls.key -out middle.csr",
    );
    openssl(
        folder,
        "x509 -req -in middle.csr -CA ca.crt -CAkey root.key -CAcreateserial -days 10 -extfile ca.ext -out tls.crt",
    );
    let path = |name: &str| -> PathBuf { folder.join(name) };
    let files = AuthorityIssuer { certificate: path("tls.crt"), key: path("tls.key"), trust_bundle: path("ca.crt") };
    Given::new(files, "shop.example".parse().unwrap())
}

#[test]
fn an_authority_in_cert_managers_layout_signs_below_its_intermediate() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let given = given(folder);
    let now = SystemTime::now();
    given.tend(now).unwrap_or_else(|error| panic!("{error}"));
    let (signing, not_after) = given.signing(now).unwrap();
    assert!(not_after < now + 11 * DAY);
    let id = ID.parse().unwrap();
    let request = crate::CertificateRequest::parse(csr(None).as_bytes(), &id).unwrap();
    let signed = signing.issuer.svid(&request, &id, 20 * DAY, now).unwrap();
    assert!(signed.not_after <= not_after, "it ends with what signs it");
    fs::write(folder.join("leaf.pem"), outrigger_identity::write_pem("CERTIFICATE", &signed.certificate)).unwrap();
    let chain =
        signing.issuer.chain().iter().map(|one| outrigger_identity::write_pem("CERTIFICATE", one)).collect::<String>();
    fs::write(folder.join("chain.pem"), &chain).unwrap();
    openssl(folder, "verify -x509_strict -purpose sslserver -CAfile ca.crt -untrusted chain.pem leaf.pem");
}

#[test]
fn files_that_do_not_fit_are_refused_and_what_was_good_stays() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let given = given(folder);
    let now = SystemTime::now();
    given.tend(now).unwrap();
    let good = |name: &str| fs::read(folder.join(name)).unwrap();
    let (certificate, key, roots) = (good("tls.crt"), good("tls.key"), good("ca.crt"));
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /O=Other -keyout other.key -out other.crt");
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /O=Leaf -addext basicConstraints=critical,CA:FALSE -keyout leaf.key -out leaf.crt",
    );
    for (file, content, told) in [
        ("tls.key", good("root.key"), "does not belong to the first certificate"),
        ("tls.key", b"junk".to_vec(), "no private key"),
        ("tls.crt", b"junk".to_vec(), "no certificates"),
        ("ca.crt", good("other.crt"), "does not verify"),
    ] {
        fs::write(folder.join(file), &content).unwrap();
        let error = given.tend(now).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains(file), "{error}");
        assert!(given.signing(now).is_some());
        for (name, content) in [("tls.crt", &certificate), ("tls.key", &key), ("ca.crt", &roots)] {
            fs::write(folder.join(name), content).unwrap();
        }
    }
    fs::write(folder.join("tls.crt"), good("leaf.crt")).unwrap();
    fs::write(folder.join("tls.key"), good("leaf.key")).unwrap();
    let error = given.tend(now).unwrap_err().to_string();
    assert!(error.contains("not the certificate of an authority"), "{error}");
    assert!(given.signing(now + 11 * DAY).is_none(), "what has ended signs no more");
}
