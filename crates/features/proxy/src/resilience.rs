//! What a route does beyond sending a request once, compiled.
//!
//! In: the config of a route, its listener and its clusters. Out: limits of time, rate and number, and what
//! to do when a try fails. Promise: a route that asks for none of it has none of this, which is all
//! that its requests look at; a rate limit whose config did not change over a reload goes on counting.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use outrigger_config::{
    AdaptiveConcurrency, Deadlines, PriorityLevel, RateLimit as RateLimitConfig, RateLimitKey, RateLimitKeyType,
    Route as RouteConfig,
};
use outrigger_telemetry::Counter;
use outrigger_traffic::{AdaptiveLimit, ConcurrencyBounds, Criticality, Decision, Rate, RateLimit, RetryPolicy};
use outrigger_wire::head::Head;

use crate::connection::Downstream;
use crate::exchange::hedge::Hedge;
use crate::global_limit::GlobalLimit;
use crate::metrics::Families;
use crate::mirror::Mirror;

/// How often the state of limits is told to the metrics.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(5);

/// What a route asks for.
pub(crate) struct Resilience {
    /// For one try.
    pub(crate) backend_request: Option<Duration>,
    /// For an answer under way in which no byte moves.
    pub(crate) idle: Option<Duration>,
    /// Callers' deadlines count.
    pub(crate) deadlines: bool,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) mirror: Option<Mirror>,
    /// The listener's, then the route's own.
    pub(crate) rate_limits: Vec<Arc<Limiter>>,
    /// What the rate limit service is asked.
    pub(crate) global: Option<GlobalLimit>,
    criticality: Criticality,
    /// A header that says it for a request.
    criticality_header: Option<String>,
}

impl Resilience {
    /// What a route asks for; `None` when it is nothing. `limited` is whether a cluster of it limits requests at once.
    pub(crate) fn of(
        config: Option<&RouteConfig>,
        rate_limits: Vec<Arc<Limiter>>,
        global: Option<GlobalLimit>,
        limited: bool,
        mirror: Option<Mirror>,
    ) -> Option<Box<Self>> {
        let some = |limit: outrigger_config::Duration| (!limit.is_zero()).then_some(Duration::from(limit));
        let timeouts = config.map(|config| &config.timeouts);
        let backend_request = timeouts.and_then(|timeouts| some(timeouts.backend_request));
        let idle = timeouts.and_then(|timeouts| some(timeouts.idle));
        let deadlines = timeouts.is_some_and(|timeouts| timeouts.deadlines == Deadlines::Honour);
        let retry = config.and_then(|config| config.retry.as_ref()).map(RetryPolicy::of);
        let priority = config.and_then(|config| config.priority.clone());
        let hedge = config.and_then(|config| config.hedge.as_ref());
        let hedge = hedge.map(Hedge::of);
        let any = backend_request.is_some()
            || idle.is_some()
            || deadlines
            || retry.is_some()
            || hedge.is_some()
            || mirror.is_some()
            || !rate_limits.is_empty()
            || global.is_some()
            || limited
            || priority.is_some();
        let priority = priority.unwrap_or_default();
        let criticality = match priority.level {
            PriorityLevel::Critical => Criticality::Critical,
            PriorityLevel::Standard => Criticality::Standard,
            PriorityLevel::Sheddable => Criticality::Sheddable,
        };
        let criticality_header = priority.header;
        any.then(|| {
            Box::new(Self {
                backend_request,
                idle,
                deadlines,
                retry,
                hedge,
                mirror,
                rate_limits,
                global,
                criticality,
                criticality_header,
            })
        })
    }

    /// How much a request matters.
    pub(crate) fn criticality(&self, request: &Head) -> Criticality {
        let said = self.criticality_header.as_deref().and_then(|name| request.get_named(name));
        match said {
            Some(level) if level.eq_ignore_ascii_case(b"critical") => Criticality::Critical,
            Some(level) if level.eq_ignore_ascii_case(b"standard") => Criticality::Standard,
            Some(level) if level.eq_ignore_ascii_case(b"sheddable") => Criticality::Sheddable,
            _ => self.criticality,
        }
    }
}

/// The limit on requests at once that a cluster's config asks for.
pub(crate) fn adaptive(config: &AdaptiveConcurrency) -> AdaptiveLimit {
    let bounds = ConcurrencyBounds {
        least: config.min_concurrency,
        most: config.max_concurrency,
        buffer: f64::from(config.latency_buffer) / 100.0,
        every: config.measure_interval.into(),
    };
    AdaptiveLimit::new(bounds, Instant::now())
}

/// A rate limit in use, shared by workers.
pub(crate) struct Limiter {
    config: RateLimitConfig,
    limit: RateLimit,
    /// What `RateLimit-Policy` says of it.
    policy: String,
    allowed: Counter,
    limited: Counter,
    evictions: Counter,
    /// Evictions that the metric knows of.
    told: AtomicU64,
    /// Labels: listener, route, limit.
    place: [String; 3],
}

impl Limiter {
    fn new(place: [String; 3], config: &RateLimitConfig, families: &Families) -> Arc<Self> {
        let rate =
            Rate { requests: config.requests, per: config.per.into(), burst: config.burst.unwrap_or(config.requests) };
        let keys = if config.key.is_empty() { 1 } else { config.max_keys as usize };
        let [listener, route, name] = [&place[0], &place[1], &place[2]].map(String::as_str);
        let result = if config.enforce { "limited" } else { "would-be-limited" };
        let seconds = config.per.0.as_secs_f64().ceil();
        Arc::new(Self {
            limit: RateLimit::new(rate, keys, Instant::now()),
            policy: format!("\"{name}\";q={};w={seconds}", rate.requests),
            allowed: families.rate_limit(&[listener, route, name, "allowed"]),
            limited: families.rate_limit(&[listener, route, name, result]),
            evictions: families.rate_limit_evictions(&[listener, route, name]),
            told: AtomicU64::new(0),
            config: config.clone(),
            place,
        })
    }

    /// Lets a request pass, or says why not, and counts it.
    pub(crate) fn check(&self, request: &Head, downstream: &Downstream, now: Instant) -> Decision {
        let mut addresses = [[0; 17]; MOST_ADDRESSES];
        let mut used = 0;
        for (part, room) in
            self.config.key.iter().filter(|part| part.kind == RateLimitKeyType::ClientAddress).zip(&mut addresses)
        {
            *room = network(downstream.remote.ip(), part);
            used += 1;
        }
        let mut addresses = addresses[..used].iter();
        let parts = self.config.key.iter().map(|part| match (part.kind, &part.header) {
            (RateLimitKeyType::Header, Some(header)) => request.get_named(&header.name).unwrap_or_default(),
            (RateLimitKeyType::Peer, _) => downstream.peer.as_ref().map_or(&b""[..], |peer| peer.id.as_bytes()),
            (RateLimitKeyType::ClientAddress, _) => addresses.next().map_or(&b""[..], |address| &address[..]),
            _ => b"",
        });
        let decision = self.limit.check(self.limit.hash(parts), now);
        if decision.allowed {
            self.allowed.inc()
        } else {
            self.limited.inc()
        }
        Decision { allowed: decision.allowed || !self.config.enforce, ..decision }
    }

    /// Adds what a client is told of the limit.
    pub(crate) fn tell(&self, decision: &Decision, fields: &mut Vec<(Cow<'static, str>, Vec<u8>)>) {
        let seconds = |span: Duration| span.as_millis().div_ceil(1000);
        if !decision.allowed {
            fields.push(("Retry-After".into(), seconds(decision.retry_after).max(1).to_string().into()));
        }
        if self.config.headers {
            fields.push(("RateLimit-Policy".into(), self.policy.clone().into()));
            let (left, reset) = (decision.remaining, seconds(decision.reset));
            fields.push(("RateLimit".into(), format!("\"{}\";r={left};t={reset}", self.place[2]).into()));
        }
    }
}

/// Client addresses in one key; more would say the same again.
const MOST_ADDRESSES: usize = 4;

/// A client's network, in bytes that tell the families apart.
fn network(address: IpAddr, part: &RateLimitKey) -> [u8; 17] {
    let prefixes = part.client_address.clone().unwrap_or_default();
    let (family, bits, prefix) = match address.to_canonical() {
        IpAddr::V4(address) => (4, u128::from(address.to_bits()) << 96, prefixes.ipv4_prefix),
        IpAddr::V6(address) => (6, address.to_bits(), prefixes.ipv6_prefix),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
    let mut bytes = [family; 17];
    bytes[1..].copy_from_slice(&(bits & mask).to_be_bytes());
    bytes
}

/// All rate limits that are in use, by listener, route and name.
#[derive(Default)]
pub(crate) struct Limiters(Mutex<HashMap<[String; 3], Weak<Limiter>>>);

impl Limiters {
    /// The limits of a config: those in use where nothing changed, new ones otherwise.
    pub(crate) fn obtain(
        &self,
        listener: &str,
        route: &str,
        configs: &[RateLimitConfig],
        families: &Families,
    ) -> Vec<Arc<Limiter>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, limiter| limiter.strong_count() > 0);
        let obtain = |config: &RateLimitConfig| {
            let place = [listener.to_owned(), route.to_owned(), config.name.to_string()];
            if let Some(limiter) = known.get(&place).and_then(Weak::upgrade)
                && limiter.config == *config
            {
                return limiter;
            }
            let limiter = Limiter::new(place.clone(), config, families);
            known.insert(place, Arc::downgrade(&limiter));
            limiter
        };
        configs.iter().map(obtain).collect()
    }

    /// Tells the metrics how full the tables are.
    pub(crate) fn tell(&self, families: &Families) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for limiter in known.values().filter_map(Weak::upgrade) {
            families.rate_limit_fullness(&limiter.place, limiter.limit.fullness(Instant::now()));
            let evictions = limiter.limit.evictions();
            limiter.evictions.add(evictions - limiter.told.swap(evictions, Relaxed).min(evictions));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_as_wide_as_the_config_says() {
        let part = |text: &str| -> RateLimitKey { serde_json::from_str(text).unwrap() };
        let plain = part(r#"{"type":"ClientAddress"}"#);
        let wide = part(r#"{"type":"ClientAddress","clientAddress":{"ipv4Prefix":24,"ipv6Prefix":0}}"#);
        let of = |address: &str, part| network(address.parse().unwrap(), part);
        assert_ne!(of("192.0.2.1", &plain), of("192.0.2.2", &plain));
        assert_eq!(of("192.0.2.1", &wide), of("192.0.2.2", &wide));
        assert_ne!(of("192.0.2.1", &wide), of("192.0.3.1", &wide));
        assert_eq!(of("2001:db8::1", &plain), of("2001:db8::ffff", &plain), "a /64 is one client");
        assert_ne!(of("2001:db8::1", &plain), of("2001:db8:0:1::1", &plain));
        assert_eq!(of("::ffff:192.0.2.1", &plain), of("192.0.2.1", &plain));
        assert_eq!(of("2001:db8::1", &wide), of("fe80::1", &wide));
        assert_ne!(of("2001:db8::1", &wide), of("192.0.2.1", &wide));
    }
}
