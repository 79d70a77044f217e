//! What the resolver remembers: answers for their time, refusals for a moment, and the last
//! good answer for when DNS is down.
//!
//! In: results of lookups. Out: what to tell those who ask. Promise: bounded; an answer past
//! its time is told only after DNS failed to give a newer one, and not for ever.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Answer, ResolveError, Resolved};

/// A shorter TTL would have us ask for every request.
const SHORTEST: Duration = Duration::from_secs(1);
/// A longer one would keep us from noticing for too long that a service has moved.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long "there is no such name" holds: short, for services come up together.
const NEGATIVE: Duration = Duration::from_secs(2);
/// How long nobody is asked after DNS failed and a stale answer is at hand.
const PAUSE: Duration = Duration::from_secs(10);
/// For so long an answer may outlive its time while DNS is down.
const STALE: Duration = Duration::from_secs(86400);

/// Names and what is known of them.
pub(super) struct Cache {
    capacity: usize,
    entries: HashMap<Arc<str>, Entry>,
}

enum Entry {
    Good {
        addresses: Vec<IpAddr>,
        valid_until: Instant,
        /// DNS has failed since; until then we do not ask it again.
        pause_until: Option<Instant>,
    },
    Missing {
        error: ResolveError,
        valid_until: Instant,
    },
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Nothing: ask.
    Unknown,
    /// Enough.
    Known(Result<Resolved, ResolveError>),
    /// An answer whose time is over: ask, and take this one if there is no newer.
    Old(Resolved),
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), entries: HashMap::new() }
    }

    pub(super) fn lookup(&self, name: &str, now: Instant) -> Lookup {
        match self.entries.get(name) {
            Some(Entry::Missing { error, valid_until }) if now < *valid_until => Lookup::Known(Err(error.clone())),
            None | Some(Entry::Missing { .. }) => Lookup::Unknown,
            Some(Entry::Good { addresses, valid_until, .. }) if now < *valid_until => {
                let (addresses, valid_until) = (addresses.clone(), *valid_until);
                Lookup::Known(Ok(Resolved { addresses, valid_until, stale: false }))
            }
            Some(Entry::Good { valid_until, .. }) if now >= *valid_until + STALE => Lookup::Unknown,
            Some(Entry::Good { addresses, pause_until, .. }) => {
                let again = pause_until.filter(|until| now < *until);
                let valid_until = again.unwrap_or(now + PAUSE);
                let old = Resolved { addresses: addresses.clone(), valid_until, stale: true };
                if again.is_some() { Lookup::Known(Ok(old)) } else { Lookup::Old(old) }
            }
        }
    }

    /// Takes in a result; what it means for those who asked.
    pub(super) fn learn(
        &mut self,
        name: &Arc<str>,
        result: Result<Answer, ResolveError>,
        now: Instant,
    ) -> Result<Resolved, ResolveError> {
        match result {
            Ok(Answer { addresses, valid_until }) => {
                let ttl = valid_until.saturating_duration_since(now).clamp(SHORTEST, LONGEST);
                let valid_until = now + ttl;
                self.insert(name, Entry::Good { addresses: addresses.clone(), valid_until, pause_until: None }, now);
                Ok(Resolved { addresses, valid_until, stale: false })
            }
            Err(error @ ResolveError::NotFound { .. }) => {
                self.insert(name, Entry::Missing { error: error.clone(), valid_until: now + NEGATIVE }, now);
                Err(error)
            }
            Err(error) => {
                self.failed(name, now);
                match self.lookup(name, now) {
                    Lookup::Known(Ok(old)) => {
                        tracing::warn!(component = "resolver", host = %name, %error, "using the last good addresses");
                        Ok(old)
                    }
                    _ => Err(error),
                }
            }
        }
    }

    /// DNS did not answer: whoever has a stale answer goes on with it for a while.
    pub(super) fn failed(&mut self, name: &str, now: Instant) {
        if let Some(Entry::Good { pause_until, .. }) = self.entries.get_mut(name) {
            *pause_until = Some(now + PAUSE);
        }
    }

    fn insert(&mut self, name: &Arc<str>, entry: Entry, now: Instant) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(name) {
            self.make_room(now);
        }
        self.entries.insert(name.clone(), entry);
    }

    /// Drops what is of no more use, or else what ends first.
    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, entry| match entry {
            Entry::Good { valid_until, .. } => now < *valid_until + STALE,
            Entry::Missing { valid_until, .. } => now < *valid_until,
        });
        while self.entries.len() >= self.capacity {
            let ends = |entry: &Entry| match entry {
                Entry::Good { valid_until, .. } | Entry::Missing { valid_until, .. } => *valid_until,
            };
            let Some(first) = self.entries.iter().min_by_key(|(_, entry)| ends(entry)).map(|(name, _)| name.clone())
            else {
                return;
            };
            self.entries.remove(&first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(now: Instant, seconds: u64) -> Result<Answer, ResolveError> {
        Ok(Answer { addresses: vec![[10, 0, 0, 1].into()], valid_until: now + Duration::from_secs(seconds) })
    }

    fn failure() -> ResolveError {
        ResolveError::Failed { host: "a".into(), problem: "down".into() }
    }

    #[test]
    fn answers_hold_for_their_ttl_within_bounds() {
        for (ttl, held) in [(0, 1), (30, 30), (86400, 3600)] {
            let (mut cache, now, name) = (Cache::new(8), Instant::now(), Arc::from("a"));
            let resolved = cache.learn(&name, answer(now, ttl), now).unwrap();
            assert_eq!(resolved.valid_until - now, Duration::from_secs(held));
            let just_before = now + Duration::from_millis(held * 1000 - 1);
            assert_eq!(cache.lookup("a", just_before), Lookup::Known(Ok(resolved.clone())));
            assert!(matches!(cache.lookup("a", now + Duration::from_secs(held)), Lookup::Old(old) if old.stale));
        }
    }

    #[test]
    fn refusals_hold_for_a_moment() {
        let (mut cache, now, name) = (Cache::new(8), Instant::now(), Arc::from("a"));
        let missing = ResolveError::NotFound { host: "a".into() };
        cache.learn(&name, Err(missing.clone()), now).unwrap_err();
        assert_eq!(cache.lookup("a", now + Duration::from_secs(1)), Lookup::Known(Err(missing)));
        assert_eq!(cache.lookup("a", now + NEGATIVE), Lookup::Unknown);
    }

    #[test]
    fn the_last_good_answer_outlives_a_failure_but_not_a_refusal() {
        let (mut cache, now, name) = (Cache::new(8), Instant::now(), Arc::from("a"));
        cache.learn(&name, answer(now, 5), now).unwrap();
        let later = now + Duration::from_secs(6);
        let stale = cache.learn(&name, Err(failure()), later).unwrap();
        assert!(stale.stale);
        assert_eq!(stale.valid_until, later + PAUSE);
        assert!(matches!(cache.lookup("a", later), Lookup::Known(Ok(known)) if known.stale));
        assert!(matches!(cache.lookup("a", later + PAUSE), Lookup::Old(_)));
        assert_eq!(cache.lookup("a", now + Duration::from_secs(5) + STALE), Lookup::Unknown);
        cache.learn(&name, Err(ResolveError::NotFound { host: "a".into() }), later).unwrap_err();
        assert_eq!(cache.lookup("a", later + NEGATIVE), Lookup::Unknown);
    }

    #[test]
    fn a_failure_without_an_answer_is_not_remembered() {
        let (mut cache, now, name) = (Cache::new(8), Instant::now(), Arc::from("a"));
        assert_eq!(cache.learn(&name, Err(failure()), now), Err(failure()));
        assert_eq!(cache.lookup("a", now), Lookup::Unknown);
    }

    #[test]
    fn it_is_bounded_and_drops_what_ends_first() {
        let (mut cache, now) = (Cache::new(3), Instant::now());
        for (name, ttl) in [("a", 50), ("b", 10), ("c", 60), ("d", 20)] {
            cache.learn(&Arc::from(name), answer(now, ttl), now).unwrap();
        }
        assert_eq!(cache.entries.len(), 3);
        assert_eq!(cache.lookup("b", now), Lookup::Unknown);
    }
}
