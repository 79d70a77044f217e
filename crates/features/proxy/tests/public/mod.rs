//! TLS with ordinary clients and servers: certificates by name, and no identities.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::Path;

use outrigger_identity::IdentityComponent;

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::OK;
use crate::harness::{App, Client, Proxy, Shop, until};

/// Writes a certificate for these names, which is its own authority.
fn certify(folder: &Path, file: &str, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(folder.join(format!("{file}.key")), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join(format!("{file}.pem")), made.cert.pem()).unwrap();
}

/// An outbound listener that calls `port` by TLS and expects `name`.
async fn caller(port: u16, folder: &Path, name: &str, ca: &str, protocol: &str) -> Proxy {
    caller_with(port, folder, name, ca, &format!("protocol: {protocol}"), "").await
}

/// The same with further members for the cluster and its `tls`.
async fn caller_with(port: u16, folder: &Path, name: &str, ca: &str, cluster: &str, tls: &str) -> Proxy {
    let config = format!(
        r#"
proxy:
  listeners:
    - {{ name: out, direction: outbound, address: "127.0.0.1:PORT", routes: [{{ name: all, backendRefs: [{{ name: there }}] }}] }}
  clusters:
    - {{ name: there, endpoints: ["127.0.0.1:{port}"], {cluster}, tls: {{ serverName: {name}, ca: "{}"{tls} }} }}
"#,
        folder.join(format!("{ca}.pem")).display()
    );
    let (_unused, identities) = IdentityComponent::new();
    Proxy::start_with(&config, identities, 1).await
}

fn ask(proxy: &Proxy) -> String {
    Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[tokio::test]
async fn the_name_asked_for_chooses_the_certificate_and_must_be_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder, "one", &["one.test"]);
    certify(folder, "two", &["two.test", "*.two.test"]);
    let app = App::answering(OK);
    let pair = |name: &str| {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        format!("{{ certificate: {}, key: {} }}", certificate.display(), key.display())
    };
    let tls = format!("      tls: {{ mode: simple, certificates: [{}, {}] }}\n", pair("one"), pair("two"));
    let server = Proxy::start(&app.plain_config(&tls)).await;
    for (name, ca, protocol, status) in [
        ("one.test", "one", "http1", "200"),
        ("two.test", "two", "http1", "200"),
        ("x.two.test", "two", "http2", "200"),
        ("two.test", "one", "http1", "503"),
        ("other.test", "one", "http1", "503"),
    ] {
        let client = caller(server.port, folder, name, ca, protocol).await;
        let answer = ask(&client);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name} {ca} {protocol}: {answer}");
        client.stop().await;
    }
    assert!(app.seen().iter().all(|request| !request.contains("x-forwarded-client-cert")), "nobody knows who called");

    // A renewed certificate is shown to the next client.
    certify(folder, "one", &["one.test"]);
    let client = caller(server.port, folder, "one.test", "one", "http1").await;
    until("the new certificate is shown", || ask(&client).starts_with("HTTP/1.1 200")).await;
    client.stop().await;
    server.stop().await;
}

/// A listener with this certificate for ordinary clients, in front of an application.
fn simple_config(app: &App, folder: &Path, certificate: &str) -> String {
    let path = |suffix: &str| folder.join(format!("{certificate}.{suffix}"));
    let pair = format!("{{ certificate: {}, key: {} }}", path("pem").display(), path("key").display());
    app.plain_config(&format!("      tls: {{ mode: simple, certificates: [{pair}] }}\n"))
}

async fn simple(app: &App, folder: &Path, certificate: &str) -> Proxy {
    Proxy::start(&simple_config(app, folder, certificate)).await
}

/// Handshakes that resumed no session, as counted by these two series.
fn whole_handshakes(proxy: &Proxy, all: &str, resumed: &str) -> u64 {
    let text = proxy.metrics();
    let count = |series: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
    };
    count(all) - count(resumed)
}

#[tokio::test]
async fn sessions_are_resumed_with_ordinary_peers_and_between_sidecars() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder, "one", &["one.test"]);
    let app = App::answering(OK);
    let server = simple(&app, folder, "one").await;
    // Each request has a connection of its own, and the listener has two workers.
    let client = caller_with(server.port, folder, "one.test", "one", "pool: { maxRequests: 1 }", "").await;
    for _ in 0..6 {
        assert!(ask(&client).starts_with("HTTP/1.1 200"));
    }
    server.metrics_have("outrigger_tls_handshakes_total{listener=\"in\",result=\"ok\"} 6").await;
    server.metrics_have("outrigger_tls_sessions_resumed_total{listener=\"in\"} 5").await;
    client.metrics_have("outrigger_upstream_tls_sessions_resumed_total{cluster=\"there\"} 5").await;
    let whole = || {
        let all = "outrigger_tls_handshakes_total{listener=\"in\",result=\"ok\"}";
        whole_handshakes(&server, all, "outrigger_tls_sessions_resumed_total{listener=\"in\"}")
    };
    // A reload that changes something else leaves the tickets good; a new certificate does not.
    server.reload(&simple_config(&app, folder, "one").replace("name: all,", "name: other,"));
    until("the reload is seen", || {
        ask(&client);
        server.metrics().contains("route=\"other\"")
    })
    .await;
    assert_eq!(whole(), 1, "all but the very first were resumed");
    certify(folder, "one", &["one.test"]);
    until("the new certificate is taken by both", || {
        ask(&client);
        whole() == 2
    })
    .await;
    client.stop().await;
    server.stop().await;

    let shop = Shop::start(&app, "spiffe://shop.example/ns/shop/sa/backend").await;
    shop.change_cluster("pool: { maxRequests: 1 }");
    let resumed = "outrigger_upstream_tls_sessions_resumed_total{cluster=\"backend\"}";
    let whole = || {
        let all = "outrigger_upstream_tls_handshakes_total{cluster=\"backend\",result=\"ok\"}";
        whole_handshakes(&shop.frontend, all, resumed)
    };
    until("the change was taken", || {
        // Before it, connections are kept and no handshake is made.
        ask(&shop.frontend);
        shop.frontend.metrics().contains(&format!("{resumed} 3\n"))
    })
    .await;
    assert_eq!(whole(), 1, "but for the first, all were resumed");
    shop.rotate_frontend("renewed");
    until("the new certificate is used", || {
        ask(&shop.frontend);
        app.seen().last().unwrap().contains("sa/renewed")
    })
    .await;
    assert_eq!(whole(), 2, "no session outlives a rotation");
    for stage in ["tcp", "tls"] {
        let timed =
            format!("outrigger_upstream_connect_duration_seconds_count{{cluster=\"backend\",stage=\"{stage}\"}}");
        shop.frontend.counts_at_least(&timed, 5.0).await;
    }
    shop.stop().await;
}

#[tokio::test]
async fn a_changed_bundle_of_authorities_is_taken_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder, "one", &["one.test"]);
    certify(folder, "other", &["one.test"]);
    let install = |from: &str| std::fs::copy(folder.join(format!("{from}.pem")), folder.join("ca.pem")).unwrap();
    install("one");
    let app = App::answering(OK);
    let server = simple(&app, folder, "one").await;
    let client = caller(server.port, folder, "one.test", "ca", "http1").await;
    assert!(ask(&client).starts_with("HTTP/1.1 200"));
    // The connection is kept, and yet it is not used with an authority that is no longer trusted.
    install("other");
    until("the new bundle is taken", || ask(&client).starts_with("HTTP/1.1 503")).await;
    install("one");
    until("and the next one", || ask(&client).starts_with("HTTP/1.1 200")).await;
    std::fs::write(folder.join("ca.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    until("the broken one is told", || {
        let (state, reason) = client.status();
        state == "degraded" && reason.contains("cluster `there`") && reason.contains("ca.pem")
    })
    .await;
    assert!(ask(&client).starts_with("HTTP/1.1 200"), "what was good stays");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_ours() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder, "server", &["server.test"]);
    certify(folder, "client", &["client.test"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let read = |name: &str| CertificateDer::from_pem_file(folder.join(format!("{name}.pem"))).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(read("client")).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![read("server")], key)
        .unwrap();
    let config = Arc::new(config);
    let app = App::talking(move |mut stream| {
        let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        if tls.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {
            let _ = tls.write_all(OK.as_bytes());
        }
    });
    let pair = format!(
        ", clientCertificate: {{ certificate: \"{0}.pem\", key: \"{0}.key\" }}",
        folder.join("client").display()
    );
    for (tls, status) in [(pair.as_str(), "200"), ("", "50")] {
        let client = caller_with(app.port, folder, "server.test", "server", "protocol: http1", tls).await;
        let answer = ask(&client);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{tls}: {answer}");
        client.stop().await;
    }
}

#[tokio::test]
async fn a_certificate_that_is_half_renewed_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder, "one", &["one.test"]);
    std::fs::copy(folder.join("one.pem"), folder.join("ca.pem")).unwrap();
    let app = App::answering(OK);
    let server = simple(&app, folder, "one").await;
    let client = caller_with(server.port, folder, "one.test", "ca", "pool: { maxRequests: 1 }", "").await;
    assert!(ask(&client).starts_with("HTTP/1.1 200"));
    // The certificate comes, and its key later.
    certify(folder, "two", &["one.test"]);
    std::fs::rename(folder.join("two.pem"), folder.join("one.pem")).unwrap();
    until("the mismatch is told", || {
        let (state, reason) = server.status();
        state == "degraded" && reason.contains("one.key") && reason.contains("does not belong")
    })
    .await;
    assert!(ask(&client).starts_with("HTTP/1.1 200"), "the old pair is still shown");
    std::fs::rename(folder.join("two.key"), folder.join("one.key")).unwrap();
    until("the new pair is shown", || ask(&client).starts_with("HTTP/1.1 503")).await;
    until("and all is well", || server.status().0 == "ready").await;
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn health_is_asked_by_the_name_and_the_authority_that_requests_go_by() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    certify(folder, "one", &["one.test"]);
    certify(folder, "other", &["one.test"]);
    let app = App::answering(OK);
    let server = simple(&app, folder, "one").await;
    let check = "healthChecks: [{ type: HTTP, http: { path: /healthz }, interval: 50ms, noTrafficInterval: 50ms, \
                 unhealthyThreshold: 1, healthyThreshold: 1 }]";
    for protocol in ["http1", "http2"] {
        for (name, ca, healthy) in [("one.test", "one", 1), ("one.test", "other", 0), ("two.test", "one", 0)] {
            let before = app.seen().len();
            let client =
                caller_with(server.port, folder, name, ca, &format!("protocol: {protocol}, {check}"), "").await;
            let result = if healthy == 1 { "success" } else { "failure" };
            client
                .metrics_have(&format!("outrigger_health_checks_total{{cluster=\"there\",result=\"{result}\"}}"))
                .await;
            client
                .metrics_have(&format!("outrigger_cluster_endpoints{{cluster=\"there\",state=\"healthy\"}} {healthy}"))
                .await;
            if healthy == 1 {
                until("the application was asked", || app.seen().len() > before).await;
            } else {
                let told = client.admin("/clusters").await;
                let reason = told["clusters"][0]["endpoints"][0]["reason"].as_str();
                assert!(reason.is_some_and(|reason| reason.starts_with("TLS: ")), "{protocol} {name} {ca}: {told:#}");
            }
            client.stop().await;
        }
    }
    server.stop().await;
}
