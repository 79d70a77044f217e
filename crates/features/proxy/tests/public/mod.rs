//! TLS with ordinary clients and servers: certificates by name, and no identities.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::Path;

use outrigger_identity::IdentityComponent;

use crate::OK;
use crate::harness::{App, Client, Proxy, until};

/// Writes a certificate for these names, which is its own authority.
fn certify(folder: &Path, file: &str, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(folder.join(format!("{file}.key")), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join(format!("{file}.pem")), made.cert.pem()).unwrap();
}

/// An outbound listener that calls `port` by TLS and expects `name`.
async fn caller(port: u16, folder: &Path, name: &str, ca: &str, protocol: &str) -> Proxy {
    let config = format!(
        r#"
proxy:
  listeners:
    - {{ name: out, direction: outbound, address: "127.0.0.1:PORT", routes: [{{ name: all, backendRefs: [{{ name: there }}] }}] }}
  clusters:
    - {{ name: there, endpoints: ["127.0.0.1:{port}"], protocol: {protocol}, tls: {{ serverName: {name}, ca: "{}" }} }}
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
