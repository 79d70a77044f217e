//! `/etc/hosts`: read when first needed, and again when it has changed.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Lines beyond it are not read; a pod's file has a dozen.
const MAX_BYTES: u64 = 1 << 20;

/// What tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(u64, u64, i64, i64);

/// The fingerprint of a file, `None` when it cannot be seen.
pub(super) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let metadata = fs::metadata(path).ok()?;
    Some(Fingerprint(metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

/// A hosts file and what it said when it was last read.
pub(super) struct HostsFile {
    path: PathBuf,
    read: Option<Option<Fingerprint>>,
    names: HashMap<String, Vec<IpAddr>>,
}

impl HostsFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: None, names: HashMap::new() }
    }

    /// The addresses of a name in lower case, IPv4 first.
    pub(super) fn lookup(&mut self, name: &str) -> Option<Vec<IpAddr>> {
        let now = fingerprint(&self.path);
        if self.read != Some(now) {
            self.read = Some(now);
            self.names = read(&self.path);
        }
        self.names.get(name.strip_suffix('.').unwrap_or(name)).cloned()
    }
}

fn read(path: &Path) -> HashMap<String, Vec<IpAddr>> {
    let small = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MAX_BYTES);
    let text = if small { fs::read(path).unwrap_or_default() } else { Vec::new() };
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        // A scoped address (fe80::1%lo0) cannot be connected to without its scope.
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        for name in words {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let addresses = names.entry(name).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    for addresses in names.values_mut() {
        addresses.sort_by_key(IpAddr::is_ipv6);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_the_wild() {
        let names = parse(
            "\u{feff}127.0.0.1\tlocalhost\n::1 localhost ip6-localhost # both\n# 9.9.9.9 no\n10.0.0.1 A.Example. a\n\
             not-an-address b\n10.0.0.2\n fe80::1%lo0 c\n10.0.0.3 a\n10.0.0.1 a",
        );
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(names["localhost"], addresses(&["127.0.0.1", "::1"]));
        assert_eq!(names["a.example"], addresses(&["10.0.0.1"]));
        assert_eq!(names["a"], addresses(&["10.0.0.1", "10.0.0.3"]));
        assert_eq!(names.len(), 4);
    }
}
