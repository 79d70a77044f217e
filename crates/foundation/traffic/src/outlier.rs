//! Endpoints that are taken out for a while because of how they answer ([outlier detection], as Envoy names it).
//!
//! In: endpoints that failed too often in a row, or asked to be left alone; once in an interval, how
//! often each succeeded. Out: who is ejected, why and until when. Promise: never more than the share
//! that is allowed, but one; each ejection ends; one that is ejected again stays away for longer.
//!
//! [outlier detection]: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// So many answers of 500 and above in a row.
    Consecutive5xx,
    /// So many answers of 502, 503 and 504 in a row.
    ConsecutiveGatewayErrors,
    /// So many times in a row no connection or no answer.
    ConsecutiveLocalOriginFailures,
    /// It succeeds far less often than the others.
    SuccessRate,
    /// It said with `Retry-After` when to come back.
    RetryAfter,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayErrors,
        Self::ConsecutiveLocalOriginFailures,
        Self::SuccessRate,
        Self::RetryAfter,
    ];

    /// As metrics and tables call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayErrors => "consecutive_gateway_errors",
            Self::ConsecutiveLocalOriginFailures => "consecutive_local_origin_failures",
            Self::SuccessRate => "success_rate",
            Self::RetryAfter => "retry_after",
        }
    }
}

/// How long, and how many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The first ejection lasts so long; the n-th in short succession n times as long.
    pub base: Duration,
    /// No ejection lasts longer.
    pub longest: Duration,
    /// The part of all endpoints that may be ejected at once; one may be in any case, unless it is 0.
    pub most: f64,
}

/// When success rates differ too much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRate {
    /// So many endpoints must have had enough requests.
    pub minimum_hosts: usize,
    /// So many requests are enough.
    pub request_volume: u64,
    /// An endpoint may be so many standard deviations below the mean.
    pub deviations: f64,
}

/// An ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Why.
    pub cause: Cause,
    /// Until when.
    pub until: Instant,
}

/// Who is ejected, of endpoints known by `K`.
#[derive(Debug)]
pub struct Ejections<K> {
    hosts: HashMap<K, Host>,
}

#[derive(Debug, Default)]
struct Host {
    ejection: Option<Ejection>,
    /// Ejections in short succession.
    times: u32,
}

impl<K> Default for Ejections<K> {
    fn default() -> Self {
        Self { hosts: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Ejections<K> {
    /// Ejects an endpoint, for as long as it `asked` if it did. `all` is how many endpoints there are. Returns whether it
    /// was, which is false when it is already, or when too many others are.
    pub fn eject(
        &mut self,
        key: &K,
        cause: Cause,
        asked: Option<Duration>,
        all: usize,
        limits: &Limits,
        now: Instant,
    ) -> bool {
        let allowed = if limits.most > 0.0 { ((all as f64 * limits.most) as usize).max(1) } else { 0 };
        let others = self.hosts.iter().filter(|(other, host)| *other != key && host.ejection.is_some()).count();
        if others >= allowed {
            return false;
        }
        let host = self.hosts.entry(key.clone()).or_default();
        if host.ejection.is_some_and(|ejection| ejection.until > now) {
            return false;
        }
        // One that says when to come back has not failed.
        if asked.is_none() {
            host.times = host.times.saturating_add(1);
        }
        let lasts = asked.unwrap_or_else(|| limits.base.saturating_mul(host.times)).min(limits.longest);
        host.ejection = now.checked_add(lasts).map(|until| Ejection { cause, until });
        host.ejection.is_some()
    }

    /// Ends the ejections whose time is over; returns whose.
    pub fn end(&mut self, now: Instant) -> Vec<K> {
        let over = |host: &Host| host.ejection.is_some_and(|ejection| ejection.until <= now);
        let ended: Vec<K> = self.hosts.iter().filter(|(_, host)| over(host)).map(|(key, _)| key.clone()).collect();
        for host in self.hosts.values_mut().filter(|host| over(host)) {
            host.ejection = None;
        }
        ended
    }

    /// An interval has passed: who was not ejected in it is forgiven an ejection. `stays` tells who is still there.
    pub fn forgive(&mut self, stays: impl Fn(&K) -> bool) {
        self.hosts.retain(|key, host| {
            if host.ejection.is_none() {
                host.times = host.times.saturating_sub(1);
            }
            stays(key) && (host.ejection.is_some() || host.times > 0)
        });
    }

    /// The ejection of an endpoint.
    pub fn of(&self, key: &K) -> Option<Ejection> {
        self.hosts.get(key)?.ejection
    }

    /// When the next ejection ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.hosts.values().filter_map(|host| host.ejection).map(|ejection| ejection.until).min()
    }

    /// How many are ejected.
    pub fn count(&self) -> usize {
        self.hosts.values().filter(|host| host.ejection.is_some()).count()
    }

    /// Ends all ejections and forgets everything; returns whose.
    pub fn clear(&mut self) -> Vec<K> {
        self.hosts.drain().filter(|(_, host)| host.ejection.is_some()).map(|(key, _)| key).collect()
    }
}

impl SuccessRate {
    /// Those that succeed too seldom. In: successes and requests of each.
    pub fn outliers(&self, volumes: &[(u64, u64)]) -> Vec<usize> {
        let enough = volumes.iter().enumerate().filter(|(_, (_, all))| *all > 0 && *all >= self.request_volume);
        let rates: Vec<(usize, f64)> = enough.map(|(index, (good, all))| (index, *good as f64 / *all as f64)).collect();
        if rates.is_empty() || rates.len() < self.minimum_hosts {
            return Vec::new();
        }
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / rates.len() as f64;
        let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / rates.len() as f64;
        let least = mean - self.deviations * variance.sqrt();
        rates.into_iter().filter(|(_, rate)| *rate < least).map(|(index, _)| index).collect()
    }
}

/// The HTTP status that a gRPC status counts as, as Envoy maps them.
pub fn grpc_as_http(status: u8) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        // Unknown, internal, data loss, and what nobody knows.
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { base: Duration::from_secs(30), longest: Duration::from_secs(100), most: 0.5 };

    #[test]
    fn an_ejection_lasts_longer_each_time_and_is_forgiven() {
        let (mut ejections, mut now) = (Ejections::default(), Instant::now());
        for expected in [30, 60, 90, 100, 100] {
            assert!(ejections.eject(&"a", Cause::Consecutive5xx, None, 4, &LIMITS, now));
            assert!(!ejections.eject(&"a", Cause::Consecutive5xx, None, 4, &LIMITS, now), "it is already");
            assert_eq!(ejections.of(&"a").unwrap().until - now, Duration::from_secs(expected));
            ejections.forgive(|_| true);
            now += Duration::from_secs(expected);
            assert_eq!(ejections.end(now), ["a"]);
        }
        (0..5).for_each(|_| ejections.forgive(|_| true));
        assert!(ejections.eject(&"a", Cause::RetryAfter, Some(Duration::from_secs(7)), 4, &LIMITS, now));
        assert_eq!(ejections.of(&"a").unwrap().until - now, Duration::from_secs(7), "as long as it asked");
        assert!(ejections.eject(&"b", Cause::SuccessRate, None, 4, &LIMITS, now));
        assert!(!ejections.eject(&"c", Cause::SuccessRate, None, 4, &LIMITS, now), "half of them are");
        let none = Limits { most: 0.0, ..LIMITS };
        assert!(!Ejections::default().eject(&"c", Cause::SuccessRate, None, 4, &none, now));
    }

    #[test]
    fn who_succeeds_far_less_often_is_an_outlier() {
        let rate = SuccessRate { minimum_hosts: 3, request_volume: 100, deviations: 1.0 };
        for (volumes, expected) in [
            (&[(100, 100), (99, 100), (50, 100)][..], &[2][..]),
            (&[(100, 100), (99, 100), (49, 99)], &[]),
            (&[(100, 100), (100, 100), (100, 100)], &[]),
            (&[(0, 100), (0, 100), (0, 100)], &[]),
            (&[], &[]),
        ] {
            assert_eq!(rate.outliers(volumes), expected, "{volumes:?}");
        }
    }

    proptest! {
        /// Whatever happens: never too many at once, and all come back.
        #[test]
        fn never_too_many_and_all_come_back(
            all in 1_usize..12, most in 0.0_f64..1.0,
            steps in prop::collection::vec((0_usize..12, 0_u64..60, any::<bool>()), 0..80),
        ) {
            let limits = Limits { most, ..LIMITS };
            let (mut ejections, mut now) = (Ejections::default(), Instant::now());
            for (who, pause, asks) in steps {
                let asked = asks.then_some(Duration::from_secs(pause * 10));
                ejections.eject(&(who % all), Cause::Consecutive5xx, asked, all, &limits, now);
                let allowed = if most > 0.0 { ((all as f64 * most) as usize).max(1) } else { 0 };
                prop_assert!(ejections.count() <= allowed);
                now += Duration::from_secs(pause);
                ejections.end(now);
                ejections.forgive(|_| true);
                if let Some(next) = ejections.next_end() {
                    prop_assert!(next > now && next <= now + limits.longest);
                }
            }
            ejections.end(now + limits.longest);
            prop_assert_eq!(ejections.count(), 0);
        }
    }
}
