//! The application's own metrics, beside ours.
//!
//! In: targets of the config, asked at each scrape. Out: our text with theirs behind it. Promise:
//! what is no exposition text cannot spoil the answer, it is left out and said so; no family
//! stands twice, and where two have one it is the application's.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use outrigger_config::ScrapeTarget;
use outrigger_http::{Client, ClientOptions, Resolver};
use outrigger_telemetry::parse::{Limits, parse_as};
use outrigger_telemetry::{Format, Gauge, Registry};

/// Targets that are asked.
#[derive(Default)]
pub(crate) struct Targets(Vec<Target>);

struct Target {
    config: ScrapeTarget,
    client: Client,
    up: Gauge,
    /// So that a failure is told once, not at each scrape.
    failing: AtomicBool,
}

/// What a target serves, and the families in it.
struct Theirs {
    text: Bytes,
    families: HashSet<String>,
}

impl Targets {
    pub(crate) fn new(targets: &[ScrapeTarget], registry: &Registry, resolver: &Resolver) -> Self {
        let up = || {
            let help = "Whether the application's metrics could be had at the last scrape.";
            registry.gauge("outrigger_scrape_target_up", help, &["target"])
        };
        let target = |config: &ScrapeTarget| {
            let options = ClientOptions {
                connect_timeout: config.timeout.into(),
                timeout: config.timeout.into(),
                max_response: usize::try_from(config.max_bytes.0).unwrap_or(usize::MAX),
                max_idle: 1,
                ..ClientOptions::default()
            };
            Target {
                config: config.clone(),
                client: Client::new(options, resolver.clone()),
                up: up().with(&[config.name.as_str()]),
                failing: AtomicBool::new(false),
            }
        };
        Self(targets.iter().map(target).collect())
    }

    /// Whether nothing is to be asked, so that the registry alone answers.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn is_of(&self, targets: &[ScrapeTarget]) -> bool {
        self.0.iter().map(|target| &target.config).eq(targets)
    }

    /// The whole text, in the format 0.0.4. Cancel-safe.
    pub(crate) async fn merged(&self, registry: &Registry) -> String {
        let theirs: Vec<Theirs> = join_all(self.0.iter().map(Target::ask)).await.into_iter().flatten().collect();
        let mut own = Vec::new();
        registry.encode(Format::Text, &mut own);
        merge(&String::from_utf8_lossy(&own), &theirs)
    }
}

impl Target {
    async fn ask(&self) -> Option<Theirs> {
        let answer = self.fetch().await;
        self.up.set(if answer.is_ok() { 1.0 } else { 0.0 });
        let failed = answer.is_err();
        if self.failing.swap(failed, Ordering::Relaxed) != failed {
            let target = self.config.name.as_str();
            match &answer {
                Err(error) => {
                    tracing::warn!(component = "metrics", target, error, "cannot have the application's metrics")
                }
                Ok(_) => tracing::info!(component = "metrics", target, "the application's metrics are there again"),
            }
        }
        answer.ok()
    }

    async fn fetch(&self) -> Result<Theirs, String> {
        let request = Request::get(&self.config.url).header(ACCEPT, Format::Text.content_type());
        let request = request.body(Bytes::new()).map_err(|error| error.to_string())?;
        let answer = self.client.send(request).await.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::OK {
            return Err(format!("{} answers {}", self.config.url, answer.status()));
        }
        let text = answer.into_body();
        let limits = Limits { max_bytes: text.len(), ..Limits::default() };
        let read = parse_as(&text, Format::Text, limits).map_err(|error| format!("{}: {error}", self.config.url))?;
        Ok(Theirs { text, families: read.families.into_iter().map(|family| family.name).collect() })
    }
}

/// Ours without the families that the others have, then theirs, the first one's before the next one's.
fn merge(own: &str, theirs: &[Theirs]) -> String {
    let mut out = String::with_capacity(own.len() + theirs.iter().map(|one| one.text.len() + 1).sum::<usize>());
    let nobody = HashSet::new();
    for (at, text) in theirs.iter().map(|one| String::from_utf8_lossy(&one.text)).enumerate() {
        // `at` texts were taken before this one.
        let taken: Vec<&HashSet<String>> = theirs[..at].iter().map(|one| &one.families).chain([&nobody]).collect();
        without(&text, &taken, &theirs[at].families, &mut out);
    }
    let all: Vec<&HashSet<String>> = theirs.iter().map(|one| &one.families).collect();
    let mut ours = String::with_capacity(own.len());
    without(own, &all, &nobody, &mut ours);
    ours.push_str(&out);
    ours
}

/// Copies the lines of families that nobody has taken.
fn without(text: &str, taken: &[&HashSet<String>], known: &HashSet<String>, out: &mut String) {
    let is_taken = |name: &str| taken.iter().any(|families| families.contains(name));
    // Samples follow their `# TYPE`; one without any is a family of its own.
    let mut family = String::new();
    for line in text.lines() {
        let name = match line.strip_prefix("# TYPE ").or_else(|| line.strip_prefix("# HELP ")) {
            Some(rest) => {
                family.clear();
                family.push_str(rest.split_whitespace().next().unwrap_or_default());
                family.as_str()
            }
            None if line.is_empty() || line.starts_with('#') => continue,
            None => {
                let name = line.split(['{', ' ', '\t']).next().unwrap_or_default();
                let rest = name.strip_prefix(family.as_str()).unwrap_or("-");
                if matches!(rest, "" | "_bucket" | "_sum" | "_count") && !known.contains(name) {
                    family.as_str()
                } else {
                    name
                }
            }
        };
        if !is_taken(name) {
            let _ = writeln!(out, "{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theirs(text: &'static str) -> Theirs {
        let read = parse_as(text.as_bytes(), Format::Text, Limits::default()).unwrap();
        Theirs { text: text.into(), families: read.families.into_iter().map(|family| family.name).collect() }
    }

    #[test]
    fn no_family_stands_twice() {
        let own = "# HELP a A.\n# TYPE a counter\na 1\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n# TYPE z gauge\nz 1\n";
        let first = theirs("# TYPE h histogram\nh_bucket{le=\"+Inf\"} 7\nh_sum 7\nh_count 7\nbare 2\n# a remark\n\n");
        let second = theirs("# TYPE z gauge\nz{x=\"1\"} 9\nbare 3\n");
        let merged = merge(own, &[first, second]);
        assert_eq!(
            merged,
            "# HELP a A.\n# TYPE a counter\na 1\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 7\nh_sum 7\nh_count 7\nbare 2\n# TYPE z gauge\nz{x=\"1\"} 9\n"
        );
        let read = parse_as(merged.as_bytes(), Format::Text, Limits::default()).unwrap();
        assert_eq!(read.families.len(), 4);
    }
}
