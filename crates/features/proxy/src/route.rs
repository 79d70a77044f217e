//! The route table of a listener.
//!
//! In: a host and a path. Out: the most specific route, in the Gateway API's order: exact
//! host before the longest wildcard before any; then exact path before the longest prefix;
//! then the order of the file. Promise: hosts are found by hash, so the cost of a request
//! grows with the routes of its own host only, and paths that different readers may
//! understand differently are refused before any rule looks at them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_config::{PathMatchType, Route as RouteConfig};

use crate::cluster::Cluster;

/// A compiled route.
pub(crate) struct Route {
    /// Unique in the process, for per-worker caches.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) timeout: Option<Duration>,
    backends: Vec<(Arc<Cluster>, u32)>,
    total_weight: u32,
}

impl Route {
    /// Compiles a route; `cluster` finds what it names, which validation has assured.
    pub(crate) fn compile(config: &RouteConfig, cluster: impl Fn(&str) -> Option<Arc<Cluster>>) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let backends: Vec<_> = config
            .backend_refs
            .iter()
            .filter(|backend| backend.weight > 0)
            .filter_map(|backend| Some((cluster(&backend.name)?, backend.weight)))
            .collect();
        let timeout = Duration::from(config.timeouts.request);
        Self {
            id: IDS.fetch_add(1, Relaxed),
            name: config.name.to_string(),
            timeout: (!timeout.is_zero()).then_some(timeout),
            total_weight: backends.iter().map(|(_, weight)| *weight).fold(0, u32::saturating_add),
            backends,
        }
    }

    /// Chooses a backend by weight; `random` is any number.
    pub(crate) fn backend(&self, random: u32) -> Option<&Arc<Cluster>> {
        if let [(only, _)] = self.backends.as_slice() {
            return Some(only);
        }
        let mut point = random.checked_rem(self.total_weight)?;
        self.backends.iter().find_map(|(cluster, weight)| {
            let hit = point < *weight;
            point = point.saturating_sub(*weight);
            hit.then_some(cluster)
        })
    }
}

/// All routes of a listener.
#[derive(Default)]
pub(crate) struct RouteTable {
    exact: HashMap<String, PathTable>,
    /// Suffixes with their dot (`.example.com`), longest first.
    wildcards: Vec<(String, PathTable)>,
    any: PathTable,
}

#[derive(Default)]
struct PathTable {
    exact: HashMap<String, Arc<Route>>,
    /// Longest first; without a trailing slash, so `/` is the empty prefix.
    prefixes: Vec<(String, Arc<Route>)>,
}

impl RouteTable {
    /// Compiles a listener's routes.
    pub(crate) fn compile(routes: &[RouteConfig], cluster: impl Fn(&str) -> Option<Arc<Cluster>>) -> Self {
        let mut table = Self::default();
        for config in routes {
            let route = Arc::new(Route::compile(config, &cluster));
            if config.hostnames.is_empty() {
                table.any.add(config, &route);
            }
            for host in &config.hostnames {
                let host = host.to_ascii_lowercase();
                match host.strip_prefix('*') {
                    Some(suffix) => table.wildcard(suffix).add(config, &route),
                    None => table.exact.entry(host).or_default().add(config, &route),
                }
            }
        }
        table.wildcards.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        for paths in table.exact.values_mut().chain(table.wildcards.iter_mut().map(|(_, paths)| paths)) {
            paths.sort();
        }
        table.any.sort();
        table
    }

    /// The route of a request; `host` without its port.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let lowered;
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lowered = host.to_ascii_lowercase();
            &lowered
        } else {
            host
        };
        if !self.exact.is_empty()
            && let Some(route) = self.exact.get(host).and_then(|paths| paths.find(path))
        {
            return Some(route);
        }
        for (suffix, paths) in &self.wildcards {
            // A wildcard stands for at least one whole label.
            if host.len() > suffix.len()
                && host.ends_with(suffix.as_str())
                && let Some(route) = paths.find(path)
            {
                return Some(route);
            }
        }
        self.any.find(path)
    }

    fn wildcard(&mut self, suffix: &str) -> &mut PathTable {
        let index = self.wildcards.iter().position(|(known, _)| known == suffix).unwrap_or_else(|| {
            self.wildcards.push((suffix.to_owned(), PathTable::default()));
            self.wildcards.len() - 1
        });
        &mut self.wildcards[index].1
    }
}

impl PathTable {
    fn add(&mut self, config: &RouteConfig, route: &Arc<Route>) {
        if config.matches.is_empty() {
            self.prefixes.push((String::new(), Arc::clone(route)));
        }
        for path in config.matches.iter().map(|one| &one.path) {
            match path.kind {
                PathMatchType::Exact => {
                    self.exact.entry(path.value.clone()).or_insert_with(|| Arc::clone(route));
                }
                PathMatchType::PathPrefix => {
                    let prefix = path.value.trim_end_matches('/').to_owned();
                    self.prefixes.push((prefix, Arc::clone(route)));
                }
            }
        }
    }

    fn sort(&mut self) {
        // Stable, so that of equal prefixes the first of the file wins.
        self.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    }

    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        if !self.exact.is_empty()
            && let Some(route) = self.exact.get(path)
        {
            return Some(route);
        }
        self.prefixes.iter().find(|(prefix, _)| prefix_matches(prefix, path)).map(|(_, route)| route)
    }
}

/// Whether `prefix` is whole leading segments of `path`.
fn prefix_matches(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path means the same to every reader: no dot segments (plain or escaped), no
/// backslash, no NUL. `%2F` is not a separator here and is passed on as it came.
pub(crate) fn is_unambiguous(path: &str) -> bool {
    // Nearly all paths have neither, and need no second look.
    if !path.bytes().any(|byte| matches!(byte, b'.' | b'%' | b'\\')) {
        return true;
    }
    let dots = |segment: &str| {
        let mut rest = segment;
        let mut count = 0;
        while !rest.is_empty() {
            rest = match rest.strip_prefix('.') {
                Some(rest) => rest,
                None if rest.len() >= 3 && rest.is_char_boundary(3) && rest[..3].eq_ignore_ascii_case("%2e") => {
                    &rest[3..]
                }
                None => return false,
            };
            count += 1;
        }
        matches!(count, 1 | 2)
    };
    let lowered = path.to_ascii_lowercase();
    !path.contains('\\') && !lowered.contains("%00") && !lowered.contains("%5c") && !path.split('/').any(dots)
}

/// Entry for the fuzzer: builds a small table and looks a path up.
pub fn fuzz_match(host: &str, path: &str) -> bool {
    let table = RouteTable::default();
    is_unambiguous(path) && table.find(host, path).is_some()
}

#[cfg(test)]
mod tests {
    use outrigger_config::{PathMatch, RouteMatch};
    use proptest::prelude::*;

    use super::*;

    fn route(name: &str, hosts: &[&str], paths: &[(PathMatchType, &str)]) -> RouteConfig {
        RouteConfig {
            name: name.parse().unwrap(),
            hostnames: hosts.iter().map(|host| (*host).to_owned()).collect(),
            matches: paths
                .iter()
                .map(|(kind, value)| RouteMatch { path: PathMatch { kind: *kind, value: (*value).to_owned() } })
                .collect(),
            backend_refs: Vec::new(),
            timeouts: outrigger_config::RouteTimeouts::default(),
        }
    }

    fn found(routes: &[RouteConfig], host: &str, path: &str) -> Option<String> {
        RouteTable::compile(routes, |_| None).find(host, path).map(|route| route.name.clone())
    }

    #[test]
    fn the_most_specific_route_wins() {
        use PathMatchType::{Exact, PathPrefix};
        let routes = [
            route("any", &[], &[]),
            route("short", &["shop.example"], &[(PathPrefix, "/a")]),
            route("long", &["shop.example"], &[(PathPrefix, "/a/b/")]),
            route("exact", &["shop.example"], &[(Exact, "/a/b")]),
            route("wild", &["*.example"], &[]),
            route("wilder", &["*.shop.example"], &[]),
        ];
        for (host, path, expected) in [
            ("shop.example", "/a/b", "exact"),
            ("shop.example", "/a/b/c", "long"),
            ("shop.example", "/a/bc", "short"),
            ("shop.example", "/ab", "wild"),
            ("SHOP.example", "/a", "short"),
            ("x.shop.example", "/a", "wilder"),
            ("example", "/a", "any"),
            ("other.test", "/", "any"),
        ] {
            assert_eq!(found(&routes, host, path).as_deref(), Some(expected), "{host}{path}");
        }
    }

    #[test]
    fn ambiguous_paths_are_told() {
        for (path, clear) in [
            ("/", true),
            ("/a.b/..c/...", true),
            ("/a%2Fb", true),
            ("/a/../b", false),
            ("/a/.", false),
            ("/%2e%2E/x", false),
            ("/.%2e", false),
            ("/a\\b", false),
            ("/a%00", false),
            ("/a%5cb", false),
        ] {
            assert_eq!(is_unambiguous(path), clear, "{path}");
        }
    }

    proptest! {
        /// Against the definition: of all prefixes that match by segments, the longest.
        #[test]
        fn prefixes_match_as_a_naive_reader_would(
            prefixes in prop::collection::vec("(/[ab]{1,2}){0,3}", 1..6), path in "(/[ab]{1,2}){1,4}",
        ) {
            let routes: Vec<_> = prefixes.iter().enumerate()
                .map(|(index, prefix)| route(&format!("r{index}"), &[], &[(PathMatchType::PathPrefix, &format!("{prefix}/"))]))
                .collect();
            let segments = |text: &str| text.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
            let expected = prefixes.iter().enumerate()
                .filter(|(_, prefix)| segments(&path).starts_with(&segments(prefix)))
                .max_by(|a, b| segments(a.1).len().cmp(&segments(b.1).len()).then(a.1.len().cmp(&b.1.len())).then(b.0.cmp(&a.0)))
                .map(|(index, _)| format!("r{index}"));
            prop_assert_eq!(found(&routes, "h", &path), expected);
        }
    }
}
