//! OpenSSL as the other end, both ways: versions, sessions, and peers that were revoked.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use outrigger_e2e::{Authority, Leaf, Outrigger, Process, eventually, free_port, request, start_outrigger, tool};

use crate::tls::{BACKEND, Backend, FRONTEND, identity};

/// How often a counter of the inbound listener counts.
fn counted(outrigger: &Outrigger, name: &str, label: &str) -> u64 {
    let text = outrigger.get("/metrics").expect("the admin API answers").body;
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn with<'a>(mut command: Command, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    command.args(arguments);
    command
}

#[test]
fn a_revoked_peer_is_refused_with_its_session_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("crl.pem");
    let empty = Authority::new(&folder.path().join("ca")).revoke(&[]);
    fs::rename(empty, &list).unwrap();
    let backend = Backend::over(folder.path(), "", &format!(", crl: [{}]", list.display()), "");
    let (frontend, other) = (backend.authority.issue("frontend", FRONTEND), backend.authority.issue("other", FRONTEND));
    let session = folder.path().join("session").display().to_string();
    let said = backend.ask_with(with(backend.s_client(Some(&frontend)), ["-sess_out", &session]));
    assert!(said.contains("HTTP/1.1 200"), "{said}");

    let revoked = backend.authority.revoke(&[&frontend]);
    fs::rename(revoked, &list).unwrap();
    eventually("the list to be taken", || {
        let said = backend.ask(Some(&frontend));
        ensure!(!said.contains("HTTP/1.1") && said.contains("alert certificate revoked"), "{said}");
        Ok(())
    });
    let said = backend.ask_with(with(backend.s_client(Some(&frontend)), ["-sess_in", &session]));
    assert!(!said.contains("HTTP/1.1") && said.contains("alert certificate revoked"), "{said}");
    assert!(backend.ask(Some(&other)).contains("HTTP/1.1 200"), "of the same name, but not revoked");
    assert!(counted(&backend.outrigger, "outrigger_tls_handshakes_total", "result=\"revoked\"") >= 2);
    assert!(counted(&backend.outrigger, "outrigger_identity_crl_next_update_timestamp_seconds", "issuer=") > 0);

    // A list that is being written takes nothing away, and is told.
    fs::write(&list, "-----BEGIN X509 CRL-----\n").unwrap();
    eventually("the broken list to be told", || {
        let ready = backend.outrigger.get("/readyz?verbose")?;
        ensure!(ready.status == 200 && ready.body.contains("crl.pem"), "{}", ready.body);
        Ok(())
    });
    assert!(backend.ask(Some(&frontend)).contains("alert certificate revoked"));
    assert!(backend.ask(Some(&other)).contains("HTTP/1.1 200"));
}

#[test]
fn sessions_are_resumed_and_carry_no_early_data() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::start(folder.path(), "");
    let client = backend.authority.issue("client", FRONTEND);
    // TLS 1.2: one connection, and five more with its session.
    let said = backend.ask_with(with(backend.s_client(Some(&client)), ["-tls1_2", "-reconnect"]));
    assert_eq!(said.matches("Reused, TLSv1.2").count(), 5, "{said}");
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    assert_eq!(counted(&backend.outrigger, "outrigger_tls_sessions_resumed_total", "in"), 5);
    // TLS 1.3: tickets come after the handshake.
    let session = folder.path().join("session").display().to_string();
    let said = backend.ask_with(with(backend.s_client(Some(&client)), ["-tls1_3", "-sess_out", &session]));
    assert!(said.contains("New, TLSv1.3") && said.contains("Max Early Data: 0"), "{said}");
    let early = folder.path().join("early");
    fs::write(&early, "GET /early HTTP/1.1\r\nhost: backend\r\n\r\n").unwrap();
    let said = backend.ask_with(with(
        backend.s_client(Some(&client)),
        ["-tls1_3", "-sess_in", &session, "-early_data", &early.display().to_string()],
    ));
    assert!(said.contains("Reused, TLSv1.3") && said.contains("HTTP/1.1 200"), "{said}");
    assert!(said.contains("Early data was not sent"), "{said}");
    assert_eq!(counted(&backend.outrigger, "outrigger_tls_sessions_resumed_total", "in"), 6);
    assert_eq!(counted(&backend.outrigger, "outrigger_tls_handshakes_total", "result=\"ok\""), 8);
    let seen = backend.application.seen();
    assert!(seen.len() == 3 && seen.iter().all(|request| request.line == "GET /orders HTTP/1.1"), "{seen:?}");
    let known = seen.iter().filter(|request| request.headers.iter().any(|(_, value)| value.ends_with(FRONTEND)));
    assert_eq!(known.count(), 3, "a resumed peer is known, too: {seen:?}");
}

#[test]
fn both_versions_are_spoken_by_clients_and_the_older_one_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    for (least, version, status) in [
        ("TLSv1.2", "-tls1_2", Some("Protocol  : TLSv1.2")),
        ("TLSv1.2", "-tls1_3", Some("New, TLSv1.3")),
        ("TLSv1.3", "-tls1_2", None),
        ("TLSv1.3", "-tls1_3", Some("New, TLSv1.3")),
    ] {
        let home = folder.path().join(format!("{least}{version}"));
        fs::create_dir(&home).unwrap();
        let backend = Backend::over(&home, "", "", &format!(", minVersion: {least}"));
        let client = backend.authority.issue("client", FRONTEND);
        let said = backend.ask_with(with(backend.s_client(Some(&client)), [version]));
        match status {
            Some(part) => assert!(said.contains(part) && said.contains("HTTP/1.1 200"), "{least} {version}: {said}"),
            None => assert!(said.contains("alert protocol version"), "{least} {version}: {said}"),
        }
        // OpenSSL has no post-quantum key exchange here, so the next best is taken.
        assert!(status.is_none() || said.contains("X25519"), "{least} {version}: {said}");
    }
}

/// `openssl s_server` with an SVID, which demands one and shows a page about the connection.
fn s_server(folder: &Path, leaf: &Leaf, authority: &Authority, version: &str) -> (Process, u16) {
    let port = free_port();
    let mut command = tool("openssl");
    command.args(["s_server", "-accept", &port.to_string(), version, "-www", "-Verify", "1", "-verify_return_error"]);
    command.arg("-cert").arg(&leaf.certificate).arg("-key").arg(&leaf.key).arg("-CAfile").arg(authority.bundle());
    let mut server = Process::start("s_server", &mut command, folder);
    eventually("s_server", || {
        server.still_runs()?;
        ensure!(server.log().contains("ACCEPT"), "{}", server.log());
        Ok(())
    });
    (server, port)
}

#[test]
fn both_versions_are_spoken_with_servers_and_the_older_one_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"));
    let (server_leaf, client) = (authority.issue("server", BACKEND), authority.issue("client", FRONTEND));
    for (least, version, status) in [
        ("TLSv1.2", "-tls1_2", 200),
        ("TLSv1.2", "-tls1_3", 200),
        ("TLSv1.3", "-tls1_2", 503),
        ("TLSv1.3", "-tls1_3", 200),
    ] {
        let home = folder.path().join(format!("{least}{version}"));
        fs::create_dir(&home).unwrap();
        let (_server, upstream) = s_server(&home, &server_leaf, &authority, version);
        let port = free_port();
        let config = format!(
            "{}proxy:\n  listeners:\n  - {{ name: out, direction: outbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: backend }}] }}] }}\n  \
             clusters: [{{ name: backend, endpoints: [\"127.0.0.1:{upstream}\"], tls: {{ spiffeIds: [\"{BACKEND}\"], minVersion: {least} }} }}]\n",
            identity(&client, &authority, "")
        );
        let _outrigger = start_outrigger(&home, &config);
        let response = request("GET", &format!("http://127.0.0.1:{port}/"), &[], "").unwrap();
        assert_eq!(response.status, status, "{least} {version}: {}", response.body);
        let expected = if version == "-tls1_2" { "TLSv1.2" } else { "TLSv1.3" };
        assert!(status == 503 || response.body.contains(expected), "{least} {version}: {}", response.body);
    }
}
