//! What `top` shows, from what `/metrics` says.
//!
//! In: two scrapes of exposition text. Out: rows: rate, success and quantiles of the time
//! between, by route, cluster, peer or listener. Promise: read from the outside, with the names
//! and the parser any user has; an Outrigger that began anew in between shows no negative rate.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_telemetry::parse::{self, Limits, Sample};

/// What rows stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum By {
    Route,
    Cluster,
    Peer,
    Listener,
}

impl By {
    pub(crate) const ALL: [Self; 4] = [Self::Route, Self::Cluster, Self::Peer, Self::Listener];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Cluster => "cluster",
            Self::Peer => "peer",
            Self::Listener => "listener",
        }
    }
}

/// What requests were counted under.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    values: [String; 4],
}

impl Labels {
    fn of(sample: &Sample) -> Self {
        Self { values: By::ALL.map(|by| sample.label(by.name()).unwrap_or_default().to_owned()) }
    }

    fn get(&self, by: By) -> &str {
        &self.values[by as usize]
    }
}

/// One scrape.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    requests: BTreeMap<Labels, u64>,
    /// With an answer of 5xx, with none, or with a gRPC status that says that the server failed.
    failed: BTreeMap<Labels, u64>,
    /// Cumulative counts by upper bound; peers are not told apart.
    durations: BTreeMap<Labels, BTreeMap<u64, u64>>,
    /// By listener, or by cluster.
    busy: BTreeMap<(By, String), f64>,
    connections: BTreeMap<(By, String), f64>,
    most: BTreeMap<(By, String), f64>,
    most_connections: BTreeMap<(By, String), f64>,
    buffers: f64,
    buffer_limit: f64,
}

/// Statuses of gRPC that say that the server failed, as OpenTelemetry has them.
const GRPC_FAILURES: [&str; 6] = ["2", "4", "12", "13", "14", "15"];
/// A sidecar with ten thousand series is larger than what is read of an application.
const LIMITS: Limits = Limits { max_bytes: 64 << 20, max_line: 64 << 10, max_samples: 2_000_000, max_labels: 64 };

impl Scrape {
    /// Reads exposition text.
    pub(crate) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let mut scrape = Self::default();
        for family in parse::parse_within(text, LIMITS)?.families {
            family.samples.iter().for_each(|sample| scrape.take(sample));
        }
        Ok(scrape)
    }

    fn take(&mut self, sample: &Sample) {
        let label = |name: &str| sample.label(name).unwrap_or_default();
        // Counters are whole and far below 2^53.
        let count = sample.value as u64;
        let of = |by: By| (by, label(by.name()).to_owned());
        match sample.name.as_str() {
            "outrigger_http_requests_total" => {
                let labels = Labels::of(sample);
                if label("code").starts_with(['5', '0']) {
                    *self.failed.entry(labels.clone()).or_default() += count;
                }
                *self.requests.entry(labels).or_default() += count;
            }
            // What failed as HTTP too has been counted.
            "outrigger_grpc_requests_total" if GRPC_FAILURES.contains(&label("grpc_status")) => {
                *self.failed.entry(Labels::of(sample)).or_default() += count;
            }
            "outrigger_http_request_duration_seconds_bucket" => {
                let bound = if label("le") == "+Inf" { Ok(f64::INFINITY) } else { label("le").parse() };
                if let Ok(bound) = bound
                    && bound >= 0.0
                {
                    // The bits of such numbers are in the numbers' order.
                    let buckets = self.durations.entry(Labels::of(sample)).or_default();
                    *buckets.entry(f64::to_bits(bound)).or_default() += count;
                }
            }
            "outrigger_http_requests_in_flight" => *self.busy.entry(of(By::Listener)).or_default() += sample.value,
            "outrigger_concurrency_requests" => *self.busy.entry(of(By::Cluster)).or_default() += sample.value,
            "outrigger_concurrency_limit_requests" => *self.most.entry(of(By::Cluster)).or_default() += sample.value,
            "outrigger_downstream_connections_active" => {
                *self.connections.entry(of(By::Listener)).or_default() += sample.value;
            }
            "outrigger_upstream_connections_active" => {
                *self.connections.entry(of(By::Cluster)).or_default() += sample.value;
            }
            "outrigger_proxy_buffer_bytes" if label("state") == "lent" => self.buffers += sample.value,
            // Each direction tells the same.
            "outrigger_proxy_buffer_limit_bytes" => self.buffer_limit = self.buffer_limit.max(sample.value),
            _ => {}
        }
    }

    /// Adds what `/listeners` says of how many connections there may be.
    pub(crate) fn limits(&mut self, listeners: &serde_json::Value) {
        for one in listeners.as_array().into_iter().flatten() {
            if let (Some(name), Some(most)) = (one["name"].as_str(), one["maxConnections"].as_f64()) {
                self.most_connections.insert((By::Listener, name.to_owned()), most);
            }
        }
    }

    /// The share of the buffers' memory that is lent, when there is a limit.
    pub(crate) fn buffers(&self) -> Option<f64> {
        (self.buffer_limit > 0.0).then(|| self.buffers / self.buffer_limit)
    }

    /// Requests being answered, and open connections of clients.
    pub(crate) fn open(&self) -> (f64, f64) {
        let all = |map: &BTreeMap<(By, String), f64>| {
            map.iter().filter(|((by, _), _)| *by == By::Listener).map(|(_, value)| value).sum()
        };
        (all(&self.busy), all(&self.connections))
    }
}

/// Conditions on rows: each kind at most once.
pub(crate) type Filter = Vec<(By, String)>;

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Requests a second, and the share that did not fail, of the time between.
    pub(crate) rate: f64,
    pub(crate) success: Option<f64>,
    /// Seconds: p50, p95, p99.
    pub(crate) quantiles: [Option<f64>; 3],
    /// Requests since the start, and how many failed.
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) busy: Option<f64>,
    /// How many may be.
    pub(crate) most: Option<f64>,
    pub(crate) connections: Option<f64>,
    pub(crate) most_connections: Option<f64>,
}

/// The rows of one kind for what fits the filter, by name. There is one for whatever was ever counted.
pub(crate) fn rows(before: &Scrape, now: &Scrape, elapsed: Duration, by: By, filter: &Filter) -> Vec<Row> {
    let fits = |labels: &Labels| filter.iter().all(|(by, value)| labels.get(*by) == value);
    let sums = |map: &BTreeMap<Labels, u64>| {
        let mut sums = BTreeMap::<String, u64>::new();
        for (labels, count) in map.iter().filter(|(labels, _)| fits(labels)) {
            *sums.entry(labels.get(by).to_owned()).or_default() += count;
        }
        sums
    };
    let [requests, failed] = [&now.requests, &now.failed].map(sums);
    let [requests_before, failed_before] = [&before.requests, &before.failed].map(sums);
    // Histograms know no peers.
    let timed = by != By::Peer && filter.iter().all(|(by, _)| *by != By::Peer);
    let mut names: Vec<&String> = requests.keys().collect();
    if filter.is_empty() {
        names.extend(now.connections.keys().filter(|(kind, _)| *kind == by).map(|(_, name)| name));
        names.sort();
        names.dedup();
    }
    let row = |name: &String| {
        let get = |map: &BTreeMap<String, u64>| map.get(name).copied().unwrap_or_default();
        let (all, bad) = (get(&requests), get(&failed));
        let began_anew = all < get(&requests_before);
        let since = |now: u64, before: u64| if began_anew { now } else { now.saturating_sub(before) };
        let (more, worse) = (since(all, get(&requests_before)), since(bad, get(&failed_before)));
        let gauge = |map: &BTreeMap<(By, String), f64>| {
            if filter.is_empty() { map.get(&(by, name.clone())).copied() } else { None }
        };
        Row {
            name: name.clone(),
            rate: more as f64 / elapsed.as_secs_f64().max(0.001),
            success: (more > 0).then(|| 1.0 - (worse.min(more) as f64 / more as f64)),
            quantiles: if timed {
                let buckets = between(before, now, |labels| fits(labels) && labels.get(by) == name);
                [0.5, 0.95, 0.99].map(|q| outrigger_telemetry::quantile(q, &buckets))
            } else {
                [None; 3]
            },
            requests: all,
            failed: bad,
            busy: gauge(&now.busy),
            most: gauge(&now.most),
            connections: gauge(&now.connections),
            most_connections: gauge(&now.most_connections),
        }
    };
    names.into_iter().map(row).collect()
}

/// Cumulative counts of what took place between two scrapes.
fn between(before: &Scrape, now: &Scrape, fits: impl Fn(&Labels) -> bool) -> Vec<(f64, u64)> {
    let sum = |scrape: &Scrape| {
        let mut sums = BTreeMap::<u64, u64>::new();
        for (_, buckets) in scrape.durations.iter().filter(|(labels, _)| fits(labels)) {
            for (bound, count) in buckets {
                *sums.entry(*bound).or_default() += count;
            }
        }
        sums
    };
    let (old, new) = (sum(before), sum(now));
    let began_anew = old.iter().any(|(bound, count)| new.get(bound).is_none_or(|now| now < count));
    let before = |bound: &u64| if began_anew { 0 } else { old.get(bound).copied().unwrap_or_default() };
    new.iter().map(|(bound, count)| (f64::from_bits(*bound), count - before(bound))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(good: u64, bad: u64, slow: u64) -> Scrape {
        let labels = "direction=\"inbound\",listener=\"in\",route=\"all\",cluster=\"app\"";
        let text = format!(
            "# TYPE outrigger_http_requests_total counter\n\
             outrigger_http_requests_total{{{labels},code=\"200\",peer=\"spiffe://d/ns/a/sa/b\"}} {good}\n\
             outrigger_http_requests_total{{{labels},code=\"503\",peer=\"\"}} {bad}\n\
             # TYPE outrigger_http_request_duration_seconds histogram\n\
             outrigger_http_request_duration_seconds_bucket{{{labels},le=\"0.01\"}} {fast}\n\
             outrigger_http_request_duration_seconds_bucket{{{labels},le=\"1\"}} {all}\n\
             outrigger_http_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {all}\n\
             outrigger_http_request_duration_seconds_sum{{{labels}}} 1\n\
             outrigger_http_request_duration_seconds_count{{{labels}}} {all}\n\
             # TYPE outrigger_http_requests_in_flight gauge\n\
             outrigger_http_requests_in_flight{{listener=\"in\"}} 3\n\
             # TYPE outrigger_downstream_connections_active gauge\n\
             outrigger_downstream_connections_active{{listener=\"idle\"}} 2\n\
             # TYPE outrigger_proxy_buffer_bytes gauge\n\
             outrigger_proxy_buffer_bytes{{state=\"lent\"}} 25\n\
             # TYPE outrigger_proxy_buffer_limit_bytes gauge\n\
             outrigger_proxy_buffer_limit_bytes 100\n",
            all = good + bad,
            fast = good + bad - slow,
        );
        Scrape::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn rows_tell_the_time_between() {
        let (before, now) = (scrape(100, 10, 0), scrape(190, 20, 50));
        let two = Duration::from_secs(2);
        let all = rows(&before, &now, two, By::Route, &Filter::new());
        assert_eq!(all.len(), 1);
        let row = &all[0];
        assert_eq!((row.name.as_str(), row.rate, row.requests, row.failed), ("all", 50.0, 210, 20));
        assert_eq!(row.success, Some(0.9));
        assert_eq!(row.quantiles[0], Some(0.01), "half of them were fast");
        assert!(row.quantiles[1].is_some_and(|p95| p95 > 0.85 && p95 < 1.0), "{row:?}");
        let peers = rows(&before, &now, two, By::Peer, &Filter::new());
        assert_eq!(
            peers.iter().map(|row| (row.name.as_str(), row.rate)).collect::<Vec<_>>(),
            [("", 5.0), ("spiffe://d/ns/a/sa/b", 45.0)]
        );
        assert_eq!(peers[0].quantiles, [None; 3]);
        let listeners = rows(&before, &now, two, By::Listener, &Filter::new());
        assert_eq!((listeners[0].name.as_str(), listeners[0].connections), ("idle", Some(2.0)));
        assert_eq!((listeners[1].name.as_str(), listeners[1].busy), ("in", Some(3.0)));
        assert_eq!((now.buffers(), now.open()), (Some(0.25), (3.0, 2.0)));
    }

    #[test]
    fn a_filter_narrows_and_a_new_start_shows_nothing_negative() {
        let (before, now) = (scrape(100, 10, 0), scrape(5, 0, 0));
        let filter = vec![(By::Cluster, "app".to_owned())];
        let one = Duration::from_secs(1);
        let row = &rows(&before, &now, one, By::Peer, &filter)[1];
        assert_eq!((row.rate, row.success), (5.0, Some(1.0)));
        assert_eq!(rows(&before, &now, one, By::Route, &filter)[0].quantiles[0], Some(0.005));
        assert!(rows(&before, &now, one, By::Route, &vec![(By::Cluster, "other".to_owned())]).is_empty());
    }
}
