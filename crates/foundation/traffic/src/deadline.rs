//! Deadlines that callers send along: how long the answer is worth anything to them.
//!
//! In: header values. Out: what is left, and the values for the next hop. Promise: what is told on is
//! never longer than what is left; a value that cannot be read says nothing.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// The most digits that `grpc-timeout` has ([gRPC over HTTP/2]).
///
/// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
const MOST_DIGITS: usize = 8;
const MOST_VALUE: u128 = 99_999_999;

/// Its units and their nanoseconds, the shortest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Reads `grpc-timeout`: up to eight digits and a unit.
pub fn read_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MOST_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (_, nanoseconds) = UNITS.iter().find(|(name, _)| name == unit)?;
    let count: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    // Eight digits of hours are more than a `u64` of nanoseconds.
    Some(Duration::from_nanos(count.saturating_mul(*nanoseconds)))
}

/// Writes `grpc-timeout` in the finest unit that has room, rounded down.
pub fn write_grpc_timeout(left: Duration, value: &mut String) {
    value.clear();
    let left = left.as_nanos();
    let (name, count) = UNITS
        .iter()
        .map(|(name, nanoseconds)| (*name, left / u128::from(*nanoseconds)))
        .find(|(_, count)| *count <= MOST_VALUE)
        .unwrap_or((b'H', MOST_VALUE));
    let _ = write!(value, "{count}{}", char::from(name));
}

/// Reads `x-envoy-expected-rq-timeout-ms`: milliseconds.
pub fn read_milliseconds(value: &[u8]) -> Option<Duration> {
    let digits = value.len() <= 15 && !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let count = str::from_utf8(value).ok().filter(|_| digits)?;
    Some(Duration::from_millis(count.parse().ok()?))
}

/// Reads `x-request-deadline`: the Unix time in seconds, with a fraction if need be. What has passed leaves nothing.
pub fn read_unix_deadline(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(seconds, 12) || !digits(fraction, 9) {
        return None;
    }
    let nanoseconds = fraction.parse::<u32>().ok()? * 10_u32.pow(9 - fraction.len() as u32);
    let at = Duration::new(seconds.parse().ok()?, nanoseconds);
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(at.saturating_sub(since))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_as_their_specifications_have_them() {
        for (value, milliseconds) in [
            ("1S", Some(1000)),
            ("100m", Some(100)),
            ("5000000n", Some(5)),
            ("7000u", Some(7)),
            ("2M", Some(120_000)),
            ("1H", Some(3_600_000)),
            ("0m", Some(0)),
            ("99999999H", Some(u64::MAX / 1_000_000)),
            ("123456789m", None),
            ("m", None),
            ("", None),
            ("1s", None),
            ("-1S", None),
            ("1.5S", None),
        ] {
            let read = read_grpc_timeout(value.as_bytes()).map(|left| left.as_millis() as u64);
            assert_eq!(read, milliseconds, "{value}");
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_500);
        for (value, milliseconds) in [
            ("1767323046", Some(500)),
            ("1767323045.75", Some(250)),
            ("1767323045.5", Some(0)),
            ("1767323000", Some(0)),
            ("soon", None),
            ("1767323046.", None),
            (".5", None),
            ("-1", None),
            ("9999999999999", None),
        ] {
            let read = read_unix_deadline(value.as_bytes(), now).map(|left| left.as_millis() as u64);
            assert_eq!(read, milliseconds, "{value}");
        }
        assert_eq!(read_milliseconds(b"250"), Some(Duration::from_millis(250)));
        assert_eq!((read_milliseconds(b""), read_milliseconds(b"1e3"), read_milliseconds(b"+1")), (None, None, None));
    }

    proptest! {
        #[test]
        fn what_is_told_on_is_never_longer_and_hardly_shorter(nanoseconds: u64) {
            let left = Duration::from_nanos(nanoseconds);
            let mut value = String::from("old");
            write_grpc_timeout(left, &mut value);
            let read = read_grpc_timeout(value.as_bytes());
            let read = read.ok_or_else(|| TestCaseError::fail(value.clone()))?;
            prop_assert!(read <= left, "{value}");
            prop_assert!(left - read <= left / 1000, "{value}: {read:?} of {left:?}");
        }

        #[test]
        fn nothing_that_is_sent_does_harm(value in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = (read_grpc_timeout(&value), read_milliseconds(&value), read_unix_deadline(&value, SystemTime::now()));
        }
    }
}
