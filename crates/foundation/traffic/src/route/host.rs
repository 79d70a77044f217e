//! What is known of hosts: exact names, names by suffix, and all others.
//!
//! Promise: a host is looked up by hash, once and then once for each of its dots behind
//! which a known suffix may begin, the longest first; what a client writes into `Host`
//! costs no more than the names in the config are long.

use std::collections::HashMap;

/// Names longer than DNS allows are nobody's.
pub(super) const LONGEST_NAME: usize = 255;

/// Something for each host.
#[derive(Debug)]
pub(crate) struct Hosts<T> {
    exact: HashMap<Box<str>, T>,
    /// By suffix, with its dot.
    wildcards: HashMap<Box<str>, T>,
    longest_suffix: usize,
    any: Option<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcards: HashMap::new(), longest_suffix: 0, any: None }
    }
}

impl<T> Hosts<T> {
    /// What is kept for a host of the config: a name, `*.suffix`, or empty for all.
    pub(crate) fn entry(&mut self, host: &str) -> &mut T
    where
        T: Default,
    {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            _ if host.is_empty() => self.any.get_or_insert_default(),
            Some(suffix) => {
                self.longest_suffix = self.longest_suffix.max(suffix.len());
                self.wildcards.entry(suffix.into()).or_default()
            }
            None => self.exact.entry(host.into()).or_default(),
        }
    }

    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> Hosts<U> {
        Hosts {
            exact: self.exact.into_iter().map(|(host, value)| (host, f(value))).collect(),
            wildcards: self.wildcards.into_iter().map(|(suffix, value)| (suffix, f(value))).collect(),
            longest_suffix: self.longest_suffix,
            any: self.any.map(f),
        }
    }

    /// Asks what is kept for a host, the most specific first, until there is an answer.
    pub(crate) fn find<R>(&self, host: &str, mut ask: impl FnMut(&T) -> Option<R>) -> Option<R> {
        if !self.exact.is_empty() || !self.wildcards.is_empty() {
            let mut room = [0; LONGEST_NAME];
            if let Some(host) = lowered(host, &mut room)
                && let Some(found) = self.find_named(host, &mut ask)
            {
                return Some(found);
            }
        }
        self.any.as_ref().and_then(ask)
    }

    fn find_named<R>(&self, host: &str, ask: &mut impl FnMut(&T) -> Option<R>) -> Option<R> {
        if let Some(value) = self.exact.get(host)
            && let Some(found) = ask(value)
        {
            return Some(found);
        }
        if self.wildcards.is_empty() {
            return None;
        }
        // A wildcard stands for at least one whole label.
        let first = host.len().saturating_sub(self.longest_suffix).max(1);
        let dots = host.bytes().enumerate().skip(first).filter(|(_, byte)| *byte == b'.');
        dots.filter_map(|(dot, _)| self.wildcards.get(&host[dot..])).find_map(ask)
    }
}

/// A host in small letters and without the root's dot, which means the same.
fn lowered<'a>(host: &'a str, room: &'a mut [u8; LONGEST_NAME]) -> Option<&'a str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > LONGEST_NAME {
        return None;
    }
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(host);
    }
    let room = &mut room[..host.len()];
    room.copy_from_slice(host.as_bytes());
    room.make_ascii_lowercase();
    str::from_utf8(room).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_host_is_asked_first() {
        let mut hosts: Hosts<Vec<&str>> = Hosts::default();
        for host in ["a.b.c", "*.b.c", "*.c", "", "[::1]"] {
            hosts.entry(host).push(host);
        }
        let long = format!("{}.c", "x.".repeat(40_000));
        for (host, expected) in [
            ("a.b.c", &["a.b.c", "*.b.c", "*.c", ""][..]),
            ("A.B.c.", &["a.b.c", "*.b.c", "*.c", ""]),
            ("x.y.b.c", &["*.b.c", "*.c", ""]),
            ("b.c", &["*.c", ""]),
            (".b.c", &["*.c", ""]),
            ("c", &[""]),
            ("", &[""]),
            ("[::1]", &["[::1]", ""]),
            (long.as_str(), &[""]),
        ] {
            let mut asked = Vec::new();
            let none: Option<()> = hosts.find(host, |value| {
                asked.extend(value.iter().copied());
                None
            });
            assert_eq!((none, asked.as_slice()), (None, expected), "{host}");
        }
    }
}
