//! Over real connections: mTLS, HTTP/2, clients that read and clients that do not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use outrigger_config::Config;
use outrigger_http::{GrpcClient, GrpcOptions, GrpcReceiver, GrpcSender, Resolver};
use outrigger_identity::{Identities, IdentityComponent};
use outrigger_runtime::{Component, Context, Standalone};
use outrigger_telemetry::{Format, Registry};
use outrigger_wire::xds::{DELTA_ADS, Request, Response};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::service;
use crate::{Catalogue, DiscoveryComponent, Kind};

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    port: u16,
    catalogue: Catalogue,
    identities: Identities,
    registry: Registry,
    component: Standalone,
    _identity: Standalone,
    tasks: JoinSet<()>,
    _folder: tempfile::TempDir,
}

/// A port that nobody has, as far as can be told.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    async fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let text = format!(
            "identity:\n  trustDomain: d.test\n  development: {{ directory: \"{}\", namespace: n, serviceAccount: s }}\n\
             discovery:\n  listen: \"127.0.0.1:{port}\"\n{more}",
            folder.path().display()
        );
        let config: Config =
            outrigger_config::parse("test.yaml", &text, &|_| None).unwrap_or_else(|error| panic!("{error}")).config;
        let mut tasks = JoinSet::new();
        let (identity, identities) = IdentityComponent::new();
        let (ctx, identity_side) = Context::standalone(config.clone(), 1);
        tasks.spawn(async move { identity.run(ctx).await.unwrap() });
        identities.first().await.unwrap();
        let component = DiscoveryComponent::new(identities.clone(), Resolver::from_system(), Vec::new());
        let catalogue = component.catalogue();
        let (ctx, mut side) = Context::standalone(config, 1);
        let registry = ctx.registry.clone();
        tasks.spawn(async move { component.run(ctx).await.unwrap() });
        timeout(PATIENCE, side.ready()).await.unwrap();
        Self {
            port,
            catalogue,
            identities,
            registry,
            component: side,
            _identity: identity_side,
            tasks,
            _folder: folder,
        }
    }

    async fn client(&self) -> Client {
        let tls = self.identities.current().unwrap();
        let tls = tls.client_config(&["spiffe://d.test/ns/n/sa/s".parse().unwrap()], &[b"h2"]).unwrap();
        let options = GrpcOptions { tls: Some(tls), ..GrpcOptions::default() };
        let url = format!("https://127.0.0.1:{}", self.port).parse().unwrap();
        let client = GrpcClient::new(url, options, Resolver::from_system());
        // The port may not be bound yet.
        let (sender, receiver) = loop {
            match client.open(DELTA_ADS, &HeaderMap::new()).await {
                Ok(open) => break open,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        Client { _client: client, sender, receiver }
    }

    /// Polls a metric.
    async fn until(&self, line: &str) {
        let text = || {
            let mut out = Vec::new();
            self.registry.encode(Format::Text, &mut out);
            String::from_utf8(out).unwrap()
        };
        let holds = async {
            while !text().lines().any(|one| one == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(PATIENCE, holds).await.is_ok(), "no `{line}` in\n{}", text());
    }
}

struct Client {
    _client: GrpcClient,
    sender: GrpcSender,
    receiver: GrpcReceiver,
}

impl Client {
    async fn send(&self, request: Request<'_>) {
        let mut message = Vec::new();
        request.write(&mut message);
        self.sender.send(&message).await.unwrap();
    }

    async fn ask(&self, kind: Kind, names: &[&str]) {
        self.send(Request { type_url: kind.type_url(), subscribe: names.to_vec(), ..Request::default() }).await;
    }

    async fn hear(&mut self) -> Bytes {
        timeout(PATIENCE, self.receiver.next()).await.unwrap().unwrap().unwrap()
    }

    /// Acknowledges what was heard; gives the names in it.
    async fn take(&mut self) -> Vec<String> {
        let message = self.hear().await;
        let response = Response::read(&message);
        self.send(Request { type_url: response.type_url, nonce: response.nonce, ..Request::default() }).await;
        let mut names: Vec<String> = response.resources.iter().map(|one| one.name.to_owned()).collect();
        names.sort_unstable();
        names
    }
}

#[tokio::test]
async fn changes_go_to_those_who_asked_and_are_acknowledged() {
    let services = "  services:\n  - { name: \"a.test:1\", endpoints: [{ address: \"10.0.0.1:1\" }] }\n";
    let mut server = Server::start(services).await;
    let (mut one, mut other) = (server.client().await, server.client().await);
    one.ask(Kind::Assignment, &["a.test:1", "b.test:1"]).await;
    other.ask(Kind::Assignment, &["b.test:1"]).await;
    assert_eq!(one.take().await, ["a.test:1"]);
    assert!(other.take().await.is_empty());
    server.until("outrigger_discovery_streams 2").await;
    server.until("outrigger_discovery_subscriptions 3").await;
    server.catalogue.apply(&[service("b.test:1", &[1, 2])], &[]);
    assert_eq!(one.take().await, ["b.test:1"]);
    assert_eq!(other.take().await, ["b.test:1"]);
    server.until("outrigger_discovery_acknowledgements_total{type=\"endpoints\",result=\"ack\"} 4").await;
    drop(other);
    server.until("outrigger_discovery_streams 1").await;
    // A reload changes what is told under the streams that are open.
    server.component.config.send_modify(|config| {
        let mut new = (**config).clone();
        new.discovery.as_mut().unwrap().services[0].endpoints[0].weight = 7;
        *config = Arc::new(new);
    });
    assert_eq!(one.take().await, ["a.test:1"]);
    server.component.stop.request(tokio::time::Instant::now() + PATIENCE);
    let ended = timeout(PATIENCE, one.receiver.next()).await.unwrap();
    assert!(ended.is_err_and(|error| error.retryable()), "a stop ends streams so that they come again");
    server.tasks.abort_all();
}

#[tokio::test]
async fn who_does_not_read_holds_nobody_back() {
    let server = Server::start("").await;
    let ports: Vec<u16> = (1..=10_000).collect();
    let (slow, mut quick) = (server.client().await, server.client().await);
    slow.ask(Kind::Assignment, &["big.test:1"]).await;
    quick.ask(Kind::Assignment, &["big.test:1"]).await;
    server.until("outrigger_discovery_subscriptions 2").await;
    // The first one's window is full with the first of these. What is told after that is only the last state.
    assert!(quick.take().await.is_empty());
    for round in 0..10 {
        server.catalogue.apply(&[service("big.test:1", &ports[round..])], &[]);
        assert_eq!(quick.take().await, ["big.test:1"]);
    }
    let mut slow = slow;
    let mut last = Bytes::new();
    let wanted = server.catalogue.find(Kind::Assignment, "big.test:1").unwrap().version;
    let mut answers = 0;
    while !Response::read(&last).resources.iter().any(|one| one.version == format!("{wanted:016x}")) {
        last = slow.hear().await;
        answers += 1;
    }
    assert!(answers < 10, "{answers} answers: states that nobody needs were kept");
}

#[tokio::test]
async fn who_comes_again_is_told_only_what_changed() {
    let server = Server::start("").await;
    server.catalogue.apply(&[service("a.test:1", &[1]), service("b.test:1", &[1])], &[]);
    let mut client = server.client().await;
    client.ask(Kind::Assignment, &["a.test:1", "b.test:1"]).await;
    let message = client.hear().await;
    let versions: Vec<(String, String)> =
        Response::read(&message).resources.iter().map(|one| (one.name.to_owned(), one.version.to_owned())).collect();
    drop(client);
    // Another server gives the same versions.
    let other = Server::start("").await;
    other.catalogue.apply(&[service("a.test:1", &[1]), service("b.test:1", &[2])], &[]);
    let mut client = other.client().await;
    let versions = versions.iter().map(|(name, version)| (name.as_str(), version.as_str())).collect();
    let names = vec!["a.test:1", "b.test:1"];
    client
        .send(Request { type_url: Kind::Assignment.type_url(), subscribe: names, versions, ..Request::default() })
        .await;
    assert_eq!(client.take().await, ["b.test:1"]);
}

#[tokio::test]
async fn who_sends_garbage_or_too_much_loses_the_own_stream_alone() {
    let server = Server::start("  limits: { maxSubscriptions: 2, maxRequestBytes: 4KiB }\n").await;
    let mut good = server.client().await;
    good.ask(Kind::Assignment, &["a.test:1"]).await;
    good.take().await;
    let mut greedy = server.client().await;
    greedy.ask(Kind::Assignment, &["a.test:1", "b.test:1", "c.test:1"]).await;
    let refused = timeout(PATIENCE, greedy.receiver.next()).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("RESOURCE_EXHAUSTED"), "{refused}");
    let mut large = server.client().await;
    large.sender.send(&vec![0; 5000]).await.unwrap();
    let refused = timeout(PATIENCE, large.receiver.next()).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("4096"), "{refused}");
    // Bytes that are no message say nothing, and ask for nothing.
    let garbage = server.client().await;
    garbage.sender.send(&[0xff; 64]).await.unwrap();
    garbage.ask(Kind::Assignment, &["a.test:1"]).await;
    server.catalogue.apply(&[service("a.test:1", &[1])], &[]);
    assert_eq!(good.take().await, ["a.test:1"]);
}

#[tokio::test]
async fn a_newer_proxy_is_told_that_what_nobody_knows_is_not_there_and_served_the_rest() {
    let services = "  services:\n  - { name: \"a.test:1\", endpoints: [{ address: \"10.0.0.1:1\" }] }\n";
    let mut server = Server::start(services).await;
    let mut newer = server.client().await;
    // Fields that no version has yet: a message, a number, and two of fixed length.
    let future = [&b"\xa2\x06\x02\x08\x01\xa8\x06\x07\xb1\x06"[..], &[0; 8], b"\xbd\x06", &[0; 4]].concat();
    for (type_url, name) in
        [("type.googleapis.com/outrigger.dev.v9.Wish", "w"), (Kind::Assignment.type_url(), "a.test:1")]
    {
        let mut message = future.clone();
        Request { type_url, subscribe: vec![name], ..Request::default() }.write(&mut message);
        message.extend(&future);
        newer.sender.send(&message).await.unwrap();
        let answer = newer.hear().await;
        let response = Response::read(&answer);
        assert_eq!(response.type_url, type_url);
        let told: Vec<_> = response.resources.iter().map(|one| one.name).collect();
        let (there, gone) = if name == "w" { (vec![], vec!["w"]) } else { (vec!["a.test:1"], vec![]) };
        assert_eq!((told, response.removed), (there, gone), "{type_url}");
    }
    server.tasks.abort_all();
}
