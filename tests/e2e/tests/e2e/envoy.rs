//! Envoy as the other end of mTLS, as a client and as a server.
//!
//! Both check whom they speak to: Envoy by the SPIFFE ID in the certificate, Outrigger by
//! its own config; a wrong one is refused, whoever presents it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::Path;

use anyhow::ensure;
use outrigger_e2e::{
    Application, Authority, CLIENT_ID, Envoy, Leaf, Outrigger, SERVER_ID, Sidecars, Spoken, Way, eventually, free_port,
    identity, peer_server, request, run, run_peer, start_outrigger, tool,
};

const STRANGER: &str = "spiffe://shop.example/ns/shop/sa/stranger";

/// A test's authority and folder.
struct Mesh {
    folder: tempfile::TempDir,
    authority: Authority,
    application: Application,
}

impl Mesh {
    #[track_caller]
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(&folder.path().join("ca"));
        Self { folder, authority, application: Application::start() }
    }

    fn home(&self, name: &str) -> std::path::PathBuf {
        let home = self.folder.path().join(name);
        fs::create_dir(&home).unwrap();
        home
    }

    /// Outrigger before the application, letting in the client's sidecar alone.
    #[track_caller]
    fn server(&self, id: &str) -> (Outrigger, u16) {
        let (home, port) = (self.home("outrigger"), free_port());
        let leaf = self.authority.issue("outrigger", id);
        let config = format!(
            "{}proxy:\n  listeners:\n  - {{ name: in, direction: inbound, address: \"127.0.0.1:{port}\", \
             tls: {{ mode: strict, allowedPeers: [\"{CLIENT_ID}\"] }}, routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}\n  \
             clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
            identity(&leaf, &self.authority),
            self.application.address
        );
        (start_outrigger(&home, &config), port)
    }

    /// Outrigger beside a client, expecting the server's sidecar alone. `protocol` is its cluster's.
    #[track_caller]
    fn client(&self, name: &str, id: &str, protocol: &str, server: u16) -> (Outrigger, u16) {
        let (home, port) = (self.home(name), free_port());
        let leaf = self.authority.issue(name, id);
        let config = format!(
            "{}proxy:\n  listeners:\n  - {{ name: out, direction: outbound, address: \"127.0.0.1:{port}\", \
             routes: [{{ name: all, backendRefs: [{{ name: server }}] }}] }}\n  \
             clusters: [{{ name: server, endpoints: [\"127.0.0.1:{server}\"], protocol: {protocol}, tls: {{ spiffeIds: [\"{SERVER_ID}\"] }} }}]\n",
            identity(&leaf, &self.authority)
        );
        (start_outrigger(&home, &config), port)
    }

    /// Envoy beside a client, expecting the server's sidecar alone.
    #[track_caller]
    fn envoy_client(&self, name: &str, id: &str, http2: bool, server: u16) -> (Envoy, u16) {
        let (home, port) = (self.home(name), free_port());
        let leaf = self.authority.issue(name, id);
        let (protocol, alpn) =
            if http2 { ("http2_protocol_options", "h2") } else { ("http_protocol_options", "http/1.1") };
        let text = format!(
            "{}\n  clusters:\n  - name: server\n    connect_timeout: 5s\n    load_assignment: {}\n    \
             typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
             explicit_http_config: {{ {protocol}: {{}} }}\n    \
             transport_socket:\n      name: tls\n      typed_config:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n        \
             common_tls_context: {}\n",
            listener(port, "", ""),
            assignment("server", server),
            context(&leaf, &self.authority, SERVER_ID, alpn)
        );
        (Envoy::start(&home, port, &text), port)
    }

    /// Envoy before the application, letting in the client's sidecar alone.
    #[track_caller]
    fn envoy_server(&self, id: &str) -> (Envoy, u16) {
        let (home, port) = (self.home("envoy"), free_port());
        let leaf = self.authority.issue("envoy", id);
        let socket = format!(
            "    transport_socket:\n      name: tls\n      typed_config:\n        \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n        \
             require_client_certificate: true\n        common_tls_context: {}\n",
            context(&leaf, &self.authority, CLIENT_ID, "h2, http/1.1")
        );
        let told =
            "forward_client_cert_details: SANITIZE_SET\n          set_current_client_cert_details: { uri: true }";
        let text = format!(
            "{}\n  clusters:\n  - name: server\n    connect_timeout: 5s\n    load_assignment: {}\n",
            listener(port, &socket, told),
            assignment("server", self.application.address.port())
        );
        (Envoy::start(&home, port, &text), port)
    }
}

pub(crate) fn listener(port: u16, socket: &str, more: &str) -> String {
    let more = if more.is_empty() { "generate_request_id: false" } else { more };
    let socket = socket.replace('\n', "\n  ");
    format!(
        "  listeners:\n  - name: way\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}\n    \
         filter_chains:\n    - filters:\n      - name: http\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: way\n          {more}\n          \
         http_filters: [{{ name: router, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]\n          \
         route_config: {{ virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: server }} }}] }}] }}\n  {socket}"
    )
}

pub(crate) fn assignment(name: &str, port: u16) -> String {
    format!(
        "{{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}"
    )
}

fn context(leaf: &Leaf, authority: &Authority, peer: &str, alpn: &str) -> String {
    context_of(leaf, &authority.bundle(), peer, alpn)
}

/// Envoy's TLS settings, with what it shows and whom it trusts in files.
pub(crate) fn context_of(leaf: &Leaf, bundle: &Path, peer: &str, alpn: &str) -> String {
    let file = |path: &Path| format!("{{ filename: {} }}", path.display());
    format!(
        "{{ alpn_protocols: [{}], tls_certificates: [{{ certificate_chain: {}, private_key: {} }}], validation_context: {{ trusted_ca: {}, \
         match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: \"{peer}\" }} }}] }} }}",
        alpn.split(", ").map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "),
        file(&leaf.certificate),
        file(&leaf.key),
        file(bundle)
    )
}

/// Sends requests with a forged identity; the answers' bodies tell what the application saw.
#[track_caller]
fn ask(port: u16) -> Vec<String> {
    let url = format!("http://127.0.0.1:{port}/orders?id=7");
    let forged = ("x-forwarded-client-cert", "URI=spiffe://shop.example/ns/shop/sa/admin");
    (0..3)
        .map(|_| {
            let response = request("POST", &url, &[forged, ("x-tag", "abc")], "hello").unwrap();
            assert_eq!(response.status, 200, "{}", response.body);
            assert!(response.body.starts_with("POST /orders?id=7 HTTP/1.1\n"), "{}", response.body);
            assert!(response.body.contains("x-tag: abc\n") && !response.body.contains("admin"), "{}", response.body);
            response.body
        })
        .collect()
}

#[track_caller]
fn refused(port: u16) {
    let response = request("GET", &format!("http://127.0.0.1:{port}/orders"), &[], "").unwrap();
    assert_eq!(response.status, 503, "{}", response.body);
}

#[test]
fn envoy_is_let_in_over_http1_and_http2() {
    let mesh = Mesh::new();
    let (outrigger, server) = mesh.server(SERVER_ID);
    for http2 in [false, true] {
        let (_envoy, port) = mesh.envoy_client(&format!("client-{http2}"), CLIENT_ID, http2, server);
        for seen in ask(port) {
            assert!(
                seen.contains("x-forwarded-client-cert: By=") && seen.contains(&format!(";URI={CLIENT_ID}\n")),
                "{seen}"
            );
        }
        // A body of a size that flow control matters for.
        let body = mesh.folder.path().join("body");
        fs::write(&body, "0123456789".repeat(200_000)).unwrap();
        let mut curl = tool("curl");
        curl.args(["-sS", "--fail", "--max-time", "20", "-o", "/dev/null", "--data-binary"]);
        run(curl.arg(format!("@{}", body.display())).arg(format!("http://127.0.0.1:{port}/"))).unwrap();
        let seen = mesh.application.seen();
        assert_eq!(seen.last().map(|seen| seen.body.len()), Some(2_000_000));
    }
    // HTTP/2 was agreed on by ALPN, and many requests took few connections.
    let text = outrigger.get("/metrics").unwrap().ok().unwrap();
    let peer = format!("peer=\"{CLIENT_ID}\"");
    assert!(
        text.lines().any(|line| line.starts_with("outrigger_http_requests_total") && line.contains(&peer)),
        "{text}"
    );
}

#[test]
fn envoy_of_another_name_is_not_let_in() {
    let mesh = Mesh::new();
    let (outrigger, server) = mesh.server(SERVER_ID);
    let (_envoy, port) = mesh.envoy_client("stranger", STRANGER, true, server);
    refused(port);
    assert_eq!(mesh.application.seen(), []);
    eventually("the refusal in the log", || {
        let log = outrigger.process.log();
        ensure!(log.contains(STRANGER) && log.contains("TLS handshake with a client failed"), "{log}");
        Ok(())
    });
}

#[test]
fn envoy_refuses_an_outrigger_of_another_name() {
    let mesh = Mesh::new();
    let (_outrigger, server) = mesh.server(STRANGER);
    let (_envoy, port) = mesh.envoy_client("client", CLIENT_ID, false, server);
    refused(port);
    assert_eq!(mesh.application.seen(), []);
}

#[test]
fn envoy_is_reached_over_http1_and_http2() {
    let mesh = Mesh::new();
    let (_envoy, server) = mesh.envoy_server(SERVER_ID);
    for protocol in ["auto", "http2"] {
        let (outrigger, port) = mesh.client(&format!("client-{protocol}"), CLIENT_ID, protocol, server);
        for seen in ask(port) {
            assert!(seen.contains("x-forwarded-client-cert: ") && seen.contains(&format!("URI={CLIENT_ID}")), "{seen}");
        }
        let series = "outrigger_upstream_tls_handshakes_total{cluster=\"server\",result=\"ok\"}";
        let shook = outrigger.metric(series).unwrap();
        assert!(shook >= 1.0, "{shook}");
        let body = mesh.folder.path().join("body");
        fs::write(&body, "0123456789".repeat(200_000)).unwrap();
        let mut curl = tool("curl");
        curl.args(["-sS", "--fail", "--max-time", "20", "-o", "/dev/null", "--data-binary"]);
        run(curl.arg(format!("@{}", body.display())).arg(format!("http://127.0.0.1:{port}/"))).unwrap();
        assert_eq!(mesh.application.seen().last().map(|seen| seen.body.len()), Some(2_000_000));
    }
    // Envoy itself refuses others.
    let (outrigger, port) = mesh.client("stranger", STRANGER, "auto", server);
    let before = mesh.application.seen().len();
    let response = request("GET", &format!("http://127.0.0.1:{port}/orders"), &[], "").unwrap();
    // With TLS 1.3 a client hears of its refusal only after its own handshake is done.
    assert!([502, 503].contains(&response.status), "{} {}", response.status, response.body);
    assert_eq!(mesh.application.seen().len(), before);
    drop(outrigger);
}

#[test]
fn an_envoy_of_another_name_is_not_spoken_to() {
    let mesh = Mesh::new();
    let (_envoy, server) = mesh.envoy_server(STRANGER);
    let (outrigger, port) = mesh.client("client", CLIENT_ID, "auto", server);
    refused(port);
    assert_eq!(mesh.application.seen(), []);
    eventually("the refusal in the log", || {
        let log = outrigger.process.log();
        ensure!(log.contains(&format!("peer presented {STRANGER}")), "{log}");
        Ok(())
    });
}

#[test]
fn sockets_reach_envoy_on_the_connection_that_requests_share() {
    let folder = tempfile::tempdir().unwrap();
    let (port, server) = (free_port(), free_port());
    let _server = peer_server("websocket_server.py", server, folder.path());
    let home = folder.path().join("envoy");
    fs::create_dir(&home).unwrap();
    // Extended CONNECT (RFC 8441) is off unless Envoy is told.
    let more =
        "upgrade_configs: [{ upgrade_type: websocket }]\n          http2_protocol_options: { allow_connect: true }";
    let text = format!(
        "{}\n  clusters:\n  - name: server\n    connect_timeout: 5s\n    load_assignment: {}\n",
        listener(port, "", more),
        assignment("server", server)
    );
    let _envoy = Envoy::start(&home, port, &text);
    let way = Sidecars::start(folder.path(), Way::Plain, Spoken::HTTP2, port);
    for test in ["messages", "fragments", "pings", "closing", "large"] {
        run_peer("websocket_client.py", &[&way.at.to_string(), test])
            .unwrap_or_else(|error| panic!("{test}: {error:#}"));
    }
    // By HTTP/1 each of the eight would have had one of its own.
    let series = "outrigger_upstream_connections_total{cluster=\"server\",result=\"ok\"}";
    let connections = way.first.metric(series).unwrap();
    assert!(connections < 4.0, "{connections}");
}
