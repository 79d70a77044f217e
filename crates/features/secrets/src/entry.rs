//! A secret in hand, between two readings.
//!
//! In: what was read, and what was known before. Out: its revision, its version, and when it
//! is due again. Promise: a revision changes only when the content does.

use std::time::{Duration, SystemTime};

use gotmpl::Value;
use outrigger_runtime::jittered;
use tokio::time::Instant;

use crate::error::Error;
use crate::provider::{Fetched, Lease};

/// A secret in hand.
pub(crate) struct Entry {
    pub(crate) value: Value,
    /// Grows with each change, over all entries.
    pub(crate) revision: u64,
    pub(crate) version: u64,
    pub(crate) lease: Option<Lease>,
    /// When it was read, or its lease renewed.
    pub(crate) at: SystemTime,
    /// When to read it, or renew its lease; never when changes are noticed.
    pub(crate) due: Option<Instant>,
    pub(crate) trouble: Option<Error>,
}

impl Entry {
    /// Takes over what was read; `revision` is its own if it differs from the old one.
    pub(crate) fn new(fetched: Fetched, old: Option<&Self>, revision: u64, refresh: Option<Duration>) -> Self {
        let Fetched { value, version, lease } = fetched;
        let wait = lease.as_ref().map(time_to_renew).or_else(|| refresh.map(|refresh| jittered(refresh, 0.9, 1.1)));
        let due = wait.map(|wait| Instant::now() + wait);
        let (revision, counted) = match old {
            None => (revision, 1),
            Some(old) if old.value == value => (old.revision, old.version),
            Some(old) => (revision, old.version + 1),
        };
        Self { value, revision, version: version.unwrap_or(counted), lease, at: SystemTime::now(), due, trouble: None }
    }
}

/// Two thirds of a lease that can be renewed; most of one that has to be replaced.
pub(crate) fn time_to_renew(lease: &Lease) -> Duration {
    if lease.renewable { jittered(lease.duration, 0.6, 0.7) } else { jittered(lease.duration, 0.8, 0.9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str, version: Option<u64>, lease: Option<(u64, bool)>) -> Fetched {
        let lease = lease.map(|(seconds, renewable)| Lease {
            id: outrigger_config::Secret::new("id".to_owned()),
            duration: Duration::from_secs(seconds),
            renewable,
        });
        Fetched { value: content.into(), version, lease }
    }

    #[test]
    fn revisions_and_versions_follow_the_content() {
        let first = Entry::new(read("a", None, None), None, 1, None);
        assert_eq!((first.revision, first.version, first.due), (1, 1, None));
        let same = Entry::new(read("a", None, None), Some(&first), 2, None);
        assert_eq!((same.revision, same.version), (1, 1));
        let other = Entry::new(read("b", None, None), Some(&same), 3, None);
        assert_eq!((other.revision, other.version), (3, 2));
        let counted = Entry::new(read("c", Some(9), None), Some(&other), 4, None);
        assert_eq!((counted.revision, counted.version), (4, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_due_in_its_time() {
        let refresh = Some(Duration::from_secs(1000));
        let cases = [
            ("without a lease", None, 900..=1100),
            ("renewable", Some((90, true)), 54..=63),
            ("to be replaced", Some((90, false)), 72..=81),
        ];
        for (name, lease, expected) in cases {
            let entry = Entry::new(read("a", None, lease), None, 1, refresh);
            let wait = entry.due.unwrap() - Instant::now();
            assert!(expected.contains(&wait.as_secs()), "{name}: {wait:?}");
        }
    }
}
