//! Whether a request that failed is sent again, and when.
//!
//! In: a route's policy, how the last try failed, and what is known of the request. Out: no, not
//! although it could be (and why not), or after which wait. Promise: a request that an endpoint
//! may have acted on is repeated only where that does no harm or the policy says so; an endpoint
//! that asks for patience gets it.

use std::time::{Duration, Instant, SystemTime};

use outrigger_config::{Retry, RetryOn};

use crate::{Random, RetryBudget};

/// A route's `retry`, ready to be asked.
#[derive(Debug)]
pub struct RetryPolicy {
    codes: Vec<u16>,
    /// One bit for each status.
    grpc: u32,
    on: Vec<RetryOn>,
    attempts: u32,
    backoff: Duration,
    max_backoff: Duration,
    max_retry_after: Duration,
    only_idempotent: bool,
    /// Bytes of a body that are kept.
    pub max_body: usize,
    /// Whether endpoints are told which try it is.
    pub attempt_count: bool,
}

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Without an answer.
    Unanswered(RetryOn),
    /// With this status.
    Code(u16),
    /// With this status of gRPC.
    Grpc(u8),
}

/// When the endpoint wants to be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// After so long.
    After(Duration),
    /// Not at all.
    Never,
}

impl Asked {
    /// How long to wait, for those who come again in any case.
    pub fn wait(self) -> Option<Duration> {
        match self {
            Self::After(wait) => Some(wait),
            Self::Never => None,
        }
    }
}

/// What is known of a request whose try failed.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// How it failed.
    pub failure: Failure,
    /// Tries made.
    pub attempts: u32,
    /// Doing it twice does what doing it once does.
    pub idempotent: bool,
    /// Its body, if any, is at hand.
    pub replayable: bool,
    /// What the endpoint wishes.
    pub asked: Option<Asked>,
    /// What is left of the request's time, if it is bounded.
    pub left: Option<Duration>,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is nothing that is tried again.
    No,
    /// It is, but not this time.
    Withheld(Withheld),
    /// It is, after this wait.
    After(Duration),
}

/// Why a request is not sent again although its failure is one of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// `attempts` are used up.
    Attempts,
    /// The cluster's `retryConstraint` is.
    Budget,
    /// The body was longer than `maxBodyBytes`, or memory was short.
    Body,
    /// The request's time would be over before.
    Deadline,
    /// The endpoint does not want it, or not within `maxRetryAfter`.
    Asked,
    /// The cluster's `circuitBreakers.maxRetries` are under way.
    Overflow,
}

impl Withheld {
    /// As metrics and logs call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attempts => "attempts",
            Self::Budget => "budget",
            Self::Body => "body",
            Self::Deadline => "deadline",
            Self::Asked => "asked",
            Self::Overflow => "overflow",
        }
    }
}

impl Failure {
    /// As metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unanswered(RetryOn::ConnectFailure) => "connect-failure",
            Self::Unanswered(RetryOn::RefusedStream) => "refused-stream",
            Self::Unanswered(RetryOn::Reset) => "reset",
            Self::Unanswered(RetryOn::Timeout) => "timeout",
            Self::Code(_) => "code",
            Self::Grpc(_) => "grpc-code",
        }
    }

    /// Whether surely no endpoint acted on the request.
    fn is_unseen(self) -> bool {
        matches!(self, Self::Unanswered(RetryOn::ConnectFailure | RetryOn::RefusedStream))
    }
}

impl RetryPolicy {
    /// Compiles a route's policy.
    pub fn of(config: &Retry) -> Self {
        Self {
            codes: config.codes.clone(),
            grpc: config.grpc_codes.iter().fold(0, |bits, code| bits | 1 << (*code as u8)),
            on: config.on.clone(),
            attempts: config.attempts,
            backoff: config.backoff.into(),
            max_backoff: config.max_backoff.into(),
            max_retry_after: config.max_retry_after.into(),
            only_idempotent: config.only_idempotent,
            max_body: config.max_body_bytes.as_usize(),
            attempt_count: config.attempt_count,
        }
    }

    /// Whether a failure of this kind is one that is tried again at all.
    pub fn wants(&self, failure: Failure, idempotent: bool) -> bool {
        match failure {
            Failure::Unanswered(how) => {
                self.on.contains(&how) && (failure.is_unseen() || idempotent || !self.only_idempotent)
            }
            Failure::Code(code) => self.codes.contains(&code) && (idempotent || !self.only_idempotent),
            Failure::Grpc(status) => status < 32 && self.grpc & (1 << status) != 0,
        }
    }

    /// Whether the request is sent again, and when. The budget is asked last, so that only retries that are made use it.
    pub fn judge(&self, question: &Question, budget: &RetryBudget, now: Instant, random: &mut Random) -> Verdict {
        if !self.wants(question.failure, question.idempotent) {
            return Verdict::No;
        }
        if question.attempts > self.attempts {
            return Verdict::Withheld(Withheld::Attempts);
        }
        if !question.replayable {
            return Verdict::Withheld(Withheld::Body);
        }
        let wait = match question.asked {
            None => self.wait(question.attempts, random),
            Some(Asked::After(wait)) if wait <= self.max_retry_after => wait,
            Some(_) => return Verdict::Withheld(Withheld::Asked),
        };
        if question.left.is_some_and(|left| left <= wait) {
            return Verdict::Withheld(Withheld::Deadline);
        }
        if !budget.try_retry(now) {
            return Verdict::Withheld(Withheld::Budget);
        }
        Verdict::After(wait)
    }

    /// The wait after so many tries: twice as long each time, and up to twice that by chance.
    fn wait(&self, attempts: u32, random: &mut Random) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        // Where the cap is reached chance must still have room, or all would come back together.
        let least = doubled.min(self.max_backoff / 2).max(self.backoff);
        let most = least.saturating_mul(2).min(self.max_backoff).max(least);
        least + (most - least).mul_f64(f64::from(random.next()) / (f64::from(u32::MAX) + 1.0))
    }
}

/// What `Retry-After` says ([RFC 9110], 10.2.3): seconds, or a date. What cannot be read says nothing.
///
/// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
pub fn retry_after(value: &[u8], now: SystemTime) -> Option<Asked> {
    let value = str::from_utf8(value).ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Asked::After(Duration::from_secs(value.parse().unwrap_or(u64::MAX))));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(Asked::After(date.duration_since(now).unwrap_or_default()))
}

/// What `grpc-retry-pushback-ms` says: milliseconds; anything else means never ([gRFC A6]).
///
/// [gRFC A6]: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
pub fn grpc_pushback(value: &[u8]) -> Asked {
    let text = str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match text.and_then(|text| text.parse::<u32>().ok()) {
        Some(milliseconds) => Asked::After(Duration::from_millis(milliseconds.into())),
        None => Asked::Never,
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::{GrpcCode, RetryConstraint};
    use proptest::prelude::*;

    use super::*;

    fn policy(config: Retry) -> RetryPolicy {
        RetryPolicy::of(&config)
    }

    fn question(failure: Failure) -> Question {
        Question { failure, attempts: 1, idempotent: true, replayable: true, asked: None, left: None }
    }

    #[test]
    fn what_an_endpoint_may_have_acted_on_is_not_repeated_unless_told() {
        use RetryOn::{ConnectFailure, RefusedStream, Reset, Timeout};
        let careful = policy(Retry { codes: vec![503], grpc_codes: vec![GrpcCode::Unavailable], ..Retry::default() });
        let told = policy(Retry { codes: vec![503], only_idempotent: false, ..Retry::default() });
        for (failure, idempotent, by_careful, by_told) in [
            (Failure::Unanswered(ConnectFailure), false, true, true),
            (Failure::Unanswered(RefusedStream), false, true, true),
            (Failure::Unanswered(Reset), false, false, true),
            (Failure::Unanswered(Timeout), false, false, true),
            (Failure::Unanswered(Reset), true, true, true),
            (Failure::Unanswered(Timeout), true, true, true),
            (Failure::Code(503), false, false, true),
            (Failure::Code(503), true, true, true),
            (Failure::Code(500), true, false, false),
            (Failure::Grpc(14), false, true, false),
            (Failure::Grpc(13), false, false, false),
            (Failure::Grpc(99), false, false, false),
        ] {
            assert_eq!(careful.wants(failure, idempotent), by_careful, "{failure:?} {idempotent}");
            assert_eq!(told.wants(failure, idempotent), by_told, "{failure:?} {idempotent}, told");
        }
        let only = policy(Retry { on: vec![ConnectFailure], ..Retry::default() });
        assert!(!only.wants(Failure::Unanswered(Reset), true));
    }

    #[test]
    fn a_retry_is_withheld_for_one_reason_that_is_told() {
        let now = Instant::now();
        let policy = policy(Retry { codes: vec![503], attempts: 2, ..Retry::default() });
        let base = question(Failure::Code(503));
        let second = Duration::from_secs(1);
        let none = RetryConstraint {
            budget: outrigger_config::RetryBudget { percent: 0, ..Default::default() },
            min_retry_rate: outrigger_config::RetryRate { count: 0, ..Default::default() },
        };
        for (question, constraint, verdict) in [
            (Question { attempts: 3, ..base }, RetryConstraint::default(), Withheld::Attempts),
            (Question { replayable: false, ..base }, RetryConstraint::default(), Withheld::Body),
            (
                Question { left: Some(Duration::from_millis(20)), ..base },
                RetryConstraint::default(),
                Withheld::Deadline,
            ),
            (Question { asked: Some(Asked::Never), ..base }, RetryConstraint::default(), Withheld::Asked),
            (Question { asked: Some(Asked::After(second * 3)), ..base }, RetryConstraint::default(), Withheld::Asked),
            (base, none, Withheld::Budget),
        ] {
            let budget = RetryBudget::new(&constraint, now);
            let found = policy.judge(&question, &budget, now, &mut Random::new(1));
            assert_eq!(found, Verdict::Withheld(verdict), "{question:?}");
        }
        let budget = RetryBudget::new(&RetryConstraint::default(), now);
        let asked = Question { asked: Some(Asked::After(second)), ..base };
        assert_eq!(policy.judge(&asked, &budget, now, &mut Random::new(1)), Verdict::After(second));
        let other = question(Failure::Code(404));
        assert_eq!(policy.judge(&other, &budget, now, &mut Random::new(1)), Verdict::No);
    }

    proptest! {
        #[test]
        fn a_wait_grows_and_stays_within_its_bounds(seed: u64, attempts in 1_u32..40, backoff in 1_u64..500, factor in 1_u64..50) {
            let config = Retry {
                backoff: outrigger_config::Duration::from_millis(backoff),
                max_backoff: outrigger_config::Duration::from_millis(backoff * factor),
                ..Retry::default()
            };
            let (least, most) = (Duration::from(config.backoff), Duration::from(config.max_backoff));
            let wait = policy(config).wait(attempts, &mut Random::new(seed));
            prop_assert!(wait >= least && wait <= most, "{wait:?} of {least:?} to {most:?}");
            if attempts > 20 {
                prop_assert!(wait >= most / 2, "{wait:?}");
            }
        }

        #[test]
        fn whatever_an_endpoint_says_is_read_without_harm(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = (retry_after(&value, SystemTime::now()), grpc_pushback(&value));
        }
    }

    #[test]
    fn an_endpoints_wish_is_read_in_all_its_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let after = |seconds| Some(Asked::After(Duration::from_secs(seconds)));
        for (value, asked) in [
            ("7", after(7)),
            (" 120 ", after(120)),
            ("99999999999999999999", after(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", after(10)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", after(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value.as_bytes(), now), asked, "{value}");
        }
        for (value, asked) in [
            ("25", Asked::After(Duration::from_millis(25))),
            ("0", Asked::After(Duration::ZERO)),
            ("-1", Asked::Never),
            ("", Asked::Never),
            ("x", Asked::Never),
        ] {
            assert_eq!(grpc_pushback(value.as_bytes()), asked, "{value}");
        }
    }
}
