//! A fleet of sidecars for the bench: `fleet FOLDER SERVER SIDECARS FOLLOWED SERVICES` follows services at a discovery server by as
//! many streams, each a connection of its own with mTLS and the client's own code, waits between tries included.
//!
//! The first service is followed by all; others are spread. A line says whenever all know what they follow and are connected, or no
//! longer: `all SECONDS CONNECTIONS` since the start, with the connections made since the last line, or `some SECONDS COUNT`.
//! `bench/run fleet` drives it.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_follow::{Notebook, follow_always};
use outrigger_http::Resolver;
use outrigger_identity::IdentityComponent;
use outrigger_runtime::{Component, Context};
use outrigger_traffic::directory::Directory;
use outrigger_traffic::endpoints::EndpointSource;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often it is looked at who is connected, and how often while all are: to look takes time of the core that the clients need.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_WHILE_ALL: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, server, sidecars, followed, services] = arguments.as_slice() else {
        return Err("usage: fleet FOLDER SERVER SIDECARS FOLLOWED SERVICES".into());
    };
    let (sidecars, followed, services): (u32, u32, u32) = (sidecars.parse()?, followed.parse()?, services.parse()?);
    let text = format!(
        "identity:\n  trustDomain: bench.test\n  development: {{ directory: \"{folder}\", namespace: n, serviceAccount: sidecar }}\n\
         proxy:\n  discovery: {{ servers: [\"{server}\"], connectTimeout: 20s, tls: {{ spiffeIds: [\"spiffe://bench.test/ns/n/sa/controller\"] }} }}\n  \
         listeners: [{{ name: out, direction: outbound, address: \"127.0.0.1:1\", redirected: true, protocol: auto }}]\n"
    );
    let config = outrigger_config::parse("fleet.yaml", &text, &|_| None).map_err(|error| error.to_string())?.config;
    let section = config.proxy.as_ref().and_then(|proxy| proxy.discovery.clone()).ok_or("no discovery")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (identity, identities) = IdentityComponent::new();
        let (context, _standalone) = Context::standalone(config, 1);
        let (registry, resolver) = (context.registry.clone(), Resolver::from_system());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(identity.run(context).await) });
        let section = Arc::new(section);
        let mut notebooks: Vec<(Notebook, Vec<Box<dyn EndpointSource>>)> = Vec::new();
        for number in 0..sidecars {
            let notebook = Notebook::default();
            let name = |one: u32| if one == 0 { 0 } else { (number * 7 + one * 13) % services.max(1) };
            let names = (0..followed).map(|one| format!("s{}.n{}.svc.cluster.local:80", name(one), name(one) % 50));
            let sources = names.map(|name| Directory::follow(&notebook, &name)).collect();
            notebooks.push((notebook.clone(), sources));
            let (section, identities) = (Arc::clone(&section), identities.clone());
            let (resolver, registry) = (resolver.clone(), registry.clone());
            tasks.spawn(async move { follow_always(&section, &identities, &resolver, &notebook, &registry).await });
        }
        let help = "Connections made to discovery servers.";
        let made = registry.counter("outrigger_discovery_client_connections_total", help, &[]).with(&[]);
        let (begun, mut before, mut counted) = (Instant::now(), None, 0);
        loop {
            tokio::time::sleep(if before == Some(notebooks.len()) { LOOK_WHILE_ALL } else { LOOK }).await;
            let good = notebooks.iter().filter(|(notebook, _)| notebook.is_current()).count();
            if before != Some(good) && (good == notebooks.len() || before == Some(notebooks.len())) {
                let seconds = begun.elapsed().as_secs_f64();
                match good == notebooks.len() {
                    true => println!("all {seconds} {}", made.value() - std::mem::replace(&mut counted, made.value())),
                    false => println!("some {seconds} {good}"),
                }
            }
            before = Some(good);
        }
    })
}
