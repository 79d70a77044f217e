//! What a TLS handshake costs each side, without sockets: CPU time, bytes, and work for callgrind.
//!
//! In: `full` or `resumed` (mTLS between sidecars), `simple` or `simple-resumed` (ordinary TLS), how many, and with how
//! many tickets each. Out: a line per side. Under `valgrind --tool=callgrind --toggle-collect='*server_side*'` only the server's half is counted.
#![expect(clippy::unwrap_used, reason = "an example that cannot go on should say where")]

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_config::{Config, DevelopmentAuthority, Identity, TlsVersion};
use outrigger_identity::{
    IdentityComponent, PeerPolicy, Snapshot, ordinary_client_config, server_config_with_certificates,
};
use outrigger_runtime::{Component, Context};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "full".to_owned());
    let count: u32 = arguments.next().map_or(1000, |count| count.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (server, client) = configs(&what, folder.path()).await;
    let mut server = (*server).clone();
    if let Some(tickets) = arguments.next() {
        server.send_tls13_tickets = tickets.parse().unwrap();
    }
    let server = Arc::new(server);
    let resumed = what.ends_with("resumed");
    let mut sum = Cost::default();
    for round in 0..=count {
        let mut cost = Cost::default();
        let client = if resumed { Arc::clone(&client) } else { without_sessions(&client) };
        let kind = handshake(&server, client, &mut cost);
        // The first one is whole in any case, and warms up.
        if round > 0 {
            assert_eq!(kind == HandshakeKind::Resumed, resumed);
            sum.add(&cost);
        }
    }
    let each = |span: Duration| span.as_secs_f64() * 1e6 / f64::from(count);
    let bytes = |bytes: usize| bytes as f64 / f64::from(count);
    println!("server {:.1} µs, sends {:.0} bytes", each(sum.server), bytes(sum.from_server));
    println!("client {:.1} µs, sends {:.0} bytes", each(sum.client), bytes(sum.from_client));
}

async fn configs(what: &str, folder: &std::path::Path) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    if what.starts_with("simple") {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let (certificate, key) = (folder.join("a.pem"), folder.join("a.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let (server, _) =
            server_config_with_certificates(&[(&certificate, &key)], &[b"h2"], TlsVersion::Tls12).unwrap();
        let (client, _) = ordinary_client_config(Some(&certificate), None, TlsVersion::Tls12).unwrap();
        return (server, Arc::new(client));
    }
    let (backend, frontend) = (workload(folder, "backend").await, workload(folder, "frontend").await);
    let policy = PeerPolicy::Only(vec![frontend.spiffe_id.clone().into()]);
    let server = backend.server_config(&policy, &[b"outrigger-http/1.1"]).unwrap();
    let expected = [backend.spiffe_id.clone().into()];
    (server, frontend.client_config(&expected, &[b"outrigger-http/1.1"]).unwrap())
}

async fn workload(folder: &std::path::Path, account: &str) -> Arc<Snapshot> {
    let development = DevelopmentAuthority {
        directory: folder.join("ca"),
        namespace: "shop".parse().unwrap(),
        service_account: account.parse().unwrap(),
        ttl: outrigger_config::Duration::from_secs(3600),
    };
    let identity = Identity {
        trust_domain: "shop.example".parse().unwrap(),
        files: None,
        authority: None,
        own_authority: None,
        workload_api: None,
        development: Some(development),
    };
    let config = Config { identity: Some(identity), ..Config::default() };
    let (component, identities) = IdentityComponent::new();
    let (context, _outside) = Context::standalone(config, 0);
    tokio::select! {
        snapshot = identities.first() => snapshot.unwrap(),
        ended = component.run(context) => panic!("{ended:?}"),
    }
}

/// The same config, remembering nobody.
fn without_sessions(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    Arc::new(config)
}

#[derive(Default)]
struct Cost {
    server: Duration,
    client: Duration,
    from_server: usize,
    from_client: usize,
}

impl Cost {
    fn add(&mut self, other: &Self) {
        self.server += other.server;
        self.client += other.client;
        self.from_server += other.from_server;
        self.from_client += other.from_client;
    }
}

/// A handshake, and a byte each way so that tickets arrive.
fn handshake(server: &Arc<ServerConfig>, client: Arc<ClientConfig>, cost: &mut Cost) -> HandshakeKind {
    let name = ServerName::try_from("a.test").unwrap();
    let mut near = ClientConnection::new(client, name).unwrap();
    let mut far: Option<ServerConnection> = None;
    near.writer().write_all(b"?").unwrap();
    let (mut there, mut back) = (Vec::new(), Vec::new());
    loop {
        let begun = Instant::now();
        let answered = client_side(&mut near, &back, &mut there);
        cost.client += begun.elapsed();
        cost.from_server += back.len();
        if answered {
            return near.handshake_kind().unwrap();
        }
        let begun = Instant::now();
        server_side(server, &mut far, &there, &mut back);
        cost.server += begun.elapsed();
        cost.from_client += there.len();
    }
}

#[inline(never)]
fn client_side(connection: &mut ClientConnection, input: &[u8], output: &mut Vec<u8>) -> bool {
    take(input, |bytes| connection.read_tls(bytes));
    connection.process_new_packets().unwrap();
    let answered = connection.reader().read(&mut [0]).is_ok();
    output.clear();
    while connection.wants_write() {
        connection.write_tls(output).unwrap();
    }
    answered
}

#[inline(never)]
fn server_side(
    config: &Arc<ServerConfig>,
    connection: &mut Option<ServerConnection>,
    input: &[u8],
    output: &mut Vec<u8>,
) {
    let connection = connection.get_or_insert_with(|| ServerConnection::new(Arc::clone(config)).unwrap());
    take(input, |bytes| connection.read_tls(bytes));
    connection.process_new_packets().unwrap();
    if connection.reader().read(&mut [0]).is_ok() {
        connection.writer().write_all(b"!").unwrap();
    }
    output.clear();
    while connection.wants_write() {
        connection.write_tls(output).unwrap();
    }
}

fn take(mut bytes: &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) {
    while !bytes.is_empty() {
        read(&mut bytes).unwrap();
    }
}
