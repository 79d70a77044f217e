//! Where a cluster's endpoints come from, beside its config: names in DNS.
//!
//! In: endpoints by name, or a name with SRV records. Out: their addresses, again whenever the answers' time is over.
//! Promise: a name is asked for about as often as its records say; while DNS fails nothing is told, so that what was
//! told holds on, and it is asked again ever more slowly.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use outrigger_config::{Endpoint as EndpointConfig, SrvName};
use outrigger_http::{Resolver, SrvRecord};
use outrigger_runtime::Backoff;
use outrigger_traffic::endpoints::{Endpoint, EndpointSource, NextUpdate, SrvTarget, Update, of_srv};

/// A name whose record lives for ever is still asked for again.
const LONGEST_TTL: Duration = Duration::from_secs(300);
const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// Addresses that are taken from DNS. Whoever answers for a name must not be able to fill our memory.
const MOST_RESOLVED: usize = 1000;
/// A name is asked for again up to so much before its time is over, so that not all are asked for at once.
const EARLIER: f64 = 0.1;

/// Names in DNS.
pub(crate) struct Dns {
    cluster: String,
    /// By name or address.
    hosts: Vec<EndpointConfig>,
    /// By SRV records.
    services: Option<SrvName>,
    resolver: Resolver,
    backoff: Backoff,
    /// When it is to be asked again.
    due: Instant,
}

impl Dns {
    pub(crate) fn new(
        cluster: &str,
        hosts: Vec<EndpointConfig>,
        services: Option<SrvName>,
        resolver: &Resolver,
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            hosts,
            services,
            resolver: resolver.clone(),
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(10)),
            due: Instant::now(),
        }
    }

    async fn ask(&self) -> Result<(Vec<Endpoint>, Instant), String> {
        let mut list = Vec::new();
        let mut valid_until = Instant::now() + LONGEST_TTL;
        for endpoint in &self.hosts {
            let resolved = self.resolver.resolve(&endpoint.address.host).await.map_err(|error| error.to_string())?;
            valid_until = valid_until.min(resolved.valid_until);
            let mut addresses = resolved.addresses;
            addresses.sort_unstable();
            list.extend(addresses.into_iter().map(|address| Endpoint::of(endpoint, address)));
        }
        if let Some(name) = &self.services {
            let services = self.resolver.resolve_srv(name.as_str()).await.map_err(|error| error.to_string())?;
            valid_until = valid_until.min(services.valid_until);
            list.extend(of_srv(&self.targets(services.records, &mut valid_until).await?));
        }
        let answered = list.len();
        if answered > MOST_RESOLVED {
            let (cluster, taken) = (&self.cluster, MOST_RESOLVED);
            tracing::warn!(component = "proxy", cluster, answered, taken, "DNS answered more addresses than are taken");
            list.truncate(MOST_RESOLVED);
        }
        Ok((list, valid_until))
    }

    /// The targets of records that have addresses. One without does not hide the others.
    async fn targets(&self, records: Vec<SrvRecord>, valid_until: &mut Instant) -> Result<Vec<SrvTarget>, String> {
        let (mut targets, mut failed) = (Vec::new(), None);
        for record in records.into_iter().take(MOST_RESOLVED) {
            match self.resolver.resolve(&record.target).await {
                Ok(resolved) => {
                    *valid_until = (*valid_until).min(resolved.valid_until);
                    let SrvRecord { priority, weight, port, .. } = record;
                    targets.push(SrvTarget { priority, weight, port, addresses: resolved.addresses });
                }
                Err(error) => {
                    tracing::warn!(component = "proxy", cluster = self.cluster, %error, "target of an SRV record left out");
                    failed = Some(error.to_string());
                    *valid_until = Instant::now();
                }
            }
        }
        match (targets.is_empty(), failed) {
            (true, Some(error)) => Err(error),
            _ => Ok(targets),
        }
    }
}

impl EndpointSource for Dns {
    fn next(&mut self) -> NextUpdate<'_> {
        Box::pin(async {
            tokio::time::sleep_until(self.due.into()).await;
            match self.ask().await {
                Ok((list, valid_until)) => {
                    self.backoff.reset();
                    let wait = earlier(valid_until.saturating_duration_since(Instant::now()));
                    self.due = Instant::now() + wait.clamp(SHORTEST_TTL, LONGEST_TTL);
                    Ok(Update::All(list))
                }
                Err(error) => {
                    self.due = Instant::now() + self.backoff.next();
                    Err(error)
                }
            }
        })
    }
}

/// Nobody who knows services.
#[derive(Default)]
pub(crate) struct Nobody {
    said: bool,
}

impl EndpointSource for Nobody {
    fn next(&mut self) -> NextUpdate<'_> {
        Box::pin(async {
            if std::mem::replace(&mut self.said, true) {
                std::future::pending::<()>().await;
            }
            Err("nobody here knows services".to_owned())
        })
    }
}

/// A little earlier.
fn earlier(wait: Duration) -> Duration {
    let chance = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    wait.mul_f64(1.0 - EARLIER * chance)
}
