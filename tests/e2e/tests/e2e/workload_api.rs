//! A sidecar whose identity comes from an agent that serves the SPIFFE Workload API.
//!
//! The agent is a server of grpcio and of py-spiffe's protobufs, on a unix socket.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use outrigger_e2e::{
    Application, Authority, CLIENT_ID, Connection, Leaf, Outrigger, Process, SERVER_ID, eventually, free_port,
    identity, outrigger_command, start_outrigger, start_outrigger_as, start_peer,
};
use serde_json::{Value, json};

/// What an agent gives, and where it listens.
struct Agent {
    folder: PathBuf,
    state: PathBuf,
}

impl Agent {
    fn new(folder: &Path) -> Self {
        let this = Self { folder: folder.to_path_buf(), state: folder.join("state.json") };
        this.give(&json!({}));
        this
    }

    fn socket(&self) -> String {
        self.folder.join("agent.sock").display().to_string()
    }

    fn start(&self) -> Process {
        start_peer("workload_api_server.py", &[&self.socket(), &self.state.display().to_string()], &self.folder)
    }

    fn give(&self, state: &Value) {
        // Never half of it.
        let new = self.folder.join("state.new");
        fs::write(&new, state.to_string()).unwrap();
        fs::rename(new, &self.state).unwrap();
    }
}

fn svid(id: &str, leaf: &Leaf, bundle: &[&Authority], hint: &str) -> Value {
    let bundle: Vec<_> = bundle.iter().map(|authority| authority.bundle()).collect();
    json!({ "spiffe_id": id, "certificate": leaf.certificate, "key": leaf.key, "bundle": bundle, "hint": hint })
}

#[track_caller]
fn says(outrigger: &Outrigger, parts: &[&str]) {
    eventually(&format!("{parts:?} in the status"), || {
        let text = outrigger.get("/readyz?verbose")?.body;
        ensure!(parts.iter().all(|part| text.contains(part)), "{text}");
        Ok(())
    });
}

fn rotations(outrigger: &Outrigger, least: f64) {
    eventually("the rotation", || {
        let taken = outrigger.metric("outrigger_identity_rotations_total{result=\"ok\"}")?;
        ensure!(taken >= least, "{taken}");
        Ok(())
    });
}

#[test]
fn an_agent_gives_identities_that_rotate_under_open_connections() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (authority, next) = (Authority::new(&folder.join("ca")), Authority::new(&folder.join("next-ca")));
    let agent = Agent::new(folder);
    let application = Application::start();
    let (inbound, outbound) = (free_port(), free_port());
    let home = |name: &str| {
        let home = folder.join(name);
        fs::create_dir(&home).unwrap();
        home
    };
    // The environment says where the agent is, as SPIFFE has it.
    let mut command = outrigger_command();
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", agent.socket()));
    let config = format!(
        "identity: {{ trustDomain: shop.example, workloadApi: {{ timeout: 5s }} }}\nproxy:\n  listeners:\n  - {{ name: in, direction: inbound, \
         address: \"127.0.0.1:{inbound}\", tls: {{ mode: strict, allowedPeers: [\"{CLIENT_ID}\"] }}, routes: [{{ name: all, \
         backendRefs: [{{ name: app }}] }}] }}\n  clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
        application.address
    );
    let mut server = start_outrigger_as(command, &home("server"), &config, &[]);
    says(&server, &["the Workload API unix://", "cannot connect"]);
    let mut process = agent.start();
    says(&server, &["it has no identity for this workload (PERMISSION_DENIED: no identity issued)", "register one"]);

    let first = authority.issue("first", SERVER_ID);
    agent.give(&json!({ "svids": [svid(SERVER_ID, &first, &[&authority], "")] }));
    server.wait_ready();
    let client = authority.issue("client", CLIENT_ID);
    let config = format!(
        "{}proxy:\n  listeners:\n  - {{ name: out, direction: outbound, address: \"127.0.0.1:{outbound}\", routes: [{{ name: all, \
         backendRefs: [{{ name: server }}] }}] }}\n  clusters: [{{ name: server, endpoints: [\"127.0.0.1:{inbound}\"], protocol: http1, \
         tls: {{ spiffeIds: [\"{SERVER_ID}\"] }} }}]\n",
        identity(&client, &authority)
    );
    let caller = start_outrigger(&home("client"), &config);
    // One worker has it, and so one pool of connections.
    let mut connection = Connection::open(outbound).unwrap();
    let mut ask = || -> Result<()> { connection.get("/")?.ok().map(drop) };
    ask().unwrap();
    let handshakes = |expected: f64| {
        eventually("the handshakes to be counted", || {
            let made = caller.metric("outrigger_upstream_tls_handshakes_total{cluster=\"server\",result=\"ok\"}")?;
            ensure!(made == expected, "{made}");
            Ok(())
        });
    };
    handshakes(1.0);

    // It rotates, another root beside the first; what is open stays open.
    let second = authority.issue("second", SERVER_ID);
    let federated = json!({ "spiffe://partner.example": next.bundle() });
    agent.give(&json!({ "svids": [svid(SERVER_ID, &second, &[&authority, &next], "")], "federated": federated }));
    rotations(&server, 2.0);
    server.wait_ready();
    ask().unwrap();
    handshakes(1.0);

    // The agent crashes: the last certificate serves.
    process.kill();
    says(&server, &["keeping the certificate valid until", "the Workload API unix://"]);
    ask().unwrap();
    // It comes back, and another root signs.
    let third = next.issue("third", SERVER_ID);
    agent.give(&json!({ "svids": [svid(SERVER_ID, &third, &[&next], "")] }));
    let _process = agent.start();
    rotations(&server, 3.0);
    server.wait_ready();
    // Taken back, while it runs: told, and kept until its end.
    agent.give(&json!({}));
    says(&server, &["keeping the certificate valid until", "PERMISSION_DENIED"]);
    ask().unwrap();
    handshakes(1.0);
}
