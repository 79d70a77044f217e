//! A discovery server for the bench: `fleet_server FOLDER ADDRESS SERVICES ENDPOINTS CHANGED` tells of so many services with so
//! many endpoints each, from a feed in memory; the development authority in FOLDER gives it its identity.
//!
//! Each line on its input changes an endpoint of the first CHANGED services in one go, waits until as many acknowledgements came as the line says, and
//! writes how long that took: `changed SECONDS BYTES-RESIDENT STREAMS`. An empty line only writes how things are. `bench/run fleet` drives it.

use std::error::Error;
use std::io::BufRead;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outrigger_discovery::{Change, DiscoveryComponent, Feed, NextChange, Service, ServiceEndpoint};
use outrigger_identity::IdentityComponent;
use outrigger_runtime::{Component, Context};
use outrigger_telemetry::Registry;
use tokio::sync::mpsc::{Receiver, Sender, channel};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATIENCE: Duration = Duration::from_secs(120);

struct Told(Receiver<Change>);

impl Feed for Told {
    fn next(&mut self) -> NextChange<'_> {
        Box::pin(async {
            match self.0.recv().await {
                Some(change) => Ok(change),
                None => std::future::pending().await,
            }
        })
    }
}

fn service(number: u32, endpoints: u32, weight: u32) -> Service {
    let endpoint = |one: u32| {
        let [_, b, c, d] = (number * endpoints + one).to_be_bytes();
        let address = SocketAddr::from(([10, b, c, d], 8080));
        let weight = if one == 0 { weight } else { 1 };
        let identity = format!("spiffe://bench.test/ns/n{}/sa/s{number}", number % 50);
        ServiceEndpoint { weight, identity, zone: format!("zone-{}", one % 3), ..ServiceEndpoint::new(address) }
    };
    let [_, b, c, d] = number.to_be_bytes();
    Service {
        name: format!("s{number}.n{}.svc.cluster.local:80", number % 50),
        virtual_addresses: vec![SocketAddr::from(([172, b, c, d], 80))],
        http2: false,
        endpoints: (0..endpoints).map(endpoint).collect(),
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, address, services, endpoints, changed] = arguments.as_slice() else {
        return Err("usage: fleet_server FOLDER ADDRESS SERVICES ENDPOINTS CHANGED".into());
    };
    let (services, endpoints, changed): (u32, u32, u32) = (services.parse()?, endpoints.parse()?, changed.parse()?);
    let text = format!(
        "identity:\n  trustDomain: bench.test\n  development: {{ directory: \"{folder}\", namespace: n, serviceAccount: controller }}\n\
         discovery: {{ listen: \"{address}\" }}\n"
    );
    let config = outrigger_config::parse("fleet.yaml", &text, &|_| None).map_err(|error| error.to_string())?.config;
    let (sender, receiver) = channel(1024);
    let (ready, is_ready) = std::sync::mpsc::sync_channel::<Registry>(1);
    let serving = std::thread::spawn(move || -> Result<(), Box<dyn Error + Send + Sync>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (identity, identities) = IdentityComponent::new();
            let (context, _identity) = Context::standalone(config.clone(), 1);
            let component = DiscoveryComponent::new(
                identities,
                outrigger_http::Resolver::from_system(),
                vec![Box::new(Told(receiver))],
            );
            let (ours, mut standalone) = Context::standalone(config, 1);
            let registry = ours.registry.clone();
            let told = async {
                standalone.ready().await;
                let _ = ready.send(registry);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                ended = identity.run(context) => ended,
                ended = component.run(ours) => ended,
                () = told => Ok(()),
            }
        })
    });
    for number in 0..services {
        sender.blocking_send(Change::Set(service(number, endpoints, 1)))?;
    }
    sender.blocking_send(Change::Complete)?;
    let registry = is_ready.recv().map_err(|_| "the server did not start")?;
    println!("ready 0 {} 0", resident()?);
    for (round, line) in std::io::stdin().lock().lines().enumerate() {
        let wanted: u64 = line?.trim().parse().unwrap_or(0);
        let seconds = change(&registry, &sender, changed, endpoints, round as u32 + 2, wanted)?;
        let streams =
            registry.gauge("outrigger_discovery_streams", "Proxies that are connected.", &[]).with(&[]).value();
        println!("changed {seconds} {} {streams}", resident()?);
        if serving.is_finished() {
            return Err("the server ended".into());
        }
    }
    Ok(())
}

/// Changes services and waits for acknowledgements; seconds.
fn change(
    registry: &Registry,
    sender: &Sender<Change>,
    changed: u32,
    endpoints: u32,
    weight: u32,
    wanted: u64,
) -> Result<f64, Box<dyn Error + Send + Sync>> {
    if wanted == 0 {
        return Ok(0.0);
    }
    let help = "What became of answers: taken (ack) or refused (nack), by type.";
    let family = registry.counter("outrigger_discovery_acknowledgements_total", help, &["type", "result"]);
    let taken = family.with(&["endpoints", "ack"]);
    let (before, begun) = (taken.value(), Instant::now());
    for number in 0..changed {
        sender.blocking_send(Change::Set(service(number, endpoints, weight)))?;
    }
    while taken.value() < before + wanted {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} of {wanted} acknowledgements came", taken.value() - before).into());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Bytes of our memory that are resident.
fn resident() -> Result<u64, Box<dyn Error + Send + Sync>> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split_whitespace().nth(1).ok_or("no resident pages")?.parse()?;
    Ok(pages * 4096)
}
