//! One port for plain text, for mTLS of sidecars, and for TLS that is the application's own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use tokio::task::JoinSet;

use crate::OK;
use crate::harness::{App, Client, Identified, Proxy};
use crate::http2::{END_HEADERS, END_STREAM, Frames, HEADERS};

const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";

/// A permissive listener of this protocol, with further lines, over an application for HTTP and one for bytes.
async fn permissive(backend: &Identified, protocol: &str, lines: &str, http: u16, bytes: u16) -> Proxy {
    let routes = match protocol {
        "tcp" => "",
        _ => "routes: [{ name: all, backendRefs: [{ name: http }] }],",
    };
    let (section, identities) = (&backend.section, backend.identities.clone());
    let unused =
        if protocol == "tcp" { "" } else { &format!("    - {{ name: http, endpoints: [\"127.0.0.1:{http}\"] }}\n") };
    let config = format!(
        r#"{section}
proxy:
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", protocol: {protocol}, detectTimeout: 50ms, {lines} {routes}
        tls: {{ mode: permissive }}, limits: {{ headerTimeout: 60s }}, tcpRoute: {{ name: bytes, backendRefs: [{{ name: bytes }}] }} }}
  clusters:
    - {{ name: bytes, endpoints: ["127.0.0.1:{bytes}"] }}
{unused}"#
    );
    Proxy::start_with(&config, identities, 0).await
}

/// Greets, and says everything back.
fn greeter() -> App {
    App::talking(|mut stream| {
        let _ = stream.write_all(b"220 hello\r\n");
        let mut bytes = [0; 1024];
        while let Ok(count) = stream.read(&mut bytes) {
            if count == 0 || stream.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
    })
}

/// An application that speaks TLS itself, and what its clients trust.
fn tls_application() -> (App, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(["app.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"postgresql".to_vec()];
    let config = Arc::new(config);
    let app = App::talking(move |mut stream| {
        let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        let mut bytes = [0; 5];
        if tls.read_exact(&mut bytes).is_ok() {
            let _ = tls.write_all(b"application: ");
            let _ = tls.write_all(&bytes);
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    (app, roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Speaks TLS with whoever answers for `app.test`, after some bytes in plain text.
fn speak_tls(port: u16, roots: RootCertStore, alpn: &[&str], before: &str) -> String {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    stream.write_all(before.as_bytes()).unwrap();
    let name = ServerName::try_from("app.test").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    if let Err(error) = tls.write_all(b"hello") {
        return error.to_string();
    }
    let mut answer = [0; 18];
    match tls.read_exact(&mut answer) {
        Ok(()) => String::from_utf8_lossy(&answer).into_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_client_that_waits_for_its_server_is_greeted() {
    let authority = tempfile::tempdir().unwrap();
    let mut keepers = JoinSet::new();
    let backend = Identified::start(&authority, "backend", &mut keepers).await;
    let (app, bytes) = (App::answering(OK), greeter());
    for protocol in ["auto", "tcp"] {
        let proxy = permissive(&backend, protocol, "", app.port, bytes.port).await;
        let port = proxy.port;
        let talk = tokio::task::spawn_blocking(move || {
            // Twice: what was learnt of the first must not spoil the second.
            for _ in 0..2 {
                let mut client = Client::connect(port);
                assert_eq!(client.read_some(), "220 hello\r\n", "{protocol}");
                client.send("MAIL");
                assert_eq!(client.read_some(), "MAIL", "{protocol}");
            }
        });
        talk.await.unwrap();
        proxy.stop().await;
    }
}

#[tokio::test]
async fn tls_without_our_protocols_reaches_the_application_as_it_is() {
    let authority = tempfile::tempdir().unwrap();
    let mut keepers = JoinSet::new();
    let backend = Identified::start(&authority, "backend", &mut keepers).await;
    let (app, (bytes, roots)) = (App::answering(OK), tls_application());
    let header = "PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n";
    for (protocol, lines, before) in [
        ("auto", "", ""),
        ("tcp", "", ""),
        ("auto", "proxyProtocol: true,", header),
        ("tcp", "proxyProtocol: true,", header),
    ] {
        let proxy = permissive(&backend, protocol, lines, app.port, bytes.port).await;
        for alpn in [&[][..], &["h2"], &["postgresql"]] {
            let (port, roots, alpn, before) = (proxy.port, roots.clone(), alpn.to_vec(), before.to_owned());
            let said = tokio::task::spawn_blocking(move || speak_tls(port, roots, &alpn, &before)).await.unwrap();
            assert_eq!(said, "application: hello", "{protocol} {lines}");
        }
        // Whoever offers ours is for us, and the sidecar shows no certificate that this client could trust.
        let (port, roots, before) = (proxy.port, roots.clone(), before.to_owned());
        let said = tokio::task::spawn_blocking(move || speak_tls(port, roots, &["outrigger-tcp", "h2"], &before));
        let said = said.await.unwrap();
        assert!(said.contains("certificate"), "{protocol} {lines}: {said}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn plain_and_mutual_tls_meet_on_one_port_whatever_is_spoken() {
    let authority = tempfile::tempdir().unwrap();
    let mut keepers = JoinSet::new();
    let backend = Identified::start(&authority, "backend", &mut keepers).await;
    let frontend = Identified::start(&authority, "frontend", &mut keepers).await;
    let (app, bytes) = (App::answering(OK), greeter());
    let proxy = permissive(&backend, "auto", "", app.port, bytes.port).await;
    let config = format!(
        r#"{}
proxy:
  listeners:
    - {{ name: out, direction: outbound, address: "127.0.0.1:PORT", protocol: auto, detectTimeout: 50ms,
        routes: [{{ name: all, backendRefs: [{{ name: there }}] }}], tcpRoute: {{ name: bytes, backendRefs: [{{ name: there }}] }} }}
  clusters:
    - {{ name: there, endpoints: ["127.0.0.1:{}"], tls: {{ spiffeIds: ["{BACKEND}"] }} }}
"#,
        frontend.section, proxy.port
    );
    let caller = Proxy::start_with(&config, frontend.identities.clone(), 1).await;
    for (port, way) in [(proxy.port, "plain"), (caller.port, "mutual TLS")] {
        let talk = tokio::task::spawn_blocking(move || {
            let answer = Client::connect(port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 200"), "{way}: {answer}");
            let mut frames = Frames::connect(port);
            // `GET /` for the host `a`.
            frames.send(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x84\x86\x01\x01a");
            let answered = std::iter::from_fn(|| frames.receive()).any(|(kind, _, stream, payload)| {
                // The status 200 is one byte of the table.
                kind == HEADERS && stream == 1 && payload.contains(&0x88)
            });
            assert!(answered, "{way}: HTTP/2");
            // Last, for a listener remembers where servers speak first.
            assert_eq!(Client::connect(port).read_some(), "220 hello\r\n", "{way}");
            let mut first = Client::connect(port);
            first.send("\0binary");
            assert!(first.read_some().starts_with("220 hello"), "{way}");
        });
        talk.await.unwrap();
    }
    let peer = "peer=\"spiffe://shop.example/ns/shop/sa/frontend\"";
    proxy.metrics_have(&format!("code=\"200\",{peer}}} 2")).await;
    let told: Vec<bool> = app.seen().iter().map(|request| request.contains("x-forwarded-client-cert")).collect();
    assert_eq!(told, [false, false, true, true]);
    caller.stop().await;
    proxy.stop().await;
}
