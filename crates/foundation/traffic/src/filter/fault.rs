//! Faults that are put in on purpose, to see what clients make of them.
//!
//! In: a request and chance. Out: how long it waits, and how it fails. Promise: each client is
//! told of a failure in its own terms, HTTP's or gRPC's.

use std::time::Duration;

use outrigger_config::FaultInjection;
use outrigger_wire::head::Head;

use crate::Random;
use crate::outlier::grpc_as_http;
use crate::route::FieldCondition;

/// What requests suffer.
#[derive(Debug)]
pub struct Fault {
    delay: Option<(Duration, Share)>,
    abort: Option<(Abort, Share)>,
    headers: Box<[FieldCondition]>,
}

/// A failure, for each kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// For clients that speak HTTP.
    pub status: u16,
    /// For those that speak gRPC.
    pub grpc_status: u8,
}

/// A share of all requests: so many of 2^32.
#[derive(Debug, Clone, Copy)]
struct Share(u64);

impl Share {
    fn of(percentage: f64) -> Self {
        Self((percentage.clamp(0.0, 100.0) / 100.0 * 4_294_967_296.0) as u64)
    }

    fn hits(self, random: &mut Random) -> bool {
        u64::from(random.next()) < self.0
    }
}

impl Fault {
    pub(super) fn of(config: &FaultInjection) -> Option<Self> {
        let abort = config.abort.as_ref().map(|abort| {
            let both = match (abort.http_status, abort.grpc_status) {
                (Some(status), _) => Abort { status, grpc_status: grpc_of(status) },
                (None, grpc) => Abort { status: grpc_as_http(grpc.unwrap_or(14)), grpc_status: grpc.unwrap_or(14) },
            };
            (both, Share::of(abort.percentage))
        });
        Some(Self {
            delay: config.delay.as_ref().map(|delay| (delay.duration.into(), Share::of(delay.percentage))),
            abort,
            headers: config.headers.iter().map(FieldCondition::new).collect::<Result<_, _>>().ok()?,
        })
    }

    /// What this request suffers: a wait, then a failure.
    pub fn on(&self, request: &Head, random: &mut Random) -> (Option<Duration>, Option<Abort>) {
        if !self.headers.iter().all(|field| field.holds(request)) {
            return (None, None);
        }
        let delay = self.delay.filter(|(_, share)| share.hits(random)).map(|(delay, _)| delay);
        let abort = self.abort.filter(|(_, share)| share.hits(random)).map(|(abort, _)| abort);
        (delay, abort)
    }
}

impl Fault {
    /// The failure of a request that certainly fails.
    pub fn certainly(&self, request: &Head) -> Option<Abort> {
        let all = self.abort.filter(|(_, share)| share.0 >= 1 << 32).map(|(abort, _)| abort)?;
        self.headers.iter().all(|field| field.holds(request)).then_some(all)
    }
}

/// As gRPC maps the statuses of HTTP ([mapping]).
///
/// [mapping]: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
fn grpc_of(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::{FaultAbort, FaultDelay, HeaderMatch, ValueMatchType};

    use super::*;

    #[test]
    fn so_many_requests_suffer() {
        let fault = |percentage: f64| {
            Fault::of(&FaultInjection {
                delay: Some(FaultDelay { duration: outrigger_config::Duration::from_secs(1), percentage }),
                abort: Some(FaultAbort { http_status: Some(503), grpc_status: None, percentage }),
                headers: vec![HeaderMatch { kind: ValueMatchType::Exact, name: "x".to_owned(), value: "1".to_owned() }],
            })
            .unwrap()
        };
        let mut random = Random::new(7);
        let mut request = Head::default();
        assert_eq!(fault(100.0).on(&request, &mut random), (None, None), "not without the field");
        request.push("X", b"1");
        let both = (Some(Duration::from_secs(1)), Some(Abort { status: 503, grpc_status: 14 }));
        for (percentage, least, most) in [(0.0, 0, 0), (100.0, 10_000, 10_000), (10.0, 900, 1_100), (0.5, 25, 75)] {
            let fault = fault(percentage);
            let hits = (0..10_000).filter(|_| fault.on(&request, &mut random).1 == both.1).count();
            assert!((least..=most).contains(&hits), "{percentage} %: {hits}");
        }
        assert_eq!(fault(100.0).on(&request, &mut random), both);
    }

    #[test]
    fn each_client_is_told_in_its_own_terms() {
        let abort = |http_status, grpc_status| {
            let abort = Some(FaultAbort { http_status, grpc_status, percentage: 100.0 });
            let fault = Fault::of(&FaultInjection { abort, ..FaultInjection::default() }).unwrap();
            fault.on(&Head::default(), &mut Random::new(1)).1.map(|abort| (abort.status, abort.grpc_status))
        };
        assert_eq!(abort(Some(404), None), Some((404, 12)));
        assert_eq!(abort(None, Some(8)), Some((429, 8)));
    }
}
