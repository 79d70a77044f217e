//! mTLS between sidecars, as `openssl s_client`, curl and an unmodified application see it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;
use outrigger_e2e::{
    Application, Authority, Leaf, Outrigger, eventually, free_port, request, run, start_outrigger, tool,
};

pub(crate) const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";
pub(crate) const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";

/// A backend: an application and an Outrigger with an mTLS listener before it.
pub(crate) struct Backend {
    pub(crate) application: Application,
    pub(crate) outrigger: Outrigger,
    pub(crate) port: u16,
    pub(crate) authority: Authority,
}

impl Backend {
    pub(crate) fn start(folder: &Path, allowed_peers: &str) -> Self {
        Self::over(folder, allowed_peers, "", "")
    }

    /// With further members of the identity's files, and of the listener's TLS.
    pub(crate) fn over(folder: &Path, allowed_peers: &str, files: &str, tls: &str) -> Self {
        let authority = Authority::of(&folder.join("ca"));
        let leaf = authority.issue("backend", BACKEND);
        let application = Application::start();
        let port = free_port();
        let config = format!(
            "{}proxy:\n  listeners:\n  - name: in\n    direction: inbound\n    address: 127.0.0.1:{port}\n    \
             tls: {{ mode: strict, allowedPeers: [{allowed_peers}]{tls} }}\n    routes: [{{ name: all, backendRefs: [{{ name: app }}] }}]\n  \
             clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
            identity(&leaf, &authority, files),
            application.address
        );
        let outrigger = start_outrigger(folder, &config);
        Self { application, outrigger, port, authority }
    }

    pub(crate) fn s_client(&self, client: Option<&Leaf>) -> Command {
        let mut command = tool("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{}", self.port), "-ign_eof", "-CAfile"]);
        command.arg(self.authority.bundle());
        if let Some(leaf) = client {
            command.arg("-cert").arg(&leaf.certificate).arg("-key").arg(&leaf.key);
        }
        command
    }

    /// Speaks HTTP through `openssl s_client`; all that it printed.
    pub(crate) fn ask(&self, client: Option<&Leaf>) -> String {
        self.ask_with(self.s_client(client))
    }

    pub(crate) fn ask_with(&self, mut command: Command) -> String {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("openssl can be started");
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        // It may have been refused already; then its output tells.
        let _ = stdin.write_all(b"GET /orders HTTP/1.1\r\nhost: backend\r\nconnection: close\r\n\r\n");
        drop(stdin);
        let output = child.wait_with_output().expect("openssl ends");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

pub(crate) fn identity(leaf: &Leaf, authority: &Authority, files: &str) -> String {
    format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {}{files} }}\n",
        leaf.certificate.display(),
        leaf.key.display(),
        authority.bundle().display()
    )
}

#[test]
fn a_peer_of_the_trust_domain_is_let_in_over_tls_1_3() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), "");
    let client = backend.authority.issue("client", FRONTEND);
    let said = backend.ask(Some(&client));
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    assert!(said.contains("TLSv1.3") && said.contains("Verify return code: 0 (ok)"), "{said}");
    assert_eq!(backend.application.seen()[0].line, "GET /orders HTTP/1.1");
    // The certificate shown carries exactly the workload's SPIFFE ID.
    let begin = said.find("-----BEGIN CERTIFICATE-----").expect("s_client prints the certificate");
    let end = said.find("-----END CERTIFICATE-----").expect("s_client prints the certificate");
    let pem = folder.path().join("shown.pem");
    std::fs::write(&pem, format!("{}-----END CERTIFICATE-----\n", &said[begin..end])).unwrap();
    let san = run(tool("openssl").args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(&pem)).unwrap();
    assert!(san.trim_end().ends_with(&format!("URI:{BACKEND}")), "{san}");
}

#[test]
fn nobody_else_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), "");
    let foreign = Authority::new(&folder.path().join("foreign")).issue("foreign", FRONTEND);
    let other = backend.authority.issue("other", "spiffe://other.example/ns/shop/sa/frontend");
    let expired = backend.authority.issue_expired("expired", FRONTEND);
    for (who, client) in [
        ("no certificate", None),
        ("another authority", Some(&foreign)),
        ("another trust domain", Some(&other)),
        ("expired", Some(&expired)),
    ] {
        let said = backend.ask(client);
        assert!(!said.contains("HTTP/1.1"), "{who} got an answer: {said}");
        assert!(said.contains("alert"), "{who} was not told why: {said}");
    }
    assert_eq!(backend.application.seen(), []);
    // Plain HTTP gets nowhere either.
    let plain = request("GET", &format!("http://127.0.0.1:{}/", backend.port), &[], "");
    assert!(plain.is_err(), "{plain:?}");
    assert_eq!(backend.application.seen(), []);
}

#[test]
fn allowed_peers_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), &format!("\"{FRONTEND}\""));
    let frontend = backend.authority.issue("frontend", FRONTEND);
    let stranger = backend.authority.issue("stranger", "spiffe://shop.example/ns/shop/sa/stranger");
    assert!(backend.ask(Some(&frontend)).contains("HTTP/1.1 200"));
    let said = backend.ask(Some(&stranger));
    assert!(!said.contains("HTTP/1.1"), "{said}");
    assert_eq!(backend.application.seen().len(), 1);
}

#[test]
fn old_tls_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), "");
    let client = backend.authority.issue("client", FRONTEND);
    let mut command = backend.s_client(Some(&client));
    command.args(["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    let said = backend.ask_with(command);
    assert!(!said.contains("HTTP/1.1") && said.contains("alert"), "{said}");
}

#[test]
fn curl_is_a_client_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), "");
    let client = backend.authority.issue("client", FRONTEND);
    let url = format!("https://127.0.0.1:{}/orders", backend.port);
    // An SVID names no host, so curl is told not to look for one.
    let said = run(tool("curl")
        .args(["-sS", "-k", "--max-time", "10", "--http1.1", "-d", "hello", "--cert"])
        .arg(&client.certificate)
        .arg("--key")
        .arg(&client.key)
        .arg(&url))
    .unwrap();
    assert!(said.starts_with("POST /orders HTTP/1.1"), "{said}");
    assert_eq!(backend.application.seen()[0].body, "hello");
}

#[test]
fn a_rotated_certificate_is_shown_to_the_next_peer() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), "");
    let client = backend.authority.issue("client", FRONTEND);
    let serial = |path: &Path| run(tool("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(path)).unwrap();
    let fresh = backend.authority.issue("fresh", BACKEND);
    let expected = serial(&fresh.certificate);
    let current = |name: &str| folder.path().join("ca").join(name);
    std::fs::rename(&fresh.key, current("backend.key")).unwrap();
    std::fs::rename(&fresh.certificate, current("backend.pem")).unwrap();
    let shown = folder.path().join("shown.pem");
    eventually("the new certificate", || {
        let said = backend.ask(Some(&client));
        ensure!(said.contains("HTTP/1.1 200"), "{said}");
        let (begin, end) = (said.find("-----BEGIN CERT").unwrap_or(0), said.find("-----END CERT").unwrap_or(0));
        std::fs::write(&shown, format!("{}-----END CERTIFICATE-----\n", &said[begin..end]))?;
        ensure!(serial(&shown) == expected, "still the old one");
        Ok(())
    });
    let ready = backend.outrigger.get("/readyz").unwrap();
    assert_eq!(ready.status, 200, "{}", ready.body);
}

#[test]
fn two_sidecars_carry_plain_http_over_mtls() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), &format!("\"{FRONTEND}\""));
    let leaf = backend.authority.issue("frontend", FRONTEND);
    let port = free_port();
    let config = format!(
        "{}proxy:\n  listeners:\n  - {{ name: out, direction: outbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: backend }}] }}] }}\n  \
         clusters: [{{ name: backend, endpoints: [\"127.0.0.1:{}\"], tls: {{ spiffeIds: [\"{BACKEND}\"] }} }}]\n",
        identity(&leaf, &backend.authority, ""),
        backend.port
    );
    let home = folder.path().join("frontend");
    std::fs::create_dir(&home).unwrap();
    let frontend = start_outrigger(&home, &config);
    let url = format!("http://127.0.0.1:{port}/orders?id=7");
    for _ in 0..5 {
        let response = request("POST", &url, &[("x-request-tag", "abc")], "hello").unwrap();
        assert_eq!(response.status, 200, "{}", response.body);
        assert!(response.body.contains("x-request-tag: abc"), "{}", response.body);
    }
    let seen = backend.application.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|request| request.line == "POST /orders?id=7 HTTP/1.1" && request.body == "hello"));
    // Each side counted them, and knows who the other one is.
    for (outrigger, direction, peer) in [(&backend.outrigger, "inbound", FRONTEND), (&frontend, "outbound", BACKEND)] {
        eventually(&format!("5 {direction} requests of {peer}"), || {
            let text = outrigger.get("/metrics")?.ok()?;
            let direction = format!("direction=\"{direction}\"");
            let peer = format!("peer=\"{peer}\"");
            let lines: Vec<_> =
                text.lines().filter(|line| line.starts_with("outrigger_http_requests_total{")).collect();
            let wanted = |line: &&str| line.contains(&direction) && line.contains(&peer) && line.ends_with(" 5");
            ensure!(lines.iter().any(wanted), "there are {lines:#?}");
            Ok(())
        });
    }
}
