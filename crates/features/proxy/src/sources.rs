//! Where a cluster's endpoints come from, beside its config: names in DNS.
//!
//! In: endpoints by name, or a name with SRV records. Out: their addresses, again whenever the answers' time is over.
//! Promise: a name is asked for about as often as its records say; one that DNS has no answer for keeps the addresses that
//! it had, hides none of the others, and is told of; what fails is asked for again ever more slowly.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use outrigger_config::{Endpoint as EndpointConfig, SrvName};
use outrigger_http::{Resolver, SrvRecord};
use outrigger_runtime::Backoff;
use outrigger_traffic::endpoints::{Endpoint, EndpointSource, NextUpdate, SrvTarget, Update, of_srv};

/// A name whose record lives for ever is still asked for again.
const LONGEST_TTL: Duration = Duration::from_secs(300);
const SHORTEST_TTL: Duration = Duration::from_secs(1);
/// Addresses that are taken from DNS. Whoever answers for a name must not be able to fill our memory.
const MOST_RESOLVED: usize = 1000;
/// Names that are asked for at once.
const MOST_LOOKUPS: usize = 8;
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
    /// The last good addresses of each of `hosts`.
    known: Vec<Vec<IpAddr>>,
    /// What was told last.
    told: Vec<Endpoint>,
    /// What is still to be told of the names that failed while others did not.
    failed: Option<String>,
}

/// What DNS said.
struct Answer {
    list: Vec<Endpoint>,
    valid_until: Instant,
    /// Why some names have no answer, or only the one they had.
    failed: Option<String>,
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
            known: vec![Vec::new(); hosts.len()],
            hosts,
            services,
            resolver: resolver.clone(),
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(10)),
            due: Instant::now(),
            told: Vec::new(),
            failed: None,
        }
    }

    /// Asks for everything; an error when there is no answer at all.
    async fn ask(&mut self) -> Result<Answer, String> {
        let mut list = Vec::new();
        let mut valid_until = Instant::now() + LONGEST_TTL;
        let (mut failed, mut answered) = (None, self.services.is_some());
        let lookups: Vec<_> = self.hosts.iter().map(|one| one.address.host.clone()).collect();
        let lookups = stream::iter(lookups).map(|host| {
            let resolver = self.resolver.clone();
            async move { resolver.resolve(&host).await }
        });
        let resolved: Vec<_> = lookups.buffered(MOST_LOOKUPS).collect().await;
        for ((endpoint, known), resolved) in self.hosts.iter().zip(&mut self.known).zip(resolved) {
            match resolved {
                Ok(resolved) => {
                    answered = true;
                    valid_until = valid_until.min(resolved.valid_until);
                    *known = resolved.addresses;
                    known.sort_unstable();
                    known.truncate(MOST_RESOLVED + 1);
                }
                Err(error) => failed = Some(error.to_string()),
            }
            list.extend(known.iter().map(|address| Endpoint::of(endpoint, *address)));
        }
        if let Some(error) = failed.take_if(|_| !answered) {
            return Err(error);
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
        Ok(Answer { list, valid_until, failed })
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
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            tokio::time::sleep_until(self.due.into()).await;
            let Answer { list, valid_until, failed } = match self.ask().await {
                Ok(answer) => answer,
                Err(error) => {
                    self.due = Instant::now() + self.backoff.next();
                    return Err(error);
                }
            };
            let wait = earlier(valid_until.saturating_duration_since(Instant::now())).clamp(SHORTEST_TTL, LONGEST_TTL);
            if failed.is_none() {
                self.backoff.reset();
                self.due = Instant::now() + wait;
            } else {
                self.due = Instant::now() + wait.min(self.backoff.next());
                if list == self.told {
                    return Err(failed.unwrap_or_default());
                }
            }
            // Who listens hears of the failure behind the list.
            self.failed = failed;
            self.told.clone_from(&list);
            Ok(Update::All(list))
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
