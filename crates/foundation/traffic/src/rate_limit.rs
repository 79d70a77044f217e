//! Rate limits per key: GCRA in a table of fixed size that workers share without a lock.
//!
//! In: a key's hash and the time. Out: whether a request of it may pass, what is left, and when the
//! next may. Promise: over all threads together a key gets no more than its rate and burst; the table
//! never grows: when too many keys are limited at once, the one that is nearest to being unlimited is
//! forgotten, which lets that one pass too early. Of new keys in a full table fewer than one in a hundred thousand is
//! taken for another; in an emptier one fewer.
//!
//! GCRA (the generic cell rate algorithm, of ATM) keeps one number for a key: the time at which its
//! bucket would be full again. A key whose time has passed is as good as one that was never seen, so
//! its place is free. Time and a part of the hash fit into one atomic word.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A token of the bucket in units of time.
const TOKEN: u64 = 1024;
/// Bits of a word that hold the time; the rest tell keys of one bucket apart.
const TIME_BITS: u32 = 40;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
/// Words that a key may stand in: a cache line.
const WAYS: usize = 8;
/// Words that are looked at to tell how full the table is.
const SAMPLE: usize = 4096;

/// A rate, and how many requests may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many requests, at least one.
    pub requests: u32,
    /// In this time.
    pub per: Duration,
    /// So many at once, at least one.
    pub burst: u32,
}

/// One limit, for all its keys.
pub struct RateLimit {
    rate: Rate,
    begin: Instant,
    words: Box<[AtomicU64]>,
    hashes: RandomState,
    evictions: AtomicU64,
}

/// What is decided of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// It may pass.
    pub allowed: bool,
    /// So many more may pass now.
    pub remaining: u32,
    /// When the next one may pass; zero while there are any.
    pub retry_after: Duration,
    /// When all of the burst may pass again.
    pub reset: Duration,
}

/// A place in the table for a key.
struct Place<'a> {
    word: &'a AtomicU64,
    seen: u64,
    /// The bucket's time, if the key is known; else what stands there is of another.
    known: Option<u64>,
    /// Another key is forgotten for it.
    evicts: bool,
}

impl RateLimit {
    /// A limit for up to about `keys` keys at once; 8 bytes are held for each.
    pub fn new(rate: Rate, keys: usize, begin: Instant) -> Self {
        let words = keys.max(1).next_multiple_of(WAYS).next_power_of_two();
        Self {
            rate: Rate { requests: rate.requests.max(1), burst: rate.burst.max(1), ..rate },
            begin,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            hashes: RandomState::new(),
            evictions: AtomicU64::new(0),
        }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Makes the hash of a key that has these parts. It is keyed, so that nobody can choose keys that meet.
    pub fn hash<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        let mut hasher = self.hashes.build_hasher();
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        hasher.finish()
    }

    /// Lets a request of a key pass, or not.
    pub fn check(&self, key: u64, now: Instant) -> Decision {
        let now = self.units(now);
        let tag = (key >> TIME_BITS).max(1) << TIME_BITS;
        let bucket = (key as usize % (self.words.len() / WAYS)) * WAYS;
        let bucket = &self.words[bucket..bucket + WAYS];
        loop {
            let place = self.find(bucket, tag, now);
            // How far the bucket is from being full, in units.
            let used = place.known.map_or(0, |time| self.ahead(time, now));
            let most = u64::from(self.rate.burst) * TOKEN;
            if used + TOKEN > most {
                return self.decision(false, used, most);
            }
            let used = used + TOKEN;
            let word = tag | ((now + used) & TIME_MASK);
            if place.word.compare_exchange(place.seen, word, Relaxed, Relaxed).is_ok() {
                if place.evicts {
                    self.evictions.fetch_add(1, Relaxed);
                }
                return self.decision(true, used, most);
            }
        }
    }

    /// Keys that were forgotten while they were limited, because too many were.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }

    /// The share of the table that keys with less than their burst take, from 0 to 1. A sample tells.
    pub fn fullness(&self, now: Instant) -> f64 {
        let now = self.units(now);
        let sample = &self.words[..self.words.len().min(SAMPLE)];
        let taken = sample
            .iter()
            .map(|word| word.load(Relaxed))
            .filter(|word| *word != 0 && self.ahead(word & TIME_MASK, now) > 0);
        taken.count() as f64 / sample.len() as f64
    }

    /// Bytes that the table takes.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&*self.words)
    }

    fn find<'a>(&self, bucket: &'a [AtomicU64], tag: u64, now: u64) -> Place<'a> {
        let mut best: Option<(u64, Place<'a>)> = None;
        for word in bucket {
            let seen = word.load(Relaxed);
            let used = if seen == 0 { 0 } else { self.ahead(seen & TIME_MASK, now) };
            if seen != 0 && seen & !TIME_MASK == tag {
                return Place { word, seen, known: Some(seen & TIME_MASK), evicts: false };
            }
            if best.as_ref().is_none_or(|(least, _)| used < *least) {
                best = Some((used, Place { word, seen, known: None, evicts: used > 0 }));
            }
        }
        match best {
            Some((_, place)) => place,
            None => unreachable!("a bucket has words"),
        }
    }

    /// How far `time` is ahead of `now`. Times go round after a thousand million tokens; one that is further ahead than any
    /// can be is one that has passed.
    fn ahead(&self, time: u64, now: u64) -> u64 {
        let ahead = time.wrapping_sub(now) & TIME_MASK;
        if ahead <= u64::from(self.rate.burst) * TOKEN { ahead } else { 0 }
    }

    /// The time in units, of which a token takes [`TOKEN`].
    fn units(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.begin).as_nanos();
        let per = self.rate.per.as_nanos().max(1);
        (since * u128::from(self.rate.requests) * u128::from(TOKEN) / per) as u64 & TIME_MASK
    }

    fn duration(&self, units: u64) -> Duration {
        let nanoseconds = u128::from(units) * self.rate.per.as_nanos();
        let nanoseconds = nanoseconds.div_ceil(u128::from(self.rate.requests) * u128::from(TOKEN));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn decision(&self, allowed: bool, used: u64, most: u64) -> Decision {
        let remaining = (most.saturating_sub(used) / TOKEN) as u32;
        let wait = (used + TOKEN).saturating_sub(most);
        Decision { allowed, remaining, retry_after: self.duration(wait), reset: self.duration(used) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn limit(requests: u32, per: u64, burst: u32, keys: usize) -> (RateLimit, Instant) {
        let begin = Instant::now();
        (RateLimit::new(Rate { requests, per: Duration::from_millis(per), burst }, keys, begin), begin)
    }

    proptest! {
        /// Beside the obvious: for each key a bucket of tokens that fills as time goes by.
        #[test]
        fn it_decides_as_a_bucket_of_tokens_does(
            requests in 1_u32..200, per in 1_u64..5000, burst in 1_u32..50,
            steps in prop::collection::vec((0_u64..2_000_000, 0_u64..3), 1..300),
        ) {
            let (limit, begin) = limit(requests, per, burst, 1024);
            let mut buckets: HashMap<u64, (f64, Instant)> = HashMap::new();
            let mut now = begin;
            for (wait, key) in steps {
                now += Duration::from_micros(wait % (per * 1000));
                let rate = f64::from(requests) / (per as f64 / 1000.0);
                let (tokens, last) = buckets.entry(key).or_insert((f64::from(burst), begin));
                *tokens = (*tokens + (now - *last).as_secs_f64() * rate).min(f64::from(burst));
                *last = now;
                // A word for each key whatever its number.
                let found = limit.check(key << 50 | key, now);
                // Time is counted in thousandths of a token.
                if (*tokens - 1.0).abs() > 0.02 {
                    prop_assert_eq!(found.allowed, *tokens > 1.0, "{} tokens, {:?}", tokens, found);
                }
                if found.allowed {
                    *tokens -= 1.0;
                } else {
                    prop_assert!(found.retry_after > Duration::ZERO && found.remaining == 0);
                    let later = now + found.retry_after;
                    prop_assert!(limit.find_allowed(key << 50 | key, later), "when it says so it passes");
                }
                prop_assert!((f64::from(found.remaining) - *tokens).abs() <= 1.1, "{found:?} {tokens}");
            }
        }
    }

    impl RateLimit {
        /// Whether a request would pass, without letting one pass.
        fn find_allowed(&self, key: u64, now: Instant) -> bool {
            let now = self.units(now);
            let tag = (key >> TIME_BITS).max(1) << TIME_BITS;
            let bucket = (key as usize % (self.words.len() / WAYS)) * WAYS;
            let place = self.find(&self.words[bucket..bucket + WAYS], tag, now);
            let used = place.known.map_or(0, |time| self.ahead(time, now));
            used + TOKEN <= u64::from(self.rate.burst) * TOKEN
        }
    }

    #[test]
    fn ten_million_keys_take_no_more_than_was_set_aside() {
        let (limit, begin) = limit(1, 3_600_000, 1, 16_384);
        let bytes = limit.bytes();
        let passes = |number: &u64| {
            let now = begin + Duration::from_micros(*number);
            limit.check(limit.hash([&number.to_be_bytes()[..]]), now).allowed
        };
        // Of millions of new keys a few meet another with the same 24 bits in their bucket.
        let refused = (0..10_000_000_u64).filter(|number| !passes(number)).count();
        assert!(refused < 100, "{refused} new keys were refused");
        assert_eq!((limit.bytes(), bytes), (128 * 1024, 128 * 1024));
        assert!(limit.evictions() > 9_900_000 && limit.evictions() < 10_000_000, "{}", limit.evictions());
        let now = begin + Duration::from_secs(11);
        assert!(limit.fullness(now) > 0.99);
        assert!(limit.fullness(now + Duration::from_secs(7200)) < 0.01, "what is unlimited again takes no place");
        // Who came last is held to the limit.
        let last = limit.hash([&9_999_999_u64.to_be_bytes()[..]]);
        assert!(!limit.check(last, now).allowed);
    }

    #[test]
    fn as_many_keys_as_were_wanted_are_kept_apart() {
        let (limit, begin) = limit(1, 60_000, 1, 16_384);
        let key = |number: u64| limit.hash([b"user", &number.to_be_bytes()[..]]);
        // Half of what there is room for: hardly any bucket is too full.
        (0..8192).for_each(|number| assert!(limit.check(key(number), begin).allowed));
        let again = (0..8192).filter(|number| limit.check(key(*number), begin).allowed).count();
        assert!(again < 300, "{again} of 8192 were forgotten");
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let (limit, begin) = limit(100, 1000, 100, 8);
        let allowed: usize = std::thread::scope(|scope| {
            let ask = || (0..1000).filter(|_| limit.check(7, begin).allowed).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(allowed, 100);
    }

    #[test]
    fn a_key_of_long_ago_is_unlimited() {
        let (limit, begin) = limit(1_000_000, 1000, 1000, 8);
        (0..1000).for_each(|_| assert!(limit.check(7, begin).allowed));
        assert!(!limit.check(7, begin).allowed);
        // About once around, and just before it.
        for seconds in [1, 60, 1073, 1074, 86_400 * 400] {
            assert!(limit.find_allowed(7, begin + Duration::from_secs(seconds)), "{seconds}");
        }
    }
}
