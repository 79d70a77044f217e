//! The DNS servers of `/etc/resolv.conf`: which they are, and how they are asked.
//!
//! In: resolv.conf, read when first needed and again when it has changed. Out: answers.
//! Promise: a lookup ends within its time, whatever the servers do; a missing or empty
//! resolv.conf is an error of the lookups, not of the process.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;

use super::hosts::{Fingerprint, fingerprint};
use super::{ResolveError, ResolvedSrv, SrvRecord};

/// The library's own cache saves asking every search domain anew; ours, in front of it, holds the results.
const INNER_CACHE: u64 = 256;
/// The library keeps negative answers no longer than we do.
const NEGATIVE: Duration = Duration::from_secs(5);
/// One try at one server; resolv.conf may say less.
const TRY: Duration = Duration::from_secs(3);
/// A lookup through all search domains, servers and tries.
const WHOLE: Duration = Duration::from_secs(10);

/// The servers at present.
pub(super) struct Upstream {
    resolv_conf: PathBuf,
    port: u16,
    read: Option<Option<Fingerprint>>,
    servers: Result<TokioResolver, String>,
}

/// What the servers said.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) valid_until: Instant,
}

impl Upstream {
    pub(super) fn new(resolv_conf: PathBuf, port: u16) -> Self {
        Self { resolv_conf, port, read: None, servers: Err(String::new()) }
    }

    /// The servers, or what is wrong with resolv.conf.
    pub(super) fn current(&mut self) -> Result<TokioResolver, String> {
        let now = fingerprint(&self.resolv_conf);
        if self.read != Some(now) {
            self.read = Some(now);
            self.servers = self.read_servers();
        }
        self.servers.clone()
    }

    fn read_servers(&self) -> Result<TokioResolver, String> {
        let path = self.resolv_conf.display();
        let text = std::fs::read(&self.resolv_conf).map_err(|error| format!("{path} cannot be read ({error})"))?;
        let (config, options) =
            parse_resolv_conf(text).map_err(|_| format!("{path} names no DNS server (`nameserver ADDRESS`)"))?;
        let resolver = TokioResolver::builder_with_config(self.on_port(config), TokioRuntimeProvider::default())
            .with_options(tuned(options))
            .build();
        resolver.map_err(|error| format!("{path} cannot be used ({error})"))
    }

    fn on_port(&self, config: ResolverConfig) -> ResolverConfig {
        let (domain, search, mut servers) = config.into_parts();
        for connection in servers.iter_mut().flat_map(|server| &mut server.connections) {
            connection.port = self.port;
        }
        ResolverConfig::from_parts(domain, search, servers)
    }
}

fn tuned(mut options: ResolverOpts) -> ResolverOpts {
    options.cache_size = INNER_CACHE;
    options.negative_max_ttl = Some(NEGATIVE);
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = options.timeout.min(TRY);
    options
}

/// Asks for the addresses of a name, through the search domains where its dots do not suffice.
pub(super) async fn ask(servers: &TokioResolver, name: &str) -> Result<Answer, ResolveError> {
    let failed = |problem: String| ResolveError::Failed { host: name.to_owned(), problem };
    match tokio::time::timeout(WHOLE, servers.lookup_ip(name)).await {
        Err(_) => Err(failed(format!("no DNS server answered within {WHOLE:?}"))),
        Ok(Ok(answer)) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in answer.iter().filter(|address| !address.is_unspecified()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses.sort_by_key(IpAddr::is_ipv6);
            if addresses.is_empty() {
                return Err(ResolveError::NotFound { host: name.to_owned() });
            }
            Ok(Answer { addresses, valid_until: answer.valid_until() })
        }
        Ok(Err(error)) => Err(problem(name, &error)),
    }
}

/// Asks for the SRV records of a name. A target of `.` says that there is no such service, as if there were no record.
pub(super) async fn ask_srv(servers: &TokioResolver, name: &str) -> Result<ResolvedSrv, ResolveError> {
    let whole = format!("{}.", name.trim_end_matches('.'));
    let answer = match tokio::time::timeout(WHOLE, servers.lookup(whole, RecordType::SRV)).await {
        Err(_) => {
            let problem = format!("no DNS server answered within {WHOLE:?}");
            return Err(ResolveError::Failed { host: name.to_owned(), problem });
        }
        Ok(answer) => answer.map_err(|error| problem(name, &error))?,
    };
    let records = answer.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) if !srv.target.is_root() => Some(SrvRecord {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_ascii(),
        }),
        _ => None,
    });
    let mut records: Vec<SrvRecord> = records.collect();
    records.sort_unstable();
    records.dedup();
    if records.is_empty() {
        return Err(ResolveError::NotFound { host: name.to_owned() });
    }
    Ok(ResolvedSrv { records, valid_until: answer.valid_until() })
}

/// What an error of the library means.
fn problem(name: &str, error: &NetError) -> ResolveError {
    let failed = |problem: String| ResolveError::Failed { host: name.to_owned(), problem };
    match error {
        error if is_negative(error) => ResolveError::NotFound { host: name.to_owned() },
        NetError::Timeout => failed("no DNS server answers".to_owned()),
        NetError::NoConnections => failed("no DNS server can be reached".to_owned()),
        error => failed(error.to_string()),
    }
}

/// Whether the servers said that there is nothing, rather than that something is wrong.
fn is_negative(error: &NetError) -> bool {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
        }
        _ => false,
    }
}
